#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tests/vm/arm64.py BUILD COMMAND [PROGRAM]...: run a shell command in a guest for arm64, with sluice of BUILD, which
tools/cross-arm64 has set up and ninja has built, and other programs for arm64. By hand: no part of make check. Exit
status: the command's."""

import os
import pathlib
import subprocess
import sys
import tempfile

import guest

ARM = guest.ROOT / "build/arm64"
INIT = b"""#!/bin/busybox sh
export PATH=/bin HOME=/root TERM=dumb
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t devtmpfs none /dev
mount -t sysfs none /sys
for directory in /dev/shm /tmp /mnt; do mkdir -p $directory; mount -t tmpfs none $directory; done
ip link set lo up
sh /command
echo "exit status $?"
poweroff -f
"""


def libraries(archive):
    for library in sorted(ARM.glob("sysroot/lib/aarch64-linux-gnu/*.so*")) + sorted(
            ARM.glob("sysroot/usr/lib/aarch64-linux-gnu/*.so*")):
        if library.is_file() and library.suffix != ".so":
            archive.file("lib/aarch64-linux-gnu/" + library.name, library.read_bytes(), 0o755)
    loader = "lib/ld-linux-aarch64.so.1"
    archive.file(loader, (ARM / "sysroot/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1").read_bytes(), 0o755)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if not (ARM / "done").exists():
        sys.exit("arm64: nothing is here: tools/cross-arm64 BUILD, then ninja -C BUILD")
    archive = guest.Archive()
    for path in ("proc", "sys", "dev", "root", "mnt", "var/tmp"):
        archive.directory(path)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("bin/busybox", (ARM / "sysroot/bin/busybox").read_bytes(), 0o755)
    libraries(archive)
    for program in [os.path.join(sys.argv[1], "app/sluice"), *sys.argv[3:]]:
        archive.file("bin/" + os.path.basename(program), pathlib.Path(program).read_bytes(), 0o755)
    archive.file("command", sys.argv[2].encode() + b"\n")
    archive.file("init", INIT, 0o755)
    kernel = next(ARM.glob("sysroot/boot/vmlinuz-*"))
    with tempfile.NamedTemporaryFile(prefix="sluice-arm64-") as image:
        image.write(archive.finished())
        image.flush()
        with subprocess.Popen(
                [ARM / "tools/usr/bin/qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth=off", "-m", "1024",
                 "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", image.name, "-nic", "none",
                 "-append", "console=ttyAMA0 quiet loglevel=5 panic=-1 mitigations=off"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as machine:
            status = 1
            for line in machine.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                if line.startswith(b"exit status "):
                    status = int(line.split()[2])
    return status


if __name__ == "__main__":
    sys.exit(main())
