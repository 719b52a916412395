#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Ten thousand connections through the proxy by proxy_load, which plays both sides and compares every byte: random
pieces, pauses, buffers, half-closes in either order and resets, over TCP and Unix sockets. And what is left in the
proxy afterwards."""

import os
import random
import re
import subprocess

from harness import SANITIZED, case, equal, main, new_root, note, until
from proxying import CONTROL, HELPERS, MIB, Proxy, address_text, count_open, descriptors, private_memory

SEED = int(os.environ.get("SLUICE_TEST_SEED", random.randrange(1 << 32)))
SHARE = 10 if SANITIZED else 1
PIPES_KEPT = 64  # descriptors
MEMORY_MORE = 5 * MIB  # buffers of what happens to be under way at once


class Load:
    """proxy_load, running."""

    def __init__(self, **options):
        command = [str(HELPERS / "proxy_load"), "--directory", new_root()]
        if CONTROL:
            command.append("--resets-end")
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)
        word, *self.addresses = self.process.stdout.readline().split()
        equal(word, "listening")

    def half(self, line):
        """Make the next half of the connections. Returns what was counted so far."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        out = self.process.stdout.readline()
        assert out, self.process.communicate()[1]
        note(out.strip())
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", out)}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
        err = self.process.communicate()[1]
        assert kind is not None or self.process.returncode == 0, err


def three_listeners():
    return [("127.0.0.1", 0), ("::1", 0), "unix:%s/proxy" % new_root()]


def nothing_left(proxy, idle):
    """Returns what memory each worker has."""
    for pid in proxy.worker_pids():
        assert pid in idle, "a worker was replaced: " + proxy.errors()
        until(lambda pid=pid: count_open(pid) <= idle[pid][0], 5, "sockets as few as before")
        kept = len(descriptors(pid)) - idle[pid][1]  # some pipes, for the next connections
        assert kept <= PIPES_KEPT, "%d more descriptors than before: %r" % (kept, descriptors(pid))
    return {pid: private_memory(pid) for pid in proxy.worker_pids()}


def load(connections, workers=1, **options):
    seed = SEED + sum(map(ord, repr((connections, workers, options))))
    with Load(connections=connections, seed=seed, concurrent=150) as program, \
            Proxy(*program.addresses, listen=three_listeners(), workers=workers, **options) as proxy:
        idle = {pid: (count_open(pid), len(descriptors(pid))) for pid in proxy.worker_pids()}
        program.half(" ".join(map(address_text, proxy.addresses)))
        before = nothing_left(proxy, idle)
        counted = program.half("go on")
        equal(counted["pairs"], connections)
        assert counted["resets"] > connections / 50 and counted["small_buffers"] > connections / 20, counted
        assert counted["client_ended_first"] > connections / 10 and counted["server_ended_first"] > connections / 10
        after = nothing_left(proxy, idle)
        for pid, memory in before.items():
            assert after[pid] < memory + MEMORY_MORE, "memory: %d bytes, %d after as many connections again" % (
                memory, after[pid])


for loop in ("epoll", "io_uring"):
    for route, connections in (("auto", 2600), ("copy", 1000), ("splice", 1000)):
        @case("%d connections, --loop %s, --route %s: each byte as sent, ends and resets passed on, nothing left",
              connections // SHARE, loop, route, limit=60)
        def everything(connections, loop, route):
            load(connections, loop=loop, route=route)


@case("%d connections, two workers: the same", 800 // SHARE, limit=60)
def two_workers(connections):
    load(connections, workers=2)


if __name__ == "__main__":
    main()
