#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Compares lazycow with qemu-nbd: runs each piece of work on each server in turn, several times,
and prints medians and ratios in a table. The ceilings are the null engine behind our protocol code,
which reads nothing, and a raw image in lazycow; nbdkit on a raw file shows the cost of serving
without a format elsewhere. Needs about four times --size of disk and as much page cache."""
import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import bench_counts
import bench_report
import bench_rows
from bench_images import Images, cool
from bench_servers import BenchError, Programs, Server, fio, memory, run


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, options, images):
        self.options = options
        self.images = images
        self.programs = Programs(options.build)

    def image_for(self, row, name):
        if name in ("nbdkit file", "lazycow raw", "null"):  # null: any file of that size does
            return self.images.get("raw_data")
        if name == "lazycow flat":
            return self.images.get("allocated")
        return self.images.scratch(row.image) if row.writes else self.images.get(row.image)

    def server(self, name, image, row):
        if row.direct:
            cool(image)
        return Server(name, self.programs, image, self.images.directory, tcp=row.tcp,
                      direct=row.direct)

    def once(self, row, name, load=None):
        duration = [f"--duration={self.options.seconds}", f"--warmup={self.options.seconds / 5}"]
        with self.server(name, self.image_for(row, name), row) as server:
            return server.load(self.programs, [*(load or row.load), *duration])

    def pairs(self, row):
        """Every server in each round, each time another one first."""
        names = bench_rows.servers_of(row)
        servers = {name: [] for name in names}
        for i in range(self.options.pairs):
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                result = self.once(row, name)
                say(f"{row.name}: {name}: {result['iops']:.0f} IOPS, "
                    f"{result['server_cpu_us']:.2f} us CPU")
                servers[name].append(result)
        return servers

    def sweep(self):
        """Servers take turns at each depth, so that a busy moment bends no single line."""
        servers = {name: [[] for _ in bench_rows.SWEEP_DEPTHS] for name in bench_rows.SWEEP_SERVERS}
        row = bench_rows.ROWS[0]
        for _ in range(self.options.pairs):
            for i, depth in enumerate(bench_rows.SWEEP_DEPTHS):
                for name, points in servers.items():
                    points[i].append(self.once(row, name, load=bench_rows.depth(depth)))
                say(f"by queue depth: {depth}: "
                    f"{[round(points[i][-1]['iops']) for points in servers.values()]}")
        return {"depths": bench_rows.SWEEP_DEPTHS, "servers": servers}

    # ---- What is no load on one server ----------------------------------------------------------

    def second_opinion(self, row):
        """fio's own engine, which costs more than the server."""
        iops = {}
        for name in ("lazycow", *bench_rows.BUFFERED_QEMU):
            with self.server(name, self.image_for(row, name), row) as server:
                iops[name] = server.fio([*row.fio, f"--size={self.options.size}m"],
                                        self.options.seconds)["iops"]
        other = max(bench_rows.BUFFERED_QEMU, key=iops.get)
        return {"name": f"fio: {row.name}", "lazycow": f"{iops['lazycow']:.0f} IOPS",
                "other": f"{iops[other]:.0f} IOPS ({other})", "target": ""}

    def raw_direct(self, rw, row, results):
        """Measures the disk without a server: fio on the raw file, O_DIRECT."""
        raw = self.images.scratch("raw_data")
        cool(raw)
        iops = fio("--ioengine=io_uring", "--direct=1", f"--filename={raw}", f"--rw={rw}",
                   "--bs=4k", "--iodepth=32", seconds=self.options.seconds)["iops"]
        ours = bench_report.median(results[row]["lazycow"], "iops")
        return {"name": f"{row} against fio on the raw file",
                "lazycow": f"{ours:.0f} IOPS, {ours / iops:.0%}", "other": f"{iops:.0f} IOPS",
                "target": "90% (or the ratio above)"}

    def first_byte(self, name):
        """Milliseconds from starting the program to the greeting on its socket, clean 1 TiB."""
        times = []
        for _ in range(self.options.pairs):
            begun = time.monotonic()
            server = Server(name, self.programs, self.images.get("huge"), self.images.directory)
            with server:
                with contextlib.closing(server.connect()) as link:
                    link.recv(18)
                times.append((time.monotonic() - begun) * 1000)
        return statistics.median(times)

    def start(self):
        ours = self.first_byte("lazycow")
        other = min(self.first_byte(name) for name in bench_rows.BUFFERED_QEMU)
        return {"name": "start to greeting, clean 1 TiB image", "lazycow": f"{ours:.1f} ms",
                "other": f"{other:.1f} ms (qemu-nbd)", "target": "10 ms"}

    def memory_after_load(self, name):
        load = ["--depth=32", f"--duration={self.options.seconds}"]
        with Server(name, self.programs, self.images.get("huge"), self.images.directory) as server:
            server.load(self.programs, load)
            time.sleep(2)  # buffers are given back while idle
            return memory(server.pid)

    def resident(self):
        ours, other = (self.memory_after_load(name) for name in ("lazycow", "qemu-nbd threads"))
        return {"name": "resident memory, idle after load on a 1 TiB image",
                "lazycow": f"{ours['rss_mib']:.0f} MiB ({ours['anonymous_mib']:.0f} anonymous)",
                "other": f"{other['rss_mib']:.0f} MiB ({other['anonymous_mib']:.0f} anonymous)",
                "target": "not more"}

    def read_beside_flood(self, name):
        """p99 of 4 KiB reads on one connection while another one floods the image with writes."""
        row = bench_rows.Row("flood", ("--depth=1",), writes=True)
        with self.server(name, self.image_for(row, name), row) as server:
            flood = server.load_words(self.programs, ["--depth=32", "--mix=write", "--block=256k",
                                                      f"--duration={self.options.seconds + 1}"])
            with background(flood):
                time.sleep(0.5)
                result = server.load(self.programs,
                                     ["--depth=1", f"--duration={self.options.seconds}"])
            return result["latency"]["p99_us"] / 1000

    def fairness(self, where):
        ours = self.read_beside_flood("lazycow")
        other = min(self.read_beside_flood(name) for name in bench_rows.BUFFERED_QEMU)
        return {"name": f"p99 of 4 KiB reads beside a flood of writes{where}",
                "lazycow": f"{ours:.2f} ms", "other": f"{other:.2f} ms (qemu-nbd)",
                "target": "5 ms"}

    @staticmethod
    def share(row, servers, other):
        iops = bench_report.ratios(servers, "lazycow", other, "iops")
        cpu = bench_report.ratios(servers, other, "lazycow", "server_cpu_us")
        goal = other != "lazycow raw" and row.name.startswith("random read 4 KiB")
        return {"name": f"share of what '{other}' reaches: {row.name}",
                "lazycow": f"{iops[0]:.0%} by IOPS, {cpu[0]:.0%} by CPU", "other": "",
                "target": "80% by IOPS" if goal else ""}

    @staticmethod
    def flat(work, plain, results):
        ours, base = (bench_report.median(results[name]["lazycow"], "server_cpu_us")
                      for name in (work, plain))
        return {"name": f"CPU against '{plain}': {work}", "lazycow": f"{ours / base:.2f} times",
                "other": "", "target": "flat"}

    def against_ourselves(self, results):
        for row in bench_rows.ROWS:
            for other in bench_rows.CEILINGS:
                if other in results.get(row.name, ()):
                    yield self.share(row, results[row.name], other)
        for work, plain in bench_rows.FLAT:
            if work in results and plain in results:
                yield self.flat(work, plain, results)

    def others(self, results):
        yield from self.against_ourselves(results)
        for row in bench_rows.ROWS:
            if row.fio and row.name in results:
                yield self.second_opinion(row)
            if row.direct and row.name in results:
                rw = "randwrite" if row.writes else "randread"
                yield self.raw_direct(rw, row.name, results)
        if not self.options.rows:
            yield self.start()
            yield self.resident()
            yield self.fairness("")
            with dirty_limit(DIRTY_LIMIT) as lowered:
                if lowered:
                    yield self.fairness(f", past a dirty limit of {DIRTY_LIMIT >> 20} MiB")


# Low enough to be passed at once, and to keep the kernel throttling whoever writes.
DIRTY_LIMIT = 64 << 20


@contextlib.contextmanager
def dirty_limit(limit):
    """Lowers the kernel's limit of bytes waiting to be written, for root. Yields whether it did."""
    ratio = "/proc/sys/vm/dirty_ratio"
    try:
        with open(ratio, encoding="ascii") as file:
            before = file.read()
        with open("/proc/sys/vm/dirty_bytes", "w", encoding="ascii") as file:
            file.write(str(limit))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with open(ratio, "w", encoding="ascii") as file:
            file.write(before)


@contextlib.contextmanager
def background(words):
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def file_system(directory):
    """Its type, from the mount whose path is the longest that leads there."""
    with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
        found = [line.split()[1:3] for line in mounts]
    inside = [mount for mount in found
              if os.path.commonpath([mount[0], directory]) == mount[0]]
    return max(inside, key=lambda mount: len(mount[0]))[1]


def machine(directory, options):
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
        model = next((line.split(":", 1)[1].strip() for line in info
                      if line.startswith("model name")), "unknown")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{model}, {os.cpu_count()} cores",
        "kernel": os.uname().release,
        "file system": file_system(directory),
        "qemu-nbd": run("qemu-nbd", "--version").splitlines()[0].split(maxsplit=1)[1],
        "runs": f"{options.pairs} of {options.seconds:g} s each, data {options.size} MiB",
        "load average before": "{:.1f}".format(os.getloadavg()[0]),
    }


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default=".", help="the build directory (default: this one)")
    parser.add_argument("--quick", action="store_true", help="one pair of a second each")
    parser.add_argument("--pairs", type=int, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, help="length of a run (default: 2)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of data (default: 1024)")
    parser.add_argument("--rows", help="only the work whose name this expression matches")
    parser.add_argument("--no-counts", action="store_true", help="without strace and callgrind")
    parser.add_argument("--no-sweep", action="store_true", help="without the plots")
    parser.add_argument("--directory", default=".", help="where to make the images")
    parser.add_argument("--output", default="bench-results", help="directory of the results")
    options = parser.parse_args()
    options.pairs = options.pairs or (1 if options.quick else 5)
    options.seconds = options.seconds or (1.0 if options.quick else 2.0)
    return options


def measure(options, images):
    bench = Bench(options, images)
    results = {"machine": machine(images.directory, options), "rows": [], "others": []}
    for row in bench_rows.ROWS:
        if options.rows and not re.search(options.rows, row.name):
            continue
        results["rows"].append({"name": row.name, "target": row.target,
                                "target_cpu": row.target_cpu, "servers": bench.pairs(row)})
    by_name = {row["name"]: row["servers"] for row in results["rows"]}
    for other in bench.others(by_name):
        say(f"{other['name']}: {other['lazycow']}, {other['other']}")
        results["others"].append(other)
    if not options.no_counts:
        results["counts"] = bench_counts.count_all(bench.programs, images, say)
    if not options.no_sweep:
        results["sweep"] = bench.sweep()
    return results


def write(results, directory):
    os.makedirs(directory, exist_ok=True)
    files = {"bench.json": json.dumps(results, indent=1) + "\n",
             "bench.txt": bench_report.text(results)}
    if "sweep" in results:
        files.update(bench_report.plots(results["sweep"]))
    for name, content in files.items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(content)


def main():
    options = parse_options()
    directory = tempfile.mkdtemp(prefix="bench-images-", dir=os.path.abspath(options.directory))
    images = Images(directory, options.size)
    try:
        results = measure(options, images)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    finally:
        images.remove()
    write(results, options.output)
    print(bench_report.text(results), end="")


if __name__ == "__main__":
    main()
