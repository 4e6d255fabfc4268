# SPDX-License-Identifier: Apache-2.0
"""How programs of other projects, and several of them at once, get along with the server."""
import json

import nbd

import lib_tools
from lib_server import Server
from lib_tools import run

MEBI = 1 << 20
SIZE = 64 * MEBI

BASE = "base:allocation"
DEPTH = "qemu:allocation-depth"


# ---- Metadata contexts --------------------------------------------------------------------------

def chain(workdir):
    """disk over middle over base; returns the topmost image."""
    base = lib_tools.create(f"{workdir}/base.qcow2", SIZE)
    lib_tools.qemu_io(base, "write -P 1 0 192k")
    middle = lib_tools.create(f"{workdir}/middle.qcow2", None, base, "qcow2")
    lib_tools.qemu_io(middle, "write -P 2 64k 128k")
    disk = lib_tools.create(f"{workdir}/disk.qcow2", None, middle, "qcow2")
    lib_tools.qemu_io(disk, "write -P 3 128k 64k", "write -z 4M 64k")
    return disk


def test_allocation_depth_as_qemu_tells_it(workdir):
    disk = chain(workdir)
    with Server(workdir, disk) as server:
        found = json.loads(run("nbdinfo", f"--map={DEPTH}", "--json", server.uri))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, 65536, 3), (65536, 65536, 2), (131072, 65536, 1), (196608, 4 * MEBI - 196608, 0),
        (4 * MEBI, 65536, 1), (4 * MEBI + 65536, SIZE - 4 * MEBI - 65536, 0)]


def test_both_contexts_in_one_reply(workdir):
    disk = chain(workdir)
    answers = []

    def take(context, offset, entries, _error):
        pairs = list(zip(entries[::2], entries[1::2]))
        answers.append((context, offset, pairs))
        return 0
    with Server(workdir, disk) as server:
        handle = server.connect(contexts=(BASE, DEPTH))
        assert handle.can_meta_context(BASE) and handle.can_meta_context(DEPTH)
        handle.block_status(MEBI, 0, take)
        handle.shutdown()
    assert dict((context, pairs) for context, _offset, pairs in answers) == {
        BASE: [(196608, 0), (MEBI - 196608, nbd.STATE_HOLE | nbd.STATE_ZERO)],
        DEPTH: [(65536, 3), (65536, 2), (65536, 1), (MEBI - 196608, 0)]}
    assert [offset for _context, offset, _pairs in answers] == [0, 0]
