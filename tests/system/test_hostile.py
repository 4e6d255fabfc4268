# SPDX-License-Identifier: Apache-2.0
"""Small images whose numbers are large: they take neither the server's time nor its memory."""
import os
import struct

import pytest

import lib_qcow2
import lib_tools
from lib_qcow2 import COPIED, Header, poke_bytes, set_field
from lib_server import Server, refused
from lib_tools import create, qemu_img

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
EXTENSION_CRYPTO = 0x0537BE77
EXTENSION_BITMAPS = 0x23852875


def read(path, offset, length):
    with open(path, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def serve_in_time(workdir, image, codes=(0,)):
    """Another client is served while the first one writes, and all of it in little memory."""
    server = Server(workdir, image, plain=True, wrapper=("prlimit", "--as=1500000000"))
    with server:
        writer, other = server.connect(), server.connect()
        writing = writer.aio_pwrite(bytearray(b"x" * 512), 0)
        while not writer.aio_command_completed(writing):
            writer.poll(-1)
        assert len(other.pread(512, MEBI // 2)) == 512
        writer.flush()
        writer.shutdown()
        other.shutdown()
        server.stop(codes=codes)
    assert "recovery failed" not in server.stderr()
    return server.stderr()


def test_encryption_header_of_a_plain_image(workdir):
    """The extension does not matter in an image that is not encrypted."""
    image = create(f"{workdir}/a.qcow2", MEBI, cluster_size=512, refcount_bits=64)
    poke_bytes(image, Header(image).header_length,
               struct.pack(">IIQQII", EXTENSION_CRYPTO, 16, MEBI, 1 << 55, 0, 0))
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    serve_in_time(workdir, image)
    assert not Header(image).incompatible & lib_qcow2.DIRTY


@pytest.mark.parametrize("count, entries, where", [
    (1, 1 << 13, 1 << 40),       # behind the end of the file
    (1, (1 << 13) + 1, MEBI),    # more than 512 MiB of bits
    (4000, 1 << 13, MEBI),       # all in one place
], ids=["beyond", "large", "many"])
def test_bitmap_tables(workdir, count, entries, where):
    """A writer that does not keep bitmaps need not understand them: they go, and nothing of theirs is
    followed."""
    image = create(f"{workdir}/a.qcow2", MEBI)
    directory = 4 * MEBI
    entry = struct.pack(">QIIBBHI", where, entries, 0, 1, 16, 8, 0) + b"bitmap 1"
    with open(image, "r+b") as stream:
        stream.seek(directory)
        stream.write(entry * count)
        stream.truncate(8 * MEBI)
    poke_bytes(image, Header(image).header_length,
               struct.pack(">IIIIQQII", EXTENSION_BITMAPS, 24, count, 0, len(entry) * count,
                           directory, 0, 0))
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    set_field(image, "autoclear_features", 1)
    assert "has persistent bitmaps that cannot be read" in serve_in_time(workdir, image)
    assert lib_qcow2.peek(image, *lib_qcow2.FIELDS["autoclear_features"]) == 0
    lib_tools.check_clean(image)


def test_entries_that_name_far_places(workdir):
    """Each in the domain of another refcount block, which takes 2 MiB."""
    image = create(f"{workdir}/a.qcow2", 4096 * MEBI, cluster_size=2 * MEBI, refcount_bits=1,
                   preallocation="metadata")
    header = Header(image)
    poke_bytes(image, header.l2_entry_offset(2 * MEBI),
               b"".join(struct.pack(">Q", COPIED | number << 45) for number in range(1, 2047)))
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    assert "tables are damaged" in serve_in_time(workdir, image, codes=(1,))


@pytest.mark.slow
def test_many_snapshots_and_l1_entries(workdir):
    """Both as many as the format allows: the first write looks at all of them."""
    image = create(f"{workdir}/a.qcow2", MEBI)
    header = Header(image)
    count, entries, tables = 65536, 4 * MEBI, 16 * MEBI
    block = header.refcount_block_offset()
    first = struct.unpack(">Q", read(image, header.l1_table_offset, 8))[0]
    with open(image, "r+b") as stream:
        stream.seek(block)
        stream.write(struct.pack(">H", 1) * 32768)
        stream.seek(MEBI)
        for number in range(count):  # apart, so that they are not one range
            stream.write(struct.pack(">QIHHIIQII16x", (1 << 40) + (number << 17), 1,
                                     0, 0, 0, 0, 0, 0, 16))
        stream.seek(tables)
        stream.write(struct.pack(">Q", first))
        stream.write(b"".join(struct.pack(">Q", COPIED | (number << 16) + (1 << 50))
                              for number in range(1, entries)))
    set_field(image, "l1_table_offset", tables)
    set_field(image, "l1_size", entries)
    set_field(image, "snapshots_offset", MEBI)
    set_field(image, "nb_snapshots", count)
    serve_in_time(workdir, image)


def test_snapshots_whose_tables_overlap(workdir):
    """Thousands of tables of 32 MiB in a file of 64."""
    image = create(f"{workdir}/a.qcow2", MEBI, cluster_size=512)
    count = 20000
    with open(image, "r+b") as stream:
        stream.seek(2 * MEBI)
        for number in range(count):
            stream.write(struct.pack(">QIHHIIQII16x", 4 * MEBI + 512 * number, 4 * MEBI,
                                     0, 0, 0, 0, 0, 0, 16))
        stream.truncate(64 * MEBI)
    set_field(image, "snapshots_offset", 2 * MEBI)
    set_field(image, "nb_snapshots", count)
    set_field(image, "incompatible_features", lib_qcow2.DIRTY)
    assert "tables are damaged" in serve_in_time(workdir, image, codes=(1,))


@pytest.mark.parametrize("behind", [None, "b.qcow2"])
def test_image_behind_itself_by_another_name(workdir, behind):
    image = create(f"{workdir}/a.qcow2", MEBI)
    os.link(image, f"{workdir}/other.qcow2")
    last = image
    if behind:
        last = create(f"{workdir}/{behind}", MEBI)
        qemu_img("rebase", "-u", "-F", "qcow2", "-b", behind, image)
    qemu_img("rebase", "-u", "-F", "qcow2", "-b", "./other.qcow2", last)
    assert "stands behind itself" in refused(workdir, "-k", "s", "--read-only", image)
