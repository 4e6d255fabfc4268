# SPDX-License-Identifier: Apache-2.0
"""Random requests over several connections, checked against a model of the disk in memory.

Two kinds of load. run() keeps many requests in flight whose ranges do not overlap unless all of
them only read, so that every answer has exactly one right content. overlap() lets changes race for
the same bytes; afterwards every piece of a sector must hold what one of them left.
"""
import select

import nbd

SECTOR = 512
# More would be cut by the server: one 32 MiB request.
LENGTH_MAX = 1 << 20


class Connections:
    """libnbd handles that are driven by one poll loop."""

    def __init__(self, server, count):
        self.handles = [server.connect() for _ in range(count)]
        self.completed = []

    def turn(self):
        """Waits until something happens on one of them, and runs the completions."""
        poller = select.poll()
        by_descriptor = {}
        for handle in self.handles:
            direction = handle.aio_get_direction()
            events = 0
            if direction & nbd.AIO_DIRECTION_READ:
                events |= select.POLLIN
            if direction & nbd.AIO_DIRECTION_WRITE:
                events |= select.POLLOUT
            descriptor = handle.aio_get_fd()
            by_descriptor[descriptor] = handle
            poller.register(descriptor, events)
        ready = poller.poll(30000)
        assert ready, "no connection moved for 30 s"
        for descriptor, events in ready:
            handle = by_descriptor[descriptor]
            direction = handle.aio_get_direction()
            if direction & nbd.AIO_DIRECTION_READ and events & ~select.POLLOUT:
                handle.aio_notify_read()
            elif direction & nbd.AIO_DIRECTION_WRITE and events & ~select.POLLIN:
                handle.aio_notify_write()
        completed, self.completed = self.completed, []
        for function, error in completed:
            function(error)

    def guard(self, function):
        """A completion for libnbd, run later by turn(): libnbd would print and forget an exception,
        and holds the handle's lock while it calls back."""
        def completion(error):
            self.completed.append((function, error.value))
            return 1
        return completion

    def shutdown(self):
        for handle in self.handles:
            handle.shutdown()


class Disk:
    """The model: the required content of every byte, and the ranges that have requests in flight."""

    def __init__(self, content, cluster, trim_zeroes, trim_ignored=False, trim_any=False):
        """trim_zeroes: whole clusters of a trim read as zeros. Else a trim leaves zeros or the old
        content; with trim_ignored exactly the old content, with trim_any anything (as the protocol
        allows)."""
        self.data = bytearray(content)
        self.size = len(content)
        self.cluster = cluster
        self.trim_zeroes = trim_zeroes
        self.trim_ignored = trim_ignored
        self.trim_any = trim_any
        self.busy = {}

    def free(self, start, end, changes):
        return all(end <= other_start or start >= other_end or not (changes or other_changes)
                   for other_start, other_end, other_changes in self.busy.values())

    def check(self, start, content, what):
        expected = self.data[start:start + len(content)]
        if content != expected:
            first = next(i for i in range(len(content)) if content[i] != expected[i])
            raise AssertionError(
                f"{what}: byte {start + first:#x} is {content[first]:#x}, not "
                f"{expected[first]:#x} (range {start:#x} +{len(content):#x}); there "
                f"{bytes(content[first:first + 16]).hex()}, "
                f"expected {bytes(expected[first:first + 16]).hex()}")

    def check_trimmed(self, start, content):
        """After a trim the content that is read becomes the model's content."""
        end = start + len(content)
        if not self.trim_any:
            whole_start = -(-start // self.cluster) * self.cluster
            whole_end = end // self.cluster * self.cluster
            at = start
            while at < end:
                step = min(end, (at // self.cluster + 1) * self.cluster)
                piece = bytes(content[at - start:step - start])
                old = bytes(self.data[at:step])
                zero = bytes(step - at)
                if self.trim_ignored:
                    allowed = (old,)
                elif whole_start <= at and step <= whole_end:
                    allowed = (zero,) if self.trim_zeroes else (zero, old)
                elif end == self.size and step == end and at % self.cluster == 0:
                    allowed = (zero, old)  # the last cluster, cut by the end of the disk
                else:
                    allowed = (old,)
                assert piece in allowed, (
                    f"trim {start:#x} +{len(content):#x}: cluster at {at:#x} holds neither what "
                    f"it held nor zeros")
                at = step
        self.data[start:end] = content


class Load:
    """racing_frees: zeroes and trims run beside other requests. no_hole_keeps_space: NO_HOLE leaves
    no hole behind. fast_zero: send FAST_ZERO, whose refusal changes nothing."""

    def __init__(self, rng, connections, disk, depth=24, racing_frees=True,
                 no_hole_keeps_space=True, fast_zero=True):
        self.rng = rng
        self.connections = connections
        self.disk = disk
        self.depth = depth
        self.racing_frees = racing_frees
        self.no_hole_keeps_space = no_hole_keeps_space
        self.fast_zero = fast_zero
        self.in_flight = 0
        self.next_token = 0
        self.hot = rng.randrange(disk.size)

    # ---- Choosing -------------------------------------------------------------------------------

    def choose_range(self):
        rng, size, cluster = self.rng, self.disk.size, self.disk.cluster
        kind = rng.randrange(10)
        if kind < 5:
            length = rng.randint(1, 3 * SECTOR)
        elif kind < 7:
            length = SECTOR * rng.randint(1, 64)
        elif kind < 9:
            length = rng.randint(1, 3) * cluster + rng.choice((0, 0, -1, 1, SECTOR, -SECTOR))
        else:
            length = rng.randint(1, LENGTH_MAX)
        length = max(1, min(length, LENGTH_MAX, size))
        last = size - length
        place = rng.randrange(10)
        if place < 3:
            start = rng.randint(0, last)
        elif place < 6:
            start = rng.randint(0, last) // cluster * cluster
        elif place < 8:
            start = self.hot + rng.randint(-4 * cluster, 4 * cluster)
        elif place < 9:
            start = rng.randint(0, last) // SECTOR * SECTOR
        else:
            start = last
        start = max(0, min(start, last))
        return start, start + length

    def payload(self, length):
        kind = self.rng.randrange(8)
        if kind == 0:
            return bytes(length)
        if kind == 1:
            return bytes([self.rng.randrange(256)]) * length
        if kind == 2:
            half = length // 2  # zeros beside data, for --detect-zeroes
            return bytes(half) + self.rng.randbytes(length - half)
        return self.rng.randbytes(length)

    def fua(self):
        return nbd.CMD_FLAG_FUA if self.rng.randrange(6) == 0 else 0

    # ---- Requests that do not race --------------------------------------------------------------

    def run(self, count):
        started = 0
        kinds = ([self.read] * 22 + [self.read_pieces] * 6 + [self.write] * 34 + [self.zero] * 14
                 + [self.trim] * 9 + [self.status] * 8 + [self.cache] * 2)
        while started < count or self.in_flight:
            while started < count and self.in_flight < self.depth:
                handle = self.rng.choice(self.connections.handles)
                if self.rng.randrange(25) == 0:
                    self.flush(handle)
                    started += 1
                    continue
                start, end = self.choose_range()
                kind = self.rng.choice(kinds)
                changes = kind in (self.write, self.zero, self.trim)
                if not self.disk.free(start, end, changes):
                    break
                alone = kind in (self.trim, self.zero) and not self.racing_frees
                if alone:
                    self.drain()
                self.begin(start, end, changes, handle, kind)
                started += 1
                if alone:
                    self.drain()
            if self.in_flight:
                self.connections.turn()

    def drain(self):
        while self.in_flight:
            self.connections.turn()

    def begin(self, start, end, changes, handle, kind):
        token = self.next_token
        self.next_token += 1
        self.disk.busy[token] = (start, end, changes)
        self.in_flight += 1

        def finished():
            del self.disk.busy[token]
            self.in_flight -= 1
        kind(handle, start, end, finished)

    def read(self, handle, start, end, finished):
        buffer = nbd.Buffer(end - start)

        def done(error):
            assert error == 0, f"read {start:#x} +{end - start:#x}: error {error}"
            self.disk.check(start, buffer.to_bytearray(), "read")
            finished()
        handle.aio_pread(buffer, start, self.connections.guard(done))

    def read_pieces(self, handle, start, end, finished):
        """A structured read: its chunks cover the range once, and holes hold zeros."""
        buffer = nbd.Buffer(end - start)
        pieces = []

        def chunk(piece, offset, status, error):
            pieces.append((offset, len(piece), status, error.value))
            return 0

        def done(error):
            assert error == 0, f"read {start:#x} +{end - start:#x}: error {error}"
            self.disk.check(start, buffer.to_bytearray(), "structured read")
            at = start
            for offset, length, status, piece_error in sorted(pieces):
                assert offset == at and length > 0 and piece_error == 0, pieces
                if status == nbd.READ_HOLE:
                    self.expect_zero(offset, length, "hole chunk")
                at += length
            assert at == end, pieces
            finished()
        handle.aio_pread_structured(buffer, start, chunk, self.connections.guard(done))

    def expect_zero(self, start, length, what):
        end = min(start + length, self.disk.size)
        assert not any(self.disk.data[start:end]), f"{what} over data at {start:#x} +{length:#x}"

    def write(self, handle, start, end, finished):
        content = self.payload(end - start)

        def done(error):
            assert error == 0, f"write {start:#x} +{end - start:#x}: error {error}"
            self.disk.data[start:end] = content
            finished()
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), start,
                          self.connections.guard(done), self.fua())

    def zero(self, handle, start, end, finished):
        flags = self.fua()
        no_hole = self.rng.randrange(3) == 0
        fast = self.rng.randrange(3) == 0 and self.fast_zero and handle.can_fast_zero()
        flags |= nbd.CMD_FLAG_NO_HOLE if no_hole else 0
        flags |= nbd.CMD_FLAG_FAST_ZERO if fast else 0
        enotsup = 95

        def done(error):
            assert error == 0 or (fast and error == enotsup), (
                f"zero {start:#x} +{end - start:#x} flags {flags:#x}: error {error}")
            if error == 0:
                self.disk.data[start:end] = bytes(end - start)
                if no_hole and self.no_hole_keeps_space:
                    self.status(handle, start, end, finished, provisioned=True)
                    return
            finished()
        handle.aio_zero(end - start, start, self.connections.guard(done), flags)

    def trim(self, handle, start, end, finished):
        buffer = nbd.Buffer(end - start)

        def looked(error):
            assert error == 0, f"read after trim {start:#x} +{end - start:#x}: error {error}"
            self.disk.check_trimmed(start, buffer.to_bytearray())
            finished()

        def done(error):
            assert error == 0, f"trim {start:#x} +{end - start:#x}: error {error}"
            handle.aio_pread(buffer, start, self.connections.guard(looked))
        handle.aio_trim(end - start, start, self.connections.guard(done), self.fua())

    def status(self, handle, start, end, finished, provisioned=False):
        one = not provisioned and self.rng.randrange(4) == 0
        answers = []

        def extents(context, offset, entries, error):
            answers.append((context, offset, list(entries), error.value))
            return 0

        def done(error):
            assert error == 0, f"block status {start:#x} +{end - start:#x}: error {error}"
            assert len(answers) == 1, answers
            context, offset, entries, extent_error = answers[0]
            assert (context, offset, extent_error) == ("base:allocation", start, 0), answers
            self.check_extents(start, end, entries, one, provisioned)
            finished()
        handle.aio_block_status(end - start, start, extents, self.connections.guard(done),
                                nbd.CMD_FLAG_REQ_ONE if one else 0)

    def check_extents(self, start, end, entries, one, provisioned):
        extents = list(zip(entries[::2], entries[1::2]))
        assert extents and all(length > 0 for length, _ in extents), extents
        assert sum(length for length, _ in extents[:-1]) < end - start, extents
        if one:
            assert len(extents) == 1 and extents[0][0] <= end - start, extents
        at = start
        for length, flags in extents:
            assert at + length <= self.disk.size, f"extent beyond the end: {extents}"
            assert flags & ~3 == 0, extents
            stop = min(at + length, end)  # what lies behind is not held by this request
            if flags & nbd.STATE_ZERO:
                self.expect_zero(at, stop - at, "zero extent")
            if provisioned:
                assert not flags & nbd.STATE_HOLE, (
                    f"hole at {at:#x} after write zeroes with NO_HOLE {start:#x} "
                    f"+{end - start:#x}: {extents}")
            at = stop

    def cache(self, handle, start, end, finished):
        def done(error):
            assert error == 0, f"cache {start:#x} +{end - start:#x}: error {error}"
            finished()
        if handle.can_cache():
            handle.aio_cache(end - start, start, self.connections.guard(done))
        else:
            finished()

    def flush(self, handle):
        self.in_flight += 1

        def done(error):
            assert error == 0, f"flush: error {error}"
            self.in_flight -= 1
        handle.aio_flush(self.connections.guard(done))

    # ---- Requests that race ---------------------------------------------------------------------

    def overlap(self, count):
        """Makes count changes of one region at once, beside reads of it, and beside flushes and
        writes elsewhere, which take the clusters that the changes free. In the end every piece of
        the region must hold one of their results, and each read one of them or the old content."""
        span = min(self.disk.size, max(8 * SECTOR, self.rng.choice((1, 2, 5)) * self.disk.cluster))
        span = min(span, LENGTH_MAX)
        base = self.rng.randint(0, self.disk.size - span)
        self.disk.busy["region"] = (base, base + span, True)
        changes, reads = [], []
        for _ in range(count):
            start = base + self.rng.randrange(span)
            end = min(base + span, start + self.rng.randint(1, max(SECTOR, span // 2)))
            if self.rng.randrange(2):
                start = start // SECTOR * SECTOR
                end = min(-(-end // SECTOR) * SECTOR, base + span)
            if start < base or start >= end:
                continue
            beside = self.rng.randrange(6)
            if beside < 2:
                reads.append((start, end, self.start_read(start, end)))
            elif beside == 2:
                self.flush(self.rng.choice(self.connections.handles))
            elif beside == 3:
                self.start_elsewhere()
            changes.append((start, end, *self.start_change(start, end)))
        self.drain()
        for start, end, buffer in reads:
            self.judge_read(changes, start, buffer.to_bytearray())
        self.judge(changes)
        del self.disk.busy["region"]

    def start_read(self, start, end):
        buffer = nbd.Buffer(end - start)
        self.in_flight += 1

        def done(error):
            assert error == 0, f"read {start:#x} +{end - start:#x}: error {error}"
            self.in_flight -= 1
        self.rng.choice(self.connections.handles).aio_pread(buffer, start,
                                                            self.connections.guard(done))
        return buffer

    def start_elsewhere(self):
        start, end = self.choose_range()
        if self.disk.free(start, end, True):
            self.begin(start, end, True, self.rng.choice(self.connections.handles), self.write)

    def start_change(self, start, end):
        """Starts a write, zero or trim. Returns (content, certain)."""
        handle = self.rng.choice(self.connections.handles)
        self.in_flight += 1

        def done(error):
            assert error == 0, f"change of {start:#x} +{end - start:#x}: error {error}"
            self.in_flight -= 1
        done = self.connections.guard(done)
        kind = self.rng.randrange(10)
        if kind < 7 or not self.racing_frees:
            content = self.rng.randbytes(end - start)
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), start, done,
                              self.fua())
            return content, True
        if kind < 9:
            handle.aio_zero(end - start, start, done, self.fua())
            return bytes(end - start), True
        handle.aio_trim(end - start, start, done)
        return bytes(end - start), False

    def pieces(self, changes, low, high):
        """[(start, end, contents allowed there, whether one of them certainly was written)] for
        the pieces of sectors between the edges of changes."""
        cuts = {low, high}
        for start, end, _, _ in changes:
            cuts |= {start, end}
        cuts |= set(range(-(-low // SECTOR) * SECTOR, high, SECTOR))
        cuts = sorted(cut for cut in cuts if low <= cut <= high)
        for at, stop in zip(cuts, cuts[1:]):
            covering = [change for change in changes if change[0] <= at and stop <= change[1]]
            yield (at, stop,
                   [content[at - start:stop - start] for start, _, content, _ in covering],
                   any(certain for _, _, _, certain in covering))

    def judge_read(self, changes, start, found):
        """A read beside changes may be torn anywhere, but has only their bytes and the old ones."""
        for at, stop, allowed, _ in self.pieces(changes, start, start + len(found)):
            piece = bytes(found[at - start:stop - start])
            allowed.append(bytes(self.disk.data[at:stop]))
            assert piece in allowed or all(byte in choice
                                           for byte, *choice in zip(piece, *allowed)), (
                f"read {start:#x} +{len(found):#x}: bytes {at:#x} to {stop:#x} were never there")

    def judge(self, changes):
        if not changes:
            return
        low = min(change[0] for change in changes)
        high = max(change[1] for change in changes)
        buffer = bytearray()
        while low + len(buffer) < high:
            length = min(LENGTH_MAX, high - low - len(buffer))
            buffer += self.connections.handles[0].pread(length, low + len(buffer))
        for at, stop, allowed, certain in self.pieces(changes, low, high):
            if not certain:
                allowed.append(bytes(self.disk.data[at:stop]))
            assert bytes(buffer[at - low:stop - low]) in allowed, (
                f"bytes {at:#x} to {stop:#x} hold what none of the racing requests wrote there")
        self.disk.data[low:high] = buffer
