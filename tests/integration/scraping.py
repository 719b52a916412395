# SPDX-License-Identifier: MIT
"""What the admin listener says: fetched, and held to the rules of Prometheus's text format and of promtool check
metrics."""

import json
import re
import socket

from harness import PATIENCE


def fetch(address, path="/metrics", method="GET"):
    """The head and the body."""
    with socket.create_connection(address, timeout=10 * PATIENCE) as client:
        client.sendall(("%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % (method, path)).encode())
        answer = bytearray()
        while block := client.recv(1 << 18):
            answer += block
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return head.decode() + "\r\n", body.decode()


def metrics(address):
    """{name{labels}: value}"""
    head, body = fetch(address)
    assert head.startswith("HTTP/1.1 200 "), head
    assert re.search(r"(?i)\r\ncontent-type: text/plain; version=0\.0\.4", head), head
    return parse_metrics(body)


def status(address):
    head, body = fetch(address, "/status.json")
    assert head.startswith("HTTP/1.1 200 ") and "\r\nContent-Type: application/json\r\n" in head, head
    return json.loads(body)


_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",)*'
                     r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*")\})? ([0-9]+(?:\.[0-9]+)?)')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"')


def _family(name, kind):
    return re.sub(r"_(bucket|sum|count)$", "", name) if kind == "histogram" else name


def parse_metrics(text):
    """Strictly: what promtool check metrics says something about is wrong, too."""
    values, kinds, helps, current = {}, {}, {}, None
    assert text.endswith("\n") and "\n\n" not in text
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, *rest = line.split(" ", 3)
            assert rest and rest[0].strip() and rest[0].endswith("."), "no help in a sentence: " + line
            assert name not in helps, "two HELP lines of " + name
            helps[name], current = rest[0], None
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name in helps and list(helps)[-1] == name, "TYPE without HELP before it: " + line
            assert kind in ("counter", "gauge", "histogram"), line
            assert name not in kinds, "two TYPE lines of " + name
            kinds[name], current = kind, name
            _check_name(name, kind)
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, "not a sample: %r" % line
            assert current, "a sample without TYPE before it: " + line
            assert _family(match[1], kinds[current]) == current, "apart from the others of its metric: " + line
            labels = [name for name, _ in _LABEL.findall(match[3] or "")]
            assert len(labels) == len(set(labels)), "a label twice: " + line
            assert ("le" in labels) == (kinds[current] == "histogram" and match[1].endswith("_bucket")), line
            assert match[1] + (match[2] or "") not in values, "twice: " + line
            values[match[1] + (match[2] or "")] = float(match[4])
    assert set(kinds) == set(helps), set(kinds) ^ set(helps)
    for name, kind in kinds.items():
        if kind == "histogram":
            _check_histogram(name, values)
    return values


def _check_name(name, kind):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
    assert (kind == "counter") == name.endswith("_total"), "%s is a %s" % (name, kind)
    assert not re.search(r"_(bucket|sum|count|counter|gauge|histogram)(_|$)", name), name
    # Base units only: https://prometheus.io/docs/practices/naming/
    assert not re.search(r"_(milliseconds|microseconds|ms|us|minutes|kilobytes|kib|mib|bits|percent)(_|$)", name), name


def _check_histogram(name, values):
    series = {}
    for sample, value in values.items():
        match = re.fullmatch(re.escape(name) + r"_bucket\{(.*)\}", sample)
        if match:
            labels = dict(_LABEL.findall(match[1]))
            bound = float(labels.pop("le").replace("+Inf", "inf"))
            series.setdefault(tuple(sorted(labels.items())), []).append((bound, value))
    for labels, buckets in series.items():
        text = "{%s}" % ",".join('%s="%s"' % item for item in labels) if labels else ""
        bounds, counts = zip(*buckets)
        assert list(bounds) == sorted(set(bounds)) and bounds[-1] == float("inf"), bounds
        assert list(counts) == sorted(counts), counts
        assert values[name + "_count" + text] == counts[-1], (name, text)
        assert name + "_sum" + text in values, (name, text)


def undocumented(address, prefix, page):
    """Metrics that a manual page does not name, and names in its lists of metrics that are none."""
    _, body = fetch(address)
    told = {name[len(prefix):] for name in re.findall(r"^# TYPE (\S+) ", body, re.MULTILINE)}
    with open(page, encoding="utf-8") as file:
        named = {name for line in re.findall(r"^\.It Va (.*)$", file.read(), re.MULTILINE) for name in line.split(" , ")}
    return {"not in the page": sorted(told - named),
            "not there": sorted(name for name in named - told if re.search("_(total|seconds|info)$", name))}


class Figures:
    """The metrics of a program as they are now."""

    def __init__(self, address, prefix):
        self.prefix = prefix
        self.values = metrics(address)

    def __call__(self, name, **labels):
        """The sum over all samples of that name with these labels."""
        found = []
        for sample, value in self.values.items():
            match = re.fullmatch(r"([^{]*)(?:\{(.*)\})?", sample)
            if match[1] == self.prefix + name and all('%s="%s"' % item in (match[2] or "") for item in labels.items()):
                found.append(value)
        assert found, "no sample of %s %r in %r" % (name, labels, sorted(self.values))
        return sum(found)
