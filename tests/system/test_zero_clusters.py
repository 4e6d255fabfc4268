# SPDX-License-Identifier: Apache-2.0
"""Zeros with their space kept (WRITE_ZEROES with NO_HOLE): zero clusters that have a host cluster."""
import os
import random

import nbd
import pytest

import lib_qcow2
import lib_tools
from lib_server import Server

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
NO_HOLE = nbd.CMD_FLAG_NO_HOLE
FAST_ZERO = nbd.CMD_FLAG_FAST_ZERO
STATE_ZERO = 2
HOLE_AND_ZERO = 3

# The initial states of the clusters of prepare(), in their order.
STATES = ("unallocated", "data", "shared data", "compressed", "zero", "zero with space",
          "shared zero with space", "data behind it")


def prepare(directory, version=3, cluster=65536, backing=False):
    """Creates an image with a cluster of every state. Returns its path and its guest content."""
    size = len(STATES) * cluster
    base = None
    if backing:
        base = lib_tools.create(f"{directory}/base.qcow2", size, cluster_size=cluster)
        lib_tools.qemu_io(base, f"write -P 9 0 {size - cluster // 2}")
    image = lib_tools.create(f"{directory}/disk.qcow2", size, base, "qcow2" if base else None,
                             cluster_size=cluster, compat="1.1" if version == 3 else "0.10")
    at = {state: number * cluster for number, state in enumerate(STATES)}
    zeros = version == 3
    lib_tools.qemu_io(image, f"write -P 2 {at['shared data']} {cluster}",
                      f"write -P 3 {at['shared zero with space']} {cluster}",
                      *([f"write -z {at['shared zero with space']} {cluster}"] if zeros else []))
    lib_tools.qemu_img("snapshot", "-c", "before", image)
    lib_tools.qemu_io(image, f"write -P 1 {at['data']} {cluster}",
                      f"write -c -P 4 {at['compressed']} {cluster}",
                      f"write -P 5 {at['zero with space']} {cluster}",
                      f"write -P 6 {at['data behind it']} {cluster}",
                      *([f"write -z -u {at['zero']} {cluster}",
                         f"write -z {at['zero with space']} {cluster}"] if zeros else []))
    if zeros:
        header = lib_qcow2.Header(image)
        for state in ("zero with space", "shared zero with space"):
            entry = header.l2_entry(at[state])
            assert entry & lib_qcow2.ZERO and entry & lib_qcow2.OFFSET_MASK, state
    lib_tools.check_clean(image)
    return image, bytearray(lib_tools.read_all(image))


def statuses(handle, offset, length):
    """[(length, flags)] of a range."""
    found = []

    def note(_context, _offset, entries, _error):
        found.extend(zip(entries[::2], entries[1::2]))
        return 0
    handle.block_status(length, offset, note)
    return found


def is_zero_cluster(image, guest):
    entry = lib_qcow2.Header(image).l2_entry(guest)
    return (entry & lib_qcow2.ZERO and entry & lib_qcow2.COPIED
            and entry & lib_qcow2.OFFSET_MASK != 0)


@pytest.mark.parametrize("backing", [False, True])
@pytest.mark.parametrize("cluster", [4096, 65536, 2 * MEBI])
def test_clusters_keep_their_space(workdir, cluster, backing):
    image, content = prepare(workdir, cluster=cluster, backing=backing)
    size = len(content)
    before = lib_tools.read_all(image, snapshot="before")
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(size, 0, NO_HOLE)
        assert statuses(handle, 0, size) == [(size, STATE_ZERO)]
        assert handle.pread(size, 0) == bytes(size)
        handle.flush()
        for number, state in enumerate(STATES):
            assert is_zero_cluster(image, number * cluster), state
        # All of it is there: writes need nothing more of the host.
        in_use = lib_tools.host_bytes(image), os.path.getsize(image)
        expected = bytearray(size)
        for number in range(len(STATES)):
            begin = number * cluster + 1000
            handle.pwrite(bytes([100 + number]) * 700, begin)
            expected[begin:begin + 700] = bytes([100 + number]) * 700
        handle.flush()
        assert handle.pread(size, 0) == expected
        assert os.path.getsize(image) == in_use[1]
        # A block of the file system's own extents may come with them.
        assert lib_tools.host_bytes(image) <= in_use[0] + 8192
        assert statuses(handle, 0, size) == [(size, 0)]
        handle.shutdown()
    lib_tools.check_clean(image)
    lib_tools.compare_raw(image, expected)
    assert lib_tools.read_all(image, snapshot="before") == before


def test_no_data_is_written(workdir):
    """The host clusters keep their content; only their entries change."""
    image, content = prepare(workdir)
    size = len(content)
    at = STATES.index("data") * 65536
    host = lib_qcow2.Header(image).l2_entry(at) & lib_qcow2.OFFSET_MASK
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(size, 0, NO_HOLE)
        handle.flush()
        assert lib_qcow2.Header(image).l2_entry(at) == host | lib_qcow2.ZERO | lib_qcow2.COPIED
        assert lib_qcow2.peek(image, host + 777, "B") == 1
        # The bytes around the first write must not be those.
        handle.pwrite(b"\x77", at + 5)
        assert handle.pread(65536, at) == bytes(5) + b"\x77" + bytes(65530)
        handle.flush()
        assert lib_qcow2.Header(image).l2_entry(at) == host | lib_qcow2.COPIED
        handle.shutdown()
    lib_tools.check_clean(image)
    lib_tools.compare_raw(image, bytes(at + 5) + b"\x77" + bytes(size - at - 6))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("backing", [False, True])
@pytest.mark.parametrize("flags", [0, NO_HOLE])
def test_parts_of_clusters(workdir, version, backing, flags):
    """Heads, tails and pieces of every kind of cluster: nothing else changes."""
    image, content = prepare(workdir, version, backing=backing)
    before = lib_tools.read_all(image, snapshot="before")
    rng = random.Random(version * 4 + backing * 2 + flags)
    with Server(workdir, image) as server:
        handle = server.connect()
        for _ in range(60):
            begin = rng.randrange(len(content))
            length = min(rng.choice((1, 512, 3000, 65536, 150000)), len(content) - begin)
            if rng.random() < 0.3:
                data = rng.randbytes(length)
                handle.pwrite(data, begin)
                content[begin:begin + length] = data
            else:
                handle.zero(length, begin, flags)
                content[begin:begin + length] = bytes(length)
        assert handle.pread(len(content), 0) == content
        handle.shutdown()
    lib_tools.check_clean(image)
    lib_tools.compare_raw(image, content)
    assert lib_tools.read_all(image, snapshot="before") == before


@pytest.mark.parametrize("state", ["unallocated", "zero", "shared zero with space"])
@pytest.mark.parametrize("begin,length", [(0, 512), (65536 - 512, 512), (4096, 4096)])
def test_part_of_a_cluster_of_zeros(workdir, state, begin, length):
    """The whole cluster gets its space, and stays a zero cluster."""
    image, content = prepare(workdir)
    at = STATES.index(state) * 65536
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(length, at + begin, NO_HOLE)
        assert statuses(handle, at, 65536) == [(65536, STATE_ZERO)]
        handle.flush()
        assert is_zero_cluster(image, at)
        handle.shutdown()
    lib_tools.check_clean(image)
    lib_tools.compare_raw(image, content)


@pytest.mark.parametrize("flags,expected", [(0, HOLE_AND_ZERO), (NO_HOLE, STATE_ZERO)])
def test_part_of_a_cluster_over_zeros_of_the_backing_file(workdir, flags, expected):
    """A cluster of the overlay becomes one of zeros where the backing file has nothing but those."""
    base = lib_tools.create(f"{workdir}/base.qcow2", MEBI)
    lib_tools.qemu_io(base, "write -P 7 65536 512", "write -z 131072 65536")
    image = lib_tools.create(f"{workdir}/disk.qcow2", MEBI, base, "qcow2")
    with Server(workdir, image) as server:
        handle = server.connect()
        for cluster in range(4):
            handle.zero(1024, cluster * 65536 + 8192, flags)
        assert statuses(handle, 0, 4 * 65536) == [
            (65536, expected), (65536, 0), (131072, expected)]
        assert handle.pread(65536, 65536) == b"\7" * 512 + bytes(65024)
        handle.shutdown()
    lib_tools.check_clean(image)


@pytest.mark.parametrize("version", [2, 3])
def test_fast_zero(workdir, version):
    image, content = prepare(workdir, version)
    with Server(workdir, image) as server:
        handle = server.connect()
        if version == 3:
            handle.zero(len(content), 0, NO_HOLE | FAST_ZERO)
            content = bytes(len(content))
            assert statuses(handle, 0, len(content)) == [(len(content), STATE_ZERO)]
        else:
            with pytest.raises(nbd.Error):
                handle.zero(len(content), 0, NO_HOLE | FAST_ZERO)
        with pytest.raises(nbd.Error):
            handle.zero(512, 65536 + 512, NO_HOLE | FAST_ZERO)
        assert handle.pread(len(content), 0) == content
        handle.shutdown()
    lib_tools.check_clean(image)


@pytest.mark.parametrize("mode,expected", [("on", STATE_ZERO), ("unmap", HOLE_AND_ZERO)])
def test_zeros_that_are_detected(workdir, mode, expected):
    image = lib_tools.create(f"{workdir}/disk.qcow2", MEBI)
    lib_tools.qemu_io(image, "write -P 1 65536 65536")
    with Server(workdir, image, detect_zeroes=mode) as server:
        handle = server.connect()
        handle.pwrite(bytes(4 * 65536), 0)
        assert statuses(handle, 0, 4 * 65536)[0][1] == expected
        assert handle.pread(MEBI, 0) == bytes(MEBI)
        handle.shutdown()
    lib_tools.check_clean(image)


def test_discard_gives_the_space_back(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI)
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(32 * MEBI, 0, NO_HOLE)
        handle.flush()
        assert lib_tools.host_bytes(image) >= 32 * MEBI
        handle.trim(32 * MEBI, 0)
        assert statuses(handle, 0, 32 * MEBI) == [(32 * MEBI, HOLE_AND_ZERO)]
        handle.shutdown()
    lib_tools.check_clean(image)
    assert lib_tools.host_bytes(image) < MEBI


def test_a_hole_of_the_file_gets_its_space(workdir):
    """Clusters that preallocation=metadata has mapped take no space yet."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 64 * MEBI, preallocation="metadata")
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(32 * MEBI, 0, NO_HOLE)
        handle.flush()
        assert lib_tools.host_bytes(image) >= 32 * MEBI
        assert statuses(handle, 0, 32 * MEBI) == [(32 * MEBI, STATE_ZERO)]
        handle.shutdown()
    lib_tools.check_clean(image)


def test_zeros_are_no_data_for_who_copies(workdir):
    """A backup of zeros with their space reads nothing of them."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 2048 * MEBI)
    with Server(workdir, image) as server:
        handle = server.connect()
        for begin in range(0, 2048 * MEBI, 64 * MEBI):
            handle.zero(64 * MEBI, begin, NO_HOLE)
        data, at = 0, 0
        while at < 2048 * MEBI:
            for length, flags in statuses(handle, at, 1024 * MEBI):
                data += length if not flags & STATE_ZERO else 0
                at += length
        assert data == 0
        handle.shutdown()
    lib_tools.check_clean(image)
