# SPDX-License-Identifier: Apache-2.0
"""System calls of requests, counted by strace. A binary without sanitizers is used if there is one
(LAZYCOW_PLAIN)."""
import os
import re
import signal
import subprocess
import time

import nbd
import pytest

import lib_machine
import lib_tools
from lib_server import PATIENCE_SECONDS, Server, wait_for
from lib_wire import CMD_FLAG_FUA, CMD_READ, CMD_WRITE, Wire, request_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 1 << 30

WRITES = ("pwrite64", "pwritev", "pwritev2", "write", "writev")
SYNCS = ("fdatasync", "fsync", "sync_file_range", "syncfs")


class Trace:
    """strace on all threads of a running server, from enter to exit."""

    def __init__(self, server, directory, *options):
        self.path = os.path.join(directory, "strace")
        self.server = server
        self.options = options

    def __enter__(self):
        lib_machine.need(lib_machine.ptrace_obstacle())
        self.process = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "0", "-o", self.path, *self.options, "-p",
             str(self.server.pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # One line a thread; when the first thread is attached, strace has stopped and attached all.
        line = self.process.stderr.readline()
        assert "attached" in line, line
        wait_for(self.attached)
        return self

    def attached(self):
        for thread in os.listdir(f"/proc/{self.server.pid}/task"):
            with open(f"/proc/{self.server.pid}/task/{thread}/status", encoding="ascii") as status:
                if "TracerPid:\t0\n" in status.read():
                    return False
        return True

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def calls(self):
        """[(name, arguments and result)], each call once. A call during which another thread ran
        stands in two halves, of which the first has the arguments and the second the result."""
        found = []
        halves = {}
        with open(self.path, encoding="ascii", errors="replace") as log:
            for line in log:
                match = re.match(r"(\d+) +(?:(\w+)\(|<\.\.\. (\w+) resumed>)(.*)", line)
                if not match:
                    continue
                thread, whole, resumed, rest = match.groups()
                if whole and rest.endswith("<unfinished ...>"):
                    halves[thread] = rest
                elif whole:
                    found.append((whole, rest))
                else:
                    found.append((resumed, halves.pop(thread, "") + rest))
        return found


def on_image(calls, names, image):
    return [rest for name, rest in calls if name in names and os.path.basename(image) in rest]


def result(rest):
    return int(re.search(r"= (\d+)$", rest.strip()).group(1))


def warm_server(workdir, **keywords):
    """An image on which nothing is left to be done for the first time: the dirty bit is set, the L2
    tables of the range are there, space is taken ahead."""
    image = lib_tools.create(f"{workdir}/warm.qcow2", SIZE, lazy_refcounts="on")
    server = Server(workdir, image, plain=True, options=["--clean-after=0"], **keywords)
    handle = server.connect()
    for index in range(8):
        handle.pwrite(b"w" * 4096, index * 65536, nbd.CMD_FLAG_FUA)
    handle.shutdown()
    return server, image


def test_fua_write_to_fresh_space(workdir):
    """At most one write of the data, one of at most 4 KiB of a table, and one barrier. The thread
    backend is counted, because strace sees its calls; the engine above it does not differ."""
    server, image = warm_server(workdir, aio="threads")
    count = 50
    with server:
        handle = server.connect()
        with Trace(server, workdir) as trace:
            for index in range(count):
                handle.pwrite(b"x" * 4096, MEBI + index * 65536, nbd.CMD_FLAG_FUA)
        handle.shutdown()
    calls = trace.calls()
    lengths = [result(rest) for rest in on_image(calls, WRITES, image)]
    barriers = on_image(calls, SYNCS, image)
    assert sum(lengths) >= count * 4096, "the trace missed the writes"
    assert len(barriers) >= count, "the trace missed the barriers"
    assert max(lengths) <= 4096, lengths
    assert len(lengths) <= 2 * count, f"{len(lengths)} writes for {count} requests"
    assert len(barriers) <= count, f"{len(barriers)} barriers for {count} requests"
    allocations = on_image(calls, ("fallocate", "ftruncate"), image)
    assert len(allocations) <= count // 10, allocations
    lib_tools.check_clean(image)


def test_fua_write_in_place(workdir):
    """One write, one barrier, no table."""
    server, image = warm_server(workdir, aio="threads")
    count = 30
    with server:
        handle = server.connect()
        with Trace(server, workdir) as trace:
            for _ in range(count):
                handle.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
        handle.shutdown()
    calls = trace.calls()
    lengths = [result(rest) for rest in on_image(calls, WRITES, image)]
    assert lengths == [4096] * count
    assert len(on_image(calls, SYNCS, image)) == count


@pytest.mark.parametrize("connections", [1, 4])
def test_concurrent_fua_writes_share_barriers(workdir, connections):
    """32 at a time, on one connection and across several."""
    server, image = warm_server(workdir, aio="threads")
    rounds, depth = 10, 32
    with server:
        wires = [Wire(server) for _ in range(connections)]
        for wire in wires:
            wire.go(structured=False)
        with Trace(server, workdir) as trace:
            for number in range(rounds):
                for index, wire in enumerate(wires):
                    wire.send(b"".join(
                        request_bytes(CMD_WRITE, cookie,
                                      MEBI + (number * depth + cookie) * 65536, 4096,
                                      CMD_FLAG_FUA, b"x" * 4096)
                        for cookie in range(index, depth, connections)))
                for wire in wires:
                    for _ in range(depth // connections):
                        assert wire.reply()[1] == 0
        for wire in wires:
            wire.socket.close()
    barriers = len(on_image(trace.calls(), SYNCS, image))
    assert barriers >= 1, "the trace missed the barriers"
    assert barriers <= rounds * depth // 4, f"{barriers} barriers for {rounds} x {depth} requests"
    lib_tools.check_clean(image)


class DrivenBarriers:
    """The preload of a server: driven_barriers.c."""

    def __init__(self, directory, held):
        library, self.log, self.go = (f"{directory}/{name}" for name in ("driven.so", "log", "go"))
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "driven_barriers.c")
        lib_tools.run("gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
                      source)
        self.environment = {"LD_PRELOAD": library, "BARRIER_LOG": self.log, "BARRIER_HELD": held,
                            "BARRIER_GO": self.go}

    def made(self):
        """The threads that made them, in order."""
        with open(self.log, encoding="ascii") as log:
            return [int(line) for line in log.read().split()]

    def let_go(self):
        with open(self.go, "wb"):
            pass


def test_barriers_on_the_loop(workdir):
    """The loop makes quick barriers itself for a single client, and leaves them to a worker while
    another client's request is under way."""
    images = [lib_tools.create(f"{workdir}/{name}.qcow2", SIZE, lazy_refcounts="on")
              for name in ("disk", "held")]
    driven = DrivenBarriers(workdir, held="held.qcow2")
    with Server(workdir, *images, plain=True, aio="threads", options=["--clean-after=0"],
                environment=driven.environment) as server, \
            Wire(server) as wire, Wire(server) as other:
        wire.go(structured=False)
        other.go(name="held", structured=False)

        def write():
            cookie = wire.request(CMD_WRITE, 0, 4096, CMD_FLAG_FUA, b"x" * 4096)
            assert wire.reply() == (cookie, 0, b"")

        def write_until_on_the_loop():
            """Ten in a row; none of these makes the next one go to a worker."""
            while driven.made()[-10:] != [server.pid] * 10:
                for _ in range(20):
                    write()
        write()
        write_until_on_the_loop()
        # From here on a request of another client is under way.
        before = len(driven.made())
        held = other.request(CMD_WRITE, 0, 4096, CMD_FLAG_FUA, b"y" * 4096)
        while len(driven.made()) == before:
            time.sleep(0.01)
        write()
        before = len(driven.made())
        for _ in range(200):
            write()
        made = driven.made()[before:]
        assert len(made) == 200 and server.pid not in made, made
        driven.let_go()
        assert other.reply() == (held, 0, b"")
        # A second without company, and it makes them again.
        write_until_on_the_loop()
    lib_tools.check_clean(images[0])


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_cached_reads_cost_little(workdir, aio):
    """Reads of 4 KiB from the page cache, 32 in flight: at most 1.3 system calls each, whatever
    they are and whichever thread makes them."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI)
    lib_tools.qemu_io(image, "write -P 7 0 64M")
    rounds, depth = 150, 32
    with Server(workdir, image, plain=True, aio=aio) as server, Wire(server) as wire:
        wire.go(structured=False)

        def read(count):
            for number in range(count):
                wire.send(b"".join(
                    request_bytes(CMD_READ, cookie, (number * 37 + cookie * 101) % 16384 * 4096,
                                  4096)
                    for cookie in range(depth)))
                for _ in range(depth):
                    _, error, data = wire.reply(4096)
                    assert error == 0 and data == b"\7" * 4096
        read(10)
        with Trace(server, workdir) as trace:
            read(rounds)
    count = len(trace.calls())
    assert count > rounds, "the trace missed the calls"
    assert count <= 1.3 * rounds * depth, f"{count / (rounds * depth):.2f} calls a read"


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_cached_reads_in_a_sliding_window(workdir, aio):
    """As above, by a client that sends the next request when one answer came."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI)
    lib_tools.qemu_io(image, "write -P 7 0 64M")
    total, depth = 4000, 32
    with Server(workdir, image, plain=True, aio=aio) as server:
        handle = server.connect()
        buffers = [nbd.Buffer(4096) for _ in range(depth)]
        finished = []

        def start(number):
            buffer = buffers.pop()

            def done(error):
                assert error.value == 0
                finished.append(buffer)
                return 1
            handle.aio_pread(buffer, number * 101 % 16384 * 4096, done)
        with Trace(server, workdir) as trace:
            started = 0
            while started < total or handle.aio_in_flight():
                while started < total and buffers:
                    start(started)
                    started += 1
                handle.poll(-1)
                buffers += finished
                finished.clear()
        handle.shutdown()
    count = len(trace.calls())
    assert count > total / depth, "the trace missed the calls"
    assert count <= 1.3 * total, f"{count / total:.2f} calls a read"


def test_requests_are_taken_after_their_replies(workdir):
    """To take bytes from a Unix socket wakes a client that waits in recv(), for nothing."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI)
    count = 50
    with Server(workdir, image, plain=True) as server, Wire(server) as wire:
        wire.go(structured=False)

        def read(number):
            wire.send(request_bytes(CMD_READ, number, number * 4096, 4096))
            assert wire.reply(4096)[1] == 0
        read(0)  # from now on it is known as one who makes one request at a time
        with Trace(server, workdir) as trace:
            for number in range(count):
                read(number)
    order = []
    for name, rest in trace.calls():
        if name == "sendmsg":
            order.append("reply")
        elif name in ("recvfrom", "recvmsg", "readv", "read") and "MSG_PEEK" not in rest:
            order += ["take"] * (rest.strip().endswith("= 28"))
    # The trace may end before the last one is taken.
    assert order[:2 * count - 1] == (["reply", "take"] * count)[:-1], order


@pytest.mark.parametrize("options", [[], ["--poll-max-ns=0"]])
def test_no_requests_cost_nothing(workdir, options):
    """The loop that looked for the next request of a busy client sleeps when there is none: a
    second has only the tick and its work."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI)
    lib_tools.qemu_io(image, "write -P 7 0 64M")
    with Server(workdir, image, plain=True, options=options) as server:
        handle = server.connect()
        subprocess.run(["nbdcopy", "--connections=1", "--requests=2", "--request-size=4096",
                        server.uri, "null:"], check=True)
        handle.pread(4096, 0)
        with Trace(server, workdir) as trace:
            begun = time.monotonic()
            time.sleep(1)
        seconds = time.monotonic() - begun
        handle.shutdown()
    assert len(trace.calls()) <= 30 * seconds, trace.calls()
