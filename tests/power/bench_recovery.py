#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How soon a 1 TiB image whose refcounts are to be counted anew is of use, in lazycow and in
qemu-nbd, and how long checking it takes in lazycow and in qemu-img. Rounds take turns; medians and
ratios. Wants a few hundred MiB on a file system with sparse files, and root to drop the host's
caches."""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "system")]

# pylint: disable=wrong-import-position
import nbd  # noqa: E402

import lib_qcow2  # noqa: E402
import lib_server  # noqa: E402
import lib_tools  # noqa: E402

TEBI = 1 << 40
MEBI = 1 << 20
CLUSTER = 65536
# Clusters at the end of the disk that are taken out of their table, for what has to allocate.
UNMAPPED = 64
START_SECONDS = 120

# The measured times, in this order, from the start of the process; targets for lazycow with a warm
# cache.
MOMENTS = (("greeting", "start to greeting", None),
           ("first byte", "start to first byte", 50),
           ("write in place", "start to first write in place with FUA", 50),
           ("allocating write", "start to first allocating write", 300))
MEMORY_TARGET = 64


def make_images(directory, size):
    """A clean image with all its metadata, and a dirty one with a few clusters less."""
    clean = lib_tools.create(os.path.join(directory, "clean.qcow2"), size,
                             lazy_refcounts="on", preallocation="metadata", cluster_size=CLUSTER)
    dirty = os.path.join(directory, "dirty.qcow2")
    copy(clean, dirty)
    header = lib_qcow2.Header(dirty)
    for index in range(UNMAPPED):
        header.set_l2_entry(size - (index + 1) * CLUSTER, 0)
    lib_qcow2.set_field(dirty, "incompatible_features", lib_qcow2.DIRTY)
    for path in (clean, dirty):
        sync(path)
    return clean, dirty


def copy(source, target):
    lib_tools.run("cp", "--sparse=always", source, target, timeout=600)


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def warm(path):
    """All of the file that is no hole into the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    at, end = 0, os.fstat(descriptor).st_size
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            break
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        while at < hole:
            at += len(os.pread(descriptor, min(MEBI, hole - at), at))
    os.close(descriptor)


def cool(path):
    sync(path)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as control:
        control.write("3\n")


def prepare(path, cold):
    sync(path)
    if cold:
        cool(path)
    else:
        warm(path)


def commands(directory, image):
    socket = os.path.join(directory, "socket")
    return socket, {
        "lazycow": [lib_server.PLAIN_BINARY, "serve", "--socket", socket, image],
        "qemu-nbd": ["qemu-nbd", "-t", "-f", "qcow2", "-x", "big", "-k", socket, image],
    }


def connect(socket, process, begun):
    """Returns a handle as soon as the server answers. qemu-nbd makes its socket after the repair."""
    while True:
        if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
            raise SystemExit("the server did not start")
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        try:
            handle.connect_unix(socket)
            return handle
        except nbd.Error:
            time.sleep(0.0005)


def peak_memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


def recover(name, directory, image, size):
    """One start. Returns {moment: milliseconds, "memory": MiB}."""
    socket, all_commands = commands(directory, image)
    if os.path.exists(socket):
        os.unlink(socket)
    begun = time.monotonic()
    with subprocess.Popen(all_commands[name], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        result = {}

        def moment(what):
            result[what] = (time.monotonic() - begun) * 1000
        try:
            handle = connect(socket, process, begun)
            moment("greeting")
            handle.set_export_name("dirty" if name == "lazycow" else "big")
            handle.opt_go()
            handle.pread(4096, size // 2)
            moment("first byte")
            handle.pwrite(b"p" * 4096, size // 3 // CLUSTER * CLUSTER, nbd.CMD_FLAG_FUA)
            moment("write in place")
            handle.pwrite(b"a" * 4096, size - 2 * CLUSTER)
            moment("allocating write")
            result["memory"] = peak_memory(process.pid)
            handle.shutdown()
        finally:
            process.kill()
    return result


def check(name, image):
    """Returns {"seconds", "memory": MiB} of one check of a sound image."""
    program = lib_server.PLAIN_BINARY if name == "lazycow" else "qemu-img"
    begun = time.monotonic()
    with subprocess.Popen([program, "check", image], stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{program} check ends with {process.returncode}")
    return {"seconds": time.monotonic() - begun, "memory": usage.ru_maxrss / 1024}


class Bench:
    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.size = options.tebibytes * TEBI
        self.results = {}

    def note(self, cache, name, result):
        for what, value in result.items():
            self.results.setdefault((cache, what), {}).setdefault(name, []).append(value)

    def run(self):
        clean, dirty = make_images(self.directory, self.size)
        kept = os.path.join(self.directory, "kept.qcow2")
        os.rename(dirty, kept)
        caches = ("warm", "cold") if os.geteuid() == 0 else ("warm",)
        for number in range(self.options.rounds):
            for cache in caches:
                order = ("lazycow", "qemu-nbd") if number % 2 == 0 else ("qemu-nbd", "lazycow")
                for name in order:
                    copy(kept, dirty)
                    prepare(dirty, cache == "cold")
                    self.note(cache, name, recover(name, self.directory, dirty, self.size))
                    os.unlink(dirty)
                for name in order:
                    prepare(clean, cache == "cold")
                    found = check(name.replace("nbd", "img"), clean)
                    self.note(cache, name,
                              {f"check {what}": value for what, value in found.items()})
            print(f"round {number + 1} of {self.options.rounds} done", file=sys.stderr, flush=True)
        return caches

    def rows(self, caches):
        """Returns rows: (name, unit, cache, lazycow's values, qemu's values, target)."""
        for cache in caches:
            for key, title, target in MOMENTS:
                yield title, "ms", cache, key, target if cache == "warm" else None
            yield "most memory until then", "MiB", cache, "memory", MEMORY_TARGET
            yield "check of the clean image", "s", cache, "check seconds", None
            yield "most memory of that", "MiB", cache, "check memory", None

    def table(self, caches):
        lines = ["| what | cache | lazycow | least to greatest | qemu-nbd, qemu-img | ratio | "
                 "target |",
                 "|---|---|---:|---:|---:|---:|---:|"]
        for title, unit, cache, key, target in self.rows(caches):
            values = self.results[cache, key]
            ours, theirs = values["lazycow"], values["qemu-nbd"]
            ratio = statistics.median(b / a for a, b in zip(ours, theirs))
            digits = 2 if unit == "s" else 0 if unit == "MiB" else 1
            lines.append(f"| {title} | {cache} | {statistics.median(ours):.{digits}f} {unit} | "
                         f"{min(ours):.{digits}f} to {max(ours):.{digits}f} | "
                         f"{statistics.median(theirs):.{digits}f} {unit} | {ratio:.1f} | "
                         f"{f'{target} {unit}' if target else ''} |")
        return "\n".join(lines)

    def plain(self):
        return [{"cache": cache, "what": what, "values": values}
                for (cache, what), values in self.results.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tebibytes", type=int, default=1)
    parser.add_argument("--directory", default=".", help="where to put the images")
    parser.add_argument("--results", default="bench-results", help="where to leave text and JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recovery-", dir=options.directory) as directory:
        bench = Bench(options, directory)
        caches = bench.run()
    when = datetime.datetime.now().isoformat(timespec="minutes")
    head = (f"{when}, Linux {os.uname().release}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, {options.tebibytes} TiB in clusters of 64 KiB, "
            f"{options.rounds} rounds")
    text = f"{head}\n\n{bench.table(caches)}\n"
    print(text)
    os.makedirs(options.results, exist_ok=True)
    with open(os.path.join(options.results, "recovery.txt"), "w", encoding="utf-8") as stream:
        stream.write(text)
    with open(os.path.join(options.results, "recovery.json"), "w", encoding="utf-8") as stream:
        json.dump({"head": head, "results": bench.plain()}, stream, indent=1)


if __name__ == "__main__":
    main()
