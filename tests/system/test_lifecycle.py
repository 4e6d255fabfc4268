# SPDX-License-Identifier: Apache-2.0
"""The life of the dirty bit, and the state after a crash of the server. The simulator covers power
cuts, in which the host loses writes, too."""
import random
import re
import time

import pytest

import lib_qcow2
import lib_tools
from lib_server import Server, wait_for

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI


def dirty(image):
    return bool(lib_qcow2.Header(image).incompatible & lib_qcow2.DIRTY)


def test_reading_changes_nothing(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(image, "write -P 1 0 1M")
    before = lib_tools.digest(image)
    with Server(workdir, image) as server:
        handle = server.connect()
        assert handle.pread(2 * MEBI, 0) == b"\1" * MEBI + bytes(MEBI)
        handle.block_status(SIZE, 0, lambda *_: 0)
        handle.flush()
        handle.shutdown()
        assert lib_tools.digest(image) == before
    assert lib_tools.digest(image) == before


def test_write_in_place_keeps_the_image_clean(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(image, "write -P 1 0 1M")
    with Server(workdir, image, options=["--clean-after=0"]) as server:
        handle = server.connect()
        handle.pwrite(b"x" * 5000, 100)
        handle.flush()
        assert not dirty(image)
        handle.pwrite(b"x", 2 * MEBI)
        handle.flush()
        assert dirty(image), "refcounts are behind, and the header does not say so"
        handle.shutdown()
    lib_tools.check_clean(image)


@pytest.mark.slow
def test_idle_image_becomes_clean(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image, options=["--clean-after=1"]) as server:
        handle = server.connect()
        for number in range(3):
            handle.pwrite(b"x" * 200000, number * MEBI)
            handle.flush()
            wait_for(lambda: not dirty(image))
            report = lib_tools.qemu_img("check", "-U", "-f", "qcow2", image)
            assert "No errors" in report, report
            assert handle.pread(1, number * MEBI) == b"x"
        handle.shutdown()
        # From here a crash costs nothing.
        server.kill()
    lib_tools.check_clean(image)


def test_clean_after_zero_is_never(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image, options=["--clean-after=0"]) as server:
        handle = server.connect()
        handle.pwrite(b"x", 0)
        handle.flush()
        for _ in range(20):
            assert dirty(image)
            time.sleep(0.1)
        handle.shutdown()
    lib_tools.check_clean(image)


@pytest.mark.parametrize("options", [
    {"lazy_refcounts": "on"}, {"lazy_refcounts": "off"}, {"compat": "0.10"},
    {"lazy_refcounts": "on", "cluster_size": 512}, {"lazy_refcounts": "on", "refcount_bits": 1}],
    ids=["lazy", "eager", "v2", "lazy-512", "refcount1"])
def test_killed_under_load(workdir, options, seed):
    """SIGKILL, many times on one image: flushed data is there, the image opens and takes writes at
    once, and a clean stop leaves nothing to repair. Only without lazy refcounts clusters that were
    taken and not yet linked stay leaked, as with qemu."""
    rng = random.Random(seed)
    size = 8 * MEBI
    image = lib_tools.create(f"{workdir}/disk.qcow2", size, **options)
    durable = bytearray(size)
    for _ in range(4):
        server = Server(workdir, image)
        handle = server.connect()
        for start in range(0, size, MEBI):
            found = handle.pread(MEBI, start)
            assert found == durable[start:start + MEBI], f"lost or changed at {start:#x}"
        for _ in range(rng.randint(1, 40)):
            length = rng.randint(1, 100000)
            offset = rng.randrange(size - length)
            if rng.randrange(5) == 0:
                handle.trim(length, offset)
                handle.zero(length, offset)
                content = bytes(length)
            else:
                content = rng.randbytes(length)
                handle.pwrite(content, offset)
            durable[offset:offset + length] = content
        handle.flush()
        server.kill()
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(b"last", 0)
        durable[0:4] = b"last"
        handle.shutdown()
    if options.get("lazy_refcounts") == "on":
        lib_tools.check_clean(image)
    else:
        report = lib_tools.check_report(image)
        assert report.get("corruptions", 0) == report["check-errors"] == 0, report
    lib_tools.compare_raw(image, bytes(durable))


def test_dirty_image_is_served_read_only_unchanged(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    server = Server(workdir, image, options=["--clean-after=0"])
    handle = server.connect()
    handle.pwrite(b"x" * MEBI, MEBI)
    handle.flush()
    server.kill()
    assert dirty(image)
    before = lib_tools.digest(image)
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert handle.pread(MEBI, MEBI) == b"x" * MEBI
        handle.shutdown()
    assert lib_tools.digest(image) == before


def test_crash_state_is_repaired_by_qemu(workdir):
    """qemu-img check -r all repairs an image after a crash."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    rng = random.Random(6)
    server = Server(workdir, image, options=["--clean-after=0"])
    handle = server.connect()
    content = rng.randbytes(3 * MEBI)
    handle.pwrite(content, MEBI + 777)
    handle.trim(MEBI, 2 * MEBI)
    handle.flush()
    expected = handle.pread(4 * MEBI, MEBI)
    server.kill()
    lib_tools.qemu_img("check", "-r", "all", "-f", "qcow2", image, codes=(0, 2, 3))
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image)[MEBI:5 * MEBI] == expected


def test_clean_image_is_opened_without_a_scan(workdir):
    """Nothing is read or repaired that a request does not need."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 1 << 40, preallocation="off",
                             lazy_refcounts="on")
    with Server(workdir, image, aio="threads") as server:
        handle = server.connect()
        handle.pread(512, 1 << 39)
        with open(f"/proc/{server.pid}/io", encoding="ascii") as counts:
            read = int(re.search(r"rchar: (\d+)", counts.read())[1])
        # The program's libraries, the header, the L1 table of 16 KiB.
        assert read < MEBI, read
        handle.shutdown()
