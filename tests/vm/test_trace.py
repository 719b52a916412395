#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice trace at tier (a), where a kernel lets programs see its functions: what is copied is measured."""

import concurrent.futures
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


DISKS = {"disk": ["xfs", "btrfs", "ext4"], "later": ["btrfs"]}
# QEMU's user network: no scatter-gather.
TLS = ["tls", "gcm", "ctr", "ghash_generic?", "aes_generic?"]
linear = guest.once(lambda: {"files": FILES + programs(), "network": "virtio-net-pci", "modules": TLS, **DISKS})
gather = guest.once(files=FILES, network="e1000")
apart = guest.once(files=FILES, modules=TLS, **DISKS)  # the same as linear, for half of the work


# Two guests and a wire between them; the second throws away what it is sent.
RECEIVER = "10.0.3.2"
WIRE = socket.socketpair()
wired = guest.once(files=FILES, network="e1000", link=(WIRE[0], "10.0.3.1"))
receiver = guest.once(network="e1000", link=(WIRE[1], RECEIVER))


lanes = {}  # machine: what it has to do


def on(machine, name, *arguments, limit=300):
    """A case on this guest. Guests work beside each other: a program that is traced waits half of its time, as Linux
    takes a grace period of RCU for each function that it stops watching."""
    def register(function):
        outcome = concurrent.futures.Future()

        def carry_out():
            try:
                outcome.set_result(function(*arguments))
            except Exception as error:
                outcome.set_exception(error)

        def take(*_):
            if not beside:
                carry_out()
            outcome.result()
        lanes.setdefault(machine, []).append(carry_out)
        case(name, *arguments, limit=limit)(take)
        return function
    return register


beside = len(sys.argv) == 2  # all cases


def begin():
    def work(tasks):
        for task in tasks:
            task()
        threading.Event().wait()  # the kernel ends QEMU with the thread that started it (guest._die_with_parent)
    for tasks in lanes.values() if beside else ():
        threading.Thread(target=work, args=(tasks,), daemon=True).start()


def booted(once):
    try:
        return once()
    except guest.Unavailable as reason:
        raise Skip(str(reason)) from reason


def done(machine, command, limit=150):
    result = machine.run(command, limit=limit)
    equal(result.code, 0, result.out.decode() + result.err.decode())
    return result.out.decode()


def trace(machine, command):
    said = done(machine, "sluice trace --json --rows 0 --tier a --frequency 0 -- " + command)
    return json.loads(said.splitlines()[-1])


def receive(machine, *ways):
    """Trace sender in the guest, once for each way, and take what it sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken = []

    def take():
        for _ in ways:
            connection, _ = listener.accept()
            with connection:
                taken.append(0)
                while piece := connection.recv(1 << 20):
                    taken[-1] += len(piece)
                connection.sendall(b"!")

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    sender = f"sender {guest.HOST} {listener.getsockname()[1]} {BYTES} "
    report = trace(machine, "sh -c '%s'" % " && ".join(sender + way for way in ways))
    thread.join(10)
    listener.close()
    equal(taken, [BYTES] * len(ways))
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


# ---- What is not hooked ----

MOUNT_BTRFS = """
if [ ! -e /disk/btrfs ]; then
    for module in /later/*; do insmod $module; done
    mkdir /disk/btrfs && mount -t btrfs /dev/vdb /disk/btrfs
fi
"""


@on(linear,
    "a file system whose module comes later is not hooked: its copies are known by definition, and the notice says so")
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


# ---- Receipts ----

def lent(said, route):
    """The judge's lines about the cases from memory to TCP."""
    return [line for line in said.splitlines() if f" {route} " in line and "memory -> tcp" in line]


@functools.lru_cache(maxsize=None)
def checked():
    return done(booted(apart), "sluice trace --check --tier a")


@on(apart, "every receipt of libsluice's routes agrees with what the kernel's functions were seen to copy")
def _():
    said = checked()
    note(said.splitlines()[-1])
    assert said.splitlines()[-1].startswith("tier (a): "), said
    assert " 0 do not;" in said.splitlines()[-1], said


@on(apart, "what the kernel's TLS encrypts out of pages nobody copies, and receipts say so")
def _():
    lines = [line for line in checked().splitlines() if " -> tls " in line]
    for route in ("sendfile", "splice", "tee", "vmsplice"):
        found = [line for line in lines if f" {route} " in line]
        assert found, checked()
        for line in found:
            assert line.startswith("agrees") and "0.00 copies per byte" in line and "unknown" not in line, line


@on(apart, "over loopback what is lent is copied: receipts say so, and are right")
def _():
    said = checked()
    for route in LENDING:
        lines = lent(said, route)
        equal(len(lines), 2 if route == "uring_send_zc" else 1, lines)  # by a ring also from registered memory
        for line in lines:
            assert line.startswith("agrees") and "1.00 copies per byte" in line and "unknown" not in line, line


@on(apart, "a receipt that lies about a copy is caught, whichever of its rules lies")
def _():
    said = done(booted(apart), MOUNT_BTRFS + "mkdir -p /disk/tmpfs && mount -t tmpfs none /disk/tmpfs && "
                                             "SLUICE_TEST_FILE_SYSTEMS=/disk judge 2>&1", limit=250)
    note(said.splitlines()[0])
    assert "not ok" not in said and "# SKIP" not in said, said


def judge(machine, peer, **trials):
    """What the judge says, and how many receipts disagree, by route and rule turned."""
    said = done(booted(machine), "judge-device %s %s" % (
        peer, " ".join(f"{route} {','.join(rules)}" for route, rules in trials.items())))
    found = {route: {} for route in trials}
    for words in map(str.split, said.splitlines()):
        if len(words) == 4 and words[0] in trials:
            found[words[0]][words[1]] = int(words[3])
    return said, found


@functools.lru_cache(maxsize=None)
def judged(machine):
    with discarding() as peer:
        return judge(machine, peer, sendfile=["none", "linear", "gather"], mmap=["none", "sent"],
                     **{route: ["none"] for route in LENDING})


for device, once, right, wrong in (("without", linear, "linear", "gather"), ("with", gather, "gather", "linear")):
    @on(once, "a receipt of what is sent by sendfile over a device %s scatter-gather is right, and caught when it lies",
        device)
    def _(_, once=once, right=right, wrong=wrong):
        said, found = judged(once)
        found = found["sendfile"]
        equal(found, {"none": 0, wrong: 0, right: found.get(right) or 1}, said)


for device, once, noticed in (("without", linear, True), ("with", gather, False)):
    @on(once,
        "a receipt of what is copied into a socket over a device %s scatter-gather counts the device's copy as well",
        device)
    def _(_, once=once, noticed=noticed):
        said, found = judged(once)
        equal(found["mmap"], {"none": 0, "sent": found["mmap"].get("sent") or 1 if noticed else 0}, said)


# ---- What is lent ----

@on(linear,
    "over a device without scatter-gather the kernel says that it did not copy, and did: receipts do not believe it")
def _():
    said, found = judged(linear)
    for route in LENDING:
        lines = lent(said, route)
        equal(found[route], {"none": 0}, said)
        assert lines and all("unknown" in line or "1.00 copies per byte" in line for line in lines), said


@on(wired, "between two guests what is lent to a device with scatter-gather is not copied: receipts say so, and are right")
def _():
    booted(wired)
    done(booted(receiver), "echo 'cat >/dev/null' >/bin/discard; chmod +x /bin/discard; "
                           "nc -ll -p 99 -e /bin/discard </dev/null >/dev/null 2>&1 &")
    said, found = judge(wired, RECEIVER + ":99", **{route: ["none", "lent"] for route in LENDING})
    for route in LENDING:
        lines = lent(said, route)
        # Each of them once as it is, and once with the rule turned over.
        for line in lines[:len(lines) // 2]:
            assert "0.00 copies per byte" in line and "unknown" not in line, said
        equal(found[route], {"none": 0, "lent": found[route]["lent"] or 1}, said)
    report = trace(booted(wired), f"sender {RECEIVER} 99 {BYTES} zerocopy-unanswered")
    [row] = rows(report, "sender", "tcp", mechanism="MSG_ZEROCOPY")
    equal((row["bytes"], row["copied"], row["unknown"]), (BYTES, 0, 0))
    copied = {entry["function"]: entry["bytes"] for entry in report["unattributed"]}
    for function in ("skb_copy_ubufs", "skb_copy_and_csum_bits"):
        equal(copied.get(function, 0), 0, function)


# ---- Mechanisms ----

@functools.lru_cache(maxsize=None)
def gathered():
    return receive(booted(gather), "sendfile", "send", "zerocopy")


@on(gather, "over a device with scatter-gather sendfile copies nothing, and send once")
def _():
    report = gathered()
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"]), (BYTES, 0))
    assert softirq(report) <= BYTES // 100, report["unattributed"]
    row = flow(report, "send", guest.HOST)
    equal(row["bytes"], BYTES)
    assert abs(row["copied"] - BYTES) <= BYTES // 100, row


@on(gather, "MSG_ZEROCOPY over that device copies nothing, and the notifications say so")
def _():
    row = flow(gathered(), "MSG_ZEROCOPY", guest.HOST)
    equal(row["bytes"], BYTES)
    assert row["copied"] <= BYTES // 100, row


@on(linear, "over a device without scatter-gather sendfile is found to copy all the same, in the kernel")
def _():
    report = receive(booted(linear), "sendfile")
    row = flow(report, "sendfile", guest.HOST)
    equal((row["bytes"], row["copied"], row["copier"]), (BYTES, BYTES, "skb_copy_and_csum_bits"))
    # As much of it as softirq sends, when the window opens, belongs to nobody; now and then that is nothing.
    assert softirq(report) <= BYTES, report["unattributed"]


@on(linear, "TLS in the kernel, whoever began with it: no copy of what is sent or received but for what a tracepoint saw")
def _():
    size = 2 << 20
    ways = {"one": ("send", "measured"), "two": ("sendfile", "probed"), "three": ("send by-another", "measured")}
    done(booted(linear), "for name in %s; do cp /bin/tls-pair /tmp/$name; done" % " ".join(ways))
    report = trace(booted(linear), "sh -c '%s'" % " && ".join(
        f"/tmp/{name} {size} {how}" for name, (how, _) in ways.items()))
    for name, (how, evidence) in ways.items():
        [row] = [row for row in rows(report, name, "tcp", mechanism=how.split()[0]) if row["bytes"] >= size]
        equal((row["bytes"], row["copied"], row["unknown"], row["evidence"]), (size, 0, 0, evidence))
        assert row["sink"]["name"].startswith("tls "), row
        [row] = [row for row in rows(report, name, "memory", mechanism="recv") if row["bytes"] >= size]
        equal((row["bytes"], row["unknown"]), (size, 0))
        assert row["source"]["name"].startswith("tls ") and row["copied"] < size // 4, row


@functools.lru_cache(maxsize=None)
def local():
    machine = booted(linear)
    done(machine, MOUNT_BTRFS + "dd if=/dev/zero of=/tmp/data bs=1M count=%d && " % (BYTES >> 20) +
         "for at in /tmp /disk/xfs /disk/btrfs; do cp /tmp/data $at/source; done; sync")
    return trace(machine, f"""sh -c '
dd if=/bin/judge of=/tmp/copy bs=65536
for at in xfs btrfs; do /usr/local/bin/cp /disk/$at/source /disk/$at/clone; done
for at in /tmp /disk/xfs; do /usr/local/bin/cat $at/source >$at/range; done
nc -l -p 99 </dev/null >/dev/null &
until grep -qs ":0063 .*:0000 0A " /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done
sender 127.0.0.1 99 {BYTES} zerocopy-unanswered'""")


@on(linear, "read and write through user space copy every byte twice, measured")
def _():
    [row] = [row for row in local()["flows"] if row["sink"]["name"] == "/tmp/copy"]
    size = int(done(booted(linear), "stat -c %s /bin/judge"))
    equal((local()["tier"], row["first"], row["mechanism"], row["bytes"], row["copied"], row["evidence"]),
          ("a", "read", "write", size, 2 * size, "measured"))


@on(linear, "MSG_ZEROCOPY over loopback: what is copied in softirqs all the same is the sender's, by the loan")
def _():
    [row] = rows(local(), "sender", "tcp", mechanism="MSG_ZEROCOPY")
    equal((row["bytes"], row["evidence"]), (BYTES, "measured"))
    assert BYTES <= row["copied"] <= BYTES * 11 // 10, row  # a segment that is sent again is copied again
    assert softirq(local()) <= BYTES // 100, local()["unattributed"]


@on(linear,
    "cp shares extents on XFS and btrfs; cat's copy_file_range copies once on tmpfs, and nothing on XFS: measured")
def _():
    for file_system in ("xfs", "btrfs"):
        [row] = rows(local(), "cp", f"/disk/{file_system}/clone")
        equal((row["mechanism"], row["bytes"], row["copied"]), ("reflink", BYTES, 0))
    for where, copies in (("/tmp", 1), ("/disk/xfs", 0)):
        [row] = rows(local(), "cat", where + "/range")
        equal((row["mechanism"], row["bytes"], row["copied"], row["evidence"]),
              ("copy_file_range", BYTES, copies * BYTES, "measured"))


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


@functools.lru_cache(maxsize=None)
def served():
    """What nginx and curl do for one file of BYTES, without sendfile and with it."""
    machine = booted(linear)
    done(machine, "mkdir -p /tmp/www && dd if=/dev/zero of=/tmp/www/data bs=1M count=%d" % (BYTES >> 20))
    for sendfile in ("off", "on"):
        done(machine, "cat >/tmp/%s.conf <<'END'\n%s\nEND" % (sendfile, NGINX % sendfile))
    return trace(machine, """sh -c '
for sendfile in off on; do
    nginx -c /tmp/$sendfile.conf &
    until curl -s -o /dev/null http://127.0.0.1/nothing; do sleep 0.05; done
    curl -s -o /tmp/got-$sendfile http://127.0.0.1/data
    kill $!; wait; rm /tmp/got-$sendfile
done'""")


@on(linear, "nginx with sendfile off: 2 copies a byte, measured; curl, which saves it, another 2")
def _():
    [row] = rows(served(), "nginx", "tcp", first="read", mechanism="send")
    equal((row["bytes"], row["copied"], row["evidence"]), (BYTES, 2 * BYTES, "measured"))
    saved = rows(served(), "curl", "/tmp/got-off")
    equal(sum(row["bytes"] for row in saved), BYTES, saved)
    [row] = rows(served(), "curl", "/tmp/got-off", first="recv", mechanism="write")
    equal((row["copied"], row["evidence"]), (2 * row["bytes"], "measured"))


@on(linear, "nginx with sendfile on: none of the kernel's functions copies the file")
def _():
    [row] = rows(served(), "nginx", "tcp", mechanism="sendfile")
    equal((row["bytes"], row["copied"]), (BYTES, 0))
    its = rows(served(), "nginx", "tcp", pid=row["pid"])
    assert sum(row["copied"] for row in its) < 4096, its


begin()
main()
