#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice proxy as something that people run: its file, reloading under load, draining, workers that die, what it logs,
its receipts and its metrics."""

import os
import re
import signal
import socket
import subprocess
import threading
import time

import scraping
from harness import (LOCAL, PATIENCE, SLUICE, case, content, equal, main, new_root, note, same_bytes, until, write)
from proxying import (LOOPS, MIB, Backend, Proxy, Refusing, ask_name, connect, echo, echoed, echoed_to_the_end,
                      how_it_ends, listening, named, read_all, read_exactly, reset, servers,
                      turned_away)

DATA = content(4 * MIB + 11)


def check(text, *arguments):
    """What --check-config says of a file: exit code, what it printed, the file's name."""
    path = write(new_root(), "proxy.conf", data=text.encode())
    done = subprocess.run([SLUICE, "proxy", "--config", path, "--check-config", *arguments], capture_output=True,
                          text=True, timeout=10 * PATIENCE)
    return done.returncode, done.stdout + done.stderr, path


# ---- The file ----

@case("--check-config: a right file is right; of a wrong one it says line, reason, and what to do")
def check_config():
    good = "[global]\nworkers = 1\n\n[web]\nlisten = 127.0.0.1:8080\nto = 127.0.0.1:1, weight=2\n"
    code, said, _ = check(good)
    equal(code, 0, said)
    for wrong, line, words in (
            (good + "balence = source\n", 7, "balance"),
            (good + "connect-timeout = soon\n", 7, "connect-timeout"),
            (good.replace("weight=2", "weigth=2"), 6, "weight"),
            (good.replace("to = ", "# to = "), None, "to"),
            (good + "mirror-direction = both\n", 7, "mirror"),
            (good.replace("workers = 1", "user = nosuchuser"), 2, "there is no user \"nosuchuser\" here"),
            (good.replace("workers = 1", "log = /nowhere/log"), 2, "its directory does not exist"),
            (good.replace("workers = 1", "admin = 0.0.0.0:9180"), 2, "or add admin-anywhere"),
            (good + "[other]\nlisten = :8080\nto = 127.0.0.1:1\n", 8, "is taken by service web already")):
        code, said, path = check(wrong)
        assert code != 0, wrong
        assert words in said and path + ":" + (str(line) if line else "") in said, said


@case("a file with two services: each listens, and has servers and options of its own")
def two_services():
    with Backend(named("a")) as a, Backend(named("b")) as b:
        path = write(new_root(), "proxy.conf", data=(
            "[global]\nworkers = 1\n[one]\nlisten = 127.0.0.1:0\nto = %s:%d\n[two]\nlisten = [::1]:0\n"
            "to = %s:%d\nsend-proxy = v1\n" % (*a.address, *b.address)).encode())
        with Configured(path, listeners=2) as proxy:
            equal(ask_name(proxy.addresses[0]), "a")
            with connect(proxy.addresses[1]) as client:
                got = read_exactly(client, 2)
                equal(got, b"b\n")
                assert read_exactly(client, 6) == b"PROXY "  # the header, echoed


class Configured(Proxy):
    """By a file."""

    def __init__(self, path, *arguments, listeners=1, **more):
        self.path = path
        super().__init__(listen=[None] * listeners, arguments=arguments, **more)

    def command(self, to, listen, options):
        return [SLUICE, "proxy", "--config", self.path]


class Reloadable:
    """A file that is written anew, its proxy, and clients that go on asking all the time."""

    def __init__(self, directory, loop="auto", workers=2):
        self.path = directory + "/proxy.conf"
        self.port = servers.free_port()
        self.loop, self.workers = loop, workers
        self.names, self.failures, self.stop = [], [], False
        self.log = None
        self.threads = []

    def write(self, *to, more=""):
        text = "[global]\nworkers = %d\nloop = %s\n[service]\nlisten = %s:%d\n" % (self.workers, self.loop, LOCAL,
                                                                                self.port)
        text += "".join("to = %s:%d\n" % address for address in to) + more
        if self.log:
            text = "log = %s\n" % self.log + text
        with open(self.path + ".new", "w", encoding="ascii") as file:
            file.write(text)
        os.replace(self.path + ".new", self.path)

    def ask(self):
        while not self.stop:
            try:
                name, client = ask_name((LOCAL, self.port), keep=True)
                client.sendall(b"ping")
                equal(read_exactly(client, 4), b"ping")
                client.close()
                self.names.append(name)
            except Exception as error:
                self.failures.append(repr(error))

    def start_asking(self, count=4):
        for _ in range(count):
            self.threads.append(threading.Thread(target=self.ask, daemon=True))
            self.threads[-1].start()

    def stop_asking(self):
        self.stop = True
        for thread in self.threads:
            thread.join()


for loop in LOOPS:
    @case("reloading under load, six times: no connection fails, old ones go on, new ones follow the new file "
          "(--loop %s)", loop, limit=40)
    def reload(loop):
        with Backend(named("a")) as a, Backend(named("b")) as b:
            state = Reloadable(new_root(), loop)
            state.write(a.address)
            with Configured(state.path) as proxy:
                _, old = ask_name(proxy, keep=True)
                first = proxy.worker_pids()
                state.start_asking()
                for number in range(6):
                    server, name = ((b, "b"), (a, "a"))[number % 2]
                    state.write(server.address)
                    proxy.signal(signal.SIGHUP)
                    until(lambda name=name: ask_name(proxy) == name, 5, "a connection by the new file")
                    time.sleep(0.05)
                    count = len(state.names)
                    until(lambda count=count: len(state.names) > count + 40, 5, "more answers")
                    equal(set(state.names[count + 10:]), {name}, "servers after reload %d" % number)
                state.stop_asking()
                equal(state.failures, [])
                note("%d connections during the reloads" % len(state.names))
                # The connection from before all of this still works, in a worker of then.
                old.sendall(DATA[:100_000])
                same_bytes(read_exactly(old, 100_000), DATA[:100_000])
                assert set(first) & set(proxy.worker_pids()), "an old worker"
                old.close()
                until(lambda: len(proxy.worker_pids()) == state.workers and not set(first) & set(proxy.worker_pids()),
                      5, "the end of the old workers: %r" % proxy.worker_pids())


@case("reloading a wrong file keeps the old configuration, and says where the mistake is")
def reload_wrong():
    with Backend(named("a")) as a, Backend(named("b")) as b:
        state = Reloadable(new_root(), workers=1)
        state.write(a.address)
        with Configured(state.path) as proxy:
            pids = proxy.worker_pids()
            state.write(b.address, more="no-such-option = 1\n")
            proxy.signal(signal.SIGHUP)
            until(lambda: state.path + ":7" in proxy.errors(), 3, "the mistake's place, in " + proxy.errors())
            equal(ask_name(proxy), "a")
            equal(proxy.worker_pids(), pids)
            # A listener that cannot be had is a mistake, too.
            with listening() as taken:
                state.write(b.address, more="listen = %s:%d\n" % taken.getsockname())
                before = len(proxy.errors())
                proxy.signal(signal.SIGHUP)
                until(lambda: len(proxy.errors()) > before, 3, "a message")
                equal(ask_name(proxy), "a")
            state.write(b.address)
            proxy.signal(signal.SIGHUP)
            until(lambda: ask_name(proxy) == "b", 3, "the right file")


@case("reloading adds a listener and takes one away")
def reload_listeners():
    with Backend(named("a")) as a:
        state = Reloadable(new_root(), workers=1)
        second = servers.free_port()
        state.write(a.address)
        with Configured(state.path) as proxy:
            state.write(a.address, more="listen = %s:%d\n" % (LOCAL, second))
            proxy.signal(signal.SIGHUP)

            def answers():
                try:
                    return ask_name((LOCAL, second)) == "a"
                except OSError:
                    return False
            until(answers, 3, "the second listener")
            equal(ask_name(proxy), "a")
            state.write(a.address)
            proxy.signal(signal.SIGHUP)

            def refuses():
                try:
                    connect((LOCAL, second)).close()
                    return False
                except ConnectionResetError:  # it was in the queue of the socket that ended
                    return False
                except ConnectionRefusedError:
                    return True
            until(refuses, 3, "the end of the second listener")
            equal(ask_name(proxy), "a")


@case("the log is opened anew at each reload, also of a wrong file: a renamed one stays as it is, and no line is lost")
def rename_log():
    with Backend(named("a")) as a:
        state = Reloadable(new_root(), workers=2)
        log = state.path + ".log"
        state.log = log
        state.write(a.address)
        with Configured(state.path) as proxy:
            _, old = ask_name(proxy, keep=True)  # its line is written by an old worker
            state.start_asking()
            names, sizes = [], []
            for number in range(3):
                before = len(state.names)
                until(lambda before=before: len(state.names) > before + 30 or state.failures, 10, "connections")
                names.append("%s.%d" % (log, number))
                os.rename(log, names[-1])
                if number == 1:
                    state.write(a.address, more="no-such-option = 1\n")
                    proxy.signal(signal.SIGHUP)
                    until(lambda: "not reloaded" in proxy.errors(), 10, "the refusal")
                    state.write(a.address)
                said = proxy.errors().count(": reloaded: ")
                proxy.signal(signal.SIGHUP)
                until(lambda said=said: proxy.errors().count(": reloaded: ") > said, 10, "the reload")
                sizes.append(os.path.getsize(names[-1]))
            state.stop_asking()
            equal(state.failures, [])
            equal([os.path.getsize(name) for name in names], sizes)
            old.close()
            proxy.stop()
        lines = []
        for name in [*names, log]:
            with open(name, encoding="ascii") as file:
                lines += file.readlines()
        equal(len(lines), len(state.names) + 1)


# ---- Ending ----

@case("told to end, it refuses new connections, lets those there are go on, and ends with the last of them")
def drains():
    with Backend(echo) as backend, Proxy(backend.address, workers=2) as proxy:
        clients = [proxy.connect() for _ in range(4)]
        for one in clients:
            one.sendall(b"x")
            read_exactly(one, 1)
        proxy.signal(signal.SIGTERM)

        def refused():
            try:
                connect(proxy.address).close()
                return False
            except (ConnectionRefusedError, ConnectionResetError):
                return True
        until(refused, 3, "refused connections")
        echoed(clients[0], DATA)
        assert proxy.process.poll() is None
        for one in clients:
            one.shutdown(socket.SHUT_WR)
            equal(read_all(one), b"")
            one.close()
        equal(proxy.wait(), 0)


@case("--drain-timeout ends the connections that do not end")
def drain_timeout():
    with Backend(echo) as backend, Proxy(backend.address, drain_timeout="300ms") as proxy, proxy.connect() as client:
        client.sendall(b"x")
        read_exactly(client, 1)
        started = time.monotonic()
        proxy.signal(signal.SIGTERM)
        how_it_ends(client, 3)
        proxy.wait()
        assert 0.25 < time.monotonic() - started < 2 * PATIENCE
        assert proxy.code is not None
        proxy.check_end(proxy.code)


@case("a worker that is killed is replaced; its connections are reset, its places are free, the others' go on")
def killed():
    with Backend(named("a")) as a, Proxy("%s:%d,max=6" % a.address, workers=2, queue_timeout="300ms") as proxy:
        clients = [ask_name(proxy, keep=True)[1] for _ in range(6)]
        pids = proxy.worker_pids()
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: len(proxy.worker_pids()) == 2 and pids[0] not in proxy.worker_pids(), 5, "a new worker")
        lost = 0
        for one in clients:
            one.settimeout(1)
            try:
                one.sendall(b"x")
                lost += one.recv(1) != b"x"
            except ConnectionError:
                lost += 1
        note("%d of 6 connections were the killed worker's" % lost)
        assert lost < 6 or lost == 6
        again = []
        for _ in range(lost):
            until(lambda: _try(proxy, again), 3, "a place that the killed worker had")
        for one in clients + again:
            one.close()


def _try(proxy, kept):
    try:
        kept.append(ask_name(proxy, keep=True)[1])
        return True
    except ConnectionError:
        return False


# ---- What it says ----

LINE = re.compile(r"(?P<client>\S+) \[(?P<time>[^]]+)\] (?P<service>\S+)/(?P<server>\S+) (?P<end>\w+) "
                  r"(?P<seconds>[\d.]+)s up=(?P<up>\d+) down=(?P<down>\d+) copied=(?P<copied>\d+) "
                  r"unknown=(?P<unknown>\d+) routes=(?P<routes>\S+)")


def log_lines(path, count):
    def read():
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
        return lines if len(lines) >= count else None
    lines = until(read, 3, "%d lines in the log" % count)
    for line in lines:
        assert LINE.fullmatch(line), line
    return [LINE.fullmatch(line).groupdict() for line in lines]


def routes(line):
    return {} if line["routes"] == "-" else {name: int(count) for name, count in (
        part.split(":") for part in line["routes"].split(","))}


for loop in LOOPS:
    @case("with default flags at least 99 %% of bulk bytes are spliced, and the log line says so (--loop %s)", loop)
    def bulk_is_spliced(loop):
        path = new_root() + "/log"
        data = DATA * 10
        with Backend(echo) as backend, Proxy(backend.address, log=path, loop=loop) as proxy:
            with proxy.connect() as client:
                echoed_to_the_end(client, data)
            line, = log_lines(path, 1)
        equal((int(line["up"]), int(line["down"]), line["end"]), (len(data), len(data), "done"))
        equal(sum(routes(line).values()), 2 * len(data), "bytes by route")
        note("%s of 2 x %d, copied %s" % (line["routes"], len(data), line["copied"]))
        assert routes(line)["splice"] >= 0.99 * 2 * len(data), line
        assert int(line["copied"]) <= 0.01 * 2 * len(data), line

    @case("small messages are received and sent, not spliced; after a bulk, too (--loop %s)", loop)
    def small_is_copied(loop):
        path = new_root() + "/log"
        with Backend(echo) as backend, Proxy(backend.address, log=path, loop=loop) as proxy:
            for bulk in (False, True):
                with proxy.connect() as client:
                    if bulk:
                        echoed(client, DATA)
                        time.sleep(0.1)
                    for _ in range(2000):
                        client.sendall(DATA[:500])
                        read_exactly(client, 500)
                    client.shutdown(socket.SHUT_WR)
                    equal(read_all(client), b"")
            lines = log_lines(path, 2)
        equal(routes(lines[0]), {"copy": 2 * 2000 * 500})
        # It may take a few messages to notice that the bulk is over.
        assert routes(lines[1])["copy"] >= 0.9 * 2 * 2000 * 500, lines[1]
        assert routes(lines[1])["splice"] >= 0.95 * 2 * len(DATA), lines[1]


@case("each connection's line says how it ended")
def ends():
    path = new_root() + "/log"
    with listening() as listener, Proxy(listener.getsockname(), log=path, idle_timeout="300ms",
                                        half_close_timeout="200ms") as proxy:
        def pair():
            client = proxy.connect()
            server, _ = listener.accept()
            client.sendall(b"x")
            read_exactly(server, 1)  # the proxy has taken the connection as made
            return client, server

        client, server = pair()
        address = "%s:%d" % client.getsockname()
        client.close()
        server.close()
        client, server = pair()
        reset(client)
        how_it_ends(server)
        client, server = pair()
        reset(server)
        how_it_ends(client)
        client, server = pair()
        how_it_ends(client)
        client, server = pair()
        client.shutdown(socket.SHUT_WR)
        how_it_ends(client)
        lines = log_lines(path, 5)
    equal([line["end"] for line in lines], ["done", "client_reset", "server_reset", "idle_timeout",
                                            "half_close_timeout"])
    equal((lines[0]["client"], lines[0]["service"], lines[0]["server"]),
          (address, "proxy", "%s:%d" % listener.getsockname() if listener.fileno() >= 0 else lines[0]["server"]))


@case("a connection that no server took has a line, too")
def ends_without_server():
    path = new_root() + "/log"
    with Refusing() as one, Proxy(one.address, log=path) as proxy:
        turned_away(proxy.address)
        line, = log_lines(path, 1)
    equal((line["end"], line["up"], line["down"], line["routes"]), ("connect_failed", "0", "0", "-"))


@case("--receipts: one for each direction of each connection, and the sums at the end; SIGUSR1 says them meanwhile")
def receipts():
    with Backend(echo) as backend, Proxy(backend.address, receipts=True) as proxy:
        for _ in range(3):
            with proxy.connect() as client:
                echoed_to_the_end(client, DATA)
        until(lambda: len(re.findall(r"^receipt 127\S+ (?:up|down) ", proxy.errors(), re.MULTILINE)) == 6, 3,
              "6 receipts")
        proxy.signal(signal.SIGUSR1)
        until(lambda: "totals: 3 connections (0 open)" in proxy.errors(), 3, "the totals")
        proxy.stop()
        equal(len(re.findall("totals: 3 connections", proxy.errors())), 2)
        assert re.search(r"proxy: receipt up: 12\.0 MiB: by reference 1[12]\.\d MiB, copied", proxy.errors())


# ---- Metrics ----

def figures_now(address):
    return scraping.Figures(address, "sluice_proxy_")


@case("--metrics: Prometheus's format, and the figures are what was done: connections, bytes by route and direction, "
      "copies, ends, retries, servers, latency, queue")
def figures():
    where = (LOCAL, servers.free_port())
    bulk = DATA * 8
    with Backend(echo) as backend, Refusing() as refusing, \
            Proxy("%s:%d,max=3" % backend.address, refusing.address, metrics="%s:%d" % where, workers=2) as proxy:
        before = figures_now(where)
        equal((before("connections_total"), before("open_connections"), before("bytes_total")), (0, 0, 0))
        for number in range(10):
            with proxy.connect() as client:
                client.sendall(DATA[:700])
                equal(read_exactly(client, 700), DATA[:700])
                client.shutdown(socket.SHUT_WR)
                equal(read_all(client), b"")
        with proxy.connect() as client:
            echoed_to_the_end(client, bulk)
        client = proxy.connect()
        client.sendall(b"x")
        read_exactly(client, 1)
        reset(client)
        kept = []
        for _ in range(3):
            kept.append(proxy.connect())
            kept[-1].sendall(b"x")
            read_exactly(kept[-1], 1)
        waiting = proxy.connect()
        until(lambda: figures_now(where)("ended_connections_total") == 12, 3, "12 ends")
        until(lambda: figures_now(where)("queue_length") == 1, 3, "one in the queue")
        got = figures_now(where)
        equal(got("connections_total"), 16)
        equal(got("open_connections"), 4)
        equal(got("ended_connections_total", reason="done"), 11)
        equal(got("ended_connections_total", reason="client_reset"), 1)
        sent = 10 * 700 + len(bulk) + 1
        for direction in ("to_server", "to_client"):
            total = got("bytes_total", direction=direction)
            assert sent <= total <= sent + 3, "%d bytes, %d expected" % (total, sent)
            equal(got("route_bytes_total", direction=direction), total)
            equal(sum(got(kind + "_bytes_total", direction=direction)
                      for kind in ("copied", "by_reference", "unknown")), total)
            assert got("route_bytes_total", direction=direction, route="splice") >= 0.99 * len(bulk)
            assert got("copied_bytes_total", direction=direction) <= 7004 + 0.01 * len(bulk)
        name, other = "%s:%d" % backend.address, "%s:%d" % refusing.address
        equal(got("server_connections_total", server=name), 15)
        equal(got("server_open_connections", server=name), 3)
        equal(got("server_up", server=name), 1)
        assert got("server_connect_failures_total", server=other) >= 3
        assert got("retries_total") >= 3
        equal(got("connect_duration_seconds_count"), 15)
        equal(got("connect_duration_seconds_bucket", le="+Inf"), 15)
        assert 0 < got("connect_duration_seconds_sum") < 15
        # It answers only what it has, and does not mind what else comes.
        with connect(where) as other_client:
            other_client.sendall(b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert read_all(other_client).startswith(b"HTTP/1.1 404 ")
        with connect(where) as other_client:
            other_client.sendall(b"\0\1\2\3 nonsense\r\n\r\n")
            assert not read_all(other_client).startswith(b"HTTP/1.1 200 ")
        for one in [*kept, waiting]:
            one.close()
        until(lambda: figures_now(where)("open_connections") == 0, 3, "no open connection")


@case("--metrics counts over workers that die, over reloads, and mirrored bytes; a counter never goes back")
def figures_last():
    where = (LOCAL, servers.free_port())
    with Backend(echo) as backend, Backend(lambda one: read_all(one)) as shadow:
        state = Reloadable(new_root(), workers=2)
        state.write(backend.address, more="mirror = %s:%d\n" % shadow.address)
        with Configured(state.path, "--metrics", "%s:%d" % where) as proxy:
            def some(count):
                for _ in range(count):
                    with connect((LOCAL, state.port)) as client:
                        client.sendall(DATA[:1000])
                        equal(read_exactly(client, 1000), DATA[:1000])
                        client.shutdown(socket.SHUT_WR)
                        equal(read_all(client), b"")
            some(10)
            until(lambda: figures_now(where)("connections_total") == 10, 3, "10 connections")
            os.kill(proxy.worker_pids()[0], signal.SIGKILL)
            until(lambda: len(proxy.worker_pids()) == 2, 5, "a new worker")
            time.sleep(0.2)
            some(10)
            until(lambda: figures_now(where)("connections_total") == 20, 3, "20 connections")
            proxy.signal(signal.SIGHUP)
            time.sleep(0.5)
            some(10)
            until(lambda: figures_now(where)("connections_total") == 30, 3, "30 connections")
            got = figures_now(where)
            equal(got("bytes_total"), 2 * 30 * 1000)
            equal(got("mirror_connections_total"), 30)
            equal(got("mirror_bytes_total"), 30 * 1000)


@case("--admin: the same metrics, and as JSON each service with its servers and each worker with what it did; "
      "over a reload, too")
def admin():
    where = (LOCAL, servers.free_port())
    with Backend(echo) as backend, Refusing() as refusing:
        state = Reloadable(new_root(), workers=2)
        state.write(backend.address, refusing.address)
        with Configured(state.path, "--admin", "%s:%d" % where) as proxy:
            def some():
                for _ in range(4):
                    with connect((LOCAL, state.port)) as client:
                        client.sendall(DATA[:1000])
                        equal(read_exactly(client, 1000), DATA[:1000])
                        client.shutdown(socket.SHUT_WR)
                        equal(read_all(client), b"")
            some()
            until(lambda: figures_now(where)("ended_connections_total", reason="done") == 4, 5, "4 connections' ends")
            got, found = figures_now(where), scraping.status(where)
            totals, pids = found["totals"], sorted(worker["pid"] for worker in found["workers"])
            equal((found["program"], found["about"], found["reloads"]), ("sluice proxy", "1 service", 0))
            equal(pids, proxy.worker_pids())
            equal((totals["connections"], totals["open"], totals["receipt"]["bytes"]), (4, 0, 8000))
            equal(sum(worker["totals"]["connections"] for worker in found["workers"]), 4)
            service = totals["services"][0]
            equal((service["name"], service["bytes"], service["ended"]["done"]), ("service", 8000, 4))
            equal([server["name"] for server in service["servers"]],
                  ["%s:%d" % backend.address, "%s:%d" % refusing.address])
            equal(service["servers"][0]["connections"], 4)
            assert found["configuration"]["loop"] in ("epoll", "io_uring"), found["configuration"]["loop"]
            assert found["configuration"]["service service"].startswith("%s:%d to " % (LOCAL, state.port))
            equal((got("workers"), got("worker_crashes_total"), got("bytes_total")), (2, 0, 8000))
            assert sum(totals["durations"]["counts"]) == 4 and found["cpu_seconds"] > 0
            proxy.signal(signal.SIGHUP)
            until(lambda: scraping.status(where)["reloads"] == 1, 10, "the reload")
            some()
            until(lambda: scraping.status(where)["totals"]["services"][0]["ended"]["done"] == 8, 5, "8 connections' ends")
            found = until(lambda: [now for now in [scraping.status(where)]
                                   if [worker["reloads"] for worker in now["workers"]] == [1, 1]], 10, "two workers")[0]
            equal(sum(worker["totals"]["connections"] for worker in found["workers"]), 4)
            assert scraping.fetch(where, "/")[0].startswith("HTTP/1.1 200 ")
            equal(scraping.undocumented(where, "sluice_proxy_", os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                                                           "../../docs/man/sluice-proxy.1")),
                  {"not in the page": [], "not there": []})
    with Refusing() as refusing:
        done = subprocess.run([SLUICE, "proxy", "--listen", LOCAL + ":0", "--to", "%s:%d" % refusing.address, "--admin",
                               ":0"], capture_output=True, text=True, timeout=20 * PATIENCE)
        equal(done.returncode, 1)
        assert "admin-anywhere" in done.stderr, done.stderr


if __name__ == "__main__":
    main()
