# SPDX-License-Identifier: Apache-2.0
"""A host file system that fills up: the request that finds no room fails, everything else lives,
and with room again everything works again."""
import errno
import os
import time

import nbd
import pytest

import lib_machine
import lib_tools
from lib_server import Server, wait_for
from lib_wire import CMD_READ, Wire, request_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
ROOM = 12 * MEBI


@pytest.fixture
def small(workdir):
    """A tmpfs with little room."""
    with lib_machine.mounted(f"{workdir}/small", "-t", "tmpfs", "-o", f"size={ROOM}",
                             "lazycow-test") as path:
        yield path


@pytest.fixture
def small_ext4(workdir):
    """A real file system with little room, on a loop device."""
    device = os.path.join(workdir, "device")
    with open(device, "wb") as stream:
        stream.truncate(ROOM + 4 * MEBI)
    lib_tools.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", device)
    with lib_machine.mounted(f"{workdir}/small", "-o", "loop", device) as path:
        yield path


def write_until_full(handle, content, step=256 << 10, flags=0):
    """Returns how many bytes were written before ENOSPC."""
    for offset in range(0, SIZE, step):
        data = content(offset, step)
        try:
            handle.pwrite(data, offset, flags)
        except nbd.Error as error:
            assert error.errno == "ENOSPC", error
            return offset
    raise AssertionError("the file system never filled up")


def write_once_there_is_room(handle, data, offset):
    """The host gets its blocks back some time after the flush that follows a trim, not before."""
    def fits():
        try:
            handle.pwrite(data, offset)
        except nbd.Error as error:
            assert error.errno == "ENOSPC", error
            return False
        return True
    wait_for(fits)


def pattern(offset, length):
    return bytes([1 + offset // (256 << 10) % 250]) * length


@pytest.mark.parametrize("file_system", ["small", "small_ext4"])
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
@pytest.mark.parametrize("options", [
    {"lazy_refcounts": "on"}, {"lazy_refcounts": "off"},
    {"lazy_refcounts": "on", "cluster_size": 512}, {"lazy_refcounts": "off", "cluster_size": 4096}],
    ids=["lazy", "eager", "lazy-512", "eager-4k"])
def test_full_and_room_again(request, workdir, file_system, aio, options):
    directory = request.getfixturevalue(file_system)
    image = lib_tools.create(f"{directory}/disk.qcow2", SIZE, **options)
    ballast = f"{directory}/ballast"
    with open(ballast, "wb") as stream:
        stream.write(bytes(3 * MEBI))
    with Server(workdir, image, aio=aio) as server:
        one, two = server.connect(), server.connect()
        full = write_until_full(one, pattern)
        assert full > MEBI
        # Others live: reads, writes in place, on this connection and on another.
        for handle in (one, two):
            assert handle.pread(4096, 0) == pattern(0, 4096)
            handle.pwrite(b"\xaa" * 5000, 100)
            assert handle.pread(5000, 100) == b"\xaa" * 5000
            handle.pwrite(pattern(0, 5100), 0)
        with pytest.raises(nbd.Error) as again:
            two.pwrite(pattern(full, MEBI), full + 2 * MEBI)
        assert again.value.errno == "ENOSPC"
        # A failed write leaves old or new content, here zeros or the pattern.
        left = two.pread(256 << 10, full)
        assert set(left) <= {0, pattern(full, 1)[0]}
        # Room is made on the host.
        os.unlink(ballast)
        one.pwrite(pattern(full, 256 << 10), full, nbd.CMD_FLAG_FUA)
        one.pwrite(pattern(full, MEBI), full + MEBI)
        two.flush()
        assert two.pread(256 << 10, full) == pattern(full, 256 << 10)
        # And again, made by the guest this time.
        full = write_until_full(two, pattern)
        one.trim(4 * MEBI, 0)
        one.flush()
        write_once_there_is_room(one, pattern(full, 256 << 10), full)
        one.flush()
        assert one.pread(256 << 10, full) == pattern(full, 256 << 10)
        one.trim(MEBI, 4 * MEBI)  # room for the refcounts that the stop writes
        one.flush()
        for handle in (one, two):
            handle.shutdown()
    lib_tools.check_clean(image)
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert handle.pread(256 << 10, full) == pattern(full, 256 << 10)
        handle.shutdown()


@pytest.mark.parametrize("file_system", ["small", "small_ext4"])
def test_what_was_given_up_is_room(request, workdir, file_system):
    """On a full disk a trim makes room for the next write, with no flush or time between them."""
    image = lib_tools.create(f"{request.getfixturevalue(file_system)}/disk.qcow2", SIZE,
                             lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        full = write_until_full(handle, pattern)
        for offset in range(0, 4 * MEBI, MEBI):
            handle.trim(MEBI, offset)
            handle.pwrite(pattern(offset, MEBI), 32 * MEBI + offset)
        assert full > 5 * MEBI
        handle.flush()
        for offset in range(0, 4 * MEBI, MEBI):
            assert handle.pread(MEBI, 32 * MEBI + offset) == pattern(offset, MEBI)
            assert handle.pread(MEBI, offset) == bytes(MEBI)
        handle.trim(MEBI, 5 * MEBI)  # room for the refcounts that the stop writes
        handle.flush()
        handle.shutdown()
    lib_tools.check_clean(image)


def test_stop_without_room(small, workdir):
    """Without room for refcounts the stop reports it and ends with an error, or finds the room. In
    both cases no flushed data is lost, and the image opens again (test_stop_lost.py has the other
    cases)."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, lazy_refcounts="on", cluster_size=512)
    server = Server(workdir, image)
    handle = server.connect()
    full = write_until_full(handle, pattern, step=64 << 10)
    try:
        handle.flush()
        flushed = True
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error
        flushed = False
    handle.shutdown()
    server.stop(codes=(0, 1))
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        if flushed:
            for offset in range(0, full, 64 << 10):
                assert handle.pread(64 << 10, offset) == pattern(offset, 64 << 10), hex(offset)
        handle.shutdown()


def test_many_in_flight(small, workdir):
    """Dozens of writes meet the end of the space at once; each is answered for itself."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        results = {}
        for offset in range(0, SIZE, MEBI):
            data = nbd.Buffer.from_bytearray(bytearray(pattern(offset, MEBI)))

            def done(error, offset=offset):
                results[offset] = error.value
                return 1
            handle.aio_pwrite(data, offset, done)
        while handle.aio_in_flight():
            handle.poll(-1)
        assert set(results.values()) == {0, errno.ENOSPC}
        for offset, error in results.items():
            data = handle.pread(MEBI, offset)
            if error == 0:
                assert data == pattern(offset, MEBI)
            else:
                assert set(data) <= {0, pattern(offset, 1)[0]}
        handle.trim(32 * MEBI, 0)
        handle.flush()
        write_once_there_is_room(handle, b"\7" * MEBI, 0)
        handle.shutdown()
    lib_tools.check_clean(image)


def test_replies_that_wait_take_no_room(small):
    """Replies that a slow client has not taken are on loan of the file. They delay no use of freed
    space, not even until the tick: five times in a row together take less than half a second, at
    some try also on a busy machine."""
    image = lib_tools.create(os.path.join(small, "disk.qcow2"), SIZE, lazy_refcounts="on")
    read = 128 << 10
    waited = []
    with Server(small, image, plain=True) as server, Wire(server) as slow:
        handle = server.connect()
        end = write_until_full(handle, pattern)
        for number in range(1000):
            handle.pread(read, number * read % (end // 2))
        slow.go(structured=False)
        while len(waited) < 5 or sum(waited[-5:]) >= 0.5:
            for number in range(40):
                slow.send(request_bytes(CMD_READ, number, number * read % (end // 2), read))
            time.sleep(0.05)
            offset = end - (len(waited) % 5 + 2) * MEBI
            begin = time.monotonic()
            handle.trim(MEBI, offset)
            handle.pwrite(b"n" * MEBI, offset)
            waited.append(time.monotonic() - begin)
            for _ in range(40):
                number, error, data = slow.reply(read)
                assert error == 0
                assert data == pattern(number * read % (end // 2), 1) * read
        handle.shutdown()
    lib_tools.check_clean(image)
