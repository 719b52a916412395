# SPDX-License-Identifier: MIT
"""The servers under test: how each is configured, started, found ready, and always stopped."""

import ctypes
import os
import platform
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

NGINX = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {dir}/pid;
error_log {dir}/error.log crit;
events {{ worker_connections 16384; use epoll; }}
http {{
    types {{ text/html html; }}
    default_type application/octet-stream;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
{settings}
    server {{ listen 127.0.0.1:{port} backlog=4096; root {root}; }}
}}
"""
NGINX_BEST = """\
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    reset_timedout_connection on;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 600s;
    open_file_cache_min_uses 1;
"""
# What Debian's nginx.conf sets, beside the one worker that all have here.
NGINX_DEFAULT = """\
    access_log {dir}/access.log;
    gzip on;
"""
LIGHTTPD = """\
server.document-root = "{root}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{dir}/error.log"
server.event-handler = "linux-sysepoll"
server.network-backend = "{backend}"
server.stat-cache-engine = "{stat}"
server.max-fds = 20000
server.max-connections = 16384
server.listen-backlog = 4096
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 600
server.max-read-idle = 600
server.max-write-idle = 600
mimetype.assign = ( "" => "application/octet-stream" )
"""
H2O = """\
num-threads: 1
num-name-resolution-threads: 1
max-connections: 16384
http1-request-timeout: 600
tcp-fastopen: 0
user: root
pid-file: {dir}/pid
error-log: {dir}/error.log
listen:
  host: 127.0.0.1
  port: {port}
hosts:
  default:
    paths:
      /:
        file.dir: {root}
        file.send-gzip: OFF
"""


class StartError(Exception):
    pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def descendants(pid):
    """The process and everything below it, as the kernel sees it now."""
    found = [pid]
    for p in found:
        for task in Path(f"/proc/{p}/task").glob("*"):
            try:
                found += [int(c) for c in (task / "children").read_text().split()]
            except OSError:
                pass
    return found


class Server:
    """One running server. Use as a context manager or call stop(); it also dies with the runner."""

    def __init__(self, name, command, directory, core, environment=None, announces=True, port=None):
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "output.log"
        libc = ctypes.CDLL(None)

        def in_child():
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.sched_setaffinity(0, {core})

        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=in_child, env={**os.environ, **(environment or {})})
        try:
            self.port = self._await_announcement() if announces else self._await_connection(port)
        except BaseException:
            self.stop()
            raise
        self.target = f"127.0.0.1:{self.port}"

    def _fail(self, what):
        text = self.log.read_text(errors="replace").strip()
        raise StartError(f"{self.name} {what}: {text[-600:] or 'it printed nothing'}")

    def _await_announcement(self):
        for _ in range(500):
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.log.read_text(errors="replace"))
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                self._fail(f"ended with status {self.process.returncode}")
            time.sleep(0.02)
        self._fail("did not say its address within 10 s")

    def _await_connection(self, port):
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return port
            except OSError:
                pass
            if self.process.poll() is not None:
                self._fail(f"ended with status {self.process.returncode}")
            time.sleep(0.02)
        self._fail("did not accept a connection within 10 s")

    def pids(self):
        return descendants(self.process.pid)

    def stop(self):
        # The group is this server's own (start_new_session), so its workers are stopped with it.
        for sig, patience in ((signal.SIGTERM, 1.5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, sig)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that outlived their master
        except ProcessLookupError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Launcher:
    """Starts servers by name. Knows every setting that the comparison rests on."""

    PEERS = ("nginx", "lighttpd", "h2o")

    def __init__(self, tools, peers, files, work, sluice, sluice_arguments, core):
        self.tools, self.peers, self.files, self.work = tools, peers, files, work
        self.sluice, self.sluice_arguments, self.core = sluice, sluice_arguments, core
        self.count = 0

    def versions(self):
        found = {}
        path = self.peers / "versions"
        if path.exists():
            found = dict(line.split() for line in path.read_text().splitlines())
        if self.sluice.exists():
            out = subprocess.run([self.sluice, "--version"], capture_output=True, text=True)
            found["sluice"] = (out.stdout or out.stderr).strip().splitlines()[0] if out.stdout or out.stderr else "?"
        return found

    def can(self, name):
        if name.startswith("sluice"):
            return self.sluice.exists()
        if name.startswith("floor"):
            return True
        return (self.peers / "versions").exists()

    def start(self, name, congestion, body=None, head=None):
        """name: sluice, sluice-ROUTE, floor-MODE (needs body, and head to send the same bytes), nginx, nginx-default,
        nginx-aio, lighttpd, lighttpd-writev, h2o."""
        self.count += 1
        directory = self.work / f"{self.count}-{name}-{congestion}"
        directory.mkdir(parents=True, exist_ok=True)
        if name.startswith("floor-"):
            command = [self.tools / "bench-floor", "--file", self.files / body, "--mode", name[6:],
                       "--congestion", congestion]
            if head:
                (directory / "head").write_bytes(head)
                command += ["--head", directory / "head"]
            return Server(name, command, directory, self.core)
        if name.startswith("sluice"):
            command = [self.sluice, "serve", self.files, "--listen", "127.0.0.1:0", "--workers", "1",
                       "--congestion", congestion]
            if name != "sluice":
                command += ["--route", name[len("sluice-"):]]
            return Server(name, command + self.sluice_arguments, directory, self.core)
        return self._start_peer(name, congestion, directory)

    def _start_peer(self, name, congestion, directory):
        port = free_port()
        root = self.peers / "root"
        values = {"dir": directory, "port": port, "root": self.files}
        config = directory / "config"
        if name.startswith("nginx"):
            settings = {"nginx": NGINX_BEST, "nginx-aio": NGINX_BEST + "    aio threads;\n",
                        "nginx-default": NGINX_DEFAULT.format(**values)}[name]
            config.write_text(NGINX.format(settings=settings, **values))
            command = [root / "usr/sbin/nginx", "-p", directory, "-c", config]
        elif name.startswith("lighttpd"):
            backend = "writev" if name.endswith("writev") else "sendfile"
            config.write_text(LIGHTTPD.format(backend=backend, stat="inotify", **values))
            command = [root / "usr/sbin/lighttpd", "-D", "-f", config, "-m", root / "usr/lib/lighttpd"]
        else:
            config.write_text(H2O.format(**values))
            command = [root / "usr/bin/h2o", "-c", config]
        environment = {
            "LD_LIBRARY_PATH": str(root / f"usr/lib/{platform.machine()}-linux-gnu"),
            "LD_PRELOAD": str(self.tools / "bench-congestion.so"),
            "BENCH_CONGESTION": congestion,
            "H2O_ROOT": str(root / "usr"),
        }
        return Server(name, command, directory, self.core, environment, announces=False, port=port)
