# SPDX-License-Identifier: MIT
"""Software that nobody here wrote, as the other side of tests: Debian's packages, unpacked by bench/peers."""

import functools
import os
import pathlib
import subprocess
import sys

from harness import PATIENCE, Skip

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = pathlib.Path(os.environ.get("SLUICE_TEST_PEERS", ROOT / "build/peers"))
PROGRAMS = PEERS / "root/usr/bin"
sys.path.insert(0, str(ROOT / "bench"))
import servers  # noqa: E402


@functools.lru_cache(maxsize=None)
def why_not(*names):
    """Have these programs unpacked under PEERS. None, or why they cannot be."""
    done = subprocess.run([ROOT / "bench/peers", PEERS, *names], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False)
    return done.stderr.strip() or done.stdout.strip() if done.returncode != 0 else None


def fetch(*names):
    wrong = why_not(*names)
    if wrong:
        raise Skip("%s is not here: %s" % (", ".join(names), wrong.replace("\n", "; ")))


def peer_environment():
    return {**os.environ, **servers.peer_environment(PEERS)}


def run(command, seconds=20, **more):
    """Its standard output; it must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=peer_environment(),
                          timeout=seconds * PATIENCE, **more)
    assert done.returncode == 0, "%s: exit code %d: %s%s" % (command[0], done.returncode, done.stdout[-1500:],
                                                             done.stderr[-1500:])
    return done.stdout
