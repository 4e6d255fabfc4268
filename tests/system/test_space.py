# SPDX-License-Identifier: Apache-2.0
"""The space of an image on the host: free clusters are reused, discarded ones given back."""
import os
import random

import nbd
import pytest

import lib_tools
from lib_server import Server, wait_for
from lib_tools import host_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 256 * MEBI
# More than the server takes from the host ahead of need for an image of this size.
AHEAD = 16 * MEBI


def settle_host_bytes(path, limit):
    """The punching of holes follows the flush; waits until no more than limit is in use."""
    wait_for(lambda: host_bytes(path) <= limit)


@pytest.mark.parametrize("lazy", ["on", "off"])
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MEBI])
def test_write_and_discard_do_not_grow_the_file(workdir, cluster, lazy):
    """At other places of the disk each time: the clusters are reused nevertheless."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, cluster_size=cluster,
                             lazy_refcounts=lazy)
    share = 2 * MEBI if cluster == 512 else 8 * MEBI
    rounds = 40
    rng = random.Random(5)
    with Server(workdir, image) as server:
        handle = server.connect()
        sizes = []
        for number in range(rounds):
            offset = rng.randrange((SIZE - share) // cluster) * cluster
            handle.pwrite(bytes([number + 1]) * share, offset)
            handle.flush()
            assert handle.pread(1, offset + share - 1) == bytes([number + 1])
            handle.trim(share, offset)
            handle.flush()
            sizes.append(os.path.getsize(image))
        handle.shutdown()
    # New places need new L2 tables, which stay. Two generations of data may live at a time: one
    # freed and not yet reusable, one being written; and space is taken ahead.
    tables = rounds * cluster * (share // (cluster * cluster // 8) + 2)
    assert sizes[-1] <= 2 * share + tables + AHEAD, sizes
    lib_tools.check_clean(image)
    # Nothing is in use but tables.
    assert host_bytes(image) <= tables + 2 * MEBI


def test_random_write_and_discard(workdir, seed):
    """Fragmented: pieces of all lengths come and go, a quarter of the disk stays in use."""
    rng = random.Random(seed)
    image = lib_tools.create(f"{workdir}/disk.qcow2", 32 * MEBI, cluster_size=4096,
                             lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        live = []
        used = 0
        sizes = []
        for number in range(lib_tools.scaled(1500)):
            length = 4096 * rng.randint(1, 40)
            offset = rng.randrange((32 * MEBI - length) // 4096) * 4096
            handle.pwrite(b"\1" * length, offset)
            live.append((offset, length))
            used += length
            while used > 8 * MEBI:
                offset, length = live.pop(rng.randrange(len(live)))
                handle.trim(length, offset)
                used -= length
            if number % 10 == 0:
                handle.flush()
                sizes.append(os.path.getsize(image))
        handle.shutdown()
        assert max(sizes) <= 24 * MEBI, max(sizes)
    lib_tools.check_clean(image)


def test_discard_gives_host_space_back(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(b"\1" * 32 * MEBI, 0)
        handle.pwrite(b"\2" * 32 * MEBI, 32 * MEBI)
        handle.flush()
        full = host_bytes(image)
        assert full >= 64 * MEBI
        handle.trim(32 * MEBI, 0)
        handle.flush()
        # Space taken ahead for later writes may come on top while the server runs.
        settle_host_bytes(image, full - 31 * MEBI)
        handle.zero(32 * MEBI, 32 * MEBI)
        handle.flush()
        settle_host_bytes(image, full - 62 * MEBI)
        handle.shutdown()
    lib_tools.check_clean(image)
    assert host_bytes(image) < MEBI


def test_discard_ignore_keeps_host_space(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image, discard="ignore") as server:
        handle = server.connect()
        handle.pwrite(b"\1" * 16 * MEBI, 0)
        handle.flush()
        handle.trim(16 * MEBI, 0)
        handle.flush()
        handle.shutdown()
    assert host_bytes(image) >= 16 * MEBI


def test_no_hole_keeps_space(workdir):
    """A later write into zeroes with NO_HOLE finds its place: the file does not grow."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.zero(16 * MEBI, 0, nbd.CMD_FLAG_NO_HOLE)
        handle.flush()
        before = host_bytes(image)
        assert before >= 16 * MEBI
        size = os.path.getsize(image)
        handle.pwrite(b"\3" * 16 * MEBI, 0)
        handle.flush()
        assert os.path.getsize(image) == size
        assert host_bytes(image) <= before + 4 * MEBI
        handle.shutdown()
    lib_tools.check_clean(image)


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_clean_stop_gives_the_tail_back(workdir, aio):
    """Space taken ahead is gone: the file ends with its last cluster in use."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image, aio=aio) as server:
        handle = server.connect()
        handle.pwrite(b"\1" * 3 * MEBI, 0)
        handle.flush()
        handle.shutdown()
    report = lib_tools.check_clean(image)
    assert os.path.getsize(image) <= report["image-end-offset"] + 65536
    assert host_bytes(image) <= 3 * MEBI + (1 << 20)


def test_sparse_file_stays_sparse(workdir):
    """A few writes far apart cost their clusters and tables."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 1 << 40, lazy_refcounts="on")
    with Server(workdir, image) as server:
        handle = server.connect()
        for number in range(64):
            handle.pwrite(b"\1" * 512, number << 34)
        handle.shutdown()
    lib_tools.check_clean(image)
    assert host_bytes(image) <= 64 * 2 * 65536 + 2 * MEBI
