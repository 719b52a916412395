#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice cp, held against cp -a and against what it promises beyond that."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time

from harness import (PATIENCE, SANITIZED, SLUICE, REPORT, Skip, case, content, equal, main, mounted, new_root, note,
                     until, write)

MIB = 1 << 20
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # for what is about numbers, not about a disk
ROOT = os.geteuid() == 0
ENVIRONMENT = dict({"ASAN_OPTIONS": "halt_on_error=1:exitcode=99", "TSAN_OPTIONS": "halt_on_error=1:exitcode=99",
                    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99"}, **os.environ)


# The leak sanitizer does not work under strace.
TRACED = dict(ENVIRONMENT, ASAN_OPTIONS=ENVIRONMENT["ASAN_OPTIONS"] + ":detect_leaks=0")


class Run:
    def __init__(self, process, out, err):
        self.code, self.out, self.err = process.returncode, out, err


def cp(*arguments, code=0, quiet=None, **how):
    """Run sluice cp to its end. quiet: nothing on standard error (default: when it is to succeed)."""
    process = subprocess.Popen([SLUICE, "cp", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=ENVIRONMENT, **how)
    out, err = (text.decode("utf-8", "surrogateescape") for text in process.communicate(timeout=60 * PATIENCE))
    assert not REPORT.search(err), err
    equal(process.returncode, code, "exit code; standard error: %s" % err[-2000:])
    if code == 0 if quiet is None else quiet:
        equal(err, "", "standard error")
    return Run(process, out, err)


def needs_root(what):
    if not ROOT:
        raise Skip("needs root: " + what)


# ---- Comparing trees ----

def walk(top):
    """Every path beneath top, relative, in bytes, with a descriptor of its directory: no path is too long."""
    stack = [(os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME), b"")]
    yield stack[0][0], b".", b"."
    while stack:
        directory, path = stack.pop()
        names = sorted(os.fsencode(name) for name in os.listdir(directory))
        for name in names:
            yield directory, name, path + name
            if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                stack.append((os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME, dir_fd=directory),
                              path + name + b"/"))
        if len(stack) > 500:
            stack.sort(key=lambda item: len(item[1]))
        os.close(directory)


def facts(top, blocks=True):
    """Everything of a tree that a copy must have, by path."""
    found, inodes = {}, {}
    for directory, name, path in walk(top):
        status = os.lstat(name, dir_fd=directory)
        kind = stat.S_IFMT(status.st_mode)
        here = "/proc/self/fd/%d/" % directory
        named = os.fsencode(here) + name
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            attributes = {key: os.getxattr(named, key) for key in os.listxattr(named)}
        else:
            attributes = {key: os.getxattr(named, key, follow_symlinks=False)
                          for key in os.listxattr(named, follow_symlinks=False)}
        attributes = {key: value for key, value in attributes.items() if not key.startswith("trusted.SGI_")}  # of XFS
        fact = {"mode": oct(status.st_mode), "mtime": status.st_mtime_ns, "xattrs": attributes}
        fact["owner"] = (status.st_uid, status.st_gid)
        if kind not in (stat.S_IFDIR, stat.S_IFLNK):  # reading those is what changes it
            fact["atime"] = status.st_atime_ns
        if kind == stat.S_IFLNK:
            fact["leads to"] = os.readlink(name, dir_fd=directory)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            fact["device"] = status.st_rdev
        elif kind == stat.S_IFREG:
            fact["size"] = status.st_size
            if blocks:
                fact["sparse"] = status.st_blocks * 512 < status.st_size
            if status.st_nlink == 1 or status.st_ino not in inodes:
                with open(os.open(name, os.O_RDONLY | os.O_NOATIME, dir_fd=directory), "rb") as file:
                    fact["content"] = hash(file.read(min(status.st_size + 1, 64 * MIB)))
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            fact["same as"] = inodes.setdefault(status.st_ino, path)
        found[path] = fact
    groups = [fact.get("same as") for fact in found.values()]
    for fact in found.values():
        if "same as" in fact and groups.count(fact["same as"]) == 1:
            del fact["same as"]  # its other names are elsewhere
    return found


def same_facts(got, expected, what="copy"):
    missing, more = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or more:
        raise AssertionError("%s: missing %s, superfluous %s" % (what, missing[:5], more[:5]))
    for path in sorted(expected):
        for key in expected[path].keys() | got[path].keys():
            equal(got[path].get(key), expected[path].get(key), "%s: %s of %r" % (what, key, path))


def same_tree(source, target, **how):
    same_facts(facts(target, **how), facts(source, **how))


def temporaries(top):
    return [path for _, name, path in walk(top) if re.fullmatch(rb"\..*\.[a-z0-9]{6}", name)]


def acl(*entries):
    """An access control list as the kernel takes it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, who & 0xffffffff) for tag, bits, who in entries)


NO_ID = -1
SOME_ACL = acl((1, 6, NO_ID), (2, 7, 1234), (4, 0, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID))


def build_zoo(top, special=True):
    """One of everything."""
    os.makedirs(top)
    at = os.path.join
    write(top, "plain.txt", data=b"hello\n")
    write(top, "empty")
    for size in (1, 4095, 4096, 4097, 65535, 65536, 65537, 300001):
        write(top, "sizes", str(size), data=content(size))
    for number, mode in enumerate((0o0, 0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644)):
        os.chmod(write(top, "modes", "%d" % number, data=b"x%d" % number), mode)
    for number, mode in enumerate((0o700, 0o755, 0o1777, 0o2775, 0o555)):
        os.makedirs(at(top, "directories", str(number)))
        write(top, "directories", str(number), "inside")
        os.chmod(at(top, "directories", str(number)), mode)
    os.makedirs(at(top, "empty-directory"))
    os.symlink("plain.txt", at(top, "link"))
    os.symlink("/nowhere/at/all", at(top, "dangling"))
    os.symlink("loop-b", at(top, "loop-a"))
    os.symlink("loop-a", at(top, "loop-b"))
    os.symlink("..", at(top, "sizes", "up"))
    os.symlink("x" * 1000, at(top, "long-link"))
    names = [b"new\nline", b"  blanks ", b"-dash", b"\xff\xfe not utf-8", b"'quote'\"", b"x" * 255, "ü€😀".encode() * 20,
             b"*?[a]", b"back\\slash", b"tab\t"]
    for name in names:
        with open(at(os.fsencode(top), b"sizes", name), "wb") as file:
            file.write(name)
        os.makedirs(at(os.fsencode(top), b"named", name))
        with open(at(os.fsencode(top), b"named", name, name), "wb") as file:
            file.write(name)
    os.makedirs(at(top, "linked", "deep"))
    write(top, "linked", "a", data=content(70000))
    for number in range(20):
        os.link(at(top, "linked", "a"), at(top, "linked", "deep", "a%d" % number))
    os.link(at(top, "plain.txt"), at(top, "linked", "plain"))
    write(top, "outside-link", data=b"linked from outside")
    os.link(at(top, "outside-link"), top + ".other-name")
    with open(at(top, "sparse"), "wb") as file:
        file.truncate(40 * MIB)
        for offset in (0, 5 * MIB + 17, 39 * MIB):
            file.seek(offset)
            file.write(content(10000))
        file.truncate(50 * MIB)
    with open(at(top, "all-hole"), "wb") as file:
        file.truncate(3 * MIB + 5)
    if special:
        os.mkfifo(at(top, "fifo"), 0o640)
        os.setxattr(at(top, "plain.txt"), "user.colour", b"blue")
        os.setxattr(at(top, "plain.txt"), "user.empty", b"")
        os.setxattr(at(top, "sizes", "1"), "user.large", content(3000))
        for number in range(40):
            os.setxattr(at(top, "sizes", "4096"), "user.a-name-that-makes-the-list-long-%d" % number, b"v")
        os.setxattr(at(top, "sizes"), "user.of-a-directory", b"yes")
        os.setxattr(at(top, "sizes", "65536"), "system.posix_acl_access", SOME_ACL)
        os.setxattr(at(top, "named"), "system.posix_acl_access", SOME_ACL)
        os.setxattr(at(top, "named"), "system.posix_acl_default", SOME_ACL)
    if special and ROOT:
        os.mknod(at(top, "null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(at(top, "disk"), 0o660 | stat.S_IFBLK, os.makedev(7, 200))
        os.setxattr(at(top, "link"), "trusted.link", b"of a link", follow_symlinks=False)
        os.setxattr(at(top, "sizes", "4097"), "security.capability",
                    bytes.fromhex("0100000200040000000000000000000000000000"))
        for number, (uid, gid) in enumerate(((1000, 0), (0, 1000), (12345, 54321), (65534, 65534))):
            os.chown(write(top, "owners", str(number), data=b"o"), uid, gid)
            os.chmod(at(top, "owners", str(number)), 0o6755)
        os.symlink("x", at(top, "owners", "link"))
        os.chown(at(top, "owners", "link"), 77, 88, follow_symlinks=False)
        os.chown(at(top, "directories", "0"), 1000, 1000)
    random_times = random.Random(5)
    for directory, name, _ in list_bottom_up(top):
        moment = random_times.randrange(1, 4_000_000_000_000_000_000)
        os.utime(name, ns=(moment, moment + 123456789), dir_fd=directory, follow_symlinks=False)
        os.close(directory)
    return top


def list_bottom_up(top):
    items = []
    for directory, name, path in walk(top):
        items.append((os.dup(directory), name, path))
    return items[::-1]


zoo = build_zoo(os.path.join(new_root(), "zoo"))


# ---- The same as cp -a ----

@case("a tree with one of everything comes out as from cp -a, and as it was", limit=60)
def one_of_everything():
    top = new_root()
    before = facts(zoo)
    cp(zoo, os.path.join(top, "ours"))
    same_facts(facts(zoo), before, "the source")
    subprocess.run(["cp", "-a", zoo, os.path.join(top, "theirs")], check=True)
    got = facts(os.path.join(top, "ours"))
    same_facts(got, before)
    theirs = facts(os.path.join(top, "theirs"))
    same_facts(got, theirs, "beside cp -a")
    os.unlink(zoo + ".other-name")
    write(zoo + ".other-name")


def jobs(count):
    top = new_root()
    cp("-j", str(count), zoo, os.path.join(top, "copy"))
    same_tree(zoo, os.path.join(top, "copy"))
    equal(temporaries(top), [])


for number in (1, 7):
    case("with %s jobs it is the same", number)(jobs)


@case("copied onto an existing copy with everything in the way replaced, it is the same again")
def onto_itself():
    top = new_root()
    cp(zoo, top)
    cp(zoo, top)
    same_tree(zoo, os.path.join(top, "zoo"))
    equal(temporaries(top), [])


@case("into a directory with a default access control list, a set-group-ID bit and a foreign group it is the same")
def inherited():
    needs_root("for the group")
    top = new_root()
    os.chown(top, 0, 4321)
    os.chmod(top, 0o2755)
    os.setxattr(top, "system.posix_acl_default", SOME_ACL)
    cp(zoo, top)
    same_tree(zoo, os.path.join(top, "zoo"))
    cp(os.path.join(zoo, "plain.txt"), os.path.join(zoo, "fifo"), top)
    equal(os.listxattr(os.path.join(top, "plain.txt")), ["user.colour", "user.empty"])
    equal(oct(os.stat(os.path.join(top, "plain.txt")).st_mode), oct(os.stat(os.path.join(zoo, "plain.txt")).st_mode))
    equal(os.stat(os.path.join(top, "plain.txt")).st_gid, 0)


def on_file_system(kind):
    with mounted(kind) as point:
        cp(zoo, os.path.join(point, "in"))
        same_tree(zoo, os.path.join(point, "in"), blocks=False)
        cp(os.path.join(point, "in"), os.path.join(point, "within"))
        same_tree(zoo, os.path.join(point, "within"), blocks=False)


for file_system in ("xfs", "btrfs"):
    case("onto %s, and from there onto itself, it is the same", file_system, limit=60)(on_file_system)


@case("onto tmpfs it is the same")
def on_tmpfs():
    with tmpfs("size=200m") as point:
        cp(zoo, point)
        same_tree(zoo, os.path.join(point, "zoo"), blocks=False)


@contextlib.contextmanager
def tmpfs(options):
    needs_root("for mounting")
    point = os.path.join(new_root(), "mounted")
    os.mkdir(point)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def build_random(top, seed):
    """Some hundred entries of random kinds and sizes, nested at random."""
    rng = random.Random(seed)
    os.makedirs(top)
    directories, files = [top], []
    for number in range(400):
        where = os.path.join(rng.choice(directories), "%d-%s" % (number, "n" * rng.randrange(30)))
        what = rng.random()
        if what < 0.2:
            os.mkdir(where)
            directories.append(where)
        elif what < 0.3:
            os.symlink(rng.choice(("a", "../b", "/c" * 50)), where)
        elif what < 0.4 and files:
            os.link(rng.choice(files), where)
            continue
        else:
            size = int(rng.lognormvariate(8, 2.5)) % (4 * MIB)
            write(where, data=content(size, rng.randrange(4)))
            if rng.random() < 0.2:
                with open(where, "r+b") as file:
                    file.truncate(size + rng.randrange(MIB))
            os.chmod(where, rng.choice((0o600, 0o644, 0o755, 0o444)))
            files.append(where)
    return top


@case("random trees come out as they were, whatever the number of jobs", limit=60)
def random_trees():
    for _ in range(3):
        seed = random.randrange(1 << 32)
        note("seed %d" % seed)
        top = new_root()
        build_random(os.path.join(top, "a"), seed)
        cp("-j", str(1 + seed % 5), os.path.join(top, "a"), os.path.join(top, "b"))
        same_tree(os.path.join(top, "a"), os.path.join(top, "b"))
        shutil.rmtree(top)


# ---- Where it goes ----

@case("to a name, into a directory, several into a directory, and with slashes behind, as cp does")
def where_to():
    top = new_root()
    one, two = write(top, "one", data=b"1"), write(top, "two", data=b"2")
    tree = os.path.join(top, "tree")
    write(tree, "inner", "f", data=b"f")
    at = lambda *names: os.path.join(top, *names)
    cp(one, at("new"))
    equal(open(at("new"), "rb").read(), b"1")
    cp(two, at("new"))
    equal(open(at("new"), "rb").read(), b"2")
    os.mkdir(at("into"))
    cp(one, two, tree + "/", at("into"))
    equal(sorted(os.listdir(at("into"))), ["one", "tree", "two"])
    same_tree(tree, at("into", "tree"))
    cp(tree, at("fresh") + "//")
    same_tree(tree, at("fresh"))
    os.mkdir(at("contents"))
    cp(tree + "/.", at("contents"))
    same_tree(tree, at("contents"))
    os.symlink("into", at("link-to-into"))
    cp(at("new"), at("link-to-into"))
    equal(open(at("into", "new"), "rb").read(), b"2")
    os.symlink("tree", at("link-to-tree"))
    cp(at("link-to-tree"), at("as-link"))
    equal(os.readlink(at("as-link")), "tree")
    cp(at("link-to-tree") + "/", at("followed"))
    same_tree(tree, at("followed"))
    cp("one", "relative", cwd=top)
    equal(open(at("relative"), "rb").read(), b"1")
    cp("../tree/inner", ".", cwd=at("into"))
    equal(os.listdir(at("into", "inner")), ["f"])
    cp("--", "-j", at("dashed"), cwd=os.path.dirname(write(top, "dash", "-j", data=b"-")))


@case("a symbolic link as the target's name: the file it stands for is replaced; one that leads nowhere is refused")
def target_is_link():
    top = new_root()
    write(top, "source", data=b"new")
    write(top, "real", data=b"old")
    os.symlink("real", os.path.join(top, "link"))
    cp(os.path.join(top, "source"), os.path.join(top, "link"))
    equal(os.readlink(os.path.join(top, "link")), "real")
    equal(open(os.path.join(top, "real"), "rb").read(), b"new")
    os.symlink("nowhere", os.path.join(top, "dangling"))
    run = cp(os.path.join(top, "source"), os.path.join(top, "dangling"), code=1)
    assert "leads nowhere" in run.err, run.err
    assert not os.path.lexists(os.path.join(top, "nowhere"))


@case("a symbolic link does not replace the file that it leads to: the content would be gone")
def link_onto_its_file():
    top = new_root()
    at = lambda *names: os.path.join(top, *names)
    write(top, "file", data=b"content")
    os.symlink("file", at("link"))
    os.symlink("link", at("link to link"))
    write(top, "into", "beneath", data=b"content")
    os.symlink("into/beneath", at("beneath"))
    os.symlink("into/none", at("none"))
    for source, target, kept in (("link", "file", "file"), ("link to link", "file", "file"),
                                 ("beneath", "into", "into/beneath")):
        run = cp(at(source), at(target), code=1)
        assert f"{at(source)} → {at(kept)} refused: the symbolic link leads to this very file" in run.err, run.err
        equal(open(at(kept), "rb").read(), b"content")
    cp(at("none"), at("into"))  # nothing is there
    equal(os.readlink(at("into", "none")), "into/none")
    cp(at("link"), at("into", "beneath"))  # another file: replaced, as by cp -a
    equal(os.readlink(at("into", "beneath")), "file")
    cp("-n", at("link"), at("file"))
    equal(open(at("file"), "rb").read(), b"content")


@case("names that are empty, and two of the same name, are refused with their paths")
def odd_names():
    top = new_root()
    one, other = write(top, "a", "same", data=b"1"), write(top, "b", "same", data=b"2")
    os.mkdir(os.path.join(top, "into"))
    run = cp(one, other, os.path.join(top, "into"), code=1)
    assert f"{other} → {top}/into/same refused: another source has the same name" in run.err, run.err
    equal(open(os.path.join(top, "into", "same"), "rb").read(), b"1")
    assert "cannot copy to '': No such file" in cp(one, "", code=1).err
    assert "cannot read '': No such file" in cp("", os.path.join(top, "into"), code=1).err


@case("in a tree a symbolic link in the way is replaced, not followed: nothing is written outside")
def link_in_the_way():
    top = new_root()
    write(top, "a", "file", data=b"new")
    write(top, "outside", data=b"precious")
    os.makedirs(os.path.join(top, "b", "a"))
    os.symlink("../../outside", os.path.join(top, "b", "a", "file"))
    cp(os.path.join(top, "a"), os.path.join(top, "b"))
    equal(open(os.path.join(top, "outside"), "rb").read(), b"precious")
    same_tree(os.path.join(top, "a"), os.path.join(top, "b", "a"))


REFUSALS = {
    "a directory into itself": (("d", "d/inner"), "into itself"),
    "a directory into itself under a new name": (("d", "d/inner/new"), "into itself"),
    "a directory into itself through a link": (("d", "link-to-inner"), "into itself"),
    "a directory onto itself": (("d/.", "d"), "into itself"),
    "a directory into the one where it is": (("d", "."), "they are the same directory"),
    "the directory above": (("d/..", "d"), "into itself"),
    "a file onto itself": (("f", "f"), "the same file"),
    "a file onto itself by another name": (("f", "hard"), "the same file"),
    "a file into its own directory": (("f", "."), "the same file"),
    "a file onto itself through a link": (("f", "link-to-f"), "the same file"),
    "several sources onto a file": (("f", "g", "hard"), "several sources need a directory"),
    "several sources onto nothing": (("f", "g", "nothing"), "several sources need a directory"),
    "two sources of one name": (("f", "d/f", "empty"), "same name"),
    "a directory onto a file": (("d", "f"), "is none"),
    "a file onto a directory of its name": (("f", "has-directory"), "a directory is in the way"),
    "a missing source": (("missing", "g", "empty"), "No such file or directory (ENOENT)"),
    "into a missing directory": (("f", "missing/x"), "No such file or directory (ENOENT)"),
    "a file to a name with a slash behind": (("f", "new/"), "no such directory"),
    "to a file without a name": (("f", ""), "No such file or directory (ENOENT)"),
    "below a file": (("f", "g/x"), "Not a directory (ENOTDIR)"),
    "onto a FIFO": (("f", "fifo"), "a FIFO is in the way"),
    "onto a device": (("f", "null"), "a character device is in the way"),
}


def refused(what):
    arguments, reason = REFUSALS[what]
    top = new_root()
    at = lambda name: os.path.join(top, name)
    write(top, "f", data=b"f")
    write(top, "g", data=b"g")
    write(top, "d", "f", data=b"d/f")
    os.makedirs(at("d/inner"))
    os.makedirs(at("empty"))
    os.makedirs(at("has-directory/f"))
    os.link(at("f"), at("hard"))
    os.symlink("d/inner", at("link-to-inner"))
    os.symlink("f", at("link-to-f"))
    os.mkfifo(at("fifo"))
    if ROOT:
        os.mknod(at("null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    elif "null" in arguments:
        raise Skip("needs root: a device to copy onto")
    before = facts(top)
    run = cp(*arguments, cwd=top, code=1)
    assert reason in run.err, run.err
    assert run.err.startswith("sluice cp: ") and run.err.count("\n") == 1, run.err
    for name in ("empty/f", "empty/g"):
        if os.path.exists(at(name)):  # what was not refused
            os.unlink(at(name))
    after = facts(top)
    for one in (before, after):
        for fact in one.values():
            fact.pop("mtime")
    same_facts(after, before, "what is there afterwards")


for refusal in REFUSALS:
    case("refused, with the reason, and nothing changed: %s", refusal)(refused)


@case("a directory into itself by a bind mount, which no path shows: it has an end, and the rest is copied")
def into_itself_by_mount():
    with tmpfs("size=16M,nr_inodes=500") as top:
        at = lambda *names: os.path.join(top, *names)
        os.makedirs(at("d", "a", "inner"))
        write(top, "d", "b", "f", data=b"f")
        os.mkdir(at("mounted"))
        subprocess.run(["mount", "--bind", at("d", "a"), at("mounted")], check=True)
        try:
            run = cp(at("d"), at("mounted"), code=1)
        finally:
            subprocess.run(["umount", "--lazy", at("mounted")], check=True)
        equal(run.err.count("\n"), 1, run.err)
        assert "%s → %s refused: a directory cannot be copied into itself" % (
            at("d", "a", "d"), at("mounted", "d", "a", "d")) in run.err, run.err
        equal(sorted(os.listdir(at("d", "a", "d"))), ["a", "b"])
        equal(os.listdir(at("d", "a", "d", "a")), ["inner"])
        equal(open(at("d", "a", "d", "b", "f"), "rb").read(), b"f")


@case("what can be copied is copied although another source is missing or unreadable; the exit code is 1")
def goes_on():
    top = new_root()
    write(top, "a", "1", data=b"1")
    os.mkdir(os.path.join(top, "to"))
    run = cp(os.path.join(top, "none"), os.path.join(top, "a"), os.path.join(top, "to"), code=1)
    equal(run.err.count("\n"), 1)
    same_tree(os.path.join(top, "a"), os.path.join(top, "to", "a"))


@case("sockets are refused by name, and the rest of the tree is copied")
def sockets():
    top = new_root()
    write(top, "a", "file", data=b"1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(top, "a", "socket"))
        run = cp(os.path.join(top, "a"), os.path.join(top, "b"), code=1)
    assert re.fullmatch(r"sluice cp: \S+/a/socket is not copied: a socket is .*\n", run.err), run.err
    equal(os.listdir(os.path.join(top, "b")), ["file"])


# ---- Depth, length, number ----

@case("a tree %s directories deep, each with two files, with few descriptors to spare", 1200, limit=60)
def deep(depth):
    top = new_root(MEMORY)
    os.mkdir(os.path.join(top, "a"))
    name = "d" * 30
    here = os.open(os.path.join(top, "a"), os.O_RDONLY)
    for number in range(depth):
        for file in ("file", "other"):
            fd = os.open(file, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here)
            os.write(fd, b"%d" % number)
            os.close(fd)
        os.mkdir(name, dir_fd=here)
        os.mkdir("sibling", dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        cp(os.path.join(top, "a"), os.path.join(top, "b"),
           preexec_fn=lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_NOFILE, (60, 60)))
        deep_facts = [[(path, os.lstat(file, dir_fd=directory).st_mtime_ns, os.lstat(file, dir_fd=directory).st_mode)
                       for directory, file, path in walk(os.path.join(top, which))] for which in "ab"]
        equal(len(deep_facts[0]), 4 * depth + 1)
        assert deep_facts[0] == deep_facts[1]
    finally:
        subprocess.run(["rm", "-rf", top], check=True)


@case("a directory of 1,500 files and as many directories, by any number of jobs")
def wide():
    top = new_root(MEMORY)
    for number in range(1500):
        write(top, "a", "f%d" % number, data=b"%d" % number)
        os.mkdir(os.path.join(top, "a", "d%d" % number))
    for count in (1, 2, 5):
        cp("-j", str(count), os.path.join(top, "a"), os.path.join(top, "b%d" % count))
        same_tree(os.path.join(top, "a"), os.path.join(top, "b%d" % count))


@case("hard links between many directories, copied by many jobs, stay links")
def many_links():
    top = new_root(MEMORY)
    write(top, "a", "first", data=content(9 * MIB))
    write(top, "a", "second", data=b"small")
    for number in range(300):
        os.makedirs(os.path.join(top, "a", "d%d" % (number % 30)), exist_ok=True)
        for source in ("first", "second"):
            os.link(os.path.join(top, "a", source), os.path.join(top, "a", "d%d" % (number % 30), source + str(number)))
    for count in (1, 8):
        target = os.path.join(top, "b%d" % count)
        cp("-j", str(count), os.path.join(top, "a"), target)
        equal(os.stat(os.path.join(target, "first")).st_nlink, 301)
        same_tree(os.path.join(top, "a"), target)
        cp("-j", str(count), os.path.join(top, "a") + "/.", target)
        same_tree(os.path.join(top, "a"), target)
        equal(temporaries(target), [])


@case("-u after an interruption: a file's names are links of one another again, missing or there, whichever is met first")
def links_updated():
    top = new_root(MEMORY)
    source, target = os.path.join(top, "a"), os.path.join(top, "b")
    names = ["first"] + ["d%d/%d" % (number % 5, number) for number in range(40)]
    write(source, "first", data=content(70000))
    for name in names[1:]:
        os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
        os.link(os.path.join(source, "first"), os.path.join(source, name))
    cp(source, target)
    for missing in (names[::3], [name for name in names if name not in names[::3]]):
        for jobs in ("1", "8"):
            for name in missing:
                os.unlink(os.path.join(target, name))
            run = cp("-u", "--json", "-j", jobs, source + "/.", target)
            equal(os.stat(os.path.join(target, "first")).st_nlink, 41)
            same_tree(source, target)
            done = json.loads(run.out)
            equal(done["files"] + done["hard_links"] + done["skipped"], 41, run.out)
    equal(temporaries(target), [])


@case("-u -n: of a file with several names those that are there stay what they are")
def links_not_updated():
    top = new_root(MEMORY)
    source, target = os.path.join(top, "a"), os.path.join(top, "b")
    write(source, "0", data=content(70000))
    for number in range(1, 9):
        os.link(os.path.join(source, "0"), os.path.join(source, str(number)))
    cp(source, target)
    for rest in (0, 1):
        inodes = {}
        for number in range(9):
            if number % 2 == rest:
                inodes[number] = os.stat(os.path.join(target, str(number))).st_ino
            else:
                os.unlink(os.path.join(target, str(number)))
        cp("-u", "-n", source + "/.", target)
        for number, inode in inodes.items():
            equal(os.stat(os.path.join(target, str(number))).st_ino, inode)


# ---- Options ----

for older in (100, 1e-9):  # seconds
    @case("-n leaves alone what is there, -u what is not older, by %s s", older)
    def no_clobber_and_update(older):
        clobber_and_update(round(older * 1_000_000_000))


def clobber_and_update(older):
    top = new_root()
    for name, age in (("older", -older), ("same", 0), ("newer", older)):
        source = write(top, "a", name, data=b"source")
        os.utime(source, ns=(10 ** 18 + 5, 10 ** 18 + 5))
        target = write(top, "b", name, data=b"target")
        os.utime(target, ns=(10 ** 18 + 5 + age, 10 ** 18 + 5 + age))
    write(top, "a", "absent", data=b"source")

    def read():
        return {name: open(os.path.join(top, "b", name), "rb").read() for name in sorted(os.listdir(os.path.join(top, "b")))}
    cp("-n", os.path.join(top, "a") + "/.", os.path.join(top, "b"))
    equal(read(), {"absent": b"source", "older": b"target", "same": b"target", "newer": b"target"})
    os.unlink(os.path.join(top, "b", "absent"))
    run = cp("-u", "--json", os.path.join(top, "a") + "/.", os.path.join(top, "b"))
    equal(read(), {"absent": b"source", "older": b"source", "same": b"target", "newer": b"target"})
    equal(json.loads(run.out)["skipped"], 2)
    cp(os.path.join(top, "a") + "/.", os.path.join(top, "b"))
    equal(set(read().values()), {b"source"})


@case("-u onto a file system that keeps whole seconds only: what was copied is not older than its source")
def coarse_times():
    top = new_root()
    source = write(top, "d", "f", data=b"1")
    with mounted("ext4", "-I", "128") as point:
        target = os.path.join(point, "d", "f")
        for at, copied in ((1_600_000_000_900_000_000, True), (1_600_000_000_900_000_000, False),
                           (1_600_000_001_100_000_000, True), (1_600_000_001_000_000_000, False)):
            os.utime(source, ns=(at, at))
            before = os.stat(target).st_ino if os.path.exists(target) else 0
            cp("-u", os.path.join(top, "d"), point)
            equal(os.stat(target).st_ino != before, copied, "copied with time %d" % at)
            equal(os.stat(target).st_mtime_ns, at - at % 1_000_000_000)
        equal(os.listdir(os.path.join(point, "d")), ["f"])


@case("-a and -r, which cp takes, are taken: a tree with everything is what it copies anyhow")
def options_of_cp():
    top = new_root()
    write(top, "d", "e", "f", data=b"f")
    for letters in ("-a", "-r", "-av", "-ru"):
        cp(letters, os.path.join(top, "d"), os.path.join(top, letters), quiet=False)
        same_tree(os.path.join(top, "d"), os.path.join(top, letters))


@case("-v says what goes where, with control characters escaped; --debug adds a receipt each")
def verbose():
    top = new_root()
    write(top, "a", "x\ny\033", data=content(100000))
    run = cp("-v", "a", "b", cwd=top, quiet=False)
    assert "a → b\n" in run.out and r"a/x\ny\033 → b/x\ny\033" in run.out, run.out
    assert "1 file, 1 directory; 97.7 KiB in " in run.out, run.out
    run = cp("--debug", "a", "c", cwd=top, quiet=False)
    assert re.search(r"→ c/x\\ny\\033\n  97.7 KiB: ", run.out), run.out


@case("--json is one object on standard output that adds up")
def as_json():
    top = new_root()
    run = cp("--json", zoo, os.path.join(top, "copy"))
    got = json.loads(run.out)
    entries = list(facts(zoo).items())
    kinds = [int(fact["mode"], 8) & 0o170000 for _, fact in entries]
    equal(got["directories"], kinds.count(stat.S_IFDIR))
    equal(got["symbolic_links"], kinds.count(stat.S_IFLNK))
    equal(got["files"] + got["hard_links"], kinds.count(stat.S_IFREG))
    equal(got["hard_links"], 21)
    equal(got["special_files"], 3 if ROOT else 1)
    equal((got["failed"], got["skipped"], got["interrupted"]), (0, 0, False))
    equal(got["receipt"]["bytes"], got["bytes"])
    equal(got["bytes"], sum(fact["size"] for path, fact in entries
                            if "size" in fact and fact.get("same as", path) == path))
    assert "\n" not in run.out.strip()


def by_route(name):
    top = new_root()
    data = content(3 * MIB + 77)
    write(top, "a", data=data)
    run = cp("--json", "--route", name, os.path.join(top, "a"), os.path.join(top, "b"))
    equal(open(os.path.join(top, "b"), "rb").read(), data)
    equal(json.loads(run.out)["receipt"]["routes"].keys(), {name})


for route in ("copy", "splice", "copy_file_range"):
    case("--route %s forces it", route)(by_route)


@case("--route with one that does not serve files: refused with its reason, and nothing is left")
def route_refused():
    top = new_root()
    write(top, "a", data=b"data")
    run = cp("--route", "sendfile", os.path.join(top, "a"), os.path.join(top, "b"), code=2)
    assert re.match(r"sluice cp: --route sendfile never carries file to file: .*Routes that can: copy, mmap,", run.err), \
        run.err
    equal(os.listdir(top), ["a"])
    with tmpfs("size=1m") as point:
        run = cp("--route", "reflink", os.path.join(top, "a"), os.path.join(point, "b"), code=1)
        assert re.match(r"sluice cp: reflink \S+ → \S+ refused: .*--route auto\.\n", run.err), run.err
        equal(os.listdir(point), [])


@case("--reflink=always says why it cannot, and keeps nothing; auto goes on with a copy; never copies")
def reflink():
    top = new_root()
    with tmpfs("size=64m") as point:
        write(top, "a", data=content(MIB))
        a, b = os.path.join(top, "a"), os.path.join(point, "b")
        run = cp("--reflink=always", a, b, code=1)
        assert re.search(r"sluice cp: reflink \S+/a → \S+/b refused: .* \(E\w+\). To copy it otherwise: --reflink=auto",
                         run.err), run.err
        equal(os.listdir(point), [])
        run = cp("--reflink=auto", "-v", a, b, quiet=False)
        assert re.search(r"sluice cp: reflink \S+/a → \S+/b refused: .* \(E\w+\). Continuing with splice.\n",
                         run.err), run.err
        equal(os.stat(b).st_size, MIB)
        equal(json.loads(cp("--reflink=never", "--json", a, b).out)["receipt"]["routes"].keys(), {"copy"})


@case("on btrfs --reflink=always shares the extents, and says so; never does not")
def reflink_on_btrfs():
    with mounted("btrfs") as point:
        a = write(point, "a", data=content(8 * MIB))
        os.sync()
        got = json.loads(cp("--reflink=always", "--json", a, os.path.join(point, "b")).out)["receipt"]
        equal((got["by_reference"], got["copied"]), (8 * MIB, 0))
        got = json.loads(cp("--json", a, os.path.join(point, "c")).out)["receipt"]
        equal((got["by_reference"], got["copied"]), (8 * MIB, 0))
        got = json.loads(cp("--reflink=never", "--json", a, os.path.join(point, "d")).out)["receipt"]
        equal((got["by_reference"], got["copied"]), (0, 8 * MIB))
        for name in "bcd":
            equal(open(os.path.join(point, name), "rb").read(), content(8 * MIB))


@case("--verify and --fsync: the same tree, and what was compared is told")
def verified():
    top = new_root()
    run = cp("--verify", "--fsync", "--json", zoo, os.path.join(top, "copy"))
    same_tree(zoo, os.path.join(top, "copy"))
    got = json.loads(run.out)
    equal(got["verified"], got["bytes"])
    run = cp("-v", "--verify", os.path.join(zoo, "sizes", "65536"), os.path.join(top, "one"), quiet=False)
    assert "verified: 64 KiB equal" in run.out, run.out


if not SANITIZED:
    @case("--verify finds a byte that is read differently, from %s, says where and keeps no copy", "the first MiB")
    @case("--verify finds a byte that is read differently, from %s, says where and keeps no copy", "the last")
    def verify_differs(where):
        if not shutil.which("strace"):
            raise Skip("needs strace: apt-get install strace")
        top = new_root()
        source = write(top, "a", data=content(2 * MIB + 100))
        # As if the device had given something else: the n-th read of the source, which only --verify reads.
        when = "1" if where == "the first MiB" else "3"
        done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-P", source, "-e", "trace=pread64", "-e",
                               f"inject=pread64:poke_exit=@arg2=0102:when={when}", SLUICE, "cp", "--verify", source,
                               os.path.join(top, "b")], capture_output=True, text=True, env=TRACED, timeout=20 * PATIENCE)
        if "invalid injection" in done.stderr or "Invalid" in done.stderr:
            raise Skip("needs strace 5.19 (poke_exit)")
        equal(done.returncode, 1, done.stderr)
        byte = 0 if where == "the first MiB" else 2 * MIB
        assert f"{top}/b differs from its source in the 1 MiB at byte {byte}: the copy is not kept" in done.stderr, \
            done.stderr
        equal(os.listdir(top), ["a"])


if not SANITIZED:
    @case("--fsync: a file is on the device before it has its name, and its directory after; without it neither")
    def fsync_order():
        if not shutil.which("strace"):
            raise Skip("needs strace: apt-get install strace")
        top = new_root()
        source = write(top, "a", data=b"content")
        write(top, "there", data=b"old")
        for target in ("new", "there"):
            for options, expected in ((["--fsync"], ["fsync file", "name", "fsync directory"]), ([], ["name"])):
                log = os.path.join(new_root(), "log")
                subprocess.run(["strace", "-f", "-y", "-o", log, "-e", "trace=fsync,fdatasync,linkat,renameat,renameat2",
                                SLUICE, "cp", *options, source, os.path.join(top, target)], check=True, env=TRACED)
                calls = [re.sub(r"^\d+ +", "", line) for line in open(log) if " = 0" in line]
                equal(["name" if call.startswith(("linkat", "renameat")) else
                       "fsync directory" if f"<{top}>)" in call else "fsync file" for call in calls], expected, target)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(top, "new"))


WRONG_USAGE = (("a",), (), ("a", "b", "--reflink", "sometimes"), ("a", "b", "--route", "copz"),
               ("a", "b", "--jobs", "0"), ("a", "b", "--reflink=always", "--route", "copy"), ("a", "b", "--nonsense"))


@case("wrong usage ends with 2, and points to --help")
def usage():
    for arguments in WRONG_USAGE:
        run = cp(*arguments, code=2)
        assert "sluice cp --help" in run.err, run.err
    assert "SOURCE... TARGET" in cp("--help").out


# ---- What goes wrong ----

def no_traces(target, complete=()):
    """Only what is complete is there; no temporary name either."""
    equal(temporaries(target), [])
    for _, _, path in walk(target):
        where = os.path.join(os.fsencode(target), path)
        if os.path.isfile(where) and not os.path.islink(where):
            assert path in complete or os.path.getsize(where) in complete, "half-written: %r" % path


@case("disk full: a clear error, exit code 1, and only complete files under their names")
def disk_full():
    top = new_root()
    for number in range(40):
        write(top, "a", "d%d" % (number % 4), "f%d" % number, data=content(MIB))
    with tmpfs("size=20m") as point:
        run = cp(os.path.join(top, "a"), os.path.join(point, "b"), code=1)
        assert "No space left on device (ENOSPC). Make room" in run.err and "stopped, as the target" in run.err, run.err
        no_traces(point, {MIB})
        complete = sum(len(files) for _, _, files in os.walk(point))
        assert 15 <= complete <= 20, complete
        assert "%d files are complete" % complete in run.err, run.err
        write(top, "too large", data=content(21 * MIB))
        cp(os.path.join(top, "too large"), os.path.join(point, "one"), code=1)
        assert not os.path.lexists(os.path.join(point, "one"))
        subprocess.run(["mount", "-o", "remount,size=60m", point], check=True)
        run = cp("-u", "--json", os.path.join(top, "a") + "/.", os.path.join(point, "b"))
        equal(json.loads(run.out)["files"], 40 - complete)
        same_tree(os.path.join(top, "a"), os.path.join(point, "b"))


@case("disk full while a file is replaced: it stays what it was, and nothing is beside it")
def disk_full_replacing():
    top = new_root()
    source = write(top, "large", data=content(4 * MIB))
    with tmpfs("size=2m") as point:
        target = write(point, "large", data=b"what was there")
        assert "(ENOSPC)" in cp(source, target, code=1).err
        equal(os.listdir(point), ["large"])
        equal(open(target, "rb").read(), b"what was there")


@case("without inodes left: a clear error and no traces")
def inodes_full():
    top = new_root()
    for number in range(60):
        write(top, "a", "f%d" % number, data=b"%d" % number)
    with tmpfs("nr_inodes=40") as point:
        run = cp(os.path.join(top, "a"), point, code=1)
        assert "ENOSPC" in run.err, run.err
        equal(temporaries(point), [])


@case("a file that cannot be read and a directory that cannot be listed are told by name; the rest is copied")
def unreadable():
    needs_root("to become nobody")
    top = new_root()
    os.chmod(write(top, "a", "secret", data=b"s"), 0)
    write(top, "a", "public", data=b"p")
    os.makedirs(os.path.join(top, "a", "closed"))
    os.chmod(os.path.join(top, "a", "closed"), 0o700)
    os.chmod(top, 0o777)
    run = cp("a", "b", cwd=top, code=1, user=65534, group=65534, extra_groups=[])
    assert "cannot read a/secret: Permission denied (EACCES)" in run.err, run.err
    assert "cannot open a/closed: Permission denied (EACCES)" in run.err, run.err
    equal(os.listdir(os.path.join(top, "b")), ["public"])
    equal(os.stat(os.path.join(top, "b", "public")).st_uid, 65534)
    equal(os.stat(os.path.join(top, "b", "public")).st_mtime_ns, os.stat(os.path.join(top, "a", "public")).st_mtime_ns)


@case("a user who may not give files away keeps them, without set-user-ID, and nothing is said; devices are refused")
def unprivileged():
    needs_root("to become nobody")
    top = new_root()
    os.chmod(top, 0o777)
    os.chmod(write(top, "a", "tool", data=b"t"), 0o4755)
    run = cp("a", "b", cwd=top, user=65534, group=65534, extra_groups=[])
    equal(oct(os.stat(os.path.join(top, "b", "tool")).st_mode), "0o100755")
    os.mknod(os.path.join(top, "a", "null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(os.path.join(top, "a", "fifo"))
    run = cp("a", "c", cwd=top, code=1, user=65534, group=65534, extra_groups=[])
    equal(run.err, "sluice cp: a/null is not copied: making a character device takes root (CAP_MKNOD)\n")
    equal(sorted(os.listdir(os.path.join(top, "c"))), ["fifo", "tool"])


@case("a target directory that may not be written: a clear error")
def read_only_directory():
    needs_root("to become nobody")
    top = new_root()
    write(top, "a", data=b"a")
    os.mkdir(os.path.join(top, "closed"), 0o755)
    run = cp("a", "closed", cwd=top, code=1, user=65534, group=65534, extra_groups=[])
    assert "cannot make closed/a: Permission denied (EACCES)" in run.err, run.err


@case("a target directory that may be written to and not be listed, with a default access control list: as any other")
def unlisted_directory():
    needs_root("to become nobody")
    top = new_root()
    target = os.path.join(top, "target")
    os.chmod(write(top, "a", data=b"a"), 0o640)
    os.chown(os.path.join(top, "a"), 65534, 65534)
    os.mkdir(target, 0o300)
    os.chown(target, 65534, 65534)
    os.setxattr(target, "system.posix_acl_default", SOME_ACL)
    cp("--fsync", "a", "target", cwd=top, user=65534, group=65534, extra_groups=[])
    equal(oct(os.stat(os.path.join(target, "a")).st_mode), "0o100640")
    equal(os.listxattr(os.path.join(target, "a")), [])


@case("a file system mounted read-only: one error, not one for each file")
def read_only_file_system():
    top = new_root()
    for number in range(50):
        write(top, "a", "f%d" % number)
    with tmpfs("size=1m") as point:
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        run = cp(os.path.join(top, "a"), point, code=1)
        equal(run.err.count("EROFS"), 1)


@case("a file system without extended attributes: told once, counted, and an access control list lost is an error")
def without_attributes():
    needs_root("for mounting")
    top = new_root()
    point = os.path.join(top, "point")
    os.mkdir(point)
    for number in range(5):
        os.setxattr(write(top, "a", "f%d" % number, data=b"1"), "user.x", b"1")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", point], check=True)
    try:
        run = cp("--json", os.path.join(top, "a"), point, quiet=False)
        equal(run.err.count("\n"), 1)
        assert "user.x is not kept: the target's file system does not have such attributes" in run.err, run.err
        equal(json.loads(run.out)["extended_attributes_lost"], 5)
        os.setxattr(write(top, "c", data=b"c"), "system.posix_acl_access", SOME_ACL)
        run = cp(os.path.join(top, "c"), point, code=1)
        assert "cannot keep the access control list of " in run.err, run.err
        equal(oct(os.stat(os.path.join(point, "c")).st_mode & 0o7777), "0o600")
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


class Slow:
    """A copy that strace holds up at its first call of these, while function does something."""

    def __init__(self, calls, *arguments, microseconds=600000):
        if not shutil.which("strace"):
            raise Skip("needs strace: apt-get install strace")
        self.process = subprocess.Popen(
            ["strace", "-f", "-o", "/dev/null", "-e", "trace=" + calls,
             "-e", "inject=%s:delay_exit=%d:when=1+" % (calls, microseconds), SLUICE, "cp", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=TRACED)

    def finish(self):
        out, err = self.process.communicate(timeout=30 * PATIENCE)
        return self.process.returncode, err.decode()


def change_while_copied(name, change):
    top = new_root()
    a = write(top, "a", "large", data=content(40 * MIB))
    write(top, "a", "other", data=b"other")
    slow = Slow("copy_file_range,read,pread64,sendfile,splice", "--route", "copy", "-j", "1", os.path.join(top, "a"),
                os.path.join(top, "b"), microseconds=10000)
    until(lambda: slow.process.poll() is not None or any(os.path.getsize(os.path.join(folder, file)) > 1000
                                                         for folder, _, files in os.walk(top) for file in files
                                                         if not folder.startswith(os.path.join(top, "a"))),
          10, "the copy's beginning")
    change(a)
    code, err = slow.finish()
    equal(code, 1)
    assert re.search(r"a/large was changed while it was copied \(40 MiB before, .* after\); no copy is kept", err), err
    equal(os.listdir(os.path.join(top, "b")), ["other"])


def truncate(path):
    os.truncate(path, 1000)


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


def rewrite(path):
    with open(path, "r+b") as file:
        file.write(b"changed")


for how, function in (("truncated", truncate), ("appended to", append), ("written to", rewrite)):
    case("a source that is %s while it is copied: said, exit code 1, and no copy is kept", how, sanitized=False)(
        lambda name, function=function: change_while_copied(name, function))


def interrupted(number):
    top = new_root()
    for index in range(200):
        write(top, "a", "d%d" % (index // 20), "f%d" % index, data=content(50000))
    write(top, "a", "d3", "large", data=content(40 * MIB))
    write(top, "b", "was here", data=b"1")
    slow = Slow("copy_file_range,read,pread64", "--route", "copy", "-j", "2", os.path.join(top, "a"),
                os.path.join(top, "b"), microseconds=5000)
    until(lambda: sum(len(files) for _, _, files in os.walk(os.path.join(top, "b"))) > 30, 20, "30 files")
    copier = int(open("/proc/%d/task/%d/children" % (slow.process.pid, slow.process.pid)).read().split()[0])
    os.kill(copier, number)
    code, err = slow.finish()
    equal(code, 128 + number)
    match = re.search(r"interrupted \(%s\)\. (\d+) files? (?:is|are) complete" % signal.Signals(number).name, err)
    assert match, err
    left = [os.path.join(folder, file) for folder, _, files in os.walk(os.path.join(top, "b")) for file in files]
    equal(len(left), int(match[1]) + 1)
    for path in left:
        assert os.path.getsize(path) in (50000, 40 * MIB, 1), path
    equal(temporaries(os.path.join(top, "b")), [])
    cp("-u", os.path.join(top, "a"), os.path.join(top, "b"))
    same_tree(os.path.join(top, "a"), os.path.join(top, "b", "a"))


for signal_number in (signal.SIGINT, signal.SIGTERM):
    case("%s in the middle: what is complete stays, the rest is removed, the code is 128 and the signal",
         signal_number.name)(lambda name, number=signal_number: interrupted(number))


def descriptors_beneath(pid, top):
    """{path: size} of the files beneath top that the process has open, those without a name included; {} if it is gone."""
    sizes, descriptors = {}, []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        descriptors = os.listdir(f"/proc/{pid}/fd")
    for fd in descriptors:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (path := os.readlink(f"/proc/{pid}/fd/{fd}")).startswith(top):
                sizes[path] = os.stat(f"/proc/{pid}/fd/{fd}").st_size
    return sizes


def killed(existing):
    top = new_root()
    write(top, "a", "large", data=content(20 * MIB))
    os.mkdir(os.path.join(top, "b"))
    final = os.path.join(top, "b", "large")
    if existing:
        write(top, "b", "large", data=b"what was there")
    slow = Slow("read,pread64", "--route", "copy", "-j", "1", os.path.join(top, "a", "large"), final, microseconds=20000)

    def children():
        return open("/proc/%d/task/%d/children" % (slow.process.pid, slow.process.pid)).read().split()

    def under_way():
        return any(size > MIB for child in children() for path, size in descriptors_beneath(child, top).items()
                   if not path.startswith(os.path.join(top, "a")))
    until(lambda: slow.process.poll() is not None or under_way(), 20, "the copy's beginning")
    assert slow.process.poll() is None, "the copy was faster"
    for moment in ("under way", "killed"):
        equal(open(final, "rb").read() if os.path.exists(final) else None, b"what was there" if existing else None, moment)
        if moment == "under way":
            os.kill(int(children()[0]), signal.SIGKILL)
            slow.finish()


case("killed in the middle of a file, the name that it was to have does not exist", sanitized=False)(
    lambda: killed(False))
case("killed in the middle of a file that was to replace another, that one is as it was", sanitized=False)(
    lambda: killed(True))


def made_meanwhile(*options):
    """Somebody makes the name while the copy, complete but without a name, is held up."""
    if SANITIZED:
        return None
    top = new_root()
    source, target = write(top, "a", data=b"the copy"), os.path.join(top, "b")
    slow = Slow("utimensat", "--json", *options, source, target, microseconds=1000000)

    def is_complete():
        tasks = open("/proc/%d/task/%d/children" % (slow.process.pid, slow.process.pid)).read().split()
        return any(size == 8 and path != source for task in tasks for path, size in descriptors_beneath(task, top).items())
    until(is_complete, 20, "the copy without a name")
    assert not os.path.lexists(target)
    write(top, "b", data=b"somebody else's")
    code, err = slow.finish()
    equal(code, 0, err)
    equal(sorted(os.listdir(top)), ["a", "b"])
    return open(target, "rb").read()


@case("a file that is made under the name meanwhile is replaced, with -n it stays")
def meanwhile():
    for options, expected in (((), b"the copy"), (("-n",), b"somebody else's")):
        got = made_meanwhile(*options)
        assert got in (None, expected), (options, got)


@case("SIGINT while one large file is copied takes effect at once, and leaves nothing")
def interrupted_large():
    top = new_root()
    a = os.path.join(top, "a")
    with open(a, "wb") as file:
        for _ in range(400):
            file.write(content(MIB))
    process = subprocess.Popen([SLUICE, "cp", "--route", "copy", a, os.path.join(top, "b")], stderr=subprocess.PIPE,
                               env=ENVIRONMENT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10 * PATIENCE)
    if process.returncode == 0:
        note("it was faster")
        return
    equal(process.returncode, 130 if err else -2)  # before the handler is there, there is nothing to remove
    equal(os.listdir(top), ["a"])


FAILING = (("openat", "EMFILE"), ("openat", "EACCES"), ("fstat,newfstatat", "EIO"), ("copy_file_range", "EIO"),
           ("pread64", "EIO"), ("pwritev", "EIO"), ("utimensat", "EIO"), ("flistxattr", "EIO"), ("fgetxattr", "EIO"),
           ("fsetxattr", "EIO"), ("linkat", "EIO"), ("mkdirat", "EIO"), ("symlinkat", "EIO"), ("readlinkat", "EIO"),
           ("getdents64", "EIO"), ("fchmod", "EIO"), ("fsync", "EIO"), ("mknodat", "EIO"))


def read_quietly(path):
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOATIME)) as file:
        return file.read()


def some_call_fails(calls, error):
    if not shutil.which("strace"):
        raise Skip("needs strace: apt-get install strace")
    top = new_root(MEMORY)
    for number in range(12):
        write(top, "a", "d%d" % (number % 3), "f%d" % number, data=content(1000 + 9000 * number))
    os.setxattr(os.path.join(top, "a", "d0", "f0"), "system.posix_acl_access", SOME_ACL)
    os.chmod(os.path.join(top, "a", "d1", "f1"), 0o4755)
    os.link(os.path.join(top, "a", "d2", "f2"), os.path.join(top, "a", "d0", "hard"))
    os.symlink("x", os.path.join(top, "a", "d0", "soft"))
    os.mkfifo(os.path.join(top, "a", "fifo"))
    failed = 0
    for which in range(1, 20, 3):
        target = os.path.join(top, "b%d" % which)
        os.mkdir(target)
        done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", "trace=" + calls, "-e",
                               "inject=%s:error=%s:when=%d" % (calls, error, which), SLUICE, "cp", "-j", "1", "--fsync",
                               os.path.join(top, "a"), target], capture_output=True, text=True)
        failed += done.returncode == 1
        if done.returncode != 0:
            assert done.returncode in (1, 127), (which, done)  # 127: it was the dynamic linker's call
            assert done.stderr, which
        got = facts(target)
        equal(temporaries(target), [])
        for path, fact in got.items():
            if stat.S_ISREG(int(fact["mode"], 8)):
                one, other = (read_quietly(os.path.join(os.fsencode(where), path)) for where in (top, target))
                assert one == other, "%d: %r" % (which, path)
        if done.returncode == 0 and os.path.isdir(os.path.join(target, "a")):
            same_tree(os.path.join(top, "a"), os.path.join(target, "a"), blocks=False)
    assert failed or calls in ("fgetxattr", "copy_file_range", "linkat"), "it never failed"


for failing in FAILING:
    case("%s failing with %s at any of some places: exit code 1, and what has a final name is complete",
         *failing, sanitized=False)(some_call_fails)


@case("an attribute larger than the target's file system permits (ENOSPC) is lost, told and counted; the rest is copied")
def large_attribute():
    with mounted("xfs") as xfs, mounted("ext4") as ext4:
        source = write(xfs, "d", "a", data=b"a")
        write(xfs, "d", "b", data=b"b")
        os.setxattr(source, "user.small", b"small")
        os.setxattr(source, "user.large", b"x" * 30_000)
        run = cp("--json", os.path.join(xfs, "d"), ext4, quiet=False)
        assert "user.large is not kept: it is larger than the target's file system permits (ENOSPC)" in run.err, run.err
        equal(json.loads(run.out)["extended_attributes_lost"], 1)
        equal(sorted(os.listdir(os.path.join(ext4, "d"))), ["a", "b"])
        equal(os.getxattr(os.path.join(ext4, "d", "a"), "user.small"), b"small")


@case("on a terminal: progress with bytes, files and rate, gone at the end, and a sum with the receipt", limit=60)
def on_a_terminal():
    top = new_root()
    for number in range(300):
        write(top, "a", "f%d" % number, data=content(20000))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x5414, struct.pack("HHHH", 24, 100, 0, 0))  # TIOCSWINSZ
    command = ["strace", "-f", "-o", "/dev/null", "-e", "trace=utimensat", "-e", "inject=utimensat:delay_exit=20000",
               SLUICE, "cp", "-j", "2", os.path.join(top, "a"), os.path.join(top, "b")]
    if not shutil.which("strace"):
        raise Skip("needs strace: apt-get install strace")
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=TRACED)
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):
        while select.select([master], [], [], 20 * PATIENCE)[0]:
            data = os.read(master, 65536)
            if not data:
                break
            seen += data
    equal(process.wait(20 * PATIENCE), 0)
    os.close(master)
    text = seen.decode()
    assert re.search(r"\r[\d.]+ \w+, \d+ files?, [\d.]+ \w+/s, \d+ files/s\033\[K", text), text[:500]
    assert re.search(r"\r\[#+-*\] +\d+ %  [\d.]+ MiB of 5\.\d MiB, \d+ of 300 files, [\d.]+ \w+/s, \S+ \w+ left", text), \
        text[-1500:]
    last = text.rpartition("\033[K")[2]
    assert last.startswith("300 files, 1 directory; 5.7 MiB in "), last
    assert "receipt: " in last, last
    assert all(len(line) <= 100 for line in text.replace("\033[K", "\r").split("\r") if "files/s" in line)


@case("%s and a file of sysfs are copied as they read", "/proc/version")
def virtual(path):
    top = new_root()
    cp(path, os.path.join(top, "version"))
    equal(open(os.path.join(top, "version"), "rb").read(), open(path, "rb").read())
    sysfs = "/sys/kernel/uevent_seqnum"
    if os.path.exists(sysfs):
        cp(sysfs, os.path.join(top, "sysfs"))
        equal(open(os.path.join(top, "sysfs"), "rb").read(), open(sysfs, "rb").read())


main()
