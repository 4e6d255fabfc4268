# SPDX-License-Identifier: Apache-2.0
"""A random image, served from recordfs under random load. The result is a Take: everything that is
needed to cut the power anywhere in it, now or later."""
import os
import pickle
import random
import shutil
import time

import lib_tools
from history import History
from image_reader import Image
from lib_kinds import KIBI, MEBI, Kind
from lib_machine import possible_aio
from lib_server import REFERENCE, Server
from power_load import PowerLoad, Stopped
from recorder import Recorder, program
from recording import Recording

DISK = "disk.qcow2"
# Numbers of changes of a generation; those of the next one follow.
NUMBERS = 1 << 32

SIZES = {512: 512 * KIBI, 4096: 3 * MEBI, 65536: 6 * MEBI, 2 * MEBI: 16 * MEBI}


def random_kind(rng):
    """Mostly clusters of 4 KiB and 64 KiB, lazy refcounts and something below."""
    cluster = rng.choices(list(SIZES), (3, 8, 8, 1))[0]
    size = SIZES[cluster] + rng.randrange(64) * 512
    options = {"cluster": cluster, "size": size, "lazy": rng.randrange(4) != 0}
    base = rng.choices(("raw", "qcow2", "chain", None), (3, 4, 1, 5))[0]
    share = rng.choice((0.6, 1, 1, 1.3))
    if base == "chain":
        options["backing"] = [("qcow2", 65536, share), ("raw", 65536, 0.8)]
    elif base:
        options["backing"] = [(base, rng.choice((4096, 65536)), share)]
    elif rng.randrange(4) == 0:
        options["empty"] = True
    elif rng.randrange(6) == 0:
        options["preallocation"] = "metadata"
    if rng.randrange(10) == 0:
        options["version"] = 2
    elif rng.randrange(5) == 0:
        options["refcount_bits"] = rng.choice((1, 2, 8, 32, 64))
    if rng.randrange(4) == 0:
        options["zeroes"] = True
    if rng.randrange(4) == 0 and "empty" not in options and "preallocation" not in options:
        options["compressed"] = True
    # qemu-io cannot share more than refcounts can count, nor compress what is there already.
    if options.get("refcount_bits", 8) < 8:
        options.pop("compressed", None)
    elif rng.randrange(4) == 0 and not ("compressed" in options and base):
        options["snapshots"] = rng.randint(1, 2)
    name = " ".join(f"{key}={value}" for key, value in options.items())
    return Kind(name, **options)


def random_serving(rng, kind):
    """Draws the way in which the image is served. The second part of the result is for Server."""
    cache = rng.choices(("writeback", "writethrough", "none", "directsync"), (8, 1, 3, 1))[0]
    aio = possible_aio(rng.choice(("io_uring", "threads", "threads")))
    serving = {"cache": cache, "aio": aio,
               "discard": "ignore" if rng.randrange(12) == 0 else "unmap"}
    if REFERENCE and aio == "io_uring":
        serving["aio"] = "threads"
    if rng.randrange(4) == 0:
        serving["detect_zeroes"] = "on"
    elif rng.randrange(6) == 0 and serving["discard"] == "unmap":
        serving["detect_zeroes"] = "unmap"
    if kind.version == 3 and rng.randrange(8) == 0 and not REFERENCE:
        serving["lazy_refcounts"] = rng.choice(("on", "off"))
    if not REFERENCE:
        options = []
        if rng.randrange(5) == 0:
            options.append("--cache-size=64k")
        if rng.randrange(4) == 0:
            options.append("--clean-after=1")
        serving["options"] = options
    # The C library's fdatasync, which threads use, can be looked at; a sanitizer's must not be.
    if aio == "threads" and rng.randrange(4) != 0:
        serving["environment"] = {"LD_PRELOAD": program("barrier_ioctl.so")}
        serving["plain"] = True
    return serving


class Take:
    """One generation: the recording, the history, the image at its beginning and its backing files.
    leaks: refcounts may be too high in an image that is not dirty, because it was served without
    lazy refcounts at some time."""

    def __init__(self, seed, generation, kind, serving, image, below, history, log, inode, leaks):
        self.seed = seed
        self.generation = generation
        self.kind = kind
        self.serving = serving
        self.image = image
        self.below = below
        self.history = history
        self.log = log
        self.inode = inode
        self.leaks = leaks

    def recording(self):
        return Recording(self.log, self.inode)

    def name(self):
        return f"seed {self.seed} generation {self.generation}"

    def save(self, directory, bases):
        """Keeps it, with the files of the backing chain, for replays."""
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "take"), "wb") as stream:
            pickle.dump(self, stream)
        for base in bases:
            shutil.copy(base, directory)

    @staticmethod
    def load(directory):
        with open(os.path.join(directory, "take"), "rb") as stream:
            return pickle.load(stream)


class Scenario:
    """directory: to work in, on a file system that knows all modes of fallocate."""

    def __init__(self, seed, directory, requests):
        self.seed = seed
        self.directory = directory
        self.rng = random.Random(f"scenario {seed}")
        self.requests = requests
        self.kind = random_kind(self.rng)
        self.leaks = not self.kind.lazy
        self.build = os.path.join(directory, "build")
        os.makedirs(self.build)
        path, _, self.bases = self.kind.build(self.build, self.rng)
        with open(path, "rb") as stream:
            self.content = stream.read()
        self.below = self.read_below()
        image = Image(self.content)
        self.disk = image.read(self.below)
        assert self.disk == lib_tools.read_all(path), "image_reader.py reads what qemu does not"
        self.snapshots = image.read_snapshots(b"")
        for name, disk in self.snapshots.items():
            whole = image.read_snapshots(self.below)[name]
            assert whole == lib_tools.read_all(path, snapshot=name), f"snapshot {name}"

    def read_below(self):
        """Reads the content of the image's backing file."""
        if not self.bases:
            return b""
        return lib_tools.read_all(self.bases[0], self.kind.backing[0][0])

    def record(self, generation, last):
        """Serves the image once, from its present content, up to a clean stop or a kill."""
        rng = self.rng
        serving = random_serving(rng, self.kind)
        self.leaks |= REFERENCE or serving.get("lazy_refcounts", "on") == "off"
        history = History(self.disk)
        directory = os.path.join(self.directory, f"take{generation}")
        os.makedirs(directory)
        recorder = Recorder(directory, barrier_us=rng.choice((0, 300, 2000)),
                            write_us=rng.choice((0, 0, 1000)))
        with recorder:
            for base in self.bases:
                shutil.copy(base, recorder.lower)
            with open(recorder.lower_path(DISK), "wb") as stream:
                stream.write(self.content)
            inode = os.stat(recorder.lower_path(DISK)).st_ino
            self.serve(recorder, serving, history, generation, last)
        with open(recorder.log, "rb") as stream:
            log = stream.read()
        shutil.rmtree(directory, ignore_errors=True)
        return Take(self.seed, generation, self.kind, serving, self.content, self.below, history,
                    log, inode, self.leaks)

    def serve(self, recorder, serving, history, generation, last):
        rng = self.rng
        trim = "zero"
        if serving["discard"] == "ignore":
            trim = "ignored"
        elif REFERENCE or (self.kind.version == 2 and self.kind.backing):
            trim = "maybe"
        server = Server(os.path.dirname(recorder.log), recorder.path(DISK), **serving)
        try:
            load = PowerLoad(rng, server, history, recorder.log, self.kind.cluster,
                             generation * NUMBERS, trim,
                             through=serving["cache"] in ("writethrough", "directsync"))
            count = rng.randint(self.requests // 4, self.requests)
            # As a rule the log goes to the clean end, so that cuts while the image is closed count.
            kill_after = rng.randrange(count) if not last and rng.randrange(3) == 0 else None
            try:
                load.run(count // 2, kill_after)
                if "--clean-after=1" in serving.get("options", ()):
                    time.sleep(1.3)
                load.run(count - count // 2, kill_after and max(0, kill_after - count // 2))
                load.connections.shutdown()
                server.stop()
            except Stopped:
                pass
            load.close()
        finally:
            server.kill()

    def go_on_from(self, content, disk):
        """The next generation begins with the file's content, which reads as disk."""
        self.content = bytes(content)
        self.disk = bytes(disk)

