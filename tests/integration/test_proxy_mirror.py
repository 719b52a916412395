#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--mirror: the shadow gets the same bytes, all or an exact prefix, and whatever it does, the live connection does not
notice."""

import contextlib
import functools
import random
import socket
import threading
import time

import scraping
from harness import LOCAL, PATIENCE, case, content, equal, main, note, same_bytes, together, until
from proxying import (MIB, Backend, Proxy, Refusing, Silent, address_text, both_loops, connect, count_open, echo,
                      echoed_to_the_end, fill, how_it_ends, listening, read_all, read_exactly, reset,
                      send_in_background, servers)

DATA = content(6 * MIB + 13)


def exchange(client, server, up, down):
    """Both directions at once. Returns how long it took."""
    started = time.monotonic()
    senders = [send_in_background(client, up), send_in_background(server, down)]
    got = []
    reader = threading.Thread(target=lambda: got.append(read_exactly(server, len(up))))
    reader.start()
    same_bytes(read_exactly(client, len(down)), down)
    reader.join()
    same_bytes(got[0], up)
    for sender in senders:
        sender.join()
    return time.monotonic() - started


def finish(client, server):
    for one in (client, server):
        one.shutdown(socket.SHUT_WR)
    equal((read_all(client), read_all(server)), (b"", b""))
    client.close()
    server.close()


@contextlib.contextmanager
def mirrored(loop, shadow, **options):
    """A proxy with one server and this address as shadow. Yields a function that makes a connection's both ends."""
    with listening() as listener, \
            Proxy(listener.getsockname(), mirror=address_text(shadow), loop=loop, **options) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)

        def pair():
            client = proxy.connect()
            server, _ = listener.accept()
            server.settimeout(10 * PATIENCE)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client, server
        yield pair
        until(lambda: count_open(pid) <= idle, 8, "no socket left in the proxy")
        equal(proxy.worker_pids(), [pid], "the worker")


def reader(shadow, results):
    """Accept connections and keep what each brings, in order of their ends."""
    def read(one):
        with one:
            results.append(how_it_ends(one, 10)[:2])

    def run():
        while True:
            try:
                one, _ = shadow.accept()
            except OSError:
                return
            threading.Thread(target=read, args=(one,), daemon=True).start()
    threading.Thread(target=run, daemon=True).start()


@both_loops("requests, responses, or both: the shadow gets each direction whole, on a connection of its own")
def directions(loop):
    for which in ("requests", "responses", "both"):
        results = []
        with listening() as shadow:
            reader(shadow, results)
            with mirrored(loop, shadow.getsockname(), mirror_direction=which) as pair:
                client, server = pair()
                up, down = DATA[:2_000_003], DATA[1:3_000_000]
                exchange(client, server, up, down)
                finish(client, server)
                expected = {"requests": [up], "responses": [down], "both": [up, down]}[which]
                until(lambda: len(results) == len(expected), 5, "the shadow's connections")
        for how, data in results:
            equal(how, "end")
        for data, whole in zip(sorted((data for _, data in results), key=len), expected):
            same_bytes(data, whole, which)


@both_loops("small messages, pauses and bulk mixed: what the shadow gets is what the server gets")
def mixed(loop):
    chosen = random.Random(loop)
    results = []
    with listening() as shadow:
        reader(shadow, results)
        with mirrored(loop, shadow.getsockname()) as pair:
            client, server = pair()
            sent = bytearray()
            for number in range(150):
                size = chosen.choice((1, 10, 300, 1024, 5000, 20_000, 200_000 if number % 10 == 0 else 100))
                at = chosen.randrange(len(DATA) - size)
                client.sendall(DATA[at:at + size])
                same_bytes(read_exactly(server, size), DATA[at:at + size])
                server.sendall(b"ok")
                equal(read_exactly(client, 2), b"ok")
                sent += DATA[at:at + size]
                if number % 25 == 0:
                    time.sleep(0.03)
            finish(client, server)
            until(lambda: results, 5, "the shadow's end")
    equal(results[0][0], "end")
    same_bytes(results[0][1], bytes(sent))


@both_loops("a shadow that never reads: live bytes and times as without it; it has a prefix, and is reset")
def never_reads(loop):
    with listening(receive_buffer=20_000) as shadow, mirrored(loop, shadow.getsockname()) as pair:
        client, server = pair()
        one, _ = shadow.accept()
        longest = 0
        for _ in range(12):
            took = exchange(client, server, DATA, b"ok" * 50)
            longest = max(longest, took)
        assert longest < 2 * PATIENCE, "%.2f s for %d bytes" % (longest, len(DATA))
        times = []
        for _ in range(200):
            times.append(exchange_small(client, server))
        times.sort()
        assert times[197] < 0.05 * PATIENCE, times[197]
        finish(client, server)
        how, data, _ = how_it_ends(one)
        equal(how, "reset")
        same_bytes(data, (DATA * 12)[:len(data)])
        assert len(data) < 12 * len(DATA)


def exchange_small(client, server):
    started = time.monotonic()
    client.sendall(b"x" * 100)
    read_exactly(server, 100)
    server.sendall(b"y" * 100)
    read_exactly(client, 100)
    return time.monotonic() - started


@both_loops("a shadow that reads slowly slows nobody down; what it has is a prefix, or all")
def reads_slowly(loop):
    with listening(receive_buffer=50_000) as shadow, mirrored(loop, shadow.getsockname()) as pair:
        client, server = pair()
        one, _ = shadow.accept()
        got, how = bytearray(), []

        def slowly():
            one.settimeout(10 * PATIENCE)
            try:
                while block := one.recv(20_000):
                    got.extend(block)
                    time.sleep(0.002)
                how.append("end")
            except ConnectionResetError:
                how.append("reset")
        thread = threading.Thread(target=slowly, daemon=True)
        thread.start()
        sent = 0
        started = time.monotonic()
        while time.monotonic() - started < 1:
            took = exchange(client, server, DATA, b"ok")
            assert took < 1 * PATIENCE, took
            sent += len(DATA)
        finish(client, server)
        thread.join()
        same_bytes(bytes(got), (DATA * (sent // len(DATA)))[:len(got)])
        assert how[0] == "reset" or len(got) == sent, (how, len(got), sent)
        note("%s: %d bytes live, the shadow has %d and %s" % (loop, sent, len(got), how[0]))


@both_loops("a shadow that refuses, and one that does not answer: nobody notices")
def not_there(loop):
    for kind in (Refusing, Silent):
        with kind() as nobody, mirrored(loop, nobody.address) as pair:
            for _ in range(3):
                client, server = pair()
                assert exchange_small(client, server) < 0.5 * PATIENCE
                assert exchange(client, server, DATA, DATA) < 2 * PATIENCE
                finish(client, server)


@both_loops("a shadow that resets, or closes, in the middle: nobody notices")
def breaks(loop):
    for how in (reset, socket.socket.close):
        with listening() as shadow, mirrored(loop, shadow.getsockname()) as pair:
            client, server = pair()
            one, _ = shadow.accept()
            one.settimeout(5 * PATIENCE)
            exchange(client, server, DATA[:1000], b"ok")
            same_bytes(read_exactly(one, 1000), DATA[:1000])
            sender = send_in_background(client, DATA)
            read_exactly(one, 50_000)
            how(one)
            same_bytes(read_exactly(server, len(DATA)), DATA)
            sender.join()
            for _ in range(20):
                exchange_small(client, server)
            assert exchange(client, server, DATA, DATA) < 2 * PATIENCE
            finish(client, server)


@both_loops("what a shadow says is heard by nobody, however much it is")
def talks(loop):
    with listening() as shadow, mirrored(loop, shadow.getsockname()) as pair:
        client, server = pair()
        one, _ = shadow.accept()
        chatter = send_in_background(one, DATA)
        got = []
        listener = threading.Thread(target=lambda: got.append(read_exactly(one, 150_000)), daemon=True)
        listener.start()
        exchange(client, server, DATA[:150_000], DATA[:100_000])
        chatter.join(5)
        finish(client, server)
        listener.join()
        same_bytes(got[0], DATA[:150_000])
        equal(how_it_ends(one)[:2], ("end", b""))
        one.close()


@both_loops("a reset of the client is one for the server and the shadow; back-pressure of the server holds for both")
def live_breaks(loop):
    with listening() as shadow, mirrored(loop, shadow.getsockname()) as pair:
        client, server = pair()
        one, _ = shadow.accept()
        exchange(client, server, DATA[:1000], b"ok")
        reset(client)
        equal(how_it_ends(server)[0], "reset")
        equal(how_it_ends(one)[1], DATA[:1000])
        # A live server that does not read stops the client, whatever the shadow would take.
        results = []
        reader(shadow, results)
        client, server = pair()
        sent = fill(client)
        assert sent < 64 * MIB, sent
        client.shutdown(socket.SHUT_WR)
        equal(len(read_all(server)), sent)
        server.shutdown(socket.SHUT_WR)
        equal(read_all(client), b"")
        client.close()
        server.close()
        until(lambda: results, 5, "the shadow's end")
        assert results[0][0] == "reset" or len(results[0][1]) == sent


@both_loops("a shadow that has answered and closed before the live connection ends has lost nothing, and is no reset")
def closes_first(loop):
    where = (LOCAL, servers.free_port())
    figures = lambda: scraping.Figures(where, "sluice_proxy_")
    for end, resets in ((socket.socket.close, 0), (reset, 1)):
        with listening() as shadow, \
                mirrored(loop, shadow.getsockname(), metrics="%s:%d" % where) as pair:
            client, server = pair()
            one, _ = shadow.accept()
            exchange(client, server, b"one request", b"its answer")
            equal(read_exactly(one, 11), b"one request")
            end(one)
            exchange(client, server, b"", b"more of it")
            finish(client, server)
            began = time.monotonic()
            until(lambda: figures()("ended_connections_total") == 1, 3, "the end is counted")
            until(lambda: figures()("mirror_bytes_total") == 11, 3, "what the shadow got is counted")
            until(lambda: figures()("mirror_resets_total") == resets, 3, "%d resets" % resets)
        assert time.monotonic() - began < 4.5 * PATIENCE, "something was waited for"


@case("50 connections at a time: 50 shadows, each whole")
def many():
    results = []
    with listening() as shadow, Backend(echo) as backend:
        reader(shadow, results)
        with Proxy(backend.address, mirror=address_text(shadow.getsockname()), mirror_direction="requests",
                   workers=2) as proxy:
            def one_client(number):
                with connect(proxy.address) as client:
                    data = DATA[number:number + 100_000]
                    echoed_to_the_end(client, data)
            together([functools.partial(one_client, number) for number in range(50)])
            until(lambda: len(results) == 50, 5, "50 shadow connections' ends")
    equal(sorted(data for _, data in results), sorted(DATA[number:number + 100_000] for number in range(50)))


if __name__ == "__main__":
    main()
