#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files that are on the disk and not in memory: the ones who ask for others do not wait for them."""

import ctypes
import mmap
import os
import re
import shutil
import tempfile
import threading
import time

from harness import Client, PATIENCE, SANITIZED, Server, Skip, case, content, digest, equal, main, new_root, note, until, write

MIB = 1 << 20
BLOCK = content(1 * MIB)
SIZE = (32 if SANITIZED else 200) * MIB
root = new_root(os.environ.get("TMPDIR") or tempfile.gettempdir())
write(root, "hot.bin", data=content(10_240))


def make_cold(name):
    path = os.path.join(root, name)
    if not os.path.exists(path):
        with open(path, "wb") as file:
            for number in range(SIZE // MIB):
                file.write(number.to_bytes(8, "big"))  # every block is another
                file.write(BLOCK[8:])
    evict(path)
    return path


def evict(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def check(client):
    """Reads a response with a cold file; every block must be right."""
    head = client.head()
    equal(head.status, 200)
    equal(int(head["Content-Length"]), SIZE)
    body = client.buffer
    number, taken = 0, 0
    view = bytearray(body)
    body.clear()
    while taken < SIZE:
        while len(view) < MIB:
            data = client.socket.recv(1 << 20)
            assert data, "cut off at %d" % (taken + len(view))
            view += data
        assert view[:8] == number.to_bytes(8, "big") and view[8:MIB] == BLOCK[8:], "block %d is wrong" % number
        del view[:MIB]
        number += 1
        taken += MIB


def hot_until(server, done):
    times = []
    with Client(server) as client:
        while not done.is_set() or len(times) < 50:
            started = time.monotonic()
            equal(client.get("/hot.bin").body, content(10_240))
            times.append(time.monotonic() - started)
    return sorted(times)


def beside(server, functions):
    """Times of hot requests while the functions run."""
    done, wrong = threading.Event(), []

    def run(function):
        try:
            function()
        except Exception as error:
            wrong.append(error)
    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()

    def wait():
        for thread in threads:
            thread.join()
        done.set()
    threading.Thread(target=wait).start()
    times = hot_until(server, done)
    done.wait()
    if wrong:
        raise wrong[0]
    return times


def told(what, times):
    note("%s: %d hot requests: median %.2f ms, p99 %.2f ms, worst %.1f ms" % (
        what, len(times), times[len(times) // 2] * 1000, times[len(times) * 99 // 100] * 1000, times[-1] * 1000))


for route in ("auto", "copy", "mmap", "splice"):
    @case("--route %s: hot requests go on while a large cold file is read from the disk, which arrives byte for byte",
          route, limit=60)
    def cold(route):
        if shutil.disk_usage(root).free < 4 * SIZE:
            raise Skip("needs %d MB of free disk space in %s: set TMPDIR" % (4 * SIZE // MIB, root))
        make_cold("cold-0.bin")
        with Server(root, "--route", route) as server:
            def download():
                with Client(server, timeout=30) as client:
                    client.ask("/cold-0.bin")
                    check(client)
            times = beside(server, [download])
            told("--route " + route, times)
            assert times[-1] < 1 * PATIENCE, "%.2f s for a hot request" % times[-1]


def resident(path):
    """Bytes of a file of ours that are in memory."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
            pages = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(mapping)
            failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(ctypes.addressof(start)),
                                                               ctypes.c_size_t(size), pages)
            del start
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


for policy, stays in (("drop-behind", False), ("keep", True)):
    @case("--cold-policy %s: after the download of a cold file " + ("it is" if stays else "nothing of it is") +
          " in memory; what was there before is there still, and the receipt tells", policy, limit=60)
    def dropped(policy, stays=stays):
        path = make_cold("cold-0.bin")
        with Server(root, "--cold-policy", policy, "--receipts") as server:
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # reads no further than it is asked to
                before = len(file.read(3 * MIB))
            with Client(server, timeout=30) as client:
                equal(client.get("/hot.bin").body, content(10_240))
                client.ask("/cold-0.bin")
                check(client)
            if stays:
                assert resident(path) > SIZE * 0.98, resident(path)
            else:
                # A few pages may stay of what this client had not read when they were to go.
                until(lambda: resident(path) <= before + SIZE // 50, 40, "the end of the pages")
                assert resident(path) >= before
            until(lambda: "receipt 127" in server.errors(), 5, "the receipt")
            told = re.search(r"dropped from the page cache ([\d.]+) MiB", server.errors())
            dropped = float(told[1]) * MIB if told else 0
            assert dropped == 0 if stays else SIZE * 0.97 < dropped + before <= SIZE * 1.001, dropped
            assert resident(os.path.join(root, "hot.bin")) > 0


@case("a file that is small beside the memory (--cold-policy auto), or smaller than --cold-size, is kept; a larger one is not")
def large_enough():
    path = make_cold("cold-0.bin")
    with Server(root, "--cold-policy", "auto", "--cold-size", str(SIZE)) as server, Client(server, timeout=30) as client:
        client.ask("/cold-0.bin")
        check(client)
        until(lambda: resident(path) < SIZE // 50, 40, "the end of the pages")
    with Server(root, "--cold-policy", "drop-behind", "--cold-size", str(SIZE + 1)) as server, \
            Client(server, timeout=30) as client:
        client.ask("/cold-0.bin")
        check(client)
        assert resident(path) > SIZE * 0.98, resident(path)
    make_cold("cold-0.bin")
    with Server(root) as server, Client(server, timeout=30) as client:
        client.ask("/cold-0.bin")
        check(client)
        assert resident(path) > SIZE * 0.98, resident(path)


@case("three cold files at once, and a reader that goes away in the middle of each, stop nobody", limit=60)
def several():
    if shutil.disk_usage(root).free < 4 * SIZE:
        raise Skip("needs %d MB of free disk space in %s: set TMPDIR" % (4 * SIZE // MIB, root))
    for number in range(2):
        make_cold("cold-%d.bin" % number)
    with Server(root) as server:
        def download(name):
            with Client(server, timeout=30) as client:
                client.ask(name)
                check(client)

        def leave(name):
            for _ in range(5):
                client = Client(server)
                client.ask(name)
                client.head()
                time.sleep(0.02)
                client.reset()
        times = beside(server, [lambda: download("/cold-0.bin"), lambda: download("/cold-1.bin"),
                                lambda: leave("/cold-0.bin"), lambda: leave("/cold-1.bin")])
        told("two downloads and leavers", times)
        assert times[-1] < 1 * PATIENCE, "%.2f s for a hot request" % times[-1]


@case("a cold file that is evicted again and again while it is sent arrives byte for byte", limit=60)
def evicted():
    path = make_cold("cold-0.bin")
    with Server(root) as server, Client(server, timeout=30) as client:
        done = threading.Event()

        def keep_cold():
            while not done.is_set():
                evict(path)
                time.sleep(0.005)
        evictor = threading.Thread(target=keep_cold)
        evictor.start()
        try:
            client.ask("/cold-0.bin")
            check(client)
        finally:
            done.set()
            evictor.join()


@case("a cold file truncated while it is read ends the connection short, and the server goes on")
def truncated():
    path = make_cold("cold-cut.bin")
    with Server(root) as server, Client(server, receive_buffer=65536, timeout=10) as client:
        client.ask("/cold-cut.bin")
        client.head()
        os.truncate(path, 5 * MIB)
        total = len(client.buffer)
        try:
            while data := client.socket.recv(1 << 20):
                total += len(data)
        except ConnectionResetError:
            pass
        assert total < SIZE
        with Client(server) as other:
            equal(digest(other.get("/hot.bin").body), digest(content(10_240)))
    os.unlink(path)


@case("a server told to end while a cold file is read finishes the download and ends with code 0", limit=60)
def drained():
    make_cold("cold-0.bin")
    with Server(root) as server:
        with Client(server, timeout=30) as client:
            client.get("/hot.bin")  # it has been accepted, that is
            client.ask("/cold-0.bin")
            server.signal(15)
            check(client)
        equal(server.wait(), 0)
        server.check_end()


if __name__ == "__main__":
    main()
