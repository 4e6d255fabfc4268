# SPDX-License-Identifier: Apache-2.0
"""Images on block devices: space that is not fresh, and an end that does not move."""
import errno
import os
import subprocess

import pytest

import lib_offline
import lib_tools
from lib_broken import attempt
from lib_server import Server

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


@pytest.fixture
def device(workdir):
    """A loop device of 256 MiB, full of noise."""
    backing = f"{workdir}/device"
    with open(backing, "wb") as stream:
        stream.write(os.urandom(MEBI) * 256)
    made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True,
                          check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


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
        # What is given up can be used again.
        handle.trim(4 * MEBI, MEBI)
        handle.flush()
        handle.flush()
        handle.pwrite(b"\xfd" * MEBI, 900 * MEBI)
        handle.flush()
        assert handle.pread(MEBI, 900 * MEBI) == b"\xfd" * MEBI
        handle.shutdown()
    lib_tools.check_clean(device)
