#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""TLS by the kernel, with a kernel that has it: what libsluice says of it is held against OpenSSL and against the
kernel's own counters (/proc/net/tls_stat); the peer is OpenSSL, which checks every byte."""

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from harness import SLUICE, Skip, case, equal, main, new_root, note  # noqa: E402

import guest  # noqa: E402

PAIR = sys.argv[2]
del sys.argv[2]
BYTES = 300001  # no whole number of records, and large enough to be corked
HEAD = 100
GCM = [("1.2", "ECDHE-ECDSA-AES128-GCM-SHA256", "303 AES-128-GCM"), ("1.2", "ECDHE-ECDSA-AES256-GCM-SHA384", "303 AES-256-GCM"),
       ("1.3", "TLS_AES_128_GCM_SHA256", "304 AES-128-GCM"), ("1.3", "TLS_AES_256_GCM_SHA384", "304 AES-256-GCM")]
PAGES = ("sendfile", "splice")
ROUTES = [(version, suite, "sendfile") for version, suite, _ in GCM] + \
         [(*GCM[2][:2], route) for route in ("splice", "copy", "mmap")]

Said = collections.namedtuple("Said", "openssl_sends openssl_receives sends receives suite receipt")


def certificate():
    path = new_root() + "/certificate"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-days", "2", "-keyout", path, "-out", path + ".only"], check=True,
                   capture_output=True)
    with open(path, "ab") as both, open(path + ".only", "rb") as only:
        both.write(only.read())
    return path


def files():
    curl = shutil.which("curl")
    if not curl:
        raise guest.Unavailable("no curl here: apt-get install curl")
    return {"files": [(PAIR, "/bin/pair"), (SLUICE, "/bin/sluice"), (certificate(), "/certificate"),
                      (os.path.realpath(curl), "/usr/local/bin/curl"),
                      (os.path.realpath(shutil.which("openssl")), "/usr/local/bin/openssl")]}


boot = guest.once(files, modules=["tls", "gcm", "ctr", "ghash_generic?", "aes_generic?", "tcp_diag"],
                  later=["chacha20poly1305", "chacha_generic", "poly1305_generic"])


def machine():
    try:
        return boot()
    except guest.Unavailable as reason:
        raise Skip(str(reason)) from reason


def counters():
    return {name: int(value) for name, value in
            (line.split() for line in machine().run("cat /proc/net/tls_stat").out.decode().splitlines())}


def pair(what, route, version, suite, size=BYTES):
    result = machine().run(f"pair {what} {route} {version} {suite} {size} /certificate")
    equal(result.code, 0, f"{what} {route} {suite}: {result.err.decode()}")
    first, last = result.out.decode().splitlines()
    sends_ssl, receives_ssl, sends, receives, *names = first.split()
    return Said(sends_ssl == "1", receives_ssl == "1", sends, receives, " ".join(names),
                json.loads(last) if last.startswith("{") else None)


@functools.lru_cache(maxsize=None)
def sent():
    """By several suites, by one of them by every route. Before and after: the counters."""
    before = counters()
    found = {(suite, route): pair("send", route, version, suite) for version, suite, route in ROUTES}
    return found, before, counters()


@case("TLS 1.2 and 1.3 with AES-128-GCM and AES-256-GCM: the kernel encrypts, OpenSSL decrypts every byte of every route",
      limit=200)
def _():
    found, _, _ = sent()
    names = {suite: name for _, suite, name in GCM}
    for (suite, route), said in found.items():
        equal((said.openssl_sends, said.sends, said.suite), (True, "software", names[suite]), route)
        equal(said.receipt["bytes"], BYTES + HEAD)
        equal(said.receipt["fallbacks"], [], suite)
    note("%d transfers of %d bytes with %s" % (len(found), BYTES, machine().kernel.package))


@case("what goes by sendfile or splice is transformed, and neither copied nor by reference")
def _():
    found, _, _ = sent()
    for (suite, route), said in found.items():
        receipt = said.receipt
        equal(receipt["transformed"], receipt["bytes"], route)
        equal((receipt["by_reference"], receipt["copied"], receipt["aliased"]), (0, 0, 0), route)
        equal(receipt["routes"][route]["bytes"], BYTES + HEAD * (route == "copy"), route)
        # Of the head, which is sent from memory, nobody knows.
        equal(receipt["unknown"], HEAD if route in PAGES else BYTES + HEAD, route)
        equal(receipt["copy_bytes"], BYTES if route == "copy" else 0, route)


@case("a file that is overwritten after it was sent arrives as it was: receipts are right not to call it aliased")
def _():
    for route in PAGES:
        said = pair("change", route, "1.3", "TLS_AES_128_GCM_SHA256", 60000)  # fits into the sockets' buffers
        equal((said.receipt["routes"][route]["bytes"], said.receipt["aliased"]), (60000, 0), route)


@case("a body goes by sendfile in as few calls as without TLS, and its head makes no record of its own")
def _():
    found, _, _ = sent()
    for said in found.values():
        routes = said.receipt["routes"]
        if "sendfile" in routes:
            assert routes["sendfile"]["calls"] <= 8, said.receipt
            equal(routes["copy"]["calls"], 1)


@case("the kernel's counters of connections that it encrypts agree with the receipts")
def _():
    found, before, after = sent()
    equal(after["TlsTxSw"] - before["TlsTxSw"], sum(said.receipt["transformed"] > 0 for said in found.values()))
    equal(after["TlsTxDevice"], 0)
    equal(after["TlsCurrTxSw"], 0)  # all closed
    equal(after["TlsDecryptError"], 0)


@case("the kernel decrypts TLS 1.2 for copy and splice; close_notify ends the stream; every byte is right", limit=100)
def _():
    before = counters()
    for version, suite, name in GCM[:1]:
        for route in ("copy", "splice"):
            said = pair("receive", route, version, suite)
            equal((said.openssl_receives, said.receives, said.suite), (True, "software", name))
            receipt = said.receipt
            equal((receipt["bytes"], receipt["transformed"], receipt["unknown"]), (BYTES, BYTES, BYTES))
            equal((receipt["by_reference"], receipt["fallbacks"]), (0, []))
    after = counters()
    equal(after["TlsRxSw"] - before["TlsRxSw"], 2)
    equal(after["TlsDecryptError"], 0)


# ---- HTTPS ----

SERVE = """
mkdir -p /www && [ -e /www/big ] || dd if=/dev/urandom of=/www/big bs=1000 count=300 2>/dev/null
echo small >/www/small
sluice serve /www --listen 127.0.0.1:%d --tls --certificate /certificate --admin 127.0.0.1:%d --workers 1 --loop %s \\
    --tls-ciphers %s --receipts >/tmp/said-$$ 2>&1 &
until curl -sk -o /dev/null https://127.0.0.1:%d/none; do sleep 0.1; done
"""
PORTS = {"epoll": (8443, 9180), "io_uring": (8444, 9181)}  # by loop


@functools.lru_cache(maxsize=None)
def served(loop):
    suites = ":".join([suite for _, suite, _ in GCM] + ["ECDHE-ECDSA-AES128-SHA256", "TLS_CHACHA20_POLY1305_SHA256"])
    equal(machine().run(SERVE % (*PORTS[loop], loop, suites, PORTS[loop][0]), limit=60).code, 0)
    return PORTS[loop]


def moved(port):
    """Bytes that serve has sent, by the receipts of all connections."""
    text = machine().run(f"curl -s http://127.0.0.1:{port}/metrics").out.decode()
    return {name: int(value) for name, value in re.findall(r"^sluice_serve_(\w+?)_bytes_total (\d+)$", text, re.M)}


def fetch(version, suite, loop="epoll"):
    """A file from serve. What it has moved meanwhile, and how many connections the kernel was given."""
    port, admin = served(loop)
    keys, before = counters()["TlsTxSw"], moved(admin)
    ciphers = "--tls13-ciphers" if version == "1.3" else "--tls-max 1.2 --ciphers"
    done = machine().run(f"curl -sk {ciphers} {suite} https://127.0.0.1:{port}/big | cmp - /www/big")
    equal((done.code, done.out, done.err), (0, b"", b""), suite)
    after = moved(admin)
    return {name: after[name] - before[name] for name in after}, counters()["TlsTxSw"] - keys


@case("sluice serve gives the kernel its keys after the handshake, and sends files by sendfile: TLS 1.2 and 1.3, both loops",
      limit=120)
def _():
    for version, suite, _, loop in ((*GCM[0], "epoll"), (*GCM[2], "io_uring"), (*GCM[3], "epoll")):
        got, keys = fetch(version, suite, loop)
        equal(keys, 1, suite)
        assert got["transformed"] > 300000, got
        # The head is sent from memory.
        equal((got["by_reference"], got["copied"], got["copy"]), (0, 0, 0), suite)
        assert got["unknown"] < 1000, got
    # Its own receipts are told when a connection has ended.
    equal(machine().run("until grep -q 'sendfile 293.0 KiB' /tmp/said-*; do sleep 0.1; done", limit=20).code, 0)


@case("sluice serve encrypts what the kernel does not, and its receipts say that it copied")
def _():
    suites = [("1.2", "ECDHE-ECDSA-AES128-SHA256"), ("1.3", "TLS_CHACHA20_POLY1305_SHA256")]
    for version, suite in suites:
        got, keys = fetch(version, suite)
        equal((keys, got["by_reference"], got["unknown"]), (0, 0, 0), suite)
        assert got["copied"] > 300000 and got["transformed"] == got["copied"], got


UPDATE = """
trap "" PIPE # of a client that has been cut off already
mkfifo /tmp/talk
openssl s_client -connect 127.0.0.1:8443 -tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256 </tmp/talk >/tmp/heard 2>&1 &
exec 3>/tmp/talk
seen() { words=$1; shift; until grep -q "$words" "$@"; do sleep 0.05; done; }
seen "Verify return code" /tmp/heard
echo %s >&3
seen KEYUPDATE /tmp/heard
printf 'GET /small HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3
seen "%s" %s
exec 3>&-
rm /tmp/talk /tmp/heard
"""


@case("a client may take new keys of its own; one that asks for new ones of ours, which the kernel has, is cut off", limit=100)
def _():
    served("epoll")
    equal(machine().run(UPDATE % ("k", "200 OK", "/tmp/heard"), limit=60).code, 0)
    equal(machine().run(UPDATE % ("K", "asks for new keys", "/tmp/said-*"), limit=60).code, 0)


# ---- Other suites ----

@case("suites that the kernel does not take stay with OpenSSL, and the library says that the kernel does nothing")
def _():
    before = counters()
    for version, suite in (("1.2", "ECDHE-ECDSA-AES128-SHA256"), ("1.3", "TLS_CHACHA20_POLY1305_SHA256")):
        said = pair("send", "auto", version, suite)
        equal((said.openssl_sends, said.sends, said.receipt), (False, "none", None), suite)
    equal(counters()["TlsTxSw"], before["TlsTxSw"])


@case("ChaCha20-Poly1305 is the kernel's once its modules are there, for TLS 1.2 and 1.3")
def _():
    equal(machine().run("for module in /later/*; do insmod $module || exit 1; done").code, 0)
    for version, suite in (("1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"), ("1.3", "TLS_CHACHA20_POLY1305_SHA256")):
        said = pair("send", "auto", version, suite)
        equal((said.openssl_sends, said.sends), (True, "software"), suite)
        assert said.suite.endswith(" ChaCha20-Poly1305"), said
        equal(said.receipt["transformed"], said.receipt["bytes"])


@case("who encrypts can be asked of the socket, too, where the counters cannot be read")
def _():
    result = machine().run("unshare -m sh -c 'mount -t tmpfs none /proc && "
                           f"pair send sendfile 1.3 TLS_AES_128_GCM_SHA256 {BYTES} /certificate'")
    equal(result.code, 0, result.err.decode())
    assert " software none 304 " in result.out.decode(), result.out


main()
