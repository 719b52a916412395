# SPDX-License-Identifier: MIT
"""sluice doctor: findings under conditions that are made for the purpose, the ladder as text and as JSON, learned
crossovers, terminals, exit codes."""

import array
import ctypes
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import tempfile
import termios

from harness import SLUICE, Skip, case, equal, main, new_root

SIOCETHTOOL, ETHTOOL_SSG, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8946, 0x19, 0x8913, 0x8914
CLONE_NEWNET = 0x40000000
NOBODY = 65534


def doctor(*arguments, code=(0, 1), user=None, setup=None, cache=None, stdout=subprocess.PIPE):
    """Runs it with an empty cache of its own, as another user if asked for."""
    home = cache or tempfile.mkdtemp(prefix="sluice-doctor-")

    def prepare():
        if setup:
            setup()
        if user:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
    environment = {**os.environ, "XDG_CACHE_HOME": home}
    done = subprocess.run([SLUICE, "doctor", *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True,
                          env=environment, preexec_fn=prepare, close_fds=setup is None, timeout=30)
    codes = code if isinstance(code, tuple) else (code,)
    assert done.returncode in codes, f"exit code {done.returncode}: {done.stderr}"
    return done


def findings(**more):
    done = doctor("--json", "/tmp", **more)
    report = json.loads(done.stdout)
    problems = [one for one in report["findings"] if one["level"] == "problem"]
    equal(report["problems"], len(problems), "problems")
    equal(done.returncode, 1 if problems else 0, "exit code")
    for one in problems:
        assert one["remedy"], f"a problem without a remedy: {one}"
    return report["findings"]


def about(check, found):
    return [one for one in found if one["check"] == check]


def needs_root():
    if os.geteuid() != 0:
        raise Skip("namespaces and other users take root; run the tests as root")


def in_namespace(action):
    """action in a child with network devices of its own, so that its end removes them."""
    def enter():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            up(sock, "lo")
            action(sock)
    return enter


def up(sock, name):
    request = struct.pack("16sh14x", name.encode(), 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
    fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | 1))


def add_device(name, kind):
    """rtnetlink: RTM_NEWLINK with IFLA_IFNAME and IFLA_LINKINFO{IFLA_INFO_KIND}."""
    def attribute(number, data):
        data = struct.pack("HH", 4 + len(data), number) + data
        return data + b"\0" * (-len(data) % 4)
    body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0") + \
        attribute(18, attribute(1, kind.encode()))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("IHHII", 16 + len(body), 16, 0x1 | 0x4 | 0x400 | 0x200, 1, 0) + body)
        answer = netlink.recv(4096)
        error = struct.unpack_from("i", answer, 16)[0]
        if error:
            raise OSError(-error, f"adding a {kind} device")


def without_scatter_gather(sock, name):
    value = array.array("B", struct.pack("II", ETHTOOL_SSG, 0))
    fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("16sP8x", name.encode(), value.buffer_info()[0]))


# ---- Findings ----

@case("text and JSON say the same")
def _():
    text = doctor("/tmp").stdout
    found = findings()
    assert len(found) >= 8, found
    for one in found:
        if one["level"] == "ok":
            assert re.search(rf"^ok +{re.escape(one['check'])}: {re.escape(one['what'])}$", text, re.M), one
        else:
            for part in (one["what"], one["why"], one["remedy"]):
                assert part is None or part in text, f"not in the text: {part}"
    counts = {level: sum(one["level"] == level for one in found) for level in ("problem", "note", "unknown", "ok")}
    last = text.splitlines()[-1]
    equal([int(number) for number in re.findall(r"\d+", last)], list(counts.values()), last)


@case("too little locked memory is a problem for those whom it limits")
def _():
    needs_root()
    import resource

    def squeeze():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    one, = about("locked memory", findings(user=NOBODY, setup=squeeze))
    equal(one["level"], "problem", "level")
    assert "64 KiB" in one["what"] and "ulimit -l" in one["remedy"], one
    one, = about("locked memory", findings(setup=squeeze))
    equal(one["level"], "ok", "level with CAP_IPC_LOCK")


@case("pipes that have become small are found, with the limit that makes them so")
def _():
    needs_root()

    def use_up():
        os.setgid(NOBODY)
        os.setuid(NOBODY)  # pipes are charged to the user who made them
        for _ in range(80):
            ends = os.pipe()
            os.set_inheritable(ends[0], True)
            try:
                fcntl.fcntl(ends[0], 1031, 1 << 20)
            except PermissionError:
                pass
    pipes = about("pipes", findings(setup=use_up))
    assert any(one["level"] == "problem" and "pipe-user-pages-soft" in one["remedy"] for one in pipes), pipes
    assert all(one["level"] != "problem" for one in about("pipes", findings()))


@case("a device without scatter-gather is a problem, one that is down is not looked at")
def _():
    needs_root()

    def devices(sock):
        for name in ("gathers0", "linear0", "asleep0"):
            add_device(name, "ifb")
        for name in ("linear0", "asleep0"):
            without_scatter_gather(sock, name)
        for name in ("gathers0", "linear0"):
            up(sock, name)
    found = about("network devices", findings(setup=in_namespace(devices)))
    levels = {one["what"].split()[0]: one["level"] for one in found}
    equal({name: levels[name] for name in levels.keys() & {"lo", "gathers0", "linear0", "asleep0"}},
          {"lo": "ok", "gathers0": "ok", "linear0": "problem"}, "levels")
    linear, = [one for one in found if one["level"] == "problem"]
    equal(linear["what"], "linear0 has no scatter-gather", "what")
    assert "ethtool -K linear0 sg on" in linear["remedy"], linear


@case("somebody who listens to all packets is a problem while it lasts")
def _():
    needs_root()

    def listen(_sock):
        listen.kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    one, = about("packet sockets", findings(setup=in_namespace(listen)))
    equal(one["level"], "ok", "level after it was closed by exec")

    def listen_on(sock):
        listen(sock)
        listen.kept.set_inheritable(True)
    one, = about("packet sockets", findings(setup=in_namespace(listen_on)))
    equal(one["level"], "problem", "level")


@case("what the kernel's file says of congestion control is what is found")
def _():
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        name = file.read().strip()
    one, = about("congestion control", findings())
    equal(one["level"], "problem" if name.startswith("bbr") else "ok", name)
    assert name in one["what"], one


# ---- The ladder ----

def ladder(*arguments, **more):
    return json.loads(doctor("--routes", "--json", *arguments, code=0, **more).stdout)


def name_of(place):
    if place["kind"] == "file":
        return f"file on {place['file_system']} ({place['directory']})"
    return place["kind"] + (" by " + place["device"]["name"] if place["device"] else "")


def title_of(pair):
    source = name_of(pair["source"]) + (" given away" if pair["source"]["given"] else "")
    if pair["sinks"] > 1:
        return f"{source} to {pair['sinks']} sinks: {name_of(pair['sink'])}"
    return f"{source} to {name_of(pair['sink'])}" + (", on io_uring" if pair["io_uring"] else "")


@case("every line of the ladder as text is one of JSON's, in its order")
def _():
    root = new_root()
    report = ladder(root, "/dev/shm")["ladder"]
    text = doctor("--routes", root, "/dev/shm", code=0).stdout
    blocks = [block.splitlines() for block in text.split("\n\n")[1:-2]]
    equal(len(blocks), len(report), "pairs")
    for block, pair in zip(blocks, report):
        equal(block[0], title_of(pair), "title")
        served = [route for route in pair["routes"] if route["verdict"] != "never"]
        for line, route in zip(block[1:], served):
            equal(line[0] == "*", route["chosen"], line)
            equal(line[2:18].strip(), route["route"], line)
            fate = "-" if not route["tried"] else "refused" if route["error"] else route["copied"]
            if route["route"] != "tcp_receive":  # how much it maps is a matter of timing, and these are two runs
                equal(line[18:33].strip(), fate, line)
                equal(line[33:47].strip(), route["evidence"] or "-", line)
            if route["verdict"] != "yes":
                assert line[47:].startswith(f"{route['verdict']}: {route['why_not']}"), line
        never = {}
        for route in pair["routes"]:
            if route["verdict"] == "never":
                never.setdefault(route["why_not"], []).append(route["route"])
        equal([[re.split(r"  +", line[2:], 1)[0], line.split("never: ", 1)[1]] for line in block[1 + len(served):]],
              [[", ".join(routes), reason] for reason, routes in never.items()], block[0])
    short = [line for line in text.split("\n\n")[-2].splitlines()[1:]]
    taken = [route for pair in report for route in pair["routes"] if route["chosen"]]
    equal([[line[2:18].strip(), line[18:33].strip(), line[47:]] for line in short],
          [[route["route"], route["copied"], title_of(pair)] for route, pair in zip(taken, report)], "in short")


@case("the ladder's figures add up, and one route of each pair is chosen")
def _():
    for pair in ladder("/tmp")["ladder"]:
        equal(sum(route["chosen"] for route in pair["routes"]), 1, title_of(pair))
        for route in pair["routes"]:
            if route["bytes"] is not None:
                equal(route["bytes"], pair["bytes"] * pair["sinks"], route["route"])
                equal(route["by_reference"] + route["copied_bytes"] + route["unknown"], route["bytes"], route["route"])
            if route["verdict"] == "never":
                assert not route["tried"] and route["why_not"], route


@case("what takes more than two ends is tried too: tee into two sinks, memory given away, a loop on io_uring")
def _():
    report = ladder("/tmp")
    opened = {}
    for pair in report["ladder"]:
        setting = "two sinks" if pair["sinks"] == 2 else "given" if pair["source"]["given"] else \
            "io_uring" if pair["io_uring"] else "plain"
        for route in pair["routes"]:
            if route["tried"] and not route["error"]:
                opened.setdefault(route["route"], {}).setdefault(setting, []).append(
                    (pair["source"]["kind"], pair["sink"]["kind"], route["carried"] // pair["bytes"], route["copied"]))
    equal(set(opened["tee"]), {"two sinks"}, "tee")
    equal(sorted(opened["tee"]["two sinks"])[:1], [("pipe", "file", 2, "copied once")], "tee")
    assert ("tcp", "tcp", 2, "by reference") in opened["tee"]["two sinks"], opened["tee"]
    equal(opened["vmsplice"], {"given": [("memory", "pipe", 1, "by reference"), ("memory", "tcp", 1, "by reference"),
                                         ("memory", "unix", 1, "unknown")]}, "vmsplice")
    if report["io_uring_missing"]:
        raise Skip(f"no io_uring: {report['io_uring_missing']}")
    equal(opened["uring_send_zc"], {"io_uring": [("memory", "tcp", 1, "copied once"),
                                                 ("memory", "datagram", 1, "copied once")]}, "uring_send_zc")
    equal([route["evidence"] for pair in report["ladder"] for route in pair["routes"]
           if route["route"] == "uring_send_zc" and route["tried"]], ["measured", "measured"], "evidence")


def forbid_io_uring():
    """As a container does: seccomp answers EPERM to io_uring_setup (425 everywhere) and allows the rest."""
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
    load, equals, give = 0x20, 0x15, 0x06
    code = b"".join(struct.pack("HBBI", *line) for line in (
        (load, 0, 0, 0), (equals, 0, 1, 425), (give, 0, 0, 0x00050001), (give, 0, 0, 0x7fff0000)))
    forbid_io_uring.kept = ctypes.create_string_buffer(code, len(code))
    program = Program(4, ctypes.addressof(forbid_io_uring.kept))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


@case("where io_uring is forbidden, the ladder says why instead of trying it")
def _():
    report = ladder("--from", "memory", "--to", "tcp", setup=forbid_io_uring)
    text = doctor("--routes", "--from", "memory", "--to", "tcp", code=0, setup=forbid_io_uring).stdout
    assert not any(pair["io_uring"] for pair in report["ladder"])
    assert "EPERM" in report["io_uring_missing"], report["io_uring_missing"]
    assert f"is not shown: {report['io_uring_missing']}." in text, text
    one, = about("io_uring", findings(setup=forbid_io_uring))
    equal(one["level"], "note", "level")
    assert "seccomp" in one["remedy"], one


@case("sendfile to TCP is by reference over loopback, by an ext4 file's pages and a tmpfs file's")
def _():
    for pair in ladder("--from", "file", "--to", "tcp", "/dev/shm")["ladder"]:
        by_name = {route["route"]: route for route in pair["routes"]}
        equal(by_name["sendfile"]["copied"], "by reference", "sendfile")
        equal(by_name["sendfile"]["evidence"], "probed", "sendfile")
        equal(by_name["copy"]["copied"], "copied twice", "copy")


@case("a peer's device is asked, and nothing is sent there")
def _():
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = "127.0.0.1:%d" % server.getsockname()[1]
        report = ladder("--from", "file", "--to", "tcp", "--peer", peer, "/tmp")["ladder"]
        equal(len(report), 2, "pairs")
        pair, = [one for one in report if one["sink"]["peer"] == peer]
        equal(pair["sink"]["device"]["name"], "lo", "device")
        assert all(not route["tried"] for route in pair["routes"])
        assert any(route["chosen"] for route in pair["routes"])
        connection, _ = server.accept()
        with connection:
            equal(connection.recv(10), b"", "received")
    done = doctor("--routes", "--peer", peer, "/tmp", code=1)
    assert "Connection refused (ECONNREFUSED)" in done.stderr, done.stderr


def crossover_file(cache, lines):
    kernel = os.uname().release
    cpu = os.uname().machine
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        match = re.search(r"^model name\s*:\s*(.*)$", file.read(4095), re.M)
    cpu = match[1].strip() if match else cpu
    key = 14695981039346656037
    for byte in (kernel + cpu).encode():
        key = ((key ^ byte) * 1099511628211) % (1 << 64)
    os.makedirs(os.path.join(cache, "sluice"), exist_ok=True)
    path = os.path.join(cache, "sluice", "crossovers-%016x" % key)
    with open(path, "w", encoding="ascii") as file:
        file.write(f"sluice crossovers 1\nkernel {kernel}\ncpu {cpu}\n" + "".join(line + "\n" for line in lines))
    os.chmod(path, 0o600)


@case("crossovers that an earlier run has learned are shown as learned, and used")
def _():
    cache = tempfile.mkdtemp(prefix="sluice-doctor-")
    report = ladder("--from", "tcp", "--to", "tcp", cache=cache)
    pair = report["ladder"][0]
    splice, = [route for route in pair["routes"] if route["route"] == "splice"]
    equal((splice["pays_from"], splice["learned"], splice["chosen"]), (16384, False, True), "the default")
    assert "there is none yet" in report["crossovers_not_loaded"]
    device = pair["sink"]["device"]
    flags = "".join(letter if device[name] else "-" for letter, name in
                    (("l", "loopback"), ("s", "scatter_gather"), ("c", "checksum"), ("t", "segmentation")))
    crossover_file(cache, [f"splice tcp tcp {device['driver'] or '-'} {flags} 1048576 8:20:300000",
                           f"copy tcp tcp {device['driver'] or '-'} {flags} - 8:20:200000"])
    report = ladder("--from", "tcp", "--to", "tcp", cache=cache)
    pair = report["ladder"][0]
    splice, = [route for route in pair["routes"] if route["route"] == "splice"]
    equal((splice["pays_from"], splice["learned"], splice["chosen"]), (1 << 20, True, False), "learned")
    equal(splice["why_not"], "dearer below 1 MiB here (learned)", "why")
    equal([(one["route"], one["pays_from"], one["samples"]) for one in report["crossovers"]],
          [("splice", 1 << 20, 16)], "list")
    equal(report["crossovers_not_loaded"], None, "not loaded")
    crossover_file(cache, ["splice tcp tcp - ---- 12 8:20:300000"])
    report = ladder("--from", "tcp", "--to", "tcp", cache=cache)
    assert "a line of it makes no sense" in report["crossovers_not_loaded"], report["crossovers_not_loaded"]


# ---- Terminals, errors ----

def on_terminal(columns, *arguments, **environment):
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm", **environment})
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        os.execv(SLUICE, [SLUICE, "doctor", *arguments])
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(master)
    os.waitpid(pid, 0)
    return shown.decode()


@case("on a terminal of %d columns no line is longer", 80)
@case("on a terminal of %d columns no line is longer", 120)
def _(columns):
    for arguments in (["/tmp"], ["--routes", "--from", "file", "/tmp"]):
        shown = on_terminal(columns, *arguments)
        assert "\033[1m" in shown or "\033[3" in shown, "no colours"
        lines = [re.sub(r"\033\[\d*m", "", line) for line in shown.splitlines()]
        assert len(lines) > 10
        for line in lines:
            assert len(line) <= columns, f"{len(line)} columns: {line}"


@case("no colours where NO_COLOR is set, or TERM is dumb; an empty NO_COLOR is none")
def _():
    for environment, coloured in (({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)):
        equal("\033" in on_terminal(80, "/tmp", **environment), coloured, environment)


@case("wrong usage is told from failure, and a full disk is failure")
def _():
    done = doctor("--from", "file", code=2)
    assert "add --routes" in done.stderr, done.stderr
    doctor("--routes", "--from", "socket", code=2)
    done = doctor("--routes", "/proc", code=1)
    assert "/proc" in done.stderr and not done.stdout, done.stderr
    found = json.loads(doctor("--json", "/proc").stdout)["findings"]
    assert any(one["level"] == "unknown" and "/proc" in one["what"] for one in found), found
    with open("/dev/full", "w", encoding="ascii") as full:
        done = doctor("/tmp", code=1, stdout=full)
    assert "ENOSPC" in done.stderr or "EIO" in done.stderr, done.stderr


@case("files are left nowhere")
def _():
    root = new_root()
    doctor(root)
    doctor("--routes", root)
    equal(os.listdir(root), [], "files")


main()
