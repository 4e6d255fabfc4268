# SPDX-License-Identifier: Apache-2.0
"""Features of this machine or container. A test that needs a missing one is skipped with the
reason; no other test is skipped."""
import contextlib
import ctypes
import functools
import os
import socket
import subprocess
import tempfile

SYS_IO_URING_SETUP = 425
IO_URING_PARAMS_BYTES = 120


def said(*words):
    """The first line of the words' complaint where they fail, else nothing."""
    result = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode == 0:
        return ""
    return (result.stdout.splitlines() or [f"exit code {result.returncode}"])[0]


@functools.lru_cache
def mount_obstacle():
    """Why nothing can be mounted here, or nothing."""
    with tempfile.TemporaryDirectory(prefix="lazycow-") as path:
        obstacle = said("mount", "-t", "tmpfs", "lazycow-test", path)
        if not obstacle:
            subprocess.run(["umount", "--lazy", path], check=False)
    return f"nothing can be mounted here: {obstacle}" if obstacle else ""


@functools.lru_cache
def fuse_obstacle():
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no file systems of our own here: {error}"
    return mount_obstacle()


@functools.lru_cache
def io_uring_obstacle():
    """Containers' profiles often forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_IO_URING_SETUP, 1, ctypes.create_string_buffer(IO_URING_PARAMS_BYTES))
    if fd < 0:
        return f"no io_uring here: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return ""


def possible_aio(aio):
    """Returns a backend for a run that drew one that is not available."""
    return "threads" if aio == "io_uring" and io_uring_obstacle() else aio


@functools.lru_cache
def ptrace_obstacle():
    obstacle = said("strace", "-o", "/dev/null", "true")
    return f"nothing can be traced here: {obstacle}" if obstacle else ""


@functools.lru_cache
def vsock_obstacle():
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
            return ""
    except OSError as error:
        return f"no vsock here: {error}"


@functools.lru_cache
def network_obstacle():
    obstacle = said("unshare", "--net", "ip", "link", "set", "lo", "up")
    return f"no network of our own here: {obstacle}" if obstacle else ""


def skip(reason):
    import pytest  # here, for what also runs without it: make powercut
    pytest.skip(reason)


def need(obstacle):
    if obstacle:
        skip(obstacle)


@contextlib.contextmanager
def mounted(path, *words):
    """A directory with a file system mounted on it; words are those of mount."""
    need(mount_obstacle())
    os.mkdir(path)
    obstacle = said("mount", *words, path)
    if obstacle and "loop" in words:
        skip(f"no loop devices here: {obstacle}")
    assert not obstacle, obstacle
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)  # whatever still runs on it


def set_writable(device):
    obstacle = said("blockdev", "--setrw", device)
    stuck = subprocess.run(["blockdev", "--getro", device], stdout=subprocess.PIPE, check=True)
    need(obstacle if stuck.stdout.strip() == b"1" else "")


@contextlib.contextmanager
def loop_device(backing, *options):
    """A block device over a file."""
    made = subprocess.run(["losetup", "--find", "--show", *options, backing], check=False,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode != 0:
        skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        # Of a device that was set read-only the next user inherits that.
        if "--read-only" not in options:
            set_writable(device)
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
