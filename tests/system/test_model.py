# SPDX-License-Identifier: Apache-2.0
"""Random load on every kind of image, in every cache mode and on both file backends, against a
model in memory. At the end qemu must find the image clean and equal to the model."""
import random

import pytest

import lib_kinds
import lib_server
import lib_tools
from lib_load import Connections, Disk, Load
from lib_server import Server

CACHE_MODES = ("writeback", "writethrough", "none", "directsync", "unsafe")
BACKENDS = ("io_uring", "threads")
MODES = [(cache, aio) for cache in CACHE_MODES for aio in BACKENDS]

# The selection that always runs: each kind in two of the ten modes, all modes equally often. Other
# options go along by their own strides, so that pairs of them differ from kind to kind.
SELECTION_SEED = 20240229


def serve_options(kind, index):
    cache, aio = MODES[index % len(MODES)]
    options = {"cache": cache, "aio": aio,
               "discard": "ignore" if index % 7 == 3 else "unmap",
               "detect_zeroes": (None, "on", None, "unmap", None)[index % 5]}
    if options["detect_zeroes"] == "unmap" and options["discard"] == "ignore":
        options["detect_zeroes"] = "on"  # qemu-nbd refuses the pair
    if kind.version == 3 and index % 11 == 5:
        options["lazy_refcounts"] = "off" if kind.lazy else "on"
    if kind.small_cache and not lib_server.REFERENCE:
        options["options"] = ["--cache-size=64k"]
    return options


def selection():
    rng = random.Random(SELECTION_SEED)
    order = []
    while len(order) < 2 * len(lib_kinds.KINDS):
        block = list(range(len(MODES)))
        rng.shuffle(block)
        order += block
    cases = []
    for number, kind in enumerate(lib_kinds.KINDS):
        rounds = (order[2 * number] + len(MODES) * (number % 77),
                  order[2 * number + 1] + len(MODES) * ((number * 13 + 5) % 77))
        cases.append(pytest.param(kind, rounds, id=kind.name))
    return cases


def disk_of(kind, content, options):
    ignored = options["discard"] == "ignore"
    certain = not ignored and (kind.version == 3 or not kind.backing)
    # qemu-nbd lets a version 2 image's backing file show through where it was trimmed.
    anything = lib_server.REFERENCE and kind.version == 2 and kind.backing
    return Disk(content, kind.cluster, trim_zeroes=certain, trim_ignored=ignored,
                trim_any=anything)


def exercise(directory, rng, kind, rounds, requests):
    image, snapshots, chain = kind.build(directory, rng)
    content = lib_tools.read_all(image)
    snapshots = {name: lib_tools.read_all(image, snapshot=name) for name in snapshots}
    chain = {path: lib_tools.digest(path) for path in chain}
    for index in rounds:
        options = serve_options(kind, index)
        print(f"{kind.name}: {options}")
        with Server(directory, image, **options) as server:
            connections = Connections(server, 3)
            disk = disk_of(kind, content, options)
            assert connections.handles[0].get_size() == disk.size
            load = Load(rng, connections, disk,
                        no_hole_keeps_space=not lib_server.REFERENCE,
                        # qemu-nbd 7.2 gives clusters back under writes that are in flight.
                        racing_frees=not lib_server.REFERENCE,
                        # qemu-nbd zeroes a part before it finds the rest to be slow.
                        fast_zero=not lib_server.REFERENCE)
            for _ in range(2):
                load.run(requests // 2)
                for _ in range(3):
                    load.overlap(rng.randint(2, 20))
            read_back(connections.handles[1], disk)
            connections.shutdown()
        content = bytes(disk.data)
        lib_tools.check_clean(image)
        lib_tools.compare_raw(image, content)
    for name, expected in snapshots.items():
        assert lib_tools.read_all(image, snapshot=name) == expected, f"snapshot {name} changed"
    for path, expected in chain.items():
        assert lib_tools.digest(path) == expected, f"backing file {path} changed"


def read_back(handle, disk):
    step = 1 << 20
    for start in range(0, disk.size, step):
        disk.check(start, handle.pread(min(step, disk.size - start), start), "last read")


@pytest.mark.parametrize("kind, rounds", selection())
def test_kind(workdir, kind, rounds):
    rng = random.Random(f"{SELECTION_SEED} {kind.name}")
    exercise(workdir, rng, kind, rounds, lib_tools.scaled(600))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(lib_tools.scaled(10)))
def test_fresh(workdir, seed, number):
    """A fresh seed chooses, another one in each run."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(lib_kinds.KINDS)
    rounds = (rng.randrange(770), rng.randrange(770))
    exercise(workdir, rng, kind, rounds, lib_tools.scaled(600))


def test_kinds_are_what_they_claim(workdir):
    """The builder creates the kinds that the names promise; else the tests above would prove less."""
    rng = random.Random(SELECTION_SEED)
    by_name = {kind.name: kind for kind in lib_kinds.KINDS}
    image, _, _ = by_name["zeroes-64k"].build(workdir, rng)
    states = lib_tools.qemu_img("map", "--output=json", "-f", "qcow2", image)
    assert '"present": true, "zero": true, "data": false' in states
    assert '"offset"' in "".join(line for line in states.splitlines()
                                 if '"zero": true' in line), "no preallocated zero cluster"
    image, _, _ = by_name["compressed-64k"].build(workdir, rng)
    assert lib_tools.check_report(image)["compressed-clusters"] > 0
    image, _, chain = by_name["backing-compressed"].build(workdir, rng)
    assert lib_tools.check_report(image)["compressed-clusters"] > 0
    assert len(chain) == 1
    image, names, _ = by_name["snapshots-v3-64k"].build(workdir, rng)
    assert all(name in lib_tools.qemu_img("snapshot", "-l", image) for name in names)
