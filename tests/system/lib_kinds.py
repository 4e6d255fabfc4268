# SPDX-License-Identifier: Apache-2.0
"""Images of every kind that the server must handle, made by qemu's tools."""
import os

import lib_tools

SECTOR = 512

# Guest sizes by cluster size: enough for several L2 tables where clusters are small, some tens of
# clusters where they are large. A few sectors more, so that the last cluster is cut short.
SIZES = {
    512: (1 << 20) + 7 * SECTOR,
    4096: (6 << 20) + 3 * SECTOR,
    65536: (8 << 20) + 19 * SECTOR,
    2 << 20: (40 << 20) + SECTOR,
}


class Kind:
    """One kind of image. build() makes it; what the guest then sees is asked from qemu.

    backing: formats and cluster sizes from the overlay's backing file downwards, each
    (format, cluster, size as a share of the overlay's). compressed: zlib or zstd. small_cache: to be served with less memory
    for tables than it has tables.
    """

    def __init__(self, name, version=3, cluster=65536, refcount_bits=16, lazy=True, snapshots=0,
                 zeroes=False, compressed=None, backing=(), preallocation=None, empty=False,
                 size=None, small_cache=False):
        self.name = name
        self.version = version
        self.cluster = cluster
        self.refcount_bits = refcount_bits
        self.lazy = lazy and version >= 3
        self.snapshots = snapshots
        self.zeroes = zeroes and version >= 3
        self.compressed = compressed
        self.backing = backing
        self.preallocation = preallocation
        self.empty = empty
        self.size = size or SIZES[cluster]
        self.small_cache = small_cache

    def options(self):
        options = {"cluster_size": self.cluster, "compat": "1.1" if self.version == 3 else "0.10"}
        if self.version == 3:
            options["refcount_bits"] = self.refcount_bits
            options["lazy_refcounts"] = "on" if self.lazy else "off"
        if self.compressed == "zstd":
            options["compression_type"] = "zstd"
        if self.preallocation:
            options["preallocation"] = self.preallocation
        return options

    def build(self, directory, rng):
        """Returns (path of the image, [names of its snapshots], [paths of its backing files])."""
        chain = self.build_chain(directory, rng)
        path = os.path.join(directory, "disk.qcow2")
        if self.empty or self.preallocation:
            lib_tools.create(path, self.size, **self.options())
        elif chain:
            lib_tools.create(path, self.size, os.path.basename(chain[0]), self.backing[0][0],
                             **self.options())
        else:
            self.fill(directory, path, rng)
        names = []
        for index in range(self.snapshots):
            self.scribble(path, rng)
            names.append(f"snapshot{index}")
            lib_tools.qemu_img("snapshot", "-c", names[-1], path)
        if not self.empty:
            self.scribble(path, rng)
        lib_tools.check_clean(path)
        return path, names, chain

    def build_chain(self, directory, rng):
        """The backing files, the nearest first; each is named relative to the one above it."""
        chain = []
        for depth, (image_format, cluster, share) in reversed(list(enumerate(self.backing))):
            size = max(SECTOR, int(self.size * share) // SECTOR * SECTOR)
            path = os.path.join(directory, f"base{depth}.{image_format}")
            if image_format == "raw":
                with open(path, "wb") as stream:
                    stream.write(content(rng, size, cluster))
            else:
                below = os.path.basename(chain[0]) if chain else None
                below_format = self.backing[depth + 1][0] if chain else None
                lib_tools.create(path, size, below, below_format, cluster_size=cluster)
                scribble(path, rng, size, cluster, zeroes=True)
            chain.insert(0, path)
        return chain

    def fill(self, directory, path, rng):
        raw = os.path.join(directory, "content")
        with open(raw, "wb") as stream:
            stream.write(content(rng, self.size, self.cluster))
        words = [word for name, value in self.options().items()
                 for word in ("-o", f"{name}={value}")]
        lib_tools.qemu_img("convert", *(["-c"] if self.compressed else []), *words, "-f", "raw",
                           "-O", "qcow2", raw, path)
        os.unlink(raw)

    def scribble(self, path, rng):
        scribble(path, rng, self.size, self.cluster, self.zeroes,
                 self.compressed and self.backing)


def content(rng, size, cluster):
    """Zeros, data that compresses and data that does not, in runs of clusters."""
    pieces = []
    length = 0
    while length < size:
        run = cluster * rng.randint(1, 4)
        kind = rng.randrange(4)
        if kind == 0:
            piece = bytes(run)
        elif kind == 1:
            piece = rng.randbytes(run)
        elif kind == 2:
            piece = rng.randbytes(97) * (run // 97 + 1)
        else:
            piece = bytes([rng.randrange(1, 256)]) * run
        pieces.append(piece[:run])
        length += run
    return b"".join(pieces)[:size]


def scribble(path, rng, size, cluster, zeroes, compressed=False):
    """Writes by qemu-io at random places; zero clusters too, plain and preallocated."""
    commands = []
    clusters = size // cluster
    if compressed:
        # First of all: qemu refuses to compress into a cluster that is there already.
        for index in rng.sample(range(clusters), 8):
            commands.append(f"write -c -P {rng.randrange(1, 256)} {index * cluster} {cluster}")
    for _ in range(min(24, max(4, clusters // 3))):
        start = rng.randrange(size // SECTOR) * SECTOR
        length = min(size - start, SECTOR * rng.randint(1, 2 * cluster // SECTOR))
        commands.append(f"write -P {rng.randrange(1, 256)} {start} {length}")
    if zeroes:
        for unmap in ("", "-u ", "", "-u "):
            start = rng.randrange(clusters) * cluster
            length = min(size - start, cluster * rng.randint(1, 4))
            commands.append(f"write -P 77 {start} {length}")
            commands.append(f"write -z {unmap}{start} {length}")
    # -d unmap lets write -u give clusters back.
    lib_tools.qemu_io(path, *commands, options=("-d", "unmap"))


KIBI = 1 << 10
MEBI = 1 << 20

KINDS = [
    Kind("v3-64k-lazy"),
    Kind("v3-64k-eager", lazy=False),
    Kind("v3-64k-empty", empty=True),
    Kind("v2-64k", version=2),
    Kind("v2-512", version=2, cluster=512),
    Kind("v3-512-lazy", cluster=512),
    Kind("v3-512-eager-refcount1", cluster=512, refcount_bits=1, lazy=False),
    Kind("v3-512-empty-refcount64", cluster=512, refcount_bits=64, empty=True),
    Kind("v3-4k-refcount2", cluster=4096, refcount_bits=2),
    Kind("v3-4k-eager-refcount64", cluster=4096, refcount_bits=64, lazy=False),
    Kind("v3-64k-refcount1", refcount_bits=1),
    Kind("v3-2m", cluster=2 * MEBI),
    Kind("v3-2m-eager-refcount1", cluster=2 * MEBI, refcount_bits=1, lazy=False),
    Kind("v2-2m", version=2, cluster=2 * MEBI),
    Kind("small", size=11 * SECTOR),
    Kind("snapshots-v3-64k", snapshots=2),
    Kind("snapshots-v3-64k-eager", snapshots=2, lazy=False),
    Kind("snapshots-v2-4k", version=2, cluster=4096, snapshots=3),
    Kind("snapshots-512-refcount2", cluster=512, refcount_bits=2, snapshots=2),
    Kind("snapshots-512-refcount64-eager", cluster=512, refcount_bits=64, snapshots=2, lazy=False),
    Kind("zeroes-64k", zeroes=True),
    Kind("zeroes-512-eager", cluster=512, zeroes=True, lazy=False),
    Kind("zeroes-4k-snapshot", cluster=4096, zeroes=True, snapshots=1),
    Kind("compressed-64k", compressed="zlib"),
    Kind("compressed-4k-v2", version=2, cluster=4096, compressed="zlib"),
    Kind("compressed-512-eager", cluster=512, compressed="zlib", lazy=False),
    Kind("compressed-zstd", compressed="zstd"),
    Kind("compressed-zstd-512-snapshot", cluster=512, compressed="zstd", snapshots=1),
    Kind("compressed-2m", cluster=2 * MEBI, compressed="zlib"),
    Kind("compressed-4k-snapshot", cluster=4096, compressed="zlib", snapshots=1),
    Kind("backing-qcow2", backing=[("qcow2", 65536, 1)]),
    Kind("backing-raw-shorter", backing=[("raw", 65536, 0.6)]),
    Kind("backing-longer-eager", backing=[("qcow2", 4096, 1.5)], lazy=False),
    Kind("backing-three", cluster=4096,
         backing=[("qcow2", 65536, 0.9), ("qcow2", 512, 1.2), ("raw", 4096, 0.8)]),
    Kind("backing-v2", version=2, backing=[("qcow2", 65536, 0.7)]),
    Kind("backing-512-zeroes", cluster=512, zeroes=True,
         backing=[("qcow2", 512, 1), ("raw", 512, 1)]),
    Kind("backing-compressed", zeroes=True, compressed="zlib", backing=[("qcow2", 65536, 1)]),
    Kind("backing-2m-snapshot", cluster=2 * MEBI, snapshots=1,
         backing=[("qcow2", 64 * KIBI, 0.5)]),
    Kind("many-tables", cluster=512, size=12 * MEBI, empty=True, small_cache=True),
    Kind("many-tables-snapshot-eager", cluster=512, size=10 * MEBI, snapshots=1, lazy=False,
         small_cache=True),
    Kind("many-tables-backing", cluster=512, size=12 * MEBI, backing=[("qcow2", 512, 0.9)],
         small_cache=True),
    Kind("preallocated-metadata", preallocation="metadata"),
    Kind("preallocated-falloc-4k", cluster=4096, preallocation="falloc"),
]
