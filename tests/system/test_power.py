# SPDX-License-Identifier: Apache-2.0
"""The power goes under the real server, a few hundred times; `make powercut` does it for longer."""
import os
import subprocess
import sys

import pytest

import lib_server
import lib_tools

POWER = os.path.join(lib_server.ROOT, "tests", "power")
# Of scenarios that are the same each time, as far as threads and clients let them.
FIXED_SEED = 20240229

pytestmark = [
    pytest.mark.lazycow_only,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"),
                       reason="no /dev/fuse: the file system that records cannot be mounted"),
]


def powercut(*words):
    return lib_tools.run(sys.executable, os.path.join(POWER, "powercut.py"), *words, timeout=100,
                         codes=(0, 1))


@pytest.mark.parametrize("which", ("fixed", "fresh"))
def test_power_cuts(workdir, seed, which):
    keep = os.path.join(workdir, "failed")
    text = powercut("--seed", FIXED_SEED if which == "fixed" else seed, "--keep", keep,
                    "--minutes", 0.3 * lib_tools.SCALE, "--cuts", 20)
    assert ", 0 failed, " in text, text
