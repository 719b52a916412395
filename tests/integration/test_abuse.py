#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that mean harm: survived, bounded in memory and time, counted; the others are served. What limits and timeouts
do with one client is test_limits.py's matter, ten thousand of them test_scale.py's. bench/abuse shows the same beside
nginx, with figures."""

import contextlib
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import time

from harness import (PATIENCE, SANITIZED, Broken, Client, Server, case, content, equal, get, main, new_root, note,
                     raise_descriptor_limit, same_bytes, together, until, write)

KIB, MIB = 1 << 10, 1 << 20
COUNT = 50 if SANITIZED else 300
root = new_root()
write(root, "file.txt", data=b"inside")
write(root, "large.bin", data=content(20 * MIB))
REQUEST = b"GET /file.txt HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = REQUEST.replace(b"file.txt", b"large.bin")


def private_memory(server):
    with open("/proc/%d/smaps_rollup" % server.worker_pids()[0], encoding="ascii") as file:
        return int(re.search(r"Private_Dirty:\s*(\d+)", file.read())[1]) * 1024


def processor_time(server):
    with open("/proc/%d/stat" % server.worker_pids()[0], encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def crowd(server, opening=b"", count=COUNT, receive_buffer=None):
    """Clients that have connected and said this."""
    raise_descriptor_limit(2 * COUNT + 200)
    clients = []
    for _ in range(count):
        one = socket.socket()
        if receive_buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        one.settimeout(10 * PATIENCE)
        one.connect(server.address)
        if opening:
            one.sendall(opening)
        one.setblocking(False)
        clients.append(one)
    return clients


def tease_until_gone(groups, seconds):
    """groups: name to (clients, what each says again and again, or reads: a number). Returns what each client got, by
    group, and how long it took until all of a group were closed by the server."""
    started = time.monotonic()
    got = {name: {one: b"" for one in clients} for name, (clients, _) in groups.items()}
    took = {}
    left = {name: set(clients) for name, (clients, _) in groups.items()}
    while any(left.values()):
        assert time.monotonic() - started < seconds * PATIENCE, {name: len(those) for name, those in left.items()}
        for name, (_, move) in groups.items():
            for one in list(left[name]):
                try:
                    if isinstance(move, bytes) and move:
                        one.send(move)
                    data = one.recv(move if isinstance(move, int) else 65536)
                    got[name][one] += data
                    if not data:
                        left[name].discard(one)
                except BlockingIOError:
                    pass
                except OSError:
                    left[name].discard(one)
            if not left[name]:
                took.setdefault(name, time.monotonic() - started)
        time.sleep(0.05)
    return got, took


def tease_beside(server, groups, ask):
    """tease_until_gone, while an honest client asks again and again; afterwards no connection is left. Returns what the
    hostile ones got."""
    done, got = [], {}

    def honest():
        while not done:
            started = time.monotonic()
            ask()
            assert time.monotonic() - started < 1 * PATIENCE
            time.sleep(0.05)

    def hostile():
        try:
            answers, took = tease_until_gone(groups, 12)
        finally:
            done.append(True)
        got.update(answers)
        note("closed after: " + ", ".join("%s %.1f s" % item for item in sorted(took.items())))
    together([honest, hostile])
    for clients, _ in groups.values():
        close(clients)
    until(lambda: re.search(r"\([01] open\)", totals(server)), 5, "the end of all connections")
    return got


def totals(server):
    before = server.errors().count("totals:")
    server.signal(signal.SIGUSR1)
    until(lambda: server.errors().count("totals:") > before, 3, "totals")
    return server.errors().rpartition("totals:")[2]


def close(clients):
    for one in clients:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()


@case("slow clients in every phase at once (silent, head by drops, body by drops): each is closed in its time, however it "
      "drips; the others are served; they are counted", limit=60)
def slow_in_every_phase():
    with Server(root, "--header-timeout", "1s", "--idle-timeout", "1s") as server:
        groups = {
            "silent": (crowd(server), b""),
            "head": (crowd(server, REQUEST[:-2]), b"X-Drop: y\r\n"),
            "body": (crowd(server, b"POST /file.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"), b"x"),
            "idle": (crowd(server, REQUEST), b""),
        }
        got = tease_beside(server, groups, lambda: equal(get(server, "/file.txt").body, b"inside"))
        for answer in list(got["silent"].values()) + list(got["head"].values()):
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408 "), answer
        assert any(got["head"].values())
        for answer in got["body"].values():
            assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer), answer
        for answer in got["idle"].values():
            assert answer.endswith(b"inside"), answer
        timeouts = int(re.search(r"(\d+) timeouts", totals(server))[1])
        equal(timeouts, COUNT, "timeouts of %d slow heads" % COUNT)


class Secure(Server):
    """With TLS at its only address."""

    def __init__(self, root, *options):
        keys = new_root()
        self.certificate, key = os.path.join(keys, "cert.pem"), os.path.join(keys, "key.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                        "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "3", "-out", self.certificate,
                        "-keyout", key], check=True, capture_output=True)
        super().__init__(root, "--tls", "--certificate", self.certificate + "," + key, *options)

    def is_ready(self):
        match = re.search(r"https://\S+:(\d+)/", self.output())
        if match:
            self.address = ("127.0.0.1", int(match[1]))
        return match

    def connect(self):
        context = ssl.create_default_context(cafile=self.certificate)
        return context.wrap_socket(socket.create_connection(self.address, 10 * PATIENCE), server_hostname="localhost")

    def ask(self):
        with self.connect() as one:
            one.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            answer = b""
            while data := one.recv(65536):
                answer += data
        assert answer.endswith(b"inside"), answer


def client_hello():
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    return hello.read()


@case("slow clients in a TLS handshake (silent, a ClientHello by drops, nothing after it): each is closed in its time; the "
      "others are served; they are counted", limit=60)
def slow_handshakes():
    hello = client_hello()
    with Secure(root, "--header-timeout", "1s") as server:
        server.ask()
        groups = {
            "silent": (crowd(server), b""),
            "drops": (crowd(server, hello[:50]), hello[50:51]),
            "half-way": (crowd(server, hello), b""),
        }
        tease_beside(server, groups, server.ask)
        failed = int(re.search(r"TLS: \d+ handshakes, \d+ of them resumed; (\d+) failed", server.errors().rpartition(
            "totals:")[2])[1])
        assert failed >= 2 * COUNT, "%d failed handshakes of %d that had begun" % (failed, 2 * COUNT)


@case("clients that take a response by a few bytes are not cut off as long as they do, cost little, and are when they stop",
      limit=60, sanitized=False)
def slow_readers():
    with Server(root, "--send-timeout", "1s") as server:
        get(server, "/large.bin")
        before = private_memory(server)
        clients = crowd(server, LARGE, receive_buffer=4096)
        deadline = time.monotonic() + 1.6
        while time.monotonic() < deadline:
            for one in clients:
                with contextlib.suppress(BlockingIOError):
                    assert one.recv(2000), "cut off"
            time.sleep(0.1)
        each = (private_memory(server) - before) / COUNT
        note("%d slow readers: %d bytes of the worker's memory each" % (COUNT, each))
        assert each < 8 * KIB
        equal(get(server, "/file.txt").body, b"inside")
        until(lambda: re.search(r" %d timeouts" % COUNT, totals(server)), 8, "the timeouts")
        close(clients)


@case("floods of pipelined requests: every answer comes, in order, within bounded memory; others are served meanwhile",
      limit=60)
def flood():
    requests = 200 if SANITIZED else 3000
    with Server(root) as server:
        get(server, "/file.txt")
        before = private_memory(server)
        done = []

        def flooding():
            with Client(server, timeout=40) as client:
                one = client.socket
                one.setblocking(False)
                out, received, answers = memoryview(REQUEST * requests), 0, None
                poll = select.poll()
                poll.register(one, select.POLLIN | select.POLLOUT)
                while answers is None or received < answers:
                    if len(out) == 0:
                        poll.modify(one, select.POLLIN)
                    poll.poll(1000)
                    with contextlib.suppress(BlockingIOError):
                        if len(out):
                            out = out[one.send(out[:1 << 20]):]
                    with contextlib.suppress(BlockingIOError):
                        data = one.recv(1 << 20)
                        assert data, "cut off after %d bytes" % received
                        if answers is None:
                            head = data.index(b"\r\n\r\n") + 4
                            answers = (head + len(b"inside")) * requests
                        received += len(data)
                        if received == answers:
                            assert data.endswith(b"inside")
                equal(received, answers)

        def watched():
            try:
                together([flooding] * 10)
            finally:
                done.append(True)

        def honest():
            worst = 0
            while not done:
                started = time.monotonic()
                equal(get(server, "/file.txt").body, b"inside")
                worst = max(worst, time.monotonic() - started)
            note("the slowest of the others' requests took %.0f ms" % (worst * 1000))
            assert worst < 1 * PATIENCE
        together([watched, honest])
        more = private_memory(server) - before
        note("10 floods of %d requests: %d KiB more memory" % (requests, more // 1024))
        assert SANITIZED or more < 4 * MIB


@case("heads as large as they may be, without their end, cost no more than their bytes, which are given back; larger ones "
      "are refused", limit=40, sanitized=False)
def large_heads():
    head = b"GET /file.txt HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%04d: %s\r\n" % (n, b"y" * 1000) for n in range(15))
    with Server(root) as server:
        get(server, "/file.txt")
        before = private_memory(server)
        clients = crowd(server, head)
        until(lambda: private_memory(server) - before > COUNT * len(head) / 2, 5, "the heads")
        time.sleep(0.2)
        each = (private_memory(server) - before) / COUNT
        note("%d heads of %d bytes: %d bytes of memory each" % (COUNT, len(head), each))
        assert each < 2 * len(head)
        for one in clients[::50]:
            one.setblocking(True)
            one.sendall(b"\r\n")
            assert one.recv(4096).endswith(b"inside")
        close(clients)
        clients = crowd(server, head)  # of the same memory
        time.sleep(0.2)
        again = (private_memory(server) - before) / COUNT
        assert again < 2 * len(head), "%d bytes each the second time" % again
        close(clients)
        for end in (b"X: " + b"z" * MIB + b"\r\n\r\n", b"X: y\r\n" * 200000, b"z" * MIB):
            with Client(server) as client:
                with contextlib.suppress(OSError):
                    client.send(head + end)
                try:
                    equal(client.response().status, 431)
                except (Broken, ConnectionError):
                    pass  # it sent more than anybody wanted to read
        with Client(server) as client:
            with contextlib.suppress(OSError):
                client.send(b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            with contextlib.suppress(Broken, ConnectionError):
                equal(client.response().status, 414)
        equal(get(server, "/file.txt").body, b"inside")


def ranges(kind):
    return {"overlapping": ",".join("%d-" % n for n in range(1500)),
            "tiny": ",".join("%d-%d" % (2 * n, 2 * n) for n in range(1400)),
            "same": ",".join(["0-"] * 2500),
            "suffixes": ",".join("-%d" % (n + 1) for n in range(1800))}[kind]


for kind in ("overlapping", "tiny", "same", "suffixes"):
    @case("a range bomb (%s) gets no more than about the file, and costs little", kind)
    def bomb(kind):
        with Server(root) as server:
            get(server, "/large.bin")
            before = processor_time(server)
            for _ in range(3):
                with Client(server) as client:
                    client.ask("/large.bin", "Range: bytes=" + ranges(kind))
                    head = client.head()
                    assert head.status in (200, 206, 400, 416, 431), head
                    length = int(head["Content-Length"])
                    assert length < 20 * MIB + 512 * KIB, length
                    left = length - len(client.buffer)
                    while left > 0:
                        data = client.socket.recv(min(left, 1 << 20))
                        assert data
                        left -= len(data)
            used = processor_time(server) - before
            assert used < 2 * PATIENCE, "%.2f s of CPU for three" % used


def asks(one, target):
    """On a connection that stays."""
    one.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + int(
            re.search(rb"Content-Length: (\d+)", answer)[1]):
        data = one.recv(1 << 20)
        if not data:
            raise Broken("after %d bytes" % len(answer))
        answer += data
    return answer.partition(b"\r\n\r\n")[2]


def exhaust_memory(server, opening, connect, ask, may_cut=()):
    """may_cut: what may become of a connection that was there before."""
    with server, connect() as before:
        pid = server.worker_pids()[0]
        equal(asks(before, b"/file.txt"), b"inside")
        with open("/proc/%d/statm" % pid, encoding="ascii") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = size + MIB
        equal(os.system("prlimit --pid %d --as=%d:" % (pid, limit)), 0)
        clients = crowd(server, opening, count=1000)
        closed = 0
        time.sleep(0.5)
        for one in clients:
            with contextlib.suppress(BlockingIOError):
                try:
                    while one.recv(4096):  # an alert, or what a handshake began with
                        pass
                    closed += 1
                except ConnectionResetError:
                    closed += 1
        note("%d of 1,000 were turned away" % closed)
        assert closed > 100
        equal(server.worker_pids(), [pid], "the worker")
        with contextlib.suppress(*may_cut):
            equal(asks(before, b"/file.txt"), b"inside")
        close(clients)
        equal(os.system("prlimit --pid %d --as=unlimited:" % pid), 0)
        ask()
        with contextlib.suppress(*may_cut):
            same_bytes(asks(before, b"/large.bin"), content(20 * MIB))
        with connect() as after:
            same_bytes(asks(after, b"/large.bin"), content(20 * MIB))
        equal(server.worker_pids(), [pid], "the worker")


@case("out of memory: who comes then is turned away or answered 503, the others go on, and afterwards all is well",
      limit=60, sanitized=False)
def memory_exhausted():
    server = Server(root)
    exhaust_memory(server, REQUEST[:-2] + b"X: " + b"y" * 12000, lambda: socket.create_connection(server.address, 10),
                   lambda: until(lambda: get(server, "/file.txt").body == b"inside", 5, "an answer"))


@case("out of memory in TLS handshakes: the same, but that others may be cut off, as nothing can be decrypted without "
      "memory", limit=60, sanitized=False)
def memory_exhausted_by_handshakes():
    server = Secure(root)
    exhaust_memory(server, client_hello(), server.connect, server.ask, (Broken, OSError))


@case("a storm of resets, as fast as it can be made, in the middle of heads and of responses: others are served, nothing "
      "is left, every connection is counted", limit=40)
def storm():
    with Server(root) as server:
        get(server, "/file.txt")
        pid = server.worker_pids()[0]
        before = len(os.listdir("/proc/%d/fd" % pid))
        made, done = [], []

        def raging():
            count, deadline = 0, time.monotonic() + 1.5
            while time.monotonic() < deadline:
                one = socket.create_connection(server.address, 10)
                one.send(LARGE if count % 2 else REQUEST[:9])
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.close()
                count += 1
            made.append(count)

        def storming():
            try:
                together([raging] * 2)
            finally:
                done.append(True)

        def honest():
            answers = 0
            while not done:
                equal(get(server, "/file.txt").body, b"inside")
                answers += 1
            note("%d connections reset, %d requests answered beside them" % (sum(made), answers))
            made.append(answers)
            assert answers > 5
        together([storming, honest])
        until(lambda: len(os.listdir("/proc/%d/fd" % pid)) <= before + 2, 5, "the descriptors' end")
        until(lambda: re.search(r"\([01] open\)", totals(server)), 5, "the end of all connections")
        counted = int(re.search(r"(\d+) connections", totals(server))[1])
        assert counted >= sum(made) * 0.9, "%d of %d counted" % (counted, sum(made))  # some were gone before accept(2)


if __name__ == "__main__":
    main()
