# SPDX-License-Identifier: MIT
"""What every measurement of servers here has in common: files, servers, the load client, the figures of a window."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import Launcher, StartError

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
SIZES = {"1K": 1 << 10, "10K": 10 << 10, "100K": 100 << 10, "1M": 1 << 20, "100M": 100 << 20}
SERVER_CORE, CLIENT_CORE = 0, 1


class Progress:
    """One line that rewrites itself on a terminal, one line per step elsewhere."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.started = time.monotonic()
        self.last_part = None

    def step(self, part, done, total, text):
        elapsed = int(time.monotonic() - self.started)
        if self.terminal:
            filled = int(24 * done / max(1, total))
            line = f"{elapsed // 60:3}:{elapsed % 60:02} [{'#' * filled}{'.' * (24 - filled)}] {part}: {text}"
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\033[K" + line[:width])
            sys.stderr.flush()
        elif part != self.last_part:
            print(f"{elapsed // 60:3}:{elapsed % 60:02} {part}", file=sys.stderr, flush=True)
        self.last_part = part

    def say(self, text):
        if self.terminal:
            sys.stderr.write("\r\033[K")
        print(text, file=sys.stderr, flush=True)


class Measurement:
    """options: tools, sluice, sluice_argument, seed."""

    def __init__(self, options, launcher=Launcher):
        self.o = options
        self.files = TOP / "build/bench-files"
        self.tools = options.tools
        self.work = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
        self.progress = Progress()
        self.problems = []
        self.heads = {}
        self.expected = {}
        self.checked = set()
        self.launcher = launcher(self.tools, TOP / "build/peers", self.files, self.work, options.sluice,
                                 options.sluice_argument, SERVER_CORE)
        self.random = random.Random(options.seed)

    # --- preparation ---

    def problem(self, text):
        if text not in self.problems:
            self.problems.append(text)
            self.progress.say(f"problem: {text}")

    def create(self, name, size):
        """Content comes from a seeded generator and differs block by block, so that exchanged bytes are noticed."""
        path = self.files / name
        if path.exists() and path.stat().st_size == size:
            return
        self.progress.say(f"creating {path} ({size >> 20} MiB)" if size >> 20 else f"creating {path}")
        block = bytearray(random.Random(name).randbytes(min(size, 1 << 20)))
        part = path.with_suffix(".part")
        with open(part, "wb") as f:
            for n in range(0, size, len(block)):
                block[:8] = n.to_bytes(8, "little")
                f.write(block[:size - n])
            f.flush()
            os.fsync(f.fileno())
        part.rename(path)

    def prepare_files(self):
        self.files.mkdir(parents=True, exist_ok=True)
        for name, size in SIZES.items():
            self.create(name, size)

    def touch(self, name):
        """Page cache warm before measuring: first touches cost more than anything measured here."""
        with open(self.files / name, "rb") as f:
            while f.read(1 << 20):
                pass

    def available(self, names):
        return [n for n in names if self.launcher.can(n)]

    # --- one measurement ---

    def client(self, server, *arguments, timeout=180):
        return self.load("bench-client", server, arguments, timeout)

    def load(self, program, server, arguments, timeout=180, descriptors=()):
        """Runs a load program that says what it measured, or None when it failed."""
        command = [self.tools / program, "--target", server.target, "--core", CLIENT_CORE,
                   *[a for pid in server.pids() for a in ("--cpu-of", pid)], *arguments]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout,
                              pass_fds=descriptors)
        if done.returncode != 0:
            self.problem(f"{server.name}: {' '.join(str(a) for a in arguments)}: {done.stderr.strip()[-300:]}")
            return None
        raw = json.loads(done.stdout)
        if raw["errors"]:
            self.problem(f"{server.name}: {raw['errors']} errors, first: {raw['first_error']}")
        return raw

    def figures(self, raw):
        """The figures of one window."""
        if not raw:
            return None
        if not raw["bytes"]:
            self.problem("a window without a single byte: see the empty figures")
            return None
        seconds, gib = raw["seconds"], raw["bytes"] / 2**30
        cpu = raw["server_cpu_ns"] / 1e9
        latency = raw["latency_ns"] if raw["requests"] else {}
        own = raw["core_busy_ns"][SERVER_CORE] / 1e9
        return {
            "cpu_us": cpu * 1e6 / raw["requests"] if raw["requests"] else None,
            "cpu_gib": cpu / gib if gib else None,
            "rps": raw["requests"] / seconds,
            "gbs": raw["bytes"] / seconds / 1e9,
            "p50": latency.get("p50"), "p99": latency.get("p99"), "p999": latency.get("p999"),
            # /proc/stat counts whole ticks: below two ticks it says nothing.
            "foreign": max(0.0, own - cpu - 0.02) / seconds,
            "steal": sum(raw["core_steal_ns"]) / 1e9 / seconds / len(raw["core_steal_ns"]),
        }

    def check_bytes(self, server, name, congestion, size):
        """Moved bytes are hashed once per configuration. Also records the response head."""
        if (name, congestion, size) in self.checked:
            return True
        raw = self.client(server, "--path", f"/{size}", "--connections", 2, "--verify", "--congestion", congestion)
        if not raw:
            return False
        if size not in self.expected:
            self.expected[size] = subprocess.run([self.tools / "bench-client", "--hash", self.files / size],
                                                 capture_output=True, text=True, check=True).stdout.strip()
        wrong = [h for h in raw["hashes"] if h["hash"] != self.expected[size]]
        if wrong or not raw["hashes"] or raw["errors"]:
            self.problem(f"{name}: /{size} under {congestion} arrived with wrong bytes")
            return False
        self.checked.add((name, congestion, size))
        return True

    def head_of(self, size):
        """The head that the floor sends: sluice's own, or nginx's while there is no sluice."""
        if size not in self.heads:
            source = (self.available(["sluice", "nginx"]) or [None])[0]
            if source is None:
                return None
            with self.launcher.start(source, "cubic") as server:
                raw = self.client(server, "--path", f"/{size}", "--requests", 1)
            self.heads[size] = raw["head"].encode() if raw else None
        return self.heads[size]

    def start(self, stack, name, congestion, size=None):
        """Starts a server for as long as the stack lives; a server that does not start is a problem, not the end."""
        try:
            head = self.head_of(size) if name.startswith("floor-") else None
            server = stack.enter_context(self.launcher.start(name, congestion, size, head))
        except (StartError, OSError) as e:
            self.problem(f"{name} under {congestion}: {e}")
            return None
        if size and not self.check_bytes(server, name, congestion, size):
            return None
        return server


def revision():
    def git(*arguments):
        return subprocess.run(["git", "-C", TOP, *arguments], capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with local changes" if changed else "")


def missing_tools(tools, programs=("bench-client", "bench-floor")):
    """The last one is preloaded into the peers, and ld.so only warns when it is missing: they would then run with the
    host's congestion control, and look worse than they are."""
    return [t for t in (*programs, "bench-congestion.so") if not (tools / t).exists()]
