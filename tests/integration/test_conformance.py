#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What RFC 9110 and 9112 ask of an origin server and no other program shows. docs/conformance.md lists all of it."""

import calendar
import email.utils
import os
import re
import time

from harness import Client, case, content, equal, get, main, new_root, same_bytes, shared_server, write

root = new_root()
write(root, "file.txt", data=content(5000))
write(root, "empty.txt")
write(root, "page.html", data=b"<p>page")
write(root, "page.html.gz", data=b"zipped")
write(root, "listed", "file.txt", data=b"file")
write(root, "indexed", "index.html", data=b"index")
server = shared_server(root, "--precompressed")

# Each kind of answer: what is asked for, with which fields, and the status.
ANSWERS = [
    ("/file.txt", (), 200), ("/empty.txt", (), 200), ("/page.html", ("Accept-Encoding: gzip",), 200),
    ("/indexed/", (), 200), ("/listed/", (), 200), ("/listed/", ("Accept: application/json",), 200),
    ("/listed", (), 301), ("/indexed?a=b", (), 301),
    ("/file.txt", ("If-None-Match: *",), 304), ("/listed/", ("If-None-Match: *",), 304),
    ("/page.html", ("Accept-Encoding: gzip", "If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT"), 304),
    ("/file.txt", ('If-Match: "x"',), 412), ("/listed/", ('If-Match: "x"',), 412),
    ("/none", (), 404), ("/.hidden", (), 404), ("/%zz", (), 400), ("/../x", (), 400),
    ("/file.txt", ("Expect: more",), 417),
]


@case("HEAD is answered with the head of GET, whatever the answer is")
def heads():
    with Client(server()) as client:
        client.get("/page.html", "Accept-Encoding: gzip")  # tags of new files become strong
        time.sleep(0.05)
        for target, fields, status in ANSWERS:
            got = {}
            for method in ("GET", "HEAD"):
                response = client.get(target, *fields, method=method)
                equal(response.status, status, "%s %s %s" % (method, target, fields))
                response.fields.pop("date")
                got[method] = response.fields
            equal(got["HEAD"], got["GET"], "%s %s" % (target, fields))


@case("every answer has a Date of this moment in the preferred form")
def dates():
    form = (r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
            r"\d\d:\d\d:\d\d GMT")
    requests = [("GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n" % (target, "".join(field + "\r\n" for field in fields)), status)
                for target, fields, status in ANSWERS]
    requests += [("GET /file.txt HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n", 206),
                 ("GET /file.txt HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1,9-10\r\n\r\n", 206),
                 ("GET /file.txt HTTP/1.1\r\nHost: a\r\nRange: bytes=9999-\r\n\r\n", 416),
                 ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200), ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
                 ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501), ("GET / HTTP/1.1\r\n\r\n", 400),
                 ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505), ("GET /%s HTTP/1.1\r\n" % ("a" * 9000), 414),
                 ("GET / HTTP/1.1\r\nX: %s\r\n" % ("a" * 20000), 431)]
    for request, status in requests:
        with Client(server()) as client:
            client.send(request)
            response = client.response()
            equal(response.status, status, request[:100])
            assert re.fullmatch(form, response["Date"]), response
            there = calendar.timegm(email.utils.parsedate(response["Date"]))
            assert abs(there - time.time()) < 5, response


@case("Last-Modified is never later than Date, even of a file from the future")
def future():
    os.utime(write(root, "future.txt", data=b"x"), (time.time() + 86400,) * 2)
    response = get(server(), "/future.txt")
    modified, date = (calendar.timegm(email.utils.parsedate(response[name])) for name in ("Last-Modified", "Date"))
    assert modified <= date, response


@case("of a listing, which has no tag, If-Match is true only for *, and If-None-Match false only for *")
def listing_conditions():
    with Client(server()) as client:
        for fields, status in ((("If-Match: *",), 200), (('If-Match: "a", "b"',), 412), (("If-None-Match: *",), 304),
                               (('If-None-Match: "a"',), 200), (("If-Match: *", "If-None-Match: *"), 304),
                               (("If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT",), 200),
                               (("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",), 200),
                               (("Range: bytes=0-1",), 200)):
            response = client.get("/listed/", *fields)
            equal(response.status, status, str(fields))
            equal(response["Content-Length"] is None, status == 304, "there is no length, of %s" % (fields,))


@case("conditions do not matter where the answer would be no success without them")
def moot():
    with Client(server()) as client:
        for target, method, status in (("/none", "GET", 404), ("/listed", "GET", 301), ("/%zz", "GET", 400),
                                       ("/file.txt", "POST", 405), ("/file.txt", "BREW", 501)):
            for field in ('If-Match: "x"', "If-None-Match: *", "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
                          "Range: bytes=99999-"):
                equal(client.get(target, field, method=method).status, status, "%s %s" % (target, field))


@case("fields that nobody knows, an Upgrade, and TE are passed over")
def unknown_fields():
    with Client(server()) as client:
        response = client.get("/file.txt", "Upgrade: h2c, websocket", "HTTP2-Settings: AAMAAABkAAQAAP__",
                              "Connection: Upgrade, HTTP2-Settings, TE", "TE: trailers, gzip", "X: y", "x:",
                              "Priority: u=3")
        equal((response.status, response["Upgrade"], response["Transfer-Encoding"]), (200, None, None))
        same_bytes(client.get("/file.txt").body, content(5000))


server.closing_case()

if __name__ == "__main__":
    main()
