#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the server refuses, how, and that the client can read the refusal."""

import os
import socket
import time

from harness import Client, Server, Skip, case, equal, get, main, new_root, same_bytes, shared_server, write

root = new_root()
write(root, "file.txt", data=b"inside")
write(root, "sub", "deep.txt", data=b"deep")
write(root, "a%2fb", data=b"a name with a percent sign")
write(root, ".hidden", data=b"hidden")
write(root, ".git", "config", data=b"hidden")
write(root, "sub", ".secret", data=b"hidden")
write(root, ".well-known", "security.txt", data=b"well known")
outside = new_root()
write(outside, "secret.txt", data=b"OUTSIDE")
os.mkfifo(os.path.join(root, "fifo"))
_socket = socket.socket(socket.AF_UNIX)
_socket.bind(os.path.join(root, "socket"))
server = shared_server(root)
BAIT = b"GET /file.txt HTTP/1.1\r\nHost: bait\r\n\r\n"  # must not be answered after what ends a connection


def refused(data, status, method="GET"):
    """Sent in one go, and in pieces: the same refusal, readable, and the end of the connection."""
    for pieces in (data,), (data[:len(data) // 2], data[len(data) // 2:]):
        with Client(server()) as client:
            for piece in pieces:
                client.send(piece)
                time.sleep(0.002 if len(pieces) > 1 else 0)
            response = client.response(method)
            equal(response.status, status, "answer to %r" % data[:200])
            equal(response["Connection"], "close", "Connection in the answer to %r" % data[:200])
            assert response.complete
            client.ended()


HOST = b"Host: a\r\n"
for what, data in (
        ("lines that end in a bare LF", b"GET / HTTP/1.1\nHost: a\n\n"),
        ("a bare LF after a field", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
        ("a bare CR in a field", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        ("a bare CR in the request line", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a folded field", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        ("a folded first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        ("NUL in a field", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        ("NUL in the target", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("two different lengths", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        ("the same length twice", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n"),
        ("a list as length", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\n"),
        ("a negative length", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n"),
        ("a signed length", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n"),
        ("a length in hex", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\n"),
        ("a length beyond 64 bits",
         b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
        ("an empty length", b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n"),
        ("length and transfer coding together",
         b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a transfer coding in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        ("no Host in HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n"),
        ("an empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("a Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        ("a Host with a user", b"GET / HTTP/1.1\r\nHost: me@a\r\n\r\n"),
        ("a blank before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("a field without a name", b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
        ("a field without a colon", b"GET / HTTP/1.1\r\nHost: a\r\nnothing\r\n\r\n"),
        ("two spaces in the request line", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a tab in the request line", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a target that is no path", b"GET file.txt HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a fragment in the target", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("a request line of two words", b"GET /\r\nHost: a\r\n\r\n"),
        ("a protocol in small letters", b"GET / http/1.1\r\nHost: a\r\n\r\n"),
        ("a version of three digits", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)))):
    @case("400 and the end of the connection for %s", what)
    def malformed(_, data=data):
        refused(data + BAIT, 400)


@case("501 for a transfer coding that nobody knows, and for methods that nobody knows")
def unknown():
    refused(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: zip\r\n\r\nabc" + BAIT, 501)
    for method in ("BREW", "get", "G", "M-SEARCH"):
        equal(get(server(), "/file.txt", method=method).status, 501, method)


@case("505 for HTTP/2.0, 0.9 and 9.9")
def version():
    for version in (b"2.0", b"0.9", b"9.9"):
        refused(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n" + BAIT, 505)
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)


@case("HTTP/1.2 is answered as 1.1")
def later():
    response = get(server(), "/file.txt", version="1.2")
    equal((response.status, response.version), (200, "1.1"))


@case("414 for a request line of 20,000 bytes, 431 for a head of 20,000")
def too_long():
    refused(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414)
    refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431)
    refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 4000 + b"\r\n", 431)


@case("a target of 4,000 bytes and a head of 12,000 are served")
def long_enough():
    equal(get(server(), "/file.txt?" + "q" * 4000).status, 200)
    equal(get(server(), "/file.txt", *["X-%d: %s" % (i, "v" * 100) for i in range(110)]).status, 200)


@case("a path longer than a path can be is 404 or 414")
def long_path():
    for path in ("/a" * 3000, "/" + "a" * 256, "/" + "a" * 5000):
        status = get(server(), path).status
        assert status in (404, 414), status


@case("405 names what is allowed, and keeps the connection if there was no body")
def method():
    for name in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
        with Client(server()) as client:
            response = client.get("/file.txt", method=name)
            equal((response.status, response["Allow"]), (405, "GET, HEAD, OPTIONS"), name)
            equal(client.get("/file.txt").body, b"inside")
    with Client(server()) as client:
        equal(client.exchange(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").status, 405)


@case("413 for a GET with a large body, 405 for a POST with any; the body is not taken for a request")
def body():
    refused(b"GET /file.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n" + BAIT, 413)
    refused(b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n99999\r\n" + BAIT, 413)
    refused(b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nhello", 413, "HEAD")
    refused(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BAIT) + BAIT, 405)


@case("a GET with Content-Length: 0 has no body and is served")
def no_body():
    with Client(server()) as client:
        equal(client.get("/file.txt", "Content-Length: 0").body, b"inside")
        equal(client.get("/file.txt").body, b"inside")


@case("Expect: 100-continue with a body gets its refusal at once, without the body being sent")
def expect():
    with Client(server(), timeout=3) as client:
        response = client.get("/file.txt", "Content-Length: 1000000", "Expect: 100-continue", method="POST")
        equal(response.status, 405)


for path in ("/%", "/%2", "/%zz", "/a%", "/%0", "/%00", "/file.txt%00", "/file.txt%00.html", "/%2F", "/sub%2fdeep.txt",
             "/..", "/../", "/../file.txt", "/%2e%2e/file.txt", "/%2E%2e/x", "/.%2e/x", "/%2e./x", "/sub/../../x",
             "/sub/%2e%2e/%2e%2e/x", "/..%2fx", "/./../x", "//../x", "/sub//../../x", "/a/../../b", "/%2e%2e%2fx"):
    @case("400 for the path %s, and the connection goes on", path.replace("%", "%%").replace("#", ""))
    def bad_path(_, path=path):
        with Client(server()) as client:
            response = client.get(path)
            equal(response.status, 400)
            equal(client.get("/file.txt").body, b"inside")


for path in ("/%252e%252e/x", "/..%5cx", "/%2e%2e%5cx", "/..;/x", "/...", "/.../x", "/%c0%ae%c0%ae/x", "/%e0%80%ae/x",
             "/%uff0e/x", "/..%c0%afx", "/..%00/x", "/..\\x", "/.. /x".replace(" ", "%20"), "/%ff%fe"):
    @case("nothing from above the root for the path %s", path.replace("%", "%%"))
    def tricky_path(_, path=path):
        response = get(server(), path)
        assert response.status in (400, 404), response
        assert b"OUTSIDE" not in response.body


@case("dot segments within the root and repeated slashes are resolved")
def dots():
    for path in ("/./file.txt", "/sub/../file.txt", "//file.txt", "/sub/./../file.txt", "/%2e/file.txt",
                 "/sub/%2e%2e/file.txt", "/sub/x/../../file.txt", "/file%2Etxt", "/%66ile.txt", "/file.txt?a=/../x",
                 "http://test/file.txt", "HTTP://other:80//file.txt?x"):
        response = get(server(), path)
        equal((response.status, response.body), (200, b"inside"), path)


@case("%2F is no slash, but a file whose name has %252f in it can be had")
def percent_name():
    same_bytes(get(server(), "/a%252fb").body, b"a name with a percent sign")


@case("404 for what is missing, hidden, a FIFO, a socket or a device, without opening it, and the connection goes on")
def missing():
    if os.geteuid() == 0:
        os.mknod(os.path.join(root, "zero"), 0o666 | 0o020000, os.makedev(1, 5))
    with Client(server()) as client:
        for path in ("/none", "/sub/none", "/file.txt/", "/file.txt/x", "/none/none", "/.hidden", "/.git/config",
                     "/.git/", "/.git", "/sub/.secret", "/.hidden/../none", "/%2ehidden", "/fifo", "/socket",
                     "/zero", "/fifo/"):
            equal(client.get(path).status, 404, path)
        equal(client.get("/file.txt").body, b"inside")


@case("/.well-known is not hidden")
def well_known():
    equal(get(server(), "/.well-known/security.txt").body, b"well known")


def unreadable(server_root):
    path = write(server_root, "private.txt", data=b"private")
    os.chmod(path, 0)
    os.chmod(os.path.dirname(write(server_root, "closed", "file.txt", data=b"private")), 0)
    os.chmod(os.path.dirname(write(server_root, "blind", "file.txt", data=b"reachable")), 0o711)
    os.chmod(os.path.join(server_root, "blind"), 0o311)


@case("403 for files and directories that the server may not read, as an unprivileged user")
def forbidden():
    here = new_root()
    unreadable(here)
    wrap = ()
    if os.geteuid() == 0:
        wrap = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        for top, directories, files in os.walk(here):
            for name in directories + files:
                os.chown(os.path.join(top, name), 65534, 65534)
    with Server(here, wrap=wrap) as plain, Client(plain) as client:
        for path in ("/private.txt", "/closed/file.txt", "/closed/", "/blind/"):
            response = client.get(path)
            equal(response.status, 403, path)
            assert b"private" not in response.body
        equal(client.get("/blind/file.txt").body, b"reachable")


@case("started by root, the confined workers read what root could read")
def as_root():
    if os.geteuid() != 0:
        raise Skip("needs root")
    here = new_root()
    unreadable(here)
    with Server(here) as confined:
        equal(get(confined, "/private.txt").body, b"private")
        equal(get(confined, "/closed/file.txt").body, b"private")


for what, head, status in (
        ("405", b"POST /file.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n", 405),
        ("413", b"GET /file.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 67108864\r\n\r\n", 413),
        ("400", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("414", b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414)):
    @case("a client that goes on sending 64 MB still reads its %s, without a reset", what)
    def lingering(_, head=head, status=status):
        with Client(server()) as client:
            client.send(head)
            sent = 0
            block = b"x" * (1 << 20)
            for _ in range(64):
                client.send(block)
                sent += len(block)
            time.sleep(0.05)
            response = client.response()
            equal((response.status, response.complete), (status, True))
            client.ended()


@case("a client that never stops sending after its refusal is cut off within a stated time")
def endless():
    with Client(server(), timeout=15) as client:
        client.send(b"POST /file.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n")
        started = time.monotonic()
        try:
            while time.monotonic() - started < 12:
                client.send(b"x" * 65536)
                time.sleep(0.005)
        except (BrokenPipeError, ConnectionResetError):
            assert time.monotonic() - started > 1, "too early"
            return
        raise AssertionError("still taken after 12 s")


@case("after 500 refusals and 500 misses the server answers as before")
def many():
    for _ in range(500):
        with Client(server()) as client:
            client.send(b"GARBAGE\r\n\r\n")
        equal(get(server(), "/none").status, 404)
    equal(get(server(), "/file.txt").body, b"inside")


server.closing_case()

if __name__ == "__main__":
    main()
