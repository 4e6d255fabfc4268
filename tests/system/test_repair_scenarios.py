# SPDX-License-Identifier: Apache-2.0
"""The life of the dirty bit, and refcount structures that are gone or point anywhere: the subjects
of QEMU's own tests of lazy refcounts (039), of checking (138) and of repair (108). lazycow and
qemu-img get one and the same image and must come to equal ends."""
import os
import shutil
import subprocess

import nbd
import pytest

import lib_qcow2
import lib_machine
import lib_tools
from lib_offline import lazycow, qemu_img
from lib_qcow2 import COPIED, DIRTY, Header, poke, set_field
from lib_server import Server
from lib_tools import create, qemu_io

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 128 * MEBI
# Offsets of the tables that qemu-img writes in a new image with clusters of 64 KiB.
CLUSTER = 65536
REFCOUNT_TABLE = CLUSTER
REFCOUNT_BLOCK = 2 * CLUSTER


def dirty(image):
    return bool(Header(image).incompatible & DIRTY)


def check_repairs(image, content, corruptions=None):
    """Finds the faults that qemu-img finds, and repairs them as qemu-img does, in one run; the
    mapping stays. corruptions: the number of findings, if both count them alike."""
    theirs = f"{image}.qemu"
    shutil.copy(image, theirs)
    mine, reference = (tool("check", "--output=json", path) for tool, path in
                       ((lazycow, image), (qemu_img, theirs)))
    assert mine.code == reference.code == 2, (mine, reference)
    if corruptions is not None:
        assert mine.json()["corruptions"] == reference.json()["corruptions"] == corruptions
    before = lib_tools.digest(image)
    # Refcounts that are too low, or not there, are no leaks: nothing is touched.
    assert lazycow("check", "-r", "leaks", image).code == 2
    assert lib_tools.digest(image) == before
    for tool, path in ((lazycow, image), (qemu_img, theirs)):
        answer = tool("check", "-r", "all", path)
        assert answer.code == 0, answer
        lib_tools.check_clean(path)
        assert lazycow("check", path).code == 0
        assert lib_tools.read_all(path) == content
    # And it can be used: what is allocated now hits nothing.
    qemu_io(image, "write -P 99 20M 1M")
    lib_tools.check_clean(image)
    found = lib_tools.read_all(image)
    assert found[:20 * MEBI] == content[:20 * MEBI] and found[21 * MEBI:] == content[21 * MEBI:]


# ---- The dirty bit ------------------------------------------------------------------------------

def write_and(workdir, image, end, lazy_refcounts=None):
    """Writes a sector with FUA through a server, which then ends by end(server). The dirty bit is
    set with the write where refcounts are lazy."""
    lazy = (Header(image).compatible_features & 1 if lazy_refcounts is None
            else lazy_refcounts == "on")
    server = Server(workdir, image, lazy_refcounts=lazy_refcounts, options=["--clean-after=0"])
    handle = server.connect()
    handle.pwrite(b"Z" * 512, 0, nbd.CMD_FLAG_FUA)
    # A mapped cluster needs no refcount.
    assert dirty(image) == bool(lazy) or end == Server.stop
    if end == Server.stop:
        handle.shutdown()
    end(server)


def crashed(workdir, lazy_refcounts="on", served_with=None):
    image = create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts=lazy_refcounts)
    write_and(workdir, image, Server.kill, served_with)
    return image


def content_of(size=SIZE, **pieces):
    """Zeros, but for bytes at offsets: at_N=bytes."""
    content = bytearray(size)
    for name, piece in pieces.items():
        at = int(name[3:])
        content[at:at + len(piece)] = piece
    return bytes(content)


SECTOR = {"at_0": b"Z" * 512}


def test_clean_after_a_stop(workdir):
    image = create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(workdir, image, options=["--clean-after=0"]) as server:
        handle = server.connect()
        assert not dirty(image), "set before anything was written"
        handle.pwrite(b"Z" * 512, 0, nbd.CMD_FLAG_FUA)
        assert dirty(image)
        handle.shutdown()
    assert not dirty(image)
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == content_of(**SECTOR)


def test_dirty_after_a_crash(workdir):
    """The cluster is mapped and its refcount is missing; both find equal faults."""
    image = crashed(workdir)
    assert dirty(image)
    check_repairs(image, content_of(**SECTOR))
    assert not dirty(image)


def test_reading_leaves_it_dirty(workdir):
    image = crashed(workdir)
    before = lib_tools.digest(image)
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert handle.pread(512, 0) == b"Z" * 512
        handle.shutdown()
    assert lib_tools.digest(image) == before


def test_checking_leaves_it_dirty(workdir):
    image = crashed(workdir)
    before = lib_tools.digest(image)
    assert lazycow("check", image).code == 2
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("write", (False, True))
def test_serving_makes_it_clean(workdir, write):
    image = crashed(workdir)
    with Server(workdir, image) as server:
        handle = server.connect()
        assert handle.pread(512, 0) == b"Z" * 512
        if write:
            handle.pwrite(b"Y" * 512, 64 * MEBI)
        handle.shutdown()
    assert not dirty(image)
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == content_of(**SECTOR, **(
        {f"at_{64 * MEBI}": b"Y" * 512} if write else {}))


def test_served_what_qemu_left_dirty_and_the_other_way_round(workdir):
    image = create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 90 0 512", "-c", "flush",
                    "-c", "sigraise 9", image], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=False)
    assert dirty(image)
    write_and(workdir, image, Server.stop)
    assert not dirty(image)
    lib_tools.check_clean(image)
    server = Server(workdir, image)
    server.connect().pwrite(b"X" * 512, MEBI, nbd.CMD_FLAG_FUA)
    server.kill()
    assert dirty(image)
    # Opening it repairs it, which qemu-io tells as errors.
    lib_tools.run("qemu-io", "-f", "qcow2", "-c", "write -P 88 2M 512", image)
    assert not dirty(image)
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == content_of(
        **SECTOR, **{f"at_{MEBI}": b"X" * 512, f"at_{2 * MEBI}": b"X" * 512})


@pytest.mark.parametrize("image_has, served_with", [("off", None), ("on", "off"), ("off", "on")])
def test_setting_of_the_image_and_of_the_server(workdir, image_has, served_with):
    """Whichever holds: with lazy refcounts a crash leaves it dirty, without them sound."""
    image = crashed(workdir, image_has, served_with)
    if (served_with or image_has) == "on":
        check_repairs(image, content_of(**SECTOR))
    else:
        assert not dirty(image)
        report = lib_tools.check_report(image)
        assert report.get("corruptions", 0) == 0, report
        assert lib_tools.read_all(image) == content_of(**SECTOR)


@pytest.mark.parametrize("snapshots", (1, 2))
def test_snapshots_are_no_fault(workdir, snapshots):
    """The L1 table of a snapshot keeps outdated COPIED flags, which have no meaning: the disk was
    not closed cleanly, and has no other fault."""
    image = create(f"{workdir}/disk.qcow2", 64 * MEBI, cluster_size=4096, lazy_refcounts="on")
    for number in range(snapshots):
        qemu_io(image, "write -P 1 0 1M", "write -P 2 20M 64k", f"write -P {number} 1M 64k")
        qemu_img("snapshot", "-c", f"number{number}", image)
    content = lib_tools.read_all(image)
    set_field(image, "incompatible_features", DIRTY)
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(content[:65536], 0)
        handle.shutdown()
    log = server.stderr()
    assert "recovery: done" in log or "counting" in log, log
    assert "faults" not in log.replace("0 faults", "") and "lazycow check" not in log, log
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == content


def test_two_references_are_told(workdir):
    """But of the disk's own flags something is to be said."""
    image = create(f"{workdir}/disk.qcow2", 64 * MEBI, lazy_refcounts="on")
    qemu_io(image, "write -P 1 0 128k")
    header = Header(image)
    header.set_l2_entry(CLUSTER, header.l2_entry(0))
    set_field(image, "incompatible_features", DIRTY)
    with Server(workdir, image) as server:
        server.connect().shutdown()
    assert "two references" in server.stderr() and "1 faults found" in server.stderr()


# ---- Offsets beyond all bounds ------------------------------------------------------------------

def test_cluster_at_a_multiple_of_two_to_the_32(workdir):
    """Reported with its true place; nothing is counted in 32 bits, and the gap takes no memory."""
    image = create(f"{workdir}/disk.qcow2", 512, cluster_size=512)
    qemu_io(image, "write -P 1 0 512")
    header = Header(image)
    for offset in (1 << 55, 1 << 41, 3 << 41):
        header.set_l2_entry(0, COPIED | offset)
        mine, theirs = (tool("check", "--output=json", image) for tool in (lazycow, qemu_img))
        assert mine.code == 2, mine
        if theirs.code != 1:  # older ones have no memory for it
            assert theirs.code == 2
            assert mine.json()["corruptions"] == theirs.json()["corruptions"]
        answer = lazycow("check", "-r", "all", image)
        assert answer.code == 2, answer  # nobody knows where the data is
        assert header.l2_entry(0) & lib_qcow2.OFFSET_MASK == offset


def test_l2_table_far_beyond_the_file(workdir):
    image = create(f"{workdir}/disk.qcow2", MEBI)
    qemu_io(image, "write -P 1 0 64k")
    header = Header(image)
    for offset in (1 << 55, 1 << 48, (1 << 56) - CLUSTER):
        poke(image, header.l1_entry_offset(0), ">Q", COPIED | offset)
        assert lazycow("check", image).code == 2
        assert lazycow("check", "-r", "all", image).code == 2
        assert lib_qcow2.peek(image, header.l1_entry_offset(0), ">Q") & lib_qcow2.OFFSET_MASK == \
            offset


# ---- Refcount structures that are of no use -----------------------------------------------------

def fresh(workdir, size=64 * MEBI, write="write -P 42 0 64k", **options):
    image = create(f"{workdir}/disk.qcow2", size, **options)
    qemu_io(image, write)
    return image, lib_tools.read_all(image)


def test_no_refcount_table(workdir):
    image, content = fresh(workdir)
    set_field(image, "refcount_table_offset", 0)
    set_field(image, "refcount_table_clusters", 0)
    check_repairs(image, content, corruptions=6)


def test_new_blocks_stay_off_clusters_that_had_no_refcount(workdir):
    """The first cluster behind the range of the only block is in use, and has no block. Its new
    block must not lie in its place."""
    image, _ = fresh(workdir, cluster_size=512, write="write -P 1 0 0x1b200")
    end = os.path.getsize(image)
    assert end == 512 // 2 * 512, "what one block covers, to the last cluster"
    Header(image).set_l2_entry(0x1b200, COPIED | end)
    with open(image, "ab") as stream:
        stream.write(b"*" * 512)
    content = lib_tools.read_all(image)
    assert content[0x1b200:][:512] == b"*" * 512
    check_repairs(image, content, corruptions=2)


@pytest.mark.parametrize("offset, refcount", [
    (16 * CLUSTER, 1), (16 * CLUSTER, 0),
    ((1 << 63) - CLUSTER, 0), ((1 << 64) - CLUSTER, 0), (1 << 63, 0), (1 << 56, 0),
], ids=lambda value: f"{value:#x}")
def test_block_beyond_the_end(workdir, offset, refcount):
    """One that the table names beyond the file, and beyond all that a file can be."""
    image, content = fresh(workdir)
    poke(image, REFCOUNT_TABLE + 8, ">Q", offset)
    if refcount:
        poke(image, REFCOUNT_BLOCK + 2 * (offset // CLUSTER), ">H", refcount)
    check_repairs(image, content, corruptions=1)


@pytest.mark.parametrize("offset", (512, CLUSTER + 512, REFCOUNT_BLOCK + 256 * 3))
def test_block_that_is_not_aligned(workdir, offset):
    image, content = fresh(workdir)
    poke(image, REFCOUNT_TABLE + 8, ">Q", offset)
    check_repairs(image, content)


def test_block_named_twice(workdir):
    image, content = fresh(workdir)
    poke(image, REFCOUNT_TABLE + 8, ">Q", REFCOUNT_BLOCK)
    check_repairs(image, content)


def test_rebuilding_takes_what_is_free_inside(workdir):
    """The file grows by no more than the new blocks, and the table goes where there is room for it:
    a device has none at its end."""
    image, _ = fresh(workdir, size=9 * MEBI, cluster_size=512, write="write -P 7 0 8M")
    qemu_io(image, "discard 1M 1M", options=("-d", "unmap"))
    content = lib_tools.read_all(image)
    size = os.path.getsize(image)
    set_field(image, "refcount_table_offset", 0)
    set_field(image, "refcount_table_clusters", 0)
    answer = lazycow("check", "-r", "all", image)
    assert answer.code == 0, answer
    assert os.path.getsize(image) == size
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == content


def test_rebuilding_on_a_block_device(workdir):
    path = f"{workdir}/device"
    with open(path, "wb") as stream:
        stream.truncate(64 * MEBI)
    with lib_machine.loop_device(path) as device:
        create(device, 32 * MEBI, cluster_size=512)
        qemu_io(device, "write -P 42 0 64k")
        set_field(device, "refcount_table_offset", 0)
        set_field(device, "refcount_table_clusters", 0)
        answer = lazycow("check", "-r", "all", device)
        assert answer.code == 0, answer
        lib_tools.check_clean(device)
        qemu_io(device, "read -P 42 0 64k", "read -P 0 64k 1M")
