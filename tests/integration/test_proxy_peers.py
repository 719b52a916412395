#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Software that nobody here wrote, talking through the proxy: curl and wrk to sluice serve, psql and pgbench to
PostgreSQL, redis-benchmark to Redis, iperf3 both ways, curl to a TLS server of OpenSSL's. All but curl and OpenSSL are
Debian's, unpacked by bench/peers."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading

from harness import LOCAL, PATIENCE, Server, Skip, case, content, equal, main, new_root, note, until, write
from peers import PEERS, PROGRAMS, fetch, peer_environment, run, servers
from proxying import CONTROL, LOOPS, MIB, Proxy, connect, terminate

NOBODY = 65534
POSTGRES = PEERS / "root/usr/lib/postgresql/15/bin"


@contextlib.contextmanager
def program(command, port=None, path=None, **more):
    """A server: it runs until the block is left. Ready when the port or the socket answers."""
    with open(os.path.join(new_root(), "log"), "w+b") as log:
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env=peer_environment(), **more)

        def answers():
            if process.poll() is not None:
                log.seek(0)
                raise AssertionError("%s ended: %s" % (command[0], log.read()[-2000:]))
            with contextlib.suppress(OSError):
                connect((LOCAL, port) if port else path).close()
                return True
            return False
        try:
            until(answers, 20, "an answer of " + str(command[0]))
            yield process
        finally:
            terminate(process)


def needs(*commands):
    for command in commands:
        if not shutil.which(command):
            raise Skip("needs %s: apt-get install %s" % (command, command))


def each_loop(name, limit=60):
    def register(function):
        for loop in LOOPS[:1] if CONTROL else LOOPS:
            case(name + " (--loop %s)", loop, limit=limit)(function)
        return function
    return register


# ---- HTTP ----

root = new_root()
FILE = content(30 * MIB)
write(root, "large", data=FILE)
write(root, "small", data=content(1024))


@contextlib.contextmanager
def web(loop):
    """sluice serve, and a proxy in front of it."""
    with Server(root) as server, Proxy(server.address, loop=loop) as proxy:
        yield "http://%s:%d" % proxy.address


@each_loop("curl through the proxy to sluice serve: a large file, ranges of it, and a slow reader get the right bytes")
def curl(loop):
    needs("curl")
    with web(loop) as url:
        got = subprocess.run(["curl", "-sS", "--max-time", "10", url + "/large"], capture_output=True,
                             check=True).stdout
        equal(hashlib.sha256(got).digest(), hashlib.sha256(FILE).digest(), "the file's hash")
        got = subprocess.run(["curl", "-sS", "--max-time", "10", "-r", "1000-2000999", url + "/large", url + "/small",
                              url + "/large"], capture_output=True, check=True).stdout
        equal(got, FILE[1000:2001000] + content(1024)[1000:] + FILE[1000:2001000])
        slow = subprocess.run(["curl", "-sS", "--max-time", "10", "--limit-rate", "60M", "-o", root + "/slow",
                               url + "/large"], check=False)
        equal(slow.returncode, 0)
        with open(root + "/slow", "rb") as file:
            equal(file.read() == FILE, True, "the file read slowly is right")


@each_loop("wrk through the proxy to sluice serve: no request fails")
def wrk(loop):
    fetch("wrk")
    with web(loop) as url:
        out = run([PROGRAMS / "wrk", "-t1", "-c32", "-d1s", "--latency", url + "/small"])
        note(" ".join(out.split()[-12:]))
        assert "Socket errors" not in out and "Non-2xx" not in out, out
        assert float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]) > 500 / PATIENCE, out


# ---- PostgreSQL ----

def readable():
    """May others than root run what is there?"""
    for parent in [POSTGRES, *POSTGRES.parents]:
        if not os.stat(parent).st_mode & 1:
            raise Skip("needs %s to be open to all (chmod a+x), as PostgreSQL does not run as root" % parent)


@contextlib.contextmanager
def postgresql():
    """Listening on a port and on a Unix socket. Yields both."""
    fetch("postgresql")
    readable()
    directory = new_root()
    data = directory + "/data"
    as_other = {}
    if os.geteuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
        as_other = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    run([POSTGRES / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync", "--no-instructions", "-E", "UTF8",
         "--no-locale"], cwd=directory, seconds=40, **as_other)
    port = servers.free_port()
    with program([POSTGRES / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=" + LOCAL,
                  "-c", "unix_socket_directories=" + directory, "-c", "fsync=off", "-c", "shared_buffers=32MB",
                  "-c", "max_connections=40", "-c", "jit=off"],
                 port=port, cwd=directory, **as_other):
        yield (LOCAL, port), "%s/.s.PGSQL.%d" % (directory, port)


@case("psql and pgbench through the proxy to PostgreSQL, by TCP and by Unix sockets, each loop: results, bulk by COPY, "
      "balanced books", limit=90)
def databases():
    with postgresql() as (address, path):
        for loop, server in zip(LOOPS, (address, path)):
            front = new_root()
            os.chmod(front, 0o777)
            listen = [(LOCAL, 0), "unix:%s/.s.PGSQL.5432" % front]
            with Proxy(server, listen=listen, loop=loop, workers=1 if CONTROL else 2) as proxy:
                os.chmod(front + "/.s.PGSQL.5432", 0o777)
                by_port = ["-h", LOCAL, "-p", proxy.address[1], "-U", "test"]
                by_path = ["-h", front, "-p", "5432", "-U", "test"]
                psql = functools.partial(run, user=NOBODY if os.geteuid() == 0 else None, cwd="/")
                for how in (by_port, by_path):
                    ask = [POSTGRES / "psql", *how, "-d", "postgres", "-AtX", "-v", "ON_ERROR_STOP=1"]
                    equal(psql([*ask, "-c", "SELECT 6 * 7"]), "42\n")
                    # Bulk in both directions, the sum computed on both sides.
                    text = "".join("%d\t%s\n" % (i, hashlib.md5(b"%d" % i).hexdigest() * 8) for i in range(12_000))
                    psql([*ask, "-c", "DROP TABLE IF EXISTS bulk; CREATE TABLE bulk(i int, t text)"])
                    psql([*ask, "-c", "COPY bulk FROM STDIN"], input=text)
                    equal(psql([*ask, "-c", "SELECT count(*), md5(string_agg(t, '' ORDER BY i)) FROM bulk"]),
                          "12000|%s\n" % hashlib.md5("".join(
                              line.split("\t")[1] for line in text.splitlines()).encode()).hexdigest())
                    equal(psql([*ask, "-c", "COPY (SELECT * FROM bulk ORDER BY i) TO STDOUT"]), text)
                psql([POSTGRES / "pgbench", *by_port, "-i", "-q", "-s", "1", "postgres"])
                out = psql([POSTGRES / "pgbench", *by_port, "-n", "-c", "8", "-j", "2", "-t", "60", "-M", "prepared",
                            "postgres"])
                note(re.search(r"tps = .*", out)[0])
                assert "number of failed transactions: 0 " in out, out
                equal(psql([POSTGRES / "psql", *by_port, "-d", "postgres", "-AtXc",
                            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM "
                            "pgbench_branches)"]), "t\n")


# ---- Redis ----

@case("redis-benchmark through the proxy to Redis, single requests and 16 at a time, each loop; a value of 5 MB",
      limit=60)
def redis():
    fetch("redis")
    port = servers.free_port()
    with program([PROGRAMS / "redis-server", "--port", port, "--bind", LOCAL, "--save", "", "--appendonly", "no"],
                 port=port, cwd=new_root()):
        for loop in LOOPS[:1] if CONTROL else LOOPS:
            with Proxy((LOCAL, port), loop=loop) as proxy:
                front = ["-h", LOCAL, "-p", proxy.address[1]]
                for pipeline in ("1", "16"):
                    out = run([PROGRAMS / "redis-benchmark", *front, "-t", "set,get", "-n", "8000", "-c", "32",
                               "-d", "300", "-P", pipeline, "--csv"])
                    equal([line.split(",")[0] for line in out.splitlines()[1:] if line.startswith(('"SET', '"GET'))],
                          ['"SET"', '"GET"'])
                    assert "error" not in out.lower(), out
                value = content(5 * MIB).hex()[:5 * MIB]
                equal(run([PROGRAMS / "redis-cli", *front, "-x", "SET", "large"], input=value), "OK\n")
                equal(run([PROGRAMS / "redis-cli", *front, "GET", "large"]) == value + "\n", True, "the value is right")


# ---- iperf3 ----

@each_loop("iperf3 through the proxy, one way, the other, and both at once: what was sent has come")
def iperf3(loop):
    fetch("iperf3")
    port = servers.free_port()
    with program([PROGRAMS / "iperf3", "-s", "-p", port, "-B", LOCAL], port=port), \
            Proxy((LOCAL, port), loop=loop) as proxy:
        for options in (["-n", "300M"], ["-n", "300M", "-R"], ["-t", "1", "--bidir", "-P", "2"])[loop == "io_uring":]:
            def measured(options=options):
                """The server may still be at the end of the test before, after which it listens anew."""
                done = subprocess.run([PROGRAMS / "iperf3", "-c", LOCAL, "-p", str(proxy.address[1]), "-J", *options],
                                      capture_output=True, env=peer_environment(), timeout=10 * PATIENCE)
                report = json.loads(done.stdout)
                error = report.get("error", "")
                assert not error or "busy" in error or "control message: Connection reset" in error, report
                return report["end"] if not error else None
            end = until(measured, 5, "a server that is not busy")
            received = end["sum_received"]["bytes"]
            note("%s: %.1f Gb/s" % (" ".join(options) or "forth", end["sum_received"]["bits_per_second"] / 1e9))
            assert received > 50 * MIB / PATIENCE, received


# ---- TLS ----

@each_loop("curl through the proxy to a TLS server of OpenSSL's: TLS 1.2 and 1.3, a large file")
def tls(loop):
    needs("curl", "openssl")
    directory = new_root()
    write(directory, "file", data=FILE[:8 * MIB])
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=proxied.test", "-addext", "subjectAltName=DNS:proxied.test", "-days", "2", "-keyout",
                    directory + "/key", "-out", directory + "/certificate"], check=True, capture_output=True)
    server = subprocess.Popen(["openssl", "s_server", "-accept", LOCAL + ":0", "-key", "key", "-cert", "certificate",
                               "-WWW"], cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    try:
        match = None
        while match is None:
            line = server.stdout.readline()
            assert line, "s_server ended"
            match = re.match(rb"ACCEPT 127\.0\.0\.1:(\d+)", line)
        threading.Thread(target=server.stdout.read, daemon=True).start()
        with Proxy((LOCAL, int(match[1])), loop=loop) as proxy:
            for version in (["--tls-max", "1.2"], ["--tlsv1.3"]):
                got = subprocess.run(["curl", "-sS", "--max-time", "10", *version,
                                      "--cacert", directory + "/certificate",
                                      "--connect-to", "proxied.test:443:%s:%d" % proxy.address,
                                      "https://proxied.test/file"], capture_output=True, check=True).stdout
                equal(got == FILE[:8 * MIB], True, "the file is right")
    finally:
        terminate(server)
        server.wait()


if __name__ == "__main__":
    main()
