#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Range and conditional requests (RFC 9110, 13 and 14)."""

import os
import time

from harness import Client, case, content, equal, get, main, new_root, same_bytes, shared_server, until, write

SIZE = 10000
DATA = content(SIZE)
root = new_root()
name = write(root, "file.bin", data=DATA)
MODIFIED = 1_600_000_000  # Sun, 13 Sep 2020 12:26:40 GMT
os.utime(name, (MODIFIED, MODIFIED))
os.utime(write(root, "empty.bin"), (MODIFIED, MODIFIED))
FORMS = {
    "IMF-fixdate": "Sun, 13 Sep 2020 12:26:40 GMT",
    "RFC 850": "Sunday, 13-Sep-20 12:26:40 GMT",
    "asctime": "Sun Sep 13 12:26:40 2020",
}
BEFORE = "Sun, 13 Sep 2020 12:26:39 GMT"
AFTER = "Sun, 13 Sep 2020 12:26:41 GMT"
server = shared_server(root)


def etag():
    def strong():
        value = get(server(), "/file.bin")["ETag"]
        return not value.startswith("W/") and value
    return until(strong, 4, "a strong ETag")


@case("the ETag of a file changed a moment ago is weak, and becomes strong without a change of the file")
def becomes_strong():
    path = write(root, "new.bin", data=DATA)
    with Client(server()) as client:
        def weak():  # for some milliseconds only
            with open(path, "r+b") as file:
                file.write(b"x")
            tag = client.get("/new.bin")["ETag"]
            return tag.startswith("W/") and tag
        tag = until(weak, 4, "a weak ETag")
        until(lambda: client.get("/new.bin")["ETag"] == tag[2:], 4, "the same, but strong")


for what, value, first, last in (
        ("the first byte", "bytes=0-0", 0, 0),
        ("the first 500 bytes", "bytes=0-499", 0, 499),
        ("a range in the middle", "bytes=500-999", 500, 999),
        ("the last byte by its number", "bytes=9999-9999", 9999, 9999),
        ("the last byte as a suffix", "bytes=-1", 9999, 9999),
        ("a suffix", "bytes=-500", 9500, 9999),
        ("a suffix longer than the file", "bytes=-20000", 0, 9999),
        ("an open range", "bytes=9000-", 9000, 9999),
        ("the open range from 0", "bytes=0-", 0, 9999),
        ("a range clamped at the end", "bytes=9990-99999999999999999999999", 9990, 9999),
        ("a unit in capitals", "BYTES=1-2", 1, 2),
        ("a range with empty list elements", "bytes=, 1-2 ,", 1, 2)):
    @case("206 for %s (%s) with its exact bytes", what, value)
    def part(_, value, first=first, last=last):
        with Client(server()) as client:
            response = client.get("/file.bin", "Range: " + value)
            equal(response.status, 206)
            equal(response["Content-Range"], "bytes %d-%d/%d" % (first, last, SIZE))
            equal(response["Content-Length"], str(last - first + 1))
            same_bytes(response.body, DATA[first:last + 1])
            equal(response["ETag"], etag())
            equal(client.alive("/file.bin"), 200)


for value in ("bytes=10000-", "bytes=10000-10001", "bytes=-0", "bytes=99999999999999999999999-"):
    @case("416 with the size for %s, and the connection is kept", value)
    def unsatisfiable(value):
        with Client(server()) as client:
            response = client.get("/file.bin", "Range: " + value)
            equal(response.status, 416)
            equal(response["Content-Range"], "bytes */%d" % SIZE)
            same_bytes(client.get("/file.bin").body, DATA)


for value in ("bytes=0-1,5-6", "bytes=5-4", "bytes=a-b", "bytes=1", "bytes=-", "bytes=", "bytes 0-1", "lines=0-1",
              "bytes=0-1-2", "bytes=0x0-0x1", "bytes=--1", "bytes=1 - 2", "bytes=+1-2", "=1-2", ""):
    @case("200 with everything for \"Range: %s\", which is several ranges or none at all", value)
    def whole(value):
        with Client(server()) as client:
            response = client.get("/file.bin", "Range: " + value)
            equal(response.status, 200)
            equal(response["Content-Range"], None)
            same_bytes(response.body, DATA)


@case("a range of an empty file is unsatisfiable")
def empty():
    for value in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        response = get(server(), "/empty.bin", "Range: " + value)
        equal((response.status, response["Content-Range"]), (416, "bytes */0"), value)


@case("Range means nothing in a HEAD")
def head():
    response = get(server(), "/file.bin", "Range: bytes=0-1", method="HEAD")
    equal((response.status, response["Content-Length"]), (200, str(SIZE)))


@case("two Range fields are refused")
def twice():
    equal(get(server(), "/file.bin", "Range: bytes=0-1", "Range: bytes=2-3").status, 400)


@case("100 ranges in order over one connection make up the file")
def assembled():
    with Client(server()) as client:
        got = b"".join(client.get("/file.bin", "Range: bytes=%d-%d" % (at, at + 99)).body for at in range(0, SIZE, 100))
    same_bytes(got, DATA)


def status(*fields, target="/file.bin", method="GET"):
    """Of a request on a connection that has to answer one more."""
    with Client(server()) as client:
        response = client.get(target, *fields, method=method)
        equal(client.get("/file.bin").body == DATA, True, "the next answer on the connection")
        return response.status


@case("If-Range with the entity tag gives the part, with another one, a weak one or garbage everything")
def if_range_etag():
    tag = etag()
    equal(status("Range: bytes=0-1", "If-Range: " + tag), 206)
    equal(status("Range: bytes=0-1", 'If-Range: "other"'), 200)
    equal(status("Range: bytes=0-1", "If-Range: W/" + tag), 200)
    equal(status("Range: bytes=0-1", "If-Range: " + tag.strip('"')), 200)
    equal(status("Range: bytes=0-1", "If-Range: *"), 200)
    equal(status("Range: bytes=20000-", 'If-Range: "other"'), 200)
    equal(status("Range: bytes=20000-", "If-Range: " + tag), 416)


@case("If-Range with a date gives the part if it is the very date of the file")
def if_range_date():
    equal(status("Range: bytes=0-1", "If-Range: " + FORMS["IMF-fixdate"]), 206)
    equal(status("Range: bytes=0-1", "If-Range: " + BEFORE), 200)
    equal(status("Range: bytes=0-1", "If-Range: " + AFTER), 200)
    equal(status("Range: bytes=0-1", "If-Range: yesterday"), 200)


@case("the validators of a file changed this second are not good for If-Range")
def if_range_fresh():
    path = write(root, "fresh.bin", data=DATA)
    with Client(server()) as client:
        now = time.time()
        time.sleep(1.02 - now % 1)  # the change, the request and its answer fall into one second
        with open(path, "r+b") as file:
            file.write(b"x")
        first = client.get("/fresh.bin")
        again = client.get("/fresh.bin", "Range: bytes=0-1", "If-Range: " + first["Last-Modified"])
        if first["Date"] == first["Last-Modified"] == again["Date"]:
            equal(again.status, 200)
        else:
            raise AssertionError("all within one second, but %s" % [first["Date"], first["Last-Modified"],
                                                                    again["Date"]])


@case("304 for If-None-Match with the tag, a list that has it, its weak form, or *")
def none_match():
    tag = etag()
    for value in (tag, '"a", %s, "b"' % tag, "W/" + tag, "*", ' "x"  ,, ' + tag, '"a,b",' + tag):
        equal(status("If-None-Match: " + value), 304, "for " + value)
        equal(status("If-None-Match: " + value, method="HEAD"), 304, "HEAD for " + value)
    for value in ('"x"', tag[:-2] + '"', tag.strip('"'), '"*"', '"a", "b"', '"' + tag):
        equal(status("If-None-Match: " + value), 200, "for " + value)


@case("304 has no body, has the validators, and keeps the connection in step")
def not_modified():
    with Client(server()) as client:
        whole = client.get("/file.bin")
        client.send(("GET /file.bin HTTP/1.1\r\nHost: a\r\nIf-None-Match: %s\r\n\r\n" % whole["ETag"]) * 20 +
                    "GET /file.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(20):
            response = client.response()
            equal(response.status, 304)
            for field in ("ETag", "Last-Modified"):
                equal(response[field], whole[field])
            assert response["Date"], response
        same_bytes(client.response().body, DATA)


for form, text in FORMS.items():
    @case("If-Modified-Since is understood as %s", form)
    def since(form):
        text = FORMS[form]
        equal(status("If-Modified-Since: " + text), 304)
        equal(status("If-Modified-Since: " + text.replace("26:40", "26:39")), 200)
        equal(status("If-Modified-Since: " + text.replace("26:40", "26:41")), 304)

    @case("If-Unmodified-Since is understood as %s", form)
    def unmodified(form):
        text = FORMS[form]
        equal(status("If-Unmodified-Since: " + text), 200)
        equal(status("If-Unmodified-Since: " + text.replace("26:40", "26:39")), 412)


@case("a date that is none is as if it were not there")
def no_date():
    for value in ("", "0", "yesterday", "Sun, 13 Sep 2020 25:26:40 GMT", "Sun, 13 Sep 2020 12:26:40 CET",
                  "Sun, 32 Sep 2020 12:26:40 GMT"):
        equal(status("If-Modified-Since: " + value), 200, value)
        equal(status("If-Unmodified-Since: " + value), 200, value)


@case("If-Match: the tag or * passes, others and weak ones are 412")
def if_match():
    tag = etag()
    for value in (tag, "*", '"a", ' + tag):
        equal(status("If-Match: " + value), 200, value)
    for value in ('"x"', "W/" + tag, '"a", "b"', ""):
        equal(status("If-Match: " + value), 412, value)


@case("conditions are judged in the order of RFC 9110, 13.2.2")
def precedence():
    tag, date = etag(), FORMS["IMF-fixdate"]
    equal(status('If-Match: "x"', "If-None-Match: " + tag), 412)
    equal(status("If-Match: " + tag, "If-Unmodified-Since: " + BEFORE), 200)
    equal(status("If-None-Match: " + tag, "If-Modified-Since: " + BEFORE), 304)
    equal(status('If-None-Match: "x"', "If-Modified-Since: " + date), 200)
    equal(status("If-None-Match: " + tag, "Range: bytes=0-1"), 304)
    equal(status("If-Modified-Since: " + date, "Range: bytes=0-1"), 304)
    equal(status('If-Match: "x"', "Range: bytes=20000-"), 412)
    equal(status("If-Match: " + tag, "If-None-Match: " + tag), 304)
    equal(status("If-None-Match: *", target="/none"), 404)
    equal(status("If-Match: *", target="/none"), 404)


@case("412 and 416 keep the connection and say how long their bodies are")
def bodies():
    with Client(server()) as client:
        for fields in (('If-Match: "x"',), ("Range: bytes=20000-",), ("If-Unmodified-Since: " + BEFORE,)):
            for method in ("GET", "HEAD"):
                client.get("/file.bin", *fields, method=method)
                same_bytes(client.get("/file.bin").body, DATA)


server.closing_case()

if __name__ == "__main__":
    main()
