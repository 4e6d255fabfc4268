# SPDX-License-Identifier: Apache-2.0
"""Images on block devices: space that is not fresh, and an end that does not move."""
import errno
import fcntl
import os
import subprocess

import pytest

import lib_machine
import lib_offline
import lib_server
import lib_tools
from lib_broken import attempt
from lib_server import Server, refused

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


@pytest.fixture
def device(workdir):
    """A loop device of 256 MiB, full of noise."""
    backing = f"{workdir}/device"
    with open(backing, "wb") as stream:
        stream.write(os.urandom(MEBI) * 256)
    with lib_machine.loop_device(backing) as path:
        yield path


def test_block_device(workdir, device):
    """The image grows inside the device, which does not end where the image does, up to its end;
    then, and only then, there is no space."""
    assert lib_offline.lazycow("create", "-q", device, "1G").code == 0
    with Server(workdir, device) as server:
        handle = server.connect()
        for index in range(100):
            handle.pwrite(bytes([index + 1]) * 65536, index * 8 * MEBI)
        handle.flush()
        handle.shutdown()
    lib_tools.check_clean(device)
    with Server(workdir, device) as server:
        handle = server.connect()
        for index in range(100):
            assert handle.pread(65536, index * 8 * MEBI) == bytes([index + 1]) * 65536
        written = 0
        while (error := attempt(handle.pwrite, b"\xfe" * MEBI, MEBI + written)) == 0:
            written += MEBI
        assert error == errno.ENOSPC and written > 200 * MEBI, (error, written)
        # Given-up clusters can be used again.
        handle.trim(4 * MEBI, MEBI)
        handle.flush()
        handle.flush()
        handle.pwrite(b"\xfd" * MEBI, 900 * MEBI)
        handle.flush()
        assert handle.pread(MEBI, 900 * MEBI) == b"\xfd" * MEBI
        handle.shutdown()
    lib_tools.check_clean(device)


# ---- What opens for writing and cannot be written ----------------------------------------------

# linux/fcntl.h; Python's module knows them since 3.8, except for the last.
SEALS = {"write": fcntl.F_SEAL_WRITE, "grow": fcntl.F_SEAL_GROW, "shrink": fcntl.F_SEAL_SHRINK,
         "future write": 0x10}


def cannot_be_written(workdir, path, *reasons):
    """Each command that would write fails at once with a remedy; commands that only read work."""
    lines = [refused(workdir, "-k", f"{workdir}/refused", path)]
    for words in (("check", "-r", "all", path), ("create", "-q", path, "1M")):
        answer = lib_offline.lazycow(*words)
        assert answer.code == 1 and answer.err.count("\n") == 1, answer
        lines.append(answer.err)
    for line in lines:
        assert str(path) in line and "read-only" in line and "-r" in line, line
        assert any(reason in line for reason in reasons), line
    assert lib_offline.lazycow("check", path).code == 0
    with Server(workdir, path, read_only=True) as server:
        handle = server.connect()
        assert handle.is_read_only()
        handle.pread(65536, 0)
        handle.shutdown()


@pytest.mark.parametrize("how", ["losetup", "blockdev"])
def test_device_that_is_set_read_only(workdir, how):
    """It opens for writing, and each write to it ends with EPERM."""
    backing = lib_tools.create(f"{workdir}/backing.qcow2", 16 * MEBI)
    with open(backing, "r+b") as stream:
        stream.truncate(4 * MEBI)
    with lib_machine.loop_device(backing, *["--read-only"] * (how == "losetup")) as device:
        if how == "blockdev":
            lib_machine.need(lib_machine.said("blockdev", "--setro", device))
        cannot_be_written(workdir, device, "Read-only file system")
        if how == "blockdev":
            subprocess.run(["blockdev", "--setrw", device], check=True)
            with Server(workdir, device) as server:
                handle = server.connect()
                handle.pwrite(b"x" * 65536, 0)
                handle.shutdown()


@pytest.mark.parametrize("seal", SEALS)
def test_sealed_memory(workdir, seal):
    image = lib_tools.create(f"{workdir}/plain.qcow2", 16 * MEBI)
    fd = os.memfd_create("image", os.MFD_ALLOW_SEALING)
    try:
        with open(image, "rb") as stream:
            os.write(fd, stream.read())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS[seal])
        cannot_be_written(workdir, f"/proc/{os.getpid()}/fd/{fd}", "Operation not permitted")
    finally:
        os.close(fd)


def test_memory_that_is_not_sealed(workdir):
    image = lib_tools.create(f"{workdir}/plain.qcow2", 16 * MEBI)
    fd = os.memfd_create("image", os.MFD_ALLOW_SEALING)
    try:
        with open(image, "rb") as stream:
            os.write(fd, stream.read())
        with Server(workdir, ("m", f"/proc/{os.getpid()}/fd/{fd}")) as server:
            handle = server.connect()
            handle.pwrite(b"x" * 65536, 0)
            handle.shutdown()
    finally:
        os.close(fd)


@pytest.mark.parametrize("attribute", ["i", "a"])
def test_immutable_file(workdir, attribute):
    image = lib_tools.create(f"{workdir}/disk.qcow2", 16 * MEBI)
    if subprocess.run(["chattr", f"+{attribute}", image], capture_output=True,
                      check=False).returncode != 0:
        pytest.skip("no file attributes here")
    try:
        cannot_be_written(workdir, image, "Operation not permitted")
    finally:
        subprocess.run(["chattr", f"-{attribute}", image], check=True)


def test_read_only_file_system(workdir):
    with lib_machine.mounted(f"{workdir}/mounted", "-t", "tmpfs", "lazycow-test") as mounted:
        image = lib_tools.create(f"{mounted}/disk.qcow2", 16 * MEBI)
        lib_tools.run("mount", "-o", "remount,ro", mounted)
        cannot_be_written(workdir, image, "Read-only file system")


def test_file_that_others_may_only_read(workdir):
    """As a user whom the file's mode lets read and no more."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another user")
    image = lib_tools.create(f"{workdir}/disk.qcow2", 16 * MEBI)
    os.chmod(image, 0o444)
    os.chmod(workdir, 0o777)
    binary = f"{workdir}/lazycow"
    subprocess.run(["cp", lib_server.BINARY, binary], check=True)
    for words in (["serve", "-k", f"{workdir}/refused", image], ["check", "-r", "all", image]):
        result = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                 binary, *words], capture_output=True, text=True, check=False,
                                timeout=60, env=lib_server.sanitizer_environment())
        if "setpriv" in result.stderr or "cannot execute" in result.stderr:
            pytest.skip(result.stderr.strip())
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result
        assert "Permission denied" in result.stderr and "read-only" in result.stderr, result
