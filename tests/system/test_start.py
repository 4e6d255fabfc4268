# SPDX-License-Identifier: Apache-2.0
"""A start that has to wait: for a lock, a FIFO, a file system that hangs. The wait is bounded, or
ended by SIGTERM, and no other user of the host can prolong it."""
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

import lib_tls
import lib_tools
from lib_server import BINARY, START_SECONDS, STOP_SECONDS, Server, sanitizer_environment

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", MEBI)


def start(*arguments):
    return subprocess.Popen([BINARY, "serve", *arguments], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=sanitizer_environment())


def refused(*arguments):
    process = start(*arguments)
    try:
        out, text = process.communicate(timeout=START_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1 and out == b"" and text.count(b"\n") == 1, text
    return text.decode()


def overlay(workdir, base):
    """An image over a backing file that is not looked at."""
    path = f"{workdir}/overlay.qcow2"
    lib_tools.qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", path, MEBI)
    return path


def lock_path(path):
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lazycow-lock")


# ---- The lock beside a Unix socket --------------------------------------------------------------

def test_lock_of_the_directory_holds_nobody_up(workdir, image):
    directory = os.open(workdir, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    with Server(workdir, image) as server:
        assert server.connect().get_size() == MEBI
    os.close(directory)


def test_nothing_is_left_beside_the_socket(workdir, image):
    before = set(os.listdir(workdir))
    with Server(workdir, image) as server:
        left = set(os.listdir(workdir)) - before
        assert left == {os.path.basename(server.socket), os.path.basename(server.stderr_path)}
    assert os.path.basename(server.socket) not in os.listdir(workdir)


def test_lock_held_by_a_server_that_hangs(workdir, image):
    path = f"{workdir}/socket"
    descriptor = os.open(lock_path(path), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    text = refused("-k", path, image)
    assert lock_path(path) in text and "is locked by another process" in text
    assert os.path.exists(lock_path(path)) and not os.path.exists(path)
    os.close(descriptor)
    # Left by a server that was killed: taken.
    with Server(workdir, image, socket_path=path):
        assert not os.path.exists(lock_path(path))


def test_signal_ends_the_wait_for_the_lock(workdir, image):
    path = f"{workdir}/socket"
    descriptor = os.open(lock_path(path), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    process = start("-k", path, image)
    deadline = time.monotonic() + START_SECONDS
    # Pending before it waits, or while it does: both end it, unless it has given up before.
    while signals_blocked(process.pid) is False:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 0
    assert not os.path.exists(path)
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["text", "link", "hard link", "directory", "fifo"])
def test_no_lock_file(workdir, image, kind):
    """A file at the place of the lock file that is no lock file stays there."""
    path = f"{workdir}/socket"
    lock = lock_path(path)
    if kind == "text":
        with open(lock, "wb") as stream:
            stream.write(b"precious")
    elif kind == "link":
        os.symlink(image, lock)
    elif kind == "hard link":
        with open(f"{workdir}/empty", "wb"):
            pass
        os.link(f"{workdir}/empty", lock)
    elif kind == "directory":
        os.mkdir(lock)
    else:
        os.mkfifo(lock)
    before = os.lstat(lock)
    assert lock in refused("-k", path, image)
    assert os.lstat(lock)[:4] == before[:4]
    assert not os.path.exists(path)
    lib_tools.check_clean(image)


def test_many_start_at_once(workdir):
    """On a stale socket: one server has it in the end, and only that one prints the ready line."""
    path = f"{workdir}/socket"
    for _ in range(lib_tools.scaled(5)):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
        images = [lib_tools.create(f"{workdir}/{number}.qcow2", MEBI) for number in range(6)]
        processes = [start("-k", path, name) for name in images]
        lines = {}

        def first_line(process):
            lines[process.pid] = process.stdout.readline()

        threads = [threading.Thread(target=first_line, args=[process]) for process in processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(START_SECONDS)
        winners = [process for process in processes if lines[process.pid]]
        assert len(winners) == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert client.recv(8) == b"NBDMAGIC"
        winners[0].send_signal(signal.SIGTERM)
        for process in processes:
            process.communicate(timeout=STOP_SECONDS)
            assert process.returncode == (0 if process in winners else 1)
        assert not os.path.exists(path)


@pytest.mark.parametrize("kind", ["image", "empty", "directory", "fifo", "link to an image",
                                  "link to a stale socket", "datagram socket"])
def test_socket_over_something_else(workdir, image, kind, request):
    path = f"{workdir}/path"
    if kind == "image":
        path = image
    elif kind == "empty":
        with open(path, "wb"):
            pass
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to an image":
        os.symlink(image, path)
    elif kind == "link to a stale socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"{workdir}/stale")
        os.symlink(f"{workdir}/stale", path)
    else:
        datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagram.bind(path)
        request.addfinalizer(datagram.close)
    before = os.lstat(path)
    digest = lib_tools.digest(image)
    assert path in refused("-k", path, image)
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    assert lib_tools.digest(image) == digest


# ---- Files that would be waited for -------------------------------------------------------------

@pytest.mark.parametrize("option", ["image", "backing", "--tls-psk", "server-cert.pem",
                                    "server-key.pem", "ca-cert.pem", "ca-crl.pem"])
def test_fifo(workdir, image, option):
    fifo = f"{workdir}/fifo"
    os.mkfifo(fifo)
    arguments = ["-k", f"{workdir}/socket"]
    if option == "image":
        arguments += [fifo]
    elif option == "backing":
        arguments += [overlay(workdir, fifo)]
    elif option == "--tls-psk":
        arguments += [option, fifo, image]
    else:
        keys = lib_tls.Authority(f"{workdir}/ca").issue("server", f"{workdir}/keys", "server")
        fifo = f"{keys}/{option}"
        if os.path.exists(fifo):
            os.unlink(fifo)
        os.mkfifo(fifo)
        arguments += ["--tls-certificates", keys, image]
    assert fifo in refused(*arguments)


# ---- A file system that hangs -------------------------------------------------------------------

def signals_blocked(pid):
    """Returns true when all threads block SIGTERM."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("SigBlk:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def waits_for_fuse(pid):
    try:
        with open(f"/proc/{pid}/stack", encoding="ascii") as stack:
            return "fuse" in stack.read()
    except OSError:
        return False


@pytest.fixture
def hanging(workdir):
    """A mount point of a FUSE file system that never answers."""
    point = f"{workdir}/hanging"
    os.mkdir(point)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("no FUSE here")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"none", point.encode(), b"fuse", 0, options) != 0:
        os.close(device)
        pytest.skip("FUSE cannot be mounted here")
    yield point
    os.close(device)  # answers everybody who waits
    libc.umount2(point.encode(), 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["image", "backing", "key"])
def test_signal_while_a_file_system_hangs(workdir, image, hanging, what, signal_number):
    arguments = ["-k", f"{workdir}/socket", f"--pid-file={workdir}/pid"]
    if what == "image":
        arguments += [f"{hanging}/disk.qcow2"]
    elif what == "backing":
        arguments += [overlay(workdir, f"{hanging}/base")]
    else:
        arguments += ["--tls-psk", f"{hanging}/keys", image]
    process = start(*arguments)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not waits_for_fuse(process.pid):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal_number)
        _, text = process.communicate(timeout=STOP_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0
    assert text == b"lazycow: stopped before anything was served\n"
    assert not os.path.exists(f"{workdir}/socket") and not os.path.exists(f"{workdir}/pid")
