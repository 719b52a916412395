#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The admin listener of sluice serve: what it says is what was done."""

import os
import re
import signal
import socket
import subprocess
import time

from harness import (LOCAL, OPTIONS, PATIENCE, SLUICE, Client, Server, case, content, equal, main, new_root, same_bytes,
                     strace, until, write)
from scraping import Figures, fetch, parse_metrics, status, undocumented

MANUAL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/man")
root = new_root()
BIG = content(3 << 20)
write(root, "big", data=BIG)
write(root, "small", data=b"small")
write(root, "sub", "file", data=b"x")


class Admin(Server):
    def __init__(self, *options, **more):
        super().__init__(root, "--admin", LOCAL + ":0", *options, **more)

    def is_ready(self):
        match = re.search(r"metrics at http://\S+:(\d+)/", self.output())
        if not super().is_ready() or not match:
            return None
        self.admin = (LOCAL, int(match[1]))
        return match

    def figures(self):
        return Figures(self.admin, "sluice_serve_")


def refused(*options):
    """What is said on standard error."""
    done = subprocess.run([SLUICE, "serve", root, "--listen", LOCAL + ":0", *OPTIONS, *options], capture_output=True,
                          text=True, timeout=20 * PATIENCE)
    assert done.returncode in (1, 2), done
    return done.stderr


@case("metrics and status count what was done: requests by class, bytes by route and fate, connections, refusals")
def counted():
    with Admin(workers=2) as server:
        before = server.figures()
        for name in ("connections_total", "open_connections", "requests_total", "bytes_total", "timeouts_total",
                     "fallbacks_total", "response_duration_seconds_count", "worker_crashes_total"):
            equal(before(name), 0, name)
        equal(before("workers"), 2)
        equal(before("build_info", version=status(server.admin)["version"]), 1)
        assert abs(before("start_time_seconds") - time.time()) < 20 * PATIENCE
        heads = 0
        with Client(server) as client:
            for path, code in (("/big", 200), ("/small", 200), ("/none", 404), ("/sub", 301), ("/", 200), ("/small", 200)):
                response = client.get(path)
                equal(response.status, code)
                heads += len(response.head) + len(response.body)
            etag = client.get("/small")
            heads += len(etag.head) + len(etag.body)
            heads += len(client.get("/small", "If-None-Match: " + etag["ETag"]).head)
            with Client(server) as other:
                other.send("nonsense\r\n\r\n")
                response = other.response()
                equal(response.status, 400)
                heads += len(response.head) + len(response.body)
            until(lambda: server.figures()("open_connections") == 1, 5, "one open connection")
            got = server.figures()
            equal((got("connections_total"), got("requests_total"), got("refused_requests_total")), (2, 8, 1))
            for kind, count in (("2xx", 5), ("3xx", 2), ("4xx", 2), ("5xx", 0), ("unsent", 0)):
                equal(got("responses_total", **{"class": kind}), count, kind)
            equal(got("bytes_total"), heads)
            equal(got("route_bytes_total"), heads)
            equal(sum(got(kind + "_bytes_total") for kind in ("by_reference", "copied", "unknown")), heads)
            equal(got("route_bytes_total", route="sendfile"), len(BIG))
            equal(got("response_duration_seconds_count"), 9)
            assert 0 < got("response_duration_seconds_sum") < 60 * PATIENCE
            now = status(server.admin)
        totals = now["totals"]
        equal((totals["connections"], totals["open"], totals["requests"], totals["refused"]), (2, 1, 8, 1))
        equal(totals["responses"], {"unsent": 0, "1xx": 0, "2xx": 5, "3xx": 2, "4xx": 2, "5xx": 0})
        equal(totals["receipt"]["bytes"], heads)
        equal(sum(totals["durations"]["counts"]), 9)
        equal(sum(worker["totals"]["requests"] for worker in now["workers"]), 8)
        equal(sorted(worker["pid"] for worker in now["workers"]), server.worker_pids())
        equal(now["about"], "%s at %s/" % (root, server.url))
        equal((now["configuration"]["workers"], now["configuration"]["idle-timeout"], now["configuration"]["listing"]),
              (2, 60, True))
        assert now["configuration"]["loop"] in ("epoll", "io_uring"), now["configuration"]["loop"]
        assert 0 <= now["up_seconds"] < 60 * PATIENCE and abs(now["now"] - time.time()) < 20 * PATIENCE


LONG = 40 << 20


def asked_slowly(server):
    """A client that takes little of a long response, of which some bytes are counted already."""
    client = Client(server, receive_buffer=64 << 10)
    client.ask("/long")
    until(lambda: server.figures()("bytes_total") > 0, 5, "some bytes")
    return client


for options in ("--loop auto", "--loop epoll", "--route copy"):
    @case("what a long response has sent is counted while it is under way, and once (%s)", options, tls=False)
    def long_response(options):
        with open(write(root, "long", data=b""), "r+b") as file:
            file.truncate(LONG)
        with Admin(*options.split(), workers=1) as server:
            with asked_slowly(server) as client:
                first = server.figures()
                assert first("bytes_total") < LONG, first("bytes_total")
                equal([first("responses_total", **{"class": kind}) for kind in ("2xx", "unsent")], [0, 0])
                taken = 0
                while taken < LONG // 2:
                    taken += len(client.socket.recv(1 << 20))
                until(lambda: server.figures()("bytes_total") > first("bytes_total"), 5, "more bytes")
            until(lambda: server.figures()("responses_total", **{"class": "2xx"}) == 1, 5, "the end of a response that is cut")
            before = server.figures()("bytes_total")
            assert taken <= before < LONG, before
            with asked_slowly(server) as client:
                response = client.response()
                equal(len(response.body), LONG)
            until(lambda: server.figures()("responses_total", **{"class": "2xx"}) == 2, 5, "the end of the other")
            got = server.figures()
            whole = before + len(response.head) + LONG
            equal((got("bytes_total"), got("route_bytes_total")), (whole, whole))
            equal(sum(got(kind + "_bytes_total") for kind in ("by_reference", "copied", "unknown")), whole)
            equal(status(server.admin)["totals"]["receipt"]["transfers"], 2)


@case("nothing that was counted is lost with a worker: not its bytes, its requests, nor its CPU time; a crash is counted")
def crash():
    with Admin(workers=1) as server:
        with Client(server) as client:
            for _ in range(20):
                equal(client.get("/big").status, 200)
            before = server.figures()
            assert before("cpu_seconds_total") > 0
            os.kill(server.worker_pids()[0], signal.SIGKILL)
        until(lambda: server.figures()("worker_crashes_total") == 1, 10, "the crash being counted")
        after = server.figures()
        for name in ("bytes_total", "requests_total", "connections_total", "response_duration_seconds_count"):
            equal(after(name), before(name), name)
        assert after("cpu_seconds_total") >= before("cpu_seconds_total")
        equal((after("open_connections"), after("workers")), (0, 1))
        with Client(server) as client:
            equal(client.get("/small").status, 200)
        until(lambda: server.figures()("requests_total") == before("requests_total") + 1, 5, "the request")
        until(lambda: len(status(server.admin)["workers"]) == 1, 5, "the new worker's line")


@case("after a reload the counters go on, the listener is the same, and the configuration shown is the new one")
def reload():
    hosts = b"\n[host one.example *.two.example]\nroot = %s\nlisting = no\nrate = 1M\nsymlinks = never\n" \
            b"header = A: b\n[host three.example]\nroot = %s\ncache = *.js=no-cache\n" % (
                os.path.join(root, "sub").encode(), root.encode())
    path = write(root, "..conf", data=b"idle-timeout = 50s\nprecompressed = yes\nheader = C: d\n" + hosts)
    with Admin("--config", path, workers=1) as server:
        with Client(server) as client:
            equal(client.get("/big").status, 200)
        before = server.figures()
        write(root, "..conf", data=b"idle-timeout = 20s\nprecompressed = yes\nheader = C: d\n" + hosts)
        server.signal(signal.SIGHUP)
        now = until(lambda: next(iter([found for found in [status(server.admin)] if found["reloads"] == 1]), None), 20,
                    "the new workers' answer")
        equal(now["configuration"]["idle-timeout"], 20)
        host = now["configuration"]["host *.two.example"]
        equal(host, {"root": os.path.join(root, "sub"), "listing": False, "rate": 1 << 20, "symlinks": "never",
                     "header": ["C: d", "A: b"], "cache": [], "precompressed": True, "index": "index.html",
                     "cold-policy": "auto", "cold-size": None, "certificate": []})
        equal(host, now["configuration"]["host one.example"])
        host = now["configuration"]["host three.example"]
        equal((host["listing"], host["rate"], host["header"], host["cache"]), (True, None, ["C: d"], ["*.js=no-cache"]))
        until(lambda: [worker["reloads"] for worker in status(server.admin)["workers"]] == [1], 20, "the old worker's end")
        after = server.figures()
        for name in ("bytes_total", "requests_total", "connections_total", "response_duration_seconds_count"):
            equal(after(name), before(name), name)
        equal(after("worker_crashes_total"), 0)


@case("CPU time is that of the workers' processes, however they are confined", sanitized=False)
def cpu():
    with Admin(workers=2) as server:
        with Client(server) as client:
            for _ in range(60):
                client.get("/big")
        ticks = 0
        for pid in server.worker_pids():
            with open("/proc/%d/stat" % pid, encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        seconds = ticks / os.sysconf("SC_CLK_TCK")
        got = server.figures()("cpu_seconds_total")
        assert seconds - 0.05 <= got <= seconds + 0.3, (got, seconds)


@case("a response that takes its time is timed to its end, and one that times out is counted")
def slow():
    with Admin("--send-timeout", "300ms", "--header-timeout", "300ms") as server:
        with Client(server, receive_buffer=4096) as client:
            client.ask("/big")
            time.sleep(0.2)
            equal(len(client.response().body), len(BIG))
            until(lambda: server.figures()("response_duration_seconds_count") == 1, 5, "the response being timed")
            got = server.figures()
            assert got("response_duration_seconds_sum") >= 0.19, got("response_duration_seconds_sum")
            equal(got("response_duration_seconds_bucket", le="0.1"), 0)
        equal(got("timeouts_total"), 0)
        with Client(server) as client:
            client.send("GET / HT")
            equal(client.response().status, 408)
        until(lambda: server.figures()("timeouts_total") == 1, 5, "the timeout being counted")
        equal(server.figures()("responses_total", **{"class": "4xx"}), 1)


@case("a route that gives way is counted with its reason", sanitized=False)
def fallback():
    with Admin("--workers", "1") as server:
        equal(server.figures()("fallbacks_total"), 0)
        with strace(server.worker_pids()[0], "-e", "trace=sendfile", "-e", "inject=sendfile:error=EINVAL"), \
                Client(server) as client:
            same_bytes(client.get("/big").body, BIG)
        until(lambda: server.figures()("fallbacks_total") > 0, 5, "the change of route")
        got = server.figures()
        equal(got("fallbacks_total"), got("fallbacks_total", **{"from": "sendfile", "error": "EINVAL"}))
        equal(got("route_bytes_total", route="sendfile"), 0)
        change = status(server.admin)["totals"]["fallbacks"][0]
        equal((change["from"], change["error"], change["count"]), ("sendfile", "EINVAL", got("fallbacks_total")))
        assert change["reason"] and 'reason="%s"' % change["reason"] in fetch(server.admin)[1], change


@case("the listener has /, /status.json and /metrics, and refuses the rest; nothing of it is on the public port")
def paths():
    with Admin() as server:
        for path, code in (("/", 200), ("/metrics", 200), ("/status.json", 200), ("/metrics/", 404), ("/small", 404),
                           ("/../etc/passwd", 404), ("/?x", 200)):
            head, _ = fetch(server.admin, path)
            equal(int(head.split(" ")[1]), code, path)
            assert "\r\nCache-Control: no-store\r\n" in head and "\r\nX-Content-Type-Options: nosniff\r\n" in head, head
        equal(int(fetch(server.admin, "/metrics", "POST")[0].split(" ")[1]), 405)
        head, body = fetch(server.admin, "/")
        assert re.search(r"Content-Security-Policy: default-src 'none'; style-src 'sha256-\S+'; script-src 'sha256-\S+'; "
                         r"connect-src 'self'; ", head), head
        # It loads nothing: no address of another host is in it but the name space of SVG.
        equal(set(re.findall(r"https?://[^\s'\"]*", body)), {"http://www.w3.org/2000/svg"})
        with Client(server) as client:
            equal((client.get("/metrics").status, client.get("/status.json").status), (404, 404))


@case("the manual names every metric, and no other")
def documented():
    with Admin() as server:
        equal(undocumented(server.admin, "sluice_serve_", os.path.join(MANUAL, "sluice-serve.1")),
              {"not in the page": [], "not there": []})


@case("--admin is refused at addresses that others than this host and private networks reach, unless it is said")
def public():
    for address in (":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0", "8.8.8.8:9180"):
        said = refused("--admin", address)
        assert "--admin: " in said and "admin-anywhere" in said and "127.0.0.1:9180" in said, said
    with Server(root, "--admin", "0.0.0.0:0", "--admin-anywhere") as server:
        port = int(re.search(r"metrics at http://\S+:(\d+)/", server.output())[1])
        assert parse_metrics(fetch((LOCAL, port))[1])


@case("--admin says what is wrong with an address, or that somebody listens there")
def taken():
    assert "--admin" in refused("--admin", "nonsense")
    with socket.socket() as holder:
        holder.bind((LOCAL, 0))
        holder.listen()
        said = refused("--admin", "%s:%d" % holder.getsockname())
        assert "EADDRINUSE" in said or "in use" in said, said


@case("a server that drains ends although somebody is looking at it")
def drain():
    with Admin() as server, socket.create_connection(server.admin) as idle:
        idle.sendall(b"GET /metrics HTTP/1.1\r\n")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5 * PATIENCE


if __name__ == "__main__":
    main()
