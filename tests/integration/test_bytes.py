#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The bytes that clients get, by every route, and how connections are kept and ended."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time

from harness import (LOCAL, PATIENCE, Client, Server, Skip, case, content, digest, equal, get, main, new_root,
                     same_bytes, shared_server, together, write)

KIB, MIB = 1024, 1024 * 1024
ROUTES = ["auto", "copy", "mmap", "sendfile", "splice", "direct"]
SIZES = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 64 * KIB - 1, 64 * KIB,
         64 * KIB + 1, MIB]

root = new_root()
for size in SIZES:
    write(root, "%d.bin" % size, data=content(size))
write(root, "large.bin", data=content(20 * MIB))
servers = {route: shared_server(root, "--route", route, name="the server of --route %s" % route) for route in ROUTES}
server = servers["auto"]


for route in ROUTES:
    @case("by --route %s, files of 0 bytes to 1 MiB arrive byte for byte over one connection", route)
    def small(route):
        with Client(servers[route]()) as client:
            for _ in range(2):
                for size in SIZES:
                    response = client.get("/%d.bin" % size)
                    equal(response.status, 200, "status of %d bytes" % size)
                    equal(response["Content-Length"], str(size))
                    same_bytes(response.body, content(size))

    @case("by --route %s, 20 MiB arrive byte for byte", route)
    def large(route):
        response = get(servers[route](), "/large.bin")
        equal(digest(response.body), digest(content(20 * MIB)))

    @case("by --route %s, four clients that read slowly each get 20 MiB byte for byte", route)
    def slow(route):
        def read():
            with Client(servers[route](), receive_buffer=65536) as client:
                client.ask("/large.bin")
                response = client.head()
                body = bytearray(client.buffer)
                while len(body) < int(response["Content-Length"]):
                    body += client.socket.recv(50_000)
                    time.sleep(0.001)
                equal(digest(body), digest(content(20 * MIB)))
        together([read] * 4)

    @case("by --route %s, a range in the middle of 20 MiB arrives byte for byte", route)
    def part(route):
        with Client(servers[route]()) as client:
            for first, last in ((4095, 4097), (1, 20 * MIB - 2), (10 * MIB + 1, 11 * MIB + 12345)):
                response = client.get("/large.bin", "Range: bytes=%d-%d" % (first, last))
                equal(response.status, 206)
                same_bytes(response.body, content(20 * MIB)[first:last + 1])


@case("HEAD has the fields of GET and no body")
def head():
    with Client(server()) as client:
        for name in ("0.bin", "1025.bin", "large.bin"):
            one, two = client.get("/" + name), client.get("/" + name, method="HEAD")
            one.fields.pop("date"), two.fields.pop("date")
            equal(two.status, 200)
            equal(list(two.fields.items()), list(one.fields.items()))
        equal(client.alive("/1.bin"), 200)


@case("HEAD of what is missing has no body and keeps the connection in step")
def head_missing():
    with Client(server()) as client:
        equal(client.get("/no", method="HEAD").status, 404)
        equal(client.get("/", method="HEAD").status, 200)
        equal(client.get("/1.bin").body, content(1))


@case("one connection answers 3000 requests")
def many():
    with Client(server()) as client:
        for _ in range(3000):
            response = client.get("/1024.bin")
            assert response.status == 200 and response.body == content(1024)


@case("100 requests in one write get 100 answers in order")
def pipelined():
    sizes = [SIZES[i % (len(SIZES) - 1)] for i in range(100)]
    with Client(server()) as client:
        client.send("".join("GET /%d.bin HTTP/1.1\r\nHost: a\r\n\r\n" % size for size in sizes))
        for size in sizes:
            same_bytes(client.response().body, content(size))


@case("pipelined requests for a file, a directory, a missing file and HEAD are answered in order")
def pipelined_kinds():
    with Client(server()) as client:
        one = ("GET /1025.bin HTTP/1.1\r\nHost: a\r\n\r\n" "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
               "HEAD /1.bin HTTP/1.1\r\nHost: a\r\n\r\n" "GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
               "POST /1.bin HTTP/1.1\r\nHost: a\r\n\r\n" "GET /large.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        client.send(one * 5)
        for _ in range(5):
            same_bytes(client.response().body, content(1025))
            assert b"1025.bin" in client.response().body
            equal(client.response("HEAD")["Content-Length"], "1")
            equal(client.response().status, 404)
            equal(client.response().status, 405)
            equal(digest(client.response().body), digest(content(20 * MIB)))


@case("two requests cut in two at every byte get the same answers", limit=60)
def cut():
    stream = b"GET /1025.bin HTTP/1.1\r\nHost: a\r\n\r\nGET /1.bin?q HTTP/1.1\r\nHost: b\r\nX: y\r\n\r\n"
    for at in range(1, len(stream)):
        with Client(server()) as client:
            client.send(stream[:at])
            time.sleep(0.001)
            client.send(stream[at:])
            same_bytes(client.response().body, content(1025), "first body, cut at %d" % at)
            same_bytes(client.response().body, content(1), "second body, cut at %d" % at)


@case("requests that come byte by byte are answered")
def drops():
    with Client(server()) as client:
        for byte in b"GET /1.bin HTTP/1.1\r\nHost: a\r\n\r\n" * 2:
            client.send(bytes([byte]))
        same_bytes(client.response().body, content(1))
        same_bytes(client.response().body, content(1))


@case("a client that pipelines 4 MB of requests before it reads anything gets every answer", limit=60)
def flood():
    request = b"GET /1.bin HTTP/1.1\r\nHost: a\r\nX-Padding: " + b"p" * 900 + b"\r\n\r\n"
    count = 4 * MIB // len(request)
    with Client(server(), timeout=30, receive_buffer=16 * KIB) as client:
        sender = threading.Thread(target=lambda: client.send(request * count), daemon=True)
        sender.start()
        time.sleep(0.5)
        for _ in range(count):
            assert client.response().body == content(1)
        sender.join()
        client.socket.settimeout(0.2)
        try:
            raise AssertionError("more than was asked for: %r" % client.socket.recv(100))
        except TimeoutError:
            pass


@case("a pipelining client that never reads cannot make the server hold its requests")
def flood_memory():
    request = b"GET /1048576.bin HTTP/1.1\r\nHost: a\r\nX-Padding: " + b"p" * 4000 + b"\r\n\r\n"
    pid = server().worker_pids()[0]

    def anonymous():
        with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
            return int(re.search(r"Private_Dirty:\s*(\d+)", file.read())[1])
    before = anonymous()
    clients = [Client(server(), receive_buffer=4096) for _ in range(20)]
    for client in clients:
        client.socket.setblocking(False)
        for _ in range(400):
            try:
                client.socket.send(request * 16)
            except BlockingIOError:
                break
    time.sleep(0.3)
    grown = anonymous() - before
    for client in clients:
        client.close()
    assert grown < 20 * 200 * PATIENCE, "%d KiB more for 20 connections" % grown


@case("HTTP/1.0 closes after the response")
def one_zero():
    with Client(server()) as client:
        response = client.get("/1025.bin", version="1.0", host=None)
        same_bytes(response.body, content(1025))
        equal(response["Connection"], "close")
        client.ended()


@case("HTTP/1.0 with Connection: keep-alive is kept, and told so")
def one_zero_kept():
    with Client(server()) as client:
        for _ in range(3):
            response = client.get("/1025.bin", "Connection: keep-alive", version="1.0")
            equal(response["Connection"].lower(), "keep-alive")
            same_bytes(response.body, content(1025))
        equal(client.get("/1.bin", version="1.0").status, 200)
        client.ended()


@case("Connection: close ends an HTTP/1.1 connection after the response, whatever its case and company")
def close():
    for value in ("close", "Close", "foo, CLOSE", "keep-alive, close"):
        with Client(server()) as client:
            response = client.get("/large.bin", "Connection: " + value)
            equal(response["Connection"], "close", "answer to " + value)
            equal(digest(response.body), digest(content(20 * MIB)))
            client.ended()


@case("requests pipelined behind Connection: close are not answered, and the answer before them is not lost")
def close_pipelined():
    for _ in range(20):
        with Client(server()) as client:
            client.send(b"GET /1048576.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" +
                        b"GET /1.bin HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
            same_bytes(client.response().body, content(MIB))
            client.ended()


@case("a client that has shut down its sending side still gets its answers")
def half_closed():
    for name, count in (("1025.bin", 1), ("large.bin", 1), ("1.bin", 5), ("", 1)):
        with Client(server()) as client:
            client.send(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode() * count)
            client.socket.shutdown(socket.SHUT_WR)
            for _ in range(count):
                response = client.response()
                equal((response.status, response.complete), (200, True), "answer for /" + name)
            client.ended()


@case("curl gets every size, ranges and HEAD, over one connection")
def with_curl():
    if not shutil.which("curl"):
        raise Skip("needs curl: apt-get install curl")
    out = new_root()
    urls = []
    for size in SIZES:
        urls += ["-o", os.path.join(out, str(size)), "%s/%d.bin" % (server().url, size)]
    done = subprocess.run(["curl", "-sS", "--fail", "-w", "%{num_connects} ", *urls], capture_output=True, text=True,
                          check=True)
    equal(sum(map(int, done.stdout.split())), 1, "connections")
    for size in SIZES:
        with open(os.path.join(out, str(size)), "rb") as file:
            same_bytes(file.read(), content(size))
    part = subprocess.run(["curl", "-sS", "-r", "100-199", server().url + "/1024.bin"], capture_output=True, check=True)
    same_bytes(part.stdout, content(1024)[100:200])
    resumed = os.path.join(out, "resumed")
    write(resumed, data=content(20 * MIB)[:7777777])
    subprocess.run(["curl", "-sS", "--fail", "-C", "-", "-o", resumed, server().url + "/large.bin"], check=True)
    with open(resumed, "rb") as file:
        equal(digest(file.read()), digest(content(20 * MIB)))
    head = subprocess.run(["curl", "-sSI", server().url + "/1024.bin"], capture_output=True, check=True)
    assert head.stdout.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: 1024\r\n" in head.stdout, head.stdout


@case("Python's http.client gets every size over one connection")
def with_http_client():
    connection = http.client.HTTPConnection(LOCAL, server().port, timeout=10 * PATIENCE)
    for size in SIZES:
        connection.request("GET", "/%d.bin" % size)
        same_bytes(connection.getresponse().read(), content(size))
    connection.close()


@case("64 wrk connections get nothing but 200 for a second")
def with_wrk():
    if not shutil.which("wrk"):
        raise Skip("needs wrk: apt-get install wrk")
    done = subprocess.run(["wrk", "-t1", "-c64", "-d1s", server().url + "/4096.bin"], capture_output=True, text=True,
                          check=True)
    assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
    assert int(re.search(r"(\d+) requests in", done.stdout)[1]) > 100, done.stdout


@case("a response's head says what it must")
def fields():
    write(root, "page.html", data=b"<p>")
    response = get(server(), "/page.html")
    equal(response["Content-Type"], "text/html; charset=utf-8")
    equal(response["Accept-Ranges"], "bytes")
    date = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"
    assert re.fullmatch(date, response["Date"]) and re.fullmatch(date, response["Last-Modified"]), response
    assert re.fullmatch(r'(W/)?"[!-~]+"', response["ETag"]), response
    written = time.mktime(time.strptime(response["Date"], "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    assert abs(written - time.time()) < 5, response["Date"]


@case("by IPv6, too")
def version_six():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        raise Skip("needs IPv6 on the loopback device: %s" % error) from error
    with Server(root, listen="[::1]:0") as six:
        assert "http://[::1]:%d/" % six.port in six.output(), six.output()
        with socket.create_connection(("::1", six.port), 10) as connection:
            connection.sendall(b"GET /1025.bin HTTP/1.0\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
            same_bytes(answer.partition(b"\r\n\r\n")[2], content(1025))


for get_server in servers.values():
    get_server.closing_case()

if __name__ == "__main__":
    main()
