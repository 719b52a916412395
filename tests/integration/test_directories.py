#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Directories: redirects, index files and listings."""

import base64
import hashlib
import html.parser
import json
import os
import re
import urllib.parse

from harness import Client, Server, case, equal, get, main, new_root, shared_server, write

root = new_root()
NAMES = ["plain.txt", "with space.txt",
         "<script>alert(1)</script".replace("/", "\u2215"), 'quo"te', "apo'strophe", "a&b",
         "per%cent", "per%2520cent", "h\u00e4tte-\u6f22\u5b57-\U0001f600", "new\nline", "tab\there", "back\\slash",
         "semi;colon", "ques?tion", "ha#sh", "co:lon", "javascript:alert(1)", "plus+plus", "=equals", "-dash",
         "esc\x1b[31m", "</a>".replace("/", "\u2215"), "&lt;", "z" * 255]
RAW = [b"not-utf8-\xff\xfe"]
for name in NAMES:
    write(root, "evil", name, data=("content of " + name).encode())
for raw in RAW:
    write(os.fsencode(root), b"evil", raw, data=b"content of raw")
write(root, "evil", ".hidden")
write(root, "evil", ".hidden-directory", "file")
write(root, "evil", "Zed", "file")
write(root, "evil", "alpha", "file")
write(root, "indexed", "index.html", data=b"the index")
write(root, "indexed", "other.html", data=b"the other")
os.makedirs(os.path.join(root, "empty"))
os.makedirs(os.path.join(root, "index-is-directory", "index.html"))
write(root, "sp ace", "index.html", data=b"space")
write(root, "\u00e4", "file", data=b"umlaut")
write(root, "file.txt", data=b"file")
server = shared_server(root)


class Page(html.parser.HTMLParser):
    """The links of a page's entries with their texts, those above them (sorting, the path), and every element's
    name."""

    def __init__(self, text):
        super().__init__()
        self.above, self.links, self.tags, self._open = [], [], [], None
        self.feed(text.decode("utf-8", "surrogateescape"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, _ in attributes:
            assert not name.startswith("on"), "an event handler in the page: %s" % name
        if tag == "a":
            self._open = dict(attributes)["href"]
            (self.links if "tbody" in self.tags else self.above).append([self._open, ""])

    def handle_endtag(self, tag):
        if tag == "a":
            self._open = None

    def handle_data(self, data):
        if self._open is not None:
            (self.links if "tbody" in self.tags else self.above)[-1][1] += data


@case("301 with a slash for a directory without one, and the query is kept")
def slash():
    with Client(server()) as client:
        for path, location in (("/indexed", "/indexed/"), ("/indexed?a=b&c", "/indexed/?a=b&c"),
                               ("/indexed?", "/indexed/?"), ("/sp%20ace", "/sp%20ace/"),
                               ("/%c3%a4?x=%20", "/%C3%A4/?x=%20"), ("/evil/alpha", "/evil/alpha/"),
                               ("/evil/../indexed", "/indexed/")):
            response = client.get(path)
            equal((response.status, response["Location"]), (301, location), path)
            equal(client.get(path, method="HEAD").status, 301, "HEAD " + path)


@case("the redirect never names another host, however many slashes come")
def open_redirect():
    os.makedirs(os.path.join(root, "evil.example"), exist_ok=True)
    for path in ("//evil.example", "///evil.example", "/\\evil.example/..//evil.example",
                 "//evil.example/../evil.example", "http://test//evil.example"):
        response = get(server(), path)
        if response.status == 301:
            location = response["Location"]
            assert location.startswith("/") and not location.startswith(("//", "/\\")), location


@case("no byte of a path breaks out of the Location field")
def split():
    os.makedirs(os.path.join(root, "a\r\nSet-Cookie: x"), exist_ok=True)
    response = get(server(), "/a%0d%0aSet-Cookie:%20x")
    equal((response.status, response["Location"]), (301, "/a%0D%0ASet-Cookie%3A%20x/"))
    equal(response["Set-Cookie"], None)


@case("index.html is served for its directory, with everything a file has")
def index():
    with Client(server()) as client:
        response = client.get("/indexed/")
        equal((response.status, response.body), (200, b"the index"))
        equal(response["Content-Type"], "text/html; charset=utf-8")
        equal(client.get("/indexed/", "If-None-Match: " + response["ETag"]).status, 304)
        equal(client.get("/indexed/", "Range: bytes=4-").body, b"index")
        equal(client.get("/sp%20ace/").body, b"space")


@case("an index.html that is a directory itself is no index")
def index_directory():
    response = get(server(), "/index-is-directory/")
    equal(response.status, 200)
    assert "./index.html/" in [link for link, _ in Page(response.body).links]


@case("--index NAME: that file stands for its directory, and index.html does not")
def other_index():
    with Server(root, "--index", "other.html") as other, Client(other) as client:
        equal(client.get("/indexed/").body, b"the other")
        write(root, "only-default", "index.html", data=b"x")
        assert b"index.html" in client.get("/only-default/").body


@case("every link of a listing leads to the file of that name, whatever bytes are in it")
def links():
    with Client(server()) as client:
        page = Page(client.get("/evil/").body)
        bodies = []
        for link, _ in page.links:
            target = urllib.parse.urljoin("http://test/evil/", link)
            assert target.startswith("http://test/"), "%s leads away: %s" % (link, target)
            if link == "../":
                continue
            response = client.get(target[len("http://test"):])
            equal(response.status, 200, link)
            if not link.endswith("/"):
                bodies.append(response.body)
        expected = [("content of " + name).encode() for name in NAMES] + [b"content of raw"] * len(RAW)
        equal(sorted(bodies), sorted(expected))


@case("names are text in a listing, never markup")
def escaped():
    page = Page(get(server(), "/evil/").body)
    texts = [text for _, text in page.links]
    for name in NAMES:
        shown = "".join("\ufffd" if ord(c) < 32 or ord(c) == 127 else c for c in name)
        assert shown in texts, "%r is not among %r" % (shown, texts)
    assert set(page.tags) <= {
        "html", "head", "meta", "link", "title", "style", "body", "header", "h1", "div", "p", "input", "main", "table",
        "thead", "tbody", "tr", "th", "td", "a", "b", "i", "bdi", "span", "data", "time", "script"}, set(page.tags)
    equal([page.tags.count(tag) for tag in ("script", "style", "title")], [1, 1, 1])


@case("what a page may do is said by hashes: its own style and script, and nothing else")
def policy():
    response = get(server(), "/evil/")
    rules = dict(rule.strip().split(" ", 1) for rule in response["Content-Security-Policy"].split(";"))
    equal(rules["default-src"], "'none'")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        text = re.search(b"<%s>(.*)</%s>" % (tag.encode(), tag.encode()), response.body, re.DOTALL)[1]
        equal(rules[rule], "'sha256-%s'" % base64.b64encode(hashlib.sha256(text).digest()).decode(), rule)
    assert b"http:" not in response.body and b"https:" not in response.body and b" style=" not in response.body


@case("the heading of a listing is escaped, too")
def heading():
    write(root, "<b>x&", "file")
    body = get(server(), "/%3Cb%3Ex%26/").body
    assert b"<b>x" not in body and b"&lt;b&gt;x&amp;" in body, body


@case("a listing is HTML in UTF-8 and is not sniffed")
def kind():
    response = get(server(), "/evil/")
    equal(response["Content-Type"], "text/html; charset=utf-8")
    equal(response["X-Content-Type-Options"] in ("nosniff", None), True)
    equal(get(server(), "/evil/", method="HEAD")["Content-Length"], response["Content-Length"])


@case("directories come first, then files, each by name without regard to case; the parent on top")
def order():
    write(root, "sorted", "b.txt"), write(root, "sorted", "A.txt"), write(root, "sorted", "c.txt")
    write(root, "sorted", "Y", "f"), write(root, "sorted", "x", "f")
    links = [link for link, _ in Page(get(server(), "/sorted/").body).links]
    equal(links, ["../", "./x/", "./Y/", "./A.txt", "./b.txt", "./c.txt"])


@case("the root's listing has no parent")
def no_parent():
    page = Page(get(server(), "/").body)
    assert not [link for link, _ in page.links + page.above if "../" in link]


@case("sorted by name, size or time, both ways, as the query says; sorting is by links and goes along into directories")
def sorting():
    for number, (name, size) in enumerate((("b", 3), ("a", 30), ("c", 7))):
        os.utime(write(root, "orders", name, data=b"x" * size), (0, number))
    write(root, "orders", "sub", "f")
    with Client(server()) as client:
        def order(query):
            return [link for link, _ in Page(client.get("/orders/" + query).body).links if "/" not in link[2:]]
        equal(order(""), ["./a", "./b", "./c"])
        equal(order("?order=desc"), ["./c", "./b", "./a"])
        equal(order("?sort=size"), ["./b", "./c", "./a"])
        equal(order("?sort=size&order=desc"), ["./a", "./c", "./b"])
        equal(order("?sort=time"), ["./b", "./a", "./c"])
        equal(order("?sort=nothing&sort=time&order=desc&x"), ["./c", "./a", "./b"])
        page = Page(client.get("/orders/?sort=size&order=desc").body)
        links = {text.partition(" ")[0]: link for link, text in page.above}
        equal([order(links[name][2:]) for name in ("Name", "Size", "Modified")],
              [["./a", "./b", "./c"], ["./b", "./c", "./a"], ["./c", "./a", "./b"]])
        equal(page.links[:2], [["../?sort=size&order=desc", "../"], ["./sub/?sort=size&order=desc", "sub/"]])


@case("a listing as JSON for who asks for it by Accept, with every name's file behind its link")
def as_json():
    with Client(server()) as client:
        response = client.get("/evil/", "Accept: application/json")
        equal((response.status, response["Content-Type"], response["Vary"]), (200, "application/json", "Accept"))
        listing = json.loads(response.body)
        equal((listing["path"], listing["complete"]), ("/evil/", True))
        kinds = {entry["name"]: entry["type"] for entry in listing["entries"]}
        equal(kinds, {**{name: "file" for name in NAMES}, "not-utf8-\ufffd\ufffd": "file", "Zed": "directory",
                      "alpha": "directory"})
        for entry in listing["entries"]:
            body = client.get(urllib.parse.urljoin("http://test/evil/", entry["href"])[len("http://test"):]).body
            if entry["type"] == "file":
                equal(len(body), entry["size"], entry["name"])
            assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["modified"]), entry
        equal(json.loads(client.get("/empty/", "Accept: application/json").body)["entries"], [])
        sizes = [entry.get("size") for entry in json.loads(
            client.get("/evil/?sort=size&order=desc", "Accept: application/json").body)["entries"]][2:]
        equal(sizes, sorted(sizes, reverse=True))


@case("a listing is HTML for whoever does not prefer JSON, and Vary says that it depends")
def as_html():
    with Client(server()) as client:
        for accept in ([], ["Accept: */*"], ["Accept: application/json;q=0.4, text/*;q=0.5"], ["Accept: image/png"],
                       ["Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"]):
            response = client.get("/evil/", *accept)
            equal((response["Content-Type"], response["Vary"]), ("text/html; charset=utf-8", "Accept"), str(accept))


@case("hidden files, FIFOs and sockets are not listed")
def hidden():
    os.mkfifo(os.path.join(root, "evil", "fifo"))
    links = [link for link, _ in Page(get(server(), "/evil/").body).links]
    assert not [link for link in links if "hidden" in link or "fifo" in link], links
    os.unlink(os.path.join(root, "evil", "fifo"))


@case("a listing shows what is there at every request")
def fresh():
    with Client(server()) as client:
        def names():
            return [link for link, _ in Page(client.get("/empty/").body).links]
        equal(names(), ["../"])
        path = write(root, "empty", "one")
        equal(names(), ["../", "./one"])
        os.rename(path, path + "-more")
        equal(names(), ["../", "./one-more"])
        os.unlink(path + "-more")
        equal(names(), ["../"])


@case("--no-listing: 403 for a directory without index, 404 for what is missing, the index all the same")
def no_listing():
    with Server(root, "--no-listing") as closed, Client(closed) as client:
        equal(client.get("/evil/").status, 403)
        equal(client.get("/").status, 403)
        equal(client.get("/none/").status, 404)
        equal(client.get("/.git/").status, 404)
        equal(client.get("/indexed/").body, b"the index")
        equal(client.get("/evil").status, 301)
        equal(client.get("/evil/plain.txt").status, 200)


@case("a directory of 12,000 files is listed up to a limit that the page tells, while others are served")
def large():
    for number in range(12000):
        with open(os.path.join(root, "empty", "file-%05d" % number), "wb"):
            pass
    try:
        with Client(server(), timeout=20) as client, Client(server()) as other:
            client.ask("/empty/")
            equal(other.get("/file.txt").body, b"file")
            response = client.response()
            equal(response.status, 200)
            assert response.body.count(b'<a href="./file-') == 10000 and b"10000" in response.body
    finally:
        for number in range(12000):
            os.unlink(os.path.join(root, "empty", "file-%05d" % number))


@case("100 clients that ask for a listing and go away harm nothing")
def gone():
    for _ in range(100):
        client = Client(server())
        client.ask("/evil/")
        client.reset()
    equal(get(server(), "/file.txt").body, b"file")


server.closing_case()

if __name__ == "__main__":
    main()
