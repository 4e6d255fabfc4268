# SPDX-License-Identifier: Apache-2.0
"""The programs that people use, each on a live server."""
import json
import os
import random

import pytest

import lib_tools
from lib_server import Server
from lib_tools import qemu_img, run

MEBI = 1 << 20
SIZE = 64 * MEBI


@pytest.fixture(params=["unix", "tcp"])
def address(request):
    return request.param == "tcp"


@pytest.fixture
def file_system(workdir):
    """A real ext4 image with some files in it, as a raw file."""
    rng = random.Random(4)
    tree = os.path.join(workdir, "tree")
    for number in range(40):
        path = os.path.join(tree, f"d{number % 5}", f"f{number}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(rng.randbytes(rng.randrange(300000)))
    raw = os.path.join(workdir, "ext4.raw")
    with open(raw, "wb") as stream:
        stream.truncate(SIZE)
    run("mkfs.ext4", "-q", "-F", "-d", tree, raw)
    return raw


def test_nbdinfo(workdir, address):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    lib_tools.qemu_io(image, "write -P 1 1M 64k")
    with Server(workdir, image, tcp=address) as server:
        assert run("nbdinfo", "--size", server.uri).strip() == str(SIZE)
        found = json.loads(run("nbdinfo", "--json", server.uri))
        [export] = found["exports"]
        assert export["export-size"] == SIZE
        assert export["is_read_only"] is False
        assert "base:allocation" in export["contexts"]
        for name in ("can_flush", "can_fua", "can_trim", "can_zero", "can_df", "can_fast_zero",
                     "can_cache", "can_multi_conn"):
            assert export[name] is True, name
        assert server.name() in run("nbdinfo", "--list", server.uri)
        extents = json.loads(run("nbdinfo", "--map", "--json", server.uri))
        assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
            (0, MEBI, 3), (MEBI, 65536, 0), (MEBI + 65536, SIZE - MEBI - 65536, 3)]
        for question in ("--can=trim", "--can=zero", "--can=fua", "--can=multi-conn"):
            run("nbdinfo", question, server.uri)
        run("nbdinfo", "--is=read-only", server.uri, codes=(2,))


@pytest.mark.parametrize("arguments", [
    [], ["--connections=4", "--requests=64"], ["--synchronous"], ["--flush", "--allocated"],
    ["--connections=2", "--request-size=65536"]],
    ids=["plain", "four-connections", "synchronous", "allocated", "small-requests"])
def test_nbdcopy_file_system_in_and_out(workdir, file_system, address, arguments):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    out = os.path.join(workdir, "out.raw")
    with Server(workdir, image, tcp=address) as server:
        run("nbdcopy", *arguments, file_system, server.uri)
        run("nbdcopy", *arguments, server.uri, out)
        run("cmp", file_system, out)
    lib_tools.check_clean(image)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", file_system, image)
    with Server(workdir, image, tcp=address, read_only=True) as server:
        os.unlink(out)
        run("nbdcopy", server.uri, out)
    run("e2fsck", "-fn", out)


def test_nbdcopy_between_two_servers(workdir, file_system):
    source = f"{workdir}/source.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", file_system, source)
    target = lib_tools.create(f"{workdir}/target.qcow2", SIZE, cluster_size=4096)
    with Server(workdir, source, read_only=True) as one, Server(workdir, target) as two:
        run("nbdcopy", one.uri, two.uri)
    lib_tools.check_clean(target)
    assert "identical" in qemu_img("compare", source, target)


def test_qemu_img(workdir, file_system, address):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    out = os.path.join(workdir, "out.qcow2")
    with Server(workdir, image, tcp=address) as server:
        qemu_img("convert", "-n", "-W", "-f", "raw", "-O", "raw", file_system, server.uri)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", server.uri, out)
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "raw", file_system,
                                       server.uri)
        over_nbd = json.loads(qemu_img("map", "--output=json", "-f", "raw", server.uri))
        info = json.loads(qemu_img("info", "--output=json", "-f", "raw", server.uri))
        assert info["virtual-size"] == SIZE
    assert "identical" in qemu_img("compare", out, image)
    lib_tools.check_clean(image)
    direct = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", image))
    check_zeros(over_nbd, direct, file_system)


def check_zeros(found, direct, path):
    """Said to be zero is all that qemu finds so in the image's tables; the holes inside its data
    clusters may be, where the host has some there. All of it reads as zeros."""
    said = zero_sectors(found)
    assert zero_sectors(direct) <= said
    with open(path, "rb") as stream:
        for sector in sorted(said):
            stream.seek(sector * 512)
            assert not stream.read(512).strip(b"\0"), f"sector {sector} is not zero"


def zero_sectors(extents):
    """The numbers of all sectors that the extents say to be zero."""
    return {sector for extent in extents if extent["zero"]
            for sector in range(extent["start"] // 512,
                                (extent["start"] + extent["length"]) // 512)}


def test_qemu_io(workdir, address):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, tcp=address) as server:
        lib_tools.qemu_io(
            server.uri, "write -P 17 1000 123456", "read -P 17 1000 123456", "read -P 0 0 1000",
            "write -f -P 18 4M 64k", "read -P 18 4M 64k", "write -z 4M 32k", "read -P 0 4M 32k",
            "read -P 18 4128k 32k", "write -z -u 1M 3M", "discard 4M 1M", "flush",
            "aio_write -P 19 8M 1M", "aio_write -P 20 9M 1M", "aio_flush", "read -P 19 8M 1M",
            "read -P 20 9M 1M", image_format="raw")
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 17 1000 123456", "read -P 19 8M 1M")


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_fio_verifies(workdir, aio):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, aio=aio) as server:
        run("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw",
            "--bsrange=512-128k", "--blockalign=512", "--iodepth=32", f"--size={SIZE}",
            f"--io_size={32 * MEBI}", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
            "--verify_backlog=64", "--fsync=64", "--numjobs=1", "--minimal", cwd=workdir)
    lib_tools.check_clean(image)


def test_nbdkit_as_proxy(workdir):
    """nbdkit's NBD plugin in front: it passes everything on, and checks the answers."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    lib_tools.qemu_io(image, "write -P 9 3M 64k")
    with Server(workdir, image) as server:
        text = run("nbdkit", "-U", "-", "nbd", f"uri={server.uri}", "--run",
                   'nbdinfo --map "$uri" && qemu-io -f raw -c "read -P 9 3M 64k" '
                   '-c "write -P 3 5M 1M" -c "discard 6M 1M" -c "write -z 7M 100k" "$uri"')
        assert "failed" not in text, text
        assert str(SIZE) not in text.splitlines()[0]
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 3 5M 1M", "read -P 9 3M 64k")


def test_nbdkit_limits_ask_for_odd_blocks(workdir):
    """Filters that cut requests into single bytes and sectors, with several connections."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 8 * MEBI)
    with Server(workdir, image) as server:
        text = run("nbdkit", "-U", "-", "--filter=blocksize", "nbd", f"uri={server.uri}",
                   "maxdata=999", "maxlen=5000", "--run",
                   'qemu-io -f raw -c "write -P 3 1000 50000" -c "read -P 3 1000 50000" "$uri"')
        assert "failed" not in text, text
    lib_tools.check_clean(image)


def test_nbd_client_lists(workdir):
    """nbd-client's own negotiation, no kernel device needed."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, tcp=True) as server:
        text = run("nbd-client", "-l", "127.0.0.1", server.port)
        assert server.name() in text.split(), text


def test_nbdsh(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image) as server:
        run("/usr/bin/python3", "-m", "nbd", "-u", server.uri,
            "-c", "h.pwrite(b'hello', 12345, nbd.CMD_FLAG_FUA)",
            "-c", "assert h.pread(5, 12345) == b'hello'",
            "-c", f"assert h.get_size() == {SIZE}")
    lib_tools.check_clean(image)


def test_multi_conn(workdir):
    """[NBD_FLAG_CAN_MULTI_CONN] A write answered on one connection is seen by all, and a flush on
    any of them covers it. Durability itself is for the simulator; here: no flush is refused, no
    connection sees old data."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    rng = random.Random(11)
    with Server(workdir, image) as server:
        handles = [server.connect() for _ in range(8)]
        for _ in range(200):
            writer, flusher, reader = rng.sample(handles, 3)
            content = rng.randbytes(rng.randint(1, 9000))
            offset = rng.randrange(SIZE - len(content))
            writer.pwrite(content, offset)
            flusher.flush()
            assert reader.pread(len(content), offset) == content
        for handle in handles:
            handle.shutdown()
    lib_tools.check_clean(image)
