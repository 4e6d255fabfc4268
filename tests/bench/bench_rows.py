# SPDX-License-Identifier: Apache-2.0
"""The measured work: the requests, and the servers for them."""
import dataclasses

BUFFERED_QEMU = ("qemu-nbd threads", "qemu-nbd io_uring")
DIRECT_QEMU = (*BUFFERED_QEMU, "qemu-nbd native")
# Ceilings for lazycow: the null engine, a raw image, and for a chain its base alone.
CEILINGS = ("null", "lazycow raw", "lazycow flat")
# The data of the image "corner" begins here and goes on to the end, at 1 TiB.
CORNER_START = "1023g"


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    load: tuple          # arguments of nbdload
    target: float = 0    # times the IOPS of the better qemu-nbd; 0: none is set
    image: str = "allocated"
    writes: bool = False  # each run gets an image of its own
    tcp: bool = False
    direct: bool = False
    null: bool = False    # the null engine can be asked too
    raw: bool = False     # nbdkit on the raw file too
    fio: tuple = ()       # arguments of fio for the same work: a second opinion
    target_cpu: float = 0  # times less CPU than the better qemu-nbd


def depth(count, *more):
    return (f"--depth={count}", *more)


FIO_READ = ("--rw=randread", "--bs=4k")
FRESH = ("--mix=fua", "--pattern=sequential", "--align=64k")

ROWS = (
    Row("random read 4 KiB, QD 1", depth(1), 2.3, null=True, raw=True),
    Row("random read 4 KiB, QD 32", depth(32), 5, null=True, raw=True, target_cpu=6,
        fio=(*FIO_READ, "--iodepth=32")),
    Row("random read 4 KiB, QD 32, TCP", depth(32), tcp=True, null=True, raw=True),
    Row("random read 4 KiB, QD 32, simple replies", depth(32, "--simple"), null=True),
    Row("random read 4 KiB, 4 connections of QD 16", depth(16, "--connections=4"), 4, null=True,
        raw=True),
    Row("random read 4 KiB, 256 connections of QD 1", depth(1, "--connections=256"), null=True),
    Row("random read 16 KiB off any boundary, QD 16", depth(16, "--block=16k", "--align=512"),
        raw=True),
    Row("sequential read 256 KiB, QD 8, Unix", depth(8, "--block=256k", "--pattern=sequential"), 3,
        null=True, raw=True),
    Row("sequential read 256 KiB, QD 8, TCP", depth(8, "--block=256k", "--pattern=sequential"), 3,
        tcp=True, null=True, raw=True),
    Row("random write 4 KiB, QD 32", depth(32, "--mix=write"), 3, writes=True, null=True,
        fio=("--rw=randwrite", "--bs=4k", "--iodepth=32")),
    Row("sequential write 256 KiB, QD 8, fresh image",
        depth(8, "--mix=write", "--block=256k", "--pattern=sequential"), 1.5, image="fresh",
        writes=True),
    Row("FUA write 4 KiB to fresh clusters, QD 1", depth(1, *FRESH), 2, image="fresh", writes=True),
    Row("FUA write 4 KiB to fresh clusters, QD 32", depth(32, *FRESH), 8, image="fresh",
        writes=True),
    Row("FUA write 4 KiB to fresh clusters, 8 connections of QD 8",
        depth(8, "--connections=8", *FRESH), 8, image="fresh", writes=True),
    Row("FUA write 4 KiB to fresh clusters, scattered, QD 32",
        depth(32, "--mix=fua", "--pattern=once", "--align=64k"), image="fresh", writes=True),
    Row("FUA write 4 KiB in place, QD 32", depth(32, "--mix=fua"), writes=True),
    Row("mixed 70/30 4 KiB, QD 32", depth(32, "--mix=read:70,write:30"), 4, writes=True, null=True),
    Row("O_DIRECT random read 4 KiB, QD 32", depth(32), 1.3, direct=True),
    Row("O_DIRECT random write 4 KiB, QD 32", depth(32, "--mix=write"), 1.3, writes=True,
        direct=True),
    Row("compressed, sequential read 4 KiB, QD 1", depth(1, "--pattern=sequential"), 10,
        image="compressed"),
    Row("compressed, sequential read 256 KiB, QD 8",
        depth(8, "--block=256k", "--pattern=sequential"), 1.5, image="compressed"),
    Row("compressed, random read 4 KiB, QD 32", depth(32), image="compressed"),
    Row("random read 4 KiB, QD 32, chain of 32", depth(32), 5, image="chain"),
    Row("random read 4 KiB, QD 32, clusters out of order", depth(32), image="scattered"),
    Row("sequential read 256 KiB, QD 8, clusters out of order",
        depth(8, "--block=256k", "--pattern=sequential"), image="scattered"),
    Row("random read 4 KiB, QD 32, in a corner of 1 TiB",
        depth(32, f"--start={CORNER_START}"), image="corner"),
    Row("random read 4 KiB, QD 32, all over 1 TiB of holes", depth(32), image="huge"),
)

# Work that must not cost more CPU a request than other work: (work, plain work).
FLAT = (
    ("random read 4 KiB, 256 connections of QD 1", "random read 4 KiB, QD 1"),
    ("random read 4 KiB, QD 32, chain of 32", "random read 4 KiB, QD 32"),
    ("random read 4 KiB, QD 32, clusters out of order", "random read 4 KiB, QD 32"),
    ("sequential read 256 KiB, QD 8, clusters out of order", "sequential read 256 KiB, QD 8, Unix"),
    ("random read 4 KiB, QD 32, in a corner of 1 TiB", "random read 4 KiB, QD 32"),
)

# The depths of the plot.
SWEEP_DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
SWEEP_SERVERS = ("lazycow", *BUFFERED_QEMU, "nbdkit file", "null")


def servers_of(row):
    names = ["lazycow", *(DIRECT_QEMU if row.direct else BUFFERED_QEMU)]
    if row.null:
        names.append("null")
    if row.null and not row.writes:
        names.append("lazycow raw")
    if row.image == "chain":
        names.append("lazycow flat")
    if row.raw:
        names.append("nbdkit file")
    return names
