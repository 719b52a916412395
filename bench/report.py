# SPDX-License-Identifier: MIT
"""Turns the rounds of a run into tables, ratios with confidence intervals, verdicts on the targets, and a plot."""

import math
import random
import shutil
import statistics
import subprocess
from pathlib import Path

SMALL = ("1K", "10K", "100K")


def median(rounds, key):
    values = [r[key] for r in rounds if r and r.get(key) is not None]
    return statistics.median(values) if values else None


def figure(size):
    """What a size is judged by."""
    return "cpu_us" if size in SMALL else "cpu_gib"


def ratio(numerator, denominator, key, seed=1):
    """Geometric mean of the rounds' paired ratios, with the bootstrap's 95 % interval over rounds."""
    logs = [math.log(a[key] / b[key]) for a, b in zip(numerator, denominator)
            if a and b and a.get(key) and b.get(key)]
    if not logs:
        return None
    generator = random.Random(seed)
    means = sorted(statistics.fmean(generator.choices(logs, k=len(logs))) for _ in range(4000))
    return {"ratio": math.exp(statistics.fmean(logs)), "low": math.exp(means[100]), "high": math.exp(means[-101]),
            "rounds": len(logs)}


def t_quantile(p, df):
    """Of Student's distribution, from the normal one (Abramowitz and Stegun 26.7.5; within 1 % for df of 6 and more)."""
    x = statistics.NormalDist().inv_cdf(p)
    return (x + (x**3 + x) / (4 * df) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * df**2)
            + (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * df**3)
            + (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / (92160 * df**4))


def joint_ratio(numerator, denominator, key, together):
    """As ratio, with an interval that is wide enough for `together` of them to hold all at once with 95 % (Bonferroni;
    Student's, as the bootstrap of few rounds knows nothing about such tails)."""
    logs = [math.log(a[key] / b[key]) for a, b in zip(numerator, denominator)
            if a and b and a.get(key) and b.get(key)]
    if len(logs) < 3:
        return None
    mean = statistics.fmean(logs)
    half = t_quantile(1 - 0.025 / together, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "rounds": len(logs)}


def verdict(r, at_most):
    """A target holds when the interval does not exclude it; an interval on both sides says so."""
    if r is None:
        return "not measured"
    if r["high"] <= at_most:
        return "met"
    return "not met" if r["low"] > at_most else "within interval"


def best(cell, congestion, names, key):
    """The name with the lowest median: chosen over all rounds, because the best of each round would be chosen by
    its noise."""
    have = [(median(cell["rounds"][n][congestion], key), n) for n in names
            if congestion in cell["rounds"].get(n, {})]
    have = [h for h in have if h[0] is not None]
    return min(have)[1] if have else None


def floors(cell):
    return [n for n in cell["rounds"] if n.startswith("floor-")]


def peers(cell):
    return [n for n in cell["rounds"] if n.split("-")[0] in ("nginx", "lighttpd", "h2o") and n != "nginx-default"]


def shown(value, digits=3):
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def shown_ratio(r, places=2):
    return "–" if r is None else f"{r['ratio']:.{places}f} [{r['low']:.{places}f}, {r['high']:.{places}f}]"


def ns(value):
    if value is None:
        return "–"
    return f"{shown(value / 1e3)} µs" if value < 1e6 else f"{shown(value / 1e6)} ms"


def size_text(value):
    if value is None:
        return "–"
    return f"{value / 1024:.1f} KiB" if abs(value) < 2**20 else f"{value / 2**20:.1f} MiB"


def table(header, rows):
    """Markdown that is also readable on a terminal."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |" for r in cells]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)


def targets(results):
    """Every target of the project, with what this run says about it."""
    rows = []

    def add(what, measured, text, at_most):
        rows.append({"target": what, "measured": text, "verdict": verdict(measured, at_most), "interval": measured})

    for cell in results.get("cells", []):
        own = cell["rounds"].get("sluice")
        if not own:
            continue
        size, key, where = cell["size"], figure(cell["size"]), f"{cell['size']} ×{cell['connections']}"
        for congestion in own:
            floor, peer = (best(cell, congestion, names, key) for names in (floors(cell), peers(cell)))
            limit = 1.12 if size in SMALL else 1.05
            if floor:
                r = ratio(own[congestion], cell["rounds"][floor][congestion], key)
                add(f"{where} {congestion}: at most {limit} × the floor ({floor[6:]})", r, shown_ratio(r), limit)
            if peer:
                r = ratio(own[congestion], cell["rounds"][peer][congestion], key)
                below = "below every peer" if size in SMALL else "not above the best peer"
                add(f"{where} {congestion}: {below} ({peer})", r, shown_ratio(r), 1.0)
        if "cubic" in own and "bbr" in own and size not in SMALL:
            r = ratio(own["bbr"], own["cubic"], key)
            add(f"{where}: bbr at most 1.25 × own cubic", r, shown_ratio(r), 1.25)

    cold = results.get("cold", {}).get("rounds", {}).get("sluice")
    if cold:
        mixed, alone = [c["mixed"] for c in cold], [c["alone"] for c in cold]
        r = ratio(mixed, alone, "p99")
        add("hot p99 while cold files are read: at most 3 × alone", r, shown_ratio(r), 3.0)
        r = ratio(alone, mixed, "rps")
        add("hot rate while cold files are read: at least 0.5 × alone", r,
            "–" if r is None else f"{1 / r['ratio']:.2f} [{1 / r['high']:.2f}, {1 / r['low']:.2f}]", 2.0)
    idle = results.get("idle", {}).get("rounds", {})
    if "sluice" in idle and "nginx" in idle:
        r = ratio(idle["sluice"], idle["nginx"], "idle_pss")
        add("memory per idle connection: below nginx", r, shown_ratio(r), 1.0)
    return rows


def matrix_table(results, congestion):
    rows = []
    for cell in results["cells"]:
        key = figure(cell["size"])
        floor = best(cell, congestion, floors(cell), key)
        for name, by_congestion in cell["rounds"].items():
            rounds = by_congestion.get(congestion)
            if not rounds or median(rounds, key) is None:
                continue
            to_floor = ratio(rounds, cell["rounds"][floor][congestion], key) if floor and name != floor else None
            rows.append([f"{cell['size']} ×{cell['connections']}", name + (" *" if name == floor else ""),
                         shown(median(rounds, "cpu_us")), shown(median(rounds, "cpu_gib")), shown_ratio(to_floor),
                         shown(median(rounds, "rps")), shown(median(rounds, "gbs")),
                         ns(median(rounds, "p50")), ns(median(rounds, "p99"))])
    return table(["body × connections", "server", "µs CPU/request", "s CPU/GiB", "to the floor [95 %]", "requests/s",
                  "GB/s", "p50", "p99"], rows)


def noise(results, parts):
    """How much of the run was disturbed from outside."""
    lists = [by for part in parts for cell in results.get(part, []) for by in cell["rounds"].values()]
    rounds = [r for by in lists for rs in (by.values() if isinstance(by, dict) else [by]) for r in rs
              if r and "foreign" in r]
    if not rounds:
        return None
    disturbed = sum(r["foreign"] > 0.05 for r in rounds)
    stolen = sum(r["steal"] > 0.02 for r in rounds)
    return (f"{len(rounds)} windows; in {disturbed} of them other processes used more than 5 % of the server's core, "
            f"in {stolen} the host withheld more than 2 % of the CPU.")


def heading(title, results):
    """Title, machine and versions."""
    m = results["machine"]
    return (f"# {title}, {results['date']}, {m['class']}\n\n"
            f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, kernel {m['kernel']}, {m['distribution']}; "
            f"host's congestion control {m['congestion_host']}, queue {m['qdisc']}, governor {m['governor']}, "
            f"huge pages {m['thp']}. Revision {results['revision']}. "
            + ", ".join(f"{k} {v}" for k, v in sorted(results["versions"].items())) + ".\n")


def remarks(results, parts=("cells",)):
    """What makes the figures doubtful. parts: lists of cells whose windows count."""
    lines = [f"- warning: {w}" for w in results["machine"]["warnings"]]
    lines += [f"- **problem: {p}**" for p in results["problems"]]
    if noise(results, parts):
        lines.append(f"- {noise(results, parts)}")
    return "\n".join([*lines, ""])


def markdown(results):
    out = []
    out.append(heading("sluice bench", results))
    out.append(f"{results['rounds']} interleaved rounds, {results['seconds']} s windows"
               f"{' (quick: for a first look, not for claims)' if results['quick'] else ''}. "
               "Server on core 0, client on core 1. How it is measured, and what the figures do not show: "
               "[bench/README.md](../../README.md).\n")
    out.append(remarks(results))

    rows = targets(results)
    if rows:
        out.append("## Targets\n")
        count = {v: sum(r["verdict"] == v for r in rows) for v in ("met", "within interval", "not met", "not measured")}
        out.append(", ".join(f"{n} {v}" for v, n in count.items() if n) + ". Ratios with their 95 % interval; "
                   "*within interval* means that this run cannot tell.\n")
        out.append(table(["target", "measured", "verdict"], [[r["target"], r["measured"], r["verdict"]] for r in rows]))
        out.append("")
    if results.get("cells"):
        for congestion in results["congestions"]:
            out.append(f"## CPU of the server, {congestion}\n")
            out.append("Spinning client that discards bodies; medians over rounds; * marks the best bare loop, which "
                       "is the floor of its row group.\n")
            out.append(matrix_table(results, congestion) + "\n")
    if results.get("whole"):
        out.append("## CPU of the whole machine\n")
        out.append("Sleeping client that really reads every byte: both cores, all processes, soft interrupts.\n")
        rows = [[f"{c['size']} ×{c['connections']}", congestion, name, shown(median(rs, "machine_us")),
                 shown(median(rs, "machine_gib")), shown(median(rs, "gbs"))]
                for c in results["whole"] for name, by in c["rounds"].items() for congestion, rs in by.items()
                if median(rs, "machine_us")]
        out.append(table(["body × connections", "congestion", "server", "µs CPU/request", "s CPU/GiB", "GB/s"], rows))
        out.append("")
    if results.get("idle"):
        idle = results["idle"]
        out.append(f"## {idle['idle']:,} idle connections beside 32 busy ones (10K, cubic)\n")
        rows = [[name, f"{median(rs, 'idle'):,.0f}", size_text(median(rs, "idle_pss")), size_text(median(rs, "idle_slab")),
                 shown(median(rs, "cpu_us")), ns(median(rs, "p99"))] for name, rs in idle["rounds"].items()]
        out.append(table(["server", "idle", "its memory per idle connection (PSS)", "kernel memory per connection, both ends",
                          "µs CPU/request", "p99"], rows))
        out.append("")
    if results.get("slow"):
        slow = results["slow"]
        out.append(f"## {slow['connections']:,} slow readers of 100M, {slow['rate'] // 1024} KiB/s each (cubic)\n")
        rows = [[name, shown(median(rs, "cpu_gib")), shown(median(rs, "gbs")), size_text(median(rs, "pss")),
                 size_text(median(rs, "tcp_bytes"))] for name, rs in slow["rounds"].items()]
        out.append(table(["server", "s CPU/GiB", "GB/s", "server's memory (PSS)", "kernel's TCP memory"], rows))
        out.append("")
    if results.get("cold"):
        cold = results["cold"]
        out.append("## Hot 10K requests while four cold 2 GiB files are read from disk (cubic, 32 hot connections)\n")
        out.append(f"The disk alone, read plainly: {shown(cold['disk_gbs'])} GB/s.\n")
        rows = []
        for name, rs in cold["rounds"].items():
            alone, mixed = [r["alone"] for r in rs], [r["mixed"] for r in rs]
            rows.append([name, ns(median(alone, "p99")), ns(median(mixed, "p99")),
                         shown_ratio(ratio(mixed, alone, "p99")), shown(median(alone, "rps")),
                         shown(median(mixed, "rps")), shown_ratio(ratio(mixed, alone, "rps")),
                         shown(median(mixed, "cold_gbs")), shown(median(mixed, "cold_gbs") / cold["disk_gbs"], 2)])
        out.append(table(["server", "hot p99 alone", "with cold", "ratio", "hot requests/s alone", "with cold", "ratio",
                          "cold GB/s", "of the disk's speed"], rows))
        out.append("")
    if results.get("copying"):
        out.append("## The share of copying (Amdahl)\n")
        out.append("Share of the server core's busy samples that are in the kernel's copy routines: the ceiling of "
                   "what avoiding copies can gain there.\n")
        rows = [[f"{c['size']} ×{c['connections']}", c["server"], f"{c['share'] * 100:.0f} %", c["samples"]]
                for c in results["copying"]]
        out.append(table(["body × connections", "server", "copying", "samples"], rows))
        out.append("")
    out.append("## What these numbers do not show\n")
    out.append("Loopback has no network card: no interrupts of one, no DMA, no checksum or segmentation offload, no "
               "loss, no distance. Segments are up to 64 KiB, so per-packet cost is lower than on Ethernet. Data sent by "
               "reference is discarded by the client without ever being read, except in the whole-machine run. "
               "MSG_ZEROCOPY and SEND_ZC always copy on loopback and are not judged here. One worker on one core: "
               "nothing about scaling over cores.\n")
    return "\n".join(out)


# As many as there are subjects in any run; told apart by people who see few colours, too (Okabe and Ito, and darker ones).
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#8fd175", "#d55e00", "#e69f00", "#f0e442", "#cc79a7", "#7b4173", "#999999",
           "#333333", "#b07aa1")


def bars(path, title, data):
    """Clustered bars by gnuplot or matplotlib, whichever is there, with a line at 1. data: (label, {name: value}) for
    each cluster. Returns the path, or None and why there is none."""
    names = list(dict.fromkeys(n for _, row in data for n in row))
    if not data or not names:
        return None, f"nothing to plot for {path.name}"
    if shutil.which("gnuplot"):
        lines = ["label " + " ".join(names)] + [f'"{label}" ' + " ".join(f"{row.get(n, 0):.4f}" for n in names)
                                                for label, row in data]
        script = (f"set terminal svg size 1000,480 background 'white'; set output '{path}'; set style data histogram; "
                  "set style histogram clustered; set style fill solid 0.8; set key outside noenhanced; "
                  f"set yrange [0:*]; set ylabel \"{title}\"; set arrow from graph 0,first 1 to graph 1,first 1 "
                  f"nohead dt 2; plot for [i=2:{len(names) + 1}] '-' using i:xtic(1) title columnheader(i) "
                  f"linecolor rgb word('{' '.join(COLOURS)}', (i - 2) % {len(COLOURS)} + 1)\n")
        done = subprocess.run(["gnuplot"], input=script + ("\n".join(lines) + "\ne\n") * len(names), text=True,
                              capture_output=True)
        return (path, None) if done.returncode == 0 else (None, f"gnuplot failed: {done.stderr.strip()[-200:]}")
    try:
        import matplotlib
    except ImportError:
        return None, "no plot: needs gnuplot (apt install gnuplot-nox) or matplotlib (apt install python3-matplotlib)"
    matplotlib.use("svg")
    from matplotlib import pyplot
    figure_, axes = pyplot.subplots(figsize=(10, 4.8))
    width = 0.8 / len(names)
    for i, n in enumerate(names):
        axes.bar([x + i * width for x in range(len(data))], [row.get(n, 0) for _, row in data], width, label=n,
                 color=COLOURS[i % len(COLOURS)])
    axes.set_xticks([x + 0.4 for x in range(len(data))], [label for label, _ in data])
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylabel(title)
    axes.legend()
    figure_.tight_layout()
    figure_.savefig(path)
    return path, None


def plot(results, directory):
    """A picture of the matrix. Returns its path, or None and why there is none."""
    cells = [c for c in results.get("cells", []) if c["connections"] == 32 or c["size"] == "100M"]
    data = []
    for c in cells:
        key = figure(c["size"])
        floor = best(c, "cubic", floors(c), key)
        base = median(c["rounds"][floor]["cubic"], key) if floor else None
        if not base:
            continue
        label = f"{c['size']} x{c['connections']}"
        data.append((label, {n: (median(by["cubic"], key) or 0) / base for n, by in c["rounds"].items()
                             if "cubic" in by and not n.startswith("floor-")}))
    return bars(Path(directory) / "cpu-to-floor.svg", "server CPU, bare loop = 1 (cubic)", data)
