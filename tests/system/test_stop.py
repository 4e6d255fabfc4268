# SPDX-License-Identifier: Apache-2.0
"""Signals at any moment: while the server starts, under load, with clients that are stuck."""
import os
import random
import signal
import threading
import time

import nbd
import pytest

import lib_tools
from lib_server import Server, wait_for
from lib_wire import Wire

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")


def stop_delays(start_seconds):
    """From the beginning of a start that takes so long to some time behind it."""
    steps = lib_tools.scaled(25)
    return [1.5 * start_seconds * step / steps for step in range(steps)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_signal_during_start(workdir, number):
    """Before main() runs a signal kills, after that it stops cleanly; nothing in between, and the
    image is as clean as it was."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    begun = time.monotonic()
    with Server(workdir, image, plain=True):
        taken = time.monotonic() - begun
    for delay in stop_delays(taken):
        server = Server(workdir, image, plain=True, wait=False)
        time.sleep(delay)
        server.process.send_signal(number)
        code = server.wait_exit()
        assert code in (0, -number), f"exit code {code} after {delay} s: {server.stderr_tail()}"
        assert not os.path.exists(server.socket), f"socket left behind after {delay} s, {code}"
    lib_tools.check_clean(image)


def test_signal_once_listening_is_never_lost(workdir, image):
    """At the moment when the socket appears, before anybody could have connected."""
    for _ in range(lib_tools.scaled(15)):
        server = Server(workdir, image, wait=False)
        while not os.path.exists(server.socket):
            pass  # without a pause: the moment counts; the limit of the test is that of this loop
        server.stop()


class Writers:
    """Threads that write until their connection ends, and remember the answered writes."""

    def __init__(self, server, count, size):
        self.answered = {}
        self.stop = False
        self.threads = [threading.Thread(target=self.write, args=(server, number, count, size))
                        for number in range(count)]
        for thread in self.threads:
            thread.start()

    def write(self, server, number, count, size):
        rng = random.Random(number)
        try:
            handle = server.connect()
            share = size // count
            while not self.stop:
                length = rng.randint(1, 70000)
                offset = number * share + rng.randrange(share - length)
                content = rng.randbytes(length)
                self.answered.setdefault(number, []).append((offset, content, False))
                handle.pwrite(content, offset)
                self.answered[number][-1] = (offset, content, True)
        except nbd.Error:
            pass

    def count(self):
        return sum(len(writes) for writes in list(self.answered.values()))

    def join(self):
        self.stop = True
        for thread in self.threads:
            thread.join()

    def check(self, content):
        """Every byte is that of the last answered write, or of the one that got no answer."""
        for writes in self.answered.values():
            low = min(offset for offset, _, _ in writes)
            high = max(offset + len(data) for offset, data, _ in writes)
            expected = bytearray(high - low)
            for offset, data, answered in writes:
                if answered:
                    expected[offset - low:offset - low + len(data)] = data
            found = bytearray(content[low:high])
            offset, data, answered = writes[-1]
            if not answered:
                start, end = offset - low, offset - low + len(data)
                for at in range(start, end):
                    assert found[at] in (expected[at], data[at - start])
                found[start:end] = expected[start:end]
            assert found == expected


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
@pytest.mark.parametrize("signals", [1, 5])
def test_stop_under_load(workdir, image, aio, signals):
    """Answered writes are there, the image is clean, and more signals do no harm."""
    for delay in (0, 0.2, 0.4):
        server = Server(workdir, image, aio=aio)
        # The model below begins with an empty disk.
        handle = server.connect()
        handle.zero(SIZE, 0)
        handle.shutdown()
        writers = Writers(server, 6, SIZE)
        wait_for(lambda: writers.count() > 6)
        time.sleep(delay)
        for _ in range(signals - 1):
            server.process.send_signal(random.choice((signal.SIGTERM, signal.SIGINT)))
            time.sleep(0.002)
            if server.process.poll() is not None:
                break
        server.stop()
        writers.join()
        lib_tools.check_clean(image)
        writers.check(lib_tools.read_all(image))


@pytest.mark.slow
def test_stop_with_a_stuck_client(workdir, image):
    """One that never takes its answers cannot keep the server from stopping."""
    lib_tools.qemu_io(image, f"write -P 1 0 {SIZE}")
    server = Server(workdir, image)
    with Wire(server) as wire:
        wire.go(structured=False)
        wire.socket.settimeout(0.5)
        try:
            for cookie in range(100):
                wire.request(0, 0, MEBI)
        except TimeoutError:
            pass
        server.stop()
    lib_tools.check_clean(image)


def test_stop_with_idle_and_half_open_clients(workdir, image):
    server = Server(workdir, image)
    idle = server.connect()
    half_open = [server.raw_socket() for _ in range(3)]
    half_write = Wire(server)
    half_write.go()
    half_write.send(b"\x25\x60\x95\x13\0\0\0\1")
    server.stop()
    for connection in half_open:
        connection.close()
    half_write.socket.close()
    with pytest.raises(nbd.Error):
        idle.pread(1, 0)
    lib_tools.check_clean(image)


def test_sigpipe_does_no_harm(workdir, image):
    with Server(workdir, image) as server:
        server.process.send_signal(signal.SIGPIPE)
        handle = server.connect()
        assert handle.pread(512, 0) == bytes(512)
        handle.shutdown()
