#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a TCP proxy owes both its sides: half-closes, resets and back-pressure passed on, no stalls, timeouts, another
server before the first byte."""

import contextlib
import functools
import socket
import statistics
import time

from harness import PATIENCE, case, content, equal, main, new_root, note, same_bytes, together, until
from proxying import (CONTROL, MIB, Backend, Proxy, Refusing, Silent, ask_name, both_loops, count_open, echo,
                      echoed_to_the_end, fill, filled, how_it_ends, listening, named, needs_sluice, own_sockets, private_memory, queued,
                      read_all,
                      read_exactly, reset, send_in_background, told,
                      turned_away)

COMBINATIONS = (("epoll", "auto"), ("io_uring", "auto"), ("epoll", "splice"), ("io_uring", "copy"))
PIPE = (8 if CONTROL else 1) * MIB
MESSAGE = 8 << 10  # what is received at once outside of pipes
DATA = content(5 * MIB + 77)


class Through:
    """A proxy with one server, which is this test."""

    def __init__(self, **options):
        self.listener = listening()
        self.proxy = Proxy(self.listener.getsockname(), **options)
        self.pid = self.proxy.worker()
        self.idle = count_open(self.pid)

    @contextlib.contextmanager
    def pair(self, **more):
        """Both ends of a connection through the proxy. Afterwards the proxy must have no socket of it left."""
        client = self.proxy.connect(**more)
        server, _ = self.listener.accept()
        server.settimeout(10 * PATIENCE)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            yield client, server
        finally:
            client.close()
            server.close()
        self.nothing_left()

    def nothing_left(self):
        until(lambda: count_open(self.pid) <= self.idle, 3, "the end of the connection in the proxy")
        equal(self.proxy.worker_pids(), [self.pid], "the worker")


_running = {}


def through(loop, route):
    if (loop, route) not in _running:
        _running[loop, route] = Through(loop=loop, route=route)
    return _running[loop, route]


def each(name, limit=30, combinations=COMBINATIONS, at_once=True):
    """A case that is run with each loop and route. The function gets the proxy with its server."""
    def one(function, loop, route):
        try:
            function(through(loop, route))
        except BaseException:
            _running.pop((loop, route)).proxy.kill()  # the next case shall not suffer
            raise

    def register(function):
        @case(name, limit=limit)
        def run():
            for loop, route in combinations:
                through(loop, route)
            runs = [functools.partial(told, functools.partial(one, function), *pair) for pair in combinations]
            if at_once:
                together(runs)
            else:
                for one_run in runs:
                    one_run()
        return function
    return register


# ---- Half-closes ----


@each("a side that has ended its direction gets all that the other one goes on sending")
def half_close(proxy):
    for first in (0, 1):
        with proxy.pair() as ends:
            done, going = ends[first], ends[1 - first]
            done.sendall(b"request")
            done.shutdown(socket.SHUT_WR)
            equal(read_all(going), b"request")
            for piece in range(0, len(DATA), 700_001):
                sender = send_in_background(going, DATA[piece:piece + 700_001])
                same_bytes(read_exactly(done, len(DATA[piece:piece + 700_001])), DATA[piece:piece + 700_001])
                sender.join()
            time.sleep(0.05)
            going.sendall(b"the last")
            going.shutdown(socket.SHUT_WR)
            equal(read_all(done), b"the last")


@each("an end comes after a bulk, and at once when nothing was sent")
def ends(proxy):
    for first in (0, 1):
        with proxy.pair() as ends:
            time.sleep(0.05)  # HAProxy makes an end before that a reset
            ends[first].shutdown(socket.SHUT_WR)
            how, data, took = how_it_ends(ends[1 - first])
            equal((how, data), ("end", b""))
            assert took < 0.5 * PATIENCE, took
            # The other direction ends with a bulk.
            sender = send_in_background(ends[1 - first], DATA)
            same_bytes(read_exactly(ends[first], len(DATA)), DATA)
            sender.join()
            ends[1 - first].shutdown(socket.SHUT_WR)
            equal(how_it_ends(ends[first])[:2], ("end", b""))


@each("both sides end while both are sending bulk")
def both_end(proxy):
    with proxy.pair() as (client, server):
        senders = [send_in_background(one, DATA) for one in (client, server)]
        for one in (server, client):
            same_bytes(read_exactly(one, len(DATA)), DATA)
        for sender in senders:
            sender.join()
        client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)
        equal(read_all(client) + read_all(server), b"")


# ---- Resets ----

def passed_on(victim, seconds=2):
    how, data, took = how_it_ends(victim, seconds)
    equal(how, how if CONTROL else "reset", "how it ended (after %d bytes)" % len(data))
    return data


@each("a reset of either side is a reset for the other: idle, after a message, in the middle of a bulk")
def resets(proxy):
    for first in (0, 1):
        with proxy.pair() as ends:
            reset(ends[first])
            equal(passed_on(ends[1 - first]), b"")
        with proxy.pair() as ends:
            ends[first].sendall(b"hello")
            equal(read_exactly(ends[1 - first], 5), b"hello")
            ends[1 - first].sendall(b"answer")
            equal(read_exactly(ends[first], 6), b"answer")
            reset(ends[first])
            equal(passed_on(ends[1 - first]), b"")
        with proxy.pair() as ends:
            ends[first].sendall(DATA[:MIB])
            same_bytes(read_exactly(ends[1 - first], MIB // 2), DATA[:MIB // 2])
            reset(ends[first])
            rest = passed_on(ends[1 - first])
            same_bytes(rest, DATA[MIB // 2:][:len(rest)])


@each("a reset reaches a side that sends and is not read, and one that is sent to and does not read")
def resets_under_pressure(proxy):
    for first in (0, 1):
        # The one that resets has been sending; the other one does not read.
        with proxy.pair(receive_buffer=65536) as ends:
            sent = fill(ends[first], quiet=0.15)
            assert sent > 100_000
            reset(ends[first])
            time.sleep(0.1)
            victim = ends[1 - first]
            until(lambda: victim.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or CONTROL, 2, "the reset")
        # The one that resets has not been reading.
        with proxy.pair(receive_buffer=65536) as ends:
            victim = ends[1 - first]
            fill(victim, quiet=0.15)
            reset(ends[first])
            until(lambda: victim.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 2, "the reset")


@each("a reset after the one's end of its direction still reaches the other")
def reset_after_end(proxy):
    for first in (0, 1):
        with proxy.pair() as ends:
            ends[first].sendall(b"request")
            ends[first].shutdown(socket.SHUT_WR)
            equal(read_all(ends[1 - first]), b"request")
            ends[1 - first].sendall(b"some of the answer")
            equal(read_exactly(ends[first], 18), b"some of the answer")
            reset(ends[first])
            victim = ends[1 - first]

            def noticed():
                try:
                    victim.send(b"x")
                except (ConnectionResetError, BrokenPipeError):
                    return True
                time.sleep(0.01)
                return False
            until(noticed, 2, "the reset")


@both_loops("a client that resets while its server is being connected to leaves nothing behind")
def reset_connecting(loop):
    with Silent() as silent, Proxy(silent.address, connect_timeout="20s", loop=loop) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)
        clients = [proxy.connect() for _ in range(20)]
        clients[0].sendall(b"early data")
        until(lambda: count_open(pid) >= idle + 40, 3, "20 connections being made")
        for one in clients:
            reset(one)
        if CONTROL:
            return  # keeps them until the timeout
        until(lambda: count_open(pid) <= idle, 2, "no connection left")


@both_loops("a client that has ended its direction while its server is being connected to is still served")
def end_connecting(loop):
    with Silent() as silent, listening() as listener, Proxy(
            silent.address, listener.getsockname(), connect_timeout="400ms", loop=loop) as proxy:
        for _ in range(2):  # one of them is sent to the silent one first
            client = proxy.connect()
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            server, _ = listener.accept()
            equal(read_all(server), b"request")
            server.sendall(b"answer")
            server.close()
            equal(read_all(client), b"answer")


# ---- Back-pressure ----

def in_proxy(pid, sent, source, sink):
    """Bytes that are in the proxy's own memory and pipes: what was sent and is in no queue of a socket, once nothing
    moves any more."""
    own = own_sockets(pid)
    by_peer = {one.getpeername(): one for one in own}
    facing_source, facing_sink = by_peer[source.getsockname()], by_peer[sink.getsockname()]
    seen = []

    def at_rest():
        seen.append((queued(source)[1], queued(facing_source)[0], queued(facing_sink)[1], queued(sink)[0]))
        return len(seen) > 20 and len(set(seen[-20:])) == 1
    until(at_rest, 10, "rest")
    for one in own:
        one.close()
    return sent - sum(seen[-1])


@each("a sink that does not read stops its source; at most a pipe and a message lie in the proxy; all comes in the end",
      limit=60)
def back_pressure(proxy):
    for first in (0, 1):
        with proxy.pair(receive_buffer=300_000, send_buffer=300_000) as ends:
            source, sink = ends[first], ends[1 - first]
            sent = fill(source)
            held = in_proxy(proxy.pid, sent, source, sink)
            note("%s stopped after %d bytes, of which %d in the proxy" % (("client", "server")[first], sent, held))
            assert 0 <= held <= PIPE + MESSAGE, held
            assert sent < 64 * MIB, sent
            # The other direction does not care.
            sink.sendall(b"ping")
            equal(read_exactly(source, 4), b"ping")
            # A little room: a little comes, and it stops again.
            same_bytes(read_exactly(sink, MIB), filled(MIB))
            source.shutdown(socket.SHUT_WR)
            same_bytes(read_all(sink), filled(sent)[MIB:])


@each("a stopped source goes on as soon as its sink reads, again and again")
def stop_and_go(proxy):
    for first in (0, 1):
        with proxy.pair(receive_buffer=50_000, send_buffer=50_000) as ends:
            source, sink = ends[first], ends[1 - first]
            data = DATA * 2
            sender = send_in_background(source, data)
            got = bytearray()
            for _ in range(8):
                time.sleep(0.02)
                got += read_exactly(sink, 300_001)
            got += read_exactly(sink, len(data) - len(got))
            sender.join()
            same_bytes(bytes(got), data)


@case("100 stopped connections: what the proxy holds for each is bounded", sanitized=False)
def many_stopped():
    def stop(count):
        for _ in range(count):
            one = proxy.connect(send_buffer=50_000)
            one.setblocking(False)
            clients.append(one)
            with contextlib.suppress(BlockingIOError):
                while True:
                    one.send(DATA[:MIB])
        time.sleep(0.3)
        return private_memory(pid), count_open(pid, "pipe:")
    with Backend(lambda one: time.sleep(30)) as backend, Proxy(backend.address) as proxy:
        pid = proxy.worker()
        clients = []
        before, pipes_before = stop(30)
        after, pipes_after = stop(100)
        note("%d bytes of memory and %.1f ends of pipes each" % ((after - before) / 100,
                                                                (pipes_after - pipes_before) / 100))
        assert after - before <= 100 * (20 << 10), after - before
        assert pipes_after - pipes_before <= 4 * 100
        for one in clients:
            reset(one)


# ---- No stalls ----

def rounds(one, other, count, size, answer=None):
    """Seconds that each of so many exchanges took."""
    message = content(size)
    answer = message if answer is None else answer
    took = []
    for _ in range(count):
        started = time.monotonic()
        if size > 60_000:
            sender = send_in_background(one, message)
            same_bytes(read_exactly(other, size), message)
            sender.join()
        else:
            one.sendall(message)
            same_bytes(read_exactly(other, size), message)
        other.sendall(answer)
        same_bytes(read_exactly(one, len(answer)), answer)
        took.append(time.monotonic() - started)
    return took


def no_stall(took, what):
    """A stall (delayed acknowledgements: 40 ms, a segment lost: 200) comes each time. Of a hundred one may take long, or
    two: the machine has other work."""
    took.sort()
    p99 = took[-max(3, len(took) // 100)]
    note("%s: median %.0f us, p99 %.1f ms, longest %.1f ms" % (what, statistics.median(took) * 1e6, p99 * 1e3,
                                                             took[-1] * 1e3))
    assert statistics.median(took) < 0.02, took
    assert p99 < 0.05 * PATIENCE, "p99 %.1f ms" % (p99 * 1e3)


@each("1 KB there and back: no stall", at_once=False)
def ping_pong(proxy):
    with proxy.pair() as (client, server):
        no_stall(rounds(client, server, 300, 1024), "1 KB both ways")
        no_stall(rounds(server, client, 300, 1), "a byte both ways")


@each("the odd tail of a bulk comes at once, whoever sends it, and small messages after it",
      at_once=False)
def tails(proxy):
    with proxy.pair() as ends:
        for first in (0, 1):
            took = []
            for size in (100_001, 65536, 65537, 131071, 262144 + 3, 1448 * 7 + 1, 8192, 8193, 16384, 20_000, 999_999,
                         MIB, MIB + 1, 3 * MIB + 5):
                took += rounds(ends[first], ends[1 - first], 4, size, b"ok")
                took += rounds(ends[1 - first], ends[first], 2, 100)
            no_stall(took, "bulks with odd tails from the %s" % ("client", "server")[first])


@each("a message written in two pieces is not held back for the second", at_once=False)
def pieces(proxy):
    with proxy.pair() as (client, server):
        took = []
        for _ in range(30):
            started = time.monotonic()
            client.sendall(b"head")
            equal(read_exactly(server, 4), b"head")
            client.sendall(b"body" * 300)
            equal(read_exactly(server, 1200), b"body" * 300)
            took.append(time.monotonic() - started)
        no_stall(took, "two pieces")


# ---- Socket options ----


@each("both sockets of a connection have keep-alive as told, and no Nagle delay", combinations=COMBINATIONS[:2])
def keepalive(proxy):
    with proxy.pair() as (client, server):
        client.sendall(b"x")
        read_exactly(server, 1)
        own = own_sockets(proxy.pid)
        try:
            peers = {one.getpeername(): one for one in own}
            for peer in (client.getsockname(), server.getsockname()):
                one = peers[peer]
                equal(one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1, "SO_KEEPALIVE")
                equal(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60, "TCP_KEEPIDLE")
                equal(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1, "TCP_NODELAY")
        finally:
            for one in own:
                one.close()


@case("--keepalive 7s is what the kernel is told; 0 leaves it off")
def keepalive_chosen():
    for text, on, idle in (("7s", 1, 7), ("0", 0, None)):
        with Backend(echo) as backend, Proxy(backend.address, keepalive=text) as proxy, proxy.connect() as client:
            client.sendall(b"x")
            read_exactly(client, 1)
            own = own_sockets(proxy.worker())
            equal(len(own), 2, "connected sockets")
            for one in own:
                equal(one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), on, "SO_KEEPALIVE")
                if idle:
                    equal(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), idle, "TCP_KEEPIDLE")
                one.close()


# ---- Timeouts ----

def ends_after(one, least, most):
    """It ends, however, in that many seconds from now."""
    how, data, took = how_it_ends(one, most + 3)
    assert least <= took <= most * PATIENCE, "%s after %.2f s, not %g to %g" % (how, took, least, most)
    return how, data


@both_loops("a server that does not answer is given up after --connect-timeout")
def connect_timeout(loop):
    with Silent() as silent, Proxy(silent.address, connect_timeout="300ms", retries=0, loop=loop) as proxy:
        with proxy.connect() as client:
            ends_after(client, 0.25, 1)
        with proxy.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            ends_after(client, 0.25, 1)


@both_loops("--retries 2: three attempts, then the client is told")
def connect_attempts(loop):
    with Silent() as one, Silent() as two, Silent() as three, Proxy(
            one.address, two.address, three.address, connect_timeout="200ms", retries=2, loop=loop) as proxy:
        with proxy.connect() as client:
            ends_after(client, 0.5, 1.5)


@both_loops("a connection on which nothing moves for --idle-timeout is closed, on both sides")
def idle_timeout(loop):
    with listening() as listener, Proxy(listener.getsockname(), idle_timeout="500ms", loop=loop) as proxy:
        with proxy.connect() as client:
            server, _ = listener.accept()
            # Bytes in one direction count for both.
            for number in range(3):
                (client, server)[number % 2].sendall(b"x")
                read_exactly((server, client)[number % 2], 1)
                time.sleep(0.25)
            for _ in range(2):
                server.sendall(b"x")
                read_exactly(client, 1)
                time.sleep(0.25)
            ends_after(client, 0.15, 1.2)
            how_it_ends(server, 0.5)
            server.close()


@both_loops("a bulk that flows steadily, however slowly, is not idle")
def slow_bulk(loop):
    with listening(receive_buffer=20_000) as listener, \
            Proxy(listener.getsockname(), idle_timeout="400ms", loop=loop) as proxy:
        with proxy.connect(send_buffer=20_000) as client:
            server, _ = listener.accept()
            sender = send_in_background(client, DATA[:4 * MIB])
            got = bytearray()
            until_then = time.monotonic() + 1.2
            while time.monotonic() < until_then:
                got += server.recv(60_000)
                time.sleep(0.05)
            server.settimeout(5)
            got += read_exactly(server, 4 * MIB - len(got))
            sender.join()
            same_bytes(bytes(got), DATA[:4 * MIB])
            server.close()


@both_loops("a connection with one direction ended is closed after --half-close-timeout of silence")
def half_close_timeout(loop):
    with listening() as listener, \
            Proxy(listener.getsockname(), half_close_timeout="500ms", idle_timeout="10s", loop=loop) as proxy:
        pairs = []  # who has ended, and who goes on
        for first in (0, 1):
            client = proxy.connect()
            ends = (client, listener.accept()[0])
            ends[first].shutdown(socket.SHUT_WR)
            equal(ends[1 - first].recv(10), b"")
            pairs.append((ends[first], ends[1 - first]))
        for _ in range(4):  # not while it is used
            time.sleep(0.25)
            for done, going in pairs:
                going.sendall(b"x")
                read_exactly(done, 1)
        for done, going in pairs:
            ends_after(done, 0.3 if done is pairs[0][0] else 0, 1.5)
            done.close()
            going.close()


@both_loops("a client that waits in the queue is turned away after --queue-timeout")
def queue_timeout(loop):
    with listening() as listener, Proxy("%s:%d,max=1" % listener.getsockname(), queue_timeout="400ms",
                                        loop=loop) as proxy, proxy.connect() as first:
        server, _ = listener.accept()
        with proxy.connect() as second:
            ends_after(second, 0.3, 1.2)
        # The place is free again, and its time not counted against the next one.
        third = proxy.connect()
        time.sleep(0.1)
        first.close()
        server.close()
        server, _ = listener.accept()
        third.sendall(b"x")
        equal(read_exactly(server, 1), b"x")
        server.close()
        third.close()


@both_loops("a client that sends no PROXY header, or only a part, is closed after --hello-timeout")
def hello_timeout(loop):
    needs_sluice()
    with Backend(echo) as backend, Proxy(backend.address, accept_proxy=True, hello_timeout="300ms",
                                         loop=loop) as proxy:
        for begin in (b"", b"PROXY TCP4 127."):
            with proxy.connect() as client:
                client.sendall(begin)
                ends_after(client, 0.25, 1)
    equal(backend.accepted, 0, "connections to the server")


# ---- Another server before the first byte ----


@both_loops("where one server refuses, another one is tried before the client's first byte is gone")
def another_server(loop):
    with Refusing() as one, Refusing() as two, Backend(named("good")) as good, \
            Proxy(one.address, good.address, two.address, loop=loop) as proxy:
        for _ in range(9):
            name, client = ask_name(proxy, keep=True)
            equal(name, "good")
            client.sendall(b"to the good one")
            equal(read_exactly(client, 15), b"to the good one")
            client.close()


@both_loops("where one server does not answer, another one is tried after the connect timeout, with all bytes")
def another_after_timeout(loop):
    with Silent() as silent, Backend(echo) as good, \
            Proxy(silent.address, good.address, connect_timeout="200ms", loop=loop) as proxy:
        for _ in range(3):
            with proxy.connect() as client:
                message = DATA[:50_000]
                client.sendall(message)
                same_bytes(read_exactly(client, len(message)), message)


@both_loops("where all servers refuse, the client is told at once, and nothing is left")
def all_refuse(loop):
    with Refusing() as one, Refusing() as two, \
            Proxy(one.address, two.address, loop=loop, retries=0 if CONTROL else 1) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)
        for begin in (b"", b"hello"):
            turned_away(proxy.address, begin)
        until(lambda: count_open(pid) <= idle, 2, "no connection left")


@case("a Unix socket in front and behind: bytes, ends, and a server that is not there")
def unix_sockets():
    directory = new_root()
    with Backend(echo, directory + "/server") as backend, \
            Proxy(backend.address, listen=["unix:%s/proxy" % directory]) as proxy, proxy.connect() as client:
        echoed_to_the_end(client, DATA)
    with Proxy("unix:%s/nobody" % directory, listen=["unix:%s/other" % directory], retries=0) as proxy:
        turned_away(proxy.address)


@case("all proxies of these cases end with code 0, no process left and no complaint")
def closing():
    for one in _running.values():
        one.proxy.stop()


if __name__ == "__main__":
    main()
