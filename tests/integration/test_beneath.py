#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Files beneath the root and no others, with openat2 and without."""

import contextlib
import os
import threading
import time

from harness import Client, Server, case, equal, get, main, new_root, shared_server, write

top = new_root()
root = os.path.join(top, "root")
outside = os.path.join(top, "outside")
SECRET = b"OUTSIDE-SECRET"
write(outside, "secret.txt", data=SECRET)
write(outside, "index.html", data=SECRET)
write(outside, "sub", "secret.txt", data=SECRET)
write(root, "file.txt", data=b"inside")
write(root, "sub", "deep", "file.txt", data=b"deep")


def link(target, *name):
    os.symlink(target, os.path.join(root, *name))


link(os.path.join(outside, "secret.txt"), "absolute")
link("/etc/passwd", "passwd")
link("../outside/secret.txt", "relative")
link(outside, "absolute-dir")
link("../outside", "relative-dir")
link("../../outside", "sub", "climbs")
link("/", "slash")
link("..", "up")
link("../..", "sub", "up")
link("../root/file.txt", "out-and-in")
link(os.path.join(root, "file.txt"), "absolute-inside")
link("relative", "second-hand")
link("up/outside", "through-up")
link("sub/climbs", "through-directory")
link("/proc/self/root/etc/passwd", "magic-root")
link("/proc/self/cwd/../outside/secret.txt", "magic-cwd")
link("/proc/self/fd/0", "magic-fd")
link("loop-b", "loop-a")
link("loop-a", "loop-b")
link("nowhere", "dangling")
link("file.txt", "good")
link("sub", "good-dir")
link("../file.txt", "sub", "good-up")
link("../../sub/deep/../../good", "sub", "deep", "good-chain")
link(".", "here")
link("file.txt/", "file-with-slash")

SERVERS = {
    "with openat2": shared_server(root, name="the server with openat2"),
    "without openat2": shared_server(root, env={"SLUICE_NO_OPENAT2": "1"}, name="the server without openat2"),
    "without confinement": shared_server(root, "--no-confine", name="the server without confinement"),
    "without confinement and openat2": shared_server(root, "--no-confine", env={"SLUICE_NO_OPENAT2": "1"},
                                                     name="the server without confinement and openat2"),
}

for how in SERVERS:
    @case("%s, no symbolic link leads outside", how)
    def out(how):
        with Client(SERVERS[how]()) as client:
            for path in ("/absolute", "/passwd", "/relative", "/absolute-dir/secret.txt", "/relative-dir/secret.txt",
                         "/absolute-dir/", "/relative-dir/", "/absolute-dir", "/relative-dir", "/relative-dir/sub/",
                         "/sub/climbs/secret.txt", "/sub/climbs/", "/slash/etc/passwd", "/slash/", "/up/", "/up",
                         "/up/outside/secret.txt", "/sub/up/outside/secret.txt", "/out-and-in", "/absolute-inside",
                         "/second-hand", "/through-up/secret.txt", "/through-directory/secret.txt",
                         "/through-directory/", "/magic-root", "/magic-cwd", "/magic-fd",
                         "/up/root/file.txt"):
                for method in ("GET", "HEAD"):
                    response = client.get(path, method=method)
                    equal(response.status, 404, "%s %s" % (method, path))
                    assert SECRET not in response.body and b"root:" not in response.body, path

    @case("%s, loops and links to nothing are 404", how)
    def loops(how):
        with Client(SERVERS[how]()) as client:
            for path in ("/loop-a", "/loop-a/x", "/dangling", "/dangling/", "/file-with-slash"):
                equal(client.get(path).status, 404, path)

    @case("%s, symbolic links inside the root are followed", how)
    def inside(how):
        with Client(SERVERS[how]()) as client:
            for path, body in (("/good", b"inside"), ("/good-dir/deep/file.txt", b"deep"), ("/sub/good-up", b"inside"),
                               ("/sub/deep/good-chain", b"inside"), ("/here/here/here/file.txt", b"inside"),
                               ("/good-dir/good-up", b"inside")):
                for _ in range(2):
                    response = client.get(path)
                    equal((response.status, response.body), (200, body), path)
            response = client.get("/good-dir")
            equal((response.status, response["Location"]), (301, "/good-dir/"))

    @case("%s, a listing shows only links that lead to something that is served", how)
    def listed(how):
        page = get(SERVERS[how](), "/").body
        for name in (b"good", b"good-dir", b"here", b"file.txt", b"sub"):
            assert b'"./%s' % name.replace(b"-", b"-") in page, name
        for name in (b"absolute", b"passwd", b"relative", b"slash", b"up", b"magic", b"loop-a", b"dangling",
                     b"second-hand", b"out-and-in"):
            assert b'"./%s' % name not in page, name

    @case("%s, deep paths, long names and many components are right", how)
    def deep(how):
        path = "/".join(["d" * 100] * 20)
        write(root, path, "n" * 255, data=b"long")
        with Client(SERVERS[how]()) as client:
            equal(client.get("/%s/%s" % (path, "n" * 255)).body, b"long")
            equal(client.get("/%s/%s" % (path, "n" * 256)).status, 404)

    @case("%s, two seconds of swapping a directory with a link to the outside let no byte out", how)
    def swapped(how):
        server = SERVERS[how]()
        race = os.path.join(root, "race")
        os.makedirs(os.path.join(race, "a", "sub"), exist_ok=True)
        os.makedirs(os.path.join(race, "sub"), exist_ok=True)
        write(race, "a", "secret.txt", data=b"inside")
        write(race, "a", "sub", "secret.txt", data=b"inside")
        write(race, "a", "index.html", data=b"inside")
        spare, bad = os.path.join(race, "spare"), os.path.join(race, "bad")
        if not os.path.lexists(bad):
            os.symlink("../../outside", bad)
        stop = threading.Event()
        seen = {}

        def swap():
            good = os.path.join(race, "a")
            while not stop.is_set():
                os.rename(good, spare)
                os.rename(bad, good)
                time.sleep(0.0002)
                os.rename(good, bad)
                os.rename(spare, good)
                time.sleep(0.0002)

        def ask():
            client = Client(server)
            while not stop.is_set():
                for path in ("/race/a/secret.txt", "/race/a/sub/secret.txt", "/race/a/", "/race/a"):
                    response = client.get(path)
                    seen[response.status] = seen.get(response.status, 0) + 1
                    assert SECRET not in response.body, "%s: %r" % (path, response.body)
                    assert response.status in (200, 301, 404), response
            client.close()
        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            timer = threading.Timer(2, stop.set)
            timer.start()
            ask()
        finally:
            stop.set()
            swapper.join()
        assert seen.get(200, 0) > 5 and seen.get(404, 0) > 5, "no race was run: %s" % seen

    @case("%s, two seconds of moving a directory away from under requests with .. in links let no byte out", how)
    def moved(how):
        """The kernel must notice that ".." no longer leads where it did (openat2 gives EAGAIN)."""
        server = SERVERS[how]()
        write(root, "moving", "x", "y", "file.txt", data=b"inside")
        with contextlib.suppress(FileExistsError):
            link("../../../outside/secret.txt", "moving", "x", "y", "climb")
            link("../y/file.txt", "moving", "x", "y", "around")
        stop = threading.Event()

        def move():
            here, there = os.path.join(root, "moving", "x", "y"), os.path.join(root, "y")
            while not stop.is_set():
                os.rename(here, there)
                time.sleep(0.0003)
                os.rename(there, here)
                time.sleep(0.0003)
        mover = threading.Thread(target=move)
        mover.start()
        try:
            deadline = time.monotonic() + 2
            with Client(server) as client:
                while time.monotonic() < deadline:
                    for path in ("/moving/x/y/climb", "/moving/x/y/around", "/y/climb", "/y/around"):
                        response = client.get(path)
                        assert SECRET not in response.body, path
                        assert response.status in (200, 404), response
        finally:
            stop.set()
            mover.join()


@case("a root that is itself given by a symbolic link is served")
def linked_root():
    name = os.path.join(top, "link-to-root")
    os.symlink("root", name)
    with Server(name) as server:
        equal(get(server, "/file.txt").body, b"inside")
        equal(get(server, "/absolute").status, 404)


@case("a root given as a relative path is served")
def relative_root():
    with Server("root", cwd=top) as server:
        equal(get(server, "/file.txt").body, b"inside")


@case("a root that is moved while it is served goes on being served, from its new place")
def moved_root():
    here = os.path.join(top, "moves")
    write(here, "file.txt", data=b"one")
    with Server(here) as server, Client(server) as client:
        equal(client.get("/file.txt").body, b"one")
        os.rename(here, here + "-away")
        write(here, "file.txt", data=b"another root")
        equal(client.get("/file.txt").body, b"one")
        write(here + "-away", "file.txt", data=b"two")
        equal(client.get("/file.txt").body, b"two")


for get_server in SERVERS.values():
    get_server.closing_case()

if __name__ == "__main__":
    main()
