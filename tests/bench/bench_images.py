# SPDX-License-Identifier: Apache-2.0
"""The images that the benchmark works on, made by qemu-img, so that no server has an advantage."""
import os
import random
import shutil

from bench_servers import run

MIB = 1 << 20
CHAIN_LENGTH = 32
CLUSTER = 64 << 10
# Commands that one qemu-io is given: what a command line holds.
WRITES_AT_A_TIME = 2048


def drop(path):
    if os.path.exists(path):
        os.unlink(path)


def warm(path):
    """Reads the file, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def cool(path):
    """Drops the file from the page cache, as direct I/O would otherwise do page by page."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Images:
    """Creates each kind once; images for runs that write are created or copied for the run."""

    def __init__(self, directory, megabytes):
        self.directory = directory
        self.megabytes = megabytes
        self.made = {}

    def path(self, name):
        return os.path.join(self.directory, name)

    def raw_data(self):
        """Half of each 4 KiB is random, half of it repeats: compresses to about a half."""
        path = self.path("data.raw")
        rest = random.Random(1)
        with open(path, "wb") as file:
            for _ in range(self.megabytes):
                noise = rest.randbytes(MIB // 2)
                file.write(b"".join(noise[i:i + 2048] + noise[i:i + 32] * 64
                                    for i in range(0, len(noise), 2048)))
            file.flush()
            os.fdatasync(file.fileno())
        return path

    def allocated(self):
        path = self.path("allocated.qcow2")
        run("qemu-img", "convert", "-O", "qcow2", "-o", "lazy_refcounts=on", self.get("raw_data"),
            path)
        return path

    def compressed(self):
        path = self.path("compressed.qcow2")
        run("qemu-img", "convert", "-c", "-O", "qcow2", self.get("raw_data"), path)
        return path

    def chain(self):
        """Overlays in which nothing is allocated, over the allocated image."""
        below = self.get("allocated")
        for i in range(CHAIN_LENGTH):
            path = self.path(f"chain{i:02}.qcow2")
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", path)
            below = path
        return below

    def huge(self):
        """1 TiB, clean, with every L2 table in place."""
        path = self.path("huge.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
            "lazy_refcounts=on,preallocation=metadata", path, "1T")
        return path

    def corner(self):
        """1 TiB with data in its last GiB only, in order."""
        path = self.path("corner.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "1T")
        run("qemu-io", "-f", "qcow2", path,
            *(word for i in range(1024) for word in ("-c", f"write -q {1023 * 1024 + i}M 1M")))
        return path

    def scattered(self):
        """As much data as the others have, but no cluster lies behind the one before it."""
        path = self.path("scattered.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path,
            f"{self.megabytes}M")
        places = list(range(0, self.megabytes * MIB, CLUSTER))
        random.Random(1).shuffle(places)
        for i in range(0, len(places), WRITES_AT_A_TIME):
            run("qemu-io", "-f", "qcow2", path,
                *(word for place in places[i:i + WRITES_AT_A_TIME]
                  for word in ("-c", f"write -q {place} {CLUSTER}")))
        return path

    def get(self, kind):
        """The path of an image that is only read."""
        if kind not in self.made:
            self.made[kind] = getattr(self, kind)()
            warm_all = kind != "huge"
            if warm_all:
                warm(self.made[kind])
        return self.made[kind]

    def scratch(self, kind):
        """The path of an image that may be written to: a new empty one, or a copy."""
        path = self.path("scratch")
        drop(path)
        if kind == "fresh":
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "64G")
        else:
            shutil.copyfile(self.get(kind), path)
            # Dirty pages of one run must not slow the next one down.
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        return path

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)
