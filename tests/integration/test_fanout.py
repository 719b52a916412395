# SPDX-License-Identifier: MIT
"""sluice fanout: bytes, slow and dead sinks, what it says of them."""

import fcntl
import json
import os
import socket
import struct
import subprocess
import threading
import time

from harness import LOCAL, PATIENCE, SANITIZED, SLUICE, case, content, equal, main, new_root, note, same_bytes, until

SIZE = 6 * 1024 * 1024 + 4321


class Listener:
    """Accepts one connection and collects what comes, when it is told to; b"..." or the errno's name at the end."""

    def __init__(self, unix=None, reads=True, receive_buffer=None):
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind(unix or (LOCAL, 0))
        self.socket.listen(1)
        self.name = "unix:" + unix if unix else "tcp:%s:%d" % self.socket.getsockname()
        self.data = bytearray()
        self.error = None
        self.go = threading.Event()
        self.connected = threading.Event()
        if reads:
            self.go.set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        self.connection, _ = self.socket.accept()
        self.connected.set()
        self.go.wait()
        try:
            while piece := self.connection.recv(1 << 16):
                self.data += piece
        except OSError as error:
            self.error = error
        self.connection.close()

    def end(self):
        self.go.set()
        self.thread.join(20 * PATIENCE)
        assert not self.thread.is_alive(), "the connection does not end"
        self.socket.close()
        return bytes(self.data)


def fanout(*arguments, data=None, code=0, **more):
    done = subprocess.run([SLUICE, "fanout", *arguments], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=25 * PATIENCE, check=False, **more)
    assert done.returncode == code, "exit code %d: %s" % (done.returncode, done.stderr.decode())
    return done


def read(path):
    with open(path, "rb") as file:
        return file.read()


def report(done):
    return {sink["sink"]: sink for sink in json.loads(done.stdout)["sinks"]}


@case("files, a FIFO's reader, TCP, Unix and standard output all get every byte of a pipe")
def everywhere():
    root, data = new_root(), content(SIZE)
    tcp, unix = Listener(), Listener(unix=root + "/socket")
    os.mkfifo(root + "/fifo")
    got = []
    reader = threading.Thread(target=lambda: got.append(read(root + "/fifo")))
    reader.start()
    with open(root + "/file", "wb") as file:
        file.write(b"longer than before" * SIZE)
    done = fanout(root + "/file", tcp.name, unix.name, root + "/fifo", "-", data=data)
    reader.join(10)
    for what, bytes_ in (("file", read(root + "/file")), ("tcp", tcp.end()), ("unix", unix.end()), ("fifo", got[0]),
                         ("stdout", done.stdout)):
        same_bytes(bytes_, data, what)
    equal(done.stderr, b"")


@case("a file, a TCP connection and a Unix socket as input")
def inputs():
    root, data = new_root(), content(SIZE, 1)
    with open(root + "/in", "wb") as file:
        file.write(data)
    for route in ("auto", "tee", "copy"):
        fanout("--input", root + "/in", "--route", route, root + "/a", root + "/b")
        same_bytes(read(root + "/a"), data, route)
        same_bytes(read(root + "/b"), data, route)
    for unix in (None, root + "/socket"):
        server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        server.bind(unix or (LOCAL, 0))
        server.listen(1)

        def feed(server=server):
            connection, _ = server.accept()
            connection.sendall(data)
            connection.close()
        thread = threading.Thread(target=feed)
        thread.start()
        name = "unix:" + unix if unix else "tcp:%s:%d" % server.getsockname()
        fanout("-i", name, root + "/a", root + "/b")
        thread.join(10)
        server.close()
        same_bytes(read(root + "/a"), data, name)
        same_bytes(read(root + "/b"), data, name)


@case("an input that is a file is read from its position on, and left behind what was read")
def position():
    root, data = new_root(), content(100000)
    with open(root + "/in", "wb") as file:
        file.write(data)
    with open(root + "/in", "rb") as file:
        os.lseek(file.fileno(), 777, os.SEEK_SET)
        subprocess.run([SLUICE, "fanout", root + "/a", root + "/b"], stdin=file, check=True, timeout=20)
        equal(os.lseek(file.fileno(), 0, os.SEEK_CUR), 100000)
    same_bytes(read(root + "/a"), data[777:])
    same_bytes(read(root + "/b"), data[777:])


@case("--append appends, by copy, and leaves the other sinks by reference; fd:N writes at its position")
def append():
    root, data = new_root(), content(SIZE)
    for name in ("a", "b"):
        with open(root + "/" + name, "wb") as file:
            file.write(b"before")
    done = fanout("-a", "--json", root + "/a", "/dev/null", data=data)
    same_bytes(read(root + "/a"), b"before" + data)
    equal(list(report(done)[root + "/a"]["receipt"]["routes"]), ["copy"])
    with open(root + "/b", "r+b") as file:
        os.lseek(file.fileno(), 3, os.SEEK_SET)
        name = "fd:%d" % file.fileno()
        done = fanout("--json", name, root + "/c", data=data, pass_fds=[file.fileno()])
    same_bytes(read(root + "/b"), b"bef" + data)
    equal(list(report(done)[name]["receipt"]["routes"]), ["tee"])


@case("the report says of each sink what was copied: none into TCP, once into a file")
def receipts():
    root, data = new_root(), content(SIZE)
    tcp = Listener()
    sinks = report(fanout("--json", root + "/a", tcp.name, data=data))
    equal(sinks[tcp.name]["outcome"], "complete")
    equal(sinks[tcp.name]["receipt"]["by_reference"], SIZE)
    equal(sinks[tcp.name]["receipt"]["copy_bytes"], 0)
    equal(sinks[root + "/a"]["receipt"]["copy_bytes"], SIZE)
    same_bytes(tcp.end(), data)
    done = fanout("-v", root + "/a", "-", data=data)
    assert b"by reference" in done.stderr and b": complete: " in done.stderr, done.stderr
    done = fanout("--json", "-", root + "/a", data=data)
    same_bytes(done.stdout, data)
    equal(json.loads(done.stderr)["sinks"][0]["sink"], "-")


@case("by default a slow sink holds the others up, and loses nothing")
def block():
    root, data = new_root(), content(SIZE)
    slow = Listener(reads=False, receive_buffer=8192)
    with subprocess.Popen([SLUICE, "fanout", slow.name, root + "/a"], stdin=subprocess.PIPE) as process:
        feeder = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))
        feeder.start()
        time.sleep(1.5)  # longer than the patience of other policies
        assert process.poll() is None
        assert os.path.getsize(root + "/a") < SIZE
        same_bytes(slow.end(), data)
        feeder.join(10)
        equal(process.wait(10), 0)
    same_bytes(read(root + "/a"), data)


@case("--policy %s: a TCP sink that takes nothing is reset, with the first bytes right; the others get everything",
      "drop")
@case("--policy %s: a TCP sink that takes nothing is reset, with the first bytes right; the others get everything",
      "copy")
def slow_sink(policy):
    root, data = new_root(), content(24 * 1024 * 1024)
    slow, fast = Listener(reads=False), Listener(unix=root + "/socket")
    done = fanout("--policy", policy, "--buffer", "2M", "--patience", "200ms", "--json", slow.name, fast.name,
                  root + "/a", data=data, code=1)
    same_bytes(fast.end(), data)
    same_bytes(read(root + "/a"), data)
    sinks = report(done)
    equal([sinks[name]["outcome"] for name in (slow.name, fast.name, root + "/a")], ["dropped", "complete", "complete"])
    assert "too far behind" in sinks[slow.name]["error"], sinks[slow.name]["error"]
    assert b"connection reset" in done.stderr
    got = slow.end()
    assert isinstance(slow.error, ConnectionResetError), slow.error
    same_bytes(got, data[:len(got)])


@case("--policy first: a TCP sink that takes nothing is reset at once, without patience; the first gets everything")
def first():
    root, data = new_root(), content(24 * 1024 * 1024)
    slow, fast = Listener(reads=False, receive_buffer=1 << 16), Listener(unix=root + "/socket")
    begun = time.monotonic()
    done = fanout("--policy", "first", "--patience", "1min", "--json", fast.name, slow.name, data=data, code=1)
    assert time.monotonic() - begun < 30, "it was patient"
    same_bytes(fast.end(), data)
    sinks = report(done)
    equal([sinks[name]["outcome"] for name in (slow.name, fast.name)], ["dropped", "complete"])
    assert "too far behind the first" in sinks[slow.name]["error"], sinks[slow.name]["error"]
    assert sinks[fast.name]["receipt"]["routes"]["splice"]["bytes"] > 0, sinks[fast.name]
    got = slow.end()
    assert isinstance(slow.error, ConnectionResetError), slow.error
    same_bytes(got, data[:len(got)])


@case("--policy first: the first one's reader sees the end while another still has to read")
def first_ends():
    root, data = new_root(), content(600 * 1024)
    for kind in ("tcp", "unix"):
        ahead = Listener(unix=root + "/ahead" if kind == "unix" else None)
        behind = Listener(unix=root + "/behind." + kind, reads=False)
        with subprocess.Popen([SLUICE, "fanout", "--policy", "first", "--patience", "20s", ahead.name, behind.name],
                              stdin=subprocess.PIPE) as process:
            process.stdin.write(data)
            process.stdin.close()
            same_bytes(ahead.end(), data)
            equal(process.poll(), None)
            same_bytes(behind.end(), data)
            equal(process.wait(10), 0)


@case("--policy first: if the first fails or cannot be opened that is the end, of another it is not")
def first_fails():
    root, data = new_root(), content(SIZE)
    reader, writer = os.pipe()
    os.close(reader)
    dead = "fd:%d" % writer
    done = fanout("--policy", "first", dead, root + "/a", data=data, code=1, pass_fds=[writer])
    assert b"EPIPE" in done.stderr, done.stderr
    assert os.path.getsize(root + "/a") < SIZE
    done = fanout("--policy", "first", "--json", root + "/a", dead, data=data, code=1, pass_fds=[writer])
    os.close(writer)
    same_bytes(read(root + "/a"), data)
    equal([sink["outcome"] for sink in json.loads(done.stdout)["sinks"]], ["complete", "dropped"])
    os.remove(root + "/a")
    fanout("--policy", "first", root + "/nowhere/b", root + "/a", data=data, code=1)
    equal(os.path.getsize(root + "/a"), 0)
    done = fanout("--policy", "first", "--json", root + "/a", root + "/nowhere/b", data=data, code=1)
    same_bytes(read(root + "/a"), data)
    equal([sink["outcome"] for sink in json.loads(done.stdout)["sinks"]], ["complete", "not opened"])


@case("--policy copy: a sink that pauses gets everything, while the others run ahead of it")
def pause():
    root, data = new_root(), content(12 * 1024 * 1024)
    slow = Listener(unix=root + "/socket", reads=False)
    with subprocess.Popen([SLUICE, "fanout", "--policy", "copy", "--buffer", "32M", "--json", slow.name, root + "/a"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(data)
        process.stdin.close()
        until(lambda: os.path.getsize(root + "/a") == len(data), 10 * PATIENCE, "the file waits for the slow sink")
        with open("/proc/%d/status" % process.pid, encoding="ascii") as file:
            peak = int(file.read().split("VmHWM:")[1].split()[0])
        note("peak memory with 12 MiB kept for a slow sink: %d KiB" % peak)
        assert SANITIZED or peak < 40 * 1024, peak
        time.sleep(1.2)
        same_bytes(slow.end(), data)
        equal(process.wait(10), 0)
        sinks = json.loads(process.stdout.read())["sinks"]
        assert sinks[0]["receipt"]["routes"]["copy"]["bytes"] > 0


@case("memory stays bounded whatever goes through", sanitized=False)
def bounded():
    root = new_root()
    tcp = Listener()
    with subprocess.Popen([SLUICE, "fanout", "/dev/null", tcp.name, root + "/a"], stdin=subprocess.PIPE) as process:
        piece = content(1 << 20)
        for _ in range(200):
            process.stdin.write(piece)
        with open("/proc/%d/status" % process.pid, encoding="ascii") as file:
            peak = int(file.read().split("VmHWM:")[1].split()[0])
        process.stdin.close()
        equal(process.wait(20), 0)
    equal(len(tcp.end()), 200 << 20)
    assert peak < 10 * 1024, "%d KiB" % peak


@case("a reader that goes away: by default the end of all, with --policy drop not of the others, and no SIGPIPE")
def dead():
    root, data = new_root(), content(SIZE)
    for policy in ("block", "drop"):
        reader, writer = os.pipe()
        os.close(reader)
        name = "fd:%d" % writer
        done = fanout("--policy", policy, "--json", name, root + "/a", data=data, code=1, pass_fds=[writer])
        os.close(writer)
        words = {"block": ": ", "drop": " was given up: "}[policy]
        assert ("sluice fanout: " + name + words).encode() in done.stderr, done.stderr
        assert b"EPIPE" in done.stderr and done.stderr.count(b"\n") == 1, done.stderr
        if policy == "block":
            equal(report(done)[name]["outcome"], "failed")
        if policy == "drop":
            same_bytes(read(root + "/a"), data)
            equal(report(done)[name]["outcome"], "dropped")
    with subprocess.Popen([SLUICE, "fanout", "--json", root + "/a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.close()
        equal(process.wait(10), 1)


@case("a full disk ends that sink alone with --policy drop, and says why")
def full():
    root, data = new_root(), content(SIZE)
    done = fanout("--policy", "drop", "/dev/full", root + "/a", data=data, code=1)
    same_bytes(read(root + "/a"), data)
    assert b"ENOSPC" in done.stderr and b"/dev/full was given up" in done.stderr, done.stderr
    for sinks in (["/dev/full"], [root + "/b", "/dev/full"], [root + "/b", "/dev/full", root + "/c"]):
        done = fanout(*sinks, data=data, code=1)
        assert done.stderr.startswith(b"sluice fanout: /dev/full: ") and b"ENOSPC" in done.stderr, done.stderr


@case("an input that breaks, or sluice killed: TCP sinks are reset, not ended")
def broken():
    root = new_root()
    for how in ("input", "kill"):
        server = socket.socket()
        server.bind((LOCAL, 0))
        server.listen(1)
        tcp = Listener()
        with subprocess.Popen([SLUICE, "fanout", "-i", "tcp:%s:%d" % server.getsockname(), tcp.name, root + "/a"],
                              stderr=subprocess.PIPE) as process:
            source, _ = server.accept()
            source.sendall(b"some bytes")
            until(lambda tcp=tcp: bytes(tcp.data) == b"some bytes", 10, "the bytes do not arrive")
            if how == "input":
                source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                source.close()
                equal(process.wait(10), 1)
                assert b"ECONNRESET" in process.stderr.read()
            else:
                process.kill()
                process.wait(10)
                source.close()
        tcp.end()
        assert isinstance(tcp.error, ConnectionResetError), (how, tcp.error)
        server.close()


@case("a peer that sends to us still gets everything")
def chatty():
    data = content(SIZE)
    tcp = Listener(reads=False)
    with subprocess.Popen([SLUICE, "fanout", tcp.name], stdin=subprocess.PIPE) as process:
        tcp.connected.wait(10)
        tcp.connection.sendall(b"x" * 50000)
        feeder = threading.Thread(target=lambda: (process.stdin.write(data), process.stdin.close()))
        feeder.start()
        tcp.go.set()
        feeder.join(20)
        equal(process.wait(20), 0)
    same_bytes(tcp.end(), data)
    equal(tcp.error, None)


@case("sockets that others use, too, block as before when it has ended, well or not")
def shared_sockets():
    root = new_root()
    for arguments, code in ((("-", root + "/a"), 0), (("-", root + "/none/a"), 1)):
        ours, theirs = socket.socketpair()
        out, shared_out = socket.socketpair()
        with ours, theirs, out, shared_out:
            ours.sendall(b"data")
            ours.shutdown(socket.SHUT_WR)
            done = subprocess.run([SLUICE, "fanout", *arguments], stdin=theirs, stdout=shared_out, stderr=subprocess.PIPE)
            equal(done.returncode, code, done.stderr)
            for shared in (theirs, shared_out):
                equal(fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_NONBLOCK, 0, "O_NONBLOCK")
            if code == 0:
                equal(out.recv(10), b"data")


@case("what it cannot do it says: wrong usage, nothing there, the input as a sink")
def refusals():
    root = new_root()
    fanout(code=2)
    done = fanout("--route", "nonsense", root + "/a", code=2)
    assert b"nonsense" in done.stderr
    done = fanout("--policy", "nonsense", root + "/a", code=2)
    with open(root + "/kept", "wb") as file:
        file.write(b"as before")
    for route, sinks, words in (("reflink", 2, b"Routes that can: copy, tee."), ("tee", 1, b"Routes that can: copy, splice."),
                                ("vmsplice", 2, b"must be memory")):
        done = fanout("--route", route, *[root + "/kept", "/dev/null"][:sinks], data=b"x", code=2)
        assert route.encode() in done.stderr and words in done.stderr, done.stderr
    equal(read(root + "/kept"), b"as before", "a sink of a route that can never serve")
    with open(root + "/in", "wb") as file:
        file.write(b"a file")
    done = fanout("-i", root + "/in", "--route", "splice", root + "/made", "/dev/null")
    equal(read(root + "/made"), b"a file")
    done = fanout(*["/dev/null"] * 17, code=2)
    assert b"16 at most" in done.stderr, done.stderr
    done = fanout("tcp:127.0.0.1:1", "/dev/null", data=b"x", code=1)
    assert b"tcp:127.0.0.1:1: connecting: " in done.stderr and b"ECONNREFUSED" in done.stderr, done.stderr
    done = fanout("unix:" + root + "/none", data=b"x", code=1)
    assert b"ENOENT" in done.stderr
    done = fanout("-i", root + "/none", "/dev/null", code=1)
    assert b"ENOENT" in done.stderr
    with open(root + "/in", "wb") as file:
        file.write(b"bytes")
    done = fanout("-i", root + "/in", root + "/in", code=1)
    assert b"it is the input as well" in done.stderr
    equal(read(root + "/in"), b"bytes")
    fanout("fd:99", data=b"x", code=1)
    fanout(root + "/kept", root + "/none/a", data=b"x", code=1)
    equal(read(root + "/kept"), b"as before", "a file beside a sink that cannot be opened")
    fanout("tcp:nowhere.invalid:80", data=b"x", code=1)
    done = fanout("--policy", "drop", "--json", "unix:" + root + "/none", root + "/b", data=b"x", code=1)
    equal(read(root + "/b"), b"x")
    equal(report(done)["unix:" + root + "/none"]["outcome"], "not opened")
    fanout("--route", "tee", "-a", root + "/b", root + "/c", data=b"x", code=1)


@case("an empty input makes empty files; a lone sink and a silent producer are no special cases")
def edges():
    root = new_root()
    fanout(root + "/a", root + "/b", data=b"")
    equal(read(root + "/a") + read(root + "/b"), b"")
    fanout(root + "/a", data=b"one")
    equal(read(root + "/a"), b"one")
    with subprocess.Popen([SLUICE, "fanout", root + "/a", "-"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        for word in (b"now\n", b"and later\n"):
            process.stdin.write(word)
            process.stdin.flush()
            equal(process.stdout.readline(), word)
            time.sleep(0.1)
        flags = fcntl.fcntl(process.stdout.fileno(), fcntl.F_GETFL)
        assert not flags & os.O_NONBLOCK
        process.stdin.close()
        equal(process.wait(10), 0)
    equal(read(root + "/a"), b"now\nand later\n")


if __name__ == "__main__":
    main()
