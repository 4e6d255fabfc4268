# SPDX-License-Identifier: Apache-2.0
"""Images that are mapped for reading: the size and the time of mappings, and files that another
program changes."""
import os
import random
import time

import pytest

import lib_qcow2
import lib_tools
from lib_server import Server, wait_for
from lib_wire import CMD_READ, Wire, request_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 96 * MEBI
BLOCK = 65536


def mapped_bytes(server):
    """The program and its libraries are less than 16 MiB of it."""
    return server.resident_bytes("RssFile")


def image_of(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    lib_tools.qemu_io(image, f"write -P 7 0 {SIZE}")
    return image


def read_all(handle, rounds=8):
    for _ in range(rounds):
        for offset in range(0, SIZE, BLOCK):
            assert handle.pread(BLOCK, offset) == b"\7" * BLOCK


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_what_is_mapped_is_given_back(workdir, aio):
    with Server(workdir, image_of(workdir), aio=aio) as server:
        handle = server.connect()
        read_all(handle)
        assert mapped_bytes(server) > SIZE // 2
        wait_for(lambda: mapped_bytes(server) <= 16 * MEBI)
        read_all(handle, rounds=1)
        handle.shutdown()


@pytest.mark.parametrize("size, most", [("0", 16 * MEBI), ("32M", 48 * MEBI)])
def test_limit(workdir, size, most):
    with Server(workdir, image_of(workdir), options=[f"--mmap-size={size}"]) as server:
        handle = server.connect()
        read_all(handle)
        assert mapped_bytes(server) <= most
        handle.shutdown()


def test_direct_images_are_not_mapped(workdir):
    with Server(workdir, image_of(workdir), cache="none") as server:
        handle = server.connect()
        read_all(handle, rounds=2)
        assert mapped_bytes(server) <= 16 * MEBI
        handle.shutdown()


def test_a_cut_image_ends_no_server(workdir):
    """The file of a read-only image is cut while all its pages are mapped. The missing bytes read
    as zeros, like all bytes behind the end of an image's file."""
    image = image_of(workdir)
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        read_all(handle)
        os.truncate(image, 8 * MEBI)
        for offset in range(0, SIZE, BLOCK):
            assert handle.pread(BLOCK, offset) in (b"\7" * BLOCK, bytes(BLOCK))
        assert handle.pread(BLOCK, SIZE - BLOCK) == bytes(BLOCK)
        handle.shutdown()
        assert server.alive()


def tagged(number, generation):
    return (b"%07d %07d\n" % (number, generation)) * (BLOCK // 16)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 5])
def test_replies_that_wait_are_nobody_elses(workdir, patience):
    """A client takes no replies to its reads from mapped pages. Others trim these places, and use
    the space for other places. In the end the client gets bytes of the places that it has read: the
    old content, zeros, or newer content of the place."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    used = SIZE // BLOCK // 2
    with Server(workdir, image) as server, Wire(server) as reader:
        writer = server.connect()
        for number in range(used):
            writer.pwrite(tagged(number, 0), number * BLOCK)
        writer.flush()
        reader.go(structured=False)
        for _ in range(8):
            for number in range(0, used, 4):
                assert len(writer.pread(4 * BLOCK, number * BLOCK)) == 4 * BLOCK
        assert mapped_bytes(server) > used * BLOCK // 2
        numbers = range(0, used - 4, 4)
        for number in numbers:
            reader.send(request_bytes(CMD_READ, number, number * BLOCK, 4 * BLOCK))
        time.sleep(patience)
        size = os.path.getsize(image)
        for generation in range(1, 4):
            writer.trim(used * BLOCK, 0)
            writer.flush()
            for number in range(used, 2 * used):
                writer.pwrite(tagged(number, generation), number * BLOCK)
            writer.flush()
            writer.trim(used * BLOCK, used * BLOCK)
            writer.flush()
            for number in range(0, used, 3):
                writer.pwrite(tagged(number, generation), number * BLOCK)
            writer.flush()
        if patience:
            # By then all replies were settled: space was used again.
            assert os.path.getsize(image) < size + used * BLOCK
        for _ in numbers:
            first, error, data = reader.reply(4 * BLOCK)
            assert error == 0
            for index in range(4):
                block = data[index * BLOCK:(index + 1) * BLOCK]
                lines = set(block[at:at + 16] for at in range(0, BLOCK, 16))
                allowed = {tagged(first + index, generation)[:16] for generation in range(4)}
                assert lines <= allowed | {bytes(16)}, (first + index, sorted(lines)[:3])
        writer.shutdown()
    lib_tools.check_clean(image)


def replies_of_a_cut_image(workdir, tcp):
    image = image_of(workdir)
    replies = {}
    with Server(workdir, image, read_only=True, tcp=tcp) as server, Wire(server) as wire:
        handle = server.connect()
        read_all(handle)
        wire.go(structured=False)
        for number in range(100):
            wire.send(request_bytes(CMD_READ, number, number * 8 * BLOCK, 4 * BLOCK))
        time.sleep(0.1)
        os.truncate(image, 4 * MEBI + 12345)
        for _ in range(100):
            cookie, error, data = wire.reply(4 * BLOCK)
            assert error == 0
            replies[cookie] = data
        handle.shutdown()
        assert server.alive()
    return replies


@pytest.mark.parametrize("tcp", [False, True])
def test_an_image_that_is_cut_while_replies_wait(workdir, tcp):
    """Bytes that were sent or copied before are the old ones, those on loan are zeros."""
    for _ in range(50):
        replies = replies_of_a_cut_image(workdir, tcp)
        assert replies[0] == b"\7" * (4 * BLOCK)
        assert all(set(data) <= {0, 7} for data in replies.values())
        if any(0 in data for data in replies.values()):
            return
    raise AssertionError("there was never a loan while the image was cut")


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 5])
def test_a_cluster_that_two_places_share(workdir, patience):
    """The second and the third cluster of the guest have those of the first and the second on the host;
    a reply that was settled has a copy of each."""
    image = image_of(workdir)
    header = lib_qcow2.Header(image)
    for number in range(3):
        lib_tools.qemu_io(image, f"write -P {number + 1} {number * BLOCK} {BLOCK}")
    entries = [lib_qcow2.peek(image, header.l2_entry_offset(number * BLOCK), ">Q")
               & ~lib_qcow2.COPIED for number in range(2)]
    for number, entry in enumerate([entries[0], entries[0], entries[1]]):
        lib_qcow2.poke(image, header.l2_entry_offset(number * BLOCK), ">Q", entry)
    expected = b"\1" * 2 * BLOCK + b"\2" * BLOCK
    with Server(workdir, image, read_only=True) as server, Wire(server) as wire:
        handle = server.connect()
        for _ in range(100):
            assert handle.pread(3 * BLOCK, 0) == expected
        wire.go(structured=False)
        for number in range(40):
            wire.send(request_bytes(CMD_READ, number, 0, 3 * BLOCK))
        time.sleep(patience)
        for _ in range(40):
            assert wire.reply(3 * BLOCK)[1:] == (0, expected)
        handle.shutdown()


def test_reads_see_every_write(workdir):
    """Writes and zeroes between reads of a mapped image, of any alignment."""
    rng = random.Random(4)
    model = bytearray(b"\7" * SIZE)
    with Server(workdir, image_of(workdir)) as server:
        handle = server.connect()
        read_all(handle, rounds=4)
        for _ in range(3000):
            length = rng.choice([1, 511, 4096, 5000, 65536, 200000])
            offset = rng.randrange(4 * MEBI - length)
            kind = rng.choice("wwzr")
            if kind == "w":
                data = rng.randbytes(length)
                handle.pwrite(data, offset)
                model[offset:offset + length] = data
            elif kind == "z":
                handle.zero(length, offset)
                model[offset:offset + length] = bytes(length)
            else:
                assert handle.pread(length, offset) == model[offset:offset + length]
        assert handle.pread(4 * MEBI, 0) == model[:4 * MEBI]
        handle.shutdown()
