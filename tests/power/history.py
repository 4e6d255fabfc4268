# SPDX-License-Identifier: Apache-2.0
"""The requests of clients with their times, and the content that these allow in each sector after a
power cut."""
import struct

SECTOR = 512
NEVER = 1 << 62


class Change:
    """A write, write zeroes or trim. sent, answered: its place in the order of all that the client
    did. sent_at, durable_at: positions in the log when it was sent, and when it was promised to be
    durable. certain: without it (a trim of part of a cluster) the old content is as good."""

    __slots__ = ("number", "zero", "certain", "what", "sent", "sent_at", "answered", "answered_at",
                 "durable_at")

    def __init__(self, number, zero, certain, what, sent, sent_at):
        self.number = number
        self.zero = zero
        self.certain = certain
        self.what = what
        self.sent = sent
        self.sent_at = sent_at
        self.answered = self.answered_at = NEVER
        self.durable_at = NEVER

    def content(self, sector):
        """Says which change wrote it, and where it belongs."""
        return bytes(SECTOR) if self.zero else marked(self.number, sector)

    def __str__(self):
        def when(position):
            return "never" if position == NEVER else f"at {position}"
        return (f"change {self.number:#x} ({self.what}), sent at {self.sent_at}, "
                f"answered {when(self.answered_at)}, durable {when(self.durable_at)}")


MARK = struct.Struct("<QQ")


def marked(number, sector):
    return MARK.pack(number, sector) * (SECTOR // MARK.size)


def describe(content, initial, sector):
    """Describes a sector's content."""
    if content == bytes(SECTOR):
        return "zeros"
    if content == initial:
        return "what was there at the beginning"
    number, place = MARK.unpack_from(content)
    if content == marked(number, place):
        where = "" if place == sector else f" of sector {place:#x}"
        return f"the content of change {number:#x}{where}"
    return f"other content, beginning {content[:16].hex()}"


class Wrong(Exception):
    """A forbidden content or state."""


class History:
    """initial: the whole disk at the beginning, durable."""

    def __init__(self, initial):
        self.initial = bytes(initial)
        self.clock = 0
        self.sectors = {}
        self.changes = []

    def now(self):
        self.clock += 1
        return self.clock

    def send(self, number, start, end, zero, what, position, certain=True):
        """A change of bytes start to end, whole sectors. certain may be a range of sectors outside
        of which the old content is as good."""
        sent = self.now()
        change = Change(number, zero, True, what, sent, position)
        unsure = change
        if certain is not True:
            unsure = Change(number, zero, False, what, sent, position)
        for sector in range(start // SECTOR, end // SECTOR):
            sure = certain is True or sector in certain
            self.sectors.setdefault(sector, []).append(change if sure else unsure)
        pair = (change, unsure)
        self.changes.append(pair)
        return pair

    def answer(self, pair, position, durable):
        now = self.now()
        for change in pair:
            change.answered = now
            change.answered_at = position
            if durable:
                change.durable_at = min(change.durable_at, position)

    def flushed(self, sent, position):
        """A flush that was sent at this time was answered: older answers are durable."""
        for pair in self.changes:
            for change in pair:
                if change.answered < sent:
                    change.durable_at = min(change.durable_at, position)

    def check_read(self, start, content, sent):
        """A read sent at this time, answered now. Sectors that were being changed are left out: the
        page cache may tear those."""
        for sector in range(start // SECTOR, (start + len(content)) // SECTOR):
            changes = self.sectors.get(sector, ())
            if any(change.answered >= sent for change in changes):
                continue
            before = [change for change in changes if change.certain and change.answered < sent]
            at = sector * SECTOR - start
            self.judge(sector, content[at:at + SECTOR], changes, before, "read")

    def check_cut(self, content, position):
        """The disk after a cut at the position. Returns it, as bytes."""
        if len(content) != len(self.initial):
            raise Wrong(f"the disk has {len(content)} bytes, not {len(self.initial)}")
        expected = bytearray(self.initial)
        for sector, changes in self.sectors.items():
            at = sector * SECTOR
            piece = content[at:at + SECTOR]
            sent = [change for change in changes if change.sent_at < position]
            durable = [change for change in sent
                       if change.durable_at <= position and change.certain]
            self.judge(sector, piece, sent, durable, "after the cut")
            expected[at:at + SECTOR] = piece
        content = bytes(content)
        if content != bytes(expected):
            first = next(at for at in range(0, len(content), SECTOR)
                         if content[at:at + SECTOR] != expected[at:at + SECTOR]) // SECTOR
            piece = content[first * SECTOR:(first + 1) * SECTOR]
            raise Wrong(f"sector {first:#x}, which nothing was written to, holds "
                        f"{describe(piece, b'', first)}")
        return content

    def judge(self, sector, piece, sent, settled, what):
        """piece must be from one of sent, or initial, that no settled change came after."""
        floor = max((change.sent for change in settled), default=0)
        for change in reversed(sent):
            if change.answered >= floor and piece == change.content(sector):
                return
        initial = self.initial[sector * SECTOR:(sector + 1) * SECTOR]
        if not settled and piece == initial:
            return
        known = "\n".join(f"    {change}" for change in sent[-8:])
        raise Wrong(f"{what}: sector {sector:#x} holds "
                    f"{describe(bytes(piece), initial, sector)}; its changes, settled from time "
                    f"{floor} on:\n{known}")
