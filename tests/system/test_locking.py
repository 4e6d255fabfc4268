# SPDX-License-Identifier: Apache-2.0
"""An image in use, and file systems without locks."""
import errno
import os
import socket
import subprocess
import time

import pytest

import lib_tools
from lib_server import BINARY, PLAIN_BINARY, Server, refused
from lib_tools import run

pytestmark = pytest.mark.lazycow_only

# Stands between the program and the C library, as a file system whose locks fail.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int pass(const char *name, int fd, int command, void *argument)
{
    int (*real)(int, int, void *) = (int (*)(int, int, void *))dlsym(RTLD_NEXT, name);

    if (command == F_OFD_SETLK || command == F_OFD_GETLK) {
        errno = atoi(getenv("LOCK_ERROR"));
        return -1;
    }
    return real(fd, command, argument);
}

#define SHIM(name)                                                                                 \
    int name(int fd, int command, ...)                                                             \
    {                                                                                              \
        va_list list;                                                                              \
        va_start(list, command);                                                                   \
        void *argument = va_arg(list, void *);                                                     \
        va_end(list);                                                                              \
        return pass(#name, fd, command, argument);                                                 \
    }
SHIM(fcntl)
SHIM(fcntl64)
"""


@pytest.fixture
def without_locks(workdir):
    """Makes the environment in which each lock fails with an error."""
    with open(f"{workdir}/shim.c", "w", encoding="ascii") as source:
        source.write(SHIM)
    run("gcc", "-shared", "-fPIC", "-o", f"{workdir}/shim.so", f"{workdir}/shim.c", "-ldl")
    return lambda error: {"LD_PRELOAD": f"{workdir}/shim.so", "LOCK_ERROR": str(error)}


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", 1 << 20)


def offline(environment, *words, codes=(0,)):
    return run(PLAIN_BINARY, *words, codes=codes, env={**os.environ, **environment})


NO_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


@pytest.mark.parametrize("error", NO_LOCKS)
def test_no_locks(workdir, image, without_locks, error):
    """With auto there is a warning, with on an error, with off neither."""
    environment = without_locks(error)
    commands = [["info", image], ["check", image], ["check", "-r", "all", image],
                ["create", f"{workdir}/new.qcow2", "1M"],
                ["create", "-b", image, "-F", "qcow2", f"{workdir}/new.qcow2"]]
    for command, *words in commands:
        assert "has no locks" in offline(environment, command, *words)
        assert "has no locks" in offline(environment, command, "--locking=auto", *words)
        assert "lock" not in offline(environment, command, "--locking=off", *words)
        assert "leave --locking=on out" in offline(environment, command, "--locking=on", *words,
                                                   codes=(1,))
    for options, warned in ([], True), (["--locking=auto"], True), (["--locking=off"], False):
        with Server(workdir, image, plain=True, environment=environment,
                    options=options) as server:
            handle = server.connect()
            handle.pwrite(b"x" * 512, 0)
            handle.shutdown()
        with open(server.stderr_path, encoding="utf-8") as log:
            assert ("has no locks" in log.read()) == warned
    environment["LSAN_OPTIONS"] = "detect_leaks=0"
    text = offline(environment, "serve", f"--socket={workdir}/s", "--locking=on", image, codes=(1,))
    assert "leave --locking=on out" in text


def test_a_lock_that_fails_for_another_reason(image, without_locks):
    text = offline(without_locks(errno.EIO), "info", image, codes=(1,))
    assert "Input/output error" in text and "--locking=off" in text


def test_locking_is_one_of_three(workdir, image):
    for command in "info", "check":
        text = run(BINARY, command, "--locking=maybe", image, codes=(1,))
        assert "not auto, on or off" in text
    assert "auto, on or off" in refused(workdir, "--locking=maybe", image)


@pytest.fixture
def writer(workdir, image):
    """qemu-nbd has the image open for writing."""
    process = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", f"{workdir}/qemu", image])
    while not os.path.exists(f"{workdir}/qemu"):
        assert process.poll() is None
        time.sleep(0.01)
    # It listens first and opens the image then; it greets clients when it has both.
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{workdir}/qemu")
        assert client.recv(8) == b"NBDMAGIC"
    yield process
    process.terminate()
    process.wait()


def test_an_image_in_use(workdir, image, writer):
    who = f"in use by qemu-nbd (process {writer.pid}), which writes to it"
    listen = f"--socket={workdir}/s"
    overlay = f"{workdir}/new.qcow2"
    for text, advice in [
            (run(BINARY, "info", image, codes=(1,)), "-U (--force-share)"),
            (run(BINARY, "check", image, codes=(1,)), "-U (--force-share)"),
            (run(BINARY, "check", "-r", "all", image, codes=(1,)), "stop that"),
            (run(BINARY, "create", image, "1M", codes=(1,)), "stop that"),
            (run(BINARY, "create", "-q", "-b", image, "-F", "qcow2", overlay, codes=(1,)), "-u"),
            (refused(workdir, listen, image), "--read-only (-r), and --force-share (-U)"),
            (refused(workdir, listen, "-r", image), "--force-share (-U)"),
    ]:
        assert who in text and advice in text
    run(BINARY, "info", "-U", image)
    run(BINARY, "check", "-U", image)
    with Server(workdir, image, read_only=True, options=["-U"]) as server:
        server.connect().shutdown()


def test_a_backing_file_in_use(workdir, image):
    overlay = lib_tools.create(f"{workdir}/top.qcow2", None, image, "qcow2")
    with Server(workdir, image) as server:
        line = refused(workdir, f"--socket={workdir}/other", overlay)
    assert f"in use by {os.path.basename(BINARY)[:15]} (process {server.pid})" in line
    assert "--force-share (-r -U)" in line


def test_a_reader(workdir, image):
    with Server(workdir, image, read_only=True) as server:
        line = refused(workdir, f"--socket={workdir}/other", image)
    assert f"(process {server.pid}), which reads it" in line


def test_one_image_twice_in_one_server(workdir, image):
    os.symlink(image, f"{workdir}/link.qcow2")
    os.link(image, f"{workdir}/hard.qcow2")
    for other in image, f"{workdir}/link.qcow2", f"{workdir}/hard.qcow2":
        line = refused(workdir, f"--socket={workdir}/s", f"a={image}", f"b={other}")
        assert "another process" not in line and "twice" in line
