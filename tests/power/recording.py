# SPDX-License-Identifier: Apache-2.0
"""The recording that recordfs made of one file, and the contents that a disk may hold of it after a
power cut.

A position is a length of the log: everything that had begun by then stands before it. A change is
covered at a position when a barrier that began after the end of the change has itself ended before
the position."""
import bisect
import struct

SECTOR = 512

# recordfs.h
RECORD = struct.Struct("=IIQQQQ")
WRITE, TRUNCATE, FALLOCATE, BARRIER, END = range(1, 6)

# linux/falloc.h
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

NEVER = 1 << 62
EOPNOTSUPP = 95


class Change:
    """A write, truncate or fallocate. begin: position behind its first record; end: behind its
    last."""

    __slots__ = ("kind", "mode", "offset", "length", "data", "begin", "end")

    def __init__(self, kind, mode, offset, length, data, begin):
        self.kind = kind
        self.mode = mode
        self.offset = offset
        self.length = length
        self.data = data
        self.begin = begin
        self.end = NEVER

    def zeroes(self):
        return self.kind == FALLOCATE and bool(self.mode & (PUNCH_HOLE | ZERO_RANGE))

    def grows_to(self):
        """The least size of the file after it."""
        if self.kind == WRITE or (self.kind == FALLOCATE and not self.mode & KEEP_SIZE):
            return self.offset + self.length
        return self.offset if self.kind == TRUNCATE else 0

    def __str__(self):
        names = {WRITE: "write", TRUNCATE: "truncate", FALLOCATE: f"fallocate {self.mode:#x}"}
        return f"{names[self.kind]} {self.offset:#x} +{self.length:#x}"


class Recording:
    """changes: in the order in which they began. barriers: (begin, end) of those that ended.
    positions: behind each record."""

    def __init__(self, log, inode):
        """log: the log's bytes. inode: of the file in question."""
        self.changes = []
        self.barriers = []
        self.positions = []
        self.failed = []
        log = memoryview(log)  # pieces of it are no copies
        open_changes, open_barriers = {}, {}
        at = 0
        while at + RECORD.size <= len(log):
            kind, mode, number, its_inode, offset, length = RECORD.unpack_from(log, at)
            start = at
            at += RECORD.size
            data = None
            if kind == WRITE:
                data = log[at:at + length]
                at += length
                if at > len(log):
                    break  # the recorder was stopped here
            if kind == END:
                self._end(open_changes, open_barriers, mode, number, length, at)
            elif its_inode != inode:
                continue
            elif kind == BARRIER:
                open_barriers[number] = start
            else:
                change = Change(kind, mode, offset, length, data, at)
                change = self._join(change)
                open_changes[number] = change
            self.positions.append(at)
        self.barriers.sort(key=lambda barrier: barrier[1])
        self.headers = [change.begin for change in self.changes
                        if change.kind == WRITE and change.offset < SECTOR]
        self._horizons()

    def _join(self, change):
        """Adds a record to the changes. If the kernel has to wait for a page of a write's source it
        ends the write there, and continues with the rest in a call of its own: inside a sector if
        the source is not aligned. No disk would tear there, so both parts are one change."""
        if change.kind == WRITE and change.offset % SECTOR:
            for other in self.changes[-8:]:
                if (other.kind == WRITE and other.offset + other.length == change.offset
                        and other.end < change.begin):
                    other.length += change.length
                    other.data = bytes(other.data) + bytes(change.data)
                    other.end = NEVER
                    return other
        self.changes.append(change)
        return change

    def _end(self, open_changes, open_barriers, error, number, length, at):
        """length: 0, or how much was written."""
        if number in open_barriers:
            self.barriers.append((open_barriers.pop(number), at))
        elif number in open_changes:
            change = open_changes.pop(number)
            change.end = at
            if error == EOPNOTSUPP:
                self.changes.remove(change)
            elif error != 0:
                self.failed.append(f"{change}: error {error}, {length} bytes")

    def _horizons(self):
        """The highest begin among the barriers up to each."""
        self.ends, self.horizons = [], []
        highest = 0
        for begin, end in self.barriers:
            highest = max(highest, begin)
            self.ends.append(end)
            self.horizons.append(highest)

    def horizon(self, position):
        """Returns the log length before which every ended change is covered at the position."""
        index = bisect.bisect_right(self.ends, position)
        return self.horizons[index - 1] if index else 0

    def choose(self, rng):
        """A position to cut at: near a barrier, behind a write of the header, where the image becomes
        dirty or clean, or anywhere."""
        kind = rng.randrange(8)
        if kind == 0 and self.headers:
            index = bisect.bisect_left(self.positions, rng.choice(self.headers)) + rng.randrange(10)
        elif kind < 5 and self.barriers:
            index = bisect.bisect_left(self.positions, rng.choice(rng.choice(self.barriers)))
            index += rng.choice((-2, -1, -1, 0, 0, 0, 1, 1, 2, 3))
        else:
            return rng.choice(self.positions)
        return self.positions[max(0, min(index, len(self.positions) - 1))]


class Replay:
    """Goes through a recording and tells the file's possible states after a cut at each position."""

    def __init__(self, recording, content):
        """content: the file at the beginning, durable."""
        self.recording = recording
        self.first = bytes(content)
        self.rewind()

    def rewind(self):
        self.durable = bytearray(self.first)
        self.uncovered = sorted(self.recording.changes, key=lambda change: change.end)
        self.at = 0

    def go(self, position):
        """Makes the changes durable that are covered at the position."""
        if position < self.at:
            self.rewind()
        self.at = position
        horizon = self.recording.horizon(position)
        count = 0
        while count < len(self.uncovered) and self.uncovered[count].end <= horizon:
            apply(self.durable, self.uncovered[count], None)
            count += 1
        del self.uncovered[:count]

    def cut(self, position, rng):
        """Returns a state of the file after a cut: (content, fate of the changes that are not
        covered)."""
        self.go(position)
        pending = sorted((change for change in self.uncovered if change.begin <= position),
                         key=lambda change: change.begin)
        content = bytearray(self.durable)
        fates = choose_fates(rng, len(pending))
        torn = rng.choice((0, 0.1, 0.5))
        bare_growth = rng.choice((0, 0, 0.5))
        notes = []
        for change, keep in zip(pending, fates):
            if keep:
                sectors = choose_sectors(rng, change) if rng.random() < torn else None
                apply(content, change, sectors)
                notes.append(f"{change}: {'kept' if sectors is None else 'torn'}")
            elif change.kind != TRUNCATE and rng.random() < bare_growth:
                grow(content, change.grows_to())
                notes.append(f"{change}: only its growth was kept")
            else:
                notes.append(f"{change}: lost")
        if rng.randrange(3) == 0:
            size = rng.choice([len(self.durable)] + [change.grows_to() for change in pending])
            size = max(size, min(len(self.durable), len(content)))
            if size < len(content):
                del content[size:]
                notes.append(f"growth beyond {size:#x}: lost")
        return content, notes


def choose_fates(rng, count):
    """Which of count changes are kept: more or less of them, all but one, only one, a beginning, or
    only the last ones."""
    kind = rng.randrange(9)
    if kind < 5:
        share = (0, 0.1, 0.5, 0.9, 1)[kind]
        return [rng.random() < share for _ in range(count)]
    if kind < 7:
        one = rng.randrange(max(count, 1))
        return [(index == one) == (kind == 5) for index in range(count)]
    some = rng.randint(0, count)
    return [(index < some) == (kind == 7) for index in range(count)]


def choose_sectors(rng, change):
    """The sectors of the file that a torn change reached: a beginning, an end or any of them."""
    first = change.offset // SECTOR
    sectors = range(first, -(-(change.offset + change.length) // SECTOR))
    kind = rng.randrange(3)
    middle = first + rng.randint(0, len(sectors))
    if kind == 0:
        return [(first, middle)]
    if kind == 1:
        return [(middle, sectors.stop)]
    if len(sectors) <= 64:
        return [(sector, sector + 1) for sector in sectors if rng.randrange(2)]
    edges = sorted(rng.choices(sectors, k=8))
    return list(zip(edges[::2], edges[1::2]))


def grow(content, size):
    if size > len(content):
        content.extend(bytes(size - len(content)))


def apply(content, change, sectors):
    """Applies the change to content; of a torn change only the sectors of its runs."""
    if change.kind == TRUNCATE:
        if change.offset < len(content):
            del content[change.offset:]
        else:
            grow(content, change.offset)
        return
    end = change.offset + change.length
    if not (change.kind == WRITE or change.zeroes()):
        if not change.mode & KEEP_SIZE:
            grow(content, end)
        return
    if sectors is None:
        sectors = [(0, NEVER // SECTOR)]
    for first, last in sectors:
        low = max(change.offset, first * SECTOR)
        high = min(end, last * SECTOR)
        if change.kind == FALLOCATE and change.mode & KEEP_SIZE:
            high = min(high, len(content))
        if low >= high:
            continue
        grow(content, high)
        if change.kind == WRITE:
            content[low:high] = change.data[low - change.offset:high - change.offset]
        else:
            content[low:high] = bytes(high - low)
