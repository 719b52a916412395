#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which server gets a connection: balancing, weights, backup servers, health checks, limits and queues, the PROXY
protocol, and routing by what a TLS client asks for. HAProxy is the other end of the PROXY protocol, OpenSSL that of
TLS."""

import collections
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

from harness import PATIENCE, Skip, case, content, equal, main, new_root, same_bytes, together, until
from proxying import (CONTROL, LOCAL, Backend, Control, Proxy, Refusing, address_text, ask_name, connect, count_open, echo,
                      how_it_ends, listening, named, needs_sluice, read_all, read_exactly, reset, send_in_background,
                      terminate, turned_away)


def text(address, *words):
    return ",".join([address_text(address), *words])


@contextlib.contextmanager
def backends(count, handler=named):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Backend(handler(str(i)))) for i in range(count)]


def shares(proxy, count):
    return collections.Counter(ask_name(proxy) for _ in range(count))


def shares_or_none(proxy, count):
    try:
        return shares(proxy, count)
    except ConnectionResetError:
        return None


# ---- Balancing ----

@case("round robin: each server in turn")
def round_robin():
    with backends(3) as (a, b, c), Proxy(a.address, b.address, c.address) as proxy:
        equal(shares(proxy, 30), {"0": 10, "1": 10, "2": 10})


@case("weights: as many connections as the weight says, spread out; weight 0 gets none")
def weights():
    with backends(3) as (a, b, c), \
            Proxy(text(a.address, "weight=1"), text(b.address, "weight=3"), text(c.address, "weight=0")) as proxy:
        names = [ask_name(proxy) for _ in range(40)]
        equal(collections.Counter(names), {"0": 10, "1": 30})
        assert "1111" not in "".join(names), names  # smooth


@case("least connections: who has fewest gets the next, whoever's turn it is; ends count")
def least_connections():
    with backends(3) as (a, b, c), Proxy(a.address, b.address, c.address, balance="least-connections") as proxy:
        kept = collections.defaultdict(list)
        for _ in range(9):
            name, one = ask_name(proxy, keep=True)
            kept[name].append(one)
        equal({name: len(all) for name, all in kept.items()}, {"0": 3, "1": 3, "2": 3})
        for one in kept.pop("1"):
            one.close()
        time.sleep(0.1)
        for _ in range(3):
            name, one = ask_name(proxy, keep=True)
            equal(name, "1")
            kept[name].append(one)
        for all in kept.values():
            for one in all:
                one.close()


@case("source and consistent: a client's address always gets the same server; other addresses get others")
def source():
    for how in ("source", "consistent"):
        with backends(4) as some, Proxy(*(one.address for one in some), balance=how) as proxy:
            got = {}
            for last in range(1, 41):
                address = "127.0.1.%d" % last
                for _ in range(2):
                    with socket.socket() as client:
                        client.bind((address, 0))
                        client.settimeout(5)
                        client.connect(proxy.address)
                        name = client.recv(10)
                        equal(got.setdefault(address, name), name, "server of " + address)
            counted = collections.Counter(got.values())
            equal(len(counted), 4, "servers that got something with %s" % how)
            assert max(counted.values()) <= 25, counted


@case("consistent: when a server goes away, only its clients get another one; they come back with it")
def consistent():
    def owners(proxy):
        got = {}
        for last in range(1, 61):
            with socket.socket() as client:
                client.bind(("127.0.2.%d" % last, 0))
                client.settimeout(5)
                client.connect(proxy.address)
                got[last] = client.recv(10)
        return got
    with backends(4) as some, Proxy(*(one.address for one in some), balance="consistent") as proxy:
        before = owners(proxy)
        some[2].close()
        after = owners(proxy)
        for last, name in before.items():
            if name != b"2\n":
                equal(after[last], name, "server of client %d, which did not go away" % last)
            else:
                assert after[last] != b"2\n"
        with Backend(named("2"), some[2].address):
            if not CONTROL:
                equal(owners(proxy), before)


@case("a backup server gets connections only while no other is up")
def backup():
    with backends(2) as (a, b), Proxy(a.address, text(b.address, "backup"), check="tcp", check_interval="50ms",
                                      fall=2, rise=2) as proxy:
        equal(shares(proxy, 6), {"0": 6})
        address = a.address
        a.close()
        until(lambda: ask_name_or_none(proxy) == "1", 3, "the backup server")
        time.sleep(0.2)
        equal(shares(proxy, 6), {"1": 6})
        with Backend(named("0"), address):
            until(lambda: ask_name_or_none(proxy) == "0", 3, "the first server again")
            time.sleep(0.2)
            equal(shares(proxy, 6), {"0": 6})


def ask_name_or_none(proxy):
    try:
        return ask_name(proxy)
    except ConnectionResetError:
        return None


@case("two workers share the turns, the limits and the health of the servers")
def two_workers():
    with backends(2) as (a, b), Proxy(text(a.address, "max=5"), text(b.address, "max=5"), workers=2,
                                      queue_timeout="200ms") as proxy:
        kept = [ask_name(proxy, keep=True) for _ in range(10)]
        equal(collections.Counter(name for name, _ in kept), {"0": 5, "1": 5})
        turned_away(proxy.address)
        for _, one in kept:
            one.close()
        until(lambda: a.accepted + b.accepted == 10 and ask_name_or_none(proxy), 3, "a place")


# ---- Health ----

@case("a server that refuses checks gets no connections after fall of them, and some again after rise")
def checks_tcp():
    with backends(2) as (a, b), Proxy(a.address, b.address, check="tcp", check_interval="50ms", rise=2, fall=2,
                                      retries=0) as proxy:
        equal(shares(proxy, 8), {"0": 4, "1": 4})
        address = a.address
        a.close()
        until(lambda: shares_or_none(proxy, 8) == {"1": 8}, 4, "the end of connections to the server that is down")
        with Backend(named("0"), address):
            until(lambda: shares(proxy, 8) == {"0": 4, "1": 4}, 4, "the server that is up again")


@case("a check by HTTP: 200 and 302 are up; 500, silence, nonsense and an early end are down")
def checks_http():
    answers = {"ok": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "moved": b"HTTP/1.0 302 Found\r\n\r\n",
               "wrong": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "nonsense": b"220 smtp\r\n", "early": b"",
               "silent": None}

    def handler(name):
        def run(one):
            one.settimeout(0.1)
            try:
                first = one.recv(4096)
            except TimeoutError:  # a client of the service
                one.sendall(name.encode() + b"\n")
                return
            assert first.startswith(b"GET /health HTTP/1.")
            requests.append(first)
            if answers[name] is None:
                time.sleep(1)
            else:
                one.sendall(answers[name])
        return run
    requests = []
    with contextlib.ExitStack() as stack:
        some = [stack.enter_context(Backend(handler(name))) for name in answers]
        proxy = stack.enter_context(Proxy(*(one.address for one in some), check="http", check_path="/health",
                                          check_interval="100ms", check_timeout="150ms", rise=1, fall=1, retries=0))
        until(lambda: shares_or_none(proxy, 6) == {"ok": 3, "moved": 3}, 4, "connections to the two good servers only")
        time.sleep(0.3)
        equal(shares(proxy, 6), {"ok": 3, "moved": 3})
        if not CONTROL:
            assert re.search(rb"(?i)\r\nhost: 127\.0\.0\.1:\d+\r\n", requests[0]), requests[0]


@case("where every server is down, a client is told at once, and served again when one comes up")
def all_down():
    with Refusing() as one, Refusing() as two, \
            Proxy(one.address, two.address, check="tcp", check_interval="50ms", fall=1, rise=1) as proxy:
        time.sleep(0.3)
        turned_away(proxy.address)
        one.holder.close()
        with Backend(named("up"), one.address):
            until(lambda: ask_name_or_none(proxy) == "up", 3, "the server that came up")


@case("connections that a server has stay when its checks fail")
def checks_leave_connections():
    with backends(2, lambda name: echo) as (a, b), \
            Proxy(a.address, b.address, check="tcp", check_interval="50ms", fall=1) as proxy:
        clients = [proxy.connect() for _ in range(2)]
        for one in clients:
            one.sendall(b"first")
            equal(read_exactly(one, 5), b"first")
        a.close()
        time.sleep(0.4)
        for one in clients:
            one.sendall(b"second")
            equal(read_exactly(one, 6), b"second")
            one.close()


# ---- Limits and queues ----

@case("max=2 of each of two servers: the fifth client waits, and gets the first place that becomes free; FIFO")
def limits():
    with backends(2) as (a, b), Proxy(text(a.address, "max=2"), text(b.address, "max=2")) as proxy:
        kept = [ask_name(proxy, keep=True) for _ in range(4)]
        equal(collections.Counter(name for name, _ in kept), {"0": 2, "1": 2})
        waiting = []
        for number in range(6):
            one = proxy.connect()
            one.sendall(b"early %d" % number)
            time.sleep(0.03)
            waiting.append(one)
        time.sleep(0.1)
        equal((a.accepted, b.accepted), (2, 2))
        for number, one in enumerate(waiting):
            name, gone = kept.pop(0)
            gone.close()
            data = read_exactly(one, 9)
            equal(data, name.encode() + b"\nearly %d" % number, "what the client that waited longest got")
            kept.append((name, one))
        for _, one in kept:
            one.close()


@case("a client that leaves the queue does not take a place")
def leaves_queue():
    with backends(1) as (a,), Proxy(text(a.address, "max=1")) as proxy:
        _, first = ask_name(proxy, keep=True)
        leaving = [proxy.connect() for _ in range(5)]
        time.sleep(0.1)
        for one in leaving:
            reset(one)
        time.sleep(0.1)
        last = proxy.connect()
        time.sleep(0.05)
        first.close()
        equal(read_exactly(last, 2), b"0\n")
        if not CONTROL:
            equal(a.accepted, 2, "connections that the server got")
        last.close()


@case("--max-queue 2: the third that would wait is refused at once")
def max_queue():
    needs_sluice()
    with backends(1) as (a,), Proxy(text(a.address, "max=1"), max_queue=2) as proxy:
        _, first = ask_name(proxy, keep=True)
        waiting = [proxy.connect() for _ in range(2)]
        time.sleep(0.1)
        turned_away(proxy.address, most=0.5)
        first.close()
        for one in waiting:
            equal(read_exactly(one, 2), b"0\n")
            one.close()


@case("--max-connections 3: further clients wait to be accepted, and are served when others go")
def max_connections():
    needs_sluice()
    with backends(1) as (a,), Proxy(a.address, max_connections=3) as proxy:
        kept = [ask_name(proxy, keep=True)[1] for _ in range(3)]
        more = [proxy.connect() for _ in range(3)]
        time.sleep(0.2)
        equal(a.accepted, 3)
        for one in kept:
            one.close()
        for one in more:
            equal(read_exactly(one, 2), b"0\n")
            one.close()


@case("--max-total 4 with 4 workers: each of 4 clients that come while all are busy finds the worker with room")
def worker_with_room():
    needs_sluice()
    for loop in ("io_uring", "epoll"):
        with backends(1) as (a,), \
                Proxy(a.address, listen=[(LOCAL, 0)] * 2, workers=4, max_total=4, loop=loop) as proxy:
            for _ in range(5):
                for worker in proxy.worker_pids():
                    os.kill(worker, signal.SIGSTOP)
                clients = [connect(proxy.addresses[number % 2]) for number in range(4)]
                for worker in proxy.worker_pids():
                    os.kill(worker, signal.SIGCONT)
                for client in clients:
                    equal(read_exactly(client, 2), b"0\n")
                for client in clients:
                    client.close()


@case("--max-connections 1: a client that comes just as a place becomes free does not overtake the one that waits")
def no_overtaking():
    needs_sluice()
    with backends(1) as (a,), Proxy(a.address, max_connections=1) as proxy:
        for _ in range(20):
            held = ask_name(proxy, keep=True)[1]
            sockets = count_open(proxy.worker())
            waiting = proxy.connect()
            until(lambda: count_open(proxy.worker()) == sockets + 1, 5, "the client that waits")
            os.kill(proxy.worker(), signal.SIGSTOP)  # so that it finds both, the end and the newcomer, in one turn
            reset(held)
            newcomer = proxy.connect()
            os.kill(proxy.worker(), signal.SIGCONT)
            equal(read_exactly(waiting, 2), b"0\n")
            waiting.close()
            equal(read_exactly(newcomer, 2), b"0\n")
            newcomer.close()


@case("1,000 clients through 20 places, each for a moment: all are served, no place is lost", limit=40)
def many_queue():
    def handler(name):
        def run(one):
            data = one.recv(100)
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.005)
            with lock:
                now[0] -= 1
            one.sendall(data)
        return run
    lock, now, most = threading.Lock(), [0], [0]
    with backends(2, handler) as (a, b), Proxy(text(a.address, "max=10"), text(b.address, "max=10"),
                                               workers=1 if CONTROL else 2) as proxy:
        def clients(first):
            for number in range(first, first + 100):
                with proxy.connect(timeout=20) as one:
                    one.sendall(b"%d" % number)
                    one.shutdown(socket.SHUT_WR)
                    equal(read_all(one), b"%d" % number)
        together([lambda i=i: clients(i * 100) for i in range(10)])
        assert most[0] <= 20, most
        equal(a.accepted + b.accepted, 1000)


# ---- PROXY protocol ----

def v1(source, destination):
    family = "TCP6" if ":" in source[0] else "TCP4"
    return ("PROXY %s %s %s %d %d\r\n" % (family, source[0], destination[0], source[1], destination[1])).encode()


def v2(source, destination, extensions=b"", command=0x21):
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, host) for host, _ in (source, destination))
    addresses += struct.pack("!HH", source[1], destination[1]) + extensions
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([command, 0x11 if family == socket.AF_INET else 0x21]) + struct.pack(
        "!H", len(addresses)) + addresses


def read_header(one):
    """A PROXY header of either version. Returns source, destination."""
    first = read_exactly(one, 12)
    if first == b"\r\n\r\n\0\r\nQUIT\n":
        command, family, length = struct.unpack("!BBH", read_exactly(one, 4))
        block = read_exactly(one, length)
        if command == 0x20 or family == 0:
            return None, None
        size, kind = (4, socket.AF_INET) if family == 0x11 else (16, socket.AF_INET6)
        ports = struct.unpack("!HH", block[2 * size:2 * size + 4])
        return tuple((socket.inet_ntop(kind, block[i * size:i * size + size]), ports[i]) for i in (0, 1))
    line = first
    while not line.endswith(b"\r\n"):
        line += read_exactly(one, 1)
    words = line.decode().split()
    equal(words[0], "PROXY")
    if words[1] == "UNKNOWN":
        return None, None
    return (words[2], int(words[4])), (words[3], int(words[5]))


@case("--send-proxy v1 and v2: the server reads the client's address and the one it connected to, then its bytes")
def sends():
    for version in ("v1", "v2"):
        for host in ("127.0.0.1", "::1"):
            with listening((host, 0)) as listener, \
                    Proxy(listener.getsockname()[:2], listen=[(host, 0)], send_proxy=version) as proxy, \
                    proxy.connect() as client:
                client.sendall(b"payload")
                server, _ = listener.accept()
                header = read_header(server)
                equal(header, (client.getsockname()[:2], proxy.address), version)
                equal(read_exactly(server, 7), b"payload")
                server.sendall(b"answer")
                equal(read_exactly(client, 6), b"answer")
                server.close()


@case("--send-proxy: the header comes although the client sends nothing")
def sends_alone():
    with listening() as listener, Proxy(listener.getsockname(), send_proxy="v2") as proxy, proxy.connect() as client:
        server, _ = listener.accept()
        equal(read_header(server)[0], client.getsockname())
        server.sendall(b"220 hello\r\n")
        equal(read_exactly(client, 11), b"220 hello\r\n")
        server.close()


@case("--accept-proxy: the address in the header is the client's from there on, in either version, with extensions, in "
      "one piece with the payload or byte by byte")
def accepts():
    source, destination = ("192.0.2.7", 4242), ("198.51.100.1", 443)
    source6, destination6 = ("2001:db8::7", 4242), ("2001:db8::1", 443)
    headers = [(v1(source, destination), source), (v2(source, destination), source),
               (v1(source6, destination6), source6), (v2(source6, destination6), source6),
               (v2(source, destination, b"\x04\0\x04abcd" + b"\x02\0\x0bexample.org"), source)]
    with listening() as listener, Proxy(listener.getsockname(), accept_proxy=True, send_proxy="v1") as proxy:
        for header, expected in headers:
            for whole in (True,) if CONTROL else (True, False):  # HAProxy wants it in one piece
                with proxy.connect() as client:
                    if whole:
                        client.sendall(header + b"payload")
                    else:
                        for byte in header + b"payload":
                            client.sendall(bytes([byte]))
                            time.sleep(0.0005)
                    server, _ = listener.accept()
                    equal(read_header(server)[0], expected)
                    equal(read_exactly(server, 7), b"payload")
                    server.sendall(b"ok")
                    equal(read_exactly(client, 2), b"ok")
                    server.close()
        # LOCAL: the connection's own addresses count.
        with proxy.connect() as client:
            client.sendall(v2(source, destination, command=0x20) + b"payload")
            server, _ = listener.accept()
            assert read_header(server)[0] in (client.getsockname(), None)
            equal(read_exactly(server, 7), b"payload")
            server.close()


@case("--accept-proxy: what is no header is refused, and no server hears of it")
def refuses():
    good = v2(("192.0.2.7", 1), ("192.0.2.8", 2))
    wrong = [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3.4\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
             b"PROXY TCP4 999.2.3.4 1.2.3.4 1 2\r\n", b"PROXY " + b"x" * 200, good[:12] + b"\x31" + good[13:],
             good[:13] + b"\x11\0\x02ab", b"\r\n\r\n\0\r\nQUIX\n" + good[12:]]
    with Backend(echo) as backend, Proxy(backend.address, accept_proxy=True) as proxy:
        for data in wrong[:1] if CONTROL else wrong:  # HAProxy waits for the rest of the others
            turned_away(proxy.address, data)
        time.sleep(0.05)
        equal(backend.accepted, 0)
        with proxy.connect() as client:
            client.sendall(good + b"payload")
            equal(read_exactly(client, 7), b"payload")


@case("PROXY v2 to HAProxy, PROXY v2 from HAProxy: each understands the other, and the bytes are right")
def with_haproxy():
    data = content(300_000)
    for version in ("v1", "v2"):
        with listening() as listener, \
                Control(listener.getsockname(), accept_proxy=True, send_proxy="v2") as behind, \
                Proxy(behind.address, send_proxy=version) as proxy, \
                Proxy(listener.getsockname(), accept_proxy=True, send_proxy="v2") as accepting, \
                Control(accepting.address, send_proxy=version) as front:
            for way in (proxy, front):
                with way.connect() as client:
                    sender = send_in_background(client, data)
                    server, _ = listener.accept()
                    server.settimeout(5)
                    equal(read_header(server)[0], client.getsockname(), "the client that the last server sees")
                    same_bytes(read_exactly(server, len(data)), data)
                    sender.join()
                    server.close()


# ---- TLS ----

class TlsServer:
    """openssl s_server, which answers each line with the line reversed."""

    def __init__(self, directory, name, alpn=None):
        if not shutil.which("openssl"):
            raise Skip("needs openssl: apt-get install openssl")
        key, certificate = directory + "/%s.key" % name, directory + "/%s.pem" % name
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                        "-nodes", "-subj", "/CN=" + name, "-days", "2", "-keyout", key, "-out", certificate],
                       check=True, capture_output=True)
        command = ["openssl", "s_server", "-accept", LOCAL + ":0", "-key", key, "-cert", certificate, "-rev"]
        if alpn:
            command += ["-alpn", alpn]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            match = re.match(r"ACCEPT 127\.0\.0\.1:(\d+)", line)
            if match:
                self.address = (LOCAL, int(match[1]))
                break
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        terminate(self.process)


def s_client(address, *options):
    """The name in the certificate that a client of OpenSSL's gets, and the answer to a line; None: no connection."""
    done = subprocess.run(["openssl", "s_client", "-connect", address_text(address), "-ign_eof", *options],
                          input="hello\nCLOSE\n", capture_output=True, text=True, timeout=10 * PATIENCE)
    match = re.search(r"subject=CN ?= ?(\S+)", done.stdout)
    if not match:
        return None
    assert "olleh" in done.stdout, done.stdout
    return match[1]


def hello(name, alpn=(), records=None):
    """The bytes of a ClientHello, and the TLS object that goes on from there."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    data = outgoing.read()
    if records:  # the same message in several records
        kind, message = data[:3], data[5:]
        data = b"".join(kind + struct.pack("!H", len(message[i:i + records])) + message[i:i + records]
                        for i in range(0, len(message), records))
    return data, tls, incoming, outgoing


def shake_hands(client, name, alpn=(), piece=None, records=None):
    """A whole handshake. Returns the name in the server's certificate and the protocol agreed on."""
    data, tls, incoming, outgoing = hello(name, alpn, records=records)
    for i in range(0, len(data), piece or len(data)):
        client.sendall(data[i:i + (piece or len(data))])
        if piece:
            time.sleep(0.0003)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.sendall(outgoing.read())
            block = client.recv(1 << 16)
            if not block:
                raise ConnectionResetError("the end in the handshake") from None
            incoming.write(block)
    client.sendall(outgoing.read())
    certificate = tls.getpeercert(binary_form=True)
    tls.write(b"hello\n")
    client.sendall(outgoing.read())
    while True:
        try:
            equal(tls.read(), b"olleh\n")
            break
        except ssl.SSLWantReadError:
            incoming.write(client.recv(1 << 16))
    # The common name lies in the certificate as a string of its own.
    match = re.search(rb"(?s)\x06\x03U\x04\x03\x0c(.)", certificate)
    return certificate[match.end():match.end() + match[1][0]].decode(), tls.selected_alpn_protocol()


@case("TLS by name: each name to its server, beneath a wildcard too, others to the one without names; ALPN chooses as "
      "well; nothing is decrypted", limit=60)
def by_name():
    needs_sluice()
    directory = new_root()
    with TlsServer(directory, "one.test") as one, TlsServer(directory, "wild.test") as wild, \
            TlsServer(directory, "http2.test", alpn="h2") as http2, TlsServer(directory, "rest.test") as rest, \
            Proxy(text(one.address, "sni=one.test", "sni=uno.test"), text(wild.address, "sni=*.wild.test"),
                  text(http2.address, "alpn=h2"), rest.address) as proxy:
        for name, server in (("one.test", "one.test"), ("ONE.test", "one.test"), ("uno.test", "one.test"),
                             ("a.wild.test", "wild.test"), ("a.b.wild.test", "wild.test"), ("wild.test", "rest.test"),
                             ("none.test", "rest.test")):
            with proxy.connect() as client:
                equal(shake_hands(client, name)[0], server, "server of " + name)
        with proxy.connect() as client:
            equal(shake_hands(client, "other.test", ("h2", "http/1.1")), ("http2.test", "h2"))
        with proxy.connect() as client:
            equal(shake_hands(client, "other.test", ("http/1.1",))[0], "rest.test")
        equal(s_client(proxy.address, "-servername", "one.test"), "one.test")
        equal(s_client(proxy.address, "-noservername"), "rest.test")
        equal(s_client(proxy.address, "-servername", "x.wild.test", "-tls1_2"), "wild.test")
        # However it comes.
        with proxy.connect() as client:
            equal(shake_hands(client, "one.test", piece=1)[0], "one.test")
        with proxy.connect() as client:
            equal(shake_hands(client, "one.test", records=40)[0], "one.test")
        with proxy.connect() as client:
            equal(shake_hands(client, "one.test", records=7, piece=3)[0], "one.test")


@case("a name that no server takes, no TLS at all, a hello too long, one that does not end: refused, no server hears")
def by_name_refused():
    needs_sluice()
    with Backend(echo) as backend, \
            Proxy(text(backend.address, "sni=one.test"), hello_max=1024, hello_timeout="400ms") as proxy:
        data = hello("two.test")[0]
        too_long = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + b"x" * 5000
        for first, most in ((data, 0.35), (b"GET / HTTP/1.1\r\n\r\n", 0.35), (too_long, 0.35),
                            (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 0.35), (hello("one.test")[0][:100], 2),
                            (b"", 2)):
            with proxy.connect() as client:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    client.sendall(first)
                how, got, took = how_it_ends(client, 3)
                assert took < most * PATIENCE, "%r: %s after %.2f s" % (first[:20], how, took)
                assert got == b"" or got[0] == 0x15, got  # nothing, or an alert
        equal(backend.accepted, 0)
        # And what is right passes, unchanged.
        first = hello("one.test")[0]
        with proxy.connect() as client:
            client.sendall(first)
            same_bytes(read_exactly(client, len(first)), first)


@case("PROXY header, then ClientHello, then a PROXY header to the server: all three at once")
def all_together():
    needs_sluice()
    with listening() as listener, Proxy(text(listener.getsockname(), "sni=one.test"), accept_proxy=True,
                                        send_proxy="v2") as proxy, proxy.connect() as client:
        first = hello("one.test")[0]
        client.sendall(v1(("192.0.2.1", 5), ("192.0.2.2", 6)) + first)
        server, _ = listener.accept()
        server.settimeout(5)
        equal(read_header(server)[0], ("192.0.2.1", 5))
        same_bytes(read_exactly(server, len(first)), first)
        server.close()


if __name__ == "__main__":
    main()
