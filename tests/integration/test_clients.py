#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Clients that nobody here wrote, asking sluice serve: curl, wrk, h2load (by HTTP/1.1) and ab."""

import gzip
import os
import re
import shutil
import subprocess

from harness import PATIENCE, Skip, case, content, equal, main, new_root, note, same_bytes, shared_server, write
from peers import PROGRAMS, fetch, run, why_not

root = new_root()
SMALL, LARGE = content(1024), content(3 << 20)
TEXT = b"a line that repeats\n" * 5000
write(root, "small.bin", data=SMALL)
write(root, "large.bin", data=LARGE)
write(root, "page", "index.html", data=TEXT)
write(root, "page", "index.html.gz", data=gzip.compress(TEXT))
write(root, "list", "file", data=b"file")
server = shared_server(root, "--precompressed", workers=2)
scratch = new_root()
TOOLS = ("wrk", "h2load", "ab")


def curl(*arguments, code=0):
    """Its standard output, of a transfer that ended with this exit code."""
    if not shutil.which("curl"):
        raise Skip("needs curl: apt-get install curl")
    server()
    words = [word.replace("URL", server().url) for word in arguments]
    done = subprocess.run(["curl", "-sS", "--max-time", "10", *words], capture_output=True, timeout=20 * PATIENCE)
    equal(done.returncode, code, "curl %s: %s" % (arguments, done.stderr.decode()))
    return done.stdout


@case("curl gets a file, its head, a directory by its redirect, a listing, and the same by --http1.0 and with a query")
def plain():
    same_bytes(curl("URL/large.bin"), LARGE)
    assert b"Content-Length: 1024\r\n" in curl("-I", "URL/small.bin")
    same_bytes(curl("-L", "URL/page"), TEXT)
    equal(curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "URL/page?a=b").decode(),
          "301 %s/page/?a=b" % server().url)
    assert b'href="./file"' in curl("URL/list/")
    assert b'"href": "./file"' in curl("-H", "Accept: application/json", "URL/list/")
    same_bytes(curl("--http1.0", "URL/large.bin?x"), LARGE)


@case("curl gets ranges, several at once, and goes on where an earlier download stopped")
def ranges():
    same_bytes(curl("-r", "1000-2000999", "URL/large.bin"), LARGE[1000:2001000])
    parts = curl("-r", "0-99,1000-1099,-100", "URL/large.bin")
    for first in (0, 1000, len(LARGE) - 100):
        assert b"Content-Range: bytes %d-%d/%d\r\n\r\n%s\r\n--" % (
            first, first + 99, len(LARGE), LARGE[first:first + 100]) in parts
    path = write(scratch, "partial", data=LARGE[:1234567])
    curl("-C", "-", "-o", path, "URL/large.bin")
    with open(path, "rb") as file:
        same_bytes(file.read(), LARGE)


@case("curl --compressed gets the sibling and unpacks it; without, the file")
def compressed():
    same_bytes(curl("--compressed", "URL/page/"), TEXT)
    equal(int(curl("--compressed", "-o", "/dev/null", "-w", "%{size_download}", "URL/page/")), len(gzip.compress(TEXT)))
    equal(int(curl("-o", "/dev/null", "-w", "%{size_download}", "URL/page/")), len(TEXT))


@case("curl revalidates by tag and by date, and fetches nothing anew")
def revalidated():
    tag, path = os.path.join(scratch, "tag"), os.path.join(scratch, "copy")
    form = ("-o", path, "-w", "%{http_code} %{size_download}")
    curl("--etag-save", tag, *form, "URL/large.bin")
    equal(curl("--etag-compare", tag, *form, "URL/large.bin"), b"304 0")
    curl("-R", "-o", path, "URL/large.bin")
    equal(curl("-z", path, "-w", "%{http_code}", "-o", path, "URL/large.bin"), b"304")


@case("curl sends bodies with GET, by length, in chunks, and after 100, and goes on on the same connection")
def bodies():
    body = write(scratch, "body", data=b"b" * 3000)
    more = ("-w", "%{http_code} %{num_connects} ", "-o", "/dev/null")
    for how in (("-d", "@" + body), ("-d", "@" + body, "-H", "Transfer-Encoding: chunked"),
                ("-d", "@" + body, "-H", "Expect: 100-continue"), ("-X", "OPTIONS", "-d", "@" + body)):
        method = () if "-X" in how else ("-X", "GET")
        got = curl(*method, *how, *more, "URL/small.bin", "--next", "-sS", *more, "URL/small.bin")
        equal(got, b"200 1 200 0 ", how)
    body = write(scratch, "large", data=b"b" * 100000)
    equal(curl("-X", "GET", "-d", "@" + body, *more, "URL/small.bin"), b"413 1 ")
    equal(curl("-X", "PUT", "-T", body, *more, "URL/small.bin"), b"405 1 ")


@case("curl --http2 stays with HTTP/1.1, and 20 files come over connections in parallel")
def upgrade():
    if b"HTTP2" in subprocess.run(["curl", "--version"], capture_output=True).stdout:
        equal(curl("--http2", "-w", "%{http_version}", "-o", "/dev/null", "URL/small.bin"), b"1.1")
    many = [word for i in range(20) for word in ("-o", os.path.join(scratch, "many-%d" % i), "URL/large.bin?%d" % i)]
    curl("-Z", *many)
    for i in range(20):
        with open(os.path.join(scratch, "many-%d" % i), "rb") as file:
            same_bytes(file.read(), LARGE)


@case("wrk: 64 connections get nothing but whole files, with and without Accept-Encoding")
def wrk():
    fetch(*TOOLS)
    for fields in ((), ("-H", "Accept-Encoding: gzip, br, zstd")):
        out = run([PROGRAMS / "wrk", "-t1", "-c64", "-d1s", *fields, server().url + "/page/index.html"])
        note(" ".join(out.split()[-6:]))
        assert "Socket errors" not in out and "Non-2xx" not in out, out
        rate, transferred = re.search(r"Requests/sec:\s+([\d.]+)", out), re.search(r"([\d.]+)([KMG])B read", out)
        requests = int(re.search(r"(\d+) requests in", out)[1])
        assert float(rate[1]) > 500 / PATIENCE, out
        each = float(transferred[1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[transferred[2]] / requests
        size = len(gzip.compress(TEXT)) if fields else len(TEXT)
        assert size * .99 < each < size * 1.1 + 700, "%g bytes for each request" % each


@case("h2load by HTTP/1.1, also pipelining: all of 20,000 requests succeed")
def h2load():
    fetch(*TOOLS)
    for more in ((), ("-m", "8")):
        out = run([PROGRAMS / "h2load", "--h1", "-n", "20000", "-c", "32", *more, server().url + "/small.bin"])
        note(re.search(r"finished in .*", out)[0])
        assert "20000 total, 20000 started, 20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout" in out, out
        assert "status codes: 20000 2xx, 0 3xx, 0 4xx, 0 5xx" in out, out
        assert "%d) data" % (20000 * len(SMALL)) in out, out


@case("ab, with keep-alive and without: no request fails and every length is right")
def ab():
    fetch(*TOOLS)
    for more, count in (("-k",), 10000), ((), 2000):
        out = run([PROGRAMS / "ab", "-q", "-n", str(count), "-c", "16", *more, server().url + "/small.bin"])
        note(re.search(r"Requests per second:.*", out)[0])
        for line in (r"Complete requests:\s+%d" % count, r"Failed requests:\s+0", r"Document Length:\s+1024 bytes",
                     r"HTML transferred:\s+%d bytes" % (count * len(SMALL)), r"Server Software:\s+sluice/"):
            assert re.search(line, out), "%s: %s" % (line, out)
        assert "Non-2xx" not in out, out
        equal(int((re.search(r"Keep-Alive requests:\s+(\d+)", out) or [0, "0"])[1]), count if more else 0)


server.closing_case()

if __name__ == "__main__":
    why_not(*TOOLS)  # before the cases, whose limits are no measure of a network
    main()
