#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""That --route X carries the bodies by X, as seen by the system calls, and that the workers are confined. Release
builds only: sanitized workers are not confined, and make system calls of their own."""

import glob
import os
import re

from harness import (Client, Server, SANITIZED, case, content, digest, equal, get, main, new_root, note, strace, write)

MIB = 1 << 20
SIZE = 20 * MIB
root = new_root()
write(root, "large.bin", data=content(SIZE))
write(root, "file.txt", data=b"inside")

CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (\d+)(?: |$)")
# Which argument is the descriptor that is written to, and which the one that is read from.
OUT = {"sendfile": 0, "splice": 2, "sendto": 0, "sendmsg": 0, "write": 0, "writev": 0, "tee": 1, "vmsplice": 0}
IN = {"sendfile": 1, "splice": 0, "read": 0, "pread64": 0, "preadv": 0, "preadv2": 0, "readv": 0}


def descriptors(arguments):
    """The kind behind each argument: 'socket', 'pipe', 'file' or None."""
    kinds = []
    for argument in arguments.split(", "):
        match = re.match(r"\d+<([^>]*)", argument)
        kinds.append(None if not match else "socket" if re.match(r"(socket|TCP)", match[1]) else
                     "pipe" if match[1].startswith("pipe:") else "file")
    return kinds


def traffic(server, action):
    """Bytes that went into sockets and came out of files, by system call."""
    trace = os.path.join(new_root(), "trace")
    sent, taken = {}, {}
    calls = ",".join(sorted(set(OUT) | set(IN)))
    with strace(server.worker_pids()[0], "-y", "-s", "0", "-e", "trace=" + calls, output=trace):
        action()
    for name in glob.glob(trace + ".*"):
        with open(name, encoding="utf-8", errors="replace") as file:
            for line in file:
                match = CALL.match(line)
                if not match:
                    continue
                call, arguments, result = match[1], descriptors(match[2]), int(match[3])
                if call in OUT and len(arguments) > OUT[call] and arguments[OUT[call]] == "socket":
                    sent[call] = sent.get(call, 0) + result
                if call in IN and len(arguments) > IN[call] and arguments[IN[call]] == "file":
                    taken[call] = taken.get(call, 0) + result
    return sent, taken


def is_plain(call):
    return call in ("sendto", "sendmsg", "write", "writev")


for route in ("copy", "mmap", "sendfile", "splice", "auto"):
    @case("--route %s: at least 99 %% of the bytes of large bodies go by it, whole files and ranges", route)
    def carried(route):
        with Server(root, "--route", route, "--loop", "epoll") as server:  # what a ring sends, strace does not see
            get(server, "/large.bin")  # it is open and in memory now

            def action():
                with Client(server) as client:
                    equal(digest(client.get("/large.bin").body), digest(content(SIZE)))
                    client.get("/large.bin", "Range: bytes=1-%d" % (SIZE - 2))
                    equal(client.get("/file.txt").body, b"inside")
            sent, taken = traffic(server, action)
        bodies = 2 * SIZE - 2
        note("--route %s: into sockets %s; out of files %s" % (route, sent, taken))
        reads = sum(count for call, count in taken.items() if call not in ("sendfile", "splice"))
        plain = sum(count for call, count in sent.items() if is_plain(call))
        total = sum(sent.values())
        assert total >= bodies, "only %d bytes seen" % total
        if route == "copy":
            assert plain >= 0.99 * total and reads >= 0.99 * bodies, (sent, taken)
        elif route == "mmap":
            assert plain >= 0.99 * total and reads <= 0.01 * bodies, (sent, taken)
        else:
            carrier = "sendfile" if route == "auto" else route
            assert sent.get(carrier, 0) >= 0.99 * total, sent
            assert reads <= 0.01 * bodies, taken


@case("a small file costs no more system calls than a few, once it is open")
def few_calls():
    with Server(root) as server, Client(server) as client:
        for _ in range(3):
            client.get("/file.txt")
        trace = os.path.join(new_root(), "trace")
        with strace(server.worker_pids()[0], output=trace):
            for _ in range(100):
                equal(client.get("/file.txt").body, b"inside")
        names = {}
        for name in glob.glob(trace + ".*"):
            with open(name, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if match := re.match(r"(\w+)\(", line):
                        names[match[1]] = names.get(match[1], 0) + 1
        note("system calls for 100 requests of 6 bytes: %s" % names)
        assert sum(names.values()) <= 450, names
        assert not set(names) & {"openat", "openat2", "stat", "newfstatat", "close"} or sum(
            names.get(call, 0) for call in ("openat", "openat2", "close")) < 20, names


@case("workers are confined: seccomp filter, no new privileges, no capability but reading, by default")
def confined():
    assert not SANITIZED
    with Server(root, workers=2) as server:
        for pid in server.worker_pids():
            with open("/proc/%d/status" % pid, encoding="ascii") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            equal(status["Seccomp"].strip(), "2", "Seccomp")
            equal(status["NoNewPrivs"].strip(), "1", "NoNewPrivs")
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(status[kind], 16) & ~(1 << 2) == 0, "%s %s" % (kind, status[kind])
        equal(get(server, "/large.bin").status, 200)


@case("--no-confine leaves the workers as they are; --verbose says what is confined")
def unconfined():
    with Server(root, "--no-confine") as server:
        with open("/proc/%d/status" % server.worker_pids()[0], encoding="ascii") as file:
            assert "Seccomp:\t0" in file.read()
    with Server(root, "--verbose") as server:
        get(server, "/file.txt")
        text = server.errors()
        for word in ("Landlock", "seccomp"):
            assert word in text, text


@case("threads of a confined worker are confined, too")
def threads():
    with Server(root) as server:
        get(server, "/file.txt")  # a helper thread looked it up
        pid = server.worker_pids()[0]
        tasks = os.listdir("/proc/%d/task" % pid)
        assert len(tasks) > 1, "no helper thread"
        for task in tasks:
            with open("/proc/%d/task/%s/status" % (pid, task), encoding="ascii") as file:
                assert "Seccomp:\t2" in file.read()


if __name__ == "__main__":
    main()
