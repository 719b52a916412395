#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Buffers on pages of 2 MiB that an administrator set aside: this machine's are not ours to set aside, a guest's are."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from harness import SLUICE, Skip, case, equal, main  # noqa: E402

import guest  # noqa: E402

boot = guest.once(files=[(SLUICE, "/bin/sluice")])
SIZE = 6 << 20
COPY = "sluice cp --debug --route copy /tmp/from /tmp/to && cmp /tmp/from /tmp/to && rm /tmp/to"


def done(command):
    try:
        result = boot().run(command, limit=100)
    except guest.Unavailable as reason:
        raise Skip(str(reason)) from reason
    equal(result.code, 0, result.out.decode() + result.err.decode())
    return result.out.decode()


def set_aside(pages):
    done("echo never > /sys/kernel/mm/transparent_hugepage/enabled; echo %d > /proc/sys/vm/nr_hugepages; "
         "test $(cat /proc/sys/vm/nr_hugepages) = %d" % (pages, pages))


def free_pages():
    return int(done("awk '/HugePages_Free/ {print $2}' /proc/meminfo"))


@case("what goes through buffers lies on pages that were set aside, the receipt says so, and they are given back",
      limit=200)
def _():
    done("seq 1000000 | head -c %d > /tmp/from" % SIZE)
    set_aside(8)
    said = done(COPY)
    assert "buffers on 2 MiB pages (huge)" in said, said
    equal(free_pages(), 8)


@case("where none are set aside, and none are transparent, plain ones do, and the receipt does not speak of large ones")
def _():
    set_aside(0)
    said = done(COPY)
    assert "2 MiB pages" not in said, said


@case("when the pages that were set aside run out, the rest lies on plain ones")
def _():
    set_aside(1)
    done("cp /tmp/from /tmp/from2; mkdir -p /tmp/both; sluice cp --route copy --jobs 2 /tmp/from /tmp/from2 /tmp/both && "
         "cmp /tmp/from /tmp/both/from && cmp /tmp/from /tmp/both/from2")
    equal(free_pages(), 1)


main()
