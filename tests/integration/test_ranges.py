#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Range and conditional requests (RFC 9110, 13 and 14)."""

import os
import re
import time

from harness import (Client, Server, case, content, equal, get, main, new_root, note, parts_of, same_bytes,
                     shared_server, until, write)

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


for value in ("bytes=0-1, 5", "bytes=5-4", "bytes=a-b", "bytes=1", "bytes=-", "bytes=", "bytes 0-1", "lines=0-1",
              "bytes=0-1-2", "bytes=0x0-0x1", "bytes=--1", "bytes=1 - 2", "bytes=+1-2", "=1-2", ""):
    @case("200 with everything for \"Range: %s\", which is none", value)
    def whole(value):
        with Client(server()) as client:
            response = client.get("/file.bin", "Range: " + value)
            equal(response.status, 200)
            equal(response["Content-Range"], None)
            same_bytes(response.body, DATA)


# ---- Several ranges ----

def wanted(*ranges, size=SIZE, data=DATA):
    return [("bytes %d-%d/%d" % (first, last, size), data[first:last + 1]) for first, last in ranges]


for value, ranges in (
        ("bytes=0-1,5-6", ((0, 1), (5, 6))),
        ("bytes=9000-,0-0", ((9000, 9999), (0, 0))),
        ("bytes=-1, 0-0 ,4000-4999", ((9999, 9999), (0, 0), (4000, 4999))),
        ("bytes=0-99,50-149,200-299,300-399,1000-1000", ((0, 149), (200, 399), (1000, 1000))),
        ("bytes=500-599,20000-,0-99,-0", ((500, 599), (0, 99)))):
    @case("206 in parts for %s, each with its bytes, its place and the file's type", value)
    def parts(value, ranges=ranges):
        with Client(server()) as client:
            response = client.get("/file.bin", "Range: " + value)
            equal((response.status, response["ETag"], response["Accept-Ranges"]), (206, etag(), "bytes"))
            equal(parts_of(response), wanted(*ranges))
            same_bytes(client.get("/file.bin").body, DATA)


@case("a list that comes down to one range is answered with that, not with parts")
def one_left():
    for value, first, last in (("bytes=0-99,100-199", 0, 199), ("bytes=10-19,20000-,-0", 10, 19),
                               ("bytes=5000-,0-5010", 0, 9999), ("bytes=3-3,3-3,3-3", 3, 3)):
        response = get(server(), "/file.bin", "Range: " + value)
        equal((response.status, response["Content-Range"]), (206, "bytes %d-%d/%d" % (first, last, SIZE)), value)
        same_bytes(response.body, DATA[first:last + 1])


@case("a list of which nothing lies within the file is 416")
def none_left():
    equal(get(server(), "/file.bin", "Range: bytes=10000-,20000-20001,-0").status, 416)


@case("no list of ranges costs more than the whole file, which is sent instead of many small parts")
def bombs():
    with Client(server()) as client:
        for value in (",".join("%d-%d" % (i, i) for i in range(0, 128, 2)),      # 64, each with a head of 150 bytes
                      ",".join("%d-" % i for i in range(60)), ",".join("0-" for _ in range(2000)),
                      ",".join("-%d" % i for i in range(1, 64)), "0-4990,4999-", "1-,0-0,2-2",
                      ",".join("%d-%d" % (i, i) for i in range(1500)), "," * 5000 + "0-9999" + "," * 5000):
            response = client.get("/file.bin", "Range: bytes=" + value)
            assert len(response.body) <= SIZE, "%s brings %d bytes" % (value[:60], len(response.body))
            if response.status == 200:
                same_bytes(response.body, DATA)
        write(root, "small.bin", data=DATA[:4000])
        for count, answer in ((64, 200), (20, 206)):
            field = "Range: bytes=" + ",".join("%d-%d" % (i, i) for i in range(0, 2 * count, 2))
            equal(client.get("/small.bin", field).status, answer)


BIG = content(4 << 20)
write(root, "big.bin", data=BIG)


def big_parts(count):
    size = len(BIG) // count
    ranges = [(i * size, i * size + size - 1000) for i in range(count)]
    return ranges, "Range: bytes=" + ",".join("%d-%d" % item for item in reversed(ranges))


@case("64 ranges are served in parts, 65 with the whole file")
def most():
    with Client(server()) as client:
        ranges, field = big_parts(64)
        equal(parts_of(client.get("/big.bin", field)), wanted(*reversed(ranges), size=len(BIG), data=BIG))
        same_bytes(client.get("/big.bin", big_parts(65)[1]).body, BIG)


@case("parts go by the route a file goes by: none of their bytes is copied", tls=False)
def by_reference():
    ranges, field = big_parts(4)
    with Server(root, "--receipts") as telling:
        with Client(telling) as client:
            equal(len(parts_of(client.get("/big.bin", field))), 4)
        said = until(lambda: re.search(r"receipt \S+: 1 request: (.*)", telling.errors()), 5, "the receipt")[1]
        note(said)
        assert "by reference 4.0 MiB" in said or "aliased 4.0 MiB" in said, said
        copied = int(re.search(r"copied (\d+) B", said)[1])
        assert copied < 2000, said


@case("parts for a slow reader, with forced routes, and pipelined, are the right bytes")
def slowly():
    ranges, field = big_parts(5)
    right = wanted(*reversed(ranges), size=len(BIG), data=BIG)
    with Client(server(), receive_buffer=4096) as client:
        request = "GET /big.bin HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % field
        client.send(request * 3)
        for _ in range(3):
            time.sleep(0.02)
            equal(parts_of(client.response()), right)
    for route in ("copy", "mmap", "splice"):
        with Server(root, "--route", route) as forced:
            equal(parts_of(get(forced, "/big.bin", field)), right, route)
    with Server(root, "--snapshot") as copying:
        equal(parts_of(get(copying, "/big.bin", field)), right)


@case("a file cut short within its parts ends the response short, and the connection", tls=False)
def cut_short():
    ranges, field = big_parts(3)
    path = write(root, "cut.bin", data=BIG)
    with Client(server(), receive_buffer=4096) as client:
        client.ask("/cut.bin", field.replace("big", "cut"))
        head = client.head()
        equal(head.status, 206)
        os.truncate(path, 1000)
        length, got = int(head["Content-Length"]), len(client.buffer)
        while True:
            data = client.socket.recv(1 << 16)
            if not data:
                break
            got += len(data)
        assert got < length, "all of it came"


@case("If-Range lets several ranges through as it does one")
def if_range_parts():
    equal(status("Range: bytes=0-1,5-6", "If-Range: " + etag()), 206)
    equal(status("Range: bytes=0-1,5-6", 'If-Range: "other"'), 200)
    equal(status("Range: bytes=0-1,5-6", "If-None-Match: " + etag()), 304)
    equal(status("Range: bytes=0-1,5-6", method="HEAD"), 200)


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


@case("304 has no body, has its entity tag, and keeps the connection in step")
def not_modified():
    with Client(server()) as client:
        whole = client.get("/file.bin")
        client.send(("GET /file.bin HTTP/1.1\r\nHost: a\r\nIf-None-Match: %s\r\n\r\n" % whole["ETag"]) * 20 +
                    "GET /file.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(20):
            response = client.response()
            equal(response.status, 304)
            equal(response["ETag"], whole["ETag"])
            assert response["Date"], response
        same_bytes(client.response().body, DATA)


@case("304, and 206 to If-Range, have an entity tag and no date")
def no_date():
    tag, date = etag(), FORMS["IMF-fixdate"]
    for fields, expected in ((("If-None-Match: " + tag,), 304), (("If-Modified-Since: " + date,), 304),
                             (("Range: bytes=0-1", "If-Range: " + tag), 206),
                             (("Range: bytes=0-1,9-9", "If-Range: " + date), 206)):
        with Client(server()) as client:
            response = client.get("/file.bin", *fields)
        equal((response.status, response["ETag"], response["Last-Modified"]), (expected, tag, None))
    for fields, expected in (("Range: bytes=0-1",), 206), (("Range: bytes=0-1", 'If-Range: "x"'), 200):
        with Client(server()) as client:
            response = client.get("/file.bin", *fields)
        equal((response.status, response["ETag"], response["Last-Modified"]), (expected, tag, date))


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
