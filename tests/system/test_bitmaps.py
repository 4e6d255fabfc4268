# SPDX-License-Identifier: Apache-2.0
"""Persistent bitmaps, which are not maintained: the start names them, the first change removes them
from the image, and their clusters become free."""
import json
import os
import shutil
import struct

import pytest

import lib_offline
import lib_tools
from lib_server import Server

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
EXTENSION = 0x23852875
AUTOCLEAR = 88
DIRTY = 72
REMOVES = "the first write removes them"


def extensions(path):
    """The header's extensions: (type, offset of the data, length)."""
    found = []
    with open(path, "rb") as stream:
        header = stream.read(65536)
    at = struct.unpack_from(">I", header, 100)[0]
    while True:
        kind, length = struct.unpack_from(">II", header, at)
        if kind == 0:
            return found
        found.append((kind, at + 8, length))
        at += 8 + (length + 7) // 8 * 8


def bitmaps_extension(path):
    return next(((at, length) for kind, at, length in extensions(path) if kind == EXTENSION), None)


def patch(path, offset, data):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def field(path, offset):
    with open(path, "rb") as stream:
        stream.seek(offset)
        return struct.unpack(">Q", stream.read(8))[0]


@pytest.fixture(params=["lazy", "eager"])
def image(request, workdir):
    """Data, a snapshot, and three bitmaps, one of which has bits."""
    path = lib_tools.create(f"{workdir}/disk.qcow2", SIZE,
                            lazy_refcounts="on" if request.param == "lazy" else "off")
    lib_tools.qemu_io(path, "write -P 1 0 1M")
    lib_tools.run("qemu-img", "snapshot", "-c", "s", path)
    for name in ("one", "two", "three\x01"):
        lib_tools.run("qemu-img", "bitmap", "--add", "-g", "512", path, name)
    lib_tools.qemu_io(path, "write -P 2 512k 1M", "write -P 3 32M 1M")
    lib_tools.check_clean(path)
    return path


def check_gone(path):
    """Nothing is left of the bitmaps, and nothing leaks, for qemu-img and for us."""
    assert bitmaps_extension(path) is None
    assert field(path, AUTOCLEAR) == 0
    lib_tools.check_clean(path)
    answer = lib_offline.lazycow("check", path)
    assert answer.code == 0, answer
    info = json.loads(lib_tools.run("qemu-img", "info", "--output=json", path))
    assert "bitmaps" not in info["format-specific"]["data"], info


def check_data(handle):
    assert handle.pread(MEBI // 2, 0) == b"\1" * (MEBI // 2)
    assert handle.pread(MEBI, MEBI // 2) == b"\2" * MEBI
    assert handle.pread(MEBI, 32 * MEBI) == b"\3" * MEBI


def write_and_check(workdir, path, **options):
    """Serves, writes in place and elsewhere, and finds the image sound. Returns the log."""
    with Server(workdir, path, **options) as server:
        handle = server.connect()
        handle.pwrite(b"\3" * 4096, 32 * MEBI)
        handle.pwrite(b"\5" * MEBI, 48 * MEBI)
        check_data(handle)
        handle.shutdown()
    check_gone(path)
    with Server(workdir, path, read_only=True) as after:
        handle = after.connect()
        check_data(handle)
        assert handle.pread(MEBI, 48 * MEBI) == b"\5" * MEBI
        handle.shutdown()
    lib_tools.run("qemu-img", "snapshot", "-a", "s", path)
    with Server(workdir, path, read_only=True) as after:
        handle = after.connect()
        assert handle.pread(2 * MEBI, 0) == b"\1" * MEBI + bytes(MEBI)
        handle.shutdown()
    return server.stderr()


@pytest.mark.parametrize("change", ["write in place", "write", "zero", "trim"])
def test_the_first_change_frees_them(workdir, image, change):
    before = os.path.getsize(image)
    with Server(workdir, image) as server:
        text = server.stderr()
        assert "3 persistent bitmaps" in text and REMOVES in text, text
        assert "'one'" in text and "'two'" in text and "'three?'" in text, text
        assert "disk.qcow2" in text and "--read-only" in text, text
        handle = server.connect()
        if change == "write in place":
            handle.pwrite(b"\3" * 4096, 32 * MEBI)
        elif change == "write":
            handle.pwrite(b"\5" * 4096, 40 * MEBI)
        elif change == "zero":
            handle.zero(4096, 50 * MEBI)
        else:
            handle.trim(MEBI, 60 * MEBI)
        check_data(handle)
        handle.shutdown()
    if change != "trim" or bitmaps_extension(image) is None:
        check_gone(image)
    assert os.path.getsize(image) <= before + 2 * 65536, "it grew although there was room"


def test_all_is_well_after_it(workdir, image):
    assert "persistent" in write_and_check(workdir, image)
    assert "persistent" not in write_and_check_again(workdir, image)


def write_and_check_again(workdir, path):
    with Server(workdir, path) as server:
        handle = server.connect()
        handle.pwrite(b"\6" * MEBI, 20 * MEBI)
        handle.shutdown()
    check_gone(path)
    return server.stderr()


@pytest.mark.parametrize("read_only", [False, True])
def test_without_a_change_they_stay(workdir, image, read_only):
    with open(image, "rb") as stream:
        before = stream.read()
    with Server(workdir, image, read_only=read_only) as server:
        handle = server.connect()
        check_data(handle)
        if not read_only:
            handle.flush()
        handle.shutdown()
    assert (REMOVES in server.stderr()) == (not read_only)
    with open(image, "rb") as stream:
        assert stream.read() == before
    lib_tools.check_clean(image)


def test_out_of_date_already(workdir, image):
    """The autoclear bit is off: something wrote that does not know of bitmaps, and may have put data
    where they were."""
    patch(image, AUTOCLEAR, bytes(8))
    assert "out of date" in write_and_check(workdir, image)


def test_out_of_date_and_overwritten(workdir, image):
    """The clusters that the extension points at hold data by now."""
    at, _ = bitmaps_extension(image)
    directory = field(image, at + 16)
    patch(image, AUTOCLEAR, bytes(8))
    assert lib_offline.lazycow("check", "-q", "-r", "leaks", image).code == 0
    patch(image, directory, b"\xff" * 4096)
    assert "out of date" in write_and_check(workdir, image)


DAMAGES = {
    "count": (0, struct.pack(">I", 0xffffffff)),
    "no bitmaps": (0, struct.pack(">I", 0)),
    "size": (8, struct.pack(">Q", 1 << 62)),
    "offset far": (16, struct.pack(">Q", 1 << 50)),
    "offset wraps": (16, struct.pack(">Q", (1 << 64) - 65536)),
    "misaligned": (16, struct.pack(">Q", 12345)),
    "over the header": (16, struct.pack(">Q", 0)),
    "over the L1 table": (16, struct.pack(">Q", 0x30000)),
}


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_extension(workdir, image, damage, dirty):
    offset, data = DAMAGES[damage]
    at, _ = bitmaps_extension(image)
    patch(image, at + offset, data)
    if dirty:
        patch(image, DIRTY, struct.pack(">Q", 1))
    text = write_and_check(workdir, image)
    assert "persistent bitmaps" in text, text


@pytest.mark.parametrize("dirty", [False, True], ids=["clean", "dirty"])
@pytest.mark.parametrize("where", ["table offset", "table size", "name length", "table entry"])
def test_damaged_directory(workdir, image, where, dirty):
    at, _ = bitmaps_extension(image)
    directory = field(image, at + 16)
    if where == "table offset":
        patch(image, directory, struct.pack(">Q", field(image, 40)))  # the L1 table
    elif where == "table size":
        patch(image, directory + 8, struct.pack(">I", 0x7fffffff))
    elif where == "name length":
        patch(image, directory + 18, struct.pack(">H", 0xffff))
    else:
        patch(image, field(image, directory), struct.pack(">Q", field(image, 40)))
    if dirty:
        patch(image, DIRTY, struct.pack(">Q", 1))
    write_and_check(workdir, image)


def test_dirty_image(workdir, image):
    """Bitmaps of an image that was not closed cleanly are out of date; they go before anything of
    theirs counts as free."""
    patch(image, DIRTY, struct.pack(">Q", 1))
    text = write_and_check(workdir, image)
    assert "removed now" in text, text


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_killed_after_the_first_change(workdir, image, seconds):
    server = Server(workdir, image, options=["--clean-after=1"])
    handle = server.connect()
    handle.pwrite(b"\5" * MEBI, 48 * MEBI)
    handle.flush()
    server.kill()
    lib_tools.run("qemu-img", "check", "-r", "all", image)
    check_gone(image)
    with Server(workdir, image) as server:
        handle = server.connect()
        check_data(handle)
        assert handle.pread(MEBI, 48 * MEBI) == b"\5" * MEBI
        handle.shutdown()
    check_gone(image)


def test_an_extension_behind_it_stays(workdir, image):
    at, length = bitmaps_extension(image)
    patch(image, at + length, struct.pack(">II", 0x12345678, 5) + b"hello" + bytes(3))
    lib_tools.check_clean(image)
    write_and_check(workdir, image)
    kinds = {kind: (at, length) for kind, at, length in extensions(image)}
    assert kinds[0x12345678][1] == 5
    with open(image, "rb") as stream:
        stream.seek(kinds[0x12345678][0])
        assert stream.read(5) == b"hello"


def test_unknown_autoclear_bits_go_alone(workdir):
    """Other autoclear bits are cleared by the first change, without a message: their meaning is
    unknown."""
    path = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    patch(path, AUTOCLEAR, struct.pack(">Q", 1 << 40))
    with Server(workdir, path) as server:
        handle = server.connect()
        handle.pread(4096, 0)
        assert field(path, AUTOCLEAR) == 1 << 40
        handle.pwrite(b"x" * 4096, 0)
        handle.flush()
        assert field(path, AUTOCLEAR) == 0
        handle.shutdown()
    lib_tools.check_clean(path)
    assert "bitmap" not in server.stderr()


def test_as_many_as_there_can_be(workdir):
    """65535 bitmaps with a table each."""
    count, cluster = 65535, 4096
    path = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, cluster_size=cluster)
    lib_tools.run("qemu-img", "bitmap", "--add", path, "a")
    lib_tools.qemu_io(path, "write -P 7 0 1M")
    directory = (os.path.getsize(path) + cluster - 1) // cluster * cluster
    tables = directory + (count * 32 + cluster - 1) // cluster * cluster
    entries = b"".join(
        struct.pack(">QIIBBHI", tables + index * cluster, 1, 1, 1, 16, 5, 0) + b"%05d" % index +
        bytes(3) for index in range(count))
    with open(path, "r+b") as stream:
        stream.seek(directory)
        stream.write(entries)
        stream.truncate(tables + count * cluster)
    at, _ = bitmaps_extension(path)
    patch(path, at, struct.pack(">IIQQ", count, 0, len(entries), directory))
    assert lib_offline.lazycow("check", "-q", "-r", "all", path).code == 0
    full = os.path.getsize(path)
    with Server(workdir, path) as server:
        text = server.stderr()
        assert "65535 persistent bitmaps ('00000', " in text and "..." in text, text[:3000]
        assert len(text) < 2000
        handle = server.connect()
        handle.pwrite(b"x" * MEBI, 2 * MEBI)
        assert handle.pread(MEBI, 0) == b"\7" * MEBI
        handle.shutdown()
    check_gone(path)
    assert os.path.getsize(path) <= full + 65536, "what is free was not taken"


def test_what_they_had_is_used_again(workdir, image):
    """Space that is free again is taken before the file grows."""
    shutil.copy(image, f"{workdir}/copy.qcow2")
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(b"\5" * 65536, 48 * MEBI)
        handle.shutdown()
    check_gone(image)
    assert os.path.getsize(image) <= os.path.getsize(f"{workdir}/copy.qcow2")
