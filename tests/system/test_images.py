# SPDX-License-Identifier: Apache-2.0
"""Headers, features, backing files, sizes: refused images with their messages, and served ones."""
import os
import struct

import pytest

import lib_qcow2
import lib_tools
from lib_broken import overlay, serve_refused, survive
from lib_qcow2 import Header, poke, poke_bytes, set_field
from lib_server import Server, refused
from lib_tools import create, qemu_img, qemu_io

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI


@pytest.fixture
def image(workdir):
    path = create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    qemu_io(path, "write -P 65 0 64k", "write -P 66 64k 64k", "write -P 67 4M 64k")
    return path


# ---- The header ---------------------------------------------------------------------------------

@pytest.mark.parametrize("field, value", [
    ("magic", 0x514649fa), ("magic", 0),
    ("version", 0), ("version", 1), ("version", 4), ("version", 0xffffffff),
    ("cluster_bits", 8), ("cluster_bits", 22), ("cluster_bits", 0), ("cluster_bits", 64),
    ("cluster_bits", 0xffffffff),
    ("crypt_method", 1), ("crypt_method", 2), ("crypt_method", 3),
    ("refcount_order", 7), ("refcount_order", 0xffffffff),
    ("header_length", 0), ("header_length", 103), ("header_length", 65537),
    ("header_length", 0xffffffff),
    ("l1_size", 0), ("l1_size", (32 * MEBI >> 3) + 1), ("l1_size", 0xffffffff),
    ("l1_table_offset", 1), ("l1_table_offset", 512), ("l1_table_offset", 1 << 56),
    ("l1_table_offset", (1 << 64) - 65536),
    ("refcount_table_offset", 0), ("refcount_table_offset", 512),
    ("refcount_table_offset", 1 << 56), ("refcount_table_offset", (1 << 64) - 65536),
    ("refcount_table_clusters", 0), ("refcount_table_clusters", (8 * MEBI >> 16) + 1),
    ("refcount_table_clusters", 0xffffffff),
    ("nb_snapshots", 65537), ("nb_snapshots", 0xffffffff),
    ("size", 1 << 60), ("size", (1 << 64) - 1), ("size", 513 << 40),
    ("compression_type", 2), ("compression_type", 255),
])
def test_header_field_out_of_range(workdir, image, field, value):
    if field == "compression_type":
        set_field(image, "incompatible_features", 8)
    set_field(image, field, value)
    serve_refused(workdir, image)
    serve_refused(workdir, image, "--read-only")


@pytest.mark.parametrize("field, value", [
    ("snapshots_offset", 512), ("snapshots_offset", 1 << 56), ("snapshots_offset", 1 << 40)])
def test_snapshot_table_out_of_range(workdir, image, field, value):
    qemu_img("snapshot", "-c", "one", image)
    set_field(image, field, value)
    serve_refused(workdir, image)


@pytest.mark.parametrize("length", [0, 1, 4, 24, 71, 72, 103])
def test_truncated_header(workdir, image, length):
    os.truncate(image, length)
    serve_refused(workdir, image)


@pytest.mark.parametrize("length", [104, 512, 65536, 3 * 65536, 4 * 65536 + 1])
def test_truncated_file(workdir, image, length):
    """Tables beyond the end of the file: refused, or read as empty; no crash."""
    os.truncate(image, length)
    survive(workdir, image)


@pytest.mark.parametrize("offset, length", [
    (112, 1024), (65536 - 100, 200), (65536, 10), (1 << 40, 10), ((1 << 64) - 8, 10),
    (112, 0xffffffff)])
def test_backing_name_out_of_range(workdir, image, offset, length):
    set_field(image, "backing_file_offset", offset)
    set_field(image, "backing_file_size", length)
    serve_refused(workdir, image)


@pytest.mark.parametrize("length", [65536, 0x7fffffff, 0xffffffff, 0xfffffff8])
def test_header_extension_overruns(workdir, image, length):
    poke(image, Header(image).header_length + 4, ">I", length)
    serve_refused(workdir, image)


def test_no_end_of_extensions(workdir, image):
    """The area is filled up to the end of the cluster with small unknown extensions."""
    start = Header(image).header_length
    count = (65536 - start) // 16
    poke_bytes(image, start, struct.pack(">IIQ", 0x12345678, 8, 0) * count)
    survive(workdir, image)


# ---- Features -----------------------------------------------------------------------------------

@pytest.mark.parametrize("options, said", [
    ({"extended_l2": "on"}, "extended"),
    ({"data_file": "data.raw"}, "data file"),
])
def test_unsupported_feature_is_named(workdir, options, said):
    if "data_file" in options:
        options = {"data_file": f"{workdir}/data.raw"}
    path = create(f"{workdir}/disk.qcow2", SIZE, **options)
    assert said in serve_refused(workdir, path).lower()


@pytest.mark.slow
def test_encryption_is_named(workdir):
    path = f"{workdir}/disk.qcow2"
    for _ in range(10):
        text = qemu_img("create", "-q", "--object", "secret,id=s,data=password", "-f", "qcow2",
                        "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                        path, SIZE, codes=(0, 1))
        # qemu-img 7.2 times the key derivation and gives up where the clock did not move.
        if "accurate CPU usage" not in text:
            break
    assert text == "", text
    line = serve_refused(workdir, path).lower()
    assert "luks" in line or "encrypt" in line, line


@pytest.mark.parametrize("bit", [5, 17, 40, 63])
def test_unknown_incompatible_bit(workdir, image, bit):
    """By the name that the image's own table has for it, else by its number."""
    set_field(image, "incompatible_features", 1 << bit)
    assert str(bit) in serve_refused(workdir, image)
    header = Header(image)
    extensions = header.extensions()
    table = b"".join(data for kind, data in extensions
                     if kind == lib_qcow2.EXTENSION_FEATURE_NAMES)
    entry = struct.pack(">BB46s", 0, bit, b"frobnicated clusters")
    rest = [(kind, data) for kind, data in extensions
            if kind != lib_qcow2.EXTENSION_FEATURE_NAMES]
    header.write_extensions([(lib_qcow2.EXTENSION_FEATURE_NAMES, table + entry), *rest])
    assert "frobnicated clusters" in serve_refused(workdir, image)


def test_feature_name_is_printed_safely(workdir, image):
    """46 bytes without a terminator, with line breaks and escape sequences."""
    set_field(image, "incompatible_features", 1 << 40)
    name = (b"\x1b[31mred\nsecond line" * 4)[:46]
    Header(image).write_extensions(
        [(lib_qcow2.EXTENSION_FEATURE_NAMES, struct.pack(">BB46s", 0, 40, name))])
    assert "\x1b" not in serve_refused(workdir, image)


def test_unknown_extensions_and_bits_are_preserved(workdir, image):
    """Opening and reading change nothing at all; the first write clears the autoclear bits that it
    cannot keep true, and nothing else."""
    header = Header(image)
    extensions = [*header.extensions(), (0x4c5a4357, b"something of another program"),
                  (0x7fffffff, b"")]
    header.write_extensions(extensions)
    set_field(image, "compatible_features", 1 << 20 | 1)
    set_field(image, "autoclear_features", 1 << 5 | 1 << 60)
    before = lib_tools.digest(image)
    with Server(workdir, image) as server:
        handle = server.connect()
        assert handle.pread(3, 65535) == b"ABB"
        handle.flush()
        handle.shutdown()
    assert lib_tools.digest(image) == before, "reading changed the file"
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(b"x", 100)
        handle.flush()
        assert Header(image).autoclear_features == 0, "not cleared by a write in place"
        handle.shutdown()
    after = Header(image)
    assert after.extensions() == extensions
    assert after.compatible_features == 1 << 20 | 1
    assert after.autoclear_features == 0
    lib_tools.check_clean(image)


def test_bitmaps_are_not_left_to_lie(workdir, image):
    """A persistent dirty bitmap does not see our writes: its autoclear bit goes with the first."""
    qemu_img("bitmap", "--add", image, "b0")
    assert Header(image).autoclear_features & 1
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pread(1, 0)
        assert Header(image).autoclear_features & 1
        handle.pwrite(b"x" * 300000, 8 * MEBI)
        handle.flush()
        assert not Header(image).autoclear_features & 1
        handle.shutdown()
    qemu_io(image, "read -P 120 8M 300000")
    report = lib_tools.check_report(image)
    assert report.get("corruptions", 0) == report.get("check-errors", 0) == 0, report


# ---- Backing files ------------------------------------------------------------------------------

def test_missing_backing_file(workdir):
    create(f"{workdir}/base.qcow2", SIZE)
    path = overlay(workdir, "base.qcow2")
    os.unlink(f"{workdir}/base.qcow2")
    line = refused(workdir, "-k", "s", path)
    assert "base.qcow2" in line, line


def forget_format(path):
    """Turns the backing format extension into an unknown one."""
    header = Header(path)
    with open(path, "rb") as stream:
        data = stream.read(header.cluster)
    at = data.index(struct.pack(">I", lib_qcow2.EXTENSION_BACKING_FORMAT))
    poke(path, at, ">I", 0x4c5a0001)


def test_backing_format_is_never_guessed(workdir):
    """A raw backing file may begin with anything, also with the header of a qcow2 file that names
    a host file as its own backing file."""
    base = create(f"{workdir}/base.qcow2", SIZE)
    qemu_io(base, "write -P 7 0 64k")
    path = overlay(workdir, "base.qcow2")
    forget_format(path)
    line = serve_refused(workdir, path)
    assert "format" in line, line
    with Server(workdir, path, backing_format="qcow2") as server:
        handle = server.connect()
        assert handle.pread(1, 0) == b"\7"
        handle.shutdown()
    with Server(workdir, path, backing_format="raw") as server:
        handle = server.connect()
        assert handle.pread(4, 0) == b"QFI\xfb"
        handle.shutdown()


def test_raw_backing_stays_raw(workdir):
    base = create(f"{workdir}/base", SIZE)
    path = overlay(workdir, "base", "raw")
    with open(base, "rb") as stream:
        expected = stream.read(4096)
    with Server(workdir, path) as server:
        handle = server.connect()
        assert handle.pread(4096, 0) == expected
        handle.shutdown()


def test_unknown_backing_format(workdir):
    with open(f"{workdir}/base.vmdk", "wb") as stream:
        stream.truncate(SIZE)
    path = create(f"{workdir}/disk.qcow2", SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "vmdk", "-b", "base.vmdk", path)
    assert "vmdk" in serve_refused(workdir, path)


def test_backing_loops(workdir):
    one = create(f"{workdir}/disk.qcow2", SIZE)
    two = overlay(workdir, "disk.qcow2", name="two.qcow2")
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "two.qcow2", one)
    refused(workdir, "-k", "s", one)
    refused(workdir, "-k", "s", two)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "disk.qcow2", one)
    refused(workdir, "-k", "s", one)
    refused(workdir, "-k", "s", "--read-only", one)


def test_names_are_relative_to_the_image(workdir):
    os.mkdir(f"{workdir}/a")
    os.mkdir(f"{workdir}/a/b")
    create(f"{workdir}/base.qcow2", SIZE)
    qemu_io(f"{workdir}/base.qcow2", "write -P 7 0 64k")
    overlay(workdir, "../base.qcow2", name="a/middle.qcow2")
    path = overlay(workdir, "../middle.qcow2", name="a/b/disk.qcow2")
    for served in (path, os.path.relpath(path)):
        with Server(workdir, served) as server:
            handle = server.connect()
            assert handle.pread(1, 0) == b"\7"
            handle.shutdown()
    absolute = overlay(workdir, f"{workdir}/base.qcow2", name="a/absolute.qcow2")
    with Server(workdir, absolute) as server:
        handle = server.connect()
        assert handle.pread(1, 0) == b"\7"
        handle.shutdown()


@pytest.mark.parametrize("name", ["json:{}", "nbd://localhost/x", "fat:/tmp", "missing:x"])
def test_backing_name_that_is_no_file(workdir, name):
    path = create(f"{workdir}/disk.qcow2", SIZE)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, path, codes=(0, 1))
    if Header(path).backing_file_offset:
        serve_refused(workdir, path)


@pytest.mark.slow
def test_chain_of_fifty(workdir):
    """Deep chains are slow to read by nature, not limited."""
    create(f"{workdir}/d0.qcow2", SIZE)
    qemu_io(f"{workdir}/d0.qcow2", "write -P 7 0 128k")
    for depth in range(1, 50):
        overlay(workdir, f"d{depth - 1}.qcow2", name=f"d{depth}.qcow2")
    path = f"{workdir}/d49.qcow2"
    with Server(workdir, path) as server:
        handle = server.connect()
        assert handle.pread(131073, 0) == b"\7" * 131072 + b"\0"
        handle.pwrite(b"x", 1000)
        assert handle.pread(65536, 0) == b"\7" * 1000 + b"x" + b"\7" * 64535
        handle.shutdown()
    lib_tools.check_clean(path)
    qemu_io(path, "read -P 120 1000 1", "read -P 7 1001 1000")


# ---- Sizes --------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, MEBI - 100, 65537])
def test_size_of_any_number_of_bytes(workdir, size):
    path = create(f"{workdir}/disk.qcow2", 2 * MEBI, lazy_refcounts="on")
    set_field(path, "size", size)
    with Server(workdir, path) as server:
        handle = server.connect()
        assert handle.get_size() == size
        if size:
            handle.pwrite(b"\1" * size, 0)
            handle.zero(1, size - 1)
            assert handle.pread(size, 0) == b"\1" * (size - 1) + b"\0"
        handle.shutdown()
    lib_tools.check_clean(path)
    with Server(workdir, path, read_only=True) as server:
        handle = server.connect()
        if size:
            assert handle.pread(size, 0) == b"\1" * (size - 1) + b"\0"
        handle.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("cluster, size", [(2 * MEBI, 1 << 60), (65536, 2 << 50), (512, 128 << 30)])
def test_largest_sizes(workdir, cluster, size):
    """As far as an L1 table of 32 MiB reaches."""
    size = min(size, (32 * MEBI // 8) * cluster * (cluster // 8), (1 << 63) - 512)
    path = create(f"{workdir}/disk.qcow2", size, cluster_size=cluster, lazy_refcounts="on")
    with Server(workdir, path) as server:
        handle = server.connect()
        assert handle.get_size() == size
        for offset in (0, size // 2 + 77, size - 5000):
            handle.pwrite(b"\1" * 5000, offset)
            assert handle.pread(5000, offset) == b"\1" * 5000
        found = []
        handle.block_status(1 << 30, size - (1 << 30),
                            lambda c, o, entries, e: found.extend(entries) or 0)
        assert sum(found[::2]) <= 1 << 30
        handle.shutdown()
    qemu_io(path, f"read -P 1 {size // 2 + 77} 5000", f"read -P 1 {size - 5000} 5000",
            "read -P 1 0 5000")
    lib_tools.check_clean(path)
