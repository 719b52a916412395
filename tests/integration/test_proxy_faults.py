#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""System calls of a running proxy made to fail by strace, each with the errors that it can give: the worker survives,
nothing hangs, no byte is wrong, nothing is left, and no connection is cut short with an orderly end, as if that were
all. A connection may be reset. One that is silent meanwhile must not notice."""

import functools
import socket
import threading
import time

from harness import SANITIZED, case, content, equal, main, note, same_bytes, strace, together, until
from proxying import MIB, Backend, Proxy, address_text, connect, count_open, echo, read_exactly

DATA = content(MIB + 4321)


def talk(address, kind):
    """One connection to an echoing server. Returns what became of it."""
    size = {"small": 3000, "bulk": len(DATA), "late": 200_000, "nothing": 0}[kind]
    got = bytearray()
    try:
        with connect(address, timeout=4) as client:
            def send():
                try:
                    if kind == "small":
                        for at in range(0, size, 300):
                            client.sendall(DATA[at:at + 300])
                            time.sleep(0.001)
                    else:
                        client.sendall(DATA[:size // 2])
                        if kind == "late":
                            time.sleep(0.02)
                        client.sendall(DATA[size // 2:size])
                    client.shutdown(socket.SHUT_WR)
                except OSError as error:
                    failed.append(error)
            failed = []
            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            while block := client.recv(1 << 18):
                got += block
            sender.join()
    except (ConnectionError, socket.timeout) as error:
        outcome = "hang" if isinstance(error, TimeoutError) else "reset"
    else:
        # A reset is told once: to send, perhaps.
        outcome = "right" if len(got) == size else "reset" if failed else "cut short"
    same_bytes(bytes(got), DATA[:len(got)], "what the server echoed")
    return outcome


def talk_all(proxy, outcomes, rounds=1):
    def one(kind):
        outcome = talk(proxy.address, kind)
        with lock:
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    lock = threading.Lock()
    for _ in range(rounds):
        together([functools.partial(one, kind) for kind in ("small", "bulk", "nothing", "late") * 2])


# What fails, with which errors, every n-th time. Never EAGAIN where the loop waits for an edge: the kernel says EAGAIN
# only when an edge will follow.
FAULTS = [
    ("accept4", ("EMFILE", "ENFILE", "ECONNABORTED", "ENOMEM", "EINTR", "EPROTO", "EPERM"), 3),
    ("socket", ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"), 2),
    ("connect", ("ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL", "EAGAIN", "EINTR", "EPERM", "ETIMEDOUT"), 2),
    ("getsockopt", ("ENOBUFS", "EINVAL"), 2),
    ("setsockopt", ("ENOPROTOOPT", "EINVAL", "ENOMEM"), 2),
    ("getsockname,getpeername", ("ENOBUFS", "ENOTCONN"), 1),
    ("recvfrom,recvmsg", ("ECONNRESET", "EINTR", "ENOMEM", "ETIMEDOUT"), 3),
    ("sendto,sendmsg", ("ENOBUFS", "ENOMEM", "EPIPE", "ECONNRESET", "EINTR"), 3),
    ("splice", ("EINVAL", "ENOMEM", "EPIPE", "ECONNRESET", "EINTR", "EIO"), 3),
    ("pipe2", ("EMFILE", "ENFILE", "ENOMEM"), 1),
    ("fcntl", ("EPERM", "EBUSY", "EINVAL"), 1),
    ("ioctl", ("ENOTTY", "EINVAL"), 2),
    ("shutdown", ("ENOTCONN",), 2),
    ("epoll_ctl", ("ENOMEM", "ENOSPC"), 3),
    ("epoll_pwait,epoll_wait,epoll_pwait2", ("EINTR",), 2),
    ("mmap", ("ENOMEM",), 2),
    ("clone3,clone", ("EAGAIN", "ENOMEM"), 1),
    ("close", ("EINTR", "EIO"), 5),
]
MIRRORED = [
    ("tee", ("EINVAL", "ENOMEM", "EINTR"), 3),
    ("splice", ("EINVAL", "ENOMEM", "EPIPE", "ECONNRESET", "EINTR"), 3),
    ("socket,connect", ("ECONNREFUSED", "EMFILE"), 3),
    ("sendto,sendmsg", ("ENOBUFS", "EPIPE", "ECONNRESET"), 3),
    ("pipe2", ("EMFILE", "ENFILE"), 1),
]
# What a ring leaves to be called; strace does not see what it does itself.
RING = [
    ("io_uring_enter", ("EINTR", "EBUSY", "EAGAIN"), 3),
    ("socket,setsockopt", ("ENOBUFS", "EMFILE"), 3),
    ("shutdown,getsockopt", ("ENOTCONN",), 2),
    ("pipe2,fcntl", ("EMFILE", "EPERM"), 1),
]
if SANITIZED:  # its allocator cannot live without mmap
    FAULTS = [fault for fault in FAULTS if fault[0] != "mmap"]


def sweep(calls, errors, every, loop="epoll", **options):
    with Backend(echo) as backend, Backend(lambda one: [None for _ in iter(lambda: one.recv(1 << 16), b"")]) as shadow:
        if options.pop("mirrored", False):
            options["mirror"] = address_text(shadow.address)
        with Proxy(backend.address, loop=loop, confine=False, half_close_timeout="700ms", idle_timeout="30s",
                   connect_timeout="1s", **options) as proxy:
            pid = proxy.worker()
            with proxy.connect() as silent:
                silent.sendall(b"before")
                equal(read_exactly(silent, 6), b"before")
                idle = count_open(pid)
                for error in errors:
                    outcomes = {}
                    # A call that this machine does not have is no fault of anybody: strace takes "?" to mean "if there
                    # is one".
                    inject = ",".join("?" + call for call in calls.split(","))
                    with strace(pid, "-e", "trace=" + inject,
                                "-e", "inject=%s:error=%s:when=1+%d" % (inject, error, every)):
                        talk_all(proxy, outcomes)
                    note("%s %s: %s" % (calls, error, ", ".join("%s %d" % item for item in sorted(outcomes.items()))))
                    # A socket that is not closed after all ends nothing.
                    if calls != "close":
                        equal(outcomes.get("hang", 0), 0, "connections left hanging, with %s in %s" % (error, calls))
                    # Without setsockopt(SO_LINGER) there are no resets; and EPIPE is said of a peer that is no longer
                    # there, which these are.
                    if "setsockopt" not in calls and error != "EPIPE":
                        equal(outcomes.get("cut short", 0), 0, "cut short and ended, with %s in %s" % (error, calls))
                    assert proxy.worker_pids() == [pid], "the worker died of %s in %s: %s" % (error, calls,
                                                                                         proxy.errors())
                outcomes = {}
                talk_all(proxy, outcomes)
                equal(outcomes, {"right": 8}, "all is well again after failing %s" % calls)
                silent.sendall(b"after")
                equal(read_exactly(silent, 5), b"after")
                if calls != "close":  # what is made to fail is not done
                    until(lambda: count_open(pid) <= idle, 8, "no socket left: %d, before %d" % (count_open(pid), idle))


for calls, errors, every in FAULTS:
    @case("failing %s: the proxy survives, nothing hangs, no byte is wrong or missing unnoticed",
          calls.replace(",", ", "), limit=40)
    def fails(_, calls=calls, errors=errors, every=every):
        sweep(calls, errors, every)

for calls, errors, every in MIRRORED:
    @case("with a shadow, failing %s: the same", calls.replace(",", ", "), limit=40)
    def mirror_fails(_, calls=calls, errors=errors, every=every):
        sweep(calls, errors, every, mirrored=True)

for calls, errors, every in RING:
    @case("with --loop io_uring, failing %s: the same", calls.replace(",", ", "), limit=40)
    def ring_fails(_, calls=calls, errors=errors, every=every):
        sweep(calls, errors, every, loop="io_uring")


if __name__ == "__main__":
    main()
