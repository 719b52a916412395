# SPDX-License-Identifier: MIT
"""The servers under test: how each is configured, started, found ready, and always stopped."""

import contextlib
import ctypes
import os
import platform
import random
import re
import resource
import shlex
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
    tcp_nopush on;
    tcp_nodelay on;
{settings}
    server {{ listen 127.0.0.1:{port}{listen} backlog=4096; root {root}; }}
}}
"""
NGINX_BEST = """\
    sendfile on;
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    reset_timedout_connection on;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 600s;
    open_file_cache_min_uses 1;
"""
# Tickets are on by themselves; with them OpenSSL needs no cache of sessions.
NGINX_TLS = """\
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    ssl_protocols TLSv1.3;
    ssl_session_timeout 1h;
"""
# What Debian's nginx.conf sets, beside the one worker that all have here.
NGINX_DEFAULT = """\
    sendfile on;
    access_log {dir}/access.log;
    gzip on;
"""
# What nginx does when its configuration says nothing.
NGINX_COPY = """\
    sendfile off;
    access_log off;
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
{listen}
hosts:
  default:
    paths:
      /:
        file.dir: {root}
        file.send-gzip: OFF
"""
# neverbleed, a process of its own for the key, is no part of what the others do, nor is fetching OCSP's word.
H2O_TLS = """\
  ssl:
    certificate-file: {certificate}
    key-file: {certificate}
    minimum-version: TLSv1.2
    neverbleed: OFF
    ocsp-update-interval: 0
"""
# As a TCP proxy. A connection here is two of nginx's.
NGINX_STREAM = """\
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {dir}/pid;
error_log {dir}/error.log crit;
load_module {modules}/ngx_stream_module.so;
events {{ worker_connections {descriptors}; use epoll; }}
stream {{
{settings}
    server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass {upstream}; }}
}}
"""
NGINX_STREAM_SETTINGS = {
    "nginx-stream": "",  # proxy_buffer_size 16k, tcp_nodelay on, no log
    "nginx-stream-large": "    proxy_buffer_size 256k;\n",
}
HAPROXY = """\
global
    maxconn {connections}
    nbthread 1
{pipes}
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
{splicing}
frontend in
    bind 127.0.0.1:{port}
    default_backend out
backend out
    server one {upstream}
"""
HAPROXY_PIPES = 900
HAPROXY_SPLICING = {
    "haproxy": {"pipes": "", "splicing": ""},
    "haproxy-auto": {"pipes": "", "splicing": "    option splice-auto\n"},
    "haproxy-splice": {"pipes": f"    tune.pipesize 1048576\n    maxpipes {HAPROXY_PIPES}\n",
                       "splicing": "    option splice-request\n    option splice-response\n"},
}


class StartError(Exception):
    pass


def free_port():
    """A port that nobody has, below those that connections get."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(lowest // 2, 1024), lowest)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


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

    def __init__(self, name, command, directory, core=None, environment=None, announces=True, port=None):
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "output.log"
        libc = ctypes.CDLL(None)

        def in_child():
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if core is not None:
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


def has_peer(peers, name):
    """Has bench/peers put it under this directory? name: as of peer_server."""
    versions = peers / "versions"
    needed = {name.partition("-")[0]} | ({"nginx-stream"} if name in NGINX_STREAM_SETTINGS else set())
    return versions.exists() and needed <= set(versions.read_text().split()[::2])


def peer_environment(peers):
    """What a program unpacked there needs to run."""
    root = peers / "root"
    return {
        "LD_LIBRARY_PATH": str(root / f"usr/lib/{platform.machine()}-linux-gnu"),
        "H2O_ROOT": str(root / "usr"),
    }


def descriptors():
    """How many a proxy may open here, or as many as any measurement needs: some allocate by this number."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 32768)


def proxied_connections(name):
    """How many connections this proxy can have: two descriptors each, and its pipes. HAProxy that is not told how many
    pipes reckons with one for every four connections; those of sluice are shared."""
    if "sluice" in name:
        return (descriptors() - 64 - 512) // 2
    pipes = {"haproxy-splice": HAPROXY_PIPES, "haproxy-auto": descriptors() // 10}.get(name, 0)
    return (descriptors() - 2 * pipes - 128) // 2


def peer_server(peers, name, directory, core=None, files=None, upstream=None, environment=None, certificate=None):
    """Start nginx, nginx-default, nginx-aio, nginx-copy, lighttpd, lighttpd-writev, h2o (they serve files), haproxy,
    haproxy-auto, haproxy-splice, nginx-stream or nginx-stream-large (they forward to upstream, "address:port").
    certificate, of nginx and h2o: over TLS, with what is in this file."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    root = peers / "root"
    values = {"dir": directory, "port": port, "root": files, "upstream": upstream, "certificate": certificate,
              "listen": ""}
    config = directory / "config"
    if name in NGINX_STREAM_SETTINGS:
        config.write_text(NGINX_STREAM.format(settings=NGINX_STREAM_SETTINGS[name], modules=root / "usr/lib/nginx/modules",
                                              descriptors=descriptors(), **values))
        command = [root / "usr/sbin/nginx", "-p", directory, "-c", config]
    elif name.startswith("nginx"):
        settings = {"nginx": NGINX_BEST, "nginx-aio": NGINX_BEST + "    aio threads;\n", "nginx-copy": NGINX_COPY,
                    "nginx-default": NGINX_DEFAULT.format(**values)}[name]
        if certificate:
            settings += NGINX_TLS.format(**values)
            values["listen"] = " ssl"
        config.write_text(NGINX.format(settings=settings, **values))
        command = [root / "usr/sbin/nginx", "-p", directory, "-c", config]
    elif name.startswith("lighttpd"):
        backend = "writev" if name.endswith("writev") else "sendfile"
        config.write_text(LIGHTTPD.format(backend=backend, stat="inotify", **values))
        command = [root / "usr/sbin/lighttpd", "-D", "-f", config, "-m", root / "usr/lib/lighttpd"]
    elif name.startswith("haproxy"):
        config.write_text(HAPROXY.format(connections=proxied_connections(name), **HAPROXY_SPLICING[name], **values))
        command = [root / "usr/sbin/haproxy", "-db", "-f", config]
    else:
        if certificate:
            values["listen"] = H2O_TLS.format(**values)
        config.write_text(H2O.format(**values))
        command = [root / "usr/bin/h2o", "-c", config]
    environment = {**peer_environment(peers), **(environment or {})}
    return Server(name, command, directory, core, environment, announces=False, port=port)


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
        return has_peer(self.peers, name)

    def start(self, name, congestion, body=None, head=None):
        """name: sluice, sluice-ROUTE, floor-MODE (needs body, and head to send the same bytes), or a server of
        peer_server that serves files."""
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
        return peer_server(self.peers, name, directory, self.core, files=self.files, environment={
            "LD_PRELOAD": str(self.tools / "bench-congestion.so"), "BENCH_CONGESTION": congestion})


class TlsLauncher(Launcher):
    """Starts servers of HTTPS by name: sluice, sluice-ROUTE, nginx or h2o."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.certificate = self.work / "certificate"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-days", "30", "-keyout", self.work / "key", "-out",
                        self.work / "chain"], check=True, capture_output=True)
        self.certificate.write_bytes((self.work / "chain").read_bytes() + (self.work / "key").read_bytes())

    def start(self, name, congestion, body=None, head=None):
        self.count += 1
        directory = self.work / f"{self.count}-{name}-{congestion}"
        if not name.startswith("sluice"):
            return peer_server(self.peers, name, directory, self.core, files=self.files, certificate=self.certificate,
                               environment={"LD_PRELOAD": str(self.tools / "bench-congestion.so"),
                                            "BENCH_CONGESTION": congestion})
        port = free_port()
        command = [self.sluice, "serve", self.files, "--listen", f"127.0.0.1:{port}", "--workers", "1", "--congestion",
                   congestion, "--tls", "--certificate", self.certificate]
        if name != "sluice":
            command += ["--route", name[len("sluice-"):]]
        return Server(name, command + self.sluice_arguments, directory, self.core, announces=False, port=port)


class ProxyLauncher(Launcher):
    """Starts proxies by name: sluice, sluice-WAY, a program with its arguments (anything with a slash), bare-WAY, or a
    proxy of peer_server."""

    SLUICE = {
        "sluice": [],
        "sluice-epoll": ["--loop", "epoll"],
        "sluice-copy": ["--route", "copy"],
        "sluice-splice": ["--route", "splice"],
    }

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.has_proxy = {}

    def can_proxy(self, program):
        """Does this build have `sluice proxy`?"""
        if program not in self.has_proxy:
            self.has_proxy[program] = Path(program).exists() and \
                subprocess.run([program, "proxy", "--help"], capture_output=True).returncode == 0
        return self.has_proxy[program]

    def sluice_command(self, name):
        """The program and what is added to its command line."""
        if "/" in name:
            program, *arguments = shlex.split(name)
            return Path(program), arguments
        return self.sluice, self.SLUICE[name] + self.sluice_arguments

    def can(self, name):
        if "/" in name or name in self.SLUICE:
            return self.can_proxy(self.sluice_command(name)[0])
        return name.startswith("bare-") or has_peer(self.peers, name)

    def start(self, name, congestion, upstream):
        """upstream: "address:port"."""
        self.count += 1
        directory = self.work / f"{self.count}-{name.replace('/', '_')}-{congestion}"
        if name.startswith("bare-"):
            return Server(name, [self.tools / "bench-relay", "--mode", name[5:], "--to", upstream, "--congestion",
                                 congestion], directory, self.core)
        if "/" in name or name in self.SLUICE:
            program, arguments = self.sluice_command(name)
            port = free_port()
            # A confined worker is held to what its user's pipes may hold in all (fs.pipe-user-pages-soft). Those of the
            # others, which run as root and are not, count against root: a user of its own, as a service has.
            own_user = ["setpriv", f"--reuid={61000 + self.count}", f"--regid={61000 + self.count}", "--clear-groups",
                        "--inh-caps=+net_admin", "--ambient-caps=+net_admin"] if os.geteuid() == 0 else []
            command = [*own_user, program, "proxy", "--listen", f"127.0.0.1:{port}", "--to", upstream, "--workers", "1",
                       "--congestion", congestion, *arguments]
            return Server(name, command, directory, self.core, announces=False, port=port)
        return peer_server(self.peers, name, directory, self.core, upstream=upstream, environment={
            "LD_PRELOAD": str(self.tools / "bench-congestion.so"), "BENCH_CONGESTION": congestion})
