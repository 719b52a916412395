# SPDX-License-Identifier: MIT
"""What the integration tests share: cases printed as TAP, the server as a process, and a client that hides nothing.

    python3 test_bytes.py PATH/TO/sluice [WORD]     runs the cases whose names contain WORD

The server listens on a port that the kernel chooses and is ended by its own pid. Server.stop() holds every server to
the same end: exit code 0, no process left, nothing from a sanitizer on standard error.
"""

import atexit
import contextlib
import functools
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback

if len(sys.argv) < 2:
    sys.exit("usage: %s PATH/TO/sluice [WORD]" % sys.argv[0])
SLUICE = os.path.abspath(sys.argv[1])
with open(SLUICE, "rb") as _program:
    _text = _program.read()
SANITIZED = b"__asan_init" in _text or b"__tsan_init" in _text
# The machine has other work (make check builds and tests at the same time), and a sanitized program is slower: limits of
# time allow for both.
PATIENCE = 5 if SANITIZED else 3
TLS = bool(os.environ.get("SLUICE_TEST_TLS"))  # every server has TLS at its address, and every Client speaks it
REPORT = re.compile(r"(?:ERROR|WARNING|FATAL): (?:Address|Leak|Thread)Sanitizer|: runtime error: ")
LOCAL = "127.0.0.1"


# ---- Cases ----

class Skip(Exception):
    """Why a case cannot run here, and what would make it run."""


_cases = []


def case(name, *arguments, limit=30, sanitized=True, tls=True):
    """Decorate a function as a case. name may have %s, filled in by arguments, which the function gets. sanitized: also
    where the program is built with a sanitizer; else the case is left out there. tls: the same where servers have TLS
    (SLUICE_TEST_TLS)."""
    assert "#" not in name, "TAP would take what follows for a directive"

    def register(function):
        if (SANITIZED and not sanitized) or (TLS and not tls):
            return function
        _cases.append((name % arguments if arguments else name, functools.partial(function, *arguments), limit))
        return function
    return register


class TooLong(BaseException):
    pass


def _too_long(*_):
    raise TooLong


def main():
    words = sys.argv[2:]
    cases = [item for item in _cases if all(word in item[0] for word in words)]
    failed = 0
    print("TAP version 13\n1..%d" % len(cases), flush=True)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # meson, when time is up
    for number, (name, function, limit) in enumerate(cases, 1):
        started = time.monotonic()
        outcome = "ok"
        wrong = None
        try:
            signal.alarm(limit * PATIENCE)
            try:
                function()
            finally:
                signal.alarm(0)
        except Skip as reason:
            name += " # SKIP %s" % reason
        except TooLong:
            outcome, wrong = "not ok", "not done after %d s\n%s" % (limit * PATIENCE, traceback.format_exc())
        except Exception:
            outcome, wrong = "not ok", traceback.format_exc()
        print("%s %d - %s" % (outcome, number, name))
        if wrong:
            failed += 1
            print("".join("# %s\n" % line[:600] for line in wrong.splitlines()), end="")
        elapsed = time.monotonic() - started
        if elapsed > 2:
            print("# %.1f s" % elapsed)
        sys.stdout.flush()
    sys.exit(1 if failed else 0)


@atexit.register
def _clean_up():
    """Also after an interruption, or when only some cases were run."""
    for server in _servers:
        if in_session(server.pid):
            server.kill()
    for root in _roots:
        shutil.rmtree(root, ignore_errors=True)


def note(text):
    print("# " + text, flush=True)


def equal(got, expected, what="value"):
    if got != expected:
        raise AssertionError("%s: got %s, expected %s" % (what, _short(got), _short(expected)))


def _short(value):
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "... (%d characters)" % len(text)


def same_bytes(got, expected, what="body"):
    if got == expected:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
    raise AssertionError("%s: %d bytes, expected %d; they differ first at byte %d: got %r, expected %r" % (
        what, len(got), len(expected), at, bytes(got[at:at + 16]), expected[at:at + 16]))


def until(condition, seconds, what):
    """Wait until condition() is true. Returns its value."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("%s: not within %g s" % (what, seconds * PATIENCE))
        time.sleep(0.005)


def together(functions):
    """Call each in a thread of its own. Raises what the first of them that failed raised."""
    wrong = []

    def run(function):
        try:
            function()
        except Exception as error:
            wrong.append(error)
    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


# ---- Files ----

_roots = []


def new_root(where=None):
    """An empty directory that is removed at the end. On a disk unless where says otherwise; everybody may enter."""
    root = os.path.realpath(tempfile.mkdtemp(prefix="sluice-", dir=where))
    os.chmod(root, 0o755)
    _roots.append(root)
    return root


@functools.lru_cache(maxsize=64)
def content(size, seed=0):
    """Bytes of which none is zero, so that a zero tells of a page that was not there."""
    return random.Random(size * 1000 + seed).randbytes(size).replace(b"\0", b"\1")


def write(*path, data=b""):
    name = os.path.join(*path)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as file:
        file.write(data)
    return name


def digest(data):
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def mounted(kind, *options):
    """A file system of this kind in a file, made with these options. Yields where it is."""
    if os.geteuid() != 0:
        raise Skip("needs root for mounting")
    if not shutil.which("mkfs." + kind):
        raise Skip("needs mkfs.%s: apt-get install %s" % (kind, {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}[kind]))
    top = new_root()
    image, point = os.path.join(top, "image"), os.path.join(top, "mounted")
    os.mkdir(point)
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs." + kind, "-q", *options, image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, point], capture_output=True, text=True)
    if done.returncode != 0:
        raise Skip("cannot mount %s: %s" % (kind, done.stderr.strip()))
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


# ---- Processes ----

def _stat(pid):
    with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()  # [0] state, [1] parent, [3] session


def _processes():
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield int(name), _stat(int(name))


def children(pid):
    return sorted(other for other, stat in _processes() if int(stat[1]) == pid and stat[0] != "Z")


def in_session(session):
    return [other for other, stat in _processes() if int(stat[3]) == session and stat[0] != "Z"]


def raise_descriptor_limit(count):
    """Let this process, and servers started from now on, have count descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, PermissionError) as error:
        raise Skip("needs %d descriptors and may have %d: raise the hard limit (ulimit -Hn)" % (count, hard)) from error


_servers = []


OPTIONS = os.environ.get("SLUICE_TEST_OPTIONS", "").split()  # for every server, as "--loop io_uring"


class Program:
    """A command that goes on until it is told to end, in a session of its own. Use it in a with statement: leaving it
    without an exception checks its end."""

    def __init__(self, command, env=None, cwd=None, ready=10, **more):
        """ready: seconds that it may take until is_ready. more: of subprocess.Popen."""
        self.out = tempfile.TemporaryFile()
        self.err = tempfile.TemporaryFile()
        environment = dict(os.environ, **(env or {}))
        environment.setdefault("ASAN_OPTIONS", "halt_on_error=1:exitcode=99:detect_stack_use_after_return=1")
        environment.setdefault("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1:exitcode=99")
        environment.setdefault("TSAN_OPTIONS", "halt_on_error=1:exitcode=99")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err,
                                        env=environment, cwd=cwd, start_new_session=True, **more)
        self.code = None
        _servers.append(self)

        def prepared():
            if self.process.poll() is not None:
                raise AssertionError("the server ended with code %d: %s" % (self.process.returncode, self.errors()))
            return self.is_ready()
        try:
            until(prepared, ready, "the server's readiness")
        except BaseException:
            self.kill()
            raise

    def is_ready(self):
        """Of each kind of program."""
        raise NotImplementedError

    def _read(self, file):
        text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        return text.decode("utf-8", "surrogateescape")

    def output(self):
        return self._read(self.out)

    def errors(self):
        return self._read(self.err)

    def complaints(self):
        """Standard error, but for what this kernel cannot confine, which is told at each start."""
        return re.sub(r"^sluice \w+: workers: (?:Landlock|seccomp): .*\n", "", self.errors(), flags=re.MULTILINE)

    @property
    def pid(self):
        return self.process.pid

    def worker_pids(self):
        return children(self.pid)

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=10):
        self.code = self.process.wait(seconds * PATIENCE)
        return self.code

    def kill(self):
        """After a failure: nothing of it may stay."""
        for pid in in_session(self.pid) + ([self.pid] if self.process.poll() is None else []):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        until(lambda: not in_session(self.pid), 5, "the killed server's end")

    def check_end(self, code=0):
        equal(self.code, code, "the server's exit code (standard error: %s)" % self.errors()[-3000:])
        left = in_session(self.pid)
        equal(left, [], "processes left behind")
        report = REPORT.search(self.errors())
        if report:
            raise AssertionError("a sanitizer reported:\n" + self.errors()[max(0, report.start() - 500):][:8000])

    def stop(self, code=0):
        if self.code is None:
            self.signal(signal.SIGTERM)
            self.wait()
        self.check_end(code)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None and self.code is None:
            try:
                self.stop()
                return
            except BaseException:
                self.kill()
                raise
        if self.process.poll() is None or in_session(self.pid):
            self.kill()
        if kind is not None and issubclass(kind, (AssertionError, OSError)) and self.errors():
            note("standard error of the server: " + self.errors()[-2000:].replace("\n", "\n#   "))


@functools.lru_cache(maxsize=None)
def own_certificate():
    """For SLUICE_TEST_TLS: what a server is told to have one."""
    path = os.path.join(new_root(), "certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-days", "30", "-keyout", path + ".key", "-out", path], check=True,
                   capture_output=True)
    return ["--tls", "--certificate", path + "," + path + ".key"]


@functools.lru_cache(maxsize=None)
def trusting_context():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Server(Program):
    """sluice serve, running."""

    def __init__(self, root, *options, workers=1, env=None, wrap=(), listen=LOCAL + ":0", cwd=None):
        self.root = root
        self.workers = workers
        super().__init__([*wrap, SLUICE, "serve", root, "--listen", listen, "--workers", str(workers), *OPTIONS,
                          *(own_certificate() if TLS else ()), *options], env=env, cwd=cwd)

    def is_ready(self):
        match = re.search(r"https?://\S+:(\d+)/", self.output())
        if match:
            self.port = int(match[1])
            self.address = (LOCAL, self.port)
            self.url = "http://%s:%d" % self.address
        return match


def shared_server(root, *options, name="the server of these cases", **more):
    """One server for many cases: returns a function that starts it or returns it. Call closing_case at the end of the
    file, so that its end is checked."""
    state = []

    def get():
        if not state:
            state.append(Server(root, *options, **more))
        return state[0]

    def close():
        server = get()
        try:
            server.stop()
        except BaseException:
            server.kill()
            raise
    get.closing_case = lambda: _cases.append(
        ("%s ends with code 0, no process left and no complaint" % name, close, 30))
    return get


# ---- Client ----

class Response:
    def __init__(self, head, status, reason, version, fields):
        self.head, self.status, self.reason, self.version, self.fields = head, status, reason, version, fields
        self.body = b""
        self.complete = False  # as long as its Content-Length says

    def __getitem__(self, name):
        return self.fields.get(name.lower())

    def __repr__(self):
        return "<%d %s %r, %d bytes%s>" % (self.status, self.reason, self.fields, len(self.body),
                                          "" if self.complete else ", incomplete")


RECORD = 22 if TLS else 0  # what TLS 1.3 makes more of a short response


def parts_of(response, content_type="application/octet-stream"):
    """[(Content-Range, bytes)] of a multipart/byteranges body, read as RFC 2046 has it, and strictly; all parts are of
    this type."""
    match = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-f]{24})", response["Content-Type"])
    assert match, response
    equal(response["Content-Range"], None)
    equal(response.complete, True)
    boundary = b"--" + match[1].encode()
    body = b"\r\n" + response.body
    assert body.endswith(b"\r\n" + boundary + b"--\r\n"), body[-100:]
    pieces = body.removesuffix(boundary + b"--\r\n").split(b"\r\n" + boundary + b"\r\n")
    equal(pieces[0], b"")
    pieces[-1] = pieces[-1].removesuffix(b"\r\n")
    parts = []
    for piece in pieces[1:]:
        head, data = piece.split(b"\r\n\r\n", 1)
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        equal(sorted(fields), ["Content-Range", "Content-Type"])
        equal(fields["Content-Type"], content_type)
        parts.append((fields["Content-Range"], data))
    return parts


# TLS that ends without saying so has been cut off, too.
RESET = (ConnectionResetError, ssl.SSLEOFError)


class Broken(Exception):
    """The connection ended, or was reset, before a whole head had come."""


class Client:
    """One connection. Sends what it is given, byte for byte, and judges what comes back strictly."""

    def __init__(self, server, timeout=10, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout * PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(server.address if isinstance(server, Server) else server)
        if TLS and isinstance(server, Server):  # whose handshake begins with the first use, as a request would
            self.socket = trusting_context().wrap_socket(self.socket, suppress_ragged_eofs=False,
                                                         do_handshake_on_connect=False)
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def shake_hands(self):
        if TLS:
            self.socket.do_handshake()

    def half_close(self):
        """Nothing more will come from here. With TLS, without a word of TLS about it."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def send(self, data):
        try:
            self.socket.sendall(data if isinstance(data, bytes) else data.encode("latin-1"))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise Broken("the server has closed") from error

    def ask(self, target, *fields, method="GET", version="1.1", host="test"):
        head = "%s %s HTTP/%s\r\n" % (method, target, version)
        if host is not None:
            head += "Host: %s\r\n" % host
        self.send(head + "".join(field + "\r\n" for field in fields) + "\r\n")

    def _more(self, limit=1 << 18):
        data = self.socket.recv(limit)
        self.buffer += data
        return len(data)

    def head(self):
        while b"\r\n\r\n" not in self.buffer:
            try:
                if self._more() == 0:
                    raise Broken("end of connection after %r" % bytes(self.buffer[:200]))
            except RESET as error:
                raise Broken("reset after %r" % bytes(self.buffer[:200])) from error
        end = self.buffer.index(b"\r\n\r\n") + 4
        head = bytes(self.buffer[:end])
        del self.buffer[:end]
        lines = head[:-4].split(b"\r\n")
        match = re.fullmatch(rb"HTTP/(1\.1) (\d{3}) ([A-Za-z -]*)", lines[0])
        assert match, "not a status line: %r" % lines[0]
        fields = {}
        for line in lines[1:]:
            match_field = re.fullmatch(rb"([A-Za-z-]+): ([^\r\n\0]*)", line)
            assert match_field, "not a field: %r" % line
            name = match_field[1].decode().lower()
            assert name not in fields, "field twice: %r" % line
            fields[name] = match_field[2].decode("latin-1")
        return Response(head, int(match[2]), match[3].decode(), match[1].decode(), fields)

    def response(self, method="GET"):
        """The next response, its body exactly as long as announced; complete tells whether it was."""
        response = self.head()
        if method == "HEAD" or response.status in (304,) or response.status < 200:
            response.complete = True
            return response
        length = int(response["Content-Length"])
        body = bytearray()
        view_taken = min(length, len(self.buffer))
        body += self.buffer[:view_taken]
        del self.buffer[:view_taken]
        try:
            while len(body) < length:
                data = self.socket.recv(min(1 << 20, length - len(body)))
                if not data:
                    break
                body += data
        except RESET:
            pass
        response.body = bytes(body)
        response.complete = len(body) == length
        return response

    def get(self, target, *fields, method="GET", **more):
        self.ask(target, *fields, method=method, **more)
        return self.response(method)

    def exchange(self, data, method="GET"):
        self.send(data)
        return self.response(method)

    def ended(self):
        """The server closes, in order and with nothing more to say."""
        try:
            rest = bytes(self.buffer) + self.socket.recv(4096)
        except ConnectionResetError as error:
            raise AssertionError("the connection was reset") from error
        equal(rest, b"", "bytes after the last response")

    def alive(self, target="/"):
        """The connection still answers."""
        return self.get(target).status


def get(server, target, *fields, **more):
    """One request on a connection of its own."""
    with Client(server) as client:
        return client.get(target, *fields, **more)


# ---- strace ----

@contextlib.contextmanager
def strace(pid, *options, output=None):
    """Attach strace to a process and its threads for as long as the block runs. With output, each thread has a file of
    its own, OUTPUT.TID, so that no call is torn in two lines."""
    if not shutil.which("strace"):
        raise Skip("needs strace: apt-get install strace")
    into = ["-ff", "-o", output] if output else ["-f", "-o", "/dev/null"]
    with tempfile.TemporaryFile() as said:
        tracer = subprocess.Popen(["strace", "-p", str(pid), *into, *options], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=said)

        def attached():
            if tracer.poll() is not None:
                said.seek(0)
                text = said.read().decode(errors="replace")
                if "Operation not permitted" in text:
                    raise Skip("may not trace: run as root, or allow it in kernel.yama.ptrace_scope")
                raise AssertionError("strace: " + text)
            return all(_tracer(pid, thread) == tracer.pid for thread in os.listdir("/proc/%d/task" % pid))
        try:
            until(attached, 5, "strace attaching")
            yield
            time.sleep(0.05)  # let the server come to rest: a call that is left half injected would end with ENOSYS
        finally:
            tracer.send_signal(signal.SIGINT)  # detaches
            tracer.wait(10 * PATIENCE)


def _tracer(pid, thread):
    with open("/proc/%d/task/%s/status" % (pid, thread), encoding="ascii", errors="replace") as file:
        return int(re.search(r"TracerPid:\s*(\d+)", file.read())[1])
