#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sites by name, symbolic links, what is said and how fast: what differs from site to site."""

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

from harness import (LOCAL, PATIENCE, SLUICE, Broken, Client, Server, Skip, case, content, equal, get, main, new_root,
                     same_bytes, strace, together, until, write)

top = new_root()
first, second, plain = (os.path.join(top, name) for name in ("first", "second", "plain"))
for directory in (first, second, plain):
    write(directory, "file.txt", data=os.path.basename(directory).encode())
    write(directory, "sub", "file.txt", data=b"sub of " + os.path.basename(directory).encode())
write(first, "index.html", data=b"index of first")
write(first, "long.bin", data=content(40000))
write(second, "start.html", data=b"start of second")
write(second, "only-second.txt", data=b"only here")


def config(text, name="serve.conf"):
    return write(top, name, data=text.encode())


SITES = """
root = %s
header = X-All: all
header = X-Who: everybody
cache = *.txt = max-age=60

[host first.example *.first.example]
root = %s

[host second.example 127.0.0.9]
root = %s
index = start.html
listing = no
header = x-who: second
header = X-Second: 2
cache = /sub/* = no-store
""" % (plain, first, second)


def sites(*options, **more):
    """The directory is the file's."""
    return Configured(config(SITES), *options, **more)


class Configured(Server):
    """Told by a file what to serve."""

    def __init__(self, file, *options, **more):
        self.file = file
        super().__init__("--config=" + file, *options, **more)


# ---- Names ----

@case("a request is answered by the site that its Host names, however it is written")
def by_name():
    with sites() as server, Client(server) as client:
        for host, expected in (("first.example", b"first"), ("FIRST.Example:8080", b"first"),
                               ("first.example.", b"first"), ("www.first.example", b"first"),
                               ("a.b.first.example:1", b"first"), ("second.example", b"second"),
                               ("127.0.0.9", b"second"), ("xfirst.example", b"plain"), ("example", b"plain"),
                               ("www.second.example", b"plain"), ("[::1]", b"plain"), ("first.example", b"first")):
            equal(client.get("/file.txt", host=host).body, expected, host)
            equal(client.get("/sub/file.txt", host=host).body, b"sub of " + expected, host)
        client.send("GET http://second.example/file.txt HTTP/1.1\r\nHost: first.example\r\n\r\n")
        equal(client.response().body, b"second", "the target's authority counts more")
        equal(client.get("/file.txt", version="1.0", host=None).body, b"plain")


@case("each site has its own index and listing")
def own_options():
    with sites() as server, Client(server) as client:
        equal(client.get("/", host="first.example").body, b"index of first")
        equal(client.get("/", host="second.example").body, b"start of second")
        equal(client.get("/sub/", host="second.example").status, 403)
        assert b"file.txt" in client.get("/sub/", host="first.example").body
        equal(client.get("/sub", host="second.example").status, 301)
        equal(client.get("/only-second.txt", host="first.example").status, 404)
        equal(client.get("/only-second.txt", host="second.example").body, b"only here")


@case("hosts that nobody is named for are answered by the directory for all, else by the first site, or refused")
def unknown():
    bare = SITES.replace("root = %s\n" % plain, "", 1)
    with Configured(config(bare)) as server:
        equal(get(server, "/file.txt", host="nobody.example").body, b"first")
    with Configured(config(SITES), "--unknown-host", "refuse") as server, Client(server) as client:
        response = client.get("/file.txt", host="nobody.example")
        equal((response.status, response.reason), (421, "Misdirected Request"))
        equal(response["X-All"], None)
        equal(client.get("/file.txt", host="second.example").body, b"second")
        equal(client.get("/file.txt", version="1.0", host=None).status, 421)


@case("a change is seen at the site where it was made, and at every site that has the directory")
def fresh():
    shared = os.path.join(top, "shared")
    write(shared, "deep", "changing.txt", data=b"one")
    file = config("[host a]\nroot = %s\n[host b]\nroot = %s/deep\n[host c]\nroot = %s\n" % (shared, shared, first))
    asked = (("a", "/deep/changing.txt"), ("b", "/changing.txt"))
    with Configured(file) as server, Client(server) as client:
        for text in (b"one", b"two!", b"three"):
            write(shared, "deep", "new", data=text)
            os.rename(os.path.join(shared, "deep", "new"), os.path.join(shared, "deep", "changing.txt"))
            for host, path in asked * 2:
                until(lambda host=host, path=path: client.get(path, host=host).body == text, 2, "the change at " + host)
            equal(client.get("/changing.txt", host="c").status, 404)


@case("what is wrong with a site is told with its place, and nothing is served")
def wrong():
    for text, expected in (
            ("[host a]\nroot = /nonexistent\n", "2: root: cannot serve /nonexistent: .*ENOENT"),
            ("[host a]\nroot = %s/file.txt\n" % first, "2: root: cannot serve .*ENOTDIR"),
            ("[host a]\n", "root"),
            ("[host]\nroot = /\n", "1: \\[host\\] needs a name"),
            ("[site a]\nroot = /\n", "1: \\[site a\\]: a section is for a site: \\[host NAME"),
            ("[host a b:80]\nroot = /\n", '1: .*"b:80" is no name of a host: .*without its port'),
            ("[host a]\nroot = /\n[host b A]\nroot = /\n", "3: .*a site named A already"),
            ("[host a]\nroot = /\nindex = .x\n", "3: index: "),
            ("[host a]\nroot = /\nheader = Content-Length: 3\n", '3: header: "Content-Length: 3": .*itself'),
            ("[host a]\nroot = /\nheader = X\n", "3: header: .*Name: value"),
            ("[host a]\nroot = /\ncache = *.js\n", "3: cache: .*PATTERN=VALUE"),
            ("[host a]\nroot = /\nsymlinks = some\n", "3: symlinks takes inside, follow or never"),
            ("[host a]\nroot = /\nrate = 5\n", "3: rate takes "),
            ("[host a]\nroot = /\nworkers = 2\n", "3: workers belongs to the process"),
            ("root = /\nunknown-host = refuse\n", "2: unknown-host: "),
            ("root = /\ntrust-forwarded = 10.0.0.1/8\n", "2: trust-forwarded: .*is 10.0.0.0/8 meant"),
            ("workers = 1\n", "root"),
    ):
        file = config(text, "wrong.conf")
        done = subprocess.run([SLUICE, "serve", "--config", file, "--check-config"], capture_output=True, text=True,
                              timeout=20 * PATIENCE, check=False)
        assert done.returncode != 0 and re.search("wrong.conf:" + expected if expected[0].isdigit() else expected,
                                                  done.stderr), (text, done.returncode, done.stderr)
    done = subprocess.run([SLUICE, "serve", "--config", config(SITES), "--check-config"], capture_output=True,
                          text=True, timeout=20 * PATIENCE, check=False)
    equal((done.returncode, done.stderr), (0, ""))
    assert done.stdout.endswith(" is fine: 3 sites\n"), done.stdout


@case("sites come, go and change by a reload, and one that is wrong leaves all as it was")
def reloaded():
    with sites() as server, Client(server) as kept:
        equal(kept.get("/file.txt", host="second.example").body, b"second")
        config("[host second.example]\nroot = %s\nrate-per-address = 1M\n" % first)
        server.signal(signal.SIGHUP)
        until(lambda: "rate-per-address belongs to the process" in server.errors(), 5, "the refusal")
        equal(get(server, "/file.txt", host="second.example").body, b"second")
        config("connections-per-address = 2\n[host third.example]\nroot = %s\n[host second.example]\nroot = %s\n" %
               (second, first))
        server.signal(signal.SIGHUP)
        # An old worker may accept until it has heard that it is one.
        until(lambda: all(get(server, "/file.txt", host="third.example").body == b"second" for _ in range(8)), 5,
              "the new site")
        equal(get(server, "/file.txt", host="second.example").body, b"first")
        equal(get(server, "/file.txt", host="first.example").body, b"second", "the first site for the rest")
        clients = [Client(server) for _ in range(3)]
        equal(sorted(client.get("/file.txt").status if number < 2 else client.response().status
                     for number, client in enumerate(clients)), [200, 200, 429])
        equal(kept.get("/file.txt", host="second.example").body, b"second", "the old connection's last answer")
        for client in clients:
            client.close()


# ---- Symbolic links ----

links = os.path.join(top, "links")
write(links, "real.txt", data=b"real")
write(links, "dir", "file.txt", data=b"in dir")
os.symlink("real.txt", os.path.join(links, "inside.txt"))
os.symlink("dir", os.path.join(links, "inside-dir"))
os.symlink("../second/only-second.txt", os.path.join(links, "outside.txt"))
os.symlink(second, os.path.join(links, "outside-dir"))
os.symlink("loop", os.path.join(links, "loop"))
FOUND = {
    "inside": {"/inside.txt": 200, "/inside-dir/file.txt": 200, "/outside.txt": 404, "/outside-dir/file.txt": 404},
    "follow": {"/inside.txt": 200, "/inside-dir/file.txt": 200, "/outside.txt": 200, "/outside-dir/file.txt": 200},
    "never": {"/inside.txt": 404, "/inside-dir/file.txt": 404, "/outside.txt": 404, "/outside-dir/file.txt": 404},
}

for how in ("with openat2", "without openat2"):
    for policy in FOUND:
        @case("%s and --symlinks %s, links are served and listed as that says", how, policy)
        def symlinks(how, policy):
            env = {"SLUICE_NO_OPENAT2": "1"} if how.startswith("without") else {}
            with Server(links, "--symlinks", policy, env=env) as server, Client(server) as client:
                for _ in range(2):
                    for path, status in FOUND[policy].items():
                        equal(client.get(path).status, status, path)
                    equal(client.get("/real.txt").body, b"real")
                    equal(client.get("/loop").status, 404)
                listing = client.get("/").body
                for path, status in FOUND[policy].items():
                    name = path.split("/")[1]
                    equal(name.encode() in listing, status == 200, "%s in the listing" % name)
                if policy == "follow":
                    equal(client.get("/outside.txt").body, b"only here")
                    assert "symlinks follow" in server.errors(), server.errors()
                else:
                    equal(server.complaints(), "")


# ---- What is said ----

@case("Cache-Control goes with files by pattern, other fields with every response, and a site's own come first")
def fields():
    with sites() as server, Client(server) as client:
        response = client.get("/file.txt", host="first.example")
        equal((response["Cache-Control"], response["X-All"], response["X-Who"]), ("max-age=60", "all", "everybody"))
        tag = response["ETag"]
        response = client.get("/file.txt", "Range: bytes=0-1", host="first.example")
        equal((response.status, response["Cache-Control"], response["X-All"]), (206, "max-age=60", "all"))
        response = client.get("/file.txt", "If-None-Match: " + tag, host="first.example")
        equal((response.status, response["Cache-Control"], response["X-All"]), (304, "max-age=60", "all"))
        response = client.get("/file.txt", "If-Match: \"x\"", host="first.example")
        equal((response.status, response["Cache-Control"], response["X-All"]), (412, None, "all"))
        response = client.get("/", host="first.example")
        equal((response["Cache-Control"], response["X-All"]), (None, "all"))
        for path, status in (("/missing.txt", 404), ("/sub", 301), ("/sub/", 200)):
            response = client.get(path, host="first.example")
            equal((response.status, response["Cache-Control"], response["X-All"]), (status, None, "all"))
        response = client.get("/sub/file.txt", host="second.example")
        equal((response["Cache-Control"], response["X-All"], response["X-Who"], response["X-Second"]),
              ("no-store", "all", "second", "2"))
        equal(client.get("/file.txt", host="second.example")["Cache-Control"], "max-age=60")


@case("the command line says it, too, and the longest fields arrive whole")
def long_fields():
    value = "x" * 4000
    with Server(first, "--header", "X-Long: " + value, "--header", "X-Two: 2", "--cache", "*=" + "y" * 512,
                "--cache", "*.txt=z") as server, Client(server) as client:
        for _ in range(3):
            response = client.get("/file.txt")
            equal((response["X-Long"], response["X-Two"], response["Cache-Control"]), (value, "2", "y" * 512))
            equal(response.body, b"first")
        equal(client.get("/none")["X-Long"], value)
        response = client.get("/long.bin", "Range: bytes=0-9,20000-20009")
        equal((response.status, response["X-Long"], response["Cache-Control"]), (206, value, "y" * 512))
        assert response["Content-Type"].startswith("multipart/byteranges"), response


# ---- How fast ----

MIB = 1 << 20
fast = os.path.join(top, "fast")
write(fast, "large.bin", data=content(8 * MIB))


class Paced(Client):
    """With the segments of an Ethernet: ten of the loopback's would be 640 KiB that nobody paces."""

    def __init__(self, server, source=None):
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
        self.socket.settimeout(20 * PATIENCE)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(server.address)
        self.buffer = bytearray()


def timed(client, size, offset=0, **more):
    """Seconds until that many bytes have come."""
    started = time.monotonic()
    response = client.get("/large.bin", "Range: bytes=%d-%d" % (offset, offset + size - 1), **more)
    took = time.monotonic() - started
    same_bytes(response.body, content(8 * MIB)[offset:offset + size])
    return took


@case("with --rate a connection gets what it may and not more, each for itself and each site its own")
def rate():
    file = config("rate = 1M\n[host slow]\nroot = %s\n[host fast]\nroot = %s\nrate = 1G\n" % (fast, fast))
    with Configured(file) as server:
        took = []
        together([lambda: took.append(timed(Paced(server), MIB, host="slow")) for _ in range(3)])
        for seconds in took:
            assert 0.7 < seconds < 3 * PATIENCE, took
        with Paced(server) as client:
            assert timed(client, 4 * MIB, host="fast") < 1.5 * PATIENCE
            assert timed(client, MIB // 2, host="slow") > 0.3
            assert timed(client, 4 * MIB, host="fast") < 1.5 * PATIENCE


@case("with --rate-per-address the connections of an address share its rate, in all workers, and other addresses have "
      "theirs")
def rate_per_address():
    with Server(fast, "--rate-per-address", "1M", workers=2) as server:
        took, others = [], []
        together([lambda: took.append(timed(Paced(server), MIB // 3)) for _ in range(3)] +
                 [lambda: others.append(timed(Paced(server, "127.0.0.2"), MIB // 2))])
        assert 0.6 < max(took) < 3 * PATIENCE, took
        assert 0.3 < others[0] < 2 * PATIENCE, others
        with Paced(server) as idle, Paced(server) as client:
            equal(idle.get("/large.bin", "Range: bytes=0-9").status, 206)
            time.sleep(0.6)  # one that has nothing to send takes no share
            assert timed(client, MIB // 2) < 0.9 * PATIENCE


@case("a kernel that does not pace is told about at the start, and one that ceases to, once",
      sanitized=False)  # LeakSanitizer does not work in a traced process
def not_paced():
    if not shutil.which("strace"):
        raise Skip("needs strace: apt-get install strace")
    refuse = "inject=setsockopt:error=ENOPROTOOPT"
    for option in ("--rate", "--rate-per-address"):
        done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", refuse, SLUICE, "serve", fast, option, "1M",
                               "--check-config"], capture_output=True, text=True, timeout=20 * PATIENCE, check=False)
        equal(done.returncode, 1, done.stderr)
        assert "this kernel does not pace sockets" in done.stderr and "ENOPROTOOPT" in done.stderr, done.stderr
    with Server(fast, "--rate", "1M", "--no-confine") as server:
        with strace(server.worker_pids()[0], "-e", refuse):
            for _ in range(3):
                equal(len(get(server, "/large.bin", "Range: bytes=0-99999").body), 100000)
        equal(server.errors().count("rates are not kept"), 1)


# ---- How many ----

def served(client):
    try:
        return client.get("/file.txt").status
    except (Broken, ConnectionResetError, BrokenPipeError):
        return None


def tell(server):
    server.signal(signal.SIGUSR1)
    return server.errors()


@case("beyond --connections-per-address an address gets 429, and twice beyond it nothing; other addresses are served")
def connections_per_address():
    with Server(first, "--connections-per-address", "3", workers=2) as server:
        clients = [Client(server) for _ in range(3)]
        equal([served(client) for client in clients], [200] * 3)
        with Client(server) as fourth:
            response = fourth.response()  # without having asked
            equal((response.status, response.reason), (429, "Too Many Requests"))
            fourth.ended()
        with Paced(server, "127.0.0.2") as other:
            equal(served(other), 200)
        more, cut = [], 0
        for _ in range(12):
            try:
                more.append(Client(server))
            except ConnectionResetError:  # the reset came before connect(2) had returned
                cut += 1
        answers = [served(client) for client in more] + [None] * cut
        assert set(answers) <= {None, 429} and answers.count(None) >= 5, answers
        for client in more:
            client.close()
        with Client(server) as told:
            equal(told.response().status, 429)
            clients.pop().close()  # and who was refused does not stand in the way until he has gone
            until(lambda: served_anew(server) == 200, 3, "a place for another connection")
        equal([served(client) for client in clients], [200] * 2)
        until(lambda: re.search(r"(\d+) over the limit of their address", tell(server)), 2, "the total")


def served_anew(server):
    with Client(server) as client:
        return served(client)


@case("connections of a worker that crashed count no longer")
def crashed():
    with Server(first, "--connections-per-address", "2") as server:
        clients = [Client(server) for _ in range(2)]
        equal([served(client) for client in clients], [200] * 2)
        equal(served_anew(server), 429)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        until(lambda: server.worker_pids() and served_anew(server) == 200, 10, "the next worker")


# ---- Proxies in front ----

def v2(source, port=4711, command=0x21):
    return (b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, 0x11]) + struct.pack(">H", 12) + socket.inet_aton(source) +
            socket.inet_aton("192.0.2.99") + struct.pack(">HH", port, 80))


REQUEST = b"GET /file.txt HTTP/1.1\r\nHost: a\r\n\r\n"


def logged(log):
    with open(log, encoding="ascii") as file:
        return [line.split()[0] for line in file]


@case("with --accept-proxy a connection begins with a PROXY header, and its client is the one that the log has")
def accept_proxy():
    log = os.path.join(top, "proxy.log")
    with Server(first, "--accept-proxy", "--access-log", log) as server:
        expected = []
        for header, client in ((b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 80\r\n", "203.0.113.1"),
                               (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 80\r\n", "2001:db8::1"),
                               (b"PROXY UNKNOWN\r\n", LOCAL), (v2("203.0.113.2"), "203.0.113.2"),
                               (v2("203.0.113.3", command=0x20), LOCAL)):
            with Client(server) as connection:
                equal(connection.exchange(header + REQUEST).body, b"first", "in one piece")
                equal(connection.exchange(REQUEST).body, b"first", "once is enough")
            with Client(server) as connection:
                for byte in header + REQUEST:
                    connection.send(bytes([byte]))
                equal(connection.response().body, b"first", "byte by byte")
            with Client(server) as connection:
                connection.send(header)
                connection.send(REQUEST + REQUEST)
                equal([connection.response().body for _ in range(2)], [b"first"] * 2)
            expected += [client] * 5
        until(lambda: logged(log) == expected, 5, "the log")


@case("with --accept-proxy who begins otherwise is closed, counted, and told about once")
def no_header():
    with Server(first, "--accept-proxy", "--header-timeout", "1s") as server:
        for start in (REQUEST, b"PROXY TCP4 203.0.113.1\r\n", b"PROXY " + b"x" * 200, b"\r\n\r\n\0\r\nQUIX", b"\x16\x03\x01"):
            with Client(server) as client:
                client.send(start)
                try:
                    equal(client.socket.recv(100), b"", "the answer to %r" % start)
                except ConnectionResetError:
                    pass
        with Client(server) as client:
            client.send(b"PROXY TCP4 ")
            equal(client.socket.recv(100), b"", "the end of a header that does not come")
        until(lambda: "5 without a PROXY header" in tell(server), 5, "the total")
        equal(server.errors().count("no PROXY header at the start"), 1)


@case("limits count by the address that the PROXY header names")
def limits_by_header():
    with Server(first, "--accept-proxy", "--connections-per-address", "1") as server:
        with Client(server) as one, Client(server) as two, Client(server) as three:
            equal(one.exchange(v2("203.0.113.1") + REQUEST).status, 200)
            equal(two.exchange(v2("203.0.113.2") + REQUEST).status, 200)
            three.send(v2("203.0.113.1"))
            equal(three.response().status, 429)


@case("X-Forwarded-For of trusted peers names the client in the log, and that of others does not")
def forwarded():
    log = os.path.join(top, "forwarded.log")
    with Server(first, "--access-log", log, "--trust-forwarded", LOCAL, "--trust-forwarded", "10.0.0.0/8") as server:
        expected = []
        for fields, client in ((["X-Forwarded-For: 203.0.113.1"], "203.0.113.1"),
                               (["X-Forwarded-For: 6.6.6.6, 203.0.113.1, 10.1.2.3"], "203.0.113.1"),
                               (["X-Forwarded-For: [2001:db8::1]:443"], "2001:db8::1"),
                               (["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.1"], "203.0.113.1"),
                               (["X-Forwarded-For: 10.9.9.9, 10.1.1.1"], "10.9.9.9"),
                               (["X-Forwarded-For: unknown, 10.1.2.3"], "10.1.2.3"),
                               (["X-Forwarded-For: nonsense"], LOCAL), (["X-Forwarded-For:"], LOCAL), ([], LOCAL)):
            equal(get(server, "/file.txt", *fields).status, 200)
            expected.append(client)
        with Paced(server, "127.0.0.2") as client:
            equal(client.get("/file.txt", "X-Forwarded-For: 203.0.113.1").status, 200)
        expected.append("127.0.0.2")
        until(lambda: logged(log) == expected, 5, "the log: %r" % expected)


if __name__ == "__main__":
    main()
