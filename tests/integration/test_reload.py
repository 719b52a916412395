#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""sluice serve and its configuration: the file, reloading under load, and logs that are renamed while it writes them."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

from harness import (LOCAL, PATIENCE, SLUICE, Client, Program, Server, Skip, case, content, equal, main, new_root,
                     note, same_bytes, until, write)

SMALL = content(900)
LARGE = content(24 << 20)


def check(text, *arguments):
    """What --check-config says of a file: exit code, what it printed, the file's name."""
    path = write(new_root(), "serve.conf", data=text.encode())
    done = subprocess.run([SLUICE, "serve", "--config", path, "--check-config", *arguments], capture_output=True,
                          text=True, timeout=10 * PATIENCE, env={**os.environ, "XDG_CONFIG_HOME": os.path.dirname(path)})
    assert "Sanitizer" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr, path


class Configured(Server):
    """By a file, which can be written anew. What is not given: a root with a small and a large file, and a log."""

    def __init__(self, loop="auto", workers=2, **keys):
        self.directory = new_root()
        write(self.directory, "www", "small", data=SMALL)
        write(self.directory, "www", "large", data=LARGE)
        self.path = os.path.join(self.directory, "serve.conf")
        self.log = os.path.join(self.directory, "access.log")
        self.keys = {"listen": LOCAL + ":0", "root": self.directory + "/www", "workers": workers, "loop": loop,
                     "access-log": self.log, **keys}
        self.write()
        self.workers, self.reloads = workers, 0
        Program.__init__(self, [SLUICE, "serve", "--config", self.path])

    def write(self, more="", **keys):
        self.keys.update(keys)
        lines = ["%s = %s\n" % (key.replace("_", "-"), value) for key, value in self.keys.items()]
        write(self.directory, "new", data=("".join(lines) + more).encode())
        os.replace(self.directory + "/new", self.path)

    def reload(self):
        self.reloads += 1
        self.signal(signal.SIGHUP)
        until(lambda: self.errors().count(": reloaded: ") == self.reloads, 20, "reload %d" % self.reloads)
        self.is_ready()

    def rename_log(self):
        """logrotate's part before the signal. Returns the new name."""
        name = "%s.%d" % (self.log, self.reloads)
        os.rename(self.log, name)
        return name

    def is_ready(self):
        match = re.findall(r"http://\S+:(\d+)/", self.output())
        if match:
            self.port = int(match[-1])
            self.address = (LOCAL, self.port)
        return match


def lines(*paths):
    text = ""
    for path in paths:
        with open(path, encoding="latin-1") as file:
            text += file.read()
    assert text == "" or text.endswith("\n"), text[-100:]
    return text.splitlines()


# ---- The file ----

@case("--check-config: a right file is right; of a wrong one it says line, key, reason and what to do")
def check_config():
    good = "# a site\nlisten = 127.0.0.1:8080\nroot = .\nidle-timeout = 5s\nlisting = no\n"
    code, said, path = check(good)
    equal((code, said), (0, "configuration %s is fine: 1 site\n" % path))
    for text, status, words in (
            (good + "indxe = x\n", 2, "%s:6: unknown key \"indxe\"; did you mean index?\n"),
            (good + "idle-timeout = 1s\n", 2, "%s:6: idle-timeout was given before, in line 4 (an indented line goes on "
                                              "with the key above it)\n"),
            (good + "workers = many\n", 2, "%s:6: workers takes a number from 1 to 1024, not \"many\"\n"),
            (good + "route = sendfil\n", 2, "%s:6: route: sendfil: there is no such route; did you mean sendfile?\n"),
            (good + "sqpoll = yes\nloop = epoll\n", 2, "%s:6: sqpoll: this needs loop io_uring, not epoll\n"),
            (good + "check-config = yes\n", 2, "%s:6: check-config is for the command line\n"),
            (good + "user = nosuchuser\n", 1, "%s:6: user: there is no user \"nosuchuser\" here\n"),
            (good + "user = nobody\ngroup = nosuchgroup\n", 1, "%s:7: group: there is no group \"nosuchgroup\" here\n"),
            (good + "congestion = warp\n", 1, "%s:6: congestion: this kernel has no congestion control \"warp\"; it has"),
            (good.replace("127.0.0.1", "nosuchhost.invalid"), 1,
             "%s:2: listen: the name \"nosuchhost.invalid\" cannot be resolved: "),
            (good + "access-log = /nowhere/log\n", 1, "%s:6: access-log: cannot log to /nowhere/log: No such file or "
                                                      "directory (ENOENT); its directory does not exist\n"),
            (good + "access-log = /tmp\n", 1, "%s:6: access-log: cannot log to /tmp: Is a directory (EISDIR)"),
            (good + "admin = 0.0.0.0:9180\n", 1, "%s:6: admin: not listening at 0.0.0.0:9180, as whoever reaches"),
            (good + "admin = 127.0.0.1:8080\n", 2, "%s:6: admin: 127.0.0.1:8080 is taken by listen 127.0.0.1:8080\n"),
            (good + "listen-tls = :8080\ntls-dev = yes\n", 2, "%s:6: listen-tls: :8080 is taken by listen 127.0.0.1:8080\n"),
            (good + "tls = yes\ncertificate = /nowhere.pem\n  /nowhere/else.pem\n", 1,
             "%s:7: certificate: cannot read the certificate /nowhere.pem: No such file or directory (ENOENT)\n"),
            (good + "tls = yes\ncertificate = ,key.pem\n", 1,
             "%s:7: certificate: \",key.pem\": write FILE, or FILE,KEYFILE\n"),
            (good + "tls-dev = yes\n\ntls-ciphers = NONE\n", 1, "%s:8: tls-ciphers: of the suites \"NONE\" OpenSSL knows none"),
            (good + "tls-dev = yes\ntls-groups = NONE\n", 1, "%s:7: tls-groups: in the groups \"NONE\" is one"),
            (good + "header = X: y\n  Z\n  A: b\n", 2, "%s:7: header: \"Z\": it is Name: value"),
            (good + "[host a] b\n", 2, "%s:6: behind [host a] only a comment may stand"),
            (good.replace("root = .\n", ""), 2, "%s: root: "),
            (good.replace("root = .", "root = /nowhere"), 1,
             "%s:3: root: cannot serve /nowhere: No such file or directory (ENOENT)\n"),
            (good + "what\n", 2, "%s:6: this is not understood; write KEY = VALUE")):
        code, said, path = check(text)
        equal(code, status, said)
        said = "\n".join(line for line in said.split("\n") if not line.startswith("sluice serve: "))  # of --tls-dev
        words = words % path if "%" in words else words
        assert said.startswith(words), (said, words)
    code, said, _ = check("")
    equal(code, 2, said)
    code, said, path = check(good, "--user", "nosuchuser")
    equal((code, said), (1, "sluice serve: --user: there is no user \"nosuchuser\" here\n"))
    code, said, path = check("[host [::1] localhost]\nroot = .\n")
    equal((code, said), (0, "configuration %s is fine: 1 site\n" % path))


@case("what is given on the command line counts more than the file, and the file more than the defaults")
def precedence():
    directory = new_root()
    write(directory, "file", "name", data=b"file")
    write(directory, "line", "name", data=b"line")
    path = write(directory, "c", data=("root = %s/file\nworkers = 2\naccess-log = %s/log\nlisten = %s:0\n" %
                                       (directory, directory, LOCAL)).encode())

    def named(*arguments):
        with Server(directory + "/line", "--config", path, *arguments) as server:
            client = Client(server)
            return client.get("/name").body, len(server.worker_pids())
    equal(named(), (b"line", 1))  # the harness says --workers, too
    assert lines(directory + "/log") != []
    done = subprocess.run([SLUICE, "serve", directory, "--root", directory, "--check-config"], capture_output=True,
                          text=True, timeout=10)
    equal(done.returncode, 2)
    assert "two directories" in done.stderr, done.stderr


# ---- Reloading ----

class Load:
    """Clients that go on asking, each on a connection that it keeps as long as it may, and count what goes wrong."""

    def __init__(self, server, clients=6):
        self.server, self.stop = server, False
        self.asked, self.answered, self.connections, self.failures = 0, 0, 0, []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.ask, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def ask(self, number):
        connection = None
        while not self.stop:
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(*self.server.address, timeout=20 * PATIENCE)
                    self.connections += 1
                with self.lock:
                    self.asked += 1
                connection.request("GET", "/small")
                response = connection.getresponse()
                same_bytes(response.read(), SMALL)
                equal(response.status, 200)
                with self.lock:
                    self.answered += 1
                # Half of the clients keep their connection until they are told that it ends.
                if response.will_close or number % 2:
                    connection.close()
                    connection = None
            except Exception as error:
                self.failures.append("%s: %r" % (time.strftime("%T"), error))
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def go_on(self, count):
        before = self.answered
        until(lambda: self.answered >= before + count or self.failures, 20, "%d more answers" % count)

    def end(self):
        self.stop = True
        for thread in self.threads:
            thread.join()


for kind in ("epoll", "io_uring"):
    @case("8 workers reloading under load, six times, the log renamed each time: no request fails, every request has its "
          "line, and a renamed log stays as it is (--loop %s)", kind, limit=60)
    def under_load(kind):
        with Configured(kind, workers=8) as server:
            load, logs, sizes = Load(server), [], []
            try:
                for _ in range(6):
                    load.go_on(150)
                    logs.append(server.rename_log())
                    server.reload()
                    sizes.append(os.path.getsize(logs[-1]))
                load.go_on(100)
            finally:
                load.end()
            equal(load.failures, [])
            equal([os.path.getsize(name) for name in logs], sizes, "sizes of the renamed logs")
            server.stop()
            equal(len(lines(server.log, *logs)), load.asked, "lines of the logs")
            equal(load.answered, load.asked)
            note("%d requests, %d connections" % (load.asked, load.connections))


@case("a connection that was kept open is answered once more after a reload, and told that this is the end")
def kept_open():
    with Configured(workers=2) as server:
        clients = [Client(server) for _ in range(4)]
        for client in clients:
            equal(client.get("/small")["Connection"], None)
        first = server.worker_pids()
        server.reload()
        time.sleep(0.3)  # time to close what is idle, if that were done
        for client in clients:
            response = client.get("/small")
            same_bytes(response.body, SMALL)
            equal(response["Connection"], "close")
        until(lambda: not set(first) & set(server.worker_pids()), 5, "the end of the old workers")


@case("a download from before a reload is finished by its old worker, and its line is in the new log")
def long_download():
    with Configured(workers=1) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(20 * PATIENCE)
        client.connect(server.address)
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = client.recv(1000)
        first = server.worker_pids()
        old = server.rename_log()
        server.reload()
        assert set(first) <= set(server.worker_pids()), "the old worker"
        while True:
            block = client.recv(1 << 20)
            if block == b"":
                break
            got += block
        same_bytes(got.partition(b"\r\n\r\n")[2], LARGE)
        until(lambda: len(lines(server.log)) == 1, 5, "the line")
        equal(lines(old), [])
        until(lambda: not set(first) & set(server.worker_pids()), 5, "the end of the old worker")


@case("a file that is wrong changes nothing, says where, and the log is opened anew all the same")
def wrong_file():
    with Configured(workers=2) as server:
        first = server.worker_pids()
        for more in ("indxe = x\n", "congestion = warp\n"):
            server.write(more)
            old = server.rename_log()
            before = server.errors()
            server.signal(signal.SIGHUP)
            until(lambda: "not reloaded, all goes on as before" in server.errors()[len(before):], 5, "a word")
            assert "before: sluice serve: " not in server.errors(), server.errors()  # who says so was said
            until(lambda: os.path.exists(server.log), 5, "the new log")
            time.sleep(0.05)
            equal(Client(server).get("/small").status, 200)
            until(lambda: len(lines(server.log)) == 1, 5, "the line in the new log")
            equal(lines(old), [])
            os.remove(server.log)
            open(server.log, "w", encoding="ascii").close()
            os.remove(old)
        equal(server.worker_pids(), first)
        assert server.path + ":6: unknown key \"indxe\"" in server.errors(), server.errors()


@case("a reload follows the file: another directory, another address, more workers, another form of log")
def follows():
    with Configured(workers=1) as server:
        first = server.address
        write(server.directory, "other", "small", data=b"other")
        server.write(root=server.directory + "/other", listen="127.0.0.2:0", workers=2, access_log_format="json")
        server.keys["access-log-format"] = "json"
        server.rename_log()
        server.reload()
        server.address = ("127.0.0.2", server.port)
        same_bytes(Client(server).get("/small").body, b"other")
        equal(json.loads(until(lambda: lines(server.log), 5, "a line")[0])["status"], 200)

        def refused():
            try:
                socket.create_connection(first, timeout=5).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was in the queue of the socket that ended
                pass
            return False
        until(refused, 5, "the end of the old address")
        until(lambda: len(server.worker_pids()) == 2, 5, "two workers")


@case("a reload changes the congestion control of a socket that is kept, back to the host's, too")
def congestion():
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as setting:
        host = setting.read().strip()
    with open("/proc/sys/net/ipv4/tcp_allowed_congestion_control", encoding="ascii") as setting:
        others = [name for name in setting.read().split() if name != host]
    if not others:
        raise Skip("this kernel permits no congestion control but %s: modprobe tcp_bbr" % host)

    def listener():
        """The name that ss shows for the listening socket."""
        shown = subprocess.run(["ss", "-Hltni", "sport = :%d" % server.port], capture_output=True, text=True, check=True)
        return [name for name in (host, *others) if re.search(r"\b%s\b" % name, shown.stdout.split("\n\t")[-1])]
    with Configured(workers=1) as server:
        equal(listener(), [host])
        server.write("congestion = %s\n" % others[0])
        server.reload()
        equal(listener(), [others[0]])
        server.write()
        server.reload()
        equal(listener(), [host])


@case("a reload without admin-anywhere is refused while the admin listener is where everybody could reach it")
def admin_anywhere():
    with Configured(workers=1, admin="0.0.0.0:0", admin_anywhere="yes") as server:
        del server.keys["admin_anywhere"]
        server.write()
        server.signal(signal.SIGHUP)
        until(lambda: "not reloaded, all goes on as before" in server.errors(), 5, "a word")
        assert "admin: not listening at 0.0.0.0:0, as whoever reaches that address" in server.errors(), server.errors()


# ---- The log in JSON ----

@case("a line of the JSON log is an object with what the request was, and valid whatever bytes come")
def json_log():
    with Configured(workers=1, access_log_format="json") as server:
        with Client(server) as client:
            client.get("/small", "Referer: http://x/\"\\", "User-Agent: \u00e9")
        hostile = b"".join(bytes([byte]) for byte in range(1, 256) if byte not in b"\r\n ")
        with socket.create_connection(server.address, timeout=10) as client:
            client.sendall(b"GET /" + hostile + b" HTTP/1.1\r\nHost: x\r\nUser-Agent: " + hostile * 40 + b"\r\n\r\n")
            client.recv(1000)
        found = until(lambda: len(lines(server.log)) >= 2 and lines(server.log), 5, "two lines")
        first = json.loads(found[0])
        equal(sorted(first), ["bytes", "client", "host", "referer", "request", "status", "time", "user_agent"])
        equal((first["client"], first["request"], first["status"], first["bytes"], first["referer"]),
              (LOCAL, "GET /small HTTP/1.1", 200, len(SMALL), "http://x/\"\\"))
        equal((first["host"], first["user_agent"]), ("test", "\u00e9"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["time"]), first
        for line in found:
            json.loads(line)
            assert all(" " <= byte <= "~" for byte in line), line


if __name__ == "__main__":
    main()
