# SPDX-License-Identifier: Apache-2.0
"""Counts that do not depend on the machine's load: system calls, barriers, bytes and instructions a
request. perf counts system calls. strace counts writes and barriers; it does not see those of
io_uring, so the threads backend is counted. callgrind counts instructions. Counts of strace and
callgrind are the difference of a longer and a shorter run, so that starting and stopping do not
count."""
import os
import re

from bench_servers import STOP_SECONDS, Server, run

CALLS = 60000
CALLS_FUA = 2000
SHORT = 1000
LONG = 6000
# fdatasync makes a run of FUA writes slow.
SHORT_FUA = 100
LONG_FUA = 1100

WRITES = {"write", "pwrite64", "pwritev", "pwritev2"}
BARRIERS = {"fdatasync", "fsync"}
CALL = re.compile(r"^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed).*= (-?\d+)")

COUNTED_SERVERS = ("lazycow", "lazycow threads", "qemu-nbd threads", "qemu-nbd io_uring")

# (name, arguments of nbdload, image, whether it writes)
COUNTED = (
    ("random read 4 KiB, QD 1", ("--depth=1",), "allocated", False),
    ("random read 4 KiB, QD 32", ("--depth=32",), "allocated", False),
    ("random write 4 KiB, QD 32", ("--depth=32", "--mix=write"), "allocated", True),
    ("FUA write 4 KiB, fresh clusters, QD 1",
     ("--depth=1", "--mix=fua", "--pattern=sequential", "--align=64k"), "fresh", True),
    ("FUA write 4 KiB, fresh clusters, QD 32",
     ("--depth=32", "--mix=fua", "--pattern=sequential", "--align=64k"), "fresh", True),
)


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        return int(children.read().split()[0])


def image_of(images, counted):
    _, _, image, writes = counted
    return images.scratch(image) if writes else images.get(image)


def calls(name, programs, images, counted):
    """System calls of a request, counted by the kernel: this slows nothing down, so that batches
    keep their sizes."""
    out = images.path("perf.csv")
    count = CALLS_FUA if "FUA" in counted[0] else CALLS
    with Server(name, programs, image_of(images, counted), images.directory) as server:
        run("perf", "stat", "-x,", "-o", out, "-e", "raw_syscalls:sys_enter", "-p", server.pid,
            "--", *server.load_words(programs, [*counted[1], f"--count={count}"]))
    with open(out, encoding="ascii") as lines:
        total = next(int(line.split(",")[0]) for line in lines if "raw_syscalls" in line)
    return {"calls": total / count}


def read_trace(path):
    """Sums a trace up: barriers, and the bytes of write calls."""
    counts = {"barriers": 0, "writes": 0, "bytes": 0}
    with open(path, encoding="utf-8", errors="replace") as trace:
        for line in trace:
            match = CALL.match(line)
            if not match:
                continue
            name, answer = match.group(1), int(match.group(2))
            if name in BARRIERS:
                counts["barriers"] += 1
            elif name in WRITES and answer > 8:  # 8 bytes: an eventfd
                counts["writes"] += 1
                counts["bytes"] += answer
    return counts


def traced(name, programs, images, counted, count):
    """One run under strace. The server is strace's child; ending it ends strace."""
    trace = images.path("trace")
    wrap = ("strace", "-f", "-q", "-e", "trace=" + ",".join(sorted(WRITES | BARRIERS)), "-o", trace)
    path = image_of(images, counted)
    with Server(name, programs, path, images.directory, wrap=wrap) as server:
        pid = child_of(server.pid)
        server.load(programs, [*counted[1], f"--count={count}"], pid=pid)
        run("kill", pid)
        server.process.wait(STOP_SECONDS)
    return read_trace(trace)


def file_writes(name, programs, images, counted):
    short, long = (SHORT_FUA, LONG_FUA) if "FUA" in counted[0] else (SHORT, LONG)
    less = traced(name, programs, images, counted, short)
    more = traced(name, programs, images, counted, long)
    return {key: (more[key] - less[key]) / (long - short) for key in more}


def callgrind(name, programs, images, counted, count):
    out = images.path("callgrind.out")
    wrap = ("valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}")
    path = image_of(images, counted)
    with Server(name, programs, path, images.directory, wrap=wrap) as server:
        server.load(programs, [*counted[1], f"--count={count}"])
        server.stop()
    with open(out, encoding="utf-8", errors="replace") as profile:
        for line in profile:
            if line.startswith(("summary:", "totals:")):
                total = int(line.split()[1])
    os.unlink(out)
    return total


def instructions(name, programs, images, counted):
    """Instructions of the server in user space for a request."""
    less = callgrind(name, programs, images, counted, SHORT)
    more = callgrind(name, programs, images, counted, LONG)
    return (more - less) / (LONG - SHORT)


def count_all(programs, images, say):
    table = []
    for counted in COUNTED:
        row = {"name": counted[0], "servers": {}}
        for name in COUNTED_SERVERS:
            say(f"counting: {counted[0]}: {name}")
            counts = calls(name, programs, images, counted)
            # On threads every write is a call that strace sees.
            if counted[3] and name.endswith("threads"):
                counts.update(file_writes(name, programs, images, counted))
            # Instructions of a FUA write are not what it costs.
            if "FUA" not in counted[0] and name.endswith("threads"):
                counts["instructions"] = instructions(name, programs, images, counted)
            row["servers"][name] = counts
        table.append(row)
    return table
