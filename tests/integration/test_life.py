#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Starting, ending, workers that die, options, logs and receipts."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from harness import (LOCAL, PATIENCE, RECORD, SLUICE, TLS, Broken, Client, Server, Skip, case, content, digest, equal, get,
                     in_session, main, new_root, note, until, write)

MIB = 1 << 20
root = new_root()
write(root, "file.txt", data=b"inside")
write(root, "large.bin", data=content(20 * MIB))


def sluice(*arguments, **more):
    return subprocess.run([SLUICE, *arguments], capture_output=True, text=True, timeout=20 * PATIENCE, **more)


def refuses_connections(address):
    try:
        socket.create_connection(address, 2).close()
    except ConnectionRefusedError:
        return True
    return False


# ---- Ending ----

for number in (signal.SIGTERM, signal.SIGINT):
    @case("%s ends an idle server with code 0 within a second", number.name)
    def idle(name, number=number):
        with Server(root, workers=2) as server:
            with Client(server) as client:
                equal(client.get("/file.txt").body, b"inside")
                started = time.monotonic()
                server.signal(number)
                equal(server.wait(), 0)
                assert time.monotonic() - started < 1 * PATIENCE, "%.1f s" % (time.monotonic() - started)
            server.check_end()

    @case("%s: a download under way is completed, idle connections are closed, new ones refused", number.name)
    def drain(name, number=number):
        with Server(root, workers=2) as server:
            idle, slow = Client(server), Client(server, receive_buffer=8192)
            equal(idle.get("/file.txt").status, 200)
            slow.ask("/large.bin")
            head = slow.head()
            server.signal(number)
            idle.ended()
            until(lambda: refuses_connections(server.address), 2, "refused connections")
            assert server.process.poll() is None, "ended before the download"
            body = bytearray(slow.buffer)
            while len(body) < int(head["Content-Length"]):
                data = slow.socket.recv(1 << 20)
                assert data, "cut short at %d" % len(body)
                body += data
            equal(digest(body), digest(content(20 * MIB)))
            slow.buffer.clear()
            slow.ended()
            equal(server.wait(), 0)
            server.check_end()


@case("while it drains, a request that was half sent is answered, with Connection: close")
def half_sent():
    with Server(root) as server:
        with Client(server) as client, Client(server, receive_buffer=8192) as slow:
            slow.ask("/large.bin")
            slow.head()
            client.send("GET /file.txt HTTP/1.1\r\nHo")
            time.sleep(0.1)
            server.signal(signal.SIGTERM)
            time.sleep(0.2)
            client.send("st: a\r\n\r\n")
            response = client.response()
            equal((response.status, response.body, response["Connection"]), (200, b"inside", "close"))
            client.ended()
        equal(server.wait(), 0)
        server.check_end()


@case("--drain-timeout ends a download that does not, and the exit code says so")
def drain_timeout():
    with Server(root, "--drain-timeout", "300ms") as server:
        with Client(server, receive_buffer=8192) as slow:
            slow.ask("/large.bin")
            slow.head()
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            server.wait(5)
            assert 0.2 < time.monotonic() - started < 3 * PATIENCE
        server.check_end(code=1)


@case("a second SIGTERM ends it at once")
def twice():
    with Server(root) as server:
        with Client(server, receive_buffer=8192) as slow:
            slow.ask("/large.bin")
            slow.head()
            server.signal(signal.SIGTERM)
            time.sleep(0.2)
            assert server.process.poll() is None
            server.signal(signal.SIGTERM)
            server.wait(3)
        server.check_end(code=1)


@case("workers do not outlive a supervisor that is killed by SIGKILL")
def killed_supervisor():
    server = Server(root, workers=2)
    try:
        equal(len(server.worker_pids()), 2)
        server.signal(signal.SIGKILL)
        server.wait()
        until(lambda: not in_session(server.pid), 3, "the workers' end")
        until(lambda: refuses_connections(server.address), 3, "a closed socket")
    finally:
        server.kill()


# ---- Workers ----

@case("a worker killed by SIGKILL is replaced and said so; the other one goes on with its connections")
def replaced():
    with Server(root, workers=2) as server:
        clients = [Client(server) for _ in range(20)]
        for client in clients:
            equal(client.get("/file.txt").status, 200)
        before = server.worker_pids()
        equal(len(before), 2)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(server.worker_pids()) == 2 and before[0] not in server.worker_pids(), 5, "a new worker")
        until(lambda: re.search(r"worker [01].*died of SIGKILL", server.errors()), 3, "a word about it")
        alive = 0
        for client in clients:
            with contextlib.suppress(Broken, OSError):
                alive += client.get("/file.txt").body == b"inside"
            client.close()
        note("%d of 20 connections were the other worker's" % alive)
        for client in clients:
            client.close()
        for _ in range(40):
            equal(get(server, "/file.txt").body, b"inside")


@case("a worker killed again and again is replaced every time, with a pause that grows")
def again():
    with Server(root) as server:
        for _ in range(4):
            pid = until(server.worker_pids, 8, "a worker")[0]
            os.kill(pid, signal.SIGKILL)
            until(lambda: server.worker_pids() and pid not in server.worker_pids(), 8, "a new worker")
            equal(get(server, "/file.txt").body, b"inside")


@case("four workers serve, all of them under load, and each is one of the supervisor's children")
def workers():
    with Server(root, workers=4) as server:
        assert "4 workers" in server.output(), server.output()
        pids = server.worker_pids()
        equal(len(pids), 4)
        clients = [Client(server) for _ in range(200)]
        for client in clients:
            client.ask("/file.txt")
        for client in clients:
            equal(client.response().body, b"inside")
            client.close()


@case("without --workers there is one for each CPU that sluice may use")
def default_workers():
    with Server(root, workers=1) as server:
        pass
    command = [SLUICE, "serve", root, "--listen", LOCAL + ":0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        line = process.stdout.readline()
        count = len(os.sched_getaffinity(0))
        process.terminate()
        equal(process.wait(10 * PATIENCE), 0)
    assert "(%d worker" % count in line, line


# ---- Starting ----

@case("an address in use is a clear error and exit code 1")
def in_use():
    with socket.create_server((LOCAL, 0)) as taken:
        address = "%s:%d" % taken.getsockname()
        done = sluice("serve", root, "--listen", address)
    equal(done.returncode, 1)
    assert address in done.stderr and "EADDRINUSE" in done.stderr, done.stderr
    equal(done.stderr.count("\n"), 1)


@case("an address that is not this machine's is a clear error and exit code 1")
def not_ours():
    done = sluice("serve", root, "--listen", "192.0.2.1:0")
    equal(done.returncode, 1)
    assert "EADDRNOTAVAIL" in done.stderr, done.stderr


@case("a directory that is missing, or is a file, is a clear error and exit code 1")
def missing_directory():
    for path, name in ((root + "/none", "ENOENT"), (root + "/file.txt", "ENOTDIR")):
        done = sluice("serve", path, "--listen", LOCAL + ":0")
        equal(done.returncode, 1)
        assert path in done.stderr and name in done.stderr, done.stderr


@case("an unknown congestion control is a clear error and exit code 1")
def unknown_congestion():
    done = sluice("serve", root, "--listen", LOCAL + ":0", "--congestion", "nonsense")
    equal(done.returncode, 1)
    assert "nonsense" in done.stderr, done.stderr


def needs_congestion_control(name):
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control", encoding="ascii") as file:
        if name not in file.read().split():
            raise Skip("this kernel has no %s: modprobe tcp_%s as root, where it is a module" % (name, name))
    with socket.socket() as one:
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except PermissionError as error:
            raise Skip("%s is for root only (sysctl net.ipv4.tcp_allowed_congestion_control)" % name) from error


def congestion_controls(port):
    """Of the server's sides of established connections, as the kernel shows them."""
    if not shutil.which("ss"):
        raise Skip("needs ss to see it: apt-get install iproute2")
    shown = subprocess.run(["ss", "-tinHO", "state", "established", "sport", "=", ":%d" % port],
                           capture_output=True, text=True, check=True).stdout
    return [" ".join(re.findall(r"\b(?:reno|cubic|bbr)\b(?!:)", line)) for line in shown.splitlines()]


for name in ("reno", "cubic", "bbr"):
    @case("--congestion %s: every accepted connection has it, and bodies large and small are the right bytes", name)
    def congestion(name):
        needs_congestion_control(name)
        with Server(root, "--congestion", name, workers=2) as server, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(server)) for _ in range(8)]
            for client in clients:
                for _ in range(2):
                    equal(client.get("/file.txt").body, b"inside")
                    equal(digest(client.get("/large.bin").body), digest(content(20 * MIB)))
                response = client.get("/large.bin", "Range: bytes=1-%d" % (3 * MIB))
                equal(digest(response.body), digest(content(20 * MIB)[1:3 * MIB + 1]))
            equal(congestion_controls(server.port), [name] * 8)


for arguments, words in (
        (["--lisen", "x"], ["--lisen", "--listen"]),
        (["--workers", "many"], ["--workers", "many"]),
        (["--workers", "0"], ["--workers"]),
        (["--workers"], ["--workers"]),
        (["--listen", "nonsense"], ["--listen"]),
        (["--listen", "127.0.0.1:99999"], ["--listen"]),
        (["--idle-timeout", "soon"], ["--idle-timeout", "soon"]),
        (["--route", "spilce"], ["spilce", "splice"]),
        (["--route", "reflink"], ["reflink", "file to tcp", "copy, mmap, sendfile, splice, direct."]),
        (["--route", "copy_file_range"], ["copy_file_range", "file to tcp", "sendfile"]),
        (["--route", "tee"], ["tee", "several sinks", "sendfile"]),
        (["--route", "vmsplice"], ["vmsplice", "must be memory", "sendfile"]),
        (["--route", "msg_zerocopy"], ["must be memory"]),
        (["--route", "uring_send_zc", "--loop", "io_uring"], ["must be memory"]),
        (["--route", "tcp_receive"], ["not a TCP connection"]),
        (["--route", "sendfile", "--snapshot"], ["--snapshot", "Routes that can: copy, direct."]),
        (["--index", "a/b"], ["--index"]),
        (["--index", ".hidden"], ["--index"]),
        (["one", "two"], ["two"]),
        (["--max-connections", "-1"], ["--max-connections"]),
        (["--snapshot=maybe"], ["--snapshot"])):
    @case("\"sluice serve %s\" is exit code 2 with a message that helps", " ".join(arguments))
    def usage(_, arguments=arguments, words=words):
        done = sluice("serve", *arguments, cwd=root)
        equal(done.returncode, 2, done.stderr)
        for word in [*words, "sluice serve"]:
            assert word in done.stderr, done.stderr
        equal(done.stdout, "")


@case("an unknown command is exit code 2 with the nearest name; no command prints the help")
def command():
    done = sluice("sreve")
    equal(done.returncode, 2)
    assert "sreve" in done.stderr and '"serve"' in done.stderr, done.stderr
    done = sluice()
    equal((done.returncode, done.stdout), (2, ""))
    assert "Usage" in done.stderr


@case("--help and --version go to standard output with exit code 0")
def help_and_version():
    for arguments in (["--help"], ["serve", "--help"], ["serve", "-h"]):
        done = sluice(*arguments)
        equal((done.returncode, done.stderr), (0, ""))
        assert "sage:" in done.stdout
    for option in ("--listen", "--workers", "--max-connections", "--congestion", "--index", "listing", "--snapshot",
                   "--route", "--header-timeout", "--idle-timeout", "--send-timeout", "--drain-timeout", "--access-log",
                   "--receipts", "confine"):
        assert option in sluice("serve", "--help").stdout, option
    for arguments in (["--version"], ["serve", "--version"]):
        done = sluice(*arguments)
        equal((done.returncode, done.stderr), (0, ""))
        assert re.match(r"sluice.* \d+\.\d+\.\d+", done.stdout), done.stdout


@case("help that cannot be written is no success")
def full():
    with open("/dev/full", "w", encoding="ascii") as nowhere:
        done = subprocess.run([SLUICE, "serve", "--help"], stdout=nowhere, stderr=subprocess.PIPE, timeout=20)
    assert done.returncode != 0, "exit code 0, though nothing was written"


@case("a listening socket on all addresses is served by name and number")
def everywhere():
    with Server(root, listen=":0") as server:
        equal(get(server, "/file.txt").body, b"inside")


# ---- Access log ----

LINE = re.compile(r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "((?:[^"\\]|\\.)*)" '
                  r'(\d{3}|-) (\d+|-) "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"')


def parsed(text):
    lines = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match, "not in the combined format: %r" % line
        lines.append(match.groups())
    return lines


@case("the access log has a line in the combined format for every request")
def access_log():
    log = os.path.join(new_root(), "access.log")
    with Server(root, "--access-log", log) as server:
        with Client(server) as client:
            client.get("/file.txt", "User-Agent: me/1.0", "Referer: http://there/")
            client.get("/none?query")
            client.get("/file.txt", method="HEAD")
            client.get("/file.txt", "Range: bytes=0-1")
            client.get("/large.bin")
            tag = client.get("/file.txt")["ETag"]
            client.get("/file.txt", "If-None-Match: " + tag)
            client.get("/file.txt", method="POST")
            client.get("/")
            client.get("/file.txt", version="1.0")
    with open(log, encoding="ascii") as file:
        lines = parsed(file.read())
    equal([(line[2], line[3]) for line in lines], [
        ("GET /file.txt HTTP/1.1", "200"), ("GET /none?query HTTP/1.1", "404"), ("HEAD /file.txt HTTP/1.1", "200"),
        ("GET /file.txt HTTP/1.1", "206"), ("GET /large.bin HTTP/1.1", "200"), ("GET /file.txt HTTP/1.1", "200"),
        ("GET /file.txt HTTP/1.1", "304"), ("POST /file.txt HTTP/1.1", "405"), ("GET / HTTP/1.1", "200"),
        ("GET /file.txt HTTP/1.0", "200")])
    equal(lines[0][0], LOCAL)
    equal((lines[0][4], lines[0][5], lines[0][6]), ("6", "http://there/", "me/1.0"))
    equal([line[4] for line in lines[2:7]], ["-", "2", str(20 * MIB), "6", "-"])
    equal(oct(os.stat(log).st_mode & 0o777), "0o640")


@case("no request line and no field can forge a line of the log or send an escape to a terminal")
def evil_log():
    with Server(root, "--access-log", "-") as server:
        header = server.output()
        for data in (b'GET /a"b\\c HTTP/1.1\r\nHost: a\r\nUser-Agent: x" 200 1 "forged\r\nReferer: \\"\r\n\r\n',
                     b"GET /\xff\xfe\x80 HTTP/1.1\r\nHost: a\r\nUser-Agent: \xc3\xa4\t\xff\r\n\r\n",
                     b"GET /%0a127.0.0.1%20-%20-%20forged HTTP/1.1\r\nHost: a\r\n\r\n",
                     b"GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n\r\n",
                     b"\x1b]0;title\x07\n\n", b"GET /\n127.0.0.1 - - forged\r\n\r\n",
                     b"GET /" + b"l" * 7000 + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"u" * 7000 + b"\r\n\r\n",
                     b"\0\0\0\0\r\n\r\n"):
            with Client(server) as client:
                client.send(data)
                client.response()
        server.stop()
        text = server.output()[len(header):]
    lines = parsed(text)
    equal(len(lines), 8)
    for line in text.splitlines():
        assert all(32 <= ord(c) < 127 for c in line), "a byte that is no visible ASCII: %r" % line
        assert len(line) < 4096
    assert "forged" not in [line[5] for line in lines] and lines[0][6].endswith("forged"), lines[0]


@case("a log that cannot be opened is a clear error and exit code 1")
def no_log():
    done = sluice("serve", root, "--listen", LOCAL + ":0", "--access-log", "/nonexistent/log")
    equal(done.returncode, 1)
    assert "/nonexistent/log" in done.stderr and "ENOENT" in done.stderr, done.stderr


@case("a reader of the log that does not read stalls nobody")
def stalled_log():
    reader, writer = os.pipe()
    process = subprocess.Popen([SLUICE, "serve", root, "--listen", LOCAL + ":0", "--workers", "1", "--access-log", "-"],
                               stdout=writer, stderr=subprocess.PIPE, start_new_session=True)
    os.close(writer)
    try:
        port = int(re.search(rb":(\d+)/", os.read(reader, 4096))[1])
        with Client((LOCAL, port)) as client:
            for _ in range(3000):
                equal(client.get("/file.txt", "User-Agent: " + "a" * 200).body, b"inside")
        process.terminate()
        equal(process.wait(10 * PATIENCE), 0)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()
        os.close(reader)


@case("a log file on a full disk stops nobody from being served")
def full_log():
    with Server(root, "--access-log", "/dev/full") as server:
        for _ in range(50):
            equal(get(server, "/file.txt").body, b"inside")


# ---- Receipts ----

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def amount(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


@case("a receipt for each connection: requests and bytes are those of heads and bodies, by reference or copied")
def receipts():
    with Server(root, "--receipts") as server:
        with Client(server) as client:
            port = client.socket.getsockname()[1]
            expected = 0
            for name in ("/large.bin", "/file.txt", "/none"):
                response = client.get(name)
                expected += len(response.head) + len(response.body)
        until(lambda: "receipt %s:%d" % (LOCAL, port) in server.errors(), 3, "the receipt")
        line = next(line for line in server.errors().splitlines() if "receipt %s:%d:" % (LOCAL, port) in line)
        assert "3 requests" in line, line
        total = amount(re.search(r"requests: ([\d.]+ \w+)", line)[1])
        assert abs(total - expected) <= expected * 0.01, "%s; sent %d" % (line, expected)
        for word in ("copied", "transformed") if TLS else ("by reference", "sendfile"):
            assert word in line, line


@case("the receipt of a small response is exact to the byte")
def exact():
    with Server(root, "--receipts") as server:
        with Client(server) as client:
            response = client.get("/file.txt")
        server.stop()
        sent = len(response.head) + len(response.body) + RECORD
        assert "1 request: %d B: " % sent in server.errors(), (sent, server.errors())
        assert "sluice serve: receipt: %d B: " % sent in server.errors(), server.errors()


@case("--receipts: the totals at the end are what clients got, of all workers")
def totals():
    with Server(root, "--receipts", workers=2) as server:
        expected = 0
        for number in range(40):
            response = get(server, "/file.txt" if number % 2 else "/none")
            expected += len(response.head) + len(response.body) + RECORD
        server.stop()
        text = server.errors()
    match = re.search(r"totals: (\d+) connections \((\d+) open\), (\d+) requests, "
                      r"responses: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx", text)
    equal(tuple(map(int, match.groups())), (40, 0, 40, 20, 0, 20))
    total = amount(re.search(r"sluice serve: receipt: ([\d.]+ \w+)", text)[1])
    assert abs(total - expected) <= 0.01 * expected + 60, (total, expected)
    equal(len(re.findall(r"^receipt ", text, re.M)), 40)


@case("SIGUSR1 prints the totals so far and the server goes on; a dead worker's are in them")
def report():
    with Server(root, workers=2) as server:
        for _ in range(10):
            get(server, "/file.txt")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        os.kill(server.worker_pids()[-1], signal.SIGKILL)
        until(lambda: len(server.worker_pids()) == 2, 5, "new workers")
        time.sleep(0.3)
        for _ in range(10):
            get(server, "/file.txt")
        server.signal(signal.SIGUSR1)
        until(lambda: "totals" in server.errors(), 3, "the totals")
        match = re.search(r"totals: (\d+) connections \(\d+ open\), (\d+) requests", server.errors())
        equal(tuple(map(int, match.groups())), (20, 20))
        equal(get(server, "/file.txt").body, b"inside")


@case("without --receipts nothing is printed to standard error")
def quiet():
    with Server(root) as server:
        get(server, "/large.bin")
        get(server, "/none")
        server.stop()
        equal(server.complaints(), "")


@case("a client that goes away in mid-download is counted with what it was sent, and not with the rest")
def unfinished():
    with Server(root, "--receipts") as server:
        with Client(server, receive_buffer=8192) as client:
            client.ask("/large.bin")
            client.head()
            client.reset()
        server.stop()
        total = amount(re.search(r"sluice serve: receipt: ([\d.]+ \w+)", server.errors())[1])
        assert 0 < total < 19 * MIB, server.errors()


if __name__ == "__main__":
    main()
