#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files that change: the request after a change has returned sees it, and a file that shrinks while it is sent ends the
connection short."""

import contextlib
import itertools
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time

from harness import (RESET, TLS, Client, Server, Skip, case, content, digest, equal, get, main, mounted, new_root,
                     same_bytes, shared_server, write)

MIB = 1 << 20
PLACES = {}  # name: directory


def place(name, directory):
    if directory and os.path.isdir(directory) and os.access(directory, os.W_OK):
        PLACES[name] = directory


place("on the disk", tempfile.gettempdir())
place("on tmpfs", "/dev/shm")
SERVERS = {}
for where, directory in PLACES.items():
    here = new_root(directory)
    SERVERS[where] = (here, shared_server(here, name="the server " + where))
    if where == "on the disk":
        SERVERS["on the disk, without openat2"] = (
            here, shared_server(here, env={"SLUICE_NO_OPENAT2": "1"}, name="the server without openat2"))
numbers = itertools.count()


class Subject:
    """A file of its own name in a directory, a client, and what it answers now."""

    def __init__(self, where, data=b"old content"):
        self.root, get_server = SERVERS[where]
        self.server = get_server()
        self.directory = "d%d" % next(numbers)
        self.target = "/%s/file" % self.directory
        self.path = write(self.root, self.directory, "file", data=data)
        self.client = Client(self.server)

    def sees(self, expected, target=None):
        response = self.client.get(target or self.target)
        if expected is None:
            equal(response.status, 404)
        else:
            equal(response.status, 200)
            same_bytes(response.body, expected)
        return response


for where in SERVERS:
    @case("%s, a file overwritten in place is new at the next request, 200 times", where)
    def overwritten(where):
        subject = Subject(where)
        tags = set()
        for number in range(200):
            data = b"%011d" % number
            with open(subject.path, "r+b") as file:
                file.write(data)
            tags.add(subject.sees(data)["ETag"])
            subject.sees(data)
        assert len(tags) > 1

    @case("%s, a file replaced by rename is new at the next request, 200 times", where)
    def replaced(where):
        subject = Subject(where)
        for number in range(200):
            data = b"%d" % number * (1 + number % 5)
            write(subject.path + ".new", data=data)
            os.rename(subject.path + ".new", subject.path)
            subject.sees(data)
            subject.sees(data)

    @case("%s, a deleted file is gone, and one made after a 404 is there, 100 times", where)
    def deleted(where):
        subject = Subject(where)
        for number in range(100):
            subject.sees(b"old content" if number == 0 else b"%d" % number)
            os.unlink(subject.path)
            subject.sees(None)
            write(subject.path, data=b"%d" % (number + 1))

    @case("%s, a file that grows is sent in its new length", where)
    def grown(where):
        subject = Subject(where, b"")
        data = b""
        for _ in range(50):
            data += b"more and "
            with open(subject.path, "ab") as file:
                file.write(b"more and ")
            subject.sees(data)

    @case("%s, a file that is truncated is sent in its new length", where)
    def truncated(where):
        subject = Subject(where, content(100000))
        for size in (99999, 50000, 4097, 4096, 1, 0):
            subject.sees(read(subject.path))
            os.truncate(subject.path, size)
            subject.sees(content(100000)[:size])

    @case("%s, a touched file has its new date, and one with an old date the old one", where)
    def touched(where):
        subject = Subject(where)
        for when, date in ((1_500_000_000, "Fri, 14 Jul 2017 02:40:00 GMT"), (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
                           (1_600_000_000, "Sun, 13 Sep 2020 12:26:40 GMT")):
            os.utime(subject.path, (when, when))
            equal(subject.sees(b"old content")["Last-Modified"], date)

    @case("%s, a write through another hard link is seen at the next request", where)
    def hard_link(where):
        subject = Subject(where)
        other = os.path.join(subject.root, "link-%s" % subject.directory)
        os.link(subject.path, other)
        subject.sees(b"old content")
        for number in range(50):
            data = b"%d" % number * (1 + number % 7)
            tag = subject.client.get(subject.target)["ETag"]
            write(other, data=data)  # of another length: what is remembered of the file is of no use now
            equal(subject.client.get(subject.target, "If-None-Match: " + tag).body, data)
            subject.sees(data)
        os.unlink(subject.path)
        os.link(other, subject.path)
        subject.sees(data)

    @case("%s, of a file that is served by two names, both are new at the next request, whichever is written to", where)
    def two_names(where):
        subject = Subject(where)
        other = os.path.join(subject.root, "second-%s" % subject.directory)
        target = "/second-%s" % subject.directory
        os.link(subject.path, other)
        for number in range(50):
            data = b"%d" % number * (1 + number % 7)
            for _ in range(1 + number % 3):  # from memory, if it may be
                subject.client.get(target)
                subject.client.get(subject.target)
            write((subject.path, other)[number % 2], data=data)
            for each in (subject.target, target)[::1 if number % 4 < 2 else -1]:
                equal(subject.client.get(each).body, data, each)
        write(subject.root, "new", data=b"another file")
        os.rename(os.path.join(subject.root, "new"), other)
        equal(subject.client.get(target).body, b"another file")
        subject.sees(data)
        write(subject.path, data=b"no longer the same")
        equal(subject.client.get(target).body, b"another file")
        subject.sees(b"no longer the same")

    @case("%s, writes through a hard link made after the first request are seen at the next", where)
    def later_hard_link(where):
        subject = Subject(where)
        other = os.path.join(subject.root, "later-%s" % subject.directory)
        for number in range(50):
            old = b"old content" if number == 0 else data
            subject.sees(old)
            subject.sees(old)  # from memory
            os.link(subject.path, other)
            data = b"%d" % number * (1 + number % 7)
            write(other, data=data)
            subject.sees(data)
            os.unlink(other)

    @case("%s, writes by a descriptor whose name is gone are seen at the next request", where)
    def lost_name(where):
        subject = Subject(where)
        other = os.path.join(subject.root, "lost-%s" % subject.directory)
        os.link(subject.path, other)
        with open(other, "r+b", buffering=0) as file:
            os.unlink(other)
            for number in range(50):
                data = b"%011d" % number
                file.seek(0)
                file.write(data)
                subject.sees(data)
                subject.sees(data)

    @case("%s, a change of what a symbolic link leads to, or of the link, is seen at the next request", where)
    def symbolic_link(where):
        subject = Subject(where)
        link = os.path.join(subject.root, "symbolic-%s" % subject.directory)
        target = "/symbolic-%s" % subject.directory
        os.symlink(subject.directory + "/file", link)
        subject.sees(b"old content", target)
        for number in range(50):
            data = b"%011d" % number
            with open(subject.path, "r+b") as file:
                file.write(data)
            subject.sees(data, target)
        write(subject.root, subject.directory, "second", data=b"second")
        os.symlink(subject.directory + "/second", link + ".new")
        os.rename(link + ".new", link)
        subject.sees(b"second", target)

    @case("%s, a directory above that is renamed, replaced or swapped is seen at the next request", where)
    def directories(where):
        subject = Subject(where)
        top = os.path.join(subject.root, subject.directory)
        target = "/%s/a/b/c/file" % subject.directory
        write(top, "a", "b", "c", "file", data=b"first")
        write(top, "x", "b", "c", "file", data=b"second")
        for _ in range(20):
            subject.sees(b"first", target)
            os.rename(os.path.join(top, "a"), os.path.join(top, "a-away"))
            subject.sees(None, target)
            os.rename(os.path.join(top, "x"), os.path.join(top, "a"))
            subject.sees(b"second", target)
            os.rename(os.path.join(top, "a"), os.path.join(top, "x"))
            os.rename(os.path.join(top, "a-away"), os.path.join(top, "a"))
        subject.sees(b"first", target)
        shutil.rmtree(os.path.join(top, "a"))
        subject.sees(None, target)
        write(top, "a", "b", "c", "file", data=b"third")
        subject.sees(b"third", target)

    @case("%s, a directory that becomes a file, and a file that becomes a directory, are seen", where)
    def kinds(where):
        subject = Subject(where)
        for _ in range(20):
            subject.sees(b"old content")
            os.unlink(subject.path)
            os.mkdir(subject.path)
            equal(subject.client.get(subject.target).status, 301)
            os.rmdir(subject.path)
            write(subject.path, data=b"old content")

    @case("%s, an index.html that comes and goes is seen at the next request", where)
    def index(where):
        subject = Subject(where)
        target = "/%s/" % subject.directory
        path = os.path.join(subject.root, subject.directory, "index.html")
        for number in range(30):
            assert b"./file" in subject.client.get(target).body
            write(path, data=b"index %d" % number)
            subject.sees(b"index %d" % number, target)
            os.unlink(path)

    @case("%s, a write through a mapping is seen within two seconds, with another ETag", where)
    def mapped(where):
        subject = Subject(where, b"m" * 8192)
        tag = subject.sees(b"m" * 8192)["ETag"]
        with open(subject.path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
            time.sleep(0.05)
            memory[:] = b"n" * 8192
            memory.flush()
        deadline = time.monotonic() + 2.5
        while (response := subject.client.get(subject.target))["ETag"] == tag:
            assert time.monotonic() < deadline, "still the old ETag"
            time.sleep(0.05)
        equal(response.body, b"n" * 8192)

    @case("%s, a cached 304 ends with the first change", where)
    def conditional(where):
        subject = Subject(where)
        for number in range(50):
            tag = subject.client.get(subject.target)["ETag"]
            equal(subject.client.get(subject.target, "If-None-Match: " + tag).status, 304)
            time.sleep(0.03)  # changes closer together than the clock of the file system can have the same times
            write(subject.path, data=b"content %3d" % number)
            equal(subject.client.get(subject.target, "If-None-Match: " + tag).body, b"content %3d" % number)

    @case("%s, a file replaced while it is sent goes on from the old one", where)
    def replaced_while_sent(where):
        old = content(20 * MIB)
        subject = Subject(where, old)
        with Client(subject.server, receive_buffer=8192) as slow:
            slow.ask(subject.target)
            head = slow.head()
            write(subject.path + ".new", data=b"new")
            os.rename(subject.path + ".new", subject.path)
            subject.sees(b"new")
            body = bytes(slow.buffer) + receive(slow, int(head["Content-Length"]) - len(slow.buffer))
            equal(digest(body), digest(old))

    @case("%s, a file deleted while it is sent is sent to its end", where)
    def deleted_while_sent(where):
        old = content(20 * MIB)
        subject = Subject(where, old)
        with Client(subject.server, receive_buffer=8192) as slow:
            slow.ask(subject.target)
            head = slow.head()
            os.unlink(subject.path)
            subject.sees(None)
            body = bytes(slow.buffer) + receive(slow, int(head["Content-Length"]) - len(slow.buffer))
            equal(digest(body), digest(old))

    @case("%s, a file that grows while it is sent is sent in the length that was announced", where)
    def grown_while_sent(where):
        old = content(20 * MIB)
        subject = Subject(where, old)
        with Client(subject.server, receive_buffer=8192) as slow:
            slow.ask(subject.target)
            head = slow.head()
            with open(subject.path, "ab") as file:
                file.write(b"x" * MIB)
            body = bytes(slow.buffer) + receive(slow, int(head["Content-Length"]) - len(slow.buffer))
            equal(digest(body), digest(old))
            slow.buffer.clear()
            equal(int(slow.get(subject.target, method="HEAD")["Content-Length"]), 21 * MIB)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def receive(client, count):
    """At most count bytes; fewer if the connection ends or is reset. With TLS, an end that is said to be one would be a
    lie: it would make a whole body of what came."""
    data = bytearray()
    with contextlib.suppress(*RESET):
        while len(data) < count:
            block = client.socket.recv(min(1 << 20, count - len(data)))
            assert block or not TLS, "a close_notify behind %d bytes of %d" % (len(data), count)
            if not block:
                break
            data += block
    return bytes(data)


def cut_short(server, path, target, size, kept, zeros_allowed):
    """A slow client begins; the file is truncated to kept bytes; the client reads on."""
    data = content(size)
    write(path, data=data)
    with Client(server, receive_buffer=8192) as client:
        client.ask(target)
        head = client.head()
        equal(int(head["Content-Length"]), size)
        time.sleep(0.02)
        os.truncate(path, kept)
        body = bytes(client.buffer) + receive(client, size - len(client.buffer))
        assert len(body) < size, "%d bytes of a file of %d, with the connection in order" % (len(body), kept)
        same_but_for_zeros(body, data, kept if zeros_allowed else size)
        if not TLS:  # a second look tells nothing
            equal(receive(client, 1), b"", "bytes behind the end")


def same_but_for_zeros(body, data, kept):
    """What is cut off may be zeros instead, here and there: the kernel zeroes the cut part of a page, or of a large
    folio, that is under way already."""
    for at in range(0, len(body), 4096):
        block, expected = body[at:at + 4096], data[at:at + 4096]
        if block != expected[:len(block)]:
            for offset, (a, b) in enumerate(zip(block, expected), at):
                assert a == b or (a == 0 and offset >= kept), "%#x for %#x at byte %d" % (a, b, offset)


for where in PLACES:
    for route in ("auto", "copy", "mmap", "sendfile", "splice"):
        @case("%s, by --route %s, a file truncated while it is sent ends the connection short with no wrong byte",
              where, route, tls=route == "auto")
        def short(where, route):
            here = new_root(PLACES[where])
            write(here, "other", data=b"fine")
            with Server(here, "--route", route) as server:
                for kept in (0, 1, 4097, 8 * MIB, 16 * MIB + 1):
                    cut_short(server, os.path.join(here, "file"), "/file", 20 * MIB, kept, zeros_allowed=True)
                    equal(get(server, "/other").body, b"fine")

    @case("%s, with --snapshot a file truncated while it is sent never gives zeros", where)
    def snapshot(where):
        here = new_root(PLACES[where])
        write(here, "other", data=b"fine")
        with Server(here, "--snapshot") as server:
            for kept in (0, 1, 4097, 8 * MIB, 16 * MIB + 1):
                cut_short(server, os.path.join(here, "file"), "/file", 20 * MIB, kept, zeros_allowed=False)
                equal(get(server, "/other").body, b"fine")


@case("without inotify watches left, files that change are new at the next request, and the server says why it is slow")
def no_watches():
    here = new_root()
    limited = ("unshare", "--user", "--map-root-user", "sh", "-c",
               'echo 4 >/proc/sys/user/max_inotify_watches && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*limited, "true"], capture_output=True).returncode != 0:
        raise Skip("needs user namespaces, to have few inotify watches in: sysctl kernel.unprivileged_userns_clone=1")
    for number in range(20):
        write(here, "d%d" % (number % 3), "f%d" % number, data=b"old")
    with Server(here, wrap=limited) as server, Client(server) as client:
        for turn in range(4):
            for number in range(20):
                target = "/d%d/f%d" % (number % 3, number)
                data = b"%d" % turn * (1 + number)
                if turn > 0:
                    write(here, target[1:], data=data)
                same_bytes(client.get(target).body, data if turn > 0 else b"old")
                os.link(here + target, here + "/link")
                write(here, "link", data=data + b" linked")
                same_bytes(client.get(target).body, data + b" linked")
                os.unlink(here + "/link")
        equal(len(re.findall(r"sluice serve: inotify: .*max_user_watches.*\n", server.errors())), 1)


for option, kept in (("--listing", 30000), ("--snapshot", 60000)):
    @case("%s: a small file truncated right after it was asked for, 300 times, is whole or cut short, %s", option,
          "with nothing but zeros for what was cut" if kept < 60000 else "without zeros")
    def truncated_race(option, _, kept=kept):
        here = new_root()
        data = content(60000)
        path = write(here, "file", data=data)
        with Server(here, option) as server:
            for _ in range(300):
                with Client(server) as client:
                    client.ask("/file")
                    os.truncate(path, 30000)
                    response = client.response()
                    same_but_for_zeros(response.body, data, kept)
                    assert not response.complete or len(response.body) in (30000, 60000), response
                write(path, data=data)


for kind in ("xfs", "btrfs"):
    @case("on %s, changes are seen at the next request and a truncated file ends short", kind)
    def other_file_system(kind):
        with mounted(kind) as point, Server(point) as server, Client(server) as client:
            path = os.path.join(point, "file")
            for number in range(50):
                write(path + ".new", data=b"replaced %d" % number)
                os.rename(path + ".new", path)
                equal(client.get("/file").body, b"replaced %d" % number)
                with open(path, "r+b") as file:
                    file.write(b"in place")
                equal(client.get("/file").body[:8], b"in place")
                os.unlink(path)
                equal(client.get("/file").status, 404)
            for kept in (0, 4097, 8 * MIB):
                cut_short(server, path, "/file", 20 * MIB, kept, zeros_allowed=True)
            write(path, data=content(20 * MIB))
            equal(digest(get(server, "/file").body), digest(content(20 * MIB)))


for _, get_server in SERVERS.values():
    get_server.closing_case()

if __name__ == "__main__":
    main()
