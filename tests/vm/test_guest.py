#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The guest that other tests rely on: what is asked of it arrives, and nothing that goes wrong in it stays unseen."""

import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from harness import SLUICE, Skip, case, equal, main, new_root, note, until  # noqa: E402

import guest  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
# ext4 needs modules that need modules, and one that only an alias names; the program needs libraries.
boot = guest.once(files=[(SLUICE, "/bin/sluice"), (HERE, "/taken")], modules=["tls"], network="e1000", disk="ext4")


def machine():
    try:
        return boot()
    except guest.Unavailable as reason:
        raise Skip(str(reason)) from reason


def fails(function, word):
    try:
        function()
    except guest.Failed as error:
        assert word in str(error), "%r is not in: %s" % (word, error)
        return
    raise AssertionError("it did not fail")


@case("a guest boots with Debian's kernel, not with this one", limit=200)
def _():
    booted = machine()
    note("%s, booted in %.1f s" % (booted.kernel.package, booted.boot_seconds))
    equal(booted.run("uname -r").out.decode().strip(), booted.kernel.release)
    assert booted.kernel.release != os.uname().release


@case("a command's output, its errors and its exit code arrive as they are")
def _():
    equal(machine().run("echo one; echo two >&2; echo three; exit 42"), guest.Result(42, b"one\nthree\n", b"two\n"))
    equal(machine().run("exit 0"), guest.Result(0, b"", b""))
    equal(machine().run("kill -9 $$").code, 137)
    equal(machine().run("printf '%s' \"it's \\\"quoted\\\"\n\"").out, b"it's \"quoted\"\n")


@case("bytes of every value arrive, and megabytes of them")
def _():
    equal(machine().run("for i in $(seq 0 255); do printf \"\\\\x$(printf %x $i)\"; done").out, bytes(range(256)))
    got = machine().run("dd if=/dev/urandom of=/tmp/random bs=1M count=3 2>/dev/null; sha256sum </tmp/random >&2; "
                        "cat /tmp/random; rm /tmp/random")
    equal(len(got.out), 3 << 20)
    equal(got.err.split()[0].decode(), hashlib.sha256(got.out).hexdigest())


@case("files are there as they are here")
def _():
    equal(machine().run("cat /taken/guest.py").out, pathlib.Path(guest.__file__).read_bytes())


@case("a program is there with the libraries it needs")
def _():
    here = subprocess.run([SLUICE, "--version"], capture_output=True, check=True)
    equal(machine().run("sluice --version"), guest.Result(0, here.stdout, here.stderr))


@case("a command that takes too long is killed with all that it started, and the next one runs")
def _():
    started = time.monotonic()
    equal(machine().run("sleep 1234 & sleep 1234", limit=1).code, 137)
    assert time.monotonic() - started < 20
    equal(machine().run("ps -o args | grep '[s]leep 1234'"), guest.Result(1, b"", b""))


@case("modules are loaded after what they depend on")
def _():
    loaded = {line.split()[0] for line in machine().run("cat /proc/modules").out.decode().splitlines()}
    assert {"tls", "ext4", "jbd2", "e1000"} <= loaded, loaded


@case("a disk is mounted")
def _():
    equal(machine().run("echo kept >/disk/file && cat /disk/file && stat -f -c %T /disk").out, b"kept\next2/ext3\n")


@case("a guest with a network reaches this machine's loopback")
def _():
    machine()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        result = machine().run("echo hello >/tmp/hello; nc %s %d </tmp/hello & sleep 1; true" % (
            guest.HOST, listener.getsockname()[1]))
        equal(result.code, 0)
        connection = listener.accept()[0]
        with connection:
            connection.settimeout(20)
            equal(connection.recv(100), b"hello\n")


@case("no guest outlives the program that booted it")
def _():
    machine()
    code = "import sys; sys.path.insert(0, %r); import guest; guest.Guest()" % HERE
    # Nobody cleans up after a program that is killed: in a directory that is removed at the end.
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": new_root()}) as program:
        children = pathlib.Path("/proc/%d/task/%d/children" % (program.pid, program.pid))
        qemu = until(lambda: [pid for pid in children.read_text(encoding="ascii").split()
                              if b"qemu" in pathlib.Path("/proc", pid, "cmdline").read_bytes()], 20, "QEMU runs")[0]
        program.kill()
        program.wait()
    until(lambda: not pathlib.Path("/proc", qemu).exists() or
          " Z " in pathlib.Path("/proc", qemu, "stat").read_text(encoding="ascii"), 10, "QEMU is gone")


@case("a module that cannot be loaded fails the boot, and is named")
def _():
    machine()
    fails(lambda: guest.Guest(modules=["kvm_intel"]), "-kvm_intel.ko")  # there is no such processor
    try:
        guest.Guest(modules=["no_such_module"])
    except guest.Unavailable as reason:
        assert "no_such_module" in str(reason), reason
    else:
        raise AssertionError("it booted")


@case("a guest that dies is an error that says what its kernel said")
def _():
    machine()
    with guest.Guest() as other:
        fails(lambda: other.run("echo c >/proc/sysrq-trigger"), "Kernel panic")


@case("a guest without its kernel says what would help")
def _():
    machine()
    os.environ["SLUICE_VM_PACKAGE"] = "/nowhere.deb"
    try:
        guest.Guest()
    except guest.Unavailable as reason:
        assert "SLUICE_VM_PACKAGE" in str(reason), reason
    else:
        raise AssertionError("it booted")
    finally:
        del os.environ["SLUICE_VM_PACKAGE"]


@case("a kernel that complained fails the run, whatever the command's exit code")  # the last one: it ends the guest
def _():
    machine().check()
    fails(lambda: machine().run("echo '<4>WARNING: CPU: 0 PID: 1 at nowhere (this is a test)' >/dev/kmsg; sleep 0.1"),
          "at nowhere")
    fails(lambda: machine().run("true"), "gone")


main()
