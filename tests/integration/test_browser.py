#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What people see: listings, a video, and the live page, in a real browser."""

import base64
import contextlib
import functools
import http.client
import json
import os
import re
import struct
import threading
import urllib.parse

import proxying
from browser import Browser, find_browser
from harness import LOCAL, PATIENCE, Server, Skip, case, content, equal, main, new_root, write

root = new_root()
browsers = []


def browser():
    """One for all cases."""
    if not browsers:
        browsers.append(Browser())
    return browsers[0]


class Admin(Server):
    """With an admin listener."""

    def is_ready(self):
        match = re.search(r"metrics at http://\S+:(\d+)/", self.output())
        if not super().is_ready() or not match:
            return None
        self.admin = "http://%s:%d/" % (LOCAL, int(match[1]))
        return match

    def __init__(self, *options, **more):
        super().__init__(root, "--admin", LOCAL + ":0", *options, **more)

    def ask(self, path):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.admin).netloc, timeout=10 * PATIENCE)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        equal(answer.status, 200, path)
        return text

    def status(self):
        return json.loads(self.ask("/status.json"))


@functools.lru_cache(maxsize=1)
def server():
    return Admin(workers=2)


# ---- Listings ----

SIZES = {"a 1.bin": 5000, "a 2.bin": 70, "a 10.bin": 900000}
for name, size in SIZES.items():
    write(root, "list", name, data=content(size))
    os.utime(os.path.join(root, "list", name), (0, 1700000000 + size))
write(root, "list", "sub", "file", data=b"in sub")
write(root, "list", "<b>&amp;\u202etxt.exe", data=b"odd")
write(root, "list", "long-" + "x" * 240, data=b"long")
NAMES = "[...document.querySelectorAll('tbody tr:not(.up):not([hidden]) bdi')].map(e => e.textContent)"


def shown(page):
    return [name for name in page.ask(NAMES) if name in SIZES]


@case("a listing is sorted by clicking its headings, both ways, and the browser finds nothing to complain of")
def sort():
    page = browser().page(server().url + "/list/")
    equal(shown(page), ["a 1.bin", "a 2.bin", "a 10.bin"])
    for heading, parameters, names in (
            (2, "?sort=size&order=desc", ["a 10.bin", "a 1.bin", "a 2.bin"]),
            (2, "?sort=size&order=asc", ["a 2.bin", "a 1.bin", "a 10.bin"]),
            (3, "?sort=time&order=desc", ["a 10.bin", "a 1.bin", "a 2.bin"]),
            (1, "?sort=name&order=asc", ["a 1.bin", "a 2.bin", "a 10.bin"])):
        page.click("thead th:nth-child(%d) a" % heading)
        page.until("location.search == %s && document.readyState == 'complete'" % json.dumps(parameters))
        equal(shown(page), names, parameters)
        equal(page.ask("document.querySelector('th:nth-child(%d)').ariaSort" % heading),
              "descending" if "desc" in parameters else "ascending")
    page.click("tbody tr.d a")
    page.until("location.pathname == '/list/sub/'")
    page.click("h1 a:last-of-type")
    page.until("location.pathname == '/list/'")
    page.see()
    equal(page.complaints, [])
    equal({url for url, _ in page.requests if not url.startswith((server().url + "/list/", "data:"))}, set())
    page.close()


@case("names are what they are, times those of the reader's zone, and the filter shows what fits")
def details():
    page = browser().page(server().url + "/list/")
    assert "<b>&amp;\u202etxt.exe" in page.ask(NAMES)
    equal(page.ask("document.querySelectorAll('tbody b').length"), 0)
    row = "[...document.querySelectorAll('tbody tr')].find(row => row.textContent.includes('a 2.bin'))"
    equal(page.ask(row + ".querySelector('time').textContent"), "2023-11-14 17:14")  # in New York
    equal(page.ask(row + ".querySelector('time').title"), "2023-11-14 22:14 UTC")
    equal(page.ask(row + ".querySelector('data').title"), "70 bytes")
    page.click("#filter")
    page.call("Input.insertText", text="A .BIN 0")
    page.until("document.getElementById('about').textContent == '1 of 6 shown'")
    equal(page.ask(NAMES), ["a 10.bin"])
    equal(page.complaints, [])
    page.close()


@case("on a phone a listing has rows that a finger hits, nothing is cut off, and it is dark where that is wanted")
def phone():
    for dark in (False, True):
        page = browser().page(server().url + "/list/", width=390, height=844, phone=True, dark=dark)
        equal(page.ask("document.documentElement.scrollWidth <= innerWidth"), True)
        assert page.ask("Math.min(...[...document.querySelectorAll('tbody tr, thead a')]"
                        ".map(e => e.getBoundingClientRect().height))") >= 40
        # a finger beside the name, on the line of the size
        equal(page.ask("""(() => {
            const row = document.querySelector('tbody tr:last-child'), box = row.getBoundingClientRect();
            row.scrollIntoView();
            const now = row.getBoundingClientRect();
            return document.elementFromPoint(now.right - 5, now.bottom - 8) === row.querySelector('a');
        })()"""), True)
        light = page.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => +a + +b)")
        assert (light < 200) == dark, light
        equal(page.complaints, [])
        page.close()


# ---- Video ----

def element(identifier, data):
    """Of EBML (RFC 8794); identifiers hold their own length."""
    return identifier + struct.pack(">Q", len(data) | 1 << 56) + data


def number(identifier, value):
    return element(identifier, value.to_bytes(8, "big"))


def webm(frames, spread):
    """A video of one frame a second, each a VP8 key frame, spread bytes apart: so that seeking needs ranges."""
    head = element(b"\x1a\x45\xdf\xa3", element(b"\x42\x82", b"webm") + number(b"\x42\x87", 4) + number(b"\x42\x85", 2))
    info = element(b"\x15\x49\xa9\x66", number(b"\x2a\xd7\xb1", 1000000)
                   + element(b"\x44\x89", struct.pack(">d", 1000.0 * len(frames))))
    video = element(b"\xe0", number(b"\xb0", 64) + number(b"\xba", 64))
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", number(b"\xd7", 1) + number(b"\x73\xc5", 1)
                     + number(b"\x83", 1) + element(b"\x86", b"V_VP8") + video))
    clusters = []
    for second, frame in enumerate(frames):
        clusters.append(element(b"\x1f\x43\xb6\x75", number(b"\xe7", 1000 * second)
                        + element(b"\xa3", b"\x81\0\0\x80" + frame)) + element(b"\xec", bytes(spread)))

    def cues(start):
        points, at = b"", start
        for second, cluster in enumerate(clusters):
            points += element(b"\xbb", number(b"\xb3", 1000 * second)
                              + element(b"\xb7", number(b"\xf7", 1) + number(b"\xf1", at)))
            at += len(cluster)
        return element(b"\x1c\x53\xbb\x6b", points)
    before = info + tracks
    return head + element(b"\x18\x53\x80\x67",
                          before + cues(len(before) + len(cues(0))) + b"".join(clusters))


@case("a video is played, and played on from where one seeks to, by ranges")
def video():
    # The browser's own encoder: a lossy WebP picture is a VP8 key frame. Each second has a colour of its own.
    page = browser().page(server().url + "/list/")
    pictures = page.ask("""[...Array(40).keys()].map(second => {
        const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 64;
        const context = canvas.getContext('2d');
        context.fillStyle = 'rgb(' + 6 * second + ', 100, ' + (255 - 6 * second) + ')';
        context.fillRect(0, 0, 64, 64);
        return canvas.toDataURL('image/webp', 0.9).split(',')[1];
    })""")
    page.close()
    frames = []
    for picture in pictures:
        data = base64.b64decode(picture)
        at = data.index(b"VP8 ")
        frames.append(data[at + 8:at + 8 + int.from_bytes(data[at + 4:at + 8], "little")])
    write(root, "video", "film.webm", data=webm(frames, 1 << 20))
    write(root, "video", "index.html", data=b"<!DOCTYPE html><link rel=icon href=data:,>"
          b"<video id=v src=film.webm muted preload=metadata></video>")

    page = browser().page(server().url + "/video/")
    page.until("v.readyState >= 1 && v.duration == 40")
    for target in (33, 4, 38):
        equal(page.ask("""new Promise(done => {
            v.onseeked = () => {
                const canvas = document.createElement('canvas');
                canvas.width = canvas.height = 8;
                const context = canvas.getContext('2d');
                context.drawImage(v, 0, 0, 8, 8);
                done(Math.round(context.getImageData(4, 4, 1, 1).data[0] / 6));
            };
            v.currentTime = %d.3;
        })""" % target), target, "the second that the picture after seeking is of")
    page.ask("v.currentTime = 20; v.play()")
    page.until("v.currentTime > 20.5 && !v.paused && !v.error")
    page.see()
    starts = [int(re.fullmatch(r"bytes=(\d+)-\d*", fields["Range"])[1])
              for url, fields in page.requests if url.endswith("film.webm") and "Range" in fields]
    assert any(start > 30 << 20 for start in starts), starts
    equal({code for url, code in page.answers if url.endswith("film.webm")}, {206})
    equal(page.complaints, [])
    page.close()


# ---- The live page ----

def traffic(server, stop):
    connection = http.client.HTTPConnection(*server.address, timeout=10 * PATIENCE)
    while not stop.is_set():
        for path, status in (("/list/a%2010.bin", 200), ("/list/", 200), ("/none", 404), ("/list/a%201.bin", 200)):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            equal(answer.status, status, path)
    connection.close()


FIGURE = r"^([\d.]+)( [kMG])?( [KMGT]?i?B)?(/s| %)?$"


@case("the live page draws what is going on, by itself and without an error, in light and dark")
def live():
    with Admin("--idle-timeout", "7s", workers=2) as busy:
        stop = threading.Event()
        thread = threading.Thread(target=traffic, args=(busy, stop), daemon=True)
        thread.start()
        pages = [browser().page(busy.admin, width=1280, height=900),
                 browser().page(busy.admin, width=390, height=844, phone=True, dark=True)]
        try:
            for page in pages:
                page.until("document.querySelectorAll('#charts path.line').length >= 4")
                page.until("document.querySelectorAll('#chart-routes path.area').length >= 2")
                figures = page.ask("Object.fromEntries([...document.querySelectorAll('output')]"
                                   ".map(e => [e.id.slice(5), e.textContent]))")
                equal(sorted(figures), sorted(["throughput", "requests", "connections", "copies", "reference", "cpu",
                                               "errors"]))
                for name, text in figures.items():
                    match = re.match(FIGURE, text)
                    assert match, (name, text)
                    if name in ("throughput", "requests", "connections", "reference", "cpu"):
                        assert float(match[1]) > 0, (name, text)
                legend = page.ask("[...document.querySelectorAll('#chart-responses span')].map(e => e.dataset.key)")
                equal(legend, ["class 2xx", "class 4xx"])
                equal(page.ask("document.querySelectorAll('#workers tbody tr').length"), 2)
                equal(page.ask("[...document.querySelectorAll('#configuration tr')]"
                               ".find(row => row.cells[0].textContent == 'idle-timeout').cells[1].textContent"), "7")
                equal(page.ask("document.documentElement.scrollWidth <= innerWidth"), True)
                page.ask("document.querySelector('summary').click()")
                equal(page.ask("(table => table.scrollWidth <= table.parentElement.clientWidth)"
                               "(document.getElementById('configuration'))"), True)
                assert page.ask("document.getElementById('state').textContent").endswith("2 workers")
                # another look is taken, and drawn
                path = page.ask("document.querySelector('#chart-throughput .line').getAttribute('d')")
                page.until("document.querySelector('#chart-throughput .line').getAttribute('d') != %s" % json.dumps(path))
                equal(page.complaints, [])
                equal({url for url, _ in page.requests if not url.startswith((busy.admin, "data:"))}, set())
            shades = [page.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
                               ".reduce((a, b) => +a + +b)") for page in pages]
            assert shades[0] > 600 > 200 > shades[1], shades
        finally:
            stop.set()
            thread.join()
        for page in pages[1:]:
            page.close()
    # The server is gone, and the page says so.
    pages[0].until("document.getElementById('state').className == 'bad'")
    pages[0].close()


@case("the live page of sluice proxy draws what it passes on, with its services")
def live_proxy():
    stop = threading.Event()
    with proxying.Proxy(server().address, admin=LOCAL + ":0") as proxy:
        admin = re.search(r"metrics at (http://\S+/)\n", proxy.output())[1]
        thread = threading.Thread(target=traffic, args=(proxy, stop), daemon=True)
        thread.start()
        try:
            page = browser().page(admin)
            page.until("document.querySelectorAll('#charts path.line').length >= 4")
            assert float(page.ask("document.getElementById('tile-throughput').textContent").split(" ")[0]) > 0
            equal(page.ask("[...document.querySelectorAll('#services tbody td')].slice(0, 2).map(e => e.textContent)")[1],
                  "1")
            equal(page.ask("document.getElementById('chart-responses')"), None)
            equal(page.complaints, [])
            page.close()
        finally:
            stop.set()
            thread.join()


@case("the browser and its server end, with code 0 and without complaint")
def end():
    if browsers:
        browsers[0].end()
    server().stop()


if __name__ == "__main__":
    with contextlib.suppress(Skip):  # the cases say it
        find_browser()  # may have to be fetched, for which a case has no time
    main()
