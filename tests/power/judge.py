# SPDX-License-Identifier: Apache-2.0
"""Judges an image after a power cut."""
import json
import os
import random
import re
import shutil
import struct
import subprocess

import nbd

import lib_server
from history import SECTOR, Wrong, describe, marked
from image_reader import Image
from lib_machine import possible_aio
from lib_server import REFERENCE, Server
from scenario import DISK

# Numbers of the changes that are made after the cut.
AFTERWARDS = 1 << 48
READ_STEP = 4 << 20
# Of what became of changes so much is shown.
NOTES_MAX = 20


# Texts in the log that tell of a fault of an image.
COMPLAINT = re.compile(r"run 'lazycow check'|cannot|leak|failed|[1-9]\d* faults found")


def check_log(server):
    """A power cut is nothing that a server should have to complain of."""
    found = [line for line in server.stderr().splitlines() if COMPLAINT.search(line)]
    if found and not REFERENCE:
        raise Wrong("the server complains:\n" + "\n".join(found[:10]))


def first_difference(found, expected):
    for at in range(0, max(len(found), len(expected)), SECTOR):
        if found[at:at + SECTOR] != expected[at:at + SECTOR]:
            sector = at // SECTOR
            have, want = (describe(bytes(disk[at:at + SECTOR]), b"", sector)
                          for disk in (found, expected))
            return f"sector {sector:#x} holds {have}, not {want}"
    return "no difference"


class Judge:
    """bases: files of the backing chain. snapshots: the content of each over zeros."""

    def __init__(self, directory, bases, snapshots, below):
        self.directory = directory
        self.snapshots = snapshots
        self.below = below
        self.path = os.path.join(directory, DISK)
        os.makedirs(directory, exist_ok=True)
        for base in bases:
            shutil.copy(base, directory)

    def judge(self, take, content, position, rng):
        """Raises Wrong for a fault. Returns the content of the disk."""
        image = Image(content)
        image.judge(leaks=take.leaks)
        disk = take.history.check_cut(image.read(self.below), position)
        self.check_snapshots(image)
        self.put(content)
        self.check_readable(image, take.leaks)
        which = rng.randrange(6)
        if which == 0:
            self.repair("qemu-img", disk)
        elif which == 1 and not REFERENCE:
            self.repair(lib_server.PLAIN_BINARY, disk)
        else:
            self.serve(disk, rng, take.leaks)
        return disk

    def put(self, content):
        with open(self.path, "wb") as stream:
            stream.write(content)

    def get(self):
        with open(self.path, "rb") as stream:
            return Image(stream.read())

    def check_snapshots(self, image):
        if self.snapshots and image.read_snapshots(b"") != self.snapshots:
            raise Wrong("a snapshot changed")

    # ---- Tools ----------------------------------------------------------------------------------

    def check_tool(self, tool, *words, codes=(0,)):
        result = subprocess.run([tool, "check", "--output=json", *words, self.path],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, check=False, timeout=300)
        text = result.stdout.decode(errors="replace")
        if result.returncode not in codes:
            raise Wrong(f"{tool} check {' '.join(words)} ends with {result.returncode}:\n"
                        f"{text[-3000:]}")
        return text

    def check_readable(self, image, leaks):
        """The check reads the image whatever is wrong with its refcounts. Unless the dirty bit is
        set nothing may be, but for leaks."""
        tool = "qemu-img" if REFERENCE else lib_server.PLAIN_BINARY
        codes = (0, 2, 3) if image.dirty else (0, 3) if leaks else (0,)
        text = self.check_tool(tool, codes=codes)
        report = json.loads(text[text.index("{\n"):text.rindex("}") + 1])
        if report.get("check-errors", 0):
            raise Wrong(f"the check could not read all: {report}")

    def repair(self, tool, disk):
        self.check_tool(tool, "-r", "all")
        # qemu-img clears refcounts behind the end of the file only where it makes new ones.
        self.check_end(disk, leaks=False, beyond=tool != "qemu-img")

    def check_end(self, disk, leaks, beyond=True):
        """The image is clean, in everyone's eyes, and reads as disk. leaks, beyond: as Image.judge.
        Without lazy refcounts a cut may leave leaks, and a server need not look for them."""
        image = self.get()
        image.judge(end=True, leaks=leaks, beyond=beyond)
        self.check_tool("qemu-img", codes=(0, 3) if leaks else (0,))
        found = image.read(self.below)
        if found != disk:
            raise Wrong(f"at the end {first_difference(found, disk)}")
        self.check_snapshots(image)

    # ---- The server -----------------------------------------------------------------------------

    def serve(self, disk, rng, leaks):
        """Opens, reads, writes and stops the image: its content must stay."""
        aio = "threads" if REFERENCE else possible_aio(rng.choice(("io_uring", "threads")))
        with Server(self.directory, self.path, aio=aio, plain=True) as server:
            handle = server.connect()
            disk = bytearray(disk)
            if rng.randrange(2):  # at once, while refcounts are counted anew
                self.write(handle, disk, rng)
            for start in range(0, len(disk), READ_STEP):
                length = min(READ_STEP, len(disk) - start)
                found = handle.pread(length, start)
                if found != disk[start:start + length]:
                    raise Wrong("served, " + first_difference(
                        bytes(start) + found, bytes(start) + disk[start:start + length]))
            self.write(handle, disk, rng)
            handle.shutdown()
        check_log(server)
        self.check_end(bytes(disk), leaks)

    def write(self, handle, disk, rng):
        sectors = len(disk) // SECTOR
        for number in range(rng.randint(1, 12)):
            start = rng.randrange(sectors)
            count = min(sectors - start, rng.choice((1, 8, 128, 300)))
            what = rng.randrange(6)
            at, length = start * SECTOR, count * SECTOR
            if what == 0:
                handle.zero(length, at)
                disk[at:at + length] = bytes(length)
            elif what == 1:
                handle.flush()
            else:
                piece = b"".join(marked(AFTERWARDS + number, sector)
                                 for sector in range(start, start + count))
                handle.pwrite(piece, at)
                disk[at:at + length] = piece


def judge_cut(judge, take, replay, number):
    """Judges cut number of a take: each has its own draws. Returns (content, disk)."""
    rng = random.Random(f"cut {take.seed} {take.generation} {number}")
    recording = replay.recording
    position = recording.choose(rng)
    content, notes = replay.cut(position, rng)
    try:
        return content, judge.judge(take, content, position, rng)
    except (Wrong, AssertionError, nbd.Error, struct.error, subprocess.TimeoutExpired) as error:
        shown = "".join(f"\n    {note}" for note in notes[:NOTES_MAX])
        raise Wrong(f"{error}\n  cut at {position} of {recording.positions[-1]}, "
                    f"{len(notes)} changes not covered{':' if notes else ''}{shown}") from error

