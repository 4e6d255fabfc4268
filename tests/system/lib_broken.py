# SPDX-License-Identifier: Apache-2.0
"""Serving images that may be refused, or that may answer with errors."""
import errno
import os

import nbd

import lib_tools
from lib_server import Server, refused

MEBI = 1 << 20
SECTOR = 512


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


def read_outcome(handle, offset, length):
    """The bytes, or the error number."""
    try:
        return bytes(handle.pread(length, offset))
    except nbd.Error as error:
        return getattr(errno, error.errno)


def sectors(content):
    """All sectors of the content, the last one filled up with zeros."""
    return {content[at:at + SECTOR].ljust(SECTOR, b"\0") for at in range(0, len(content), SECTOR)}


def known_sectors(*files, content=b""):
    """The sectors that a damaged image may answer with, whatever its tables tell: those of its
    files, zeros, and those of its compressed clusters (content)."""
    known = sectors(content) | {bytes(SECTOR)}
    for path in files:
        with open(path, "rb") as stream:
            known |= sectors(stream.read())
    return known


def read_steadily(handle, places, known=None):
    """Reads each place (offset, length) twice in a row, forwards and backwards, and so after all
    others, too. The outcome is one error or one content each time; the content is known. Returns
    the outcomes by offset."""
    outcomes = {}
    for order in (places, places[::-1]):
        for offset, length in order:
            for _ in range(2):
                outcome = read_outcome(handle, offset, length)
                expected = outcomes.setdefault(offset, outcome)
                assert outcome == expected, f"offset {offset}: {outcome!r:.80}, not {expected!r:.80}"
            if known is not None and isinstance(outcome, bytes) and offset % SECTOR == 0:
                foreign = [at for at in range(0, length - length % SECTOR, SECTOR)
                           if outcome[at:at + SECTOR] not in known]
                assert not foreign, f"offset {offset}: bytes that no file has, at {foreign[:4]}"
    return outcomes


def survive(workdir, image, content=b"", backing=()):
    """Serves the image if possible, and uses it: any error, no crash, no hang, no foreign bytes.
    content: its content before the damage, if that is not in its file as it is."""
    known = known_sectors(image, *backing, content=content)
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
        step = max(size // 16 // SECTOR * SECTOR, SECTOR)
        read_steadily(handle, [(offset, min(100000, size - offset))
                               for offset in range(0, size, step)][:64], known)
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
