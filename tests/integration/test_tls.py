#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""HTTPS: bytes, certificates, resumption, ends, refusals. Clients: Python's ssl, curl, openssl s_client."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
import warnings

from harness import (LOCAL, PATIENCE, SLUICE, Client, Program, Server, case, content, equal, main, new_root, note,
                     same_bytes, strace, until, write)

root = new_root()
FILES = {"empty": 0, "small": 100, "record": 16384, "head": 16384 - 300, "medium": 100_000, "large": 3_000_001,
         "ten": 10_000_000}
for _name, _size in FILES.items():
    write(root, _name, data=content(_size))
keys = new_root()


def openssl(*arguments, **more):
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, **more).stdout


def certificate(name, hosts, *more, key=("ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
    """Paths of a self-signed certificate and its key."""
    paths = os.path.join(keys, name + ".pem"), os.path.join(keys, name + "-key.pem")
    alternatives = ["-addext", "subjectAltName=" + ",".join("DNS:" + host for host in hosts)] if hosts else []
    openssl("req", "-x509", "-newkey", *key, "-nodes", "-subj", "/CN=" + name, "-days", "30", *alternatives, *more,
            "-out", paths[0], "-keyout", paths[1])
    return paths


RSA = ("rsa:2048",)
first = certificate("first", ["first.test", "localhost"])
both_ec = certificate("both-ec", ["both.test"])
both_rsa = certificate("both-rsa", ["both.test", "*.wild.test"], key=RSA)
wild = certificate("wild", ["*.wild.test"])
exact = certificate("exact", ["exact.wild.test"])


def der(paths):
    with open(paths[0], encoding="ascii") as file:
        return ssl.PEM_cert_to_DER_cert(file.read())


def pair(paths):
    return "--certificate", ",".join(paths)


class Secure(Server):
    """With TLS at its only address."""

    def __init__(self, root, *options, certificates=(first,), **more):
        given = [word for paths in certificates for word in pair(paths)]
        super().__init__(root, "--tls", *given, *options, **more)

    def is_ready(self):
        match = re.search(r"https://\S+:(\d+)/", self.output())
        if match:
            self.port = int(match[1])
            self.address = (LOCAL, self.port)
            self.url = "https://localhost:%d" % self.port
        return match

    def totals(self):
        """handshakes, resumed, failed"""
        said = len(self.errors())
        self.signal(signal.SIGUSR1)
        match = until(lambda: re.search(r"TLS: (\d+) handshakes, (\d+) of them resumed; (\d+) failed",
                                        self.errors()[said:]), 5, "totals")
        return tuple(int(number) for number in match.groups())


class ByFile(Secure):
    def __init__(self, config):
        Program.__init__(self, [SLUICE, "serve", "--config", config])


def trusting(version=None, alpn=("http/1.1",), ciphers=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = version or ssl.TLSVersion.TLSv1_2
    context.maximum_version = version or ssl.TLSVersion.TLSv1_3
    if alpn:
        context.set_alpn_protocols(alpn)
    if ciphers:
        context.set_ciphers(ciphers)
    return context


class Browser(Client):
    """A client whose socket has TLS. What ends without close_notify is an error."""

    def __init__(self, server, context=None, name="first.test", session=None, **more):
        super().__init__(server, **more)
        context = context or trusting()
        try:
            self.socket = context.wrap_socket(self.socket, server_hostname=name, session=session,
                                              suppress_ragged_eofs=False)
        except BaseException:
            self.socket.close()
            raise


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
_shared = []


def secure():
    if not _shared:
        _shared.append(Secure(root, certificates=(first, both_ec, both_rsa, wild, exact), workers=2))
    return _shared[0]


# ---- Bytes ----

for _version in (V12, V13):
    @case("%s: files of every size arrive whole on one connection, and HEAD, ranges and 304 are as without TLS",
          _version.name)
    def sizes(_, version=_version):
        with Browser(secure(), trusting(version)) as client:
            equal(client.socket.selected_alpn_protocol(), "http/1.1")
            for name, size in FILES.items():
                response = client.get("/" + name)
                equal(response.status, 200)
                same_bytes(response.body, content(size), name)
            response = client.get("/large", "Range: bytes=1000000-1100000")
            equal(response.status, 206)
            same_bytes(response.body, content(FILES["large"])[1000000:1100001])
            equal(client.get("/large", method="HEAD")["Content-Length"], str(FILES["large"]))
            equal(client.get("/large", "If-None-Match: " + response["ETag"]).status, 304)
            client.get("/small", "Connection: close")
            client.ended()


@case("a body that is thrown away, one that is invited, and one whose client ends TLS in the middle of it")
def bodies():
    with Browser(secure()) as client:
        body = content(5000)
        client.send(b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + body[:1000])
        client.send(body[1000:])
        same_bytes(client.response().body, content(FILES["small"]))
        client.send("GET /medium HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
        equal(client.head().status, 100)
        client.send(body)
        same_bytes(client.response().body, content(FILES["medium"]))
        client.send(b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + body[:1000])
        with contextlib.suppress(ssl.SSLError, OSError):
            client.socket.unwrap()


class Chunks:
    """TLS whose bytes are sent in pieces of our choice."""

    def __init__(self, server, draw, version=None, introduction=b"", shake=True):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting(version).wrap_bio(self.incoming, self.outgoing, server_hostname="first.test")
        self.socket = socket.create_connection(server.address, 10 * PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.draw = draw
        self.before = introduction
        if shake:
            self.until_done(self.tls.do_handshake)
        else:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()

    def flush(self):
        data = self.before + self.outgoing.read()
        self.before = b""
        while data:
            size = self.draw(len(data))
            self.socket.sendall(data[:size])
            data = data[size:]

    def until_done(self, function):
        while True:
            try:
                result = function()
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                data = self.socket.recv(self.draw(1 << 16))
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()

    def read(self, size):
        data = bytearray()
        while len(data) < size:
            more = self.until_done(lambda: self.tls.read(size - len(data)))
            if not more:
                break
            data += more
        return bytes(data)


@case("pipelined requests arrive in any pieces, byte by byte as well, and are answered in order")
def chunks():
    seed = random.randrange(1 << 32)
    print("# seed %d" % seed)
    dice = random.Random(seed)
    names = [dice.choice(["small", "record", "medium", "empty", "head"]) for _ in range(60)]
    asked = "".join("GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name for name in names).encode()
    for version, draw in ((V13, lambda most: 1), (V13, lambda most: dice.randint(1, min(most, 3000))),
                          (V12, lambda most: dice.randint(1, min(most, 200)))):
        client = Chunks(secure(), lambda most, draw=draw: draw(most) if most < 1 << 16 else 1 << 16, version)
        at = 0
        while at < len(asked):
            size = dice.randint(1, 2000)
            client.tls.write(asked[at:at + size])
            client.flush()
            at += size
        for name in names:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.read(1)
            equal(int(re.search(rb"Content-Length: (\d+)", head)[1]), FILES[name])
            same_bytes(client.read(FILES[name]), content(FILES[name]), name)
        client.socket.close()


@case("a slow reader gets 10 MB whole, and one that resets in the middle does no harm")
def slow():
    with Browser(secure(), receive_buffer=20000) as client, Browser(secure(), receive_buffer=20000) as other:
        other.ask("/ten")
        other.socket.recv(1000)
        client.ask("/ten")
        head = client.head()
        other.reset()
        body = bytearray(client.buffer)
        while len(body) < int(head["Content-Length"]):
            body += client.socket.recv(30000)
            if len(body) % 7 == 0:
                time.sleep(0.001)
        same_bytes(body, content(FILES["ten"]))


@case("an idle connection takes less than 20 KB of the worker's memory, whatever it has sent", sanitized=False)
def memory():
    def private():
        with open("/proc/%d/smaps_rollup" % server.worker_pids()[0], encoding="ascii") as file:
            return int(re.search(r"Private_Dirty: +(\d+)", file.read())[1])
    with Secure(root) as server, contextlib.ExitStack() as stack:
        def connect(count):
            for number in range(count):
                client = stack.enter_context(Browser(server))
                equal(client.get("/medium" if number % 10 == 0 else "/small").status, 200)
        connect(20)
        before = private()
        connect(300)
        each = (private() - before) / 300
        note("%.1f KB" % each)
        assert each < 20, each


# ---- Other clients ----

@case("several ranges come in parts, bodies of requests are thrown away, and who expects 100 gets it")
def requests():
    data = content(FILES["large"])
    head = b"GET /small HTTP/1.1\r\nHost: a\r\n"
    for version in (V12, V13):
        with Browser(secure(), trusting(version)) as client:
            response = client.get("/large", "Range: bytes=5-1000004,-1000000,0-0")
            equal(response.status, 206)
            for part in (data[5:1000005], data[-1000000:], data[:1]):
                assert part in response.body
            client.send(head + b"Expect: 100-continue\r\nContent-Length: 20000\r\n\r\n")
            equal(client.response().status, 100)
            for _ in range(20):
                client.send(b"b" * 1000)
            same_bytes(client.response().body, content(FILES["small"]))
            client.send((head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n") * 30)
            for _ in range(30):
                same_bytes(client.response().body, content(FILES["small"]))
            client.send(head + b"Content-Length: 99999\r\n\r\n" + b"b" * 99999)
            equal(client.response().status, 413)
            client.ended()


@case("curl gets the bytes by TLS 1.2 and 1.3, and checks certificate and name")
def with_curl():
    for version in (("--tlsv1.2", "--tls-max", "1.2"), ("--tlsv1.3",)):
        for name in ("small", "large"):
            done = subprocess.run(["curl", "-sS", "--max-time", "20", *version, "--cacert", first[0],
                                   "%s/%s" % (secure().url, name)], capture_output=True)
            equal((done.returncode, done.stderr), (0, b""))
            same_bytes(done.stdout, content(FILES[name]))


def s_client(*options, talk, expect, server=None):
    """Say the lines, each after what was expected of the one before has come. Returns all that was printed."""
    client = subprocess.Popen(["openssl", "s_client", "-connect", "%s:%d" % (server or secure()).address, *options],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.set_blocking(client.stdout.fileno(), False)
    text = bytearray()

    def has(pattern):
        ended = client.poll() is not None  # before the rest is read
        text.extend(client.stdout.read() or b"")
        return re.search(pattern, text) or ended
    try:
        for line, pattern in zip(talk, expect):
            if line:
                client.stdin.write(line)
                client.stdin.flush()
            until(lambda pattern=pattern: has(pattern), 10, "%r of s_client" % pattern)
            assert re.search(pattern, text), "%r did not come: %r" % (pattern, bytes(text)[-1500:])
    finally:
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
    return bytes(text)


ASK = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"


@case("new keys that a client asks for (KeyUpdate) are made, in both directions, and the connection goes on")
def key_update():
    s_client("-tls1_3", talk=[None, b"K\n", ASK, b"k\n", ASK],
             expect=[rb"Verify return code", rb"KEYUPDATE", rb"200 OK", rb"(?s)KEYUPDATE.*KEYUPDATE",
                     rb"(?s)200 OK.*200 OK"])


@case("renegotiation is refused, and the connection goes on")
def renegotiation():
    s_client("-tls1_2", talk=[None, b"R\n"], expect=[rb"Verify return code", rb"no renegotiation"])


# ---- Certificates ----

@case("each name gets its certificate, wildcards included, and other names the first one")
def names():
    for name, want in (("first.test", first), ("FIRST.TEST", first), ("both.test", both_ec), ("a.wild.test", wild),
                       ("exact.wild.test", exact), ("wild.test", first), ("a.b.wild.test", first), ("other", first),
                       (None, first)):
        for version in (V12, V13):
            with Browser(secure(), trusting(version), name=name) as client:
                equal(client.socket.getpeercert(True), der(want), "the certificate for %s" % name)
                equal(client.get("/small").status, 200)


@case("sites of a file have certificates of their own, and the log in JSON says by which version a request came")
def sites():
    place = new_root()
    log = os.path.join(place, "log")
    for site in ("one", "two"):
        write(place, site, "index.html", data=site.encode())
    config = write(place, "serve.conf", data=("""
        tls = yes
        listen = 127.0.0.1:0
        workers = 1
        access-log = %s
        access-log-format = json
        [host first.test other.first.test 127.0.0.1 [::1]]
        root = %s/one
        certificate = %s
        [host both.test]
        root = %s/two
        certificate = %s
        certificate = %s
        """ % (log, place, ",".join(first), place, ",".join(both_rsa), ",".join(both_ec))).replace(" " * 8, "").encode())
    with ByFile(config) as server:
        for name, want, body in (("both.test", both_ec, b"two"), ("first.test", first, b"one")):
            with Browser(server, name=name) as client:
                equal(client.socket.getpeercert(True), der(want))
                equal(client.get("/", host=name).body, body)
        with Browser(server, trusting(V12), name=None) as client:
            equal(client.socket.getpeercert(True), der(first))
            equal(client.get("/", host="first.test").status, 200)
        equal(re.findall(r"no certificate is for (\S+):", server.errors()), ["other.first.test"])
    with open(log, encoding="ascii") as file:
        equal([json.loads(line)["tls"] for line in file], ["TLSv1.3", "TLSv1.3", "TLSv1.2"])


@case("a client that knows RSA only gets the RSA certificate of the same name")
def kinds():
    for name in ("both.test", "a.wild.test"):
        with Browser(secure(), trusting(V12, ciphers="ECDHE-RSA-AES128-GCM-SHA256"), name=name) as client:
            equal(client.socket.getpeercert(True), der(both_rsa))
            equal(client.get("/small").status, 200)


# ---- Resumption ----

@case("sessions are resumed by either version, by any worker, and after a worker was replaced; they are counted")
def resumption():
    with Secure(root, workers=2) as server:
        for version in (V12, V13):
            context = trusting(version)
            with Browser(server, context) as client:
                equal(client.get("/small").status, 200)  # tickets of TLS 1.3 come behind the handshake
                session = client.socket.session
                assert not client.socket.session_reused
            for attempt in range(8):
                if attempt == 4:
                    victim = server.worker_pids()[0]
                    os.kill(victim, signal.SIGKILL)
                    until(lambda: len(server.worker_pids()) == 2 and victim not in server.worker_pids(), 5,
                          "a new worker")
                with Browser(server, context, session=session) as client:
                    assert client.socket.session_reused, "attempt %d" % attempt
                    equal(client.get("/small").status, 200)
        handshakes, resumed, failed = server.totals()
        equal((handshakes, resumed, failed), (18, 16, 0))


@case("with --tls-tickets 0 nothing is resumed; a ticket of another start is of no use, and no error")
def no_resumption():
    sessions = {}
    contexts = {version: trusting(version) for version in (V12, V13)}
    for options in ((), ("--tls-tickets", "0"), ()):
        with Secure(root, *options) as server:
            for version, context in contexts.items():
                with Browser(server, context, session=sessions.get(version)) as client:
                    assert not client.socket.session_reused
                    equal(client.get("/small").status, 200)
                    sessions[version] = client.socket.session or sessions[version]


def shown(server):
    with Browser(server) as client:
        equal(client.get("/small").status, 200)
        return client.socket.getpeercert(True)


@case("SIGHUP reads certificates again: new connections get the new one, old ones go on, tickets stay good")
def renewed():
    place = new_root()
    live = os.path.join(place, "live.pem"), os.path.join(place, "live-key.pem")

    def install(paths):
        for source, target in zip(paths, live):
            shutil.copy(source, target)
    install(first)
    with Secure(root, certificates=(live,), workers=2) as server:
        context, newer = trusting(V12), trusting(V13)
        with Browser(server, context) as old, Browser(server, newer) as other:
            equal(old.get("/small").status, 200)
            equal(other.get("/small").status, 200)
            sessions = (context, old.socket.session), (newer, other.socket.session)
            install(exact)
            server.signal(signal.SIGHUP)
            # An old worker may take a connection more before it is told.
            until(lambda: shown(server) == der(exact), 10, "the new certificate")
            for again, session in sessions:
                with Browser(server, again, session=session) as client:
                    assert client.socket.session_reused
                    equal(client.get("/small").status, 200)
            equal(old.get("/small")["Connection"], "close")  # its worker has been replaced
            old.ended()
        shutil.copy(wild[1], live[1])
        server.signal(signal.SIGHUP)
        until(lambda: "does not belong" in server.errors(), 10, "a word about the wrong key")
        equal(shown(server), der(exact))


# ---- Ends ----

@case("a request with the client's close_notify behind it is answered, by a close_notify at the end, too")
def half_closed():
    for name in ("small", "large"):
        client = Chunks(secure(), lambda most: most)
        client.tls.write(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode())
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.flush()
        client.socket.shutdown(socket.SHUT_WR)
        incoming = b""
        while data := client.socket.recv(1 << 16):
            client.incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while data := client.tls.read(1 << 16):
                incoming += data
        assert incoming.startswith(b"HTTP/1.1 200 OK")
        same_bytes(incoming.partition(b"\r\n\r\n")[2], content(FILES[name]))
        client.socket.close()


@case("clients that vanish, by an end or by a reset, in any phase of the handshake, in the middle of a record or of a body "
      "do no harm and leave nothing")
def vanishing():
    def leave(one, by_reset):
        if by_reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()

    def descriptors():
        return len(os.listdir("/proc/%d/fd" % server.worker_pids()[0]))
    with Secure(root) as server:
        with Browser(server) as other:
            equal(other.get("/ten", method="HEAD").status, 200)
            before = descriptors() - 1
        hello = client_hello()
        for by_reset in (False, True):
            for size in (1, 5, 100, len(hello)):
                plain = socket.create_connection(server.address)
                plain.sendall(hello[:size])
                leave(plain, by_reset)
            for version in (V12, V13):
                client = Chunks(server, lambda most: most, version, shake=False)
                client.flush()
                client.socket.recv(10)  # of what answers the ClientHello
                leave(client.socket, by_reset)
            client = Chunks(server, lambda most: most)
            client.tls.write(ASK)
            client.socket.sendall(client.outgoing.read()[:-3])
            leave(client.socket, by_reset)
            other = Browser(server)
            other.ask("/ten")
            other.socket.recv(100)
            leave(other.socket, by_reset)
            leave(socket.create_connection(server.address), by_reset)  # who says nothing at all is no failure
        until(lambda: server.totals()[2] == 12, 5, "failures counted")
        until(lambda: descriptors() <= before, 5, "their descriptors' end")
        with Browser(server) as other:
            equal(other.get("/small").status, 200)


@case("an answer of the handshake that the socket does not take is sent when it does")
def answer_waits():
    with Secure(root) as server:
        with strace(server.worker_pids()[0], "-e", "trace=sendto", "-e", "inject=sendto:error=EAGAIN:when=1"):
            with Browser(server) as client:
                equal(client.get("/small").status, 200)
        equal(server.totals(), (1, 0, 0))


@case("a file that cannot be read is answered by 500 alone: nothing is left of the head that was to come before it")
def unread():
    with Secure(root) as server, Browser(server) as client:
        equal(client.get("/small").status, 200)
        for name in ("small", "medium"):
            with strace(server.worker_pids()[0], "-e", "trace=pread64,preadv2", "-e",
                        "inject=pread64,preadv2:error=EIO"):
                response = client.get("/" + name)
                equal((response.status, response.body[:4]), (500, b"500 "))
            same_bytes(client.get("/" + name).body, content(FILES[name]))


def client_hello():
    outgoing = ssl.MemoryBIO()
    tls = trusting().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="first.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@case("the handshake has the time of --header-timeout, and the first head has it again")
def in_time():
    with Secure(root, "--header-timeout", "1s") as server:
        hello = client_hello()
        with socket.create_connection(server.address, 10 * PATIENCE) as plain, Browser(server) as late:
            started = time.monotonic()
            plain.sendall(hello[:50])
            late.send("GET / HT")
            equal(plain.recv(10), b"")
            assert 0.7 < time.monotonic() - started < 4 * PATIENCE
            equal(late.response().status, 408)
        assert "took longer than --header-timeout" in server.errors(), server.errors()


@case("while it drains, a download is completed and ended by close_notify, idle connections are, too")
def drained():
    with Secure(root) as server:
        with Browser(server) as idle, Browser(server, receive_buffer=8192) as slow:
            equal(idle.get("/small").status, 200)
            slow.ask("/ten")
            head = slow.head()
            server.signal(signal.SIGTERM)
            idle.ended()
            body = bytearray(slow.buffer)
            slow.buffer.clear()
            while len(body) < int(head["Content-Length"]):
                body += slow.socket.recv(1 << 16)
            same_bytes(body, content(FILES["ten"]))
            slow.ended()
        equal(server.wait(), 0)
        server.check_end()


@case("while it drains, a handshake under way is completed and what is asked then is answered; who says nothing then does "
      "not keep the server")
def drained_in_handshake():
    with Secure(root) as server:
        asking, silent = (Chunks(server, lambda most: most, shake=False) for _ in range(2))
        for client in (asking, silent):
            client.flush()
            client.incoming.write(client.socket.recv(1 << 16))  # so that it is known to be accepted
        def refuses():
            with socket.socket() as another:
                return another.connect_ex(server.address) != 0
        server.signal(signal.SIGTERM)
        until(refuses, 5, "draining")
        started = time.monotonic()
        for client in (asking, silent):
            client.until_done(client.tls.do_handshake)
        asking.tls.write(ASK)
        asking.flush()
        assert asking.read(100).startswith(b"HTTP/1.1 200 OK")
        equal(server.wait(), 0)
        assert time.monotonic() - started < 5 * PATIENCE  # --header-timeout is 10 s
        server.check_end()
        for client in (asking, silent):
            client.socket.close()


@case("a PROXY header stands before the handshake, and the log has the address that it tells")
def behind_a_proxy():
    log = os.path.join(keys, "proxied.log")
    with Secure(root, "--accept-proxy", "--access-log", log) as server:
        for together in (True, False):
            client = Chunks(server, lambda most, together=together: most if together else 1,
                            introduction=b"PROXY TCP4 192.0.2.7 192.0.2.8 4000 443\r\n")
            client.tls.write(ASK)
            client.flush()
            assert client.read(100).startswith(b"HTTP/1.1 200 OK")
            client.socket.close()
    with open(log, encoding="ascii") as file:
        equal([line.split()[0] for line in file], ["192.0.2.7"] * 2)


# ---- Refusals ----

def refused(function):
    try:
        function()
    except (ssl.SSLError, ConnectionError) as error:
        return str(error)
    raise AssertionError("it was not refused")


@case("HTTP without TLS gets a 400 that says so")
def plain_http():
    with Client(secure()) as client:
        response = client.get("/small")
        equal(response.status, 400)
        assert b"https://" in response.body
        client.ended()


@case("garbage instead of a ClientHello ends the connection; the log tells once in a while, the totals all")
def garbage():
    seed = random.randrange(1 << 32)
    print("# seed %d" % seed)
    dice = random.Random(seed)
    with Secure(root) as server:
        for number in range(30):
            with socket.create_connection(server.address, 10 * PATIENCE) as plain:
                data = dice.randbytes(dice.randint(6, 3000))
                if number % 3 == 0:
                    data = b"\x16\x03\x01\x02\x00\x01" + data
                if b"A" <= data[:1] <= b"Z":
                    data = b"\x80" + data
                plain.sendall(data)
                plain.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while plain.recv(4096):
                        pass
        until(lambda: server.totals()[2] == 30, 5, "failures counted")
        equal(len(re.findall(r"TLS with 127\.0\.0\.1 failed", server.errors())), 1)
        with Browser(server) as client:
            equal(client.get("/small").status, 200)


@case("a damaged record ends the connection with an alert")
def damaged():
    client = Chunks(secure(), lambda most: most)
    client.tls.write(ASK)
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    client.socket.sendall(record)
    assert "bad record mac" in refused(lambda: client.read(100)).lower()
    client.socket.close()


def record(kind, length, data=b"", version=3):
    return bytes((kind, 3, version)) + length.to_bytes(2, "big") + data


def rest(plain):
    data = b""
    while block := plain.recv(1 << 16):
        data += block
    return data


@case("records that are too long, empty, of no known kind, or out of turn are answered by the alert for it, and an end in "
      "order; they are counted")
def invalid():
    hello = client_hello()
    changed = hello[:5] + b"\2" + hello[6:]  # a ServerHello
    with Secure(root) as server:
        wrong = ((record(22, 0x4801), 22), (record(23, 5, b"hello"), 10), (record(22, 0) * 40, 10), (record(99, 4, b"1234"), 10),
                 (record(22, 4, b"\1\3\0\0"), 47), (changed, 10), (record(20, 1, b"\1") * 2, 10),
                 (record(21, 2, b"\1\x5a") * 7, 10))
        for data, alert in wrong:
            with socket.create_connection(server.address, 10 * PATIENCE) as plain:
                plain.sendall(data)
                equal(rest(plain)[-7:], record(21, 2, bytes((2, alert))), "the answer to %r" % data[:20])
        until(lambda: server.totals() == (0, 0, len(wrong)), 5, "the count")  # after the alert
        for version in (V12, V13):
            for data, word in ((record(23, 0x4801), "overflow"), (record(23, 30, b"x" * 30), "mac"),
                               (record(22, 16, b"x" * 16), ""), (record(23, 0), "")):
                client = Chunks(server, lambda most: most, version)
                client.socket.sendall(data)
                assert word in refused(lambda client=client: client.read(100)).lower(), (version, data, word)
                client.socket.close()
        until(lambda: server.totals()[2] == len(wrong) + 8, 5, "the count")  # after the alert


@case("TLS at an address without it gets a 400 at once")
def tls_without_tls():
    with Server(root) as server:
        for data in (client_hello(), client_hello()[:6]):
            with socket.create_connection(server.address, 5 * PATIENCE) as plain:
                plain.sendall(data)
                assert rest(plain).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@case("versions before 1.2, and suites without forward secrecy or authenticated encryption, are refused by an alert that "
      "says so; nothing is compressed")
def old():
    ancient = trusting(ciphers="ALL:@SECLEVEL=0")
    for version in ("1", "1_1"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            ancient.minimum_version = ssl.TLSVersion.TLSv1
            ancient.maximum_version = getattr(ssl.TLSVersion, "TLSv" + version)
        assert "protocol version" in refused(lambda: Browser(secure(), ancient)).lower()
    for cipher in ("AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"):
        assert "handshake failure" in refused(lambda cipher=cipher: Browser(secure(), trusting(V12, ciphers=cipher))).lower()
    with Browser(secure(), trusting(V12)) as client:
        equal(client.socket.compression(), None)


@case("a client that wants records of 512 bytes (max_fragment_length) gets a file, and several ranges of it, whole")
def short_records():
    ranges = ",".join("%d-%d" % (at, at + 30_000) for at in range(0, FILES["large"] - 30_000, 60_000))
    for version in ("-tls1_2", "-tls1_3"):
        for field, status in (("", b"200"), ("Range: bytes=" + ranges + "\r\n", b"206")):
            head = "GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n" % field
            done = subprocess.run(["openssl", "s_client", "-quiet", version, "-maxfraglen", "512", "-connect",
                                   "%s:%d" % secure().address], input=head.encode(), stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, timeout=20 * PATIENCE, check=False)
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            equal((head.split()[1], len(body)), (status, int(re.search(rb"Content-Length: (\d+)", head)[1])))
            if status == b"200":
                same_bytes(body, content(FILES["large"]))


@case("a client that does not speak HTTP/1.1 is told so by ALPN; one that names nothing is served")
def protocols():
    assert "no application protocol" in refused(lambda: Browser(secure(), trusting(alpn=("h2",)))).lower()
    for alpn in ((), ("h2", "http/1.1")):
        with Browser(secure(), trusting(alpn=alpn)) as client:
            equal(client.socket.selected_alpn_protocol(), "http/1.1" if alpn else None)
            equal(client.get("/small").status, 200)


@case("--tls-min, --tls-ciphers and --tls-groups decide what is spoken")
def policy():
    with Secure(root, "--tls-min", "1.3", "--tls-ciphers", "TLS_CHACHA20_POLY1305_SHA256", "--tls-groups",
                "P-384") as server:
        with Browser(server) as client:
            equal(client.socket.cipher()[0], "TLS_CHACHA20_POLY1305_SHA256")
            same_bytes(client.get("/large").body, content(FILES["large"]))
        refused(lambda: Browser(server, trusting(V12)))
        text = s_client("-groups", "P-384", talk=[None], expect=[rb"Server Temp Key: ECDH, .*384"], server=server)
        assert b"TLSv1.3" in text
    with Secure(root, "--tls-ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384:TLS_AES_128_GCM_SHA256") as server:
        with Browser(server, trusting(V12)) as client:
            equal(client.socket.cipher()[0], "ECDHE-ECDSA-AES256-GCM-SHA384")
            same_bytes(client.get("/medium").body, content(FILES["medium"]))
        refused(lambda: Browser(server, trusting(V12, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")))


def failing(*options, code=1):
    done = subprocess.run([SLUICE, "serve", root, "--listen", LOCAL + ":0", *options], capture_output=True, text=True,
                          timeout=20 * PATIENCE)
    equal(done.returncode, code, done.stderr)
    return done.stderr


@case("what is wrong with a certificate or key is said, with the file and what to do")
def mistakes():
    encrypted, der_file, twice = (os.path.join(keys, name) for name in ("encrypted.pem", "der.pem", "twice.pem"))
    openssl("pkey", "-in", first[1], "-aes128", "-passout", "pass:x", "-out", encrypted)
    openssl("x509", "-in", first[0], "-outform", "DER", "-out", der_file)
    with open(twice, "wb") as file:
        for path in (wild[0], first[0]):
            with open(path, "rb") as part:
                file.write(part.read())
    small = certificate("small", ["small.test"], key=("rsa:1024",))
    for certificate_given, words in ((keys + "/none.pem," + first[1], ["none.pem", "No such file"]),
                                     (first[0] + "," + keys + "/none", ["key", "No such file"]),
                                     (first[0] + "," + wild[1], ["does not belong", "first.pem"]),
                                     (first[0] + "," + encrypted, ["encrypted", "openssl pkey"]),
                                     (first[0], ["no private key", "first.pem"]),
                                     (der_file + "," + first[1], ["no certificate", "BEGIN CERTIFICATE"]),
                                     (twice + "," + first[1], ["come first", "number 2"]),
                                     (",".join(small), ["small.pem", "too small"]),
                                     ("/," + first[1], ["Is a directory"])):
        said = failing("--tls", "--certificate", certificate_given)
        for word in words:
            assert word in said, "%r is not in: %s" % (word, said)
    assert "OpenSSL does not know" in failing("--tls", *pair(first), "--tls-ciphers", "TLS_NONE")
    assert "knows none" in failing("--tls", *pair(first), "--tls-ciphers", "nonsense")
    assert "nonsense" in failing("--tls", *pair(first), "--tls-groups", "nonsense")


@case("options that make no sense together are wrong usage, and say what is missing")
def wrong_usage():
    for options, word in ((("--tls",), "--certificate FILE,KEYFILE"), (pair(first), "--listen-tls"),
                          (("--tls-dev", *pair(first)), "not both"),
                          (("--redirect-to-https", "--tls", *pair(first)), "nothing to redirect"),
                          (("--tls-min", "1.1"), "1.2")):
        said = failing(*options, code=2)
        assert word in said, said


@case("a key that may not be read is said so")
def unreadable():
    secret = new_root()
    for path in first:
        shutil.copy(path, secret)
    os.chmod(os.path.join(secret, "first-key.pem"), 0o600)
    os.chmod(secret, 0o755)
    wrap = ["setpriv", "--reuid", "65534", "--clear-groups"] if os.geteuid() == 0 else []
    if not wrap:
        os.chmod(os.path.join(secret, "first-key.pem"), 0)
    done = subprocess.run([*wrap, SLUICE, "serve", root, "--listen", LOCAL + ":0", "--tls", "--certificate",
                           "%s/first.pem,%s/first-key.pem" % (secret, secret)], capture_output=True, text=True,
                          timeout=20 * PATIENCE)
    equal(done.returncode, 1)
    assert "cannot read the key" in done.stderr and "EACCES" in done.stderr, done.stderr


@case("a certificate that has expired is served, and the operator is warned")
def expired():
    old = os.path.join(keys, "old.pem")
    request = openssl("req", "-new", "-key", first[1], "-subj", "/CN=old.test")
    with open(os.path.join(keys, "ca.cnf"), "w", encoding="ascii") as file:
        file.write("[ca]\ndefault_ca=a\n[a]\ndatabase=%s/index\nserial=%s/serial\nnew_certs_dir=%s\ndefault_md=sha256\n"
                   "policy=p\n[p]\ncommonName=supplied\n" % (keys, keys, keys))
    write(keys, "index")
    write(keys, "serial", data=b"01\n")
    openssl("ca", "-batch", "-config", os.path.join(keys, "ca.cnf"), "-cert", first[0], "-keyfile", first[1], "-notext",
            "-startdate", "20200101000000Z", "-enddate", "20210101000000Z", "-in", "/dev/stdin", "-out", old,
            input=request)
    with Secure(root, certificates=((old, first[1]),)) as server:
        assert re.search(r"old\.pem expired on 2021-01-01", server.errors()), server.errors()
        with Browser(server) as client:
            equal(client.get("/small").status, 200)


# ---- Beside HTTP, and for trying out ----

class Double(Secure):
    """HTTP and HTTPS."""

    def __init__(self, *options, **more):
        Server.__init__(self, root, "--listen-tls", LOCAL + ":0", *pair(first), *options, **more)

    def is_ready(self):
        match = re.search(r"http://\S+:(\d+)/ and https://", self.output())
        if match and super().is_ready():
            self.plain = (LOCAL, int(match[1]))
        return match


@case("HTTP and HTTPS side by side give the same; the log has the bytes of bodies, the receipt says what was encrypted")
def side_by_side():
    log = os.path.join(keys, "access.log")
    with Double("--access-log", log, "--receipts") as server:
        with Browser(server) as client, Client(server.plain) as plain:
            same_bytes(client.get("/medium").body, plain.get("/medium").body)
            client.get("/large", "Range: bytes=0-9")
        until(lambda: server.errors().count("receipt 127.0.0.1") == 2, 5, "receipts")
        receipts = re.findall("receipt 127.*", server.errors())
        equal(sorted("transformed" in receipt for receipt in receipts), [False, True])
    with open(log, encoding="ascii") as file:
        equal(sorted(re.findall(r'" (\d+) (\d+) ', file.read())), [("200", "100000"), ("200", "100000"), ("206", "10")])


@case("--redirect-to-https sends HTTP there, but for ACME, whose files are served without TLS")
def redirected():
    write(root, ".well-known", "acme-challenge", "token", data=b"proof")
    with Double("--redirect-to-https") as server:
        with Client(server.plain) as plain:
            response = plain.get("/large?a=b%20c", host="example.org:8080")
            equal(response.status, 308)
            equal(response["Location"], "https://example.org:%d/large?a=b%%20c" % server.port)
            equal(plain.get("/", host="[::1]")["Location"], "https://[::1]:%d/" % server.port)
            equal(plain.get("/.well-known/acme-challenge/token").body, b"proof")
            equal(plain.get("/small", method="POST").status, 308)
            for path in ("/.well-known/acme-challenge/../../small", "/.well-known/acme-challenge/%2e%2e/x"):
                equal(plain.get(path).status, 308, path)
        with Browser(server) as client:
            equal(client.get("/small").status, 200)


@case("--tls-dev makes an authority and a certificate once, for this user alone, and curl trusts it by name")
def development():
    config = new_root()
    environment = {"XDG_CONFIG_HOME": config}
    authority = os.path.join(config, "sluice", "tls", "authority.pem")
    before = None
    for start in range(3):
        if start == 2:
            os.remove(os.path.join(config, "sluice", "tls", "certificate-key.pem"))
        server = Secure.__new__(Secure)
        Server.__init__(server, root, "--tls-dev", env=environment)
        with server:
            equal("certutil" in server.errors(), start == 0)
            for host in ("localhost", "127.0.0.1"):
                done = subprocess.run(["curl", "-sS", "--max-time", "20", "--cacert", authority,
                                       "https://%s:%d/small" % (host, server.port)], capture_output=True)
                equal((done.returncode, done.stderr), (0, b""))
        with open(authority, "rb") as file:
            now = file.read()
        assert before in (None, now), "another authority"
        before = now
    folder = os.path.dirname(authority)
    equal(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
    for name in ("authority-key.pem", "certificate-key.pem"):
        equal(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode), 0o600)
    os.chmod(folder, 0o777)
    done = subprocess.run([SLUICE, "serve", root, "--listen", LOCAL + ":0", "--tls-dev"], capture_output=True,
                          text=True, env=dict(os.environ, **environment), timeout=20 * PATIENCE)
    equal(done.returncode, 1)
    assert "others may write there" in done.stderr, done.stderr


@case("the TLS server of these cases ends with code 0, no process left and no complaint")
def closing():
    secure().stop()


main()
