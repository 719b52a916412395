# SPDX-License-Identifier: MIT
"""What the tests of sluice proxy share: the proxy as a process, both ends of connections through it, and a look at its
own sockets.

SLUICE_TEST_PROXY=haproxy runs the same cases against HAProxy, where it has what a case is about: a case that fails with
both is wrong.
"""

import array
import contextlib
import ctypes
import fcntl
import functools
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

from harness import LOCAL, OPTIONS, PATIENCE, SLUICE, Program, Skip, case, children, equal, new_root, same_bytes, together
from peers import PEERS, fetch, servers

HELPERS = pathlib.Path(SLUICE).parents[1] / "tests/integration"  # programs that the build made for these tests
CONTROL = os.environ.get("SLUICE_TEST_PROXY") == "haproxy"
MIB = 1 << 20
LOOPS = ("epoll", "io_uring")


def address_text(address):
    """As the command line has it."""
    if isinstance(address, str):
        return address if address.startswith("unix:") or ":" in address else "unix:" + address
    if isinstance(address, int):
        return "%s:%d" % (LOCAL, address)
    return ("[%s]:%d" if ":" in address[0] else "%s:%d") % address[:2]


def parse_address(text):
    """The address as the socket module has it: a tuple, or the path of a Unix socket."""
    if text.startswith("unix:"):
        return text[5:]
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def new_socket(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM)


def listening(address=(LOCAL, 0), backlog=1024, receive_buffer=None):
    """A server's socket."""
    server = new_socket(address)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if receive_buffer:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server.bind(address)
    server.listen(backlog)
    server.settimeout(10 * PATIENCE)
    return server


def connect(address, timeout=10, receive_buffer=None, send_buffer=None):
    client = new_socket(address)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if send_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    client.settimeout(timeout * PATIENCE)
    client.connect(address)
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


class Refusing:
    """An address where nobody listens, and nobody will meanwhile."""

    def __init__(self):
        self.holder = socket.socket()
        self.holder.bind((LOCAL, 0))
        self.address = self.holder.getsockname()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.holder.close()


class Silent:
    """An address that answers no SYN: a listener whose queue is full."""

    def __init__(self):
        self.listener = socket.socket()
        self.listener.bind((LOCAL, 0))
        self.listener.listen(0)
        self.address = self.listener.getsockname()
        self.fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.address)
            self.fillers.append(filler)
        time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in [self.listener, *self.fillers]:
            one.close()


def reset(one):
    """Close with RST."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def read_all(one, limit=1 << 18):
    """What comes until the end. Raises ConnectionResetError."""
    data = bytearray()
    while block := one.recv(limit):
        data += block
    return bytes(data)


def read_exactly(one, count):
    data = bytearray()
    while len(data) < count:
        block = one.recv(min(1 << 18, count - len(data)))
        if not block:
            raise AssertionError("the end after %d of %d bytes" % (len(data), count))
        data += block
    return bytes(data)


def how_it_ends(one, seconds=5):
    """Read until the end. Returns "end" or "reset", the bytes that came before, and the seconds it took."""
    one.settimeout(seconds * PATIENCE)
    data = bytearray()
    started = time.monotonic()
    try:
        while block := one.recv(1 << 18):
            data += block
        how = "end"
    except (ConnectionResetError, BrokenPipeError):
        how = "reset"
    except TimeoutError as error:
        raise AssertionError("no end within %g s; %d bytes came" % (seconds * PATIENCE, len(data))) from error
    return how, bytes(data), time.monotonic() - started


def turned_away(address, first=b"", most=2):
    """A new client that sends this gets nothing, and the connection's end, or a reset, within so many seconds: perhaps
    as soon as it has connected."""
    started = time.monotonic()
    try:
        with connect(address) as client:
            client.sendall(first)
            equal(how_it_ends(client, most)[1], b"", "what a client got that was to be turned away")
    except (ConnectionResetError, BrokenPipeError):
        pass
    took = time.monotonic() - started
    assert took <= most * PATIENCE, "turned away after %.2f s, not %g" % (took, most)


def send_in_background(one, data):
    """Returns the thread, whose .wrong is what went wrong, or None."""
    def run():
        try:
            one.sendall(data)
        except OSError as error:
            thread.wrong = error
    thread = threading.Thread(target=run, daemon=True)
    thread.wrong = None
    thread.start()
    return thread


def echoed(client, data):
    """Everything comes back."""
    sender = send_in_background(client, data)
    same_bytes(read_exactly(client, len(data)), data)
    sender.join()


def echoed_to_the_end(client, data):
    echoed(client, data)
    client.shutdown(socket.SHUT_WR)
    equal(read_all(client), b"")


def fill(one, most=1 << 30, quiet=0.3):
    """Send until nothing is taken for a while. Returns how many bytes were."""
    one.setblocking(False)
    block = memoryview(bytes(range(256)) * 256)
    sent = 0
    since = time.monotonic()
    while time.monotonic() - since < quiet and sent < most:
        try:
            sent += one.send(block[sent % len(block):])
            since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.005)
    one.settimeout(10 * PATIENCE)
    return sent


def filled(count):
    """What fill sent."""
    return (bytes(range(256)) * (count // 256 + 1))[:count]


# ---- Cases ----

def told(function, *arguments):
    """What goes wrong says with what."""
    try:
        function(*arguments)
    except Skip:
        raise
    except Exception as error:
        raise AssertionError("with %s: %s" % (", ".join(map(str, arguments)), error)) from error


def both_loops(name, limit=30):
    """A case that is run with either loop, at the same time."""
    def register(function):
        @case(name, limit=limit)
        def run():
            together([functools.partial(told, function, loop) for loop in LOOPS])
        return function
    return register


# ---- The proxy ----

class Proxy(Program):
    """sluice proxy, running. to: servers, as addresses or as text with options. Further keywords are its options."""

    environment = {}

    def __init__(self, *to, listen=((LOCAL, 0),), workers=1, env=None, wrap=(), nofile=None, cwd=None, arguments=(),
                 **options):
        self.workers = workers
        self.listen_count = len(listen)
        before = None
        if nofile:
            def before():
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
        super().__init__([*wrap, *self.command(to, listen, options), *arguments],
                         env={**self.environment, **(env or {})}, cwd=cwd, preexec_fn=before,
                         pass_fds=self.inherited())

    def command(self, to, listen, options):
        command = [SLUICE, "proxy", "--workers", str(self.workers)]
        for address in listen:
            command += ["--listen", address_text(address)]
        for address in to:
            command += ["--to", address_text(address)]
        return command + OPTIONS + arguments_of(options)

    def inherited(self):
        return ()

    def is_ready(self):
        # One line for each listener.
        found = re.findall(r"^sluice: proxying (\S+) to .*\n", self.output(), re.MULTILINE)
        if len(found) < self.listen_count:
            return False
        self.addresses = [parse_address(text) for text in found]
        self.address = self.addresses[0]
        return True

    def worker(self):
        """The only one's pid."""
        pids = self.worker_pids()
        equal(len(pids), 1, "workers")
        return pids[0]

    def connect(self, **more):
        return connect(self.address, **more)


def arguments_of(options):
    """connect_timeout="1s" is --connect-timeout 1s; True and False are for flags; lists are given several times."""
    arguments = []
    for name, value in options.items():
        name = name.replace("_", "-")
        if value is True:
            arguments.append("--" + name)
        elif value is False:
            arguments.append("--no-" + name)
        else:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                arguments += ["--" + name, str(one)]
    return arguments


class Control(Proxy):
    """HAProxy, told the same."""

    environment = servers.peer_environment(PEERS)

    def command(self, to, listen, options):
        fetch("haproxy")
        directory = new_root()
        self.sockets = []
        binds = []
        self.addresses = []
        accept = " accept-proxy" if options.pop("accept_proxy", False) else ""
        for address in listen:
            if isinstance(address, str):
                binds.append("bind unix@%s mode 666%s" % (address.removeprefix("unix:"), accept))
                self.addresses.append(address.removeprefix("unix:"))
                continue
            bound = new_socket(address)
            bound.bind(address)
            bound.listen(4096)
            self.sockets.append(bound)
            binds.append("bind fd@%d%s" % (bound.fileno(), accept))
            self.addresses.append(bound.getsockname()[:2])
        self.address = self.addresses[0]
        route = options.pop("route", "auto")
        options.pop("loop", None)
        options.pop("confine", None)
        idle = options.pop("idle_timeout", "600s")
        half = options.pop("half_close_timeout", "60s")
        version = options.pop("send_proxy", "none")
        keepalive = options.pop("keepalive", "60s")
        server_options = {"none": "", "v1": " send-proxy", "v2": " send-proxy-v2"}[version]
        check = options.pop("check", "none")
        default_server = ""
        if check != "none":
            server_options += " check"
            default_server = "default-server inter %s rise %s fall %s" % (
                options.pop("check_interval", "2s"), options.pop("rise", 2), options.pop("fall", 3))
        lines = ["global", "  nbthread 1", "  maxconn 4000"]
        if route == "splice":
            lines += ["  maxpipes 900", "  tune.pipesize 1048576"]
        lines += ["defaults", "  mode tcp", "  option redispatch 1",
                  "  timeout connect " + options.pop("connect_timeout", "5s"),
                  "  timeout client " + idle, "  timeout server " + idle,
                  "  timeout client-fin " + half, "  timeout server-fin " + half,
                  "  timeout queue " + options.pop("queue_timeout", "30s"),
                  "  timeout check " + options.pop("check_timeout", "2s"),
                  "  retries %s" % options.pop("retries", 2)]
        if keepalive != "0":
            seconds = int(keepalive.removesuffix("s"))
            lines += ["  option tcpka"] + ["  %s-tcpka-idle %ds" % (side, seconds) for side in ("clitcp", "srvtcp")]
            lines[-2:] = ["  clitcpka-idle %ds" % seconds, "  srvtcpka-idle %ds" % seconds]
        if route == "splice":
            lines += ["  option splice-request", "  option splice-response"]
        balance = {"round-robin": "roundrobin", "least-connections": "leastconn", "source": "source",
                   "consistent": "source\n  hash-type consistent"}[options.pop("balance", "round-robin")]
        lines += ["frontend in", *("  " + bind for bind in binds), "  default_backend out", "backend out",
                  "  balance " + balance]
        if check == "http":
            lines += ["  option httpchk GET " + options.pop("check_path", "/")]
        if default_server:
            lines += ["  " + default_server]
        for number, address in enumerate(to):
            address, *words = address_text(address).split(",")
            if any(word.startswith(("sni=", "alpn=")) for word in words):
                raise Skip("the control does not route by name")
            words = [word.replace("max=", "maxconn ").replace("=", " ") for word in words]
            lines.append("  server s%d %s %s%s" % (number, address.replace("unix:", "unix@"), " ".join(words),
                                                   server_options))
        if options:
            raise Skip("HAProxy is not told about " + ", ".join(options))
        config = os.path.join(directory, "haproxy.cfg")
        with open(config, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
        return [str(PEERS / "root/usr/sbin/haproxy"), "-db", "-W", "-f", config]

    def inherited(self):
        return [one.fileno() for one in self.sockets]

    def is_ready(self):
        # Sockets with a port are ours, and listen already.
        return children(self.pid) and all(os.path.exists(name) for name in self.addresses if isinstance(name, str))

    def check_end(self, code=0):
        self.code = code  # HAProxy ends with 143
        super().check_end(code)

    def stop(self, code=0):
        if self.code is None:
            self.kill()


if CONTROL:
    Proxy = Control


def needs_sluice():
    if CONTROL:
        raise Skip("nothing to compare with")


# ---- What the proxy has open ----

_libc = ctypes.CDLL(None, use_errno=True)
SYS_PIDFD_GETFD = 438  # on every architecture


def descriptors(pid):
    """What each descriptor of a process is: {number: "socket:[123]"}."""
    found = {}
    for name in os.listdir("/proc/%d/fd" % pid):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink("/proc/%d/fd/%s" % (pid, name))
    return found


def count_open(pid, kind="socket:"):
    return sum(name.startswith(kind) for name in descriptors(pid).values())


def own_sockets(pid):
    """The process's TCP sockets that are connected, as duplicates in this process."""
    pidfd = os.pidfd_open(pid)
    found = []
    try:
        for number, name in descriptors(pid).items():
            if not name.startswith("socket:"):
                continue
            fd = _libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
            if fd < 0:
                error = ctypes.get_errno()
                if error == 1:
                    raise Skip("may not look at the proxy's sockets: run as root, or set kernel.yama.ptrace_scope=0")
                continue
            one = socket.socket(fileno=fd)
            try:
                if one.family not in (socket.AF_INET, socket.AF_INET6):
                    raise OSError
                one.getpeername()
                found.append(one)
            except OSError:
                one.close()
    finally:
        os.close(pidfd)
    return found


def queued(one):
    """Bytes in a socket's queues: received and not read, sent and not acknowledged."""
    counts = []
    for request in (termios.FIONREAD, termios.TIOCOUTQ):
        value = array.array("i", [0])
        fcntl.ioctl(one.fileno(), request, value)
        counts.append(value[0])
    return counts


def private_memory(pid):
    with open("/proc/%d/smaps_rollup" % pid, encoding="ascii") as file:
        return int(re.search(r"Private_Dirty:\s*(\d+)", file.read())[1]) * 1024


# ---- Servers ----

class Backend:
    """A server: each connection gets a thread that runs handler(socket). Counts them."""

    def __init__(self, handler, address=(LOCAL, 0)):
        self.handler = handler
        self.listener = listening(address)
        self.listener.settimeout(None)
        self.address = self.listener.getsockname()
        if isinstance(self.address, tuple):
            self.address = self.address[:2]
        self.accepted = 0
        self.connections = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            self.connections.append(one)
            threading.Thread(target=self._handle, args=(one,), daemon=True).start()

    def _handle(self, one):
        with contextlib.suppress(OSError):
            self.handler(one)
        one.close()

    def close(self):
        """No connection is taken any more; those there are stay."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        for one in self.connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def echo(one):
    while data := one.recv(1 << 16):
        one.sendall(data)


def named(name):
    """A server that says its name to everybody, then answers what it gets."""
    def handler(one):
        one.sendall(name.encode() + b"\n")
        echo(one)
    return handler


def ask_name(proxy, keep=False):
    """The name of the server that a new connection gets. With keep also the connection."""
    client = connect(proxy.address if isinstance(proxy, Proxy) else proxy)
    data = b""
    while not data.endswith(b"\n"):
        block = client.recv(100)
        if not block:
            raise ConnectionResetError("the end, without a name")
        data += block
    name = data.decode().strip()
    if keep:
        return name, client
    client.close()
    return name


# ---- Hosts ----

_CLONE_NEWNET = 0x40000000


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """A hub, where the proxy is, and hosts around it, each in a network namespace of its own: host N is 10.77.N.2, and
    reaches the hub as 10.77.N.1."""

    def __init__(self, count, name="net"):
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise Skip("needs root, for network namespaces, and ip: apt-get install iproute2")
        self.hub = "sluice-%d-%s-hub" % (os.getpid(), name)
        self.hosts = ["sluice-%d-%s-%d" % (os.getpid(), name, number) for number in range(1, count + 1)]
        self.made = []

    def __enter__(self):
        try:
            for name in [self.hub, *self.hosts]:
                try:
                    ip("netns", "add", name)
                except subprocess.CalledProcessError as error:
                    raise Skip("needs to make network namespaces: " + error.stderr.strip()) from error
                self.made.append(name)
                ip("-n", name, "link", "set", "lo", "up")
            for number, name in enumerate(self.hosts, 1):
                ip("-n", self.hub, "link", "add", "to%d" % number, "type", "veth", "peer", "name", "eth0",
                   "netns", name)
                ip("-n", self.hub, "addr", "add", "10.77.%d.1/24" % number, "dev", "to%d" % number)
                ip("-n", self.hub, "link", "set", "to%d" % number, "up")
                ip("-n", name, "addr", "add", "10.77.%d.2/24" % number, "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "route", "add", "default", "via", "10.77.%d.1" % number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def cut(self, number):
        """Host number hears nothing any more, nor is heard. The hub keeps its route there."""
        ip("-n", self.hosts[number - 1], "link", "set", "eth0", "down")

    def mend(self, number):
        ip("-n", self.hosts[number - 1], "link", "set", "eth0", "up")
        ip("-n", self.hosts[number - 1], "route", "add", "default", "via", "10.77.%d.1" % number)

    def set(self, name, value, where=None):
        """A setting below /proc/sys/net/ipv4, in one of the namespaces, or the hub's."""
        with self.at(where or self.hub), open("/proc/sys/net/ipv4/" + name, "w", encoding="ascii") as file:
            file.write(str(value))

    @contextlib.contextmanager
    def at(self, name):
        """This thread is there: sockets that it makes belong to that host. name: hub, or a host's number."""
        name = self.hosts[name - 1] if isinstance(name, int) else name
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        away = os.open("/run/netns/" + name, os.O_RDONLY)
        try:
            if _libc.setns(away, _CLONE_NEWNET) < 0:
                raise OSError(ctypes.get_errno(), "setns to " + name)
            try:
                yield
            finally:
                _libc.setns(home, _CLONE_NEWNET)
        finally:
            os.close(home)
            os.close(away)

    def connect(self, number, port, **more):
        """From host number to the hub."""
        with self.at(number):
            return connect(("10.77.%d.1" % number, port), **more)

    def backend(self, number, handler, port=0):
        """A server on host number."""
        with self.at(number):
            return Backend(handler, ("10.77.%d.2" % number, port))


def terminate(process):
    """A helper program of a test: ended by its own pid."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
