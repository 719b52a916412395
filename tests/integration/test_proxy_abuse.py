#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the proxy has to survive, and to count: connection storms, floods of half-open connections, slow and silent
peers, peers that vanish, no descriptors, no pipe pages. Some of it needs hosts of their own: network namespaces."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

from harness import (PATIENCE, Skip, case, content, equal, main, note, raise_descriptor_limit,
                     same_bytes, together, until)
from proxying import (CONTROL, MIB, Backend, Network, Proxy, Silent, both_loops, count_open, echo, echoed_to_the_end,
                      how_it_ends, named,
                      needs_sluice, read_all, read_exactly, reset, send_in_background,
                      terminate)

DATA = content(3 * MIB + 5)


def works(proxy, seconds=2):
    """A new client is served, and in time."""
    started = time.monotonic()
    with proxy.connect(timeout=seconds) as client:
        client.sendall(b"still there?")
        equal(read_exactly(client, 12), b"still there?")
    took = time.monotonic() - started
    assert took < seconds * PATIENCE, took


# ---- Storms ----

@both_loops("a storm of 1,500 connections, most of which reset or leave at once: others are served; nothing is left")
def storm(loop):
    raise_descriptor_limit(5000)
    chosen = random.Random(1)
    with Backend(echo) as backend, Proxy(backend.address, loop=loop) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)
        kept = []
        for number in range(1500):
            one = proxy.connect()
            what = chosen.randrange(4)
            if what == 0:
                reset(one)
            elif what == 1:
                one.close()
            elif what == 2:
                one.sendall(b"x")
                reset(one)
            else:
                kept.append(one)
            if number % 300 == 299:
                works(proxy)
        for one in kept:
            one.sendall(b"y")
        for one in kept:
            equal(read_exactly(one, 1), b"y")
            one.close()
        until(lambda: count_open(pid) <= idle, 5, "no connection left")
        if not CONTROL:
            proxy.signal(signal.SIGUSR1)
            until(lambda: re.search(r"totals: 150[5-9] connections|totals: 15[1-9]\d connections", proxy.errors()), 2,
                  "the count of connections in " + proxy.errors())


@both_loops("300 connections whose server does not answer: all end after the timeout, nothing is left")
def half_open_servers(loop):
    with Silent() as silent, Proxy(silent.address, connect_timeout="700ms", retries=0, loop=loop) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)
        clients = [proxy.connect() for _ in range(300)]
        until(lambda: count_open(pid) >= idle + 600, 0.65 * PATIENCE, "300 connections being made")
        for one in clients:
            equal(how_it_ends(one, 3)[1], b"")
            one.close()
        until(lambda: count_open(pid) <= idle, 2, "no connection left")


@both_loops("300 clients that begin a PROXY header and never end it: others are served; they are closed in time")
def slow_headers(loop):
    needs_sluice()
    with Backend(echo) as backend, Proxy(backend.address, accept_proxy=True, hello_timeout="800ms",
                                         loop=loop) as proxy:
        pid = proxy.worker()
        idle = count_open(pid)
        clients = [proxy.connect() for _ in range(300)]
        for one in clients:
            one.sendall(b"PROXY TC")
        with proxy.connect() as client:
            client.sendall(b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\nhello")
            equal(read_exactly(client, 5), b"hello")
        started = time.monotonic()
        for one in clients:  # a drop now and then does not push the end back
            with contextlib.suppress(OSError):
                one.sendall(b"P")
        for one in clients:
            equal(how_it_ends(one, 3)[1], b"")
        assert time.monotonic() - started < 2 * PATIENCE
        equal(backend.accepted, 1)
        until(lambda: count_open(pid) <= idle, 2, "no connection left")


@both_loops("100 clients that take nothing of their bulk: others get theirs at speed")
def slow_readers(loop):
    def handler(one):
        kind = one.recv(5)
        if kind == b"bulk\n":
            one.sendall(DATA * 2)
        else:
            one.sendall(kind)
            echo(one)
    with Backend(handler) as backend, Proxy(backend.address, loop=loop) as proxy:
        slow = [proxy.connect(receive_buffer=4096) for _ in range(100)]
        for one in slow:
            one.sendall(b"bulk\n")
        time.sleep(0.3)
        works(proxy)
        with proxy.connect() as client:
            client.sendall(b"bulk\n")
            same_bytes(read_exactly(client, 2 * len(DATA)), DATA * 2)
        works(proxy)
        one = slow.pop()
        same_bytes(read_exactly(one, 2 * len(DATA)), DATA * 2)
        for one in slow:
            one.close()


# ---- Nothing left to have ----

@both_loops("with few descriptors, more clients than fit wait to be accepted; all are served, none is dropped")
def few_descriptors(loop):
    needs_sluice()
    with Backend(echo) as backend, Proxy(backend.address, nofile=130, loop=loop) as proxy:
        clients = [proxy.connect() for _ in range(60)]
        for number, one in enumerate(clients):
            one.sendall(b"%03d" % number)
        for number, one in enumerate(clients):
            equal(read_exactly(one, 3), b"%03d" % number)
            one.shutdown(socket.SHUT_WR)
            equal(read_all(one), b"")
            one.close()


@case("with few descriptors and bulk in both directions of all connections: nothing is dropped, copies take over")
def few_descriptors_bulk():
    needs_sluice()
    with Backend(echo) as backend, Proxy(backend.address, nofile=130) as proxy:
        clients = [proxy.connect() for _ in range(12)]
        senders = [send_in_background(one, DATA) for one in clients]
        for one, sender in zip(clients, senders):
            same_bytes(read_exactly(one, len(DATA)), DATA)
            sender.join()
            one.close()


FILLER = """
import fcntl, os, sys, time
pipes = []
for size in [1 << 20] * 80 + [65536] * 40:
    try:
        pair = os.pipe()
        pipes.append(pair)
        fcntl.fcntl(pair[1], 1031, size)
    except PermissionError:
        pass
print("full", flush=True)
time.sleep(60)
"""


@case("with the user's pipe pages used up, connections go by copy, right, and the receipts say why",
      sanitized=False)
def no_pipe_pages():
    needs_sluice()
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        raise Skip("needs root and setpriv, to run the proxy as a user without privileges")
    user = str(30000 + os.getpid() % 30000)  # nobody else's pipes count
    become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    filler = subprocess.Popen([*become, python, "-c", FILLER], stdout=subprocess.PIPE)
    try:
        if filler.stdout.readline() != b"full\n":
            raise Skip("needs a Python that other users may run: apt-get install python3-minimal")
        with Backend(echo) as backend, Proxy(backend.address, receipts=True, wrap=become) as proxy:
            for _ in range(3):
                with proxy.connect() as client:
                    echoed_to_the_end(client, DATA)
            until(lambda: len(re.findall(r"^receipt 127.*", proxy.errors(), re.MULTILINE)) == 6, 3, "6 receipts")
            for line in re.findall(r"^receipt 127.*", proxy.errors(), re.MULTILINE):
                note(line)
                assert "from splice to copy" in line and "fs.pipe-user-pages" in line, line
    finally:
        terminate(filler)


# ---- Peers that vanish: hosts of their own ----

def hub_proxy(network, *to, **options):
    with network.at(network.hub):
        return Proxy(*to, listen=[("0.0.0.0", 0)], **options)


@case("three hosts, one cut off: its connections end, the others' go on; checks take it out, and in again. Clients "
      "that vanish are noticed by keep-alive, and with their bytes unsent, by the kernel's retries", limit=60)
def hosts_vanish():
    together([servers_vanish, clients_vanish])


def servers_vanish():
    with Network(3, "servers") as network, contextlib.ExitStack() as stack:
        network.set("tcp_keepalive_probes", 2)
        network.set("tcp_keepalive_intvl", 1)
        network.set("tcp_retries2", 3)
        network.set("tcp_syn_retries", 1)
        one, two = (stack.enter_context(network.backend(number, named(str(number)))) for number in (2, 3))
        proxy = stack.enter_context(hub_proxy(
            network, one.address, two.address, keepalive="1s", check="tcp", check_interval="150ms",
            check_timeout="200ms", fall=2, rise=2, connect_timeout="400ms"))
        port = proxy.address[1]

        def ask(keep=False):
            client = network.connect(1, port)
            name = read_exactly(client, 2)[:1].decode()
            if keep:
                return name, client
            client.close()
            return name
        kept = {}
        for _ in range(4):
            name, client = ask(keep=True)
            kept.setdefault(name, []).append(client)
        equal({name: len(all) for name, all in kept.items()}, {"2": 2, "3": 2})
        talking, silent = kept["3"]
        network.cut(3)
        started = time.monotonic()
        talking.sendall(b"are you there?")
        # At once there is another server for those who come.
        for _ in range(6):
            equal(ask(), "2")
        time.sleep(0.6)
        before = time.monotonic()
        for _ in range(10):
            equal(ask(), "2")
        assert time.monotonic() - before < 0.3 * PATIENCE, "the server that is gone is still tried"
        # The others' connections are as they were.
        for client in kept["2"]:
            client.sendall(b"ping")
            equal(read_exactly(client, 4), b"ping")
        # Those to the host that is gone end, the one that waits for an answer and the silent one.
        for client in (silent, talking):
            how, data, _ = how_it_ends(client, 12)
            equal((how, data), ("reset" if not CONTROL else how, b""))
        note("connections to the host that is gone ended within %.1f s" % (time.monotonic() - started))
        network.mend(3)
        until(lambda: ask() == "3", 5, "the host that is back")
        for client in kept["2"]:
            client.close()


def clients_vanish():
    with Network(2, "clients") as network, contextlib.ExitStack() as stack:
        network.set("tcp_keepalive_probes", 2)
        network.set("tcp_keepalive_intvl", 1)
        network.set("tcp_retries2", 3)

        def handler(one):
            if one.recv(1) == b"b":
                one.sendall(DATA * 10)
            one.recv(1)
        backend = stack.enter_context(network.backend(2, handler))
        proxy = stack.enter_context(hub_proxy(network, backend.address, keepalive="1s"))
        pid = proxy.worker()
        idle = count_open(pid)
        clients = [network.connect(1, proxy.address[1], receive_buffer=4096) for _ in range(10)]
        for one in clients:
            one.sendall(b"i")
        clients += [network.connect(1, proxy.address[1], receive_buffer=4096) for _ in range(10)]
        for one in clients[10:]:
            one.sendall(b"b")
        until(lambda: count_open(pid) >= idle + 40, 3, "20 connections")
        time.sleep(0.2)
        network.cut(1)
        until(lambda: count_open(pid) <= idle, 12, "the end of the connections: %d sockets" % count_open(pid))


def syn(source, port, destination, to_port, sequence):
    """An IPv4 packet with a SYN."""
    tcp = struct.pack("!HHIIBBHHH", port, to_port, sequence, 0, 5 << 4, 2, 64240, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(tcp))
    total = sum(struct.unpack("!%dH" % ((len(pseudo) + len(tcp)) // 2), pseudo + tcp))
    total = (total & 0xffff) + (total >> 16)
    total = ~((total & 0xffff) + (total >> 16)) & 0xffff
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + socket.inet_aton(source) + \
        socket.inet_aton(destination) + tcp


@case("a flood of 6,000 SYNs from hosts that do not answer: clients are served meanwhile")
def syn_flood():
    with Network(2) as network, contextlib.ExitStack() as stack:
        network.set("conf/all/rp_filter", 0)
        network.set("conf/to1/rp_filter", 0)
        backend = stack.enter_context(network.backend(2, echo))
        proxy = stack.enter_context(hub_proxy(network, backend.address))
        with network.at(1):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        for number in range(6000):
            source = "10.88.%d.%d" % (number >> 8 & 0xff, number & 0xff)  # behind the hub's back
            raw.sendto(syn(source, 1024 + number, "10.77.1.1", proxy.address[1], number), ("10.77.1.1", 0))
            if number % 1500 == 1499:
                started = time.monotonic()
                with network.connect(2, proxy.address[1]) as client:
                    client.sendall(b"hello")
                    equal(read_exactly(client, 5), b"hello")
                assert time.monotonic() - started < 2 * PATIENCE
        raw.close()


@case("a server that cannot be reached, by route or by refusal on its way, is left for another one")
def unreachable():
    with Network(1) as network, contextlib.ExitStack() as stack:
        backend = stack.enter_context(network.backend(1, named("good")))
        proxy = stack.enter_context(hub_proxy(network, "203.0.113.7:80", "[2001:db8::1]:80", backend.address,
                                              connect_timeout="5s"))
        for _ in range(6):
            started = time.monotonic()
            with network.connect(1, proxy.address[1]) as client:
                equal(read_exactly(client, 5), b"good\n")
            assert time.monotonic() - started < 1 * PATIENCE


if __name__ == "__main__":
    main()
