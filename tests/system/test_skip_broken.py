# SPDX-License-Identifier: Apache-2.0
"""Several images, some of which cannot be opened: nothing is served, or with --skip-broken the
others."""
import os
import socket
import subprocess

import nbd
import pytest

import lib_server
import lib_tools
from lib_server import Server, refused
from lib_wire import OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_STRUCTURED_REPLY, Wire, \
    go_data

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
REP_ERR_UNKNOWN = 0x80000006
# The exit status of a clean stop when images were left out (lazycow-serve(1)).
SKIPPED = 3


@pytest.fixture
def good(workdir):
    return lib_tools.create(f"{workdir}/good.qcow2", 16 * MEBI)


def broken(workdir, kind):
    """A path that cannot be served, and the text of its message."""
    path = f"{workdir}/bad.qcow2"
    if kind == "missing":
        return path, "No such file"
    if kind == "directory":
        os.mkdir(path)
        return path, "directory"
    if kind == "empty":
        open(path, "wb").close()
        return path, "bad.qcow2"
    if kind == "no backing file":
        lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b",
                      f"{workdir}/gone.qcow2", "-F", "qcow2", path, "1M")
        return path, "gone.qcow2"
    lib_tools.create(path, MEBI)
    with open(path, "r+b") as stream:
        stream.write(b"XXXX")
    return path, "not a qcow2 image"


KINDS = ["missing", "directory", "empty", "no backing file", "no magic"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_one_broken_image_ends_it(workdir, good, kind, first):
    bad, reason = broken(workdir, kind)
    line = refused(workdir, "-k", f"{workdir}/s", *([bad, good] if first else [good, bad]))
    for part in ("bad.qcow2", reason, "nothing is served", "--skip-broken"):
        assert part in line, line
    assert not os.path.exists(f"{workdir}/s")


def test_a_single_image_has_no_others(workdir):
    bad, _ = broken(workdir, "missing")
    for options in ([], ["--skip-broken"]):
        line = refused(workdir, *options, "-k", f"{workdir}/s", bad)
        assert "skip-broken" not in line and "nothing is served" not in line, line


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_are_served(workdir, good, kind):
    bad, reason = broken(workdir, kind)
    server = Server(workdir, good, bad, options=["--skip-broken"])
    for name in ("good", ""):
        handle = server.connect(name)
        handle.pwrite(b"x" * 4096, 0)
        handle.shutdown()
    with pytest.raises(nbd.Error):
        server.connect("bad")
    with Wire(server) as wire:
        wire.greet()
        assert len(wire.option(OPT_LIST)) == 2  # one export, and the acknowledgement
        for option in (OPT_INFO, OPT_GO):
            (kind_of_reply, message), = wire.option(option, go_data("bad"))
            assert kind_of_reply == REP_ERR_UNKNOWN
            assert b"not served" in message and reason.encode() in message, message
        wire.option(OPT_STRUCTURED_REPLY)
        (kind_of_reply, message), = wire.option(
            OPT_LIST_META_CONTEXT, b"\0\0\0\3bad\0\0\0\0")
        assert kind_of_reply == REP_ERR_UNKNOWN and b"not served" in message, message
        (kind_of_reply, message), = wire.option(OPT_GO, go_data("other"))
        assert kind_of_reply == REP_ERR_UNKNOWN and b"not served" not in message, message
    started = server.stderr()
    assert "export 'bad': skipped: " in started and reason in started, started
    server.stop(codes=(SKIPPED,))
    assert reason in server.stderr()[len(started):], "not said at the end"
    lib_tools.check_clean(good)


def test_the_empty_name_is_no_other_image(workdir, good):
    """The first image is broken: a client that asks for no name does not get the second."""
    bad, reason = broken(workdir, "no magic")
    server = Server(workdir, bad, good, options=["--skip-broken"])
    with Wire(server) as wire:
        wire.greet()
        (kind_of_reply, message), = wire.option(OPT_GO, go_data(""))
        assert kind_of_reply == REP_ERR_UNKNOWN and reason.encode() in message, message
    server.connect("good").shutdown()
    server.stop(codes=(SKIPPED,))


def test_the_empty_name_of_an_export(workdir, good):
    """An export that is named so has it whatever the first image is."""
    bad, _ = broken(workdir, "no magic")
    server = Server(workdir, bad, options=["--skip-broken", f"={good}"])
    handle = server.connect("")
    assert handle.get_size() == 16 * MEBI
    handle.shutdown()
    server.stop(codes=(SKIPPED,))


def test_none_can_be_served(workdir):
    """That is an error, and the service manager hears of no readiness."""
    bad, _ = broken(workdir, "no magic")
    path = f"{workdir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.setblocking(False)
        result = subprocess.run(
            [lib_server.BINARY, "serve", "--skip-broken", "-k", f"{workdir}/s", bad,
             f"{workdir}/gone.qcow2"], capture_output=True, text=True, timeout=60, check=False,
            env=lib_server.sanitizer_environment({"NOTIFY_SOCKET": path}))
        with pytest.raises(BlockingIOError):
            notify.recv(100)
    assert result.returncode == 1 and result.stdout == "", result
    assert "bad" in result.stderr and "gone" in result.stderr, result
    assert "nothing is served" in result.stderr.splitlines()[-1], result


def test_readiness_when_some_are_served(workdir, good):
    bad, _ = broken(workdir, "no magic")
    path = f"{workdir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(20)
        server = Server(workdir, bad, good, options=["--skip-broken"],
                        environment={"NOTIFY_SOCKET": path})
        assert notify.recv(4096) == b"READY=1"
        assert notify.recv(4096) == b"STATUS=1 images served, 1 skipped"
        server.stop(codes=(SKIPPED,))


def test_with_all_images_well_nothing_is_different(workdir, good):
    other = lib_tools.create(f"{workdir}/other.qcow2", MEBI)
    with Server(workdir, good, other, options=["--skip-broken"]) as server:
        for name in ("good", "other", ""):
            server.connect(name).shutdown()


@pytest.mark.parametrize("arguments", [["--skip-broken", "a=gone", "a=good.qcow2"],
                                       ["--skip-broken", "=", "a=good.qcow2"]])
def test_wrong_use_is_not_skipped(workdir, good, arguments):
    result = subprocess.run([lib_server.BINARY, "serve", "-k", f"{workdir}/s", *arguments],
                            capture_output=True, text=True, timeout=60, check=False, cwd=workdir,
                            env=lib_server.sanitizer_environment())
    assert result.returncode == 1, result
    assert "already" in result.stderr or "names no image" in result.stderr, result


def test_a_missing_image_of_an_option_is_left_out(workdir, good):
    """--export finds the name's end by the file; without one, by the only '='."""
    gone = f"{workdir}/gone.qcow2"
    with Server(workdir, options=["--skip-broken", "--export", f"/opt/gone={gone}", good]) as server:
        assert server.connect("good").get_size() == 16 * MEBI
        with pytest.raises(nbd.Error):
            server.connect("/opt/gone")
        server.stop(codes=(SKIPPED,))
    assert "no file" in refused(workdir, "-k", f"{workdir}/s", "--skip-broken", "--export",
                                f"/opt/a=b={gone}", good)
