# SPDX-License-Identifier: Apache-2.0
"""Stops that cannot write everything: the last line reports the exact loss, no flushed data is
lost, and the next server of the image leaves no leak."""
import os
import re
import signal

import nbd
import pytest

import lib_machine
import lib_offline
import lib_tools
from lib_server import Server, wait_for

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
ROOM = 12 * MEBI
STEP = 64 << 10

LOST = re.compile(r"LOST: (\d+) clusters \((\d+) bytes, between guest offsets (\d+) and (\d+)\)")
PERHAPS = re.compile(r"LOST, perhaps: at most (\d+) bytes")
NOTHING = "nothing that was written is lost"


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request, workdir):
    """A file system with little room."""
    if request.param == "tmpfs":
        words = ["-t", "tmpfs", "-o", f"size={ROOM}", "lazycow-test"]
    else:
        device = os.path.join(workdir, "device")
        with open(device, "wb") as stream:
            stream.truncate(ROOM + 4 * MEBI)
        lib_tools.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", device)
        words = ["-o", "loop", device]
    with lib_machine.mounted(f"{workdir}/small", *words) as path:
        yield path


def pattern(offset):
    return bytes([1 + offset // STEP % 250])


class Written:
    """Writes without a flush until there is no room, and remembers the answered writes. begin:
    flushed before."""

    def __init__(self, handle, flushed=4 * STEP):
        self.answered = {}
        self.flushed = flushed
        offset = 0
        while offset < SIZE:
            try:
                handle.pwrite(pattern(offset) * STEP, offset)
            except nbd.Error as error:
                assert error.errno == "ENOSPC", error
                break
            self.answered[offset] = pattern(offset)
            offset += STEP
            if offset == flushed:
                handle.flush()
        assert len(self.answered) > 8

    def missing(self, workdir, image, cluster):
        """Returns the clusters that lack answered data; none of them was flushed."""
        found = set()
        with Server(workdir, image, read_only=True) as server:
            handle = server.connect()
            for offset, byte in self.answered.items():
                data = handle.pread(STEP, offset)
                for at in range(0, STEP, cluster):
                    if data[at:at + cluster] != byte * min(cluster, STEP):
                        assert data[at:at + cluster].count(0) == min(cluster, STEP)
                        assert offset >= self.flushed, f"flushed, and lost: {offset + at:#x}"
                        found.add((offset + at) // cluster)
            handle.shutdown()
        return found


def check_text(text, missing, cluster):
    """Checks that exactly the missing clusters are reported as lost."""
    said = LOST.search(text)
    if not missing:
        assert not said and NOTHING in text, text
        return
    assert said, text
    clusters, size, first, end = map(int, said.groups())
    # A write that was refused may have changed clusters of its own before.
    assert clusters >= len(missing), (clusters, len(missing))
    assert clusters - len(missing) <= STEP // cluster
    assert size == clusters * cluster
    assert first == min(missing) * cluster
    assert end >= (max(missing) + 1) * cluster


def serve_again(workdir, image, missing, ballast):
    """With room, once more: nothing leaks, whatever was lost."""
    if os.path.exists(ballast):
        os.unlink(ballast)
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pread(4096, 0)
        handle.shutdown()
    lib_tools.check_clean(image)
    answer = lib_offline.lazycow("check", image)
    assert answer.code == 0, answer


def last_line(server):
    return server.stderr().splitlines()[-1]


@pytest.mark.parametrize("cluster", [512, 65536])
@pytest.mark.parametrize("lazy", ["on", "off"])
@pytest.mark.parametrize("how", ["SIGTERM", "last client"])
def test_no_room(small, workdir, lazy, cluster, how):
    """Version 3 has its dirty bit: nothing is lost."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, lazy_refcounts="off",
                             cluster_size=cluster)
    ballast = f"{small}/ballast"
    with open(ballast, "wb") as stream:
        stream.write(bytes(4 * MEBI))
    server = Server(workdir, image, lazy_refcounts=lazy, options=[
        "--clean-after=0", *(["--exit-with-last-client"] if how == "last client" else [])])
    handle = server.connect()
    written = Written(handle)
    handle.shutdown()
    if how == "last client":
        code = server.wait_exit()
    else:
        server.process.send_signal(signal.SIGTERM)
        code = server.wait_exit()
    missing = written.missing(workdir, image, cluster)
    assert not missing
    if code != 0:
        assert code == 1 and "disk.qcow2" in last_line(server)
        check_text(last_line(server), missing, cluster)
    serve_again(workdir, image, missing, ballast)


@pytest.mark.parametrize("cluster", [512, 4096])
def test_no_room_in_version_2(small, workdir, cluster):
    """Without a dirty bit changes without refcounts are lost and reported, and no cluster leaks."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, compat="0.10", cluster_size=cluster)
    ballast = f"{small}/ballast"
    with open(ballast, "wb") as stream:
        stream.write(bytes(4 * MEBI))
    server = Server(workdir, image, options=["--clean-after=0"])
    handle = server.connect()
    written = Written(handle)
    handle.shutdown()
    server.stop(codes=(0, 1))
    missing = written.missing(workdir, image, cluster)
    if server.process.returncode == 1:
        check_text(last_line(server), missing, cluster)
        assert "no cluster leaks" in last_line(server)
        lib_tools.check_clean(image)
    else:
        assert not missing
    serve_again(workdir, image, missing, ballast)


def inject(fault):
    """strace that has a system call of all threads fail."""
    lib_machine.need(lib_machine.ptrace_obstacle())
    return ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e",
            f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}"]


def test_tables_without_room(small, workdir):
    """On a host that cannot reserve space even tables do not fit: exactly those clusters are lost
    that they would have mapped."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, cluster_size=4096)
    ballast = f"{small}/ballast"
    server = Server(workdir, image, aio="threads", plain=True, options=["--clean-after=0"],
                    wrapper=inject("fallocate:error=EOPNOTSUPP"))
    handle = server.connect()
    handle.pwrite(pattern(0) * STEP, 0)
    handle.flush()
    with open(ballast, "wb") as stream:
        try:
            while True:
                stream.write(bytes(MEBI))
                stream.flush()
        except OSError:
            pass
    os.truncate(ballast, os.path.getsize(ballast) - 2 * MEBI)
    written = Written(handle, flushed=STEP)
    handle.shutdown()
    server.process.send_signal(signal.SIGTERM)
    code = server.wait_exit()
    missing = written.missing(workdir, image, 4096)
    text = last_line(server)
    assert code == (1 if "'" in text and ("LOST" in text or NOTHING in text) else 0), text
    if code == 1:
        check_text(text, missing, 4096)
    else:
        assert not missing
    serve_again(workdir, image, missing, ballast)


@pytest.mark.parametrize("lazy", ["on", "off"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_barrier_fails(workdir, lazy, error, flush):
    """The state on disk is unknown: the log tells the most that can be lost, and flushed data is
    not a part of it."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts=lazy)
    with Server(workdir, image) as server:
        handle = server.connect()
        handle.pwrite(b"a" * MEBI, 0)
        handle.shutdown()
    server = Server(workdir, image, aio="threads", plain=True, options=["--clean-after=0"],
                    wrapper=inject(f"fdatasync:error={error}"))
    handle = server.connect()
    handle.pwrite(b"b" * (3 * STEP), 8 * MEBI)
    handle.pwrite(b"d" * 100, 16 * MEBI)
    if flush:
        with pytest.raises(nbd.Error):
            handle.flush()
        with pytest.raises(nbd.Error):
            handle.pwrite(b"e" * STEP, 24 * MEBI)
    handle.shutdown()
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit() == 1
    said = PERHAPS.search(last_line(server))
    assert said and int(said.group(1)) == 3 * STEP + 100, server.stderr()
    with Server(workdir, image) as again:
        handle = again.connect()
        assert handle.pread(MEBI, 0) == b"a" * MEBI
        handle.shutdown()
    lib_tools.check_clean(image)


def test_one_of_several(small, workdir):
    """Each image has its own line; the others are clean."""
    full = lib_tools.create(f"{small}/full.qcow2", SIZE, cluster_size=512, compat="0.10")
    good = lib_tools.create(f"{workdir}/good.qcow2", SIZE)
    server = Server(workdir, good, full, options=["--clean-after=0"])
    first, second = server.connect("good"), server.connect("full")
    first.pwrite(b"x" * MEBI, 0)
    written = Written(second)
    first.shutdown()
    second.shutdown()
    server.stop(codes=(0, 1))
    lib_tools.check_clean(good)
    with Server(workdir, good, read_only=True) as again:
        handle = again.connect()
        assert handle.pread(MEBI, 0) == b"x" * MEBI
        handle.shutdown()
    missing = written.missing(workdir, full, 512)
    lines = [line for line in server.stderr().splitlines() if "good.qcow2" in line]
    assert not lines, lines
    if server.process.returncode == 1:
        check_text(last_line(server), missing, 512)
    else:
        assert not missing


def test_limit_of_the_file_size(workdir):
    """ulimit -f: as no room."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="off",
                             cluster_size=512)
    server = Server(workdir, image, options=["--clean-after=0"],
                    wrapper=["prlimit", f"--fsize={8 * MEBI}"])
    handle = server.connect()
    written = Written(handle)
    handle.shutdown()
    server.stop(codes=(0, 1))
    missing = written.missing(workdir, image, 512)
    assert not missing
    serve_again(workdir, image, missing, f"{workdir}/ballast")


def test_idle_without_room(small, workdir):
    """The clean point of an idle image fails: said once, tried again, and done when there is room."""
    image = lib_tools.create(f"{small}/disk.qcow2", SIZE, lazy_refcounts="off", cluster_size=512)
    ballast = f"{small}/ballast"
    with open(ballast, "wb") as stream:
        stream.write(bytes(4 * MEBI))
    with Server(workdir, image, options=["--clean-after=1", "--log-level=debug"]) as server:
        handle = server.connect()
        Written(handle)
        wait_for(lambda: "idle" in server.stderr())
        said = server.stderr().count("could not be made clean")
        assert said <= 1
        os.unlink(ballast)
        wait_for(lambda: "image made clean" in server.stderr())
        assert server.stderr().count("could not be made clean") == said
        handle.shutdown()
    lib_tools.check_clean(image)
