#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice trace at tier (a), where a kernel lets programs see its functions: what is copied is measured."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from harness import SLUICE, Skip, case, equal, main, note  # noqa: E402

import guest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "build/peers"
JUDGE, JUDGE_DEVICE, SENDER, TLS_PAIR = sys.argv[2:6]
del sys.argv[2:6]
FILES = [(SLUICE, "/bin/sluice"), (JUDGE, "/bin/judge"), (JUDGE_DEVICE, "/bin/judge-device"), (SENDER, "/bin/sender"),
         (TLS_PAIR, "/bin/tls-pair")]
BYTES = 8 << 20
LENDING = ("msg_zerocopy", "uring_send_zc")  # routes
PROGRAMS = ("cp", "cat", "curl")  # in place of busybox's


def programs():
    """Software that nobody here wrote: this machine's, and nginx as Debian has it."""
    done = subprocess.run([ROOT / "bench/peers", PEERS, "nginx"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise guest.Unavailable("nginx is not here: " + done.stderr.strip())
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        raise guest.Unavailable("not here: %s. apt-get install coreutils curl" % " ".join(missing))
    return [(PEERS / "root/usr/sbin/nginx", "/sbin/nginx"),
            *((os.path.realpath(shutil.which(name)), "/usr/local/bin/" + name) for name in PROGRAMS)]


# QEMU's user network: no scatter-gather.
linear = guest.once(lambda: {"files": FILES + programs(), "network": "virtio-net-pci", "disk": ["xfs", "btrfs", "ext4"],
                             "later": ["btrfs"], "modules": ["tls", "gcm", "ctr", "ghash_generic?", "aes_generic?"]})
gather = guest.once(files=FILES, network="e1000")


# Two guests and a wire between them; the second throws away what it is sent.
RECEIVER = "10.0.3.2"
WIRE = socket.socketpair()
wired = guest.once(files=FILES, network="e1000", link=(WIRE[0], "10.0.3.1"))
receiver = guest.once(network="e1000", link=(WIRE[1], RECEIVER))


if len(sys.argv) == 2:  # all cases: they boot while others run
    guest.early(gather, receiver, wired)


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
    said = done(machine, "sluice trace --json --rows 0 --tier a --frequency 0 -- " + command)
    return json.loads(said.splitlines()[-1])


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
    return sum(entry["bytes"] for entry in report["unattributed"] if not entry["in_calls"])


@contextlib.contextmanager
def discarding():
    """A service here that throws away what it is sent; its address as a guest sees it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def take():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(1 << 20, socket.MSG_TRUNC):
                        pass
    threading.Thread(target=take, daemon=True).start()
    try:
        yield "%s:%d" % (guest.HOST, listener.getsockname()[1])
    finally:
        listener.close()


def rows(report, comm, sink=None, **fields):
    return [row for row in report["flows"] if comm in (None, row["comm"]) and
            (sink is None or row["sink"]["name"] == sink or row["sink"]["kind"] == sink) and
            all(row[field] == value for field, value in fields.items())]


@functools.lru_cache(maxsize=None)
def checked():
    return done(booted(linear), "sluice trace --check --tier a", limit=120)


@case("every receipt of libsluice's routes agrees with what the kernel's functions were seen to copy", limit=200)
def _():
    said = checked()
    note(said.splitlines()[-1])
    assert said.splitlines()[-1].startswith("tier (a): "), said
    assert " 0 do not;" in said.splitlines()[-1], said


for device, once, right, wrong in (("without", linear, "linear", "gather"), ("with", gather, "gather", "linear")):
    @case("a receipt of what is sent by sendfile over a device %s scatter-gather is right, and caught when it lies",
          device, limit=120)
    def _(_, once=once, right=right, wrong=wrong):
        with discarding() as peer:
            said = done(booted(once), f"judge-device {peer} sendfile none {wrong} {right}")
        found = {words[0]: int(words[2]) for words in map(str.split, said.splitlines()) if len(words) == 3}
        equal(found, {"none": 0, wrong: 0, right: found.get(right) or 1}, said)


for device, once, noticed in (("without", linear, True), ("with", gather, False)):
    @case("a receipt of what is copied into a socket over a device %s scatter-gather counts the device's copy as well",
          device, limit=120)
    def _(_, once=once, noticed=noticed):
        with discarding() as peer:
            said = done(booted(once), f"judge-device {peer} mmap none sent")
        found = {words[0]: int(words[2]) for words in map(str.split, said.splitlines()) if len(words) == 3}
        equal(found, {"none": 0, "sent": found.get("sent") or 1 if noticed else 0}, said)


@case("read and write through user space copy every byte twice, measured", limit=120)
def _():
    report = trace(booted(linear), "dd if=/bin/judge of=/tmp/copy bs=65536")
    [row] = [row for row in report["flows"] if row["sink"]["name"] == "/tmp/copy"]
    size = int(done(booted(linear), "stat -c %s /bin/judge"))
    equal((report["tier"], row["first"], row["mechanism"], row["bytes"], row["copied"], row["evidence"]),
          ("a", "read", "write", size, 2 * size, "measured"))


@case("over a device with scatter-gather sendfile copies nothing, and send once", limit=120)
def _():
    report = receive(booted(gather), "sendfile")
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"]), (BYTES, 0))
    assert softirq(report) <= BYTES // 100, report["unattributed"]
    row = flow(receive(booted(gather), "send"), "send", guest.HOST)
    equal(row["bytes"], BYTES)
    assert abs(row["copied"] - BYTES) <= BYTES // 100, row


@case("MSG_ZEROCOPY over that device copies nothing, and the notifications say so", limit=120)
def _():
    row = flow(receive(booted(gather), "zerocopy"), "MSG_ZEROCOPY", guest.HOST)
    equal(row["bytes"], BYTES)
    assert row["copied"] <= BYTES // 100, row


@case("over a device without scatter-gather sendfile is found to copy all the same, in the kernel", limit=120)
def _():
    report = receive(booted(linear), "sendfile")
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"], row["copier"]), (BYTES, BYTES, "skb_copy_and_csum_bits"))
    # As much of it as softirq sends, when the window opens, belongs to nobody; now and then that is nothing.
    assert softirq(report) <= BYTES, report["unattributed"]


@case("MSG_ZEROCOPY over loopback: what is copied in softirqs all the same is the sender's, by the loan", limit=120)
def _():
    report = trace(booted(linear), f"""sh -c '
nc -l -p 99 </dev/null >/dev/null &
until grep -qs ":0063 .*:0000 0A " /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done
sender 127.0.0.1 99 {BYTES} zerocopy-unanswered'""")
    [row] = rows(report, "sender", "tcp", mechanism="MSG_ZEROCOPY")
    equal((row["bytes"], row["evidence"]), (BYTES, "measured"))
    assert BYTES <= row["copied"] <= BYTES * 11 // 10, row  # a segment that is sent again is copied again
    assert softirq(report) <= BYTES // 100, report["unattributed"]


@case("TLS in the kernel, whoever began with it: no copy of what is sent or received but for what a tracepoint saw",
      limit=120)
def _():
    size = 2 << 20
    for how, evidence in (("send", "measured"), ("sendfile", "probed"), ("send by-another", "measured")):
        report = trace(booted(linear), f"tls-pair {size} {how}")
        [row] = [row for row in rows(report, "tls-pair", "tcp", mechanism=how.split()[0]) if row["bytes"] >= size]
        equal((row["bytes"], row["copied"], row["unknown"], row["evidence"]), (size, 0, 0, evidence))
        assert row["sink"]["name"].startswith("tls "), row
        [row] = [row for row in rows(report, "tls-pair", "memory", mechanism="recv") if row["bytes"] >= size]
        equal((row["bytes"], row["unknown"]), (size, 0))
        assert row["source"]["name"].startswith("tls ") and row["copied"] < size // 4, row


# ---- What is lent ----

def lent(once, peer, route, *rules):
    """The judge's lines about the case from memory to the peer, and how many receipts disagree with each rule turned."""
    said = done(booted(once), f"judge-device {peer} {route} {' '.join(rules)}")
    cases = [line.split() for line in said.splitlines() if f" {route} " in line and "memory -> tcp" in line]
    return cases, {words[0]: int(words[2]) for words in map(str.split, said.splitlines()) if len(words) == 3}


@case("between two guests what is lent to a device with scatter-gather is not copied: receipts say so, and are right",
      limit=120)
def _():
    booted(wired)
    done(booted(receiver), "echo 'cat >/dev/null' >/bin/discard; chmod +x /bin/discard; "
                           "nc -ll -p 99 -e /bin/discard </dev/null >/dev/null 2>&1 &")
    for route in LENDING:
        cases, found = lent(wired, RECEIVER + ":99", route, "none", "lent")
        assert cases and "0.00 copies per byte" in " ".join(cases[0]) and "unknown" not in cases[0], cases
        equal(found, {"none": 0, "lent": found["lent"] or 1}, cases)
    report = trace(booted(wired), f"sender {RECEIVER} 99 {BYTES} zerocopy-unanswered")
    [row] = rows(report, "sender", "tcp", mechanism="MSG_ZEROCOPY")
    equal((row["bytes"], row["copied"], row["unknown"]), (BYTES, 0, 0))
    copied = {entry["function"]: entry["bytes"] for entry in report["unattributed"]}
    for function in ("skb_copy_ubufs", "skb_copy_and_csum_bits"):
        equal(copied.get(function, 0), 0, function)


@case("over a device without scatter-gather the kernel says that it did not copy, and did: receipts do not believe it",
      limit=120)
def _():
    with discarding() as peer:
        for route in LENDING:
            cases, found = lent(linear, peer, route, "none")
            equal(found, {"none": 0}, cases)
            assert cases and ("unknown" in cases[0] or "1.00 copies per byte" in " ".join(cases[0])), cases


@case("over loopback what is lent is copied: receipts say so, and are right", limit=120)
def _():
    said = checked()
    for route in LENDING:
        [line] = [line for line in said.splitlines() if f" {route} " in line and "memory -> tcp" in line]
        assert line.startswith("agrees") and "1.00 copies per byte" in line and "unknown" not in line, line


# ---- What is not hooked ----

MOUNT_BTRFS = """
if [ ! -e /disk/btrfs ]; then
    for module in /later/*; do insmod $module; done
    mkdir /disk/btrfs && mount -t btrfs /dev/vdb /disk/btrfs
fi
"""


@case("a file system whose module comes later is not hooked: its copies are known by definition, and the notice says so",
      limit=120)
def _():
    report = trace(booted(linear), f"""sh -c '{MOUNT_BTRFS}
dd if=/bin/judge of=/disk/btrfs/copy bs=65536
cat /bin/judge >/disk/btrfs/range'""")
    size = int(done(booted(linear), "stat -c %s /bin/judge"))
    assert "btrfs_buffered_write" in report["notice"], report["notice"]
    [row] = rows(report, None, "/disk/btrfs/copy")
    equal((row["bytes"], row["copied"], row["evidence"]), (size, 2 * size, "by definition"))
    report = trace(booted(linear), "dd if=/bin/judge of=/disk/btrfs/copy bs=65536")
    assert "btrfs" not in (report["notice"] or ""), report["notice"]
    [row] = rows(report, None, "/disk/btrfs/copy")
    equal((row["bytes"], row["copied"], row["evidence"]), (size, 2 * size, "measured"))


@case("a receipt that lies about a copy is caught, whichever of its rules lies", limit=300)
def _():
    said = done(booted(linear), MOUNT_BTRFS + "mkdir -p /disk/tmpfs && mount -t tmpfs none /disk/tmpfs && "
                                              "SLUICE_TEST_FILE_SYSTEMS=/disk judge 2>&1", limit=250)
    note(said.splitlines()[0])
    assert "not ok" not in said and "# SKIP" not in said, said


# ---- Software that nobody here wrote ----

NGINX = """
daemon off; master_process off; pid /tmp/pid; error_log /tmp/error.log crit;
events { }
http {
    access_log off; sendfile %s;
    client_body_temp_path /tmp/t1; proxy_temp_path /tmp/t2; fastcgi_temp_path /tmp/t3; uwsgi_temp_path /tmp/t4;
    scgi_temp_path /tmp/t5;
    server { listen 127.0.0.1:80; root /tmp/www; }
}"""


def served(sendfile):
    """What nginx and curl do for one file of BYTES."""
    machine = booted(linear)
    done(machine, "mkdir -p /tmp/www && dd if=/dev/zero of=/tmp/www/data bs=1M count=%d" % (BYTES >> 20))
    done(machine, "cat >/tmp/nginx.conf <<'END'\n%s\nEND" % (NGINX % sendfile))
    return trace(machine, """sh -c '
nginx -c /tmp/nginx.conf &
until curl -s -o /dev/null http://127.0.0.1/nothing; do sleep 0.05; done
curl -s -o /tmp/got http://127.0.0.1/data
kill %1; wait; rm /tmp/got'""")


@case("nginx with sendfile off: 2 copies a byte, measured; curl, which saves it, another 2", limit=120)
def _():
    report = served("off")
    [row] = rows(report, "nginx", "tcp", first="read", mechanism="send")
    equal((row["bytes"], row["copied"], row["evidence"]), (BYTES, 2 * BYTES, "measured"))
    saved = rows(report, "curl", "/tmp/got")
    equal(sum(row["bytes"] for row in saved), BYTES, saved)
    [row] = rows(report, "curl", "/tmp/got", first="recv", mechanism="write")
    equal((row["copied"], row["evidence"]), (2 * row["bytes"], "measured"))


@case("nginx with sendfile on: none of the kernel's functions copies the file", limit=120)
def _():
    report = served("on")
    [row] = rows(report, "nginx", "tcp", mechanism="sendfile")
    equal((row["bytes"], row["copied"]), (BYTES, 0))
    assert sum(row["copied"] for row in rows(report, "nginx", "tcp")) < 4096, rows(report, "nginx", "tcp")


@case("cp shares extents on XFS and btrfs; cat's copy_file_range copies once on tmpfs, and nothing on XFS: measured",
      limit=120)
def _():
    machine = booted(linear)
    done(machine, "for at in /tmp /disk/xfs /disk/btrfs; do cp /tmp/www/data $at/source; done; sync")
    for file_system in ("xfs", "btrfs"):
        report = trace(machine, f"cp /disk/{file_system}/source /disk/{file_system}/clone")
        [row] = rows(report, "cp", f"/disk/{file_system}/clone")
        equal((row["mechanism"], row["bytes"], row["copied"]), ("reflink", BYTES, 0))
    for where, copies in (("/tmp", 1), ("/disk/xfs", 0)):
        report = trace(machine, f"sh -c '/usr/local/bin/cat {where}/source >{where}/range'")
        [row] = rows(report, "cat", where + "/range")
        equal((row["mechanism"], row["bytes"], row["copied"], row["evidence"]),
              ("copy_file_range", BYTES, copies * BYTES, "measured"))


main()
