#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice trace at tier (a), where a kernel lets programs see its functions: what is copied is measured."""

import json
import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from harness import SLUICE, Skip, case, equal, main, note  # noqa: E402

import guest  # noqa: E402

JUDGE, SENDER = sys.argv[2:4]
del sys.argv[2:4]
FILES = [(SLUICE, "/bin/sluice"), (JUDGE, "/bin/judge"), (SENDER, "/bin/sender")]
BYTES = 8 << 20
linear = guest.once(files=FILES, network="virtio-net-pci")  # QEMU's user network: no scatter-gather
gather = guest.once(files=FILES, network="e1000")


def booted(once):
    try:
        return once()
    except guest.Unavailable as reason:
        raise Skip(str(reason)) from reason


def done(machine, command, limit=60):
    result = machine.run(command, limit=limit)
    equal(result.code, 0, result.out.decode() + result.err.decode())
    return result.out.decode()


def trace(machine, command):
    return json.loads(done(machine, "sluice trace --json --rows 0 --tier a --frequency 0 -- " + command).splitlines()[-1])


def receive(machine, how):
    """Trace sender in the guest, and take what it sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def take():
        connection, _ = listener.accept()
        with connection:
            taken.append(0)
            while piece := connection.recv(1 << 20):
                taken[0] += len(piece)
            connection.sendall(b"!")

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    report = trace(machine, f"sender {guest.HOST} {listener.getsockname()[1]} {BYTES} {how}")
    thread.join(10)
    listener.close()
    equal(taken, [BYTES])
    return report


def flow(report, mechanism, into):
    found = [row for row in report["flows"] if row["mechanism"] == mechanism and into in row["sink"]["name"]]
    equal(len(found), 1, report["flows"])
    return found[0]


def softirq(report):
    return sum(entry["bytes"] for entry in report["unattributed"])


@case("every receipt of libsluice's routes agrees with what the kernel's functions were seen to copy", limit=200)
def _():
    said = done(booted(linear), "sluice trace --check --tier a")
    note(said.splitlines()[-1])
    assert said.splitlines()[-1].startswith("tier (a): "), said
    assert " 0 do not;" in said.splitlines()[-1], said


@case("a receipt that lies about a copy is caught, whichever of its rules lies", limit=300)
def _():
    said = done(booted(linear), "judge 2>&1", limit=250)
    note(said.splitlines()[0])
    assert "not ok" not in said and "# SKIP" not in said, said


@case("read and write through user space copy every byte twice, measured")
def _():
    report = trace(booted(linear), "dd if=/bin/judge of=/tmp/copy bs=65536")
    [row] = [row for row in report["flows"] if row["sink"]["name"] == "/tmp/copy"]
    size = int(done(booted(linear), "stat -c %s /bin/judge"))
    equal((report["tier"], row["first"], row["mechanism"], row["bytes"], row["copied"], row["evidence"]),
          ("a", "read", "write", size, 2 * size, "measured"))


@case("over a device with scatter-gather sendfile copies nothing, and send once")
def _():
    report = receive(booted(gather), "sendfile")
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"]), (BYTES, 0))
    assert softirq(report) <= BYTES // 100, report["unattributed"]
    row = flow(receive(booted(gather), "send"), "send", guest.HOST)
    equal(row["bytes"], BYTES)
    assert abs(row["copied"] - BYTES) <= BYTES // 100, row


@case("MSG_ZEROCOPY over that device copies nothing, and the notifications say so")
def _():
    row = flow(receive(booted(gather), "zerocopy"), "MSG_ZEROCOPY", guest.HOST)
    equal(row["bytes"], BYTES)
    assert row["copied"] <= BYTES // 100, row


@case("over a device without scatter-gather sendfile is found to copy all the same, in the kernel")
def _():
    report = receive(booted(linear), "sendfile")
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"], row["copier"]), (BYTES, BYTES, "skb_copy_and_csum_bits"))
    # As much of it as softirq sends, when the window opens, belongs to nobody; now and then that is nothing.
    assert softirq(report) <= BYTES, report["unattributed"]


main()
