# SPDX-License-Identifier: Apache-2.0
"""Backing chains: long ones, and such that lead back to where they began."""
import json
import os
import subprocess

import pytest

import lib_tools
from lib_server import BINARY, PLAIN_BINARY, Server, refused
from lib_tools import run

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
LENGTH = 1000
# Far less than one function call for each image of such a chain would need.
STACK_BYTES = 256 << 10


def make_chain(workdir, length):
    """Images c0000 to the one whose path is returned, in which the first 64 KiB are the base's."""
    base = lib_tools.create(f"{workdir}/c0000", MEBI, cluster_size=512)
    lib_tools.qemu_io(base, "write -P 9 0 64k")
    layer = lib_tools.create(f"{workdir}/c0001", MEBI, "c0000", "qcow2", cluster_size=512)
    with open(layer, "rb") as stream:
        content = stream.read()
    for number in range(2, length + 1):
        with open(f"{workdir}/c{number:04}", "wb") as stream:
            stream.write(content.replace(b"c0000", b"c%04d" % (number - 1)))
    return f"{workdir}/c{length:04}"


@pytest.mark.slow
def test_a_long_chain(workdir):
    top = make_chain(workdir, LENGTH)
    limited = ["prlimit", f"--stack={STACK_BYTES}", "--"]
    with Server(workdir, top, plain=True, wrapper=limited) as server:
        handle = server.connect(contexts=("base:allocation", "qemu:allocation-depth"))
        assert handle.pread(64 << 10, 0) == b"\t" * (64 << 10)
        assert handle.pread(512, 64 << 10) == bytes(512)
        depths = []
        handle.block_status(MEBI, 0, lambda context, offset, entries, error:
                            depths.extend(entries) if context == "qemu:allocation-depth" else 0)
        assert depths == [64 << 10, LENGTH + 1, MEBI - (64 << 10), 0]
        handle.pwrite(b"x" * 512, 0)
        assert handle.pread(1024, 0) == b"x" * 512 + b"\t" * 512
        handle.shutdown()
    lib_tools.check_clean(top)
    chain = json.loads(run(*limited, PLAIN_BINARY, "info", "--output=json", "--backing-chain", top))
    assert len(chain) == LENGTH + 1
    run(*limited, PLAIN_BINARY, "create", "-q", "-b", top, "-F", "qcow2", f"{workdir}/new")
    assert json.loads(run(BINARY, "info", "--output=json", f"{workdir}/new"))["virtual-size"] == MEBI


def test_descriptors_run_out(workdir):
    top = make_chain(workdir, 200)
    result = subprocess.run(["prlimit", "--nofile=100", "--", PLAIN_BINARY, "serve",
                             f"--socket={workdir}/s", top], capture_output=True, check=False)
    assert result.returncode == 1
    line = result.stderr.decode()
    assert "Too many open files" in line and "ulimit -n" in line and line.count("\n") == 1


def overlay(name, backing):
    # Lazycow refuses to make some of them.
    lib_tools.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", name, "1M")


@pytest.mark.parametrize("kind", ["itself", "two", "link", "hard link", "other folder", "deep"])
def test_loops(workdir, kind, monkeypatch):
    monkeypatch.chdir(workdir)
    if kind == "itself":
        overlay("top", "./top")
    elif kind == "two":
        overlay("top", "next")
        overlay("next", "top")
    elif kind == "link":
        overlay("top", "link")
        os.symlink("top", "link")
    elif kind == "hard link":
        overlay("top", "link")
        os.link("top", "link")
    elif kind == "other folder":
        os.mkdir("sub")
        overlay("top", "sub/top")
        overlay("sub/top", "../sub/../top")
    else:
        overlay("top", "0")
        for number in range(300):
            overlay(f"{number}", f"{number + 1}")
        overlay("300", "./150")
    for options in [], ["-r"], ["-r", "-U"], ["--locking=off"]:
        line = refused(workdir, f"--socket={workdir}/s", *options, "top")
        assert "stands behind itself" in line and "qemu-img rebase" in line
    for options in [], ["-U"]:
        assert "stands behind itself" in run(BINARY, "info", "--backing-chain", *options, "top",
                                             codes=(1,))
    run(BINARY, "info", "top")
