# SPDX-License-Identifier: Apache-2.0
"""Images whose tables are broken: served as far as they can be, and never made worse."""
import errno
import os
import random
import time

import pytest

import lib_offline
import lib_qcow2
import lib_server
import lib_tools
from lib_broken import attempt, known_sectors, overlay, read_steadily, survive
from lib_qcow2 import COPIED, Header, peek, poke, poke_bytes, set_field
from lib_server import Server, refused
from lib_tools import create, qemu_img, qemu_io

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI
EIO, EPERM = errno.EIO, errno.EPERM


@pytest.fixture
def image(workdir):
    path = create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    qemu_io(path, "write -P 65 0 64k", "write -P 66 64k 64k", "write -P 67 4M 64k")
    return path


# ---- Corrupt images -----------------------------------------------------------------------------

def test_corrupt_bit_opens_read_only(workdir, image):
    set_field(image, "incompatible_features", lib_qcow2.CORRUPT)
    before = lib_tools.digest(image)
    with Server(workdir, image) as server:
        handle = server.connect(strict=False)
        assert handle.is_read_only()
        assert handle.pread(3, 65535) == b"ABB"
        assert attempt(handle.pwrite, b"x", 0) == EPERM
        handle.shutdown()
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("what, value", [
    ("unaligned L2 entry", lambda h: COPIED | 0x50200),
    ("L2 entry at an odd place", lambda h: COPIED | h.l2_entry(0) & lib_qcow2.OFFSET_MASK | 512),
    ("L2 entry far beyond the file", lambda h: COPIED | 1 << 50),
    ("L2 entry just beyond the file",
     lambda h: COPIED | (os.path.getsize(h.path) + 65535) // 65536 * 65536 + 10 * 65536),
    ("compressed beyond the file", lambda h: lib_qcow2.COMPRESSED | 1 << 45),
    ("compressed noise", lambda h: lib_qcow2.COMPRESSED | h.l2_entry(0) & lib_qcow2.OFFSET_MASK),
    ("compressed in the header", lambda h: lib_qcow2.COMPRESSED),
    ("compressed in the header, further on", lambda h: lib_qcow2.COMPRESSED | 1 << 54 | 1000),
    ("compressed at the end of the file",
     lambda h: lib_qcow2.COMPRESSED | os.path.getsize(h.path)),
    ("reserved bits", lambda h: h.l2_entry(0) | 1 << 57 | 4),
    ("all ones", lambda h: (1 << 64) - 1),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_l2_entry(workdir, image, what, value):
    """Costs the cluster, no more: EIO or zeros there, and the rest is served."""
    header = Header(image)
    header.set_l2_entry(0, value(header))
    known = known_sectors(image)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        places = [(0, 65536), (512, 512), (65536, 65536), (4 * MEBI, 65536), (8 * MEBI, 4096)]
        found = read_steadily(handle, places, known)
        assert isinstance(found[0], bytes) or found[0] == found[512] == EIO, what
        if "compressed" in what:
            assert found[0] == EIO
        elif "beyond" in what:
            assert found[0] == bytes(65536)
        assert found[65536] == b"\x42" * 65536
        assert found[4 * MEBI] == b"\x43" * 65536
        attempt(handle.pwrite, b"y" * 512, 0)
        attempt(handle.pwrite, b"y" * 65536, 0)
        again = read_steadily(handle, places)
        assert again[65536] == b"\x42" * 65536
        assert again[4 * MEBI] == b"\x43" * 65536
        assert isinstance(again[0], bytes) or again[0] == EIO
        handle.shutdown()
        server.stop(codes=(0, 1))
    assert lib_tools.qemu_img("info", "-U", image)


@pytest.mark.parametrize("entry", [
    lib_qcow2.COMPRESSED, lib_qcow2.COMPRESSED | 1, lib_qcow2.COMPRESSED | 3 << 54 | 511,
    lib_qcow2.COMPRESSED | 1 << 40])
def test_nothing_of_other_exports(workdir, image, entry):
    """One server has many tenants. An impossible descriptor reveals no memory of another tenant."""
    secret = create(f"{workdir}/secret.qcow2", SIZE)
    raw = f"{workdir}/raw"
    with open(raw, "wb") as stream:
        stream.write(b"of another tenant " * 60000)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, secret)
    Header(image).set_l2_entry(65536, entry)
    known = known_sectors(image)
    with Server(workdir, ("secret", secret), ("hostile", image)) as server:
        other, handle = server.connect("secret"), server.connect("hostile")
        for _ in range(3):
            for at in range(0, 16 * 65536, 65536):
                other.pread(4096, at)
            assert read_steadily(handle, [(65536, 65536), (65536 + 4096, 4096)], known) == {
                65536: EIO, 65536 + 4096: EIO}
            # Nor is it what a copy on write takes over.
            assert attempt(handle.pwrite, b"x" * 512, 65536 + 512) == EIO
        other.shutdown()
        handle.shutdown()
        server.stop(codes=(0, 1))


@pytest.mark.parametrize("value", [512, COPIED | 0x10200, COPIED | 1 << 50, (1 << 64) - 1,
                                   COPIED | 0x7000000])
def test_bad_l1_entry(workdir, image, value):
    header = Header(image)
    poke(image, header.l1_entry_offset(0), ">Q", value)
    known = known_sectors(image)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        places = [(0, 65536), (65536, 4096), (4 * MEBI, 4096)]
        found = read_steadily(handle, places, known)
        assert all(isinstance(outcome, bytes) or outcome == EIO for outcome in found.values())
        attempt(handle.pwrite, b"y" * 512, 0)
        attempt(handle.flush)
        read_steadily(handle, places)
        handle.shutdown()
        server.stop(codes=(0, 1))


def metadata_targets(image):
    header = Header(image)
    qemu_io(image, "write -P 65 0 64k")
    return {
        "L1 table": header.l1_table_offset,
        "refcount table": header.refcount_table_offset,
        "refcount block": header.refcount_block_offset(),
        "L2 table": header.l2_table_offset(0),
        "snapshot table": header.snapshots_offset,
        "snapshot's L1 table": peek(image, header.snapshots_offset, ">Q"),
    }


@pytest.mark.parametrize("target", ["L1 table", "refcount table", "refcount block", "L2 table",
                                    "snapshot table", "snapshot's L1 table"])
@pytest.mark.parametrize("zero", [False, True], ids=["data", "preallocated-zero"])
def test_data_on_metadata(workdir, image, target, zero):
    """An entry maps data over metadata: the write fails, the image is marked corrupt, and the
    metadata stays intact."""
    qemu_img("snapshot", "-c", "one", image)
    offset = metadata_targets(image)[target]
    Header(image).set_l2_entry(4 * MEBI, COPIED | offset | (lib_qcow2.ZERO if zero else 0))
    with open(image, "rb") as stream:
        stream.seek(offset)
        before = stream.read(65536)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        error = attempt(handle.pwrite, b"\xee" * 65536, 4 * MEBI)
        # A zero cluster's place may be given up for another.
        assert error == EIO or (error == 0 and zero), error
        assert handle.pread(512, 0) == b"A" * 512
        handle.shutdown()
        server.stop(codes=(0, 1))
    with open(image, "rb") as stream:
        stream.seek(offset)
        after = stream.read(65536)
    assert b"\xee" * 512 not in after, "metadata was overwritten with data"
    if error == EIO:
        assert Header(image).incompatible & lib_qcow2.CORRUPT, "not marked corrupt"
        if target not in ("refcount block", "L2 table"):  # those change for other reasons
            assert after == before
        with Server(workdir, image) as server:
            handle = server.connect()
            assert handle.is_read_only()
            assert handle.pread(512, 65536) == b"B" * 512
            handle.shutdown()


def test_data_on_the_header(workdir, image):
    """Offset 0 with COPIED set: wherever the data goes, it is not the header."""
    Header(image).set_l2_entry(4 * MEBI, COPIED)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        assert attempt(handle.pwrite, b"\xee" * 65536, 4 * MEBI) in (0, EIO)
        assert handle.pread(512, 0) == b"A" * 512
        handle.shutdown()
        server.stop(codes=(0, 1))
    with open(image, "rb") as stream:
        assert b"\xee" * 512 not in stream.read(65536)
    assert Header(image).magic == 0x514649fb


def test_metadata_that_refcounts_call_free(workdir, image):
    """Refcounts are wrong: the clusters of tables count as free. Nothing is allocated there."""
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 65 0 64k")
    header = Header(image)
    block = header.refcount_block_offset()
    for offset in metadata_targets(image).values():
        poke(image, block + 2 * (offset // 65536), ">H", 0)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        errors = [attempt(handle.pwrite, b"\xee" * 65536, 8 * MEBI + index * 65536)
                  for index in range(20)]
        assert set(errors) <= {0, EIO, EPERM}
        assert handle.pread(512, 0) == b"A" * 512
        handle.shutdown()
        server.stop(codes=(0, 1))
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert handle.pread(1, 0) == b"A" and handle.pread(1, 65536) == b"B"
        assert handle.pread(1, 4 * MEBI) == b"C"
        for index, error in enumerate(errors):
            if error == 0:
                assert handle.pread(65536, 8 * MEBI + index * 65536) == b"\xee" * 65536
        handle.shutdown()
    qemu_img("snapshot", "-l", image)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_corrupt_compressed_data(workdir, kind):
    """EIO for the cluster; the next one is fine."""
    raw = f"{workdir}/raw"
    with open(raw, "wb") as stream:
        stream.write(b"compress me " * 100000)
    path = f"{workdir}/disk.qcow2"
    qemu_img("convert", "-c", "-o", f"compression_type={kind}", "-f", "raw", "-O", "qcow2", raw,
             path)
    header = Header(path)
    entry = header.l2_entry(0)
    assert entry & lib_qcow2.COMPRESSED
    shift = 62 - (header.cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    poke_bytes(path, offset, b"\xff" * 16)  # no more: the next cluster may follow
    with Server(workdir, path) as server:
        handle = server.connect()
        places = [(0, 512), (1024, 8192), (65536 + 8, 12), (3 * 65536, 12)]
        for _ in range(3):
            found = read_steadily(handle, places)
            assert found[0] == found[1024] == EIO
            assert found[65536 + 8] == b"compress me " and len(found[3 * 65536]) == 12
            # It needs the rest of the cluster.
            assert attempt(handle.pwrite, b"x" * 100, 1000) == EIO
        handle.pwrite(b"x" * 65536, 0)
        assert handle.pread(65536, 0) == b"x" * 65536
        handle.shutdown()
    lib_tools.check_clean(path)


@pytest.fixture
def hidden(workdir):
    """A dirty image in which a damaged L1 entry hides a table and its data, the last of the file.
    Returns the image and the values that make the table visible again."""
    path = create(f"{workdir}/disk.qcow2", 1024 * MEBI, lazy_refcounts="on")
    qemu_io(path, "write -P 65 0 64k", "write -P 67 600M 192k")
    header = Header(path)
    at = header.l1_entry_offset(600 * MEBI)
    entry = peek(path, at, ">Q")
    assert entry & lib_qcow2.OFFSET_MASK
    poke(path, at, ">Q", entry | 512)
    set_field(path, "incompatible_features", lib_qcow2.DIRTY)
    return path, at, entry


def test_recovery_spares_what_a_damaged_entry_hides(workdir, hidden):
    """After any writes and any number of opens, clusters without a visible reference are still
    there, the image stays dirty, and the reason is logged."""
    path, at, entry = hidden
    sizes = []
    for number in range(3):
        server = Server(workdir, path)
        with server:
            handle = server.connect()
            handle.pwrite(bytes([number + 1]) * 65536, (8 + number) * MEBI)
            handle.trim(65536, (8 + number) * MEBI)
            handle.flush()
            handle.pwrite(bytes([number + 1]) * 65536, (16 + number) * MEBI)
            handle.flush()
            assert read_steadily(handle, [(600 * MEBI, 512), (0, 512)])[600 * MEBI] == EIO
            handle.shutdown()
            server.stop(codes=(1,))
        assert "tables are damaged" in server.stderr() and "check -r all" in server.stderr()
        assert Header(path).incompatible & lib_qcow2.DIRTY
        sizes.append(os.path.getsize(path))
    assert sizes[-1] <= sizes[0] + 8 * 65536, sizes
    poke(path, at, ">Q", entry)
    server = Server(workdir, path)
    with server:
        handle = server.connect()
        assert handle.pread(192 << 10, 600 * MEBI) == b"C" * (192 << 10)
        for number in range(3):
            assert handle.pread(65536, (16 + number) * MEBI) == bytes([number + 1]) * 65536
        handle.shutdown()
    lib_tools.check_clean(path)


# ---- Entries that would cost metadata ------------------------------------------------------------

def test_copied_flag_of_an_empty_l1_entry(workdir, image):
    """The flag alone names no table: a write makes one, and the header stays intact."""
    path = create(f"{workdir}/large.qcow2", 1024 * MEBI, lazy_refcounts="on")
    qemu_io(path, "write -P 65 0 64k")
    poke(path, Header(path).l1_entry_offset(512 * MEBI), ">Q", COPIED)
    report = lib_offline.lazycow("check", path)
    assert report.code == 2 and "COPIED" in report.err + report.out, report
    with Server(workdir, path) as server:
        handle = server.connect()
        handle.pwrite(b"\xee" * 65536, 512 * MEBI)
        handle.flush()
        assert handle.pread(65536, 512 * MEBI) == b"\xee" * 65536
        handle.shutdown()
    assert Header(path).magic == 0x514649fb
    lib_tools.check_clean(path)


def test_refcount_table_over_data(workdir, image):
    """A crashed image whose header puts the refcount table over a guest's data: it gets another
    table, and the data stays."""
    header = Header(image)
    data = header.l2_entry(0) & lib_qcow2.OFFSET_MASK
    set_field(image, "refcount_table_offset", data)
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        handle.pwrite(b"new" * 4096, 8 * MEBI)
        handle.flush()
        handle.shutdown()
        server.stop(codes=(0, 1))
    assert "refcount table" in server.stderr()
    with Server(workdir, image) as server:
        handle = server.connect()
        assert handle.pread(65536, 0) == b"A" * 65536
        assert handle.pread(12288, 8 * MEBI) == b"new" * 4096
        handle.shutdown()
    lib_tools.check_clean(image)


def test_new_table_where_another_is_named(workdir):
    """An L1 entry names the first cluster behind the end of the file: it is not given to a new table,
    which both ranges of the disk would share then."""
    path = create(f"{workdir}/large.qcow2", 2048 * MEBI, lazy_refcounts="on")
    header = Header(path)
    end = (os.path.getsize(path) + 65535) // 65536 * 65536
    poke(path, header.l1_entry_offset(1536 * MEBI), ">Q", COPIED | end)
    server = Server(workdir, path)
    with server:
        handle = server.connect()
        first = attempt(handle.pwrite, b"a" * 512, 0)
        attempt(handle.flush)
        second = attempt(handle.pwrite, b"b" * 512, 1536 * MEBI)
        attempt(handle.flush)
        assert handle.pread(512, 0) == (b"a" * 512 if first == 0 else bytes(512))
        assert handle.pread(512, 1536 * MEBI) == (b"b" * 512 if second == 0 else bytes(512))
        handle.shutdown()
        server.stop(codes=(0, 1))


def test_trim_of_what_is_metadata(workdir, image):
    """An entry names the cluster of the L1 table: giving it up is refused."""
    header = Header(image)
    header.set_l2_entry(4 * MEBI, header.l1_table_offset)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        attempt(handle.trim, 65536, 4 * MEBI)
        attempt(handle.flush)
        handle.shutdown()
        server.stop(codes=(0, 1))
    assert Header(image).incompatible & lib_qcow2.CORRUPT
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        assert handle.pread(512, 0) == b"A" * 512
        handle.shutdown()


@pytest.mark.parametrize("offset", [0xfffffffffff00000, 1 << 63, 1 << 56, 512])
def test_refcount_block_at_an_impossible_place(workdir, image, offset):
    """Costs writes that need new clusters, not the server."""
    header = Header(image)
    poke(image, header.refcount_table_offset, ">Q", offset)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        assert handle.pread(512, 0) == b"A" * 512
        assert attempt(handle.pwrite, b"x" * 65536, 8 * MEBI) in (EIO, EPERM)
        assert handle.pread(512, 65536) == b"B" * 512
        handle.shutdown()
        server.stop(codes=(0, 1))


@pytest.mark.slow
def test_what_a_hidden_snapshot_needs_is_not_punched(workdir, image):
    """The disk's reference to a cluster seems to be the last one where the snapshot's cannot be read."""
    qemu_img("snapshot", "-c", "one", image)
    header = Header(image)
    l1_offset = peek(image, header.snapshots_offset, ">Q")
    poke(image, header.snapshots_offset, ">Q", l1_offset | 512)
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    server = Server(workdir, image)
    with server:
        handle = server.connect()
        handle.pwrite(b"x" * 65536, 0)
        handle.trim(65536, 65536)
        handle.flush()
        time.sleep(4)  # holes are punched within three ticks
        handle.shutdown()
        server.stop(codes=(1,))
    poke(image, header.snapshots_offset, ">Q", l1_offset)
    qemu_img("convert", "-l", "one", "-O", "raw", image, f"{workdir}/one")
    with open(f"{workdir}/one", "rb") as stream:
        assert stream.read(131072) == b"A" * 65536 + b"B" * 65536


@pytest.mark.parametrize("what", ["refcount table", "refcount block", "L1 table"])
def test_file_that_was_cut_short(workdir, image, what):
    """Bytes behind the end read as zeros, so that clusters in use look free: the image is not
    written."""
    header = Header(image)
    end = -(-os.path.getsize(image) // 65536) * 65536
    if what == "L1 table":
        set_field(image, "l1_table_offset", end)
    elif what == "refcount table":
        set_field(image, "refcount_table_offset", end)
    else:
        poke(image, header.refcount_table_offset, ">Q", end)
    line = refused(workdir, "-k", "s", image)
    assert what in line and "--read-only" in line, line
    with Server(workdir, image, read_only=True) as server:
        handle = server.connect()
        expected = bytes(512) if what == "L1 table" else b"A" * 512
        assert handle.pread(512, 0) == expected
        handle.shutdown()
    if what != "L1 table":
        assert "check -r all" in line
        lib_tools.run(lib_server.BINARY, "check", "-r", "all", image)
        with Server(workdir, image) as server:
            handle = server.connect()
            handle.pwrite(b"x" * 65536, 8 * MEBI)
            assert handle.pread(512, 65536) == b"B" * 512
            handle.shutdown()
        lib_tools.check_clean(image)


# ---- Noise --------------------------------------------------------------------------------------

def noisy_images(workdir):
    """Small images with every kind of structure in them."""
    plain = create(f"{workdir}/plain.qcow2", MEBI, lazy_refcounts="on")
    qemu_io(plain, "write -P 65 0 64k", "write -P 66 512k 64k", "write -z 64k 64k")
    qemu_img("snapshot", "-c", "one", plain)
    qemu_io(plain, "write -P 67 0 100k")
    tiny = create(f"{workdir}/tiny.qcow2", 256 << 10, cluster_size=512, refcount_bits=1)
    qemu_io(tiny, "write -P 65 0 20k", "write -P 66 128k 9k", "write -z 4k 2k")
    raw = f"{workdir}/raw"
    with open(raw, "wb") as stream:
        stream.write(b"compress me " * 20000)
    compressed = f"{workdir}/compressed.qcow2"
    qemu_img("convert", "-c", "-o", "cluster_size=4096,compat=0.10", "-f", "raw", "-O", "qcow2",
             raw, compressed)
    return [plain, tiny, compressed]


def interesting(path):
    """Offsets of the bytes that make up metadata, the header's counted several times."""
    header = Header(path)
    offsets = list(range(104)) * 3 + list(range(104, 400))
    ranges = [(header.l1_table_offset, 8 * header.l1_size),
              (header.refcount_table_offset, 64), (header.refcount_block_offset(), 256)]
    for index in range(min(header.l1_size, 8)):
        table = peek(path, header.l1_table_offset + 8 * index, ">Q") & lib_qcow2.OFFSET_MASK
        if table:
            ranges.append((table, min(header.cluster, 256)))
    if header.snapshots_offset:
        ranges.append((header.snapshots_offset, 80))
    for start, length in ranges:
        offsets += range(start, start + length)
    return offsets


@pytest.mark.limit(900)
def test_flipped_bytes(workdir, seed):
    """Random damage to metadata; the sanitizers watch."""
    rng = random.Random(seed)
    images = []
    for path in noisy_images(workdir):
        with open(path, "rb") as stream:
            images.append((path, stream.read(), interesting(path), lib_tools.read_all(path)))
    for number in range(lib_tools.scaled(60)):
        path, bytes_before, offsets, content = rng.choice(images)
        damaged = bytearray(bytes_before)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at = rng.choice(offsets)
            if at < len(damaged):
                damaged[at] = rng.choice((0, 255, 128, damaged[at] ^ 1 << rng.randrange(8),
                                          rng.randrange(256)))
        target = f"{workdir}/damaged.qcow2"
        with open(target, "wb") as stream:
            stream.write(damaged)
        print(f"round {number}: {os.path.basename(path)}")
        survive(workdir, target, content)
        os.unlink(target)


def test_backing_chain_with_a_damaged_member(workdir):
    base = create(f"{workdir}/base.qcow2", SIZE)
    qemu_io(base, "write -P 7 0 64k", "write -P 8 1M 64k")
    path = overlay(workdir, "base.qcow2")
    header = Header(base)
    header.set_l2_entry(0, COPIED | 0x10200)
    with Server(workdir, path) as server:
        handle = server.connect()
        for _ in range(2):
            found = read_steadily(handle, [(0, 512), (512, 4096), (MEBI, 512)])
            assert found == {0: EIO, 512: EIO, MEBI: b"\x08" * 512}
            assert attempt(handle.pwrite, b"x", 100) == EIO
        handle.pwrite(b"x" * 65536, 0)
        assert handle.pread(65536, 0) == b"x" * 65536
        handle.shutdown()
    lib_tools.check_clean(path)
    set_field(base, "l1_size", 0)
    line = refused(workdir, "-k", "s", path)
    assert "base.qcow2" in line, line


# ---- Entries that name what lies behind the end of the file ---------------------------------------

@pytest.mark.parametrize("ahead", [1, 2, 5, 9])
@pytest.mark.parametrize("how", ["write", "zero", "trim"])
def test_an_entry_behind_the_end_takes_no_cluster_away(workdir, image, how, ahead):
    """Its cluster is handed out to other data while the entry waits to be given up."""
    end = (os.path.getsize(image) + 65535) // 65536
    Header(image).set_l2_entry(0, COPIED | (end + ahead) * 65536)
    with Server(workdir, image) as server:
        handle = server.connect()
        {"write": lambda: handle.pwrite(b"N" * 65536, 0), "zero": lambda: handle.zero(65536, 0),
         "trim": lambda: handle.trim(65536, 0)}[how]()
        for first in (8, 12):
            for number in range(12):
                handle.pwrite(bytes([first + number]) * 65536, first * MEBI + number * 65536)
            handle.flush()
        for _ in range(2):
            for first in (8, 12):
                for number in range(12):
                    expected = bytes([first + number]) * 65536
                    assert handle.pread(65536, first * MEBI + number * 65536) == expected
        handle.shutdown()
    assert lib_tools.check_report(image).get("corruptions", 0) == 0


@pytest.mark.parametrize("where", [1 << 31, 1 << 40, 1 << 50], ids=["2G", "1T", "1P"])
def test_a_table_behind_the_end_loses_nothing(workdir, image, where):
    """Flushed data is still there after a stop, which cuts the file at its end."""
    header = Header(image)
    poke(image, header.l1_entry_offset(0), ">Q", COPIED | where)
    with Server(workdir, image) as server:
        handle = server.connect()
        assert handle.pread(512, 0) == bytes(512)
        for number in range(20):
            handle.pwrite(bytes([number + 1]) * 65536, number * 65536)
        handle.flush()
        handle.shutdown()
    for number in range(20):
        qemu_io(image, f"read -P {number + 1} {number * 65536} 64k")
    assert lib_tools.check_report(image).get("corruptions", 0) == 0
