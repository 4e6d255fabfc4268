# SPDX-License-Identifier: Apache-2.0
"""The power goes under the real server, a few hundred times, and the server is killed;
`make powercut` and `make sigkill` do so for longer."""
import os
import sys

import pytest

import lib_machine
import lib_server
import lib_tools

POWER = os.path.join(lib_server.ROOT, "tests", "power")
# Of scenarios that are the same each time, as far as threads and clients let them.
FIXED_SEED = 20240229

# The scenario that runs when the time is up is still ended.
LIMIT_SECONDS = 500 * max(1, lib_tools.SCALE)

pytestmark = [pytest.mark.lazycow_only, pytest.mark.slow,
              pytest.mark.limit(int(LIMIT_SECONDS) + 10)]


def power(program, *words):
    """Returns the output of the program, which ends with 1 when it found a fault."""
    return lib_tools.run(sys.executable, os.path.join(POWER, program), *words,
                         timeout=LIMIT_SECONDS, codes=(0, 1))


@pytest.mark.parametrize("which", ("fixed", "fresh"))
def test_power_cuts(workdir, seed, which):
    lib_machine.need(lib_machine.fuse_obstacle())
    keep = os.path.join(workdir, "failed")
    text = power("powercut.py", "--seed", FIXED_SEED if which == "fixed" else seed, "--keep", keep,
                 "--minutes", 0.3 * lib_tools.SCALE, "--cuts", 20)
    assert ", 0 failed, " in text, text


def test_kills(workdir, seed):
    text = power("sigkill.py", "--seed", seed, "--rounds", lib_tools.scaled(12))
    assert "none lost" in text, text
