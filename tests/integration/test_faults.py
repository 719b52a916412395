#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""System calls of a running server made to fail by strace: it survives, others are served, and no answer is wrong. An
answer may be an error, or broken off; what is complete is right."""

import os
import ssl
import time

from harness import (RESET, SANITIZED, TLS, Broken, Client, Server, case, content, equal, get, main, new_root, note,
                     same_bytes, strace, write)

root = new_root()
FILES = {"/empty": b"", "/small": b"inside", "/middle": content(40_000), "/large": content(3_000_000)}
for name, data in FILES.items():
    write(root, name[1:], data=data)
write(root, "sub", "deep", "file", data=b"deep")
FILES["/sub/deep/file"] = b"deep"


def judged(response, expected):
    """What became of a request: right, an error, or cut short; raises for a wrong answer."""
    if response.status == 200:
        same_bytes(response.body, expected[:len(response.body)])
        return "right" if response.complete else "cut short"
    assert response.status in (403, 404, 500, 503), response
    return "%d" % response.status


def ask_all(server, rounds, outcomes):
    for number in range(rounds):
        # A file of a new name: it has to be looked up and opened.
        name = "/new-%s-%d" % (outcomes["number"], number)
        write(root, name[1:], data=name.encode())
        for target, expected in [*FILES.items(), (name, name.encode()), ("/sub/", None), ("/sub/deep/", None)]:
            try:
                with Client(server, timeout=3) as client:
                    response = client.get(target)
                    if expected is None:
                        outcome = str(response.status)
                        assert response.status in (200, 403, 404, 500, 503), response
                        assert response.status != 200 or not response.complete or b"</html>" in response.body
                    else:
                        outcome = judged(response, expected)
                    if response.complete and response["Connection"] != "close":
                        again = client.get("/small")
                        judged(again, FILES["/small"])
            except (Broken, BrokenPipeError, *RESET):
                outcome = "no answer"
            except TimeoutError:
                outcome = "hang"
            except ssl.SSLError as error:
                assert "ALERT" in error.reason, error
                outcome = "alert"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        os.unlink(os.path.join(root, name[1:]))


# What fails, with which errors, every n-th time.
# Never EAGAIN where the loop waits for an edge: the kernel says EAGAIN only when an edge will follow.
FAULTS = [
    ("openat2", ("EMFILE", "ENFILE", "EACCES", "ENOMEM", "EIO", "EINTR", "EAGAIN", "ELOOP", "ESTALE"), 3),
    ("fstat,newfstatat,statx", ("EIO", "ENOMEM"), 3),
    ("fstatfs", ("EIO", "EINTR"), 2),
    ("accept4", ("EMFILE", "ENFILE", "ECONNABORTED", "ENOMEM", "EINTR", "EPROTO", "EPERM"), 3),
    ("epoll_ctl", ("ENOMEM", "ENOSPC"), 3),
    ("epoll_pwait,epoll_wait,epoll_pwait2", ("EINTR",), 2),
    ("sendfile", ("EIO", "EINVAL", "ENOMEM", "EPIPE", "EINTR", "EOVERFLOW"), 2),
    ("sendto,sendmsg", ("ENOBUFS", "ENOMEM", "EPIPE", "ECONNRESET", "EINTR"), 3),
    ("recvfrom,recvmsg", ("ECONNRESET", "EINTR", "ENOMEM", "ETIMEDOUT"), 3),
    ("preadv2", ("EOPNOTSUPP", "EIO", "EAGAIN", "ENOSYS"), 1),
    ("inotify_add_watch", ("ENOSPC", "ENOMEM", "EACCES"), 1),
    ("getdents64", ("EIO", "ENOENT", "ENOTDIR"), 1),
    ("mmap", ("ENOMEM",), 2),
    ("setsockopt,getsockopt", ("ENOPROTOOPT", "EINVAL", "ENOMEM"), 3),
    ("ioctl", ("ENOTTY", "EPERM"), 1),
    ("lseek", ("EINVAL", "EIO"), 2),
    ("fadvise64,readahead", ("EINVAL", "EIO"), 1),
    ("clone3,clone", ("EAGAIN", "ENOMEM"), 1),
    ("shutdown", ("ENOTCONN",), 1),
    ("close", ("EINTR", "EIO"), 3),
]
ROUTES = [
    (["--route", "splice"], "splice", ("EIO", "EINVAL", "ENOMEM", "EPIPE", "EINTR"), 2),
    (["--route", "splice"], "pipe2", ("EMFILE", "ENFILE", "ENOMEM"), 1),
    (["--route", "splice"], "fcntl", ("EPERM", "EBUSY", "EINVAL"), 2),
    (["--route", "copy"], "pread64,preadv,preadv2,read", ("EIO", "EINTR", "EISDIR"), 2),
    (["--route", "mmap"], "mmap", ("ENOMEM", "ENODEV", "EACCES"), 1),
    (["--snapshot"], "pread64,preadv,preadv2,read", ("EIO", "EINTR"), 2),
]
if TLS:  # a file goes no other way then, and what is not about the connection is the same without it
    FAULTS = [
        ("accept4", ("EMFILE", "EINTR"), 3),
        ("sendto,sendmsg", ("ENOBUFS", "ENOMEM", "EPIPE", "ECONNRESET", "EINTR"), 3),
        ("recvfrom,recvmsg", ("ECONNRESET", "EINTR", "ENOMEM"), 3),
        ("preadv2", ("EOPNOTSUPP", "EIO", "EAGAIN"), 1),
        ("pread64,preadv,read", ("EIO", "EINTR"), 2),
        ("mmap", ("ENOMEM",), 2),
        ("getrandom", ("EINTR", "ENOSYS"), 2),
        ("epoll_ctl", ("ENOMEM",), 3),
    ]
    ROUTES = []
number = 0


def sweep(options, calls, errors, every):
    global number
    with Server(root, "--no-confine", "--loop", "epoll", *options) as server:  # strace does not see what a ring does
        pid = server.worker_pids()[0]
        get(server, "/")  # it has begun: a worker that cannot begin ends
        for error in errors:
            number += 1
            outcomes = {"number": number}
            # A call that this machine does not have is no fault of anybody: strace takes "?" to mean "if there is one".
            inject = ",".join("?" + call for call in calls.split(","))
            with strace(pid, "-e", "trace=" + inject, "-e", "inject=%s:error=%s:when=1+%d" % (inject, error, every)):
                ask_all(server, 2, outcomes)
            del outcomes["number"]
            note("%s %s: %s" % (calls, error, ", ".join("%s %d" % item for item in sorted(outcomes.items()))))
            equal(outcomes.get("hang", 0), 0, "requests that got nothing, with %s in %s" % (error, calls))
            assert server.worker_pids() == [pid], "the worker died of %s in %s: %s" % (error, calls, server.errors())
        # All is well again.
        deadline = time.monotonic() + 5
        for target, expected in FILES.items():
            while True:
                response = get(server, target)
                if response.status == 200 and response.body == expected or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            equal((response.status, response.body == expected), (200, True), target + " afterwards")


if SANITIZED:  # its allocator cannot live without mmap
    FAULTS = [fault for fault in FAULTS if fault[0] != "mmap"]
    ROUTES = [fault for fault in ROUTES if fault[1] != "mmap"]

for calls, errors, every in FAULTS:
    @case("failing %s: the server survives, nothing hangs and no answer is wrong", calls.replace(",", ", "), limit=40)
    def fails(_, calls=calls, errors=errors, every=every):
        sweep([], calls, errors, every)

for options, calls, errors, every in ROUTES:
    @case("with %s, failing %s: the server survives, nothing hangs and no answer is wrong", " ".join(options),
          calls.replace(",", ", "), limit=40)
    def route_fails(*_, options=options, calls=calls, errors=errors, every=every):
        sweep(options, calls, errors, every)


if __name__ == "__main__":
    main()
