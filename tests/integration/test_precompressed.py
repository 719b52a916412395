#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--precompressed: which sibling of a file is sent to whom, and what is said of it."""

import gzip
import os
import time

from harness import (Client, Server, case, content, equal, get, main, new_root, parts_of, same_bytes, shared_server,
                     until, write)

root = new_root()
TEXT = b"body { color: black }\n" * 2000
FORMS = {"br": content(900, 1), "zstd": content(1000, 2), "gzip": gzip.compress(TEXT)}
SUFFIXES = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}


def siblings(*path, codings=tuple(FORMS), text=TEXT):
    write(root, *path, data=text)
    for coding in codings:
        write(root, *path[:-1], path[-1] + SUFFIXES[coding], data=FORMS[coding])
    return "/" + "/".join(path)


siblings("style.css")
siblings("page", "index.html", codings=("gzip",))
siblings("some", "script.js", codings=("zstd", "gzip"))
write(root, "plain.css", data=TEXT)
server = shared_server(root, "--precompressed")
plain = shared_server(root, name="the server without the option")


def got(target, accept, *fields, which=server, method="GET"):
    response = get(which(), target, *(("Accept-Encoding: " + accept,) if accept is not None else ()), *fields,
                   method=method)
    coding = response["Content-Encoding"]
    if method == "GET" and response.status == 200:
        same_bytes(response.body, FORMS[coding] if coding else TEXT, "%s as %s" % (target, coding))
    return response


@case("the sibling in the coding that the client prefers is sent, with the file's type and its coding")
def preferred():
    for accept, coding in (("gzip", "gzip"), ("br", "br"), ("zstd", "zstd"), ("gzip, deflate, br, zstd", "br"),
                           ("gzip, zstd", "zstd"), ("br;q=0.1, gzip;q=0.2", "gzip"), ("*", "br"), ("x-gzip", "gzip"),
                           ("br;q=0, *", "zstd"), ("gzip;q=0.5, identity;q=0", "gzip")):
        response = got("/style.css", accept)
        equal((response["Content-Encoding"], response["Content-Type"]), (coding, "text/css; charset=utf-8"), accept)
        equal(response["Vary"], "Accept-Encoding", accept)
        equal(response["Content-Length"], str(len(FORMS[coding])))
    equal(gzip.decompress(got("/style.css", "gzip").body) == TEXT, True)


@case("nobody gets a coding without having asked for it")
def unasked():
    for accept in (None, "", "identity", "deflate", "gzip;q=0", "*;q=0", "br;q=0, zstd;q=0, gzip;q=0.000", "gzip;q=2",
                   "identity;q=1, gzip;q=0.5", "gzipped"):
        response = got("/style.css", accept)
        equal((response.status, response["Content-Encoding"], response["Vary"]), (200, None, "Accept-Encoding"), accept)


@case("where the best is missing the next is sent, and the file itself where none is there")
def missing():
    for _ in range(3):
        equal(got("/some/script.js", "br, zstd, gzip")["Content-Encoding"], "zstd")
        equal(got("/some/script.js", "br, gzip")["Content-Encoding"], "gzip")
        response = got("/some/script.js", "br")
        equal((response["Content-Encoding"], response["Vary"]), (None, "Accept-Encoding"))
        response = got("/plain.css", "br, zstd, gzip")
        equal((response["Content-Encoding"], response["Vary"]), (None, "Accept-Encoding"))


@case("an index file has siblings, too, and a directory is redirected to as ever")
def index():
    equal(got("/page/", "gzip")["Content-Encoding"], "gzip")
    equal(get(server(), "/page", "Accept-Encoding: gzip")["Location"], "/page/")


@case("each coding has an entity tag of its own, by which it is revalidated; 304 says what it varies by")
def tags():
    def strong():
        tags = {accept: got("/style.css", accept)["ETag"] for accept in ("identity", *FORMS)}
        return not any(tag.startswith("W/") for tag in tags.values()) and tags
    tags = until(strong, 4, "strong tags")
    equal(len(set(tags.values())), 4)
    for accept, tag in tags.items():
        for other, other_tag in tags.items():
            response = got("/style.css", accept, "If-None-Match: " + other_tag)
            equal(response.status, 304 if other == accept else 200, "%s with the tag of %s" % (accept, other))
            equal(response["Vary"], "Accept-Encoding")
            if response.status == 304:
                equal((response["ETag"], response["Content-Encoding"]), (tag, None))


@case("ranges, one or several, are of the coding that is sent")
def ranges():
    part = got("/style.css", "br", "Range: bytes=10-19")
    equal((part.status, part["Content-Range"], part["Content-Encoding"]), (206, "bytes 10-19/900", "br"))
    same_bytes(part.body, FORMS["br"][10:20])
    part = got("/style.css", None, "Range: bytes=10-19")
    equal((part.status, part["Content-Range"], part["Content-Encoding"]), (206, "bytes 10-19/%d" % len(TEXT), None))
    equal(got("/style.css", "br", "Range: bytes=900-").status, 416)
    tag = got("/style.css", "br")["ETag"]
    for coding, fields in (("br", ()), ("br", ("If-Range: " + tag,)), ("zstd", ()), (None, ())):
        parts = got("/style.css", coding, "Range: bytes=0-1,50-60,-3", *fields)
        data = FORMS[coding] if coding else TEXT
        equal((parts.status, parts["Content-Encoding"], parts["Vary"]), (206, coding, "Accept-Encoding"))
        equal(parts_of(parts, "text/css; charset=utf-8"),
              [("bytes %d-%d/%d" % (first, last, len(data)), data[first:last + 1])
               for first, last in ((0, 1), (50, 60), (len(data) - 3, len(data) - 1))])
    equal(got("/style.css", "br", "Range: bytes=0-1", "If-Range: " + tag).status, 206)
    equal(got("/style.css", "gzip", "Range: bytes=0-1", "If-Range: " + tag).status, 200)


@case("HEAD says what GET says, of every coding")
def head():
    for accept in (None, "br", "zstd", "gzip", "gzip, br"):
        with Client(server()) as client:
            heads = []
            for method in ("GET", "HEAD"):
                response = client.get("/style.css", *(("Accept-Encoding: " + accept,) if accept else ()), method=method)
                heads.append({name: value for name, value in response.fields.items() if name != "date"})
            equal(heads[0], heads[1], str(accept))


@case("by its own name a compressed file is what it is, without a coding")
def by_name():
    response = get(server(), "/style.css.gz")
    equal((response.status, response["Content-Encoding"], response["Content-Type"]), (200, None, "application/gzip"))
    same_bytes(response.body, FORMS["gzip"])


@case("a sibling without its file is not found")
def orphan():
    write(root, "orphan.css.gz", data=FORMS["gzip"])
    equal(get(server(), "/orphan.css", "Accept-Encoding: gzip").status, 404)


@case("a sibling that is no regular file, or leads outside, is as if it were not there")
def odd():
    path = siblings("odd.css", codings=("gzip",))
    os.mkdir(root + "/odd.css.br")
    os.symlink("/etc/passwd", root + "/odd.css.zst")
    equal(got(path, "br, zstd")["Content-Encoding"], None)
    equal(got(path, "br, zstd, gzip;q=0.1")["Content-Encoding"], "gzip")


@case("siblings that are made, changed and removed while the server runs are seen, whatever their dates")
def changing():
    path = siblings("changing.css", codings=())
    name = root + "/changing.css.gz"
    with Client(server()) as client:
        def coding(accept="br, zstd, gzip"):
            response = client.get(path, "Accept-Encoding: " + accept)
            return response["Content-Encoding"], len(response.body)
        for _ in range(3):
            equal(coding(), (None, len(TEXT)))
        write(name, data=b"old")
        os.utime(name, (1_000_000_000, 1_000_000_000))
        until(lambda: coding() == ("gzip", 3), 3, "the sibling that was made")
        os.rename(write(root, "new", data=b"newer"), name)
        until(lambda: coding() == ("gzip", 5), 3, "the sibling that was replaced")
        write(root, "changing.css", data=b"the file")
        until(lambda: client.get(path).body == b"the file", 3, "the changed file")
        equal(coding(), ("gzip", 5))
        os.unlink(name)
        until(lambda: coding() == (None, 8), 3, "the file, as the sibling is gone")


@case("what a helper has to look for comes as well: many files and codings asked for at once on cold connections")
def helpers():
    for i in range(20):
        siblings("cold-%d" % i, "a", "file.css", codings=("zstd",) if i % 2 else ())
    with Client(server()) as client:
        client.send("".join("GET /cold-%d/a/file.css HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip, br, zstd\r\n\r\n" % i
                            for i in range(20)))
        for i in range(20):
            response = client.response()
            equal(response["Content-Encoding"], "zstd" if i % 2 else None)
            same_bytes(response.body, FORMS["zstd"] if i % 2 else TEXT)
    for i in range(20):  # gone while a helper looks
        with Client(server()) as client:
            client.ask("/cold-%d/./a/file.css?" % i, "Accept-Encoding: br")
    time.sleep(0.02)
    equal(got("/style.css", "br")["Content-Encoding"], "br")


@case("without the option nothing is negotiated, and nothing varies")
def without():
    response = got("/style.css", "gzip, br, zstd", which=plain)
    equal((response["Content-Encoding"], response["Vary"]), (None, None))


@case("a site may have it and another not; patterns for Cache-Control mean the file, not the sibling")
def sites():
    file = write(new_root(), "serve.conf", data=(
        "root = %s\ncache = *.css = max-age=9\n\n[host yes.example]\nprecompressed = yes\n" % root).encode())
    with Server("--config=" + file) as configured, Client(configured) as client:
        for host, coding in (("no.example", None), ("yes.example", "br"), ("no.example", None)):
            response = client.get("/style.css", "Accept-Encoding: br", host=host)
            equal((response["Content-Encoding"], response["Cache-Control"]), (coding, "max-age=9"), host)
            equal(response["Vary"], coding and "Accept-Encoding", host)


@case("with --snapshot and without openat2 the siblings are the same")
def otherwise():
    with Server(root, "--precompressed", "--snapshot", env={"SLUICE_NO_OPENAT2": "1"}) as other:
        for accept in ("br", "zstd", "gzip", None, "br, gzip"):
            coding = got("/style.css", accept, which=lambda: other)["Content-Encoding"]
            equal(coding, accept and accept.split(",")[0])


server.closing_case()
plain.closing_case()

if __name__ == "__main__":
    main()
