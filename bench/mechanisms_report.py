# SPDX-License-Identifier: MIT
"""Turns the rounds of bench/mechanisms into the regret table, the targets, a table for each part, and plots."""

from report import bars, heading, joint_ratio, median, ratio, remarks, shown, shown_ratio, table, verdict

FASTER_THAN_CP = 1.4
DIRECT_AT_MOST = 0.3
ROUNDS_TO_JUDGE = 3  # the interval over fewer is none
KEYS = {"cpu_gib": "the mover's CPU", "machine_gib": "the whole machine's CPU"}
PROGRAMS = ("cp", "sluice")
ON_REQUEST = ("direct",)  # never chosen unasked: it waits for the device, which is what one asks for


def label(kind, name):
    return f"bare {name}" if kind == "bare" else name


def subject(text):
    kind, _, name = text.partition(" ")
    if kind == "bare":
        return "bare", name
    return ("program", text) if kind in PROGRAMS else ("route", text)


def routes_of(receipt):
    return {r: c for r, c in receipt["routes"].items() if c["bytes"]}


def size_name(size):
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,} B"


def names(cell, kind):
    return [n for n in cell["rounds"] if subject(n)[0] == kind and n != "auto"]


def best(cell, candidates, key):
    """The lowest median over all rounds: the best of every single round would be chosen by its noise."""
    have = [(median(cell["rounds"][n], key), n) for n in candidates]
    have = [h for h in have if h[0] is not None]
    return min(have)[1] if have else None


def taken(cell):
    """The routes that the automatic choice took, with their shares of the bytes if there were several."""
    total = {}
    for r in cell["rounds"]["auto"]:
        for route, moved in (r or {}).get("taken", {}).items():
            total[route] = total.get(route, 0) + moved
    whole = sum(total.values())
    shares = sorted(((moved / whole, route) for route, moved in total.items()), reverse=True)
    if not shares or shares[0][0] > 0.995:
        return shares[0][1] if shares else "–"
    return ", ".join(f"{route} {share * 100:.0f} %" for share, route in shares if share >= 0.005)


def regret_verdict(r):
    if r is None:
        return "–"
    if r["rounds"] < ROUNDS_TO_JUDGE:
        return "too few rounds"
    return "dearer" if verdict(r, 1.0) == "not met" else "holds"


def best_of(cell, kind, key):
    return best(cell, [n for n in names(cell, kind) if subject(n)[1] not in ON_REQUEST], key)


def suspects(cell):
    """{key: the best route} where the whole interval of the rounds is above 1."""
    found = {}
    for key in KEYS:
        name = best_of(cell, "route", key) if "auto" in cell["rounds"] else None
        if name and regret_verdict(ratio(cell["rounds"]["auto"], cell["rounds"][name], key)) == "dearer":
            found[key] = name
    return found


def looked_again(results):
    """How many second looks there were: so many intervals must hold together."""
    return sum(len(cell.get("again", {})) for cell in results["cells"])


def second_look(results, cell, key):
    """The interval of the fresh rounds, or None."""
    again = cell.get("again", {}).get(key)
    if not again:
        return None
    (name,) = [n for n in again if n != "auto"]
    return joint_ratio(again["auto"], again[name], key, looked_again(results))


def regrets(results):
    """The automatic choice beside the best single route of every cell, and beside the best bare loop. What read dearer is
    so only if a second look, at that one route, says the same."""
    found = []
    for cell in results["cells"]:
        if "auto" not in cell["rounds"] or not names(cell, "route"):
            continue
        row = {"part": cell["part"], "cell": cell["name"], "taken": taken(cell)}
        for key in KEYS:
            for what in ("route", "bare"):
                name = best_of(cell, what, key)
                r = name and ratio(cell["rounds"]["auto"], cell["rounds"][name], key)
                row[f"{key} to {what}"] = {"best": name, "interval": r, "verdict": regret_verdict(r)}
            again = second_look(results, cell, key)
            if again:
                row[f"{key} to route"] |= {"again": again, "verdict": regret_verdict(again)}
        found.append(row)
    return found


def targets(results):
    rows = []

    def add(what, r, at_most, text):
        judged = verdict(r, at_most) if r is None or r["rounds"] >= ROUNDS_TO_JUDGE else "too few rounds"
        rows.append({"target": what, "measured": text, "verdict": judged, "interval": r})

    for cell in results["cells"]:
        if cell["part"] == "tree" and "sluice cp" in cell["rounds"]:
            r = ratio(cell["rounds"]["sluice cp"], cell["rounds"]["cp -a"], "wall")
            text = "–" if r is None else f"{1 / r['ratio']:.2f} [{1 / r['high']:.2f}, {1 / r['low']:.2f}]"
            add(f"{cell['name']}: sluice cp at least {FASTER_THAN_CP} × faster than cp -a", r, 1 / FASTER_THAN_CP, text)
        if cell["part"] == "append" and cell["log"] == "extending":
            own = "direct" if "direct" in cell["rounds"] else "bare direct"
            if own in cell["rounds"] and "bare write" in cell["rounds"]:
                r = ratio(cell["rounds"][own], cell["rounds"]["bare write"], "cpu_gib")
                add(f"{cell['name']}: {own} at most {DIRECT_AT_MOST} × the CPU of write + fdatasync", r, DIRECT_AT_MOST,
                    shown_ratio(r))
    for key, what in KEYS.items():
        judged = [r[f"{key} to route"]["verdict"] for r in regrets(results)]
        dearer, count = judged.count("dearer"), judged.count("dearer") + judged.count("holds")
        if count:
            rows.append({"target": f"automatic choice nowhere dearer than the best single route ({what})",
                         "measured": f"dearer in {dearer} of {count}", "verdict": "not met" if dearer else "met",
                         "interval": None})
    return rows


def pivot(cells, key, column):
    """Subjects by columns. * marks the best route of a column."""
    columns = list(dict.fromkeys(column(c) for c in cells))
    subjects = list(dict.fromkeys(n for c in cells for n in c["rounds"]))
    values, marked = {}, set()
    for c in cells:
        for n in c["rounds"]:
            values[n, column(c)] = median(c["rounds"][n], key)
        if key != "gbs":  # of speed, the lowest is not the best
            marked.add((best(c, names(c, "route"), key), column(c)))
    rows = [[n, *(shown(values.get((n, k))) + (" *" if (n, k) in marked else "") for k in columns)] for n in subjects]
    return table(["", *columns], rows)


def by(cells, key):
    return {value: [c for c in cells if c.get(key) == value] for value in dict.fromkeys(c.get(key) for c in cells)}


def left_out(results):
    """Why what was not measured was not, each reason once."""
    reasons = {}
    for cell in results["cells"]:
        for name, why in cell["absent"].items():
            reasons.setdefault((cell["part"], name, why), []).append(cell["name"])
    lines = [f"- this build has no route `{r}`" for r in results["missing"]]
    for (part, name, why), cells in reasons.items():
        everywhere = len(cells) == sum(c["part"] == part for c in results["cells"])
        lines.append(f"- {part}: {name}{'' if everywhere else ' (' + '; '.join(cells) + ')'}: {why}")
    return "\n".join(lines)


def parts(results, part):
    return [c for c in results["cells"] if c["part"] == part and any(c["rounds"].values())]


def noise(results):
    rounds = [r for c in results["cells"] for rs in c["rounds"].values() for r in rs if r]
    stolen = sum(r.get("steal", 0) > 0.02 for r in rounds)
    return f"- {len(rounds)} windows; in {stolen} of them the host withheld more than 2 % of the CPU."


def markdown(results):
    out = [heading("Mechanisms", results)]
    out.append(f"{results['rounds']} interleaved rounds, {results['seconds']} s windows"
               f"{' (quick: shows that it works, nothing else)' if results['quick'] else ''}. Mover on core 0, "
               "receiver on core 1. How it is measured, and what the figures do not show: [bench/README.md](../../README.md).\n")
    out.append(remarks(results) + noise(results) + "\n")
    if results["targets"]:
        out.append("## Targets\n")
        out.append(table(["target", "measured [95 %]", "verdict"],
                         [[t["target"], t["measured"], t["verdict"]] for t in results["targets"]]) + "\n")
    rows = results["regrets"]
    if rows:
        out.append("## The automatic choice beside the best single route\n")
        count = looked_again(results)
        out.append("Ratio of CPU, automatic to the best route forced (its name), with the 95 % interval of paired rounds. "
                   "Best is the lowest median, chosen with the same rounds, so a ratio slightly above 1 is to be expected "
                   "where automatic took that very route; and of so many rows, one tie in 40 has its whole interval above 1 "
                   f"by chance. Where it was, {results.get('again', 0)} rounds of auto and that route alone followed (→), "
                   f"{count} second looks in all: *dearer* means that the interval of those, widened so that all {count} hold "
                   "together with 95 %, is above 1, too. The last column compares with the best bare loop. O_DIRECT is left "
                   "out of all: it is taken on request only.\n")

        def text(entry):
            if not entry["interval"]:
                return "–"
            again = f" → {shown_ratio(entry['again'])}" if entry.get("again") else ""
            return f"{shown_ratio(entry['interval'])} {entry['best']}{again}"
        keys = [f"{k} to route" for k in KEYS]
        out.append(table(["", "took", *[w for k in KEYS.values() for w in (k, "")], "CPU, to the best bare loop"],
                         [[r["cell"], r["taken"], *[w for k in keys for w in (text(r[k]), r[k]["verdict"])],
                           text(r["cpu_gib to bare"])] for r in rows]) + "\n")

    for title, cells in [(f"Memory → TCP over loopback, {congestion}", cells)
                         for congestion, cells in by(parts(results, "tcp"), "congestion").items()] + \
                        [(f"Memory made for each message → TCP over loopback, {congestion}", cells)
                         for congestion, cells in by(parts(results, "fresh"), "congestion").items()]:
        out.append(f"## {title}\n")
        out.append("µs of the sender's CPU per message; the receiver spins and discards. * marks the best route.\n")
        out.append(pivot(cells, "cpu_us", lambda c: size_name(c["size"])) + "\n")
        out.append("µs of the whole machine's CPU per message; the receiver sleeps and reads.\n")
        out.append(pivot(cells, "machine_us", lambda c: size_name(c["size"])) + "\n")
    if parts(results, "udp"):
        out.append("## Memory → UDP into a device that drops\n")
        out.append("An ifb device in a network namespace, MTU 65,535, with scatter-gather, checksum and segmentation "
                   "offload: what is lent is really not copied. µs of the sender's CPU per call.\n")
        for piece, cells in by(parts(results, "udp"), "piece").items():
            out.append((f"With UDP_SEGMENT, pieces of {piece:,} B:\n" if piece else "One datagram a call:\n"))
            out.append(pivot(cells, "cpu_us", lambda c: size_name(c["size"])) + "\n")
    if parts(results, "files"):
        cells = parts(results, "files")
        out.append("## File → file\n")
        out.append("Hot. s of the mover's CPU per GiB, opening and closing included:\n")
        out.append(pivot(cells, "cpu_gib", lambda c: c["name"].split(", ", 1)[1]) + "\n")
        out.append("s of the whole machine's CPU per GiB, until the copy is on disk (fsync):\n")
        out.append(pivot(cells, "machine_gib", lambda c: c["name"].split(", ", 1)[1]) + "\n")
    if parts(results, "tree"):
        out.append("## A tree of small files\n")
        rows = [[c["name"], n, shown(median(rs, "wall")), shown(median(rs, "cpu")), shown(median(rs, "machine")),
                 "–" if n == "cp -a" else shown_ratio(ratio(rs, c["rounds"]["cp -a"], "wall"))]
                for c in parts(results, "tree") for n, rs in c["rounds"].items()]
        out.append(table(["", "", "s", "its CPU, s", "the machine's CPU, s", "time to cp -a [95 %]"], rows) + "\n")
    if parts(results, "append"):
        cells = parts(results, "append")
        out.append("## Log append, records of 1 MiB\n")
        out.append("s of CPU per GiB, fdatasync included:\n")
        out.append(pivot(cells, "cpu_gib", lambda c: f"{c['log']}, sync {c['sync']}") + "\n")
        out.append("of the whole machine:\n")
        out.append(pivot(cells, "machine_gib", lambda c: f"{c['log']}, sync {c['sync']}") + "\n")
        out.append("GB/s:\n")
        out.append(pivot(cells, "gbs", lambda c: f"{c['log']}, sync {c['sync']}") + "\n")
    if parts(results, "fanout"):
        cells = parts(results, "fanout")
        out.append("## Fan-out to 4\n")
        out.append("s of the mover's CPU per GiB read; the receivers spin and discard:\n")
        out.append(pivot(cells, "cpu_gib", lambda c: c["name"]) + "\n")
        out.append("s of the whole machine's CPU per GiB read, source included; the receivers sleep and read:\n")
        out.append(pivot(cells, "machine_gib", lambda c: c["name"]) + "\n")
    if left_out(results):
        out.append("## Left out\n")
        out.append(left_out(results) + "\n")
    out.append("## What these numbers do not show\n")
    out.append("Loopback always copies what MSG_ZEROCOPY and SEND_ZC lend, so these can only lose there; the dropping "
               "device shows the opposite: no receiver, no driver, no completion that comes late. A real card lies "
               "between. Bare vmsplice loops reuse memory that a receiver may still see, which no program may. Page "
               "references are discarded unread by the spinning receiver. Loop-mounted images sit on the host's file "
               "system and share its disk.\n")
    return "\n".join(out)


def plots(results, directory):
    """[(path or None, why there is none)]"""
    drawn = []
    for part, congestion, title, file in (("tcp", "cubic", "sender's CPU, memory to TCP, bare send = 1 (cubic)", "tcp"),
                                          ("udp", None, "sender's CPU, memory to UDP, bare send = 1", "udp")):
        data = []
        for c in parts(results, part):
            base = "bare send" in c["rounds"] and median(c["rounds"]["bare send"], "cpu_us")
            if not base or c.get("congestion") != congestion:
                continue
            column = size_name(c["size"]) + (" GSO" if c.get("piece") else "")
            data.append((column, {n: (median(c["rounds"][n], "cpu_us") or 0) / base
                                  for n in ("auto", *names(c, "route")) if n in c["rounds"]}))
        if data:
            drawn.append(bars(directory / f"{file}.svg", title, data))
    return drawn
