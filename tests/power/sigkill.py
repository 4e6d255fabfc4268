#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the server under load, many times over on one image: see docs/powercut.md."""
import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "system")]

# pylint: disable=wrong-import-position
import lib_tools  # noqa: E402
from history import History, Wrong  # noqa: E402
from image_reader import Image  # noqa: E402
from lib_kinds import MEBI  # noqa: E402
from lib_machine import possible_aio  # noqa: E402
from lib_server import Server  # noqa: E402
from power_load import PowerLoad, Stopped  # noqa: E402

DISK_BYTES = 32 * MEBI
CLUSTER = 65536
READ_STEP = 4 * MEBI
NUMBERS = 1 << 32
# Position of all that happened before a kill.
KILLED = 1

# Most bytes of the file: all clusters that a disk can refer to at once (its data, a table for each
# 512 MiB, header, L1 table, refcounts), half a disk of clusters that were given up and are not yet
# free, and an eighth of that sum reserved ahead (qcow2/space/reserve.h). A leak at each kill exceeds
# this within some rounds, because each round writes a large part of the disk anew.
FILE_BYTES_MAX = (DISK_BYTES + 8 * CLUSTER + DISK_BYTES // 2) * 9 // 8


class KillRun:
    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.rng = random.Random(f"sigkill {options.seed}")
        self.image = os.path.join(directory, "disk.qcow2")
        base = None
        self.below = b""
        if options.backing:
            base = os.path.join(directory, "base.raw")
            self.below = self.rng.randbytes(DISK_BYTES)
            with open(base, "wb") as stream:
                stream.write(self.below)
        lib_tools.create(self.image, DISK_BYTES, base, "raw" if base else None,
                         cluster_size=CLUSTER, lazy_refcounts="on")
        self.disk = self.below or bytes(DISK_BYTES)
        self.reopened = []
        self.sizes = []
        self.changes = 0
        self.durable = 0

    def start(self):
        """Returns a server, and takes the time to the first byte."""
        begun = time.monotonic()
        aio = possible_aio(self.rng.choice(("io_uring", "threads")))
        server = Server(self.directory, self.image, aio=aio, options=["--clean-after=1"])
        handle = server.connect()
        handle.pread(4096, 0)
        self.reopened.append((time.monotonic() - begun) * 1000)
        return server, handle

    def read(self, handle):
        return b"".join(bytes(handle.pread(min(READ_STEP, DISK_BYTES - at), at))
                        for at in range(0, DISK_BYTES, READ_STEP))

    def round(self, number):
        """Serves the image, checks all of it, loads it, kills the server."""
        rng = self.rng
        server, handle = self.start()
        try:
            found = self.read(handle)
            self.check(found)
            handle.shutdown()
            self.disk = found
            self.history = History(found)
            load = PowerLoad(rng, server, self.history, None, CLUSTER, number * NUMBERS, "zero")
            self.load_and_kill(server, load)
        finally:
            server.kill()
        self.changes += len(self.history.changes)
        self.durable += sum(change[0].durable_at < KILLED for change in self.history.changes)
        self.note_size(number)

    def load_and_kill(self, server, load):
        rng = self.rng
        count = self.options.requests
        kind = rng.randrange(10)
        try:
            if kind == 0:  # while it stops
                load.run(rng.randrange(count))
                server.process.send_signal(signal.SIGTERM)
                time.sleep(rng.random() * 0.02)
                server.kill()
            elif kind == 1:  # soon, while refcounts are counted anew
                load.run(count, rng.randrange(10))
            else:
                load.run(count, rng.randrange(count))
        except Stopped:
            pass

    def check(self, found):
        """found: the whole disk after a kill, or at the beginning."""
        if self.sizes:
            self.history.check_cut(found, KILLED)
        elif found != self.disk:
            raise Wrong("the new image does not read as what it was made from")

    def note_size(self, number):
        stat = os.stat(self.image)
        self.sizes.append(stat.st_size)
        if max(stat.st_size, stat.st_blocks * 512) > FILE_BYTES_MAX:
            raise Wrong(f"the file has {stat.st_size} bytes, {stat.st_blocks * 512} of them on "
                        f"disk")
        if self.options.verbose:
            print(f"round {number}: {len(self.history.changes)} changes, first byte after "
                  f"{self.reopened[-1]:.1f} ms, file {stat.st_size >> 20} MiB", flush=True)

    def finish(self):
        """Stops the last server cleanly: the image must be sound and small, and its content must
        stay."""
        server, handle = self.start()
        with server:
            found = self.read(handle)
            self.check(found)
            handle.shutdown()
        lib_tools.check_clean(self.image)
        with open(self.image, "rb") as stream:
            image = Image(stream.read())
        image.judge(end=True)
        if image.read(self.below) != found:
            raise Wrong("the stopped image reads otherwise than what was served")

    def run(self):
        for number in range(self.options.rounds):
            try:
                self.round(number)
            except (Wrong, AssertionError) as error:
                raise Wrong(f"round {number}: {error}") from error
        self.finish()
        times = sorted(self.reopened)
        print(f"seed {self.options.seed}: {self.options.rounds} kills, {self.changes} changes, "
              f"{self.durable} of them durable; none lost. Start to first byte "
              f"{statistics.median(times):.1f} ms, at most {times[-1]:.1f} ms. File at most "
              f"{max(self.sizes) >> 20} MiB for a disk of {DISK_BYTES >> 20} MiB, "
              f"{os.path.getsize(self.image) >> 20} MiB at the end.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="a fresh one if not given")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--requests", type=int, default=800, help="the most that a round sends")
    parser.add_argument("--no-backing", dest="backing", action="store_false")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    directory = tempfile.mkdtemp(prefix="lazycow-kill-")
    try:
        KillRun(options, directory).run()
    except Wrong as error:
        print(f"FAILED seed {options.seed} {error}\n  files in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
