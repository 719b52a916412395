# SPDX-License-Identifier: MIT
"""A real browser, driven by its debugging protocol: Chromium without a window. The system's where there is one; else
Debian's package, unpacked under build/peers by bench/peers."""

import atexit
import base64
import collections
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile
import time

from harness import PATIENCE, Skip
from peers import PEERS, why_not


def find_browser():
    """Its program, and the environment that it needs."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if shutil.which(name):
            return shutil.which(name), {}
    program = PEERS / "root/usr/lib/chromium/chromium"
    wrong = why_not("chromium")
    if wrong:
        raise Skip("needs a browser: apt-get install chromium; or one that bench/peers can fetch, which said: "
                   + " ".join(wrong.split())[-300:])
    libraries = [str(path) for path in (PEERS / "root/usr/lib").glob("*-linux-gnu*")]
    return str(program), {"LD_LIBRARY_PATH": ":".join(libraries)}


def beyond(pipe):
    """The same pipe by descriptors that are neither 3 nor 4."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return moved


class Browser:
    """Ended by end(), or with this process."""

    def __init__(self):
        program, more = find_browser()
        self.home = tempfile.mkdtemp(prefix="sluice-browser-")
        read_commands, self.commands = beyond(os.pipe())
        self.answers, write_answers = beyond(os.pipe())
        # The protocol's pipes are descriptors 3 and 4.
        shell = "exec 3<&%d 4>&%d %d<&- %d>&-; exec \"$@\"" % (2 * (read_commands, write_answers))
        options = ["--headless=new", "--remote-debugging-pipe", "--user-data-dir=" + self.home, "--no-first-run",
                   "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--disable-dev-shm-usage", "--mute-audio", "--autoplay-policy=no-user-gesture-required",
                   "--disable-features=Translate,MediaRouter,OptimizationHints", "--hide-scrollbars"]
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # it refuses to have one as root
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(["bash", "-c", shell, "browser", program, *options, "about:blank"],
                                        stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said,
                                        env={**os.environ, "HOME": self.home, **more}, start_new_session=True,
                                        pass_fds=(read_commands, write_answers))
        os.close(read_commands)
        os.close(write_answers)
        self.buffer = b""
        self.number = 0
        self.results = {}
        self.events = collections.deque()
        atexit.register(self.end)

    def end(self):
        if self.process.returncode is not None:
            return
        os.close(self.commands)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.answers)
        for _ in range(20):  # its helpers may still be writing there
            shutil.rmtree(self.home, ignore_errors=True)
            if not os.path.exists(self.home):
                break
            time.sleep(0.05)

    def _take(self, seconds):
        """Read what there is, or comes in time."""
        if not select.select([self.answers], [], [], max(0, seconds))[0]:
            return
        data = os.read(self.answers, 1 << 20)
        if not data:
            self.said.seek(0)
            raise AssertionError("the browser ended: " + self.said.read().decode(errors="replace")[-1500:])
        *messages, self.buffer = (self.buffer + data).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self.results[message["id"]] = message
            else:
                self.events.append(message)

    def call(self, method, session=None, seconds=30, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds * PATIENCE
        while self.number not in self.results:
            if time.monotonic() > deadline:
                raise AssertionError("%s: no answer within %g s" % (method, seconds * PATIENCE))
            self._take(deadline - time.monotonic())
        answer = self.results.pop(self.number)
        if "error" in answer:
            raise AssertionError("%s: %s" % (method, answer["error"]))
        return answer["result"]

    def page(self, url, width=1200, height=900, dark=False, phone=False):
        """A new tab that has loaded url."""
        return Page(self, url, width, height, dark, phone)


class Page:
    def __init__(self, browser, url, width, height, dark, phone):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        self.complaints = []  # errors on the console, violations of the policy, exceptions
        self.requests = []    # (URL, fields) of all that were made
        self.answers = []     # (URL, status)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTimezoneOverride", timezoneId="America/New_York")
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        if phone:
            self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        self.go(url)

    def call(self, method, **parameters):
        return self.browser.call(method, session=self.session, **parameters)

    def go(self, url):
        error = self.call("Page.navigate", url=url).get("errorText")
        if error:
            raise AssertionError("%s: %s" % (url, error))
        self.until("document.readyState == 'complete' && location.href != 'about:blank'")

    def see(self):
        """Take in what has happened."""
        self.browser._take(0)
        for event in [event for event in self.browser.events if event.get("sessionId") == self.session]:
            self.browser.events.remove(event)
            name, about = event["method"], event["params"]
            if name == "Runtime.exceptionThrown":
                self.complaints.append(about["exceptionDetails"].get("exception", {}).get(
                    "description", about["exceptionDetails"]["text"]))
            elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(item.get("value", item)) for item in about["args"]))
            elif name == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
            elif name == "Network.requestWillBeSent":
                self.requests.append([about["request"]["url"], about["request"]["headers"]])
            elif name == "Network.responseReceived":
                self.answers.append([about["response"]["url"], about["response"]["status"]])

    def ask(self, expression):
        """The value of a piece of JavaScript; of a promise, when it is kept."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        self.see()
        if "exceptionDetails" in result:
            raise AssertionError("%s: %s" % (expression, result["exceptionDetails"]["exception"].get("description")))
        return result["result"].get("value")

    def until(self, expression, seconds=20):
        """Wait until the expression is true; its value."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            with contextlib.suppress(AssertionError):  # between two documents
                value = self.ask(expression)
                if value:
                    return value
            if time.monotonic() > deadline:
                raise AssertionError("not true within %g s: %s; the page says: %s; complaints: %s" % (
                    seconds * PATIENCE, expression, self.ask("document.body.innerText")[:800], self.complaints))
            time.sleep(0.02)

    def click(self, selector):
        """As a person does: in the middle of it, wherever that is."""
        x, y = self.ask("""(() => {
            const element = document.querySelector(%s);
            element.scrollIntoView({block: 'center'});
            const box = element.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2];
        })()""" % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path=None, whole=False):
        """A PNG of what is seen."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png",
                                          captureBeyondViewport=whole)["data"])
        if path:
            pathlib.Path(path).write_bytes(data)
        return data

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
