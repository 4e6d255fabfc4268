# SPDX-License-Identifier: Apache-2.0
"""How programs of other projects, and several of them at once, get along with the server."""
import concurrent.futures
import json
import os
import queue
import random
import subprocess
import time

import nbd

import lib_machine
import lib_tools
from lib_server import PATIENCE_SECONDS, Server, wait_for
from lib_tools import run

MEBI = 1 << 20
SIZE = 64 * MEBI

BASE = "base:allocation"
DEPTH = "qemu:allocation-depth"


# ---- Metadata contexts --------------------------------------------------------------------------

def chain(workdir):
    """disk over middle over base; returns the topmost image."""
    base = lib_tools.create(f"{workdir}/base.qcow2", SIZE)
    lib_tools.qemu_io(base, "write -P 1 0 192k")
    middle = lib_tools.create(f"{workdir}/middle.qcow2", None, base, "qcow2")
    lib_tools.qemu_io(middle, "write -P 2 64k 128k")
    disk = lib_tools.create(f"{workdir}/disk.qcow2", None, middle, "qcow2")
    lib_tools.qemu_io(disk, "write -P 3 128k 64k", "write -z 4M 64k")
    return disk


def test_allocation_depth_as_qemu_tells_it(workdir):
    disk = chain(workdir)
    with Server(workdir, disk) as server:
        found = json.loads(run("nbdinfo", f"--map={DEPTH}", "--json", server.uri))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, 65536, 3), (65536, 65536, 2), (131072, 65536, 1), (196608, 4 * MEBI - 196608, 0),
        (4 * MEBI, 65536, 1), (4 * MEBI + 65536, SIZE - 4 * MEBI - 65536, 0)]


def test_both_contexts_in_one_reply(workdir):
    disk = chain(workdir)
    answers = []

    def take(context, offset, entries, _error):
        pairs = list(zip(entries[::2], entries[1::2]))
        answers.append((context, offset, pairs))
        return 0
    with Server(workdir, disk) as server:
        handle = server.connect(contexts=(BASE, DEPTH))
        assert handle.can_meta_context(BASE) and handle.can_meta_context(DEPTH)
        handle.block_status(MEBI, 0, take)
        handle.shutdown()
    assert dict((context, pairs) for context, _offset, pairs in answers) == {
        BASE: [(196608, 0), (MEBI - 196608, nbd.STATE_HOLE | nbd.STATE_ZERO)],
        DEPTH: [(65536, 3), (65536, 2), (65536, 1), (MEBI - 196608, 0)]}
    assert [offset for _context, offset, _pairs in answers] == [0, 0]


# ---- Several exports ----------------------------------------------------------------------------

def test_nbdinfo_lists_all_exports(workdir):
    images = [lib_tools.create(f"{workdir}/d{number}.qcow2", (number + 1) * MEBI)
              for number in range(3)]
    with Server(workdir, *images, ("with space", lib_tools.create(f"{workdir}/x.qcow2", SIZE)),
                options=["--description=a test"]) as server:
        found = json.loads(run("nbdinfo", "--list", "--json", server.uri))
        sizes = {export["export-name"]: export["export-size"] for export in found["exports"]}
        assert sizes == {"d0": MEBI, "d1": 2 * MEBI, "d2": 3 * MEBI, "with space": SIZE}
        assert {export["description"] for export in found["exports"]} == {"a test"}
        assert run("nbdinfo", "--size", server.uri_of("with space")).strip() == str(SIZE)
        assert run("nbdinfo", "--size", server.uri_of("")).strip() == str(MEBI)


# ---- nbdfuse ------------------------------------------------------------------------------------

def test_nbdfuse(workdir):
    """The export as a file: written through the kernel's FUSE, and found again in the image."""
    lib_machine.need(lib_machine.fuse_obstacle())
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    mount = f"{workdir}/mnt"
    os.mkdir(mount)
    content = random.Random(3).randbytes(3 * MEBI)
    with Server(workdir, image) as server:
        with subprocess.Popen(["nbdfuse", f"{mount}/disk", server.uri]) as fuse:
            try:
                wait_for(lambda: os.path.exists(f"{mount}/disk"))
                with open(f"{mount}/disk", "r+b") as stream:
                    assert os.fstat(stream.fileno()).st_size == SIZE
                    stream.seek(MEBI + 512)
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                    stream.seek(MEBI + 512)
                    assert stream.read(len(content)) == content
            finally:
                run("fusermount3", "-u", mount)
                fuse.wait(30)
    lib_tools.check_clean(image)
    found = lib_tools.read_all(image)
    assert found[MEBI + 512:MEBI + 512 + len(content)] == content
    assert not any(found[:MEBI + 512])


# ---- nbdsh --------------------------------------------------------------------------------------

def test_nbdsh_asynchronous_script(workdir):
    """Many commands in flight from a script, as backup tools are written."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    script = """
buffers = [nbd.Buffer.from_bytearray(bytearray([n + 1]) * 65536) for n in range(64)]
for n, buffer in enumerate(buffers):
    h.aio_pwrite(buffer, n * 65536, lambda error: 1)
while h.aio_in_flight() > 0:
    h.poll(-1)
h.flush()
h.trim(65536, 0)
h.zero(65536, 65536)
for n in range(2, 64):
    assert h.pread(65536, n * 65536) == bytes([n + 1]) * 65536
assert h.pread(131072, 0) == bytes(131072)
"""
    with Server(workdir, image) as server:
        run("/usr/bin/python3", "-m", "nbd", "-u", server.uri, "-c", script)
    lib_tools.check_clean(image)


# ---- nbdcopy ------------------------------------------------------------------------------------

def test_nbdcopy_both_ways_with_four_connections(workdir):
    content = random.Random(4).randbytes(SIZE // 4)
    content = content + bytes(SIZE // 2) + content
    source, out = f"{workdir}/in.raw", f"{workdir}/out.raw"
    with open(source, "wb") as stream:
        stream.write(content)
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, tcp=True) as server:
        words = ("--connections=4", "--threads=4", "--requests=32", "--flush")
        run("nbdcopy", *words, source, server.uri)
        run("nbdcopy", *words, server.uri, out)
        assert server.stderr().count("export 'disk'") >= 8
    with open(out, "rb") as stream:
        assert stream.read() == content
    lib_tools.check_clean(image)


# ---- QEMU ---------------------------------------------------------------------------------------

class StorageDaemon:
    """A qemu-storage-daemon that has the export as a block device and serves that again."""

    def __init__(self, directory, server):
        self.process = subprocess.Popen([
            "qemu-storage-daemon", "--blockdev",
            "driver=nbd,node-name=disk,export=disk,reconnect-delay=30,server.type=unix,"
            f"server.path={server.socket}", "--nbd-server",
            f"addr.type=unix,addr.path={directory}/again", "--export",
            "type=nbd,id=e,node-name=disk,name=again,writable=on"])
        self.uri = f"nbd+unix:///again?socket={directory}/again"
        wait_for(lambda: os.path.exists(f"{directory}/again"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A daemon whose server is gone would first wait out its reconnect-delay.
        self.process.kill()
        self.process.wait(30)


def test_qemu_reconnects_over_a_restart(workdir):
    """-blockdev with reconnect-delay: requests of before and after a restart, and during it."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    socket_path = f"{workdir}/nbd"
    first = Server(workdir, image, socket_path=socket_path)
    try:
        with StorageDaemon(workdir, first) as qemu:
            lib_tools.qemu_io(qemu.uri, "write -P 1 0 1M", "flush", image_format="raw")
            first.stop()
            # While there is no server; it waits for one.
            with subprocess.Popen(
                    ["qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "write -P 2 1M 1M",
                     "-c", "flush", qemu.uri], stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT) as waiting:
                time.sleep(0.5)
                assert waiting.poll() is None
                with Server(workdir, image, socket_path=socket_path):
                    text, _ = waiting.communicate(timeout=PATIENCE_SECONDS)
                    assert waiting.returncode == 0 and b"failed" not in text, text
                    lib_tools.qemu_io(qemu.uri, "read -P 2 1M 1M", image_format="raw")
    finally:
        first.kill()
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 1 0 1M", "read -P 2 1M 1M")


def test_qemu_img_map(workdir):
    """Data and holes as qemu-img sees them over NBD are those that it sees in the image."""
    disk = chain(workdir)

    def data(text):
        found = []
        for extent in json.loads(text):
            start, end = extent["start"], extent["start"] + extent["length"]
            if found and found[-1][1] == start and found[-1][2] == extent["zero"]:
                found[-1][1] = end
            else:
                found.append([start, end, extent["zero"]])
        return found
    direct = data(lib_tools.qemu_img("map", "--output=json", "-f", "qcow2", disk))
    with Server(workdir, disk, read_only=True) as server:
        over_nbd = data(lib_tools.qemu_img("map", "--output=json", "-f", "raw", server.uri))
    assert over_nbd == direct
    assert [zero for _start, _end, zero in direct] == [False, True]


def test_a_guest_and_a_backup_at_once(workdir):
    """A backup reads through connections of its own while another client writes elsewhere."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    content = random.Random(5).randbytes(SIZE // 2)
    with Server(workdir, image) as server:
        writer = server.connect()
        for at in range(0, len(content), MEBI):
            writer.pwrite(content[at:at + MEBI], at)
        out = f"{workdir}/backup.raw"
        with subprocess.Popen(["nbdcopy", "--connections=4", server.uri, out]) as backup:
            count = 0
            while backup.poll() is None or count == 0:
                writer.pwrite(bytes([count % 255 + 1]) * 65536, SIZE // 2 + count % 64 * 65536)
                count += 1
            assert backup.returncode == 0
        writer.flush()
        writer.shutdown()
    with open(out, "rb") as stream:
        assert stream.read(len(content)) == content
    lib_tools.check_clean(image)


# Most bytes that backup programs send in one request, or ask the status of at a time.
TRANSFER = 8 * MEBI
STATUS_RANGE = 1 << 30
WORKERS = 4


def extents_of(handle, size):
    """[(offset, length, zero, depth)] of the whole disk, by both contexts together."""
    found = []
    at = 0
    while at < size:
        answer = {}
        handle.block_status(min(STATUS_RANGE, size - at), at,
                            lambda context, _offset, entries, _error: answer.update(
                                {context: list(zip(entries[::2], entries[1::2]))}) or 0)
        allocation, depth = answer[BASE], answer[DEPTH]
        while allocation and depth:
            length = min(allocation[0][0], depth[0][0])
            found.append((at, length, bool(allocation[0][1] & nbd.STATE_ZERO), depth[0][1]))
            at += length
            for pieces in (allocation, depth):
                pieces[0] = (pieces[0][0] - length, pieces[0][1])
                if pieces[0][0] == 0:
                    pieces.pop(0)
    return found


def test_incremental_backup_and_restore(workdir):
    """Like oVirt: the contexts tell the content of the topmost layer, which is read over several
    connections to a Unix socket, and written over several others into another chain."""
    disk = chain(workdir)
    rng = random.Random(8)
    lib_tools.qemu_io(disk, *(f"write -P {rng.randrange(1, 255)} {rng.randrange(60 * MEBI)} "
                              f"{rng.randrange(1, 2 * MEBI)}" for _ in range(20)))
    restored = lib_tools.create(f"{workdir}/restored.qcow2", None, f"{workdir}/middle.qcow2",
                                "qcow2")
    with Server(workdir, disk, read_only=True) as source, Server(workdir, restored) as target:
        handle = source.connect(contexts=(BASE, DEPTH))
        todo = queue.SimpleQueue()
        for offset, length, zero, depth in extents_of(handle, SIZE):
            step = length if zero else TRANSFER
            for at in range(offset, offset + length, step):
                if depth == 1:
                    todo.put((at, min(step, offset + length - at), zero))
        handle.shutdown()
        assert todo.qsize() > 5

        def copy():
            one, two = source.connect(), target.connect()
            while True:
                try:
                    at, length, zero = todo.get_nowait()
                except queue.Empty:
                    break
                if zero:
                    two.zero(length, at)
                else:
                    two.pwrite(one.pread(length, at), at)
            two.flush()
            one.shutdown()
            two.shutdown()
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            for done in [pool.submit(copy) for _ in range(WORKERS)]:
                done.result(60)
    lib_tools.check_clean(restored)
    assert "identical" in lib_tools.qemu_img("compare", disk, restored)
