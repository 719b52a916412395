#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A virtual machine with Debian's kernel, for what this machine's own kernel does not allow or does not have.

    tests/vm/guest.py --run 'uname -a' [--file PATH[:DEST]]... [--module NAME]... [--network e1000] [--disk ext4]

    with guest.Guest(files=[("build/sluice", "/bin/sluice")], modules=["tls"]) as machine:
        result = machine.run("sluice --version")    # result.code, result.out, result.err

Nothing is installed: the kernel's package is unpacked under build/vm (once), and the initial file system is built for
each boot from busybox, the modules asked for and the files given, with the libraries that these need. Root's shell in
there is reached by a virtio serial port; the console is only for what the kernel has to say, and a kernel that warns
fails the run. QEMU runs without KVM: software emulation, good for behaviour and counts, not for speed.

SLUICE_VM_PACKAGE=FILE.deb takes another kernel package; rm -r build/vm fetches Debian's newest again.
SLUICE_VM_KERNEL=6.12 (or 7.3, ...) takes Debian's newest kernel of that series, from whichever of its suites has one.
"""

import argparse
import atexit
import base64
import collections
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import lzma
import mmap
import os
import pathlib
import platform
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "vm"
META_PACKAGE = "linux-image-amd64"  # the cloud kernel has no e1000
MIRROR = "http://deb.debian.org/debian"
SUITES = ["bookworm", "bookworm-backports", "trixie", "trixie-backports"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ["/usr/local/sbin", "/usr/sbin", "/sbin"]  # not in everybody's path; mkfs.* live there
BASE_MODULES = ["virtio_pci", "virtio_console"]
NETWORK_MODULES = {"e1000": ["e1000"], "virtio-net-pci": ["virtio_net"]}
DISK_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 512 << 20}  # sparse; mkfs.xfs takes no less
HOST = "10.0.2.2"  # this machine, seen from a guest with a network

# What the kernel says when something in it went wrong. Warnings reach the console at loglevel=5.
COMPLAINT = re.compile(rb"WARNING: |BUG: |Oops|Kernel panic|general protection fault|Call Trace:|rcu: INFO:|"
                       rb"soft lockup|blocked for more than|UBSAN: |Unable to handle|invoked oom-killer")


class Unavailable(Exception):
    """Why no guest can be had here, and what would make one possible."""


class Failed(Exception):
    """The guest did not boot, died, warned, or did not answer in time."""


Result = collections.namedtuple("Result", "code out err")


# ---- The kernel ----

class Kernel:
    """A kernel package, unpacked: its image, and its modules in the order in which they can be loaded."""

    def __init__(self, directory):
        self.directory = directory
        self.image = next(path for path in (directory / "vmlinux", directory / "vmlinuz") if path.exists())
        self.package = (directory / "package").read_text(encoding="utf-8").strip()
        modules = next((directory / "root/lib/modules").iterdir())
        self.release = modules.name
        self._files = {}
        for path in modules.rglob("*.ko*"):
            self._files[path.name.partition(".")[0].replace("-", "_")] = path
        self._builtin = {pathlib.Path(line).stem.replace("-", "_")
                         for line in (modules / "modules.builtin").read_text(encoding="utf-8").splitlines()}

    def modules(self, names):
        """[(name, contents)] of the modules with what they depend on, each after what it needs. "name?": if there is
        such a module."""
        order = {}

        def add(name, needed):
            name = name.replace("-", "_")
            if name in order or name in self._builtin:
                return
            if name not in self._files:
                if needed:
                    raise Unavailable(f"{self.package} has no module {name}")
                return
            data = _unpacked(self._files[name].read_bytes())
            order[name] = None  # keeps a circle from being followed for ever
            for field in re.findall(rb"\0softdep=pre: ([^\0]*)", data):
                for soft in field.decode().partition(" post:")[0].split():
                    # Often an alias for an algorithm: ext4 wants crypto-crc32c, which crc32c_generic provides.
                    soft = soft.removeprefix("crypto-").replace("-", "_")
                    add(soft if soft in self._files else soft + "_generic", False)
            for field in re.findall(rb"\0depends=([^\0]*)", data):
                for dependency in filter(None, field.decode().split(",")):
                    add(dependency, True)
            del order[name]
            order[name] = data

        for name in names:
            add(name.removesuffix("?"), not name.endswith("?"))
        return list(order.items())


def _unpacked(data):
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.decompress(data)
    return data


def kernel():
    """Debian's kernel, fetched if it is not here yet. Raises Unavailable."""
    package, series = os.environ.get("SLUICE_VM_PACKAGE"), os.environ.get("SLUICE_VM_KERNEL")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if package:
            deb = pathlib.Path(package)
            try:
                directory = CACHE / ("given-" + hashlib.sha256(deb.read_bytes()).hexdigest()[:16])
            except OSError as error:
                raise Unavailable(f"SLUICE_VM_PACKAGE={package}: {error.strerror}") from error
        elif series:
            directory = CACHE / ("linux-image-" + os.path.basename(series))
        else:
            directory = CACHE / META_PACKAGE
        if not (directory / "package").exists():
            with tempfile.TemporaryDirectory(prefix="new-", dir=CACHE) as scratch:
                debs = [deb] if package else _download_series(scratch, series) if series else _download(scratch)
                _unpack(debs, pathlib.Path(scratch) / "kernel")
                shutil.rmtree(directory, ignore_errors=True)
                os.rename(pathlib.Path(scratch) / "kernel", directory)
    return Kernel(directory)


def _need_apt():
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise Unavailable(f"no {tool} here: set SLUICE_VM_PACKAGE to Debian's linux-image-...-amd64 package")


def _fetch(scratch, names, options=()):
    # As root, apt would hand the download to a user who may not write here.
    fetched = subprocess.run(["apt-get", *options, "download", "-q", "-o", "APT::Sandbox::User=root", *names],
                             cwd=scratch, capture_output=True, text=True, check=False)
    debs = sorted(pathlib.Path(scratch).glob("*.deb"), key=lambda deb: not deb.name.startswith("linux-image-"))
    if fetched.returncode or not debs:
        complaint = (fetched.stderr.strip().splitlines() or ["no reason given"])[0]
        raise Unavailable(f"{names[0]} (70 MB or more) could not be fetched: {complaint}. Is the network up, and are "
                          "apt's lists fresh (apt-get update)?")
    return debs


def _download(scratch):
    _need_apt()
    depends = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True, check=False)
    name = re.search(r"Depends: (linux-image-\S+)", depends.stdout)
    if not name:
        raise Unavailable(f"apt knows no package {META_PACKAGE}: apt-get update, as root; or, where the distribution "
                          "is not Debian, set SLUICE_VM_PACKAGE to Debian's linux-image-...-amd64 package")
    return _fetch(scratch, [name[1]])


def _download_series(scratch, series):
    """With lists of packages of our own: this machine's apt keeps its sources and what it knows."""
    _need_apt()
    lists = CACHE / "apt"
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (lists / directory).mkdir(parents=True, exist_ok=True)
    (lists / "sources.list").write_text("".join(
        f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n" for suite in SUITES), encoding="ascii")
    options = [option for setting in (
        f"Dir::Etc::SourceList={lists}/sources.list", "Dir::Etc::SourceParts=/dev/null", f"Dir::State={lists}/state",
        "Dir::State::status=/dev/null", f"Dir::Cache={lists}/cache", "Acquire::Languages=none",
        "APT::Architecture=amd64", "APT::Sandbox::User=root") for option in ("-o", setting)]
    subprocess.run(["apt-get", *options, "-q", "update"], capture_output=True, check=False)

    def ask(*question):
        return subprocess.run(["apt-cache", *options, *question], capture_output=True, text=True, check=False).stdout
    names = re.findall(rf"^linux-image-({re.escape(series)}(?:\.\d+)*)(\+[^-\s]+)?-amd64$",
                       ask("pkgnames", "linux-image-"), re.MULTILINE)
    if not names:
        raise Unavailable(f"SLUICE_VM_KERNEL={series}: {MIRROR} has no such kernel in {', '.join(SUITES)}, or is not "
                          "to be reached")
    release = "".join(max(names, key=lambda name: [int(part) for part in name[0].split(".")]))
    image = f"linux-image-{release}-amd64"
    # Since 6.17 the kernel, its modules and the lists of them are packages of their own.
    parts = re.findall(r"Depends: (linux-(?:base|binary|modules)-\S+)", ask("depends", image))
    return _fetch(scratch, [image, *parts], options)


def _unpack(debs, directory):
    directory.mkdir()
    for deb in debs:
        done = subprocess.run(["dpkg-deb", "-x", deb, directory / "root"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{deb} is no package: {done.stderr.strip()}")
    if (directory / "root/usr/lib/modules").is_dir():  # since 6.17
        (directory / "root/lib").mkdir(exist_ok=True)
        os.rename(directory / "root/usr/lib/modules", directory / "root/lib/modules")
    images = [*directory.glob("root/boot/vmlinuz-*"), *directory.glob("root/lib/modules/*/vmlinuz")]
    if not images:
        raise Unavailable(f"{debs[0]} is not a kernel package: no vmlinuz")
    os.rename(images[0], directory / "vmlinuz")
    plain = _decompressed(directory / "vmlinuz")
    if plain:
        (directory / "vmlinux").write_bytes(plain)
    # What no test will load is four fifths of it.
    for useless in ("boot", "usr", "lib/modules/*/kernel/sound", "lib/modules/*/kernel/drivers/gpu",
                    "lib/modules/*/kernel/drivers/media", "lib/modules/*/kernel/drivers/net/wireless",
                    "lib/modules/*/kernel/drivers/infiniband", "lib/modules/*/kernel/drivers/scsi",
                    "lib/modules/*/kernel/drivers/iio", "lib/modules/*/kernel/drivers/staging"):
        for path in directory.glob("root/" + useless):
            shutil.rmtree(path)
    fields = subprocess.check_output(["dpkg-deb", "-f", debs[0], "Package", "Version"], text=True)
    digest = hashlib.sha256(pathlib.Path(debs[0]).read_bytes()).hexdigest()
    package, version = re.findall(r": (.*)", fields)
    (directory / "package").write_text(f"{package} {version} sha256:{digest}\n", encoding="utf-8")


def _decompressed(image):
    """The ELF file in a bzImage that was packed with xz, or None: QEMU can start it as it is (PVH), and the guest does
    not have to unpack it at a hundredth of the speed. (Documentation/x86/boot.rst has the offsets.)"""
    data = image.read_bytes()
    if data[0x202:0x206] != b"HdrS":
        return None
    start = (data[0x1f1] + 1) * 512 + struct.unpack_from("<I", data, 0x248)[0]
    try:
        plain = lzma.LZMADecompressor().decompress(data[start:])
    except lzma.LZMAError:
        return None
    return plain if plain.startswith(b"\x7fELF") else None


# ---- The initial file system ----

INIT = """\
#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
busybox mount -t proc none /proc
busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t sysfs none /sys
mkdir -p /dev/shm /dev/pts /run
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mount -t tmpfs none /tmp
mount -t devpts none /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t tracefs none /sys/kernel/tracing
ip link set lo up
for module in $(ls /modules); do insmod /modules/$module || echo "guest: no $module"; done
{ %s; } || echo "guest: not set up"
until port=$(grep -ls agent /sys/class/virtio-ports/*/name); do sleep 0.02; done
port=/dev/$(basename $(dirname $port))
until [ -c $port ]; do sleep 0.02; done
exec 3<>$port
echo ready >&3
while read -r limit command <&3; do
    echo $command | base64 -d >/run/command
    setsid timeout -s KILL $limit sh /run/command </dev/null >/run/out 2>/run/err 3>&- &
    wait $!
    code=$?
    [ $code = 137 ] && kill -KILL -$! 2>/dev/null
    echo $code $(stat -c %%s /run/out) $(stat -c %%s /run/err) >&3
    cat /run/out /run/err >&3
done
"""


class Archive:
    """A cpio archive as the kernel takes it (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.data = bytearray()
        self._known = set()

    def _entry(self, path, mode, data=b"", device=(0, 0)):
        path = path.strip("/")
        if path in self._known:
            return
        self._known.add(path)
        parent = os.path.dirname(path)
        if parent:
            self._entry(parent, stat.S_IFDIR | 0o755)
        name = path.encode() + b"\0"
        fields = [len(self._known), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
        self.data += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self.data += bytes(-len(self.data) % 4)
        self.data += data
        self.data += bytes(-len(self.data) % 4)

    def directory(self, path, mode=0o755):
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path, data, mode=0o644):
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path, target):
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path, major, minor):
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def program(self, path, source):
        """A file of this machine; if it is a dynamic program, with its libraries where its loader looks for them."""
        data = pathlib.Path(source).read_bytes()
        self.file(path, data, stat.S_IMODE(os.stat(source).st_mode) | 0o444)
        if data.startswith(b"\x7fELF"):
            # Not for static programs: ldd says so on standard error.
            listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
            missing = re.findall(r"(\S+) => not found", listed)
            if missing:
                raise Failed(f"{source} needs libraries that are not here: {' '.join(missing)}")
            for library in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE):
                self.file(library, pathlib.Path(library).read_bytes(), 0o755)

    def finished(self):
        self._entry("TRAILER!!!", 0)
        return self.data + bytes(-len(self.data) % 512)


def _initial_file_system(modules, later, files, setup):
    busybox = shutil.which("busybox")
    if not busybox:
        raise Unavailable("no busybox here: apt-get install busybox-static")
    archive = Archive()
    for path in ("proc", "sys", "dev", "root", "modules", "disk"):
        archive.directory(path)
    archive.directory("tmp", 0o1777)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.program("bin/busybox", busybox)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    archive.file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    archive.file("init", (INIT % setup).encode(), 0o755)
    for number, (name, data) in enumerate(modules):
        archive.file("modules/%03d-%s.ko" % (number, name), data)
    for number, (name, data) in enumerate(later):
        archive.file("later/%03d-%s.ko" % (number, name), data)
    for source, destination in files:
        for path in [pathlib.Path(source), *sorted(pathlib.Path(source).rglob("*"))]:
            inside = os.path.normpath(os.path.join(destination, path.relative_to(source)))
            if path.is_symlink() and path != pathlib.Path(source):
                archive.link(inside, os.readlink(path))
            elif path.is_dir():
                archive.directory(inside)
            else:
                archive.program(inside, path)
    return archive.finished()


# ---- The machine ----

class Guest:
    """A booted guest. files: [(path here, path there)], directories with what is in them. memory in MiB. network: None
    or a QEMU device model (e1000: real zero copy; virtio-net-pci without scatter-gather), with this machine's loopback
    at 10.0.2.2; or, with link, another guest: (one of a pair of connected sockets, this guest's address). disk: None or a file system, mounted at /disk, or several, each mounted at /disk/NAME. later: those of
    them whose disks are there but not mounted (/dev/vda is the first), and whose modules lie in /later instead of being
    loaded. disk_size: bytes of each, instead of as few as do. limit: seconds that booting may take."""

    def __init__(self, files=(), modules=(), memory=512, cpus=1, network=None, link=None, disk=None, later=(),
                 disk_size=None, limit=120):
        self._ended = False
        self._process = self._port = None
        self._stack = contextlib.ExitStack()
        started = time.monotonic()
        try:
            self._boot(files, modules, memory, cpus, network, link, disk, later, disk_size, limit)
        except BaseException:
            self._kill()
            raise
        self.boot_seconds = time.monotonic() - started

    def _boot(self, files, modules, memory, cpus, network, link, disk, later, disk_size, limit):
        qemu = shutil.which("qemu-system-x86_64")
        if not qemu:
            raise Unavailable("no qemu-system-x86_64 here: apt-get install qemu-system-x86")
        self.kernel = kernel()
        scratch = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-guest-")))
        self._console = scratch / "console"
        devices, setup, needed, inherited = [], [], list(BASE_MODULES), []
        if network:
            needed += NETWORK_MODULES[network]
            # romfile: no boot from the network, so no boot code for it.
            setup += ["ip link set eth0 up"]
            if link:
                wire, address = link
                inherited += [wire.fileno()]
                hardware = "52:54:00:" + ":".join("%02x" % int(part) for part in address.split(".")[1:])
                devices += ["-netdev", f"socket,id=net0,fd={wire.fileno()}",
                            "-device", f"{network},netdev=net0,mac={hardware},romfile="]
                setup += [f"ip addr add {address}/24 dev eth0"]
            else:
                devices += ["-netdev", "user,id=net0", "-device", network + ",netdev=net0,romfile="]
                setup += ["ip addr add 10.0.2.15/24 dev eth0", "ip route add default via " + HOST]
        disks = [] if not disk else [(disk, "/disk")] if isinstance(disk, str) else [
            (name, "/disk/" + name) for name in disk]
        for number, (name, where) in enumerate(disks):
            _make_disk(scratch / name, name, disk_size)
            devices += ["-drive", f"file={scratch}/{name},format=raw,if=virtio,cache=unsafe"]
            needed += ["virtio_blk"]
            if name not in later:
                needed += [name]
                setup += [f"mkdir -p {where}", f"mount -t {name} /dev/vd{chr(ord('a') + number)} {where}"]
        loaded = self.kernel.modules([*needed, *modules])
        image = _initial_file_system(
            loaded, [module for module in self.kernel.modules(later) if module not in loaded], files,
            " && ".join(setup or ["true"]))
        (scratch / "initramfs").write_bytes(image)
        ours, theirs = socket.socketpair()
        with theirs:
            self._port = ours
            self._process = subprocess.Popen(
                [qemu, "-accel", "tcg", "-cpu", "max", "-m", str(memory), "-smp", str(cpus), "-nodefaults",
                 "-no-user-config", "-display", "none", "-no-reboot", "-kernel", self.kernel.image,
                 "-initrd", scratch / "initramfs",
                 # mitigations=off: they only slow emulation down. tsc: not to be measured against other clocks.
                 # no_timer_check: how many ticks come in 10 ms says nothing where the host has other work.
                 "-append", "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off tsc=reliable no_timer_check "
                            "random.trust_cpu=on" + _clock_rate(),
                 "-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console",
                 "-device", "virtio-serial-pci,max_ports=2",
                 "-chardev", f"socket,id=agent,fd={theirs.fileno()}",
                 "-device", "virtserialport,chardev=agent,name=agent",
                 *devices],
                stdin=subprocess.DEVNULL, stdout=self._stack.enter_context(open(scratch / "qemu", "wb")),
                stderr=subprocess.STDOUT, pass_fds=[theirs.fileno(), *inherited], preexec_fn=_die_with_parent)
        self._received = bytearray()
        if self._line(time.monotonic() + limit, "boot") != b"ready":
            raise Failed("the guest did not say that it is ready\n" + self.console())
        if b"guest: " in self._console.read_bytes():
            raise Failed("a module, the network or the disk is not as asked for\n" + self.console())

    def run(self, command, limit=60):
        """Run a shell script as root. Returns its exit code (137 when limit, in seconds, was not enough: it is killed
        then) and what it wrote."""
        if self._ended:
            raise Failed("the guest is gone")
        line = b"%d %s\n" % (limit, base64.b64encode(command.encode()))
        self._port.sendall(line)
        deadline = time.monotonic() + limit + 30
        code, out, err = map(int, self._line(deadline, command).split())
        result = Result(code, self._bytes(out, deadline, command), self._bytes(err, deadline, command))
        self.check()
        return result

    def check(self):
        """Raises Failed when the kernel has complained since the guest was booted; ends it then."""
        text = self._console.read_bytes()
        found = COMPLAINT.search(text)
        if found:
            self._kill()
            around = text[max(found.start() - 300, 0):][:6000]
            raise Failed("the kernel complained:\n" + around.decode(errors="replace"))

    def console(self):
        """What the kernel and init said."""
        with contextlib.suppress(OSError):
            return self._console.read_bytes()[-6000:].decode(errors="replace")
        return ""

    def close(self):
        """End the guest; raises Failed when its kernel has complained."""
        if not self._ended:
            try:
                self.check()
            finally:
                self._kill()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self._kill()
        else:
            self.close()

    def _kill(self):
        self._ended = True
        if self._process and self._process.returncode is None:
            self._process.kill()  # nothing in it is worth a clean shutdown; by its own pid, and reaped here
            self._process.wait()
        if self._port:
            self._port.close()
        self._stack.close()

    def _line(self, deadline, what):
        while b"\n" not in self._received:
            self._more(deadline, what)
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        return line

    def _bytes(self, count, deadline, what):
        while len(self._received) < count:
            self._more(deadline, what)
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _more(self, deadline, what):
        left = max(deadline - time.monotonic(), 0)
        data = b""
        if select.select([self._port], [], [], left)[0]:
            with contextlib.suppress(ConnectionError):
                data = self._port.recv(1 << 20)
            why = "the guest died"
        else:
            why = "no answer from the guest in time"
        if not data:
            said = (self._console.parent / "qemu").read_text(errors="replace") + self.console()
            self._kill()
            raise Failed(f"{why}: {what}\n{said}")
        self._received += data


class once:
    """Called, boots a guest the first time, and answers with that guest, or raises the Unavailable or Failed of then,
    whenever it is called: booting takes seconds, so cases share one. find_options: a function that finds more options
    then."""

    def __init__(self, find_options=dict, **options):
        self._find_options, self._options = find_options, options
        self._outcome = None
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            if not self._outcome:
                try:
                    self._outcome = Guest(**self._options, **self._find_options())
                    atexit.register(self._outcome._kill)
                except (Unavailable, Failed) as error:
                    self._outcome = error
        if isinstance(self._outcome, Exception):
            raise self._outcome.with_traceback(None)
        return self._outcome


@functools.lru_cache(maxsize=None)
def _clock_rate():
    """A kernel parameter: how fast the time stamp counter runs, this machine's and so the guest's. A guest that has to
    find out while it shares a processor was off by up to a factor of 18, and so was its clock, for all its life."""
    if platform.machine() != "x86_64":
        return ""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
        start = ctypes.c_char.from_buffer(code)
        count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))

        def look():
            before, ticks, after = time.monotonic_ns(), count(), time.monotonic_ns()
            return after - before, before, ticks
        _, began, first = min(look() for _ in range(50))  # the quickest: nothing came between
        time.sleep(0.05)
        _, ended, last = min(look() for _ in range(50))
        del start
    return f" tsc_early_khz={(last - first) * 1000000 // (ended - began)}"


def _make_disk(path, file_system, size):
    with open(path, "wb") as file:
        file.truncate(size or DISK_SIZES[file_system])
    mkfs = shutil.which("mkfs." + file_system, path=os.pathsep.join([os.environ.get("PATH", ""), *TOOLS]))
    if not mkfs:
        raise Unavailable(f"no mkfs.{file_system} here: tools/bootstrap check names its package")
    subprocess.run([mkfs, "-q", path], check=True, stdout=subprocess.DEVNULL)


_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no QEMU outlives a test that was killed


def main():
    parser = argparse.ArgumentParser(description="Run a command as root in a guest with Debian's kernel.")
    parser.add_argument("--run", required=True, metavar="COMMAND", help="a shell script")
    parser.add_argument("--file", action="append", default=[], metavar="PATH[:DEST]",
                        help="a file or directory to take along, programs with their libraries (DEST: /bin/NAME)")
    parser.add_argument("--module", action="append", default=[], metavar="NAME", help="a kernel module to load")
    parser.add_argument("--network", choices=sorted(NETWORK_MODULES), help=f"a device; this machine is {HOST}")
    parser.add_argument("--disk", choices=sorted(DISK_SIZES), help="a file system at /disk")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--limit", type=int, default=60, metavar="SECONDS", help="for the command (default: 60)")
    parser.add_argument("--console", action="store_true", help="print what the kernel said, and how long booting took")
    options = parser.parse_args()
    files = []
    for item in options.file:
        path, _, destination = item.partition(":")
        files.append((path, destination or "/bin/" + os.path.basename(path)))
    try:
        with Guest(files, options.module, options.memory, options.cpus, options.network, options.disk) as machine:
            result = machine.run(options.run, options.limit)
            if options.console:
                print(f"{machine.kernel.package}\nbooted in {machine.boot_seconds:.1f} s\n{machine.console()}",
                      file=sys.stderr)
    except (Unavailable, Failed) as error:
        sys.exit(f"guest: {error}")
    sys.stdout.buffer.write(result.out)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.err)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
