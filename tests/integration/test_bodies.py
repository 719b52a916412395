#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Bodies of requests that need none, Expect, and OPTIONS."""

import os
import time

from harness import Client, Server, case, content, equal, get, main, new_root, same_bytes, shared_server, until, write

root = new_root()
write(root, "file.txt", data=b"inside")
write(root, "sub", "index.html", data=b"index")
LARGE = content(8 << 20)
write(root, "large.bin", data=LARGE)
LOG = os.path.join(new_root(), "access.log")
server = shared_server(root)
logging = shared_server(root, "--access-log", LOG, "--header-timeout", "1s",
                        name="the server with a log and short timeouts")
BAIT = b"GET /bait HTTP/1.1\r\nHost: bait\r\n\r\n"  # in a body: must not be answered
MOST = 64 << 10


def by_length(data, method=b"GET", target=b"/file.txt", fields=b""):
    return b"%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n%s" % (method, target, len(data), fields, data)


def head_chunked(method=b"GET", target=b"/file.txt", fields=b""):
    return b"%s %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%s\r\n" % (method, target, fields)


def chunks(data, size=7, extension=b"", trailer=b""):
    pieces = [data[at:at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece)
                    for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


BODIES = {
    "by length": by_length(BAIT),
    "in chunks": head_chunked() + chunks(BAIT),
    "in chunks with extensions and a trailer": head_chunked() + chunks(BAIT, 9, b";a=\"b\" ; c", b"A: b\r\nC:\r\n"),
    "of no chunk": head_chunked() + b"0\r\n\r\n",
    "in one chunk of an odd size": head_chunked() + b"00000%X\r\n%s\r\n000\r\n\r\n" % (len(BAIT), BAIT),
}

for what, request in BODIES.items():
    @case("a GET with a body %s is served, and so is the next request, however the bytes are cut", what)
    def drained(_, request=request):
        with Client(server()) as client:
            for piece in (len(request), 1, 13, len(request) - 1):
                for at in range(0, len(request), piece):
                    client.send(request[at:at + piece])
                same_bytes(client.response().body, b"inside")
                same_bytes(client.get("/file.txt").body, b"inside")


@case("200 requests with bodies, pipelined, are all answered and nothing else is")
def pipelined():
    for which in (server, logging):
        with Client(which()) as client:
            kinds = [*BODIES.values(), by_length(b"", target=b"/sub/"), by_length(BAIT, b"HEAD")]
            client.send(b"".join(kinds[i % len(kinds)] for i in range(200)))
            for i in range(200):
                response = client.response("HEAD" if i % len(kinds) == len(kinds) - 1 else "GET")
                equal(response.status, 200)
            same_bytes(client.get("/file.txt").body, b"inside")


@case("bodies of requests that have to wait for a helper, a directory or a slow client are no requests either")
def waiting():
    for which in (server, logging):
        fresh = "fresh-%d" % which().port
        write(root, fresh, "new.txt", data=b"new")
        with Client(which(), receive_buffer=4096) as client:
            client.send(by_length(BAIT, target=b"/%s/new.txt" % fresh.encode()) +
                        head_chunked(target=b"/sub") + chunks(BAIT) + by_length(BAIT, target=b"/") +
                        by_length(BAIT, target=b"/large.bin") +
                        head_chunked(target=b"/none") + chunks(BAIT) + by_length(BAIT))
            equal(client.response().body, b"new")
            equal(client.response().status, 301)
            equal(client.response().status, 200)
            time.sleep(0.02)
            same_bytes(client.response().body, LARGE)
            equal(client.response().status, 404)
            same_bytes(client.response().body, b"inside")
            same_bytes(client.get("/file.txt").body, b"inside")
    with open(LOG, encoding="ascii") as log:
        assert "bait" not in log.read()


@case("a body of 64 KiB is read, one of a byte more is refused with 413 and the end of the connection")
def limit():
    with Client(server()) as client:
        client.send(by_length(b"x" * MOST))
        same_bytes(client.response().body, b"inside")
        same_bytes(client.get("/file.txt").body, b"inside")
    for request in (by_length(b"x" * (MOST + 1)), head_chunked() + b"10001\r\n", head_chunked() + b"f" * 40 + b"\r\n",
                    head_chunked() + chunks(b"x" * MOST, 1000), head_chunked() + chunks(b"x" * 20000, 1) + BAIT,
                    head_chunked() + b"1;" + b"x" * MOST, head_chunked() + b"0\r\n" + b"A: b\r\n" * 20000):
        with Client(server()) as client:
            client.send(request)
            response = client.response()
            equal((response.status, response["Connection"], response.complete), (413, "close", True))
            client.ended()


for what, body in (
        ("a size that is no number", b"x\r\n\r\n"),
        ("a bare LF behind a size", b"5\nhello\r\n0\r\n\r\n"),
        ("a bare LF in an extension", b"5;a\nhello\r\n0\r\n\r\n"),
        ("data longer than its size", b"5\r\nhello, world\r\n0\r\n\r\n"),
        ("no line end behind the data", b"5\r\nhello0\r\n\r\n"),
        ("a size with a sign", b"+5\r\nhello\r\n0\r\n\r\n"),
        ("blanks behind a size", b"5 \r\nhello\r\n0\r\n\r\n"),
        ("a folded trailer", b"0\r\nA: b\r\n c\r\n\r\n")):
    @case("400 and the end of the connection for chunks with %s, at once or after a while", what)
    def malformed(_, body=body):
        for pieces in ([head_chunked() + body + BAIT], [head_chunked(), body + BAIT]):
            with Client(server()) as client:
                for piece in pieces:
                    client.send(piece)
                    time.sleep(0.002)
                response = client.response()
                equal((response.status, response["Connection"], response.complete), (400, "close", True))
                client.ended()


@case("a body that does not come is 408 after the time for a head, and its request is logged with that")
def late():
    clients = [Client(logging()) for _ in range(2)]
    for client, request in zip(clients, (by_length(b"12345")[:-1], head_chunked() + b"5\r\nhel")):
        client.send(request)
    for client in clients:
        with client:
            response = client.response()
            equal((response.status, response["Connection"]), (408, "close"))
            client.ended()
    with open(LOG, encoding="ascii") as log:
        until(lambda: log.read().count('"GET /file.txt HTTP/1.1" 408') or log.seek(0), 3, "408 in the log")


@case("clients that go away within a body, or close their side, harm nobody")
def gone():
    for request in (by_length(b"12345")[:-1], head_chunked() + b"5\r\nhel", head_chunked(),
                    by_length(b"1" * 60000)[:-9]):
        for end in (Client.close, Client.reset):
            client = Client(server())
            client.send(request)
            time.sleep(0.002)
            end(client)
    same_bytes(get(server(), "/file.txt").body, b"inside")


@case("the server that is told to end answers a request whose body is on its way")
def draining():
    with Server(root) as ending, Client(ending) as client:
        client.send(by_length(b"12345")[:-1])
        time.sleep(0.05)
        ending.signal(15)
        time.sleep(0.05)
        client.send(b"5")
        response = client.response()
        equal((response.status, response["Connection"]), (200, None))
        client.ended()
        ending.wait()
        ending.check_end()


# ---- Expect ----

EXPECTS = b"Expect: 100-continue\r\n"


@case("who expects 100 gets it before the body, and the answer after it")
def continues():
    for which in (server, logging):
        with Client(which()) as client:
            for body in (by_length(b"hello", fields=EXPECTS), head_chunked(fields=EXPECTS) + chunks(b"hello"),
                         by_length(b"hello", b"OPTIONS", fields=EXPECTS)):
                end = body.index(b"\r\n\r\n") + 4
                client.send(body[:end])
                interim = client.response()
                equal((interim.status, interim.head), (100, b"HTTP/1.1 100 Continue\r\n\r\n"))
                client.send(body[end:])
                equal(client.response().status, 200)
                same_bytes(client.get("/file.txt").body, b"inside")


@case("no 100 where the body has come along, where there is none, or to HTTP/1.0")
def needless():
    with Client(server()) as client:
        client.send(by_length(b"hello", fields=EXPECTS))
        equal(client.response().status, 200)
        client.send(by_length(b"hello", fields=EXPECTS)[:-3])
        time.sleep(0.02)
        client.send(b"llo")
        equal(client.response().status, 200)
        client.send(b"GET /file.txt HTTP/1.1\r\nHost: a\r\n" + EXPECTS + b"\r\n")
        equal(client.response().status, 200)
        old = by_length(b"hello", fields=EXPECTS + b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
        client.send(old[:-5])
        time.sleep(0.02)
        client.send(old[-5:])
        equal(client.response().status, 200)


@case("who expects 100 of what is refused gets the refusal at once: 413 for too large a body, 405 for another method")
def refused_at_once():
    for request, status in ((by_length(b"x" * (MOST + 1), fields=EXPECTS), 413),
                            (by_length(b"hello", b"PUT", fields=EXPECTS), 405)):
        with Client(server()) as client:
            client.send(request[:request.index(b"\r\n\r\n") + 4])
            response = client.response()
            equal((response.status, response["Connection"]), (status, "close"))
            client.ended()


@case("417 for any other expectation, and the connection goes on unless a body would have to be read")
def other_expectation():
    with Client(server()) as client:
        for value in ("200-ok", "100-continue, more", "100-continue;a=b"):
            equal(client.get("/file.txt", "Expect: " + value).status, 417, value)
        same_bytes(client.get("/file.txt").body, b"inside")
        client.send(by_length(BAIT, fields=b"Expect: payment\r\n"))
        equal(client.response().status, 417)
        client.ended()
    equal(get(server(), "/file.txt", "Expect: 200-ok", version="1.0").status, 200)


# ---- OPTIONS ----

@case("OPTIONS of a path and of * names the methods, with and without a body, and conditions mean nothing to it")
def options():
    with Client(server()) as client:
        for target in ("/file.txt", "/", "/sub", "/none", "*"):
            client.send("OPTIONS %s HTTP/1.1\r\nHost: a\r\nIf-Match: \"x\"\r\nIf-None-Match: *\r\n"
                        "Range: bytes=0-0\r\n\r\n" % target)
            response = client.response()
            equal((response.status, response["Allow"], response["Content-Length"], response["Accept-Ranges"]),
                  (200, "GET, HEAD, OPTIONS", "0", "bytes"), target)
        client.send(by_length(BAIT, b"OPTIONS", b"*"))
        equal(client.response().status, 200)
        for path, status in (("/%zz", 400), ("/../x", 400), ("/.git/config", 404)):
            equal(client.get(path, method="OPTIONS").status, status, path)
        same_bytes(client.get("/file.txt").body, b"inside")
    for method in ("GET", "HEAD", "POST"):
        equal(get(server(), "*", method=method).status, 400, method)


@case("405 names what is allowed")
def allow():
    with Client(server()) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
            response = client.get("/file.txt", method=method)
            equal((response.status, response["Allow"]), (405, "GET, HEAD, OPTIONS"), method)


server.closing_case()
logging.closing_case()

if __name__ == "__main__":
    main()
