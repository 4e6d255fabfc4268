# SPDX-License-Identifier: Apache-2.0
"""Random load over NBD whose every change is kept in a history, with the log's positions."""
import os

import nbd

from history import SECTOR, marked
from lib_load import Connections

LENGTH_MAX = 1 << 20


class Stopped(Exception):
    """The server was killed in the middle, on purpose."""


class PowerLoad:
    """trim: "zero" where a trim makes whole clusters zeros, "maybe" where it may, "ignored".
    through: each write is durable when it was answered, asked for or not."""

    # How much of the disk most requests go to.
    HOT_PLACES = 6

    def __init__(self, rng, server, history, log, cluster, first, trim,
                 through=False):
        """log: path of the recorder's log, None where the power is not cut. first: the number of
        the first change."""
        self.rng = rng
        self.server = server
        self.history = history
        self.cluster = cluster
        self.next_number = first
        self.trim_means = trim
        self.through = through
        self.log = None if log is None else os.open(log, os.O_RDONLY)
        self.connections = Connections(server, rng.randint(1, 4))
        self.depth = rng.choice((1, 4, 16, 32))
        self.in_flight = 0
        size = len(history.initial)
        self.size = size
        self.hot = [rng.randrange(size // SECTOR) * SECTOR 
                    for _ in range(rng.randint(1, self.HOT_PLACES))]
        self.weights = self.choose_weights()

    def choose_weights(self):
        """Chooses the emphasis of this load."""
        rng = self.rng
        kinds = (self.write, self.zero, self.trim, self.flush, self.read)
        shares = rng.choice(((50, 10, 15, 8, 8), (80, 4, 4, 3, 4), (35, 5, 45, 12, 4),
                             (30, 40, 10, 12, 4), (60, 10, 20, 1, 4)))
        self.fua_share = rng.choice((0, 0.05, 0.2, 0.5))
        return kinds, shares

    def position(self):
        return 0 if self.log is None else os.fstat(self.log).st_size

    def close(self):
        if self.log is not None:
            os.close(self.log)

    # ---- Choosing -------------------------------------------------------------------------------

    def choose_range(self):
        rng, cluster = self.rng, self.cluster
        kind = rng.randrange(12)
        if kind < 6:
            length = SECTOR * rng.randint(1, 8)
        elif kind < 9:
            length = cluster * rng.randint(1, 2)
        elif kind < 11:
            length = cluster * rng.randint(1, 4) + SECTOR * rng.choice((0, -1, 1, 3))
        else:
            length = SECTOR * rng.randint(1, 256)
        length = max(SECTOR, min(length, LENGTH_MAX, self.size))
        last = (self.size - length) // SECTOR
        place = rng.randrange(10)
        if place < 7:
            start = rng.choice(self.hot) // SECTOR + rng.randint(-2, 2) * (cluster // SECTOR)
            if rng.randrange(2):
                start = start // (cluster // SECTOR) * (cluster // SECTOR)
            elif rng.randrange(2):
                start += rng.randint(0, 16)
        else:
            start = rng.randint(0, last)
            if rng.randrange(2):
                start = start // (cluster // SECTOR) * (cluster // SECTOR)
        start = max(0, min(start, last)) * SECTOR
        return start, start + length

    # ---- Requests -------------------------------------------------------------------------------

    def run(self, count, kill_after=None):
        """Sends count requests. kill_after: kills the server once so many were sent."""
        rng = self.rng
        kinds, shares = self.weights
        for sent in range(count):
            if sent == kill_after:
                self.server.kill()
                raise Stopped()
            while self.in_flight >= self.depth:
                self.connections.turn()
            if rng.randrange(60) == 0:
                self.drain()
            kind = rng.choices(kinds, shares)[0]
            start, end = self.choose_range()
            kind(rng.choice(self.connections.handles), start, end)
        self.drain()

    def drain(self):
        while self.in_flight:
            self.connections.turn()

    def number(self):
        self.next_number += 1
        return self.next_number

    def begin(self, pair, fua, text):
        """Returns the completion of a change."""
        self.in_flight += 1
        self_connections = self.connections

        def done(error):
            # In libnbd's callback: what the position covers must not grow before it is taken.
            position = self.position()

            def finish(value):
                assert value == 0, f"{text}: error {value}"
                self.in_flight -= 1
                self.history.answer(pair, position, fua)
            self_connections.completed.append((finish, error.value))
            return 1
        return done

    def fua(self):
        return nbd.CMD_FLAG_FUA if self.rng.random() < self.fua_share else 0

    def write(self, handle, start, end):
        number = self.number()
        zero = self.rng.randrange(25) == 0
        content = (bytes(end - start) if zero else
                   b"".join(marked(number, sector) for sector in range(start // SECTOR,
                                                                       end // SECTOR)))
        flags = self.fua()
        text = f"write {start:#x} +{end - start:#x}{' fua' if flags else ''}"
        pair = self.history.send(number, start, end, zero, text, self.position())
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content)), start,
                          self.begin(pair, bool(flags) or self.through, text), flags)

    def zero(self, handle, start, end):
        fua = self.fua()
        flags = fua | (nbd.CMD_FLAG_NO_HOLE if self.rng.randrange(3) == 0 else 0)
        text = f"zero {start:#x} +{end - start:#x} flags {flags:#x}"
        pair = self.history.send(self.number(), start, end, True, text, self.position())
        handle.aio_zero(end - start, start, self.begin(pair, bool(fua) or self.through, text),
                        flags)

    def trim(self, handle, start, end):
        flags = self.fua()
        if self.trim_means == "ignored":
            self.in_flight += 1
            handle.aio_trim(end - start, start, self.connections.guard(self.done_nothing), flags)
            return
        certain = range(0)
        if self.trim_means == "zero":
            per_cluster = self.cluster // SECTOR
            certain = range(-(-start // self.cluster) * per_cluster,
                            end // self.cluster * per_cluster)
        text = f"trim {start:#x} +{end - start:#x}{' fua' if flags else ''}"
        pair = self.history.send(self.number(), start, end, True, text, self.position(), certain)
        handle.aio_trim(end - start, start, self.begin(pair, bool(flags), text), flags)

    def done_nothing(self, error):
        assert error == 0, f"request: error {error}"
        self.in_flight -= 1

    def flush(self, handle, _start=None, _end=None):
        sent = self.history.now()
        self.in_flight += 1

        def done(error):
            position = self.position()

            def finish(value):
                assert value == 0, f"flush: error {value}"
                self.in_flight -= 1
                self.history.flushed(sent, position)
            self.connections.completed.append((finish, error.value))
            return 1
        handle.aio_flush(done)

    def read(self, handle, start, end):
        buffer = nbd.Buffer(end - start)
        sent = self.history.now()
        self.in_flight += 1

        def done(error):
            assert error == 0, f"read {start:#x} +{end - start:#x}: error {error}"
            self.in_flight -= 1
            self.history.check_read(start, bytes(buffer.to_bytearray()), sent)
        handle.aio_pread(buffer, start, self.connections.guard(done))
