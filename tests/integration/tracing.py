# SPDX-License-Identifier: MIT
"""What the tests of sluice trace share: running it, looking for rows in its report, and the other ends of sockets.

The programs that are traced are given as text, and run by this Python without its site packages: nothing of them is
ours but the calls that they make. They, and the tracer, are processes of their own; receivers and senders are threads
of the test, which is not traced.
"""

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from harness import PATIENCE, REPORT, SLUICE, Skip, equal, until

MIB = 1 << 20
PYTHON = [os.path.realpath(sys.executable), "-I", "-S", "-c"]
# What the kernel saw of its own functions is measured; at tier (b) the same figure follows from definition or probe.
KNOWN = ("by definition", "probed", "measured")

# The beginning of traced programs: system calls that Python has no name for.
CALLS = """
import ctypes, fcntl, mmap, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def address(view):
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
def connect(port):
    return socket.create_connection(("127.0.0.1", port))
"""
TEE, VMSPLICE, PROCESS_VM_READV = {"x86_64": (276, 278, 310), "aarch64": (77, 75, 270)}[os.uname().machine]


def needs_tracing():
    """Raises Skip where processes cannot be traced, else returns the best tier that this machine allows."""
    tier, notice = best_tier()
    if tier == "c":
        raise Skip("only tier (c) is possible here: run as root, with a kernel that lets root load BPF (%s)" %
                   notice[:120])
    return tier


@functools.lru_cache(maxsize=1)
def best_tier():
    done = subprocess.run([SLUICE, "trace", "--json", "-F0", "--", "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError("sluice trace -- true: exit code %d: %s" % (done.returncode, done.stderr))
    report = json.loads(done.stdout)
    return report["tier"], report["notice"]


class Report:
    """What --json said at the end, and what else came."""

    def __init__(self, text, code, errors):
        self.text, self.code, self.errors = text, code, errors
        lines = text.splitlines()
        assert lines, "no report; standard error: %s" % errors
        self.all = [json.loads(line) for line in lines]
        self.last = self.all[-1]
        self.tier = self.last["tier"]

    def __getitem__(self, name):
        return self.last[name]

    def rows(self, source=None, sink=None, mechanism=None, first=False, **fields):
        """Rows with these ends (a kind, or what the name ends with), mechanism and first mechanism (None: none)."""
        def is_end(end, wanted):
            return wanted is None or end["kind"] == wanted or end["name"].endswith(wanted)
        return [row for row in self["flows"]
                if is_end(row["source"], source) and is_end(row["sink"], sink) and
                mechanism in (None, row["mechanism"]) and first in (False, row["first"]) and
                all(row[field] == value for field, value in fields.items())]

    def row(self, *conditions, **more):
        found = self.rows(*conditions, **more)
        if len(found) != 1:
            raise AssertionError("%d rows are %s %s, expected one; the report has\n%s" % (
                len(found), conditions, more, self.summary()))
        return found[0]

    def expect(self, *conditions, moved, copies, evidence=KNOWN, slack=0, **more):
        """The one such row moved these bytes (up to slack more: headers), with so many copies of each."""
        row = self.row(*conditions, **more)
        assert moved <= row["bytes"] <= moved + slack, "%d bytes were moved, %d of headers at most; traced:\n%s" % (
            moved, slack, self.summary())
        equal_copies(row, copies, self)
        assert row["evidence"] in evidence, "evidence %s, expected %s:\n%s" % (
            row["evidence"], " or ".join(evidence), self.summary())
        return row

    def copied_between(self, source=None, sink=None):
        return sum(row["copied"] for row in self.rows(source, sink))

    def summary(self):
        return "\n".join("    %s: %s -> %s by %s%s: %d bytes, copied %d, %s a byte, %d unknown, %s (%s)" % (
            row["comm"], row["source"]["name"], row["sink"]["name"], row["first"] + " + " if row["first"] else "",
            row["mechanism"], row["bytes"], row["copied"], row["copies_per_byte"], row["unknown"], row["evidence"],
            row["copier"]) for row in self["flows"][:30])

    def found(self, *words):
        """The one finding with all these words."""
        matching = [finding for finding in self["findings"]
                    if all(word in finding["what"] + " " + (finding["advice"] or "") for word in words)]
        if len(matching) != 1:
            raise AssertionError("%d findings have %s:\n%s" % (
                len(matching), words, "\n".join("    %s\n        %s" % (finding["what"], finding["advice"])
                                                for finding in self["findings"])))
        return matching[0]


def equal_copies(row, copies, report):
    got = row["copies_per_byte"]
    if copies is None:
        equal(got, None, "copies per byte of a row with bytes of which nobody knows")
    elif got is None or abs(got - copies) > 0.01 * max(copies, 1):
        raise AssertionError("%s copies per byte, expected %s:\n%s" % (got, copies, report.summary()))


def at_best():
    """Options that ask for the best tier, without the second that finding out takes."""
    return ["--tier", needs_tracing()]


def check_errors(text):
    assert not REPORT.search(text), "a sanitizer reported:\n" + text[:8000]


def run(command, *options, code=0, wrap=(), cwd=None, env=None):
    """sluice trace OPTIONS -- COMMAND, as a CompletedProcess."""
    words = [*wrap, SLUICE, "trace", *options]
    if command:
        words += ["--", *command]
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="surrogateescape", check=False, cwd=cwd, env=env)
    check_errors(done.stderr)
    if code is not None:
        equal(done.returncode, code, "exit code of sluice trace; it said %r %r" % (
            done.stdout[-1000:], done.stderr[-3000:]))
    return done


def trace(command, *options, said="", samples=False, **more):
    """Trace a command from its start to its end. What the tracer, or the command, says on standard error must be
    exactly `said`. What the command prints goes elsewhere, since the report is on standard output."""
    tier = at_best() if "--tier" not in options else []
    with tempfile.TemporaryDirectory() as directory:
        output = os.path.join(directory, "report")
        more_options = [*tier, *([] if samples else ["-F0"])]  # samples take time at the end, and no row has any
        done = run(command, "--json", "--output", output, *more_options, *options, **more)
        equal(done.stderr, said, "standard error")
        with open(output, encoding="utf-8") as file:
            return Report(file.read(), done.returncode, done.stderr)


def trace_program(text, *arguments, options=(), **more):
    """Trace a program of Python, which finds its arguments in sys.argv[1:]."""
    return trace([*PYTHON, CALLS + text, *map(str, arguments)], *options, **more)


class Attached:
    """sluice trace on processes that run already, or will. Entered when it counts; .report afterwards."""

    def __init__(self, *options, samples=False, check=True):
        counted = [] if "--sample" in options else ["--sample", "100"]  # else a busy process is counted in part
        self.options = [*options, *at_best(), *counted, *([] if samples else ["-F0"])]
        self.check = check
        self.report = None

    def __enter__(self):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [SLUICE, "trace", "--json", "--interval", "50ms", *map(str, self.options)], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=self.errors)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, b"")),
                                       daemon=True)
        self.reader.start()
        try:
            until(lambda: self.lines or self.process.poll() is not None, 10, "the tracer's first report")
            if self.process.poll() is not None and not self.lines:
                raise AssertionError("sluice trace %s ended with code %d: %s" % (
                    self.options, self.process.returncode, self._said()))
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def _said(self):
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def wait(self, seconds=10):
        """Until it ends by itself."""
        self.process.wait(seconds * PATIENCE)

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if kind is None else signal.SIGKILL)
        self.process.wait(20 * PATIENCE)
        self.reader.join()
        self.process.stdout.close()
        said = self._said()
        self.errors.close()
        if kind is None:
            check_errors(said)
            self.report = Report(b"".join(self.lines).decode(), self.process.returncode, said)
            if self.check:
                equal(self.process.returncode, 0, "exit code of sluice trace (%s)" % said)


# ---- Other ends ----

def listen():
    """A listener on a port of loopback that is below those that connections get: ends are named by the lower one."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        lowest = int(file.read().split()[0])
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", random.randrange(max(lowest // 2, 1024), lowest)))


class Sink:
    """Takes connections on a port of loopback and throws away what comes (received: how much it was)."""

    def __init__(self, discard=True):
        self.listener = listen()
        self.port = self.listener.getsockname()[1]
        self.discard = discard  # without a copy: what is lent stays lent until then
        self.received = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    flags = socket.MSG_TRUNC if self.discard else 0
                    buffer = bytearray(MIB)
                    while got := connection.recv_into(buffer, MIB, flags):
                        self.received += got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


class Source:
    """Sends each connection the same bytes: a file, or `size` bytes of memory."""

    def __init__(self, size, per_connection=None):
        self.listener = listen()
        self.port = self.listener.getsockname()[1]
        self.size, self.per_connection = size, per_connection
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        block = memoryview(b"s" * MIB)
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection, contextlib.suppress(OSError):
                    if self.per_connection:
                        self.per_connection(connection)
                    for at in range(0, self.size, MIB):
                        connection.sendall(block[:min(MIB, self.size - at)])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def drain(address, request=b"", timeout=20):
    """Connect, send a request, and take what comes until the other side closes. Returns how many bytes came."""
    total = 0
    with socket.create_connection(address, timeout=timeout * PATIENCE) as connection:
        connection.sendall(request)
        buffer = bytearray(MIB)
        while got := connection.recv_into(buffer):
            total += got
    return total


def pause():
    """Longer than the tracer takes to look at what was counted (DRAIN_MS)."""
    time.sleep(0.3)
