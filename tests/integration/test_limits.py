#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Timeouts, limits and abuse."""

import contextlib
import functools
import os
import re
import signal
import socket
import ssl
import time

from harness import (PATIENCE, RESET, TLS, Broken, Client, Server, case, content, digest, equal, get, main, new_root,
                     same_bytes, together, until, write)

MIB = 1 << 20
root = new_root()
write(root, "file.txt", data=b"inside")
write(root, "large.bin", data=content(20 * MIB))
for number in range(200):
    write(root, "many", "%d.txt" % number, data=b"file %d" % number)
REQUEST = b"GET /file.txt HTTP/1.1\r\nHost: a\r\n\r\n"


def seconds_until_end(client, least, most, in_order=False, started=None):
    """Whatever comes is read; the end must come within these bounds, counted from now or when it started. in_order: and
    not be a cut. Returns what came."""
    started = started or time.monotonic()
    data = bytearray()
    try:
        while block := client.socket.recv(1 << 16):
            data += block
    except RESET:
        if in_order:
            raise
    took = time.monotonic() - started
    assert least <= took <= most * PATIENCE, "%.2f s" % took
    return bytes(data)


# ---- Timeouts ----

@case("a connection that says nothing is closed after the header timeout, without an answer or with 408")
def silent():
    with Server(root, "--header-timeout", "500ms") as server:
        started = time.monotonic()
        with Client(server) as client:  # its handshake may take most of the time
            data = seconds_until_end(client, 0.4, 2, started=started)
        assert data == b"" or data.startswith(b"HTTP/1.1 408 "), data


@case("a head that comes drop by drop gets 408 at the header timeout; drops do not push it back")
def drops():
    with Server(root, "--header-timeout", "1s") as server, Client(server) as client:
        started = time.monotonic()
        client.send(b"GET /file.txt HTTP/1.1\r\n")
        client.socket.setblocking(False)
        data = b""
        while time.monotonic() - started < 4 * PATIENCE:
            try:
                client.socket.send(b"X-Drop: y\r\n")
                if not (block := client.socket.recv(4096)):
                    break
                data += block
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            if data:
                break
            time.sleep(0.05)
        assert data.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), data
        assert 0.9 <= time.monotonic() - started < 2.5 * PATIENCE


@case("the header timeout begins anew with each request of a connection")
def anew():
    with Server(root, "--header-timeout", "700ms") as server, Client(server) as client:
        for _ in range(4):
            client.send(REQUEST[:10])
            time.sleep(0.3)
            client.send(REQUEST[10:])
            equal(client.response().body, b"inside")


@case("an idle connection is closed after the idle timeout, silently; a request in time keeps it")
def idle():
    with Server(root, "--idle-timeout", "800ms") as server, Client(server) as client:
        for _ in range(4):
            equal(client.get("/file.txt").body, b"inside")
            time.sleep(0.4)
        equal(client.get("/file.txt").body, b"inside")
        equal(seconds_until_end(client, 0.7, 2, in_order=True), b"")


@case("a client that takes nothing is cut off after the send timeout, and its memory is given back")
def never_reads():
    with Server(root, "--send-timeout", "1s", "--receipts") as server:
        clients = [Client(server, receive_buffer=4096) for _ in range(20)]
        for client in clients:
            client.ask("/large.bin")
        time.sleep(0.5)
        equal(get(server, "/file.txt").body, b"inside")
        until(lambda: server.errors().count("receipt 127") >= 21, 6, "the end of 20 connections")
        for client in clients:
            client.close()
        server.stop()
        assert re.search(r" 20 timeouts", server.errors()), server.errors()[-600:]


@case("a client that reads slowly but steadily is not cut off by the send timeout")
def slow_but_steady():
    with Server(root, "--send-timeout", "500ms") as server, Client(server, receive_buffer=65536) as client:
        client.ask("/large.bin")
        head = client.head()
        body = bytearray(client.buffer)
        deadline = time.monotonic() + 3
        while len(body) < int(head["Content-Length"]):
            if time.monotonic() < deadline:
                time.sleep(0.05 if TLS else 0.2)  # what is read at once ends with a record, of 16 KiB
            block = client.socket.recv(65536 if time.monotonic() < deadline else 1 << 20)
            assert block, "cut off at %d" % len(body)
            body += block
        equal(digest(body), digest(content(20 * MIB)))


@case("a client that pipelines and never reads is cut off, too")
def pipelined_never_reads():
    with Server(root, "--send-timeout", "1s") as server, Client(server, receive_buffer=4096) as client:
        client.socket.settimeout(0.3)
        try:
            for _ in range(2000):
                client.send(REQUEST.replace(b"file.txt", b"large.bin") * 20)
        except (TimeoutError, OSError):
            pass
        client.socket.settimeout(10)
        time.sleep(3)
        seconds_until_end(client, 0, 5)
        equal(get(server, "/file.txt").body, b"inside")


# ---- The number of connections ----

@case("--max-connections 10: of 30 clients that ask and close all are served")
def max_connections():
    with Server(root, "--max-connections", "10") as server:
        def ask():
            with Client(server, timeout=15) as client:
                equal(client.get("/file.txt").body, b"inside")
                time.sleep(0.1)
                equal(client.get("/file.txt", "Connection: close").body, b"inside")
                client.ended()
        together([ask] * 30)


@case("--max-connections 10 with 10 idle connections: the next clients are served when those time out, without a hang")
def max_idle():
    with Server(root, "--max-connections", "10", "--idle-timeout", "1s", "--header-timeout", "1s") as server:
        idle = [Client(server) for _ in range(10)]
        for client in idle[:5]:
            client.get("/file.txt")
        waiting = [Client(server, timeout=10) for _ in range(20)]
        for client in waiting:
            client.ask("/file.txt", "Connection: close")
        for client in waiting:
            equal(client.response().body, b"inside")
            client.close()
        for client in idle:
            client.close()
        equal(get(server, "/file.txt").body, b"inside")


@case("--max-connections 10: the eleventh is answered as soon as one of the ten has gone, and not before")
def eleventh():
    with Server(root, "--max-connections", "10") as server:
        ten = [Client(server) for _ in range(10)]
        for client in ten:
            equal(client.get("/file.txt").body, b"inside")
        with Client(server) as late:
            late.socket.settimeout(0.5)
            asked = False
            try:
                late.ask("/file.txt")
                asked = True
                late.response()
                raise AssertionError("answered beside ten others")
            except TimeoutError:
                pass
            for client in ten:
                equal(client.get("/file.txt").body, b"inside")
            late.socket.settimeout(10 * PATIENCE)
            ten.pop().close()
            if not asked:  # not even the handshake was answered
                late.ask("/file.txt")
            equal(late.response().body, b"inside")
        for client in ten:
            client.close()


@case("--max-connections 1 serves one client after the other, the ones that go away while they wait included")
def one_connection():
    with Server(root, "--max-connections", "1") as server:
        holder = Client(server)
        holder.get("/file.txt")
        gone = [Client(server) for _ in range(20)]
        for client in gone:
            socket.socket.send(client.socket, REQUEST)
            client.reset()
        with Client(server) as next_client:
            together([lambda: equal(next_client.get("/file.txt").body, b"inside"), holder.close])


@case("--max-connections 4 with 4 workers: each of 4 clients that come while all are busy finds the worker with room")
def worker_with_room():
    for loop in ("io_uring", "epoll"):
        with Server(root, "--max-connections", "4", "--loop", loop, workers=4) as server:
            for _ in range(5):
                for worker in server.worker_pids():
                    os.kill(worker, signal.SIGSTOP)
                clients = [Client(server) for _ in range(4)]
                for worker in server.worker_pids():
                    os.kill(worker, signal.SIGCONT)
                for client in clients:
                    equal(client.get("/file.txt").body, b"inside")
                for client in clients:
                    client.close()


# ---- Descriptors ----

@case("with 40 descriptors the server survives 100 connections and 200 files, answers those it took, and recovers")
def few_descriptors():
    wrap = ("prlimit", "--nofile=40:40")
    with Server(root, wrap=wrap) as server:
        served = []

        def ask(number):
            try:
                with Client(server, timeout=2) as client:
                    response = client.get("/many/%d.txt" % number)
                    assert response.status in (200, 503), response
                    if response.status == 200:
                        equal(response.body, b"file %d" % number)
                        served.append(number)
                    time.sleep(1)
            except (Broken, TimeoutError, *RESET):
                pass
        together([functools.partial(ask, number) for number in range(100)])
        assert len(served) >= 10, "%d of 100" % len(served)
        for number in range(200):
            response = get(server, "/many/%d.txt" % number)
            equal((response.status, response.body), (200, b"file %d" % number))


@case("descriptors that run out while clients are connected are survived: those who ask are answered, and later all")
def descriptors_taken_away():
    with Server(root) as server:
        held = [Client(server) for _ in range(50)]
        for client in held:
            equal(client.get("/file.txt").status, 200)
        pid = server.worker_pids()[0]
        limit = len(os.listdir("/proc/%d/fd" % pid)) + 2
        os.system("prlimit --pid %d --nofile=%d:20000" % (pid, limit))
        more = [Client(server, timeout=2) for _ in range(30)]
        for client in more:
            with contextlib.suppress(Broken, *RESET):  # turned away
                client.send(REQUEST)
        for number in range(60):  # those that are connected already, or were shed for others
            client = held[number % 50]
            try:
                response = client.get("/many/%d.txt" % number)
                assert response.status in (200, 503), response
            except (Broken, BrokenPipeError, ConnectionResetError):
                pass
        for client in more + held:
            client.close()
        os.system("prlimit --pid %d --nofile=20000:20000" % pid)
        time.sleep(0.3)
        equal(server.worker_pids(), [pid], "the worker")
        for number in range(100):
            equal(get(server, "/many/%d.txt" % number).body, b"file %d" % number)


@case("the server does not spin when descriptors have run out")
def no_spin():
    with Server(root) as server:
        pid = server.worker_pids()[0]
        get(server, "/file.txt")
        limit = len(os.listdir("/proc/%d/fd" % pid))
        os.system("prlimit --pid %d --nofile=%d:20000" % (pid, limit))
        clients = [Client(server) for _ in range(20)]
        time.sleep(0.2)

        def used():
            with open("/proc/%d/stat" % pid, encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        before = used()
        time.sleep(1)
        assert used() - before < 0.3, "%.2f s of CPU in one second" % (used() - before)
        os.system("prlimit --pid %d --nofile=20000:20000" % pid)
        for client in clients:
            client.close()
        until(lambda: get(server, "/file.txt").body == b"inside", 3, "an answer")


# ---- Abuse ----

MANY = 200 if TLS else 2000  # a handshake costs a client in Python more than the server


@case("a storm of %d resets at every stage leaves no connection open and no descriptor behind", MANY)
def resets(_):
    with Server(root) as server:
        get(server, "/file.txt")
        pid = server.worker_pids()[0]
        before = len(os.listdir("/proc/%d/fd" % pid))
        for number in range(MANY):
            client = Client(server)
            stage = number % 5
            if stage == 1:
                client.send(REQUEST[:20])
            elif stage == 2:
                client.send(REQUEST)
            elif stage == 3:
                client.send(REQUEST.replace(b"file.txt", b"large.bin"))
            elif stage == 4:
                client.send(REQUEST * 30)
            client.reset()
        until(lambda: len(os.listdir("/proc/%d/fd" % pid)) <= before + 4, 5, "the descriptors' end")
        equal(get(server, "/file.txt").body, b"inside")

        def all_gone():
            server.signal(signal.SIGUSR1)
            time.sleep(0.1)
            last = server.errors().rpartition("totals:")[2]
            return "(0 open)" in last or "(1 open)" in last
        until(all_gone, 5, "the connections' end")


@case("downloads that are aborted half-way give their pipes and descriptors back, by every route")
def aborted():
    for route in ("auto", "copy", "mmap", "sendfile", "splice"):
        with Server(root, "--route", route) as server:
            get(server, "/file.txt")
            pid = server.worker_pids()[0]
            before = len(os.listdir("/proc/%d/fd" % pid))
            for _ in range(40):
                client = Client(server, receive_buffer=8192)
                client.ask("/large.bin")
                client.head()
                client.reset()
            until(lambda: len(os.listdir("/proc/%d/fd" % pid)) <= before + 10, 5, "descriptors by " + route)
            equal(digest(get(server, "/large.bin").body), digest(content(20 * MIB)))


@case("%d connections opened and closed one after the other, each with a request, leave nothing behind", MANY)
def churn(_):
    with Server(root, workers=2) as server:
        for _ in range(MANY):
            with Client(server) as client:
                client.send(REQUEST)
                same_bytes(client.response().body, b"inside")
        server.signal(signal.SIGUSR1)
        until(lambda: "totals" in server.errors(), 3, "totals")
        time.sleep(0.1)


@case("clients that close their half before, within and after a request get what they asked for")
def half_closed():
    with Server(root) as server:
        with Client(server) as client:
            client.shake_hands()
            client.half_close()
            client.ended()
        with Client(server) as client:
            client.send(REQUEST[:-2])
            client.half_close()
            equal(seconds_until_end(client, 0, 2), b"")
        with Client(server) as client:
            client.send(REQUEST * 3)
            client.half_close()
            for _ in range(3):
                equal(client.response().body, b"inside")
            client.ended()
        with Client(server, receive_buffer=8192) as client:
            client.send(REQUEST.replace(b"file.txt", b"large.bin"))
            client.head()
            client.half_close()


@case("out-of-band data harms nothing")
def urgent():
    with Server(root) as server, Client(server) as client:
        socket.socket.send(client.socket, b"!", socket.MSG_OOB)
        client.send(REQUEST)
        response = client.response()
        assert response.status in (200, 400), response
        equal(get(server, "/file.txt").body, b"inside")


if __name__ == "__main__":
    main()
