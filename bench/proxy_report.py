# SPDX-License-Identifier: MIT
"""Turns the rounds of bench/proxy into the targets, tables, plots, and the figures of docs/when-splicing-pays.md."""

import re

from report import (bars, best, heading, median, ns, ratio, remarks, shown, shown_ratio, size_text, table, verdict)

AS_RUN = ("haproxy", "haproxy-auto")  # HAProxy as people run it
HAPROXY = (*AS_RUN, "haproxy-splice")
BARE = ("bare-splice", "bare-copy")
ROUNDS_TO_JUDGE = 3  # the interval over fewer is none
BEGIN, END = "<!-- figures: bench/proxy --document -->", "<!-- end of figures -->"


def unit(cell):
    """What a cell is judged by: s per GiB of large messages, µs per exchange or connection otherwise."""
    large = max(cell["load"]["request"], cell["load"]["response"]) >= 1 << 20
    return "gib" if large and not cell["cell"].startswith("sizes-") else "us"


def targets(results):
    """Every target of the proxy, with what this run says about it."""
    rows = []

    def add(what, own, other, key, at_most, inverse=False):
        r = ratio(other, own, key) if inverse else ratio(own, other, key)
        text = shown_ratio(r) if r is None or not inverse else \
            f"{1 / r['ratio']:.2f} [{1 / r['high']:.2f}, {1 / r['low']:.2f}]"
        judged = verdict(r, at_most) if r is None or r["rounds"] >= ROUNDS_TO_JUDGE else "too few rounds"
        rows.append({"target": what, "measured": text, "verdict": judged, "interval": r})

    for cell in results.get("cells", []):
        key = f"cpu_{unit(cell)}"
        for congestion, own in cell["rounds"].get("sluice", {}).items():
            def rounds_of(name):
                return cell["rounds"][name][congestion]

            where = f"{cell['cell']} {congestion}"
            haproxy, as_run = (best(cell, congestion, names, key) for names in (HAPROXY, AS_RUN))
            if unit(cell) == "gib":
                if congestion in cell["rounds"].get("bare-splice", {}):
                    add(f"{where}: at most 1.1 × the bare splice loop", own, rounds_of("bare-splice"), key, 1.1)
                if haproxy:
                    add(f"{where}: not above HAProxy at its best ({haproxy})", own, rounds_of(haproxy), key, 1.0)
                if as_run:
                    add(f"{where}: at most 0.2 × HAProxy as people run it ({as_run})", own, rounds_of(as_run), key, 0.2)
            elif cell["load"].get("close"):
                # The highest rate and the lowest p99 may be of two settings.
                fastest = haproxy and max((n for n in HAPROXY if congestion in cell["rounds"].get(n, {})),
                                          key=lambda n: median(rounds_of(n), "rps") or 0)
                if haproxy:
                    add(f"{where}: CPU of a connection not above HAProxy's ({haproxy})", own, rounds_of(haproxy), key, 1.0)
                steadiest = best(cell, congestion, HAPROXY, "p99")
                if fastest:
                    add(f"{where}: not fewer connections/s than HAProxy ({fastest})", own, rounds_of(fastest), "rps", 1.0,
                        True)
                if steadiest:
                    add(f"{where}: p99 not above HAProxy's ({steadiest})", own, rounds_of(steadiest), "p99", 1.0)
            elif haproxy:
                add(f"{where}: at most 0.9 × HAProxy at its best ({haproxy})", own, rounds_of(haproxy), key, 0.9)
    idle = results.get("idle", {}).get("rounds", {})
    for name in ("haproxy", "haproxy-splice"):
        if "sluice" in idle and name in idle:
            add(f"memory per idle connection: below {name}", idle["sluice"], idle[name], "idle_pss", 1.0)
    return rows


def cells_table(cells, congestion, prefix):
    rows = []
    for cell in cells:
        key = prefix + unit(cell)
        have = [n for n, by in cell["rounds"].items() if median(by.get(congestion, []), key) is not None]
        # Without a bare loop among them, all are compared with the first.
        base = best(cell, congestion, BARE, key) or (have[0] if have else None)
        for name in have:
            rounds = cell["rounds"][name][congestion]
            to_base = None if name == base else ratio(rounds, cell["rounds"][base][congestion], key)
            rows.append([cell["cell"], name + (" *" if name == base else ""), shown(median(rounds, key)),
                         shown_ratio(to_base), shown(median(rounds, "rps")), shown(median(rounds, "gbs")),
                         ns(median(rounds, "p50")), ns(median(rounds, "p99"))])
    return table(["load", "proxy", "CPU", "to * [95 %]", "/s", "GB/s", "p50", "p99"], rows)


UNITS = ("CPU: s per GiB of bulk, objects and upload, µs per exchange or connection otherwise. Medians over rounds; * marks "
         "the best bare loop, which is the floor of its load, or the first proxy where no bare loop was measured.\n")


def markdown(results):
    out = [heading("sluice proxy", results)]
    out.append(f"{results['rounds']} interleaved rounds, {results['seconds']} s windows (large messages: half as long again)"
               f"{' (quick: for a first look, not for claims)' if results['quick'] else ''}. Proxy on core 0, client and "
               "origin on core 1. How it is measured, and what the figures do not show: "
               "[bench/README.md](../../README.md).\n")
    out.append(remarks(results, ("cells", "whole", "sizes")))
    rows = results["targets"]
    if rows:
        out.append("## Targets\n")
        count = {v: sum(r["verdict"] == v for r in rows) for v in dict.fromkeys(r["verdict"] for r in rows)}
        out.append(", ".join(f"{n} {v}" for v, n in count.items()) + ". Ratios with their 95 % interval; "
                   "*within interval* means that this run cannot tell.\n")
        out.append(table(["target", "measured", "verdict"], [[r["target"], r["measured"], r["verdict"]] for r in rows]))
        out.append("")
    for congestion in results["congestions"] if results.get("cells") else ():
        out.append(f"## CPU of the proxy, {congestion}\n")
        out.append("Both ends spin and discard. " + UNITS)
        out.append(cells_table(results["cells"], congestion, "cpu_") + "\n")
    for congestion in results["congestions"] if results.get("whole") else ():
        out.append(f"## CPU of the whole machine, {congestion}\n")
        out.append("Both ends sleep and really read every byte: both cores, all processes, soft interrupts. " + UNITS)
        out.append(cells_table(results["whole"], congestion, "machine_") + "\n")
    if results.get("idle"):
        idle = results["idle"]
        out.append(f"## {idle['idle']:,} idle connections, then 32 busy ones beside them (1 KB, cubic)\n")
        out.append("The proxy's memory is the growth of its PSS. The kernel's is that of all four sockets of a connection, "
                   "client's and origin's included, which are the same for all. The machine's includes the load's own.\n")
        rows = [[name, f"{median(rs, 'idle'):,.0f}", size_text(median(rs, "idle_pss")), size_text(median(rs, "idle_slab")),
                 size_text(median(rs, "idle_used")), shown(median(rs, "cpu_us")), ns(median(rs, "p99"))]
                for name, rs in idle["rounds"].items()]
        out.append(table(["proxy", "idle", "its memory per connection", "kernel's slabs", "whole machine",
                          "µs CPU/exchange beside", "p99"], rows))
        out.append("")
    if results.get("sizes"):
        congestion = results["congestions"][0]
        out.append(f"## Exchanges by size of request and response, {congestion}\n")
        out.append(f"{results['sizes'][0]['connections']} connections, both ends spin and discard. µs of the proxy's CPU per "
                   "exchange.\n")
        names = list(dict.fromkeys(n for c in results["sizes"] for n in c["rounds"]))
        rows = [[n, *(shown(median(c["rounds"].get(n, {}).get(congestion, []), "cpu_us")) for c in results["sizes"])]
                for n in names]
        rows.append(["bare-splice to bare-copy", *(shown_ratio(splice_to_copy(c, congestion)) for c in results["sizes"])])
        out.append(table(["", *(c["cell"].removeprefix("sizes-") for c in results["sizes"])], rows) + "\n")
    out.append("## What these numbers do not show\n")
    out.append("Loopback has no network card: no interrupts of one, no DMA, no checksum or segmentation offload, no loss, no "
               "distance. The ends send from memory, in pages of up to 32 KiB; a card's are smaller, and splicing moves pages. "
               "Spliced bytes are discarded by the spinning client without ever being read, except in the whole-machine run. "
               "One worker on one core: nothing about scaling over cores.\n")
    return "\n".join(out)


def splice_to_copy(cell, congestion, prefix="cpu_"):
    rounds = [cell["rounds"].get(n, {}).get(congestion, []) for n in BARE]
    return ratio(*rounds, prefix + unit(cell))


def plots(results, directory):
    """[(path or None, why there is none)]"""
    drawn = []
    for part, wanted, base, title, file in (
            ("cells", "gib", "bare-splice", "proxy's CPU per GiB, bare splice loop = 1", "bulk"),
            ("cells", "us", "bare-copy", "proxy's CPU per exchange, bare recv/send loop = 1", "exchanges"),
            ("sizes", "us", "bare-copy", "proxy's CPU per exchange by size, bare recv/send loop = 1", "sizes")):
        congestion = results["congestions"][0]
        data = []
        for cell in results.get(part, []):
            key = f"cpu_{wanted}"
            least = median(cell["rounds"].get(base, {}).get(congestion, []), key)
            if unit(cell) == wanted and least:
                data.append((cell["cell"].removeprefix("sizes-"),
                             {n: (median(by.get(congestion, []), key) or 0) / least
                              for n, by in cell["rounds"].items() if n != base}))
        if data:
            drawn.append(bars(directory / f"{file}.svg", f"{title} ({congestion})", data))
    return drawn


def with_figures(page, results, where):
    """The page with the table of this run. where: its folder, seen from the page."""
    congestion = results["congestions"][0]
    columns = ("bare-copy", "bare-splice", None, "sluice", "haproxy", "haproxy-splice")
    rows = []
    for part, prefix, title in (("sizes", "cpu_", "{size} there and back, {connections} connections"),
                                ("cells", "cpu_", "{cell}"), ("whole", "machine_", "{cell}, whole machine")):
        for cell in results.get(part, []):
            name = title.format(size=cell["cell"].removeprefix("sizes-"), **cell)
            row = [f"{name}, {'s/GiB' if unit(cell) == 'gib' else 'µs'}"]
            for column in columns:
                row.append(shown_ratio(splice_to_copy(cell, congestion, prefix)) if column is None else
                           shown(median(cell["rounds"].get(column, {}).get(congestion, []), prefix + unit(cell))))
            rows.append(row)
    m = results["machine"]
    text = (f"From [this run]({where}/README.md): {results['date']}, {m['cpu']}, {m['cores']} cores, kernel {m['kernel']}, "
            f"{congestion}, {results['rounds']} rounds, revision {results['revision']}. CPU of the proxy, except in the rows "
            "of the whole machine.\n\n"
            + table(["what flows", "recv and send, bare", "splice, bare", "splice to copy [95 %]", "sluice proxy",
                     "HAProxy as it comes", "HAProxy, splicing"], rows))
    return re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.S)
