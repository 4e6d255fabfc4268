# SPDX-License-Identifier: Apache-2.0
"""Standard descriptors of a new process that are closed, or take no output."""
import itertools
import os
import signal
import socket
import struct
import subprocess
import time

import nbd
import pytest

import lib_tools
from lib_server import BINARY, START_SECONDS, STOP_SECONDS, sanitizer_environment

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SUBSETS = [subset for length in range(4) for subset in itertools.combinations(range(3), length)]


running = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    for process in running:
        process.kill()
        process.wait()
    running.clear()


def close_all(descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


def start(arguments, closed, **more):
    """Starts lazycow with some of the standard descriptors closed, the others on /dev/null."""
    running.append(subprocess.Popen([BINARY, *arguments], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    env=sanitizer_environment(),
                                    preexec_fn=lambda: close_all(closed), **more))
    return running[-1]


def end(process):
    try:
        return process.wait(timeout=STOP_SECONDS)
    finally:
        process.kill()


def wait_for_socket(path, process):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.returncode
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("no socket")


def write(path, content, offset):
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///disk?socket={path}")
    handle.pwrite(content, offset)
    handle.flush()
    handle.shutdown()


@pytest.fixture
def image(workdir):
    path = lib_tools.create(f"{workdir}/disk.qcow2", 8 * MEBI)
    lib_tools.qemu_io(path, "write -P 1 0 64k")
    return path


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
def test_serve_with_closed_descriptors(workdir, image, closed):
    path = f"{workdir}/socket"
    # All that can be said is said: the more lines, the more would hit the image.
    process = start(["serve", "-v", "-k", path, image], closed)
    wait_for_socket(path, process)
    for number in range(3):
        assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"
    lib_tools.run("nbdcopy", "--", f"nbd+unix:///disk?socket={path}", "null:")
    write(path, b"x" * 65536, MEBI)
    process.send_signal(signal.SIGTERM)
    assert end(process) == 0
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 1 0 64k")
    lib_tools.qemu_io(image, f"read -P {ord('x')} 1M 64k")


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
@pytest.mark.parametrize("command", [
    ["check"], ["check", "-r", "all"], ["check", "--output=json"], ["info"],
    ["info", "--output=json", "--backing-chain"], ["check", "--help"], ["serve", "--help"],
    ["create", "--help"], ["serve", "-h"]], ids=" ".join)
def test_commands_with_closed_descriptors(image, command, closed):
    before = lib_tools.digest(image)
    assert end(start([*command, image], closed)) == 0
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
def test_create_with_closed_descriptors(workdir, image, closed):
    before = lib_tools.digest(image)
    overlay = f"{workdir}/overlay.qcow2"
    assert end(start(["create", "-b", image, "-F", "qcow2", overlay], closed)) == 0
    lib_tools.check_clean(overlay)
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
def test_errors_with_closed_descriptors(workdir, image, closed):
    """An error that has nowhere to be printed is still an exit code, and prints into no image."""
    before = lib_tools.digest(image)
    for arguments in (["serve", image, f"{workdir}/none"], ["create", image, "-o", "x=y", "1M"],
                      ["info", f"{workdir}/none"], ["check", "-f", "raw", image], ["nonsense"], []):
        assert end(start(arguments, closed)) not in (0, -signal.SIGABRT), arguments
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("closed", SUBSETS, ids=str)
def test_activated_with_closed_descriptors(workdir, image, closed):
    """The sockets of systemd begin at 3, whatever is missing below."""
    path = f"{workdir}/socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        descriptor = listening.fileno()
        script = ("import os, sys\n"
                  f"os.dup2({descriptor}, 3)\n"
                  f"[os.close(n) for n in {closed}]\n"
                  "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
                  f"os.execv({BINARY!r}, ['lazycow', 'serve', '-v', {image!r}])\n")
        process = subprocess.Popen(["python3", "-c", script], pass_fds=[descriptor],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=sanitizer_environment())
    running.append(process)
    lib_tools.run("nbdinfo", f"nbd+unix:///disk?socket={path}")
    process.send_signal(signal.SIGTERM)
    assert end(process) == 0
    lib_tools.check_clean(image)


# ---- Output that cannot be written --------------------------------------------------------------

COMMANDS = [["info"], ["info", "--output=json"], ["check"], ["check", "--output=json"],
            ["serve", "--help"], ["info", "--help"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("full", [True, False], ids=["full", "closed pipe"])
def test_lost_output_is_an_error(image, command, full):
    code, text = run_without_output([*command, image], full)
    assert code == 1
    assert text.startswith("lazycow: cannot write to standard output: ") and text.count("\n") == 1


@pytest.mark.parametrize("full", [True, False], ids=["full", "closed pipe"])
def test_create_without_output_makes_nothing(workdir, full):
    path = f"{workdir}/new.qcow2"
    code, text = run_without_output(["create", path, "1M"], full)
    assert code == 1 and "cannot write to standard output" in text
    assert not os.path.exists(path)
    assert run_without_output(["create", "-q", path, "1M"], full) == (0, "")
    lib_tools.check_clean(path)


def run_without_output(arguments, full):
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run([BINARY, *arguments], stdout=output, stderr=subprocess.PIPE,
                              env=sanitizer_environment(), timeout=STOP_SECONDS, check=False,
                              restore_signals=True)
    finally:
        os.close(output)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("full", [True, False], ids=["full", "closed pipe"])
def test_serve_without_output(workdir, image, full):
    """The lines that say where we listen are lost, the server is not."""
    path = f"{workdir}/socket"
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    process = subprocess.Popen([BINARY, "serve", "-k", path, image], stdout=output, stderr=output,
                               env=sanitizer_environment())
    running.append(process)
    os.close(output)
    wait_for_socket(path, process)
    write(path, b"x", 0)
    process.send_signal(signal.SIGTERM)
    assert end(process) == 0
    lib_tools.check_clean(image)


def leak(image, cluster):
    """Counts a reference to a cluster that nothing refers to."""
    with open(image, "r+b") as file:
        file.truncate((cluster + 1) << 16)
        file.seek(48)
        file.seek(struct.unpack(">Q", file.read(8))[0])
        file.seek(struct.unpack(">Q", file.read(8))[0] + 2 * cluster)
        file.write(b"\0\1")


def test_repair_survives_a_closed_pipe(image):
    """Messages of a repair go to standard error; a reader that is gone must not end it half way."""
    leak(image, 100)
    assert lib_tools.run(BINARY, "check", image, codes=(3,))
    reader, output = os.pipe()
    os.close(reader)
    done = subprocess.run([BINARY, "check", "-r", "all", image], stdout=subprocess.DEVNULL,
                          stderr=output, env=sanitizer_environment(), timeout=STOP_SECONDS,
                          check=False)
    os.close(output)
    assert done.returncode == 0
    lib_tools.check_clean(image)
