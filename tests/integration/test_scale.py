#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Ten thousand connections: memory for each, and that others are served meanwhile. Release builds only: sanitizers
count differently."""

import os
import re
import select
import socket
import time

from harness import (Client, Server, case, content, equal, get, main, new_root, note, raise_descriptor_limit,
                     same_bytes, until, write)

MIB = 1 << 20
COUNT = 10_000
IDLE_MAX = 1024  # bytes of the worker's own memory for an idle connection
SLOW_MAX = 4096  # ... for one that has a response under way
ACTIVE_MAX = 2048  # ... for one that has sent a part of a head
root = new_root()
write(root, "file.txt", data=b"inside")
DATA = content(8 * MIB)
write(root, "large.bin", data=DATA)
REQUEST = b"GET /file.txt HTTP/1.1\r\nHost: a\r\n\r\n"


def private_memory(pid):
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
        return int(re.search(r"Private_Dirty:\s*(\d+)", file.read())[1]) * 1024


def connect(server, count, receive_buffer=None):
    sockets = []
    for _ in range(count):
        one = socket.socket()
        if receive_buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        one.settimeout(20)
        one.connect(server.address)
        sockets.append(one)
    return sockets


def close(sockets):
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no TIME_WAIT for the next cases
        one.close()


def worst_answer(server, seconds):
    """The longest time that a small request took, asked again and again over one connection."""
    worst, count = 0, 0
    deadline = time.monotonic() + seconds
    with Client(server) as client:
        while time.monotonic() < deadline:
            started = time.monotonic()
            equal(client.get("/file.txt").body, b"inside")
            worst = max(worst, time.monotonic() - started)
            count += 1
    return worst, count


def open_connections(server, count):
    pid = server.worker_pids()[0]
    until(lambda: len(os.listdir("/proc/%d/fd" % pid)) >= count, 10, "%d accepted connections" % count)


@case("10,000 idle connections cost less than 1 KiB each, and others are served meanwhile", limit=60)
def idle():
    raise_descriptor_limit(COUNT + 500)
    with Server(root, "--header-timeout", "5m", "--idle-timeout", "5m") as server:
        get(server, "/file.txt")
        pid = server.worker_pids()[0]
        before = private_memory(pid)
        sockets = connect(server, COUNT)
        open_connections(server, COUNT)
        note("10,000 connections that have not asked yet: %d bytes each" % ((private_memory(pid) - before) / COUNT))
        for one in sockets:
            one.sendall(REQUEST)
        for one in sockets:
            assert one.recv(4096).endswith(b"inside")
        each = (private_memory(pid) - before) / COUNT
        worst, count = worst_answer(server, 0.5)
        note("10,000 idle connections: %d bytes each; beside them %d requests, the slowest %.1f ms" % (
            each, count, worst * 1000))
        assert each < IDLE_MAX, "%d bytes each" % each
        assert worst < 0.5 and count > 50
        for one in sockets[::97]:
            one.sendall(REQUEST)
            assert one.recv(4096).endswith(b"inside")
        close(sockets)
        until(lambda: get(server, "/file.txt").body == b"inside", 3, "an answer")


@case("10,000 connections that have sent a part of a request cost less than 2 KiB each", limit=60)
def partial():
    raise_descriptor_limit(COUNT + 500)
    with Server(root, "--header-timeout", "5m") as server:
        get(server, "/file.txt")
        pid = server.worker_pids()[0]
        before = private_memory(pid)
        sockets = connect(server, COUNT)
        for one in sockets:
            one.sendall(REQUEST[:-2] + b"X-Field: " + b"x" * 100)
        open_connections(server, COUNT)
        worst, _ = worst_answer(server, 0.3)
        each = (private_memory(pid) - before) / COUNT
        note("10,000 half requests of %d bytes: %d bytes each" % (len(REQUEST) + 107, each))
        assert each < ACTIVE_MAX, "%d bytes each" % each
        for one in sockets[::7]:
            one.sendall(b"\r\n\r\n")
            assert one.recv(4096).endswith(b"inside")
        close(sockets)


@case("10,000 slow readers of one file cost less than 4 KiB each, get the right bytes, and others are served", limit=90)
def slow():
    raise_descriptor_limit(COUNT + 500)
    with Server(root, "--send-timeout", "5m", "--header-timeout", "5m") as server:
        get(server, "/large.bin")
        pid = server.worker_pids()[0]
        before = private_memory(pid)
        sockets = connect(server, COUNT, receive_buffer=2048)
        for one in sockets:
            one.sendall(REQUEST.replace(b"file.txt", b"large.bin"))
        open_connections(server, COUNT)
        poll = select.epoll()
        numbers = {}
        for one in sockets:
            one.setblocking(False)
            poll.register(one.fileno(), select.EPOLLIN)
            numbers[one.fileno()] = [one, bytearray()]
        started = time.monotonic()
        equal(get(server, "/file.txt").body, b"inside")
        note("while 10,000 downloads began at once, a small request took %.1f s" % (time.monotonic() - started))
        worst, served = 0.0, 0
        with Client(server) as other:
            for turn in range(6):
                for fd, _ in poll.poll(1, COUNT):
                    one, got = numbers[fd]
                    data = one.recv(3000)
                    assert data, "cut off"
                    got += data
                asked = time.monotonic()
                equal(other.get("/file.txt").body, b"inside")
                worst = max(worst, time.monotonic() - asked)
                served += 1
                time.sleep(0.1)
        each = (private_memory(pid) - before) / COUNT
        note("10,000 slow readers: %d bytes each; beside them the slowest of %d requests took %.1f ms" % (
            each, served, worst * 1000))
        elapsed = time.monotonic() - started
        total = 0
        for one, got in numbers.values():
            head, _, body = bytes(got).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK"), head[:100]
            same_bytes(body, DATA[:len(body)])
            total += len(got)
        note("%.1f MB read in %.1f s" % (total / 1e6, elapsed))
        assert each < SLOW_MAX, "%d bytes each" % each
        assert worst < 1, "%.2f s" % worst
        finished = sockets[:10]
        for one in finished:  # to the end
            one.settimeout(20)
            body = numbers[one.fileno()][1]
            size = body.index(b"\r\n\r\n") + 4 + len(DATA)
            while len(body) < size:
                data = one.recv(1 << 20)
                assert data, "cut off at %d" % len(body)
                body += data
            same_bytes(bytes(body[-len(DATA):]), DATA)
        close(sockets)
        until(lambda: get(server, "/file.txt").body == b"inside", 5, "an answer")


@case("the memory of 10,000 connections is given to the next 10,000, not taken again", limit=60)
def again():
    raise_descriptor_limit(COUNT + 500)
    with Server(root, "--header-timeout", "5m", "--idle-timeout", "5m") as server:
        pid = server.worker_pids()[0]
        get(server, "/file.txt")
        sizes = []
        for _ in range(3):
            sockets = connect(server, COUNT)
            for one in sockets:
                one.sendall(REQUEST)
            for one in sockets:
                assert one.recv(4096).endswith(b"inside")
            sizes.append(private_memory(pid))
            close(sockets)
        note("private memory with 10,000 connections, three times: %s KiB" % ", ".join(str(s // 1024) for s in sizes))
        assert sizes[2] < sizes[0] * 1.2 + MIB, sizes


if __name__ == "__main__":
    main()
