# SPDX-License-Identifier: Apache-2.0
"""--pid-file: one server a file, and no file that is something else is overwritten."""
import os
import pwd
import signal
import socket
import subprocess
import time

import pytest

import lib_tools
from lib_server import (BINARY, START_SECONDS, STOP_SECONDS, Server, sanitizer_environment)

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", MEBI)


@pytest.fixture
def other(workdir):
    return lib_tools.create(f"{workdir}/other.qcow2", MEBI)


def number_in(path):
    with open(path, encoding="ascii") as stream:
        return int(stream.read())


def refused(workdir, image, path, *options):
    """Serves; must be refused with one line, which is returned, and leave no socket."""
    socket_path = f"{workdir}/refused"
    done = subprocess.run([BINARY, "serve", "-k", socket_path, "--pid-file", path, *options, image],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=sanitizer_environment(), timeout=START_SECONDS, check=False)
    text = done.stderr.decode()
    assert done.returncode == 1 and done.stdout == b"" and text.count("\n") == 1, text
    assert path in text, text
    assert not os.path.exists(socket_path)
    return text


def test_second_server_is_refused(workdir, image, other):
    path = f"{workdir}/pid"
    with Server(workdir, image, options=["--pid-file", path]) as server:
        assert f"process {server.pid} runs with it" in refused(workdir, other, path)
        assert number_in(path) == server.pid
        os.symlink(path, f"{workdir}/link")
        os.link(path, f"{workdir}/hard")
        for alias in ("link", "hard"):
            assert str(server.pid) in refused(workdir, other, f"{workdir}/{alias}")
        assert number_in(path) == server.pid
    assert not os.path.exists(path)


def test_removes_only_its_own(workdir, image, other):
    path = f"{workdir}/pid"
    with Server(workdir, image, options=["--pid-file", path]):
        os.unlink(path)
        with Server(workdir, other, options=["--pid-file", path]) as second:
            assert number_in(path) == second.pid
            os.rename(path, f"{workdir}/moved")
            with open(path, "w", encoding="ascii") as stream:
                stream.write("1\n")
        assert number_in(path) == 1
    assert number_in(path) == 1


@pytest.mark.parametrize("left", ["", "1\n", "99999999", " 77\r\n"],
                         ids=["empty", "line", "no line end", "spaces"])
def test_left_by_a_dead_process(workdir, image, left):
    path = f"{workdir}/pid"
    with open(path, "w", encoding="ascii", newline="") as stream:
        stream.write(left)
    with Server(workdir, image, options=["--pid-file", path]) as server:
        assert number_in(path) == server.pid
    assert not os.path.exists(path)


def test_after_a_kill(workdir, image):
    path = f"{workdir}/pid"
    server = Server(workdir, image, options=["--pid-file", path])
    server.kill()
    assert number_in(path) == server.pid
    with Server(workdir, image, options=["--pid-file", path]) as server:
        assert number_in(path) == server.pid


def test_link_to_a_file_that_is_not_there(workdir, image):
    os.symlink(f"{workdir}/target", f"{workdir}/link")
    for _ in range(2):
        with Server(workdir, image, options=["--pid-file", f"{workdir}/link"]) as server:
            assert number_in(f"{workdir}/target") == server.pid
        assert os.path.islink(f"{workdir}/link") and not os.path.exists(f"{workdir}/target")


@pytest.mark.parametrize("kind", ["itself", "overlay", "link", "text", "long", "directory", "fifo",
                                  "socket", "device", "missing directory"])
def test_no_pid_file(workdir, image, other, kind):
    path = f"{workdir}/{kind}"
    if kind == "itself":
        path = image
    elif kind == "overlay":
        path = lib_tools.create(path, MEBI, base=image, base_format="qcow2")
    elif kind == "link":
        os.symlink(other, path)
    elif kind in ("text", "long"):
        with open(path, "w", encoding="ascii") as stream:
            stream.write("12 13\n" if kind == "text" else "1" * 4096)
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
    elif kind == "device":
        path = "/dev/null"
    else:
        path += "/pid"
    before = [lib_tools.digest(name) for name in (image, other)]
    stat_before = os.stat(path) if os.path.exists(path) else None
    refused(workdir, image, path)
    assert [lib_tools.digest(name) for name in (image, other)] == before
    if stat_before is not None:
        after = os.stat(path)
        assert (after.st_ino, after.st_size, after.st_mode) == (
            stat_before.st_ino, stat_before.st_size, stat_before.st_mode)
    lib_tools.check_clean(image)


def test_pid_file_and_socket_are_one(workdir, image):
    path = f"{workdir}/one"
    done = subprocess.run([BINARY, "serve", "-k", path, "--pid-file", path, image],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=sanitizer_environment(), timeout=START_SECONDS, check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and done.stdout == b""
    assert b"is a socket" in done.stderr
    assert not os.path.lexists(path)


def test_failed_start_leaves_no_pid_file(workdir, image):
    path = f"{workdir}/pid"
    if os.geteuid() == 0:
        refused_text = subprocess.run(
            [BINARY, "serve", "-k", f"{workdir}/s", "--pid-file", path, "--user", "nosuchuser",
             image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=sanitizer_environment(), timeout=START_SECONDS, check=False)
        assert refused_text.returncode == 1 and b"nosuchuser" in refused_text.stdout
    assert not os.path.exists(path) and not os.path.exists(f"{workdir}/s")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_dropped_privileges(workdir, image, other):
    """A server that may not remove the file any more empties it: the next server takes it over."""
    path = f"{workdir}/pid"
    os.chmod(workdir, 0o755)
    assert pwd.getpwnam("nobody")
    with Server(workdir, image, options=["--user=nobody", "--pid-file", path]) as server:
        assert number_in(path) == server.pid
        assert str(server.pid) in refused(workdir, other, path)
    assert os.path.getsize(path) == 0
    with Server(workdir, image, options=["--pid-file", path]) as server:
        assert number_in(path) == server.pid
    assert not os.path.exists(path)


def test_shared_with_qemu_nbd(workdir, image, other):
    path = f"{workdir}/pid"
    with Server(workdir, image, options=["--pid-file", path]):
        done = subprocess.run(["qemu-nbd", "-t", "-k", f"{workdir}/q", "--pid-file", path, "-f",
                               "qcow2", other], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              timeout=START_SECONDS, check=False)
        assert done.returncode == 1
    process = subprocess.Popen(["qemu-nbd", "-t", "-k", f"{workdir}/q", "--pid-file", path, "-f",
                                "qcow2", other], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not os.path.exists(path) or os.path.getsize(path) == 0:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        assert str(process.pid) in refused(workdir, image, path)
        assert number_in(path) == process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
