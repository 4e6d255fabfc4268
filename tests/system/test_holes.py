# SPDX-License-Identifier: Apache-2.0
"""Data in a hole of the file is zeros, and block status reports it so."""
import json
import os
import random
import struct

import nbd
import pytest

import lib_server
import lib_tools
from lib_server import Server
from lib_wire import *  # the protocol's names, all of them

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
DATA = 0
ZERO = 2
HOLE_AND_ZERO = 3


def statuses(handle, offset, length, flags=0):
    """[(length, flags)] of a range, all of it."""
    found = []
    while length > 0:
        part = []

        def note(_context, _offset, entries, _error):
            part.extend(zip(entries[::2], entries[1::2]))
            return 0
        handle.block_status(length, offset, note, flags)
        for size, state in part:
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + size, state)
            else:
                found.append((size, state))
            offset += size
            length -= size
    return found


def qemu_map(image, *options):
    """The map of qemu-nbd and qemu-img: [(length, zero)]."""
    text = lib_tools.qemu_img("map", "--output=json", *options, image)
    found = []
    for extent in json.loads(text):
        if found and found[-1][1] == extent["zero"]:
            found[-1] = (found[-1][0] + extent["length"], extent["zero"])
        else:
            found.append((extent["length"], extent["zero"]))
    return found


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("cluster", [4096, 65536, 2 * MEBI])
def test_preallocated_metadata(workdir, cluster, cache, aio):
    size = 256 * MEBI
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, preallocation="metadata",
                             cluster_size=cluster)
    lib_tools.qemu_io(image, "write -P 1 1M 1M", "write -P 2 100M 64k",
                      f"write -P 3 {size - 65536} 64k")
    with Server(workdir, image, cache=cache, aio=aio) as server:
        handle = server.connect()
        assert statuses(handle, 0, size) == [
            (MEBI, ZERO), (MEBI, DATA), (98 * MEBI, ZERO), (65536, DATA),
            (size - 100 * MEBI - 2 * 65536, ZERO), (65536, DATA)]
        # One extent at a time, and from anywhere.
        assert statuses(handle, 0, 2 * MEBI, nbd.CMD_FLAG_REQ_ONE) == [(MEBI, ZERO), (MEBI, DATA)]
        assert statuses(handle, 3 * MEBI + 512, 1024) == [(1024, ZERO)]
        # A written range is data at once, though it was known as a hole.
        handle.pwrite(b"\7" * 65536, 50 * MEBI)
        assert statuses(handle, 49 * MEBI, 2 * MEBI) == [
            (MEBI, ZERO), (65536, DATA), (MEBI - 65536, ZERO)]
        handle.shutdown()
    lib_tools.check_clean(image)


def test_the_same_as_qemu(workdir):
    size = 128 * MEBI
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, preallocation="metadata")
    rng = random.Random(1)
    lib_tools.qemu_io(image, *(f"write -P 1 {rng.randrange(size // 65536)}k 4k"
                               for _ in range(40)))
    os.sync()
    expected = qemu_map(image, "-f", "qcow2")
    with Server(workdir, image) as server:
        handle = server.connect()
        found = [(length, flags == ZERO) for length, flags in statuses(handle, 0, size)]
        assert found == expected
        assert qemu_map(server.uri_of(server.name()), "-f", "raw") == expected
        handle.shutdown()


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_preallocated_space(workdir, mode):
    """Space that was never written is zeros; written zeros may be data."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 16 * MEBI, preallocation=mode)
    with Server(workdir, image) as server:
        handle = server.connect()
        found = statuses(handle, 0, 16 * MEBI)
        # A file system that tells unwritten space from data makes a difference. qemu-img may have
        # written to the end of the file.
        zeros = found[0][1] == ZERO
        assert found == [(16 * MEBI, DATA)] or (zeros and found[0][0] > 15 * MEBI)
        handle.pwrite(b"\1" * 4096, MEBI)
        assert (MEBI, ZERO) in statuses(handle, 0, 2 * MEBI) or not zeros
        assert statuses(handle, MEBI, 4096) == [(4096, DATA)]
        handle.shutdown()
    lib_tools.check_clean(image)


def test_random_writes_into_holes(workdir, seed):
    """Many clients' writes between questions: no byte that was written is ever called zeros."""
    size = 64 * MEBI
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, preallocation="metadata")
    rng = random.Random(seed)
    written = bytearray(size // 4096)
    with Server(workdir, image) as server:
        handles = [server.connect() for _ in range(2)]
        for _ in range(600):
            handle = rng.choice(handles)
            begin = rng.randrange(len(written) - 64)
            if rng.random() < 0.5:
                count = rng.randrange(1, 16)
                handle.pwrite(b"\1" * (4096 * count), begin * 4096)
                written[begin:begin + count] = b"\1" * count
            else:
                at = begin
                for length, flags in statuses(handle, begin * 4096, 64 * 4096):
                    blocks = written[at:at + length // 4096]
                    assert not flags & ZERO or not any(blocks), (at, length)
                    at += length // 4096
        for handle in handles:
            handle.shutdown()
    lib_tools.check_clean(image)


def make_raw(path, size, data):
    with open(path, "wb") as stream:
        for offset, length in data:
            stream.seek(offset)
            stream.write(b"\5" * length)
        stream.truncate(size)
    return str(path)


@pytest.mark.parametrize("options", [(), ("--force-share",)])
def test_raw_image(workdir, options):
    raw = make_raw(f"{workdir}/disk.raw", 64 * MEBI + 700, [(MEBI, MEBI), (64 * MEBI, 700)])
    with Server(workdir, raw, image_format="raw", read_only=True, options=options) as server:
        handle = server.connect()
        expected = [(MEBI, HOLE_AND_ZERO), (MEBI, DATA), (62 * MEBI, HOLE_AND_ZERO), (1024, DATA)]
        assert statuses(handle, 0, handle.get_size()) == expected
        if options:
            # Others may write: what was a hole a moment ago is asked for again.
            with open(raw, "r+b") as stream:
                stream.seek(8 * MEBI)
                stream.write(b"\6" * 65536)
            assert statuses(handle, 8 * MEBI, 65536) == [(65536, DATA)]
        handle.shutdown()


def test_backing_images(workdir):
    """A hole of a raw backing file is one of the image; that of a qcow2 backing file is zeros."""
    raw = make_raw(f"{workdir}/base.raw", 32 * MEBI, [(MEBI, MEBI)])
    middle = lib_tools.create(f"{workdir}/middle.qcow2", 32 * MEBI, preallocation="metadata")
    top = lib_tools.create(f"{workdir}/top.qcow2", 48 * MEBI, raw, "raw")
    other = lib_tools.create(f"{workdir}/other.qcow2", 48 * MEBI, middle, "qcow2")
    with Server(workdir, top, other) as server:
        handle = server.connect(server.name(0))
        assert statuses(handle, 0, 48 * MEBI) == [
            (MEBI, HOLE_AND_ZERO), (MEBI, DATA), (46 * MEBI, HOLE_AND_ZERO)]
        handle.shutdown()
        handle = server.connect(server.name(1))
        assert statuses(handle, 0, 48 * MEBI) == [(32 * MEBI, ZERO), (16 * MEBI, HOLE_AND_ZERO)]
        handle.shutdown()


def test_data_behind_the_end_of_the_file(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", 16 * MEBI, preallocation="metadata")
    os.truncate(image, os.path.getsize(image) - 8 * MEBI)
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert statuses(handle, 0, 16 * MEBI) == [(16 * MEBI, ZERO)]
        assert handle.pread(MEBI, 15 * MEBI) == bytes(MEBI)
        handle.shutdown()


def test_more_extents_than_are_remembered(workdir):
    size = 256 * MEBI
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, preallocation="metadata")
    with Server(workdir, image) as server:
        handle = server.connect()
        for at in range(0, size, 2 * 65536):
            handle.pwrite(b"\1" * 4096, at)
        for _ in range(2):
            found = statuses(handle, 0, size)
            assert sum(length for length, _ in found) == size
            at = 0
            for length, flags in found:
                if flags & ZERO:
                    first = (at + 131071) // 131072 * 131072
                    assert first >= at + length, "a cluster that was written"
                at += length
        handle.shutdown()


def test_one_extent_of_more_than_32_bits(workdir):
    """With extended headers a hole is one extent, however long."""
    size = 6 << 30
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, preallocation="metadata")
    with Server(workdir, image) as server, Wire(server) as wire:
        wire.greet()
        assert wire.option_result(OPT_EXTENDED_HEADERS) == REP_ACK
        assert wire.option(OPT_SET_META_CONTEXT,
                           meta_data(server.name(), ["base:allocation"]))[-1][0] == REP_ACK
        assert wire.option(OPT_GO, go_data(server.name()))[-1][0] == REP_ACK
        wire.send(extended_request_bytes(CMD_BLOCK_STATUS, 1, 0, size))
        _cookie, _offset, _flags, _kind, payload = wire.extended_chunk()
        assert struct.unpack(">QQ", payload[8:24]) == (size, ZERO)


def test_other_commands(workdir):
    """The tables of an image that is all holes are looked at as before."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI, preallocation="metadata")
    with Server(workdir, image):
        pass
    assert "No errors" in lib_tools.run(lib_server.BINARY, "check", image)
    report = json.loads(lib_tools.run(lib_server.BINARY, "info", "--output=json", image))
    assert report["virtual-size"] == 64 * MEBI
