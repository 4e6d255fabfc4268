# SPDX-License-Identifier: Apache-2.0
"""Images that are mapped for reading: how much of them, for how long, and what happens when somebody
else lays hands on the file."""
import os
import random
import time

import pytest

import lib_tools
from lib_server import Server

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
        deadline = time.monotonic() + 20
        while mapped_bytes(server) > 16 * MEBI:
            assert time.monotonic() < deadline, mapped_bytes(server)
            time.sleep(0.2)
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
    """Somebody cuts the file of a read-only image, all of whose pages are mapped. What is gone reads
    as zeros, as anything does that lies behind the end of an image's file."""
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
