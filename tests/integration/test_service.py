#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice serve and proxy under a service manager: sockets that are passed, what the manager is told, whom workers become,
and the units that come with sluice."""

import glob
import grp
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess

from harness import (LOCAL, PATIENCE, SLUICE, Client, Program, Server, Skip, case, children, content, equal, get, main,
                     new_root, same_bytes, until, write)

UNITS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../packaging/systemd/")
BODY = content(1000)


def root_with_file():
    root = new_root()
    write(root, "a", data=BODY)
    return root


class Told:
    """What a manager hears."""

    def __init__(self):
        self.path = new_root() + "/notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(10 * PATIENCE)
        os.chmod(self.path, 0o666)

    def next(self):
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())


def passing(*sockets):
    """A command that starts another with these sockets from descriptor 3 on, as systemd does. Returns the command and
    what subprocess.Popen needs for it."""
    moves = " ".join("%d<&%d" % (3 + i, one.fileno()) for i, one in enumerate(sockets))
    script = "LISTEN_FDS=%d LISTEN_PID=$$ exec \"$@\" %s" % (len(sockets), moves)
    return ["sh", "-c", script, "sh"], {"pass_fds": [one.fileno() for one in sockets]}


class Passed(Server):
    """With sockets that are passed, and without --listen unless options have it."""

    def __init__(self, root, sockets, *options):
        wrap, more = passing(*sockets)
        self.root, self.workers = root, 2
        Program.__init__(self, [*wrap, SLUICE, "serve", root, "--workers", "2", *options], **more)


@case("the examples of configuration are right, also with all that they comment out but paths of other machines")
def examples():
    folder = pathlib.Path(__file__).resolve().parents[2] / "packaging" / "examples"
    for command in ("serve", "proxy"):
        text = (folder / (command + ".conf")).read_text(encoding="ascii")
        place = new_root()
        text = text.replace("= /srv", "= " + place).replace("= /var/log/sluice", "= " + place)
        for name in ("www", "downloads"):
            os.mkdir(os.path.join(place, name))
        whole = re.sub(r"^#(\[.*\]|(?!certificate|listen-tls|redirect)[a-z-]+ = .*| {8}\S.*)$", r"\1", text, flags=re.M)
        assert whole.count("\n#") < text.count("\n#") - 5, whole
        for one in (text, whole):
            path = write(place, command + ".conf", data=one.encode())
            done = subprocess.run([SLUICE, command, "--config", path, "--check-config"], capture_output=True, text=True,
                                  timeout=10 * PATIENCE)
            equal((done.returncode, done.stderr), (0, ""))
    keys = set(re.findall(r"^#?([a-z-]+) = ", (folder / "serve.conf").read_text(encoding="ascii"), re.M))
    usage = subprocess.run([SLUICE, "serve", "--help"], capture_output=True, text=True, timeout=10 * PATIENCE).stdout
    equal([key for key in keys if not re.search("--(\\[no-\\])?%s\\b" % key, usage)], [])


@case("a socket that is passed is listened at, waits for the next start, and a request from in between is answered then")
def activation():
    root = root_with_file()
    with socket.create_server((LOCAL, 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        with Passed(root, [listener]) as server:
            equal(server.port, port)
            equal(get(server, "/a").status, 200)
            server.signal(signal.SIGHUP)
            until(lambda: "reloaded" in server.errors(), 10, "the reload")
            equal(get(server, "/a").status, 200)
        client = Client((LOCAL, port))  # nobody is there, and it is not refused
        client.ask("/a")
        with Passed(root, [listener]):
            same_bytes(client.response().body, BODY)


@case("of sockets that are passed each listen gets its own; one that nobody wants is told about, and what is none is an "
      "error")
def several_passed():
    root = root_with_file()
    with socket.create_server((LOCAL, 0)) as one, socket.create_server((LOCAL, 0)) as two:
        with Passed(root, [one, two], "--listen", "%s:%d" % two.getsockname()) as server:
            equal(server.port, two.getsockname()[1])
            equal(get(server, "/a").status, 200)
            until(lambda: "passed a socket at %s:%d, but no listen says that" % one.getsockname() in server.errors(), 5,
                  "a word about the other one")
        with Passed(root, [one], "--listen", LOCAL + ":0") as server:
            assert server.port != one.getsockname()[1]
    with socket.socket() as idle:
        wrap, more = passing(idle)
        done = subprocess.run([*wrap, SLUICE, "serve", root], capture_output=True, text=True, timeout=10 * PATIENCE, **more)
        equal(done.returncode, 1)
        assert "is no listening stream socket" in done.stderr, done.stderr
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(root + "/socket")
        local.listen()
        wrap, more = passing(local)
        done = subprocess.run([*wrap, SLUICE, "serve", root], capture_output=True, text=True, timeout=10 * PATIENCE, **more)
        equal(done.returncode, 1)
        assert "passed a Unix socket; write ListenStream=PORT" in done.stderr, done.stderr
    done = subprocess.run(["sh", "-c", "LISTEN_FDS=some LISTEN_PID=$$ exec \"$@\"", "sh", SLUICE, "serve", root],
                          capture_output=True, text=True, timeout=10 * PATIENCE)
    assert "LISTEN_FDS is \"some\", which is no number" in done.stderr, done.stderr
    # Meant for another process.
    done = subprocess.run([SLUICE, "serve", "/nowhere"], capture_output=True, text=True, timeout=10 * PATIENCE,
                          env=dict(os.environ, LISTEN_FDS="1", LISTEN_PID="1"))
    assert "cannot serve /nowhere" in done.stderr, done.stderr


@case("the manager is told when it serves, when it reloads, how that ended, and when it stops")
def notified():
    told = Told()
    root = root_with_file()
    conf = write(root, "c", data=b"index = index.html\n")
    with Server(root, "--config", conf, workers=2, env={"NOTIFY_SOCKET": told.path}) as server:
        equal(told.next(), {"READY": "1", "STATUS": "2 workers, 0 reloads"})
        server.signal(signal.SIGHUP)
        reloading = told.next()
        equal(reloading["RELOADING"], "1")
        assert int(reloading["MONOTONIC_USEC"]) > 0
        equal(told.next(), {"READY": "1", "STATUS": "2 workers, 1 reload"})
        write(root, "c", data=b"indxe = x\n")
        server.signal(signal.SIGHUP)
        equal(told.next()["RELOADING"], "1")
        equal(told.next()["STATUS"], "2 workers, 1 reload; the last one was refused, see the log")
        server.signal(signal.SIGTERM)
        equal(told.next()["STOPPING"], "1")
        server.wait()


def status(pid):
    with open("/proc/%d/status" % pid, encoding="utf-8") as file:
        return dict(re.findall(r"(\w+):\s*(.*)", file.read()))


@case("--user: workers are that user with its groups, and have no capability; logs are opened by root, also at a reload")
def other_user():
    if os.geteuid() != 0:
        raise Skip("needs root, who alone can become somebody else")
    root = root_with_file()
    hidden = new_root()
    os.chmod(hidden, 0o700)
    log = hidden + "/log"
    user, group = pwd.getpwnam("nobody"), grp.getgrnam("daemon")
    for options, gid in (((), user.pw_gid), (("--group", "daemon"), group.gr_gid)):
        with Server(root, "--user", "nobody", *options, "--access-log", log, workers=2) as server:
            for _ in range(2):
                for pid in server.worker_pids():
                    found = status(pid)
                    equal(found["Uid"].split(), [str(user.pw_uid)] * 4)
                    equal(found["Gid"].split(), [str(gid)] * 4)
                    equal(found["Groups"].split(), [str(gid)])
                    equal((found["CapPrm"], found["CapEff"]), ("0" * 16, "0" * 16))
                equal(get(server, "/a").status, 200)
                until(lambda: os.path.exists(log) and os.path.getsize(log) > 0, 5, "a line")
                os.remove(log)
                before = server.errors().count(": reloaded: ")
                server.signal(signal.SIGHUP)
                until(lambda before=before: server.errors().count(": reloaded: ") > before, 10, "the reload")
                until(lambda: len(server.worker_pids()) == 2, 10, "the end of the old workers")
            equal(status(server.pid)["Uid"].split(), ["0"] * 4)  # to open logs and bind again
            supervisor = server.pid
            pids = server.worker_pids()
            os.kill(supervisor, signal.SIGKILL)  # workers do not outlive it, whoever they are
            until(lambda: not any(os.path.exists("/proc/%d" % pid) and status(pid)["State"][0] != "Z" for pid in pids), 5,
                  "the end of the workers")
            server.process.wait()
            server.code = 0
    for arguments, words in ((("--user", "nosuchuser"), "there is no user \"nosuchuser\" here"),
                             (("--user", "nobody", "--group", "nosuchgroup"), "there is no group \"nosuchgroup\" here"),
                             (("--group", "daemon"), "a group needs a user, too"),
                             (("--user", "424242"), "there is no user with the number 424242 here; say the group, too")):
        done = subprocess.run([SLUICE, "serve", root, *arguments, "--check-config"], capture_output=True, text=True,
                              timeout=10 * PATIENCE)
        assert done.returncode != 0 and words in done.stderr, done.stderr
    done = subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", SLUICE, "serve", root,
                           "--user", "daemon", "--check-config"], capture_output=True, text=True, timeout=10 * PATIENCE)
    assert "only root may become somebody else" in done.stderr or "Permission denied" in done.stderr, done.stderr


@case("a directory that the user may not enter is told at the start")
def closed_directory():
    if os.geteuid() != 0:
        raise Skip("needs root, who alone can become somebody else")
    hidden = new_root()
    os.chmod(hidden, 0o700)
    done = subprocess.run([SLUICE, "serve", hidden, "--listen", LOCAL + ":0", "--user", "nobody", "--workers", "1"],
                          capture_output=True, text=True, timeout=10 * PATIENCE)
    equal(done.returncode, 1)
    assert "user nobody may not enter %s: Permission denied" % hidden in done.stderr, done.stderr


# ---- Units ----

def granted(unit):
    """The system calls that a unit's filter permits."""
    groups = {}

    def group(name):
        if name not in groups:
            said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
            groups[name] = set()
            for word in said.stdout.split("\n", 1)[1].split("\n"):
                word = word.strip()
                if word and not word.startswith("#"):
                    groups[name] |= group(word) if word.startswith("@") else {word}
        return groups[name]

    calls = set()
    with open(unit, encoding="utf-8") as file:
        for line in re.findall(r"^SystemCallFilter=(.*)$", file.read(), re.MULTILINE):
            for word in line.lstrip("~").split():
                names = group(word) if word.startswith("@") else {word}
                calls = calls - names if line.startswith("~") else calls | names
    return calls


@case("the units are as systemd wants them, and expose little")
def units():
    if not shutil.which("systemd-analyze"):
        raise Skip("needs systemd-analyze: apt-get install systemd")
    scratch = new_root()
    for path in glob.glob(UNITS + "*"):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        # Neither the program nor its pages need be installed here.
        text = re.sub(r"^Documentation=.*\n", "", text.replace("/usr/bin/sluice", "/bin/true"), flags=re.MULTILINE)
        write(scratch, os.path.basename(path), data=text.encode())
    names = sorted(os.listdir(scratch))
    equal(len(names), 4)
    done = subprocess.run(["systemd-analyze", "verify", *("./" + name for name in names)], cwd=scratch,
                          capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "sluice" in line]
    equal(ours, [])
    for name in names:
        if name.endswith(".service"):
            done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=25", "./" + name],
                                  cwd=scratch, capture_output=True, text=True, timeout=60)
            equal(done.returncode, 0, done.stdout[-200:])


@case("what serve does with its log, its admin page and reloads is within the system calls that its unit permits",
      sanitized=False, limit=60)
def unit_filter():
    if not shutil.which("systemd-analyze"):
        raise Skip("needs systemd-analyze: apt-get install systemd")
    if not shutil.which("strace"):
        raise Skip("needs strace: apt-get install strace")
    root, output = root_with_file(), new_root() + "/calls"
    allowed = granted(UNITS + "sluice-serve.service")
    server = Server(root, "--access-log", root + "/log", "--admin", LOCAL + ":0", workers=2,
                    wrap=("strace", "-f", "-qq", "-o", output))
    try:
        equal(get(server, "/a").status, 200)
        equal(get(server, "/").status, 200)
        supervisor = children(server.pid)[0]
        os.kill(supervisor, signal.SIGHUP)
        until(lambda: "reloaded" in server.errors(), 20, "the reload")
        equal(get(server, "/a").status, 200)
        os.kill(supervisor, signal.SIGTERM)
        server.wait(20)
    finally:
        if server.code is None:
            server.kill()
    with open(output, encoding="utf-8", errors="replace") as file:
        used = set(re.findall(r"^\d+ +([a-z0-9_]+)\(", file.read(), re.MULTILINE))
    assert "sendfile" in used or "io_uring_enter" in used, used
    equal(used - allowed, set(), "system calls that the unit forbids")


if __name__ == "__main__":
    main()
