# SPDX-License-Identifier: Apache-2.0
"""Names: of exports on the command line, and the export of a client that asks for no name."""
import json
import os

import pytest

import lib_tools
from lib_server import BINARY, Server, refused
from lib_tools import run
from lib_wire import OPT_EXPORT_NAME, OPT_GO, OPT_INFO, Wire, go_data, option_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


def lazycow(*arguments, **keywords):
    return run(BINARY, *arguments, **keywords)


def image(workdir, name, size):
    return lib_tools.create(f"{workdir}/{name}", size)


def exports(server):
    """The exports in the order of the list: (name, size)."""
    text = run("nbdinfo", "--list", "--json", "--no-content",
               f"nbd+unix:///?socket={server.socket}")
    return [(export["export-name"], export["export-size"])
            for export in json.loads(text)["exports"]]


def size_of(server, name):
    handle = server.connect(name)
    size = handle.get_size()
    handle.shutdown()
    return size


def test_the_export_named_empty_is_the_default(workdir):
    first = image(workdir, "a.qcow2", MEBI)
    second = image(workdir, "b.qcow2", 2 * MEBI)
    with Server(workdir, f"={second}", options=[f"data={first}"]) as server:
        assert exports(server) == [("data", MEBI), ("", 2 * MEBI)]
        assert size_of(server, "data") == MEBI
        # With a context: what is set for "" holds for the export that GO chooses then.
        handle = server.connect("")
        assert handle.get_size() == 2 * MEBI and handle.can_meta_context("base:allocation")
        handle.shutdown()
        size = (2 * MEBI).to_bytes(8, "big")
        for option in (OPT_INFO, OPT_GO):
            with Wire(server) as wire:
                wire.greet()
                assert size in b"".join(data for _, data in wire.option(option, go_data("")))
        with Wire(server) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_EXPORT_NAME))
            assert wire.receive(10)[:8] == size


@pytest.mark.parametrize("name", ["/opt/ltsp/i386", "a=b", "", "ein größerer Name/=", "x/y=z",
                                  "n" * 4096])
def test_export_takes_any_name(workdir, name):
    path = image(workdir, "a=1.qcow2", MEBI)
    other = image(workdir, "b.qcow2", 2 * MEBI)
    with Server(workdir, options=["--export", f"{name}={path}", f"--export=o={other}"]) as server:
        assert exports(server) == [(name, MEBI), ("o", 2 * MEBI)]
        assert size_of(server, name) == MEBI


def test_exports_keep_the_order_of_the_command_line(workdir):
    paths = [image(workdir, f"i{n}.qcow2", MEBI) for n in range(4)]
    with Server(workdir, options=[paths[0], "--export", f"one={paths[1]}", "-v", f"two={paths[2]}",
                                  "--", paths[3]]) as server:
        assert [name for name, _ in exports(server)] == ["i0", "one", "two", "i3"]


def test_messages(workdir):
    path = image(workdir, "a.qcow2", MEBI)
    image(workdir, "c=d.qcow2", MEBI)
    socket = f"--socket={workdir}/s"
    directory = os.path.dirname(path)
    for arguments, expected in [
            ([f"--export={path}"], "has no '='; write --export NAME=IMAGE"),
            (["--export", "x="], "names no image"),
            (["--export", "x=/nowhere/y"], "/nowhere/y: cannot open: No such file"),
            (["--export", "x=/nowhere/y=z"], "nor one behind any of the other '='"),
            (["--export", f"x={directory}"], "Is a directory; name an image"),
            (["--export", f"a={path}", "--export", f"a={path}"], "there is an export 'a' already"),
            (["--export", f"{'n' * 4097}={path}"], "at most 4096 bytes"),
            (["--export", os.fsdecode(b"\xff=") + path], "must be UTF-8"),
            (["-x", "y", "--export", f"x={path}"], "the name is given twice"),
            (["-x", "y", f"x={path}"], "the name is given twice"),
            ([f"/opt/ltsp={path}"], "a name with a slash is given with --export"),
            ([f"--export={n}={path}" for n in range(1025)], "1025 images are too many"),
    ]:
        assert expected in refused(workdir, socket, *arguments)


def test_a_file_with_an_equals_sign(workdir, monkeypatch):
    image(workdir, "c=d.qcow2", MEBI)
    monkeypatch.chdir(workdir)
    assert "write './c=d.qcow2'" in refused(workdir, f"--socket={workdir}/s", "c=d.qcow2")
    with Server(workdir, options=["./c=d.qcow2"]) as server:
        assert exports(server) == [("c=d", MEBI)]


# ---- Local files by QEMU's names ----------------------------------------------------------------

def test_file_prefix(workdir, monkeypatch):
    """file: stands before the name of a local file everywhere, relative names are the overlay's."""
    monkeypatch.chdir(workdir)
    os.mkdir("sub")
    lazycow("create", "-q", "file:base.qcow2", "1M")
    lib_tools.qemu_io("base.qcow2", "write -P 7 0 64k")
    lazycow("create", "-q", "-b", "file:../base.qcow2", "-F", "qcow2", "file:sub/top.qcow2")
    assert os.path.exists("sub/top.qcow2")
    chain = json.loads(lazycow("info", "--output=json", "--backing-chain", "file:sub/top.qcow2"))
    assert [info["filename"] for info in chain] == ["sub/top.qcow2", "sub/../base.qcow2"]
    assert chain[0]["backing-filename"] == "file:../base.qcow2"
    lazycow("check", "file:sub/top.qcow2")
    with Server(workdir, "file:sub/top.qcow2") as server:
        handle = server.connect("top")
        assert handle.pread(512, 0) == b"\7" * 512
        handle.shutdown()
    with Server(workdir, options=[f"--export=/x=file:{workdir}/sub/top.qcow2"]) as server:
        assert exports(server) == [("/x", MEBI)]


@pytest.mark.parametrize("driver", ["file", "host_device"])
def test_drivers_of_files_as_backing_formats(workdir, driver):
    with open(f"{workdir}/base.raw", "wb") as stream:
        stream.write(b"\3" * MEBI)
    # QEMU insists on a device behind host_device.
    makers = [lambda *words: lazycow("create", *words)]
    if driver == "file":
        makers.append(lambda *words: lib_tools.qemu_img("create", "-f", "qcow2", *words))
    for create in makers:
        create("-q", "-b", f"{driver}:{workdir}/base.raw", "-F", driver, f"{workdir}/top.qcow2")
        with Server(workdir, f"{workdir}/top.qcow2") as server:
            handle = server.connect()
            assert handle.pread(512, MEBI - 512) == b"\3" * 512
            handle.shutdown()
        chain = json.loads(lazycow("info", "--output=json", "--backing-chain",
                                   f"{workdir}/top.qcow2"))
        assert chain[0]["backing-filename-format"] == driver and chain[1]["format"] == "raw"
        os.unlink(f"{workdir}/top.qcow2")


def test_other_protocols_are_refused(workdir):
    for name in ("nbd:unix:/s", "json:{}", "http://host/x", "a:b"):
        lib_tools.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2",
                           f"{workdir}/top.qcow2", "1M")
        line = refused(workdir, f"--socket={workdir}/s", f"{workdir}/top.qcow2")
        assert f"the backing file '{name}' is not a local file" in line
        assert "no URLs" in refused(workdir, f"--socket={workdir}/s", name)
        assert "no URLs" in lazycow("info", name, codes=(1,))
        assert "write './" in lazycow("create", name, "1M", codes=(1,))
        assert not os.path.exists(name)
