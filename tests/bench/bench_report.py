# SPDX-License-Identifier: Apache-2.0
"""Results as text, and plots as SVG."""
import statistics

# (heading, key, format)
COLUMNS = (
    ("IOPS", "iops", "{:.0f}"),
    ("MiB/s", "mib_per_second", "{:.0f}"),
    ("p50 us", "p50_us", "{:.0f}"),
    ("p99 us", "p99_us", "{:.0f}"),
    ("CPU us", "server_cpu_us", "{:.2f}"),
)

COLOURS = {
    "lazycow": "#1b6ca8",
    "qemu-nbd threads": "#c0392b",
    "qemu-nbd io_uring": "#e08e0b",
    "nbdkit file": "#7f8c8d",
    "null": "#27ae60",
    "lazycow raw": "#8e44ad",
}


def values(runs, key):
    found = [run["latency"].get(key) if key in run.get("latency", {}) else run.get(key)
             for run in runs]
    return [value for value in found if value is not None]


def median(runs, key):
    found = values(runs, key)
    return statistics.median(found) if found else None


def best_qemu(servers):
    names = [name for name in servers if name.startswith("qemu-nbd")]
    return max(names, key=lambda name: median(servers[name], "iops"), default=None)


def ratios(servers, name, other, key):
    """Of each pair: (median, least, greatest)."""
    pairs = [a / b for a, b in zip(values(servers[name], key), values(servers[other], key)) if b]
    return (statistics.median(pairs), min(pairs), max(pairs)) if pairs else None


def show(format_, value):
    return "" if value is None else format_.format(value)


def table(rows):
    """Lines of a table in Markdown: its first row, the rule, the rows. rows: lists of text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                          for i, width in enumerate(widths)) + "|"
    return [line(rows[0]), rule, *(line(row) for row in rows[1:])]


def ratio_table(results):
    rows = [["work", "target", "IOPS ratio", "least to greatest", "CPU", "of", "lazycow IOPS",
             "CPU us", "p99 us"]]
    for result in results["rows"]:
        servers = result["servers"]
        other = best_qemu(servers)
        if other is None:
            continue
        iops = ratios(servers, "lazycow", other, "iops")
        cpu = ratios(servers, other, "lazycow", "server_cpu_us")
        rows.append([
            result["name"], f"{result['target']:g}" if result["target"] else "",
            show("{:.1f}", iops and iops[0]), f"{iops[1]:.1f} to {iops[2]:.1f}" if iops else "",
            f"1/{cpu[0]:.1f}" if cpu else "", other.split()[1],
            show("{:.0f}", median(servers["lazycow"], "iops")),
            show("{:.2f}", median(servers["lazycow"], "server_cpu_us")),
            show("{:.0f}", median(servers["lazycow"], "p99_us"))])
    return table(rows)


def detail_table(results):
    rows = [["work", "server", *(heading for heading, _, _ in COLUMNS)]]
    for result in results["rows"]:
        for name, runs in result["servers"].items():
            rows.append([result["name"], name,
                         *(show(format_, median(runs, key)) for _, key, format_ in COLUMNS)])
    return table(rows)


def count_table(results):
    rows = [["work", "server", "system calls", "file writes", "bytes written", "barriers",
             "instructions"]]
    for counted in results["counts"]:
        for name, counts in counted["servers"].items():
            rows.append([counted["name"], name, f"{counts['calls']:.2f}",
                         show("{:.2f}", counts.get("writes")), show("{:.0f}", counts.get("bytes")),
                         show("{:.2f}", counts.get("barriers")),
                         show("{:.0f}", counts.get("instructions"))])
    return table(rows)


def other_table(results):
    return table([["what", "lazycow", "other", "target"],
                  *([other["name"], other["lazycow"], other["other"], other["target"]]
                    for other in results["others"])])


def text(results):
    """The whole report."""
    lines = [f"{key}: {value}" for key, value in results["machine"].items()]
    lines += ["", *ratio_table(results)]
    if results.get("others"):
        lines += ["", *other_table(results)]
    if results.get("counts"):
        lines += ["", *count_table(results)]
    lines += ["", *detail_table(results)]
    return "\n".join(lines) + "\n"


# ---- Plots --------------------------------------------------------------------------------------

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50


def nice_limit(value):
    """The next of 1, 2, 5, 10, 20 … that is not less."""
    scale = 1.0
    while scale < value:
        for factor in (2, 2.5, 2):
            scale *= factor
            if scale >= value:
                break
    return scale


def svg(title, unit, depths, lines):
    """A plot over the queue depth. lines: {server: [value for each depth]}."""
    limit = nice_limit(max(max(points) for points in lines.values()))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(i):
        return LEFT + inner_width * i / (len(depths) - 1)

    def y(value):
        return TOP + inner_height * (1 - value / limit)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="15">{title}</text>']
    for i in range(6):
        value = limit * i / 5
        out.append(f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" '
                   f'y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">'
                   f'{value:g}</text>')
    for i, depth in enumerate(depths):
        out.append(f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                   f'{depth}</text>')
    out.append(f'<text x="{LEFT + inner_width / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
               'queue depth</text>')
    out.append(f'<text x="16" y="{TOP + inner_height / 2:.0f}" text-anchor="middle" '
               f'transform="rotate(-90 16 {TOP + inner_height / 2:.0f})">{unit}</text>')
    for i, (name, points) in enumerate(lines.items()):
        colour = COLOURS.get(name, "#000")
        path = " ".join(f"{x(k):.1f},{y(value):.1f}" for k, value in enumerate(points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(k):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
                for k, value in enumerate(points)]
        label = TOP + 10 + 18 * i
        out.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{label - 9}" width="12" height="10" '
                   f'fill="{colour}"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 30}" y="{label}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def sweep_lines(sweep, key):
    return {name: [median(runs, key) for runs in points]
            for name, points in sweep["servers"].items()}


def plots(sweep):
    """{file name: SVG}."""
    return {
        "iops.svg": svg("Cached random read 4 KiB: requests a second", "thousand IOPS",
                        sweep["depths"],
                        {name: [value / 1000 for value in points]
                         for name, points in sweep_lines(sweep, "iops").items()}),
        "cpu.svg": svg("Cached random read 4 KiB: the server's CPU time", "us a request",
                       sweep["depths"], sweep_lines(sweep, "server_cpu_us")),
    }
