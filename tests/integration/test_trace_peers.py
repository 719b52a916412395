#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice trace on software that nobody here wrote: what it really does with the bytes, and the copies of each.

What to expect was taken from the programs' own code and documentation, as said with each case, and seen with strace
where in doubt; the tracer had no part in it. nginx, HAProxy and Node come from Debian's packages, unpacked by
bench/peers; cp, dd, cat, Python and curl are the machine's.

Needs root, or CAP_BPF and CAP_PERFMON.
"""

import os
import pathlib
import shutil
import subprocess
import sys

from harness import Skip, case, content, equal, main, new_root, until
from peers import PEERS, fetch, servers, why_not
from tracing import MIB, Attached, Sink, Source, drain, needs_tracing, trace, trace_program

SIZE = 64 * MIB
HEADERS = 4096  # more than any of these programs says before the body
root = pathlib.Path(new_root())
data = root / "data"
with open(data, "wb") as file:
    for _ in range(SIZE // MIB):
        file.write(content(MIB))


def needs_peer(name):
    needs_tracing()
    fetch(name)


def file_system(path):
    done = subprocess.run(["stat", "-fc", "%T", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def fresh(name):
    path = root / name
    path.unlink(missing_ok=True)
    return path


def same(path):
    """What was moved is what was to be moved."""
    equal(subprocess.run(["cmp", data, path], check=False).returncode, 0, "cmp of %s" % path)
    os.unlink(path)


def get(server):
    """One file by HTTP. Returns the bytes that came, with their header."""
    address = ("127.0.0.1", server.port)
    got = drain(address, b"GET /data HTTP/1.0\r\n\r\n")
    assert SIZE < got <= SIZE + HEADERS, "%d bytes came" % got


def traced_server(server, request):
    """The report of a server and its workers while the request is made."""
    with Attached("-p", server.process.pid, samples=True) as tracer:
        request()
    return tracer.report


# ---- Servers ----

@case("nginx, sendfile off (its default): read + writev, 2 copies a byte, through nginx's buffers")
def nginx_copies():
    needs_peer("nginx")
    with servers.peer_server(PEERS, "nginx-copy", root / "nginx-copy", files=root) as server:
        report = traced_server(server, lambda: get(server))
    row = report.expect("/data", "tcp", "send", "read", moved=SIZE, copies=2)
    equal(row["comm"], "nginx")
    equal(report.rows("/data", "memory", "read"), [], "reading that went nowhere")
    found = report.found("nginx", "file -> tcp", "read + send", "2.0 copies per byte")
    assert "sendfile on" in found["advice"], found


@case("nginx, sendfile on: no copy, since the socket refers to the pages of the page cache")
def nginx_sends():
    needs_peer("nginx")
    with servers.peer_server(PEERS, "nginx", root / "nginx", files=root) as server:
        report = traced_server(server, lambda: get(server))
    report.expect("/data", "tcp", "sendfile", None, moved=SIZE, copies=0, evidence=("probed", "measured"))
    equal(report.rows("/data", "memory", "read"), [], "the file's bytes in nginx's memory")
    equal(sum(row["copied"] for row in report.rows(sink="tcp")) < HEADERS, True, "copies of headers only")


def forwarded(name):
    needs_peer("haproxy")
    with Source(SIZE) as source, \
            servers.peer_server(PEERS, name, root / name, upstream="127.0.0.1:%d" % source.port) as server:
        def fetch():
            got = drain(("127.0.0.1", server.port))
            equal(got, SIZE, "bytes that came")
        return source.port, server.port, traced_server(server, fetch)


@case("HAProxy as it comes: recv + send, 2 copies a byte, since it forwards through its buffers")
def haproxy_copies():
    upstream, port, report = forwarded("haproxy")
    row = report.expect("tcp", "tcp", "send", "recv", moved=SIZE, copies=2)
    assert str(upstream) in row["source"]["name"] and str(port) in row["sink"]["name"], row
    found = report.found("haproxy", "tcp -> tcp", "recv + send", "splicing is off, or never chosen")
    assert "option splice-response" in found["advice"], found


@case("HAProxy with option splice-response and pipes: splice both ways, no copy of all but its first buffers")
def haproxy_splices():
    upstream, port, report = forwarded("haproxy-splice")
    rows = report.rows("tcp", "tcp")
    equal(sum(row["bytes"] for row in rows), SIZE, "bytes forwarded")
    spliced = report.row("tcp", "tcp", "splice", "splice")
    assert spliced["bytes"] > 0.9 * SIZE and spliced["copied"] == 0, report.summary()
    assert str(upstream) in spliced["source"]["name"] and str(port) in spliced["sink"]["name"], spliced


@case("HAProxy with option splice-auto: what it splices is not copied, what it forwards by recv + send is, twice")
def haproxy_decides():
    # It splices when a stream has been fast for a while (stream.c: CF_STREAMER_FAST): how much that is, is its business.
    _, _, report = forwarded("haproxy-auto")
    rows = report.rows("tcp", "tcp")
    equal(sum(row["bytes"] for row in rows), SIZE, "bytes forwarded")
    copies = {("splice", "splice"): 0, ("recv", "send"): 2}
    for row in rows:
        equal(row["copied"], copies[row["first"], row["mechanism"]] * row["bytes"], report.summary())


# ---- Copying files ----

@case("cp: copy_file_range, in the kernel: 1 copy a byte on ext4 and tmpfs, which share no extents")
def cp():
    # coreutils 9: FICLONE first, then copy_file_range (copy.c).
    needs_tracing()
    kind = file_system(root)
    if kind not in ("ext2/ext3", "tmpfs"):
        raise Skip("needs the temporary directory on ext4 or tmpfs, it is on %s: set TMPDIR" % kind)
    copy = fresh("cp")
    report = trace(["cp", data, copy])
    report.expect("/data", "/cp", "copy_file_range", None, moved=SIZE, copies=1)
    equal(report.rows("/data", "/cp", "reflink"), [], "reflinks that moved something")
    same(copy)


@case("cp --sparse=always: read + write, 2 copies a byte, since it looks for zeros")
def cp_sparse():
    copy = fresh("cp-sparse")
    report = trace(["cp", "--sparse=always", data, copy])
    report.expect("/data", "/cp-sparse", "write", "read", moved=SIZE, copies=2)
    same(copy)


@case("cp --reflink=never: copy_file_range is left out, too: read + write, 2 copies a byte")
def cp_never():
    copy = fresh("cp-never")
    report = trace(["cp", "--reflink=never", data, copy])
    report.expect("/data", "/cp-never", "write", "read", moved=SIZE, copies=2)
    same(copy)


@case("dd: read + write of its one buffer, 2 copies a byte")
def dd():
    copy = fresh("dd")
    report = trace(["dd", "if=%s" % data, "of=%s" % copy, "bs=1M", "status=none"])
    row = report.expect("/data", "/dd", "write", "read", moved=SIZE, copies=2)
    equal(row["calls"], 128, "calls of 1 MiB")
    found = report.found("dd", "file -> file", "read + write")
    assert "cp" in found["advice"], found
    same(copy)


@case("dd iflag=direct: nothing is copied on the way in, 1 copy a byte in all")
def dd_direct():
    needs_tracing()
    kind = file_system(root)
    if kind not in ("ext2/ext3", "xfs"):
        raise Skip("needs the temporary directory on ext4 or XFS, it is on %s: set TMPDIR" % kind)
    copy = fresh("dd-direct")
    report = trace(["dd", "if=%s" % data, "of=%s" % copy, "bs=1M", "iflag=direct", "status=none"])
    report.expect("file (O_DIRECT)", "/dd-direct", "write", "read", moved=SIZE, copies=1)
    same(copy)


@case("cat into a file: copy_file_range, 1 copy a byte; into a pipe: read + write, 2, and its reader makes a third")
def cat():
    needs_tracing()
    kind = file_system(root)
    copy = fresh("cat")
    report = trace(["sh", "-c", 'exec cat "$0" >"$1"', data, copy])
    if kind in ("ext2/ext3", "tmpfs"):
        report.expect("/data", "/cat", "copy_file_range", None, moved=SIZE, copies=1)
    same(copy)
    report = trace(["sh", "-c", 'cat "$0" | wc -c >/dev/null', data])
    row = report.expect("/data", "pipe", "write", "read", moved=SIZE, copies=2)
    equal(row["comm"], "cat")
    row = report.expect("pipe", "memory", "read", None, moved=SIZE, copies=1)
    equal(row["comm"], "wc")


# ---- Python ----

@case("Python's os.sendfile to a socket: no copy; to a file: 1 copy a byte, into the page cache")
def python_sendfile():
    program = """
with open(sys.argv[1], "rb") as source, %s as sink:
    at = 0
    while got := os.sendfile(sink.fileno(), source.fileno(), at, 1 << 24):
        at += got
"""
    with Sink() as sink:
        report = trace_program(program % "connect(int(sys.argv[2]))", data, sink.port)
    report.expect("/data", "tcp", "sendfile", None, moved=SIZE, copies=0)
    copy = fresh("python-sendfile")
    report = trace_program(program % 'open(sys.argv[2], "wb")', data, copy)
    report.expect("/data", "/python-sendfile", "sendfile", None, moved=SIZE, copies=1)
    same(copy)


@case("Python's shutil.copyfile: sendfile, 1 copy a byte; its copyfileobj: read + write, 2")
def python_copies():
    # Since Python 3.8, copyfile tries sendfile (_fastcopy_sendfile in shutil.py); copyfileobj never does.
    copy = fresh("python-copyfile")
    report = trace_program("import shutil; shutil.copyfile(sys.argv[1], sys.argv[2])", data, copy)
    moved = report.row("/data", "/python-copyfile")
    assert moved["mechanism"] in ("sendfile", "copy_file_range"), moved  # the latter from Python 3.14 on
    equal((moved["bytes"], moved["copies_per_byte"]), (SIZE, 1.0), "bytes and copies\n" + report.summary())
    same(copy)
    copy = fresh("python-copyfileobj")
    report = trace_program("""
import shutil
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as sink:
    shutil.copyfileobj(source, sink)
""", data, copy)
    report.expect("/data", "/python-copyfileobj", "write", "read", moved=SIZE, copies=2)
    same(copy)


@case("Python's http.server: read + send, 2 copies a byte, since it copies with copyfileobj")
def python_http():
    needs_tracing()
    port = servers.free_port()
    with servers.Server("http.server", [sys.executable, "-I", "-m", "http.server", "--bind", "127.0.0.1", "--directory",
                                        root, str(port)], root / "http.server", announces=False, port=port) as server:
        report = traced_server(server, lambda: get(server))
    report.expect("/data", "tcp", "send", "read", moved=SIZE, copies=2)
    found = report.found("python", "file -> tcp")
    assert "sendfile" in found["advice"], found


# ---- Node ----

NODE = """
const fs = require("fs"), net = require("net"), { pipeline } = require("stream");
const sink = net.connect(Number(process.argv[3]), "127.0.0.1");
pipeline(fs.createReadStream(process.argv[2]), sink, error => { if (error) throw error; });
"""


@case("Node's pipeline from a file to a socket: read + write, 2 copies a byte; there is no sendfile behind it")
def node():
    # lib/internal/fs/streams.js reads by the thread pool into buffers of 64 KiB; the socket writes these.
    needs_peer("node")
    if os.geteuid() != 0 or not shutil.which("unshare"):
        raise Skip("needs root: Debian's Node looks for modules in /usr/share/nodejs, which takes a mount to put there")
    script = root / "pipeline.js"
    script.write_text(NODE, encoding="ascii")
    unpacked = PEERS / "root"
    with Sink() as sink:
        report = trace(["unshare", "--mount", "sh", "-c",
                        'mount --bind "$0/usr/share" /usr/share && exec "$0/usr/bin/node" "$@"', unpacked, script, data,
                        sink.port], env={**os.environ, **servers.peer_environment(PEERS)})
        until(lambda: sink.received == SIZE, 5, "what Node sent")
    equal(report.rows("/data", "tcp", "sendfile"), [], "rows of sendfile")
    row = report.expect("/data", "tcp", "send", "read", moved=SIZE, copies=2)
    equal(row["comm"], "node")
    found = report.found("node", "file -> tcp", "read + send")
    assert "no sendfile behind them" in found["advice"], found


# ---- curl ----

@case("curl downloading to a file: recv + write, 2 copies a byte, a part of them by way of stdio's buffer")
def curl():
    needs_tracing()
    if not shutil.which("curl"):
        raise Skip("needs curl: apt-get install curl")
    copy = fresh("curl")
    header = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE

    def answer(connection):
        connection.recv(4096)
        connection.sendall(header)
    with Source(SIZE, answer) as source:
        report = trace(["curl", "-s", "-o", copy, "http://127.0.0.1:%d/data" % source.port])
    # fwrite(3) writes whole blocks from where they are, and the rest from a buffer of its own, where curl copies them.
    row = report.row("tcp", "/curl", "write", "recv")
    assert str(source.port) in row["source"]["name"] and row["bytes"] > SIZE / 2, report.summary()
    equal(row["copies_per_byte"], 2.0)
    equal(sum(row["bytes"] for row in report.rows(sink="/curl")), SIZE, "bytes written\n" + report.summary())
    equal(sum(row["copied"] for row in report.rows(sink="/curl")) + report.copied_between("tcp", "memory"),
          2 * SIZE + len(header), "bytes copied\n" + report.summary())
    equal(os.path.getsize(copy), SIZE)
    found = report.found("curl", "tcp -> file", "recv + write")
    assert "splice" in found["advice"], found


# Before the cases, whose limits are no measure of a network.
for peer in ("nginx", "haproxy", "node"):
    why_not(peer)
main()
