# SPDX-License-Identifier: Apache-2.0
"""Serving images that may be refused, or that may answer with errors."""
import errno
import os

import nbd

import lib_tools
from lib_server import Server, refused

MEBI = 1 << 20


def serve_refused(workdir, image, *options):
    """The one line that refuses the image; it names the file, and the file stays as it is."""
    before = lib_tools.digest(image)
    line = refused(workdir, "-k", "s", *options, image)
    assert os.path.basename(image) in line, line
    assert lib_tools.digest(image) == before
    return line


def overlay(workdir, base, base_format="qcow2", name="disk.qcow2", **options):
    return lib_tools.create(f"{workdir}/{name}", None, base, base_format, **options)


def attempt(function, *arguments):
    """0, or the error number."""
    try:
        function(*arguments)
        return 0
    except nbd.Error as error:
        return getattr(errno, error.errno)


def survive(workdir, image):
    """Serves it if it can be served, and uses it: any error, no crash, no hang."""
    server = Server(workdir, image, wait=False, options=["--clean-after=1"])
    try:
        try:
            server.wait_ready()
        except AssertionError:
            server.check_sanitizers()
            assert server.process.returncode == 1, server.stderr_tail()
            assert len(server.stderr().splitlines()) == 1, server.stderr_tail()
            return
        handle = server.connect(strict=False)
        size = min(handle.get_size(), 64 * MEBI)
        writable = not handle.is_read_only()
        for offset in range(0, size, max(size // 16, 1)):
            length = min(100000, size - offset)
            attempt(handle.pread, length, offset)
            attempt(handle.block_status, length, offset, lambda *_: 0)
            if writable:
                attempt(handle.pwrite, b"z" * min(length, 3000), offset)
                attempt(handle.zero, length // 2, offset + length // 3)
                attempt(handle.trim, length, offset)
                attempt(handle.pwrite, b"q" * length, offset)
        attempt(handle.flush)
        handle.shutdown()
        server.stop(codes=(0, 1))
    finally:
        server.kill()
