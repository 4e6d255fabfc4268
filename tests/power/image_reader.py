# SPDX-License-Identifier: Apache-2.0
"""Reads a qcow2 image that lies in memory, with none of the engine's code, and counts the
references to each cluster. Names are those of the qcow2 specification."""
import re
import struct
import zlib

from history import Wrong

OFFSET_MASK = 0x00fffffffffffe00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
DIRTY = 1
CORRUPT = 2
MAGIC = 0x514649fb


NOT_ZERO = re.compile(rb"[^\0]")


def refcount(block, number, bits):
    """One refcount of a block. Those of less than a byte stand from its lowest bit on."""
    if bits < 8:
        return block[number * bits // 8] >> (number * bits % 8) & ((1 << bits) - 1)
    step = bits // 8
    return int.from_bytes(block[number * step:(number + 1) * step], "big")


def table(content, offset, count):
    """count big-endian entries; zeros where the file has ended."""
    piece = bytes(content[offset:offset + 8 * count]).ljust(8 * count, b"\0")
    return struct.unpack(f">{count}Q", piece)


class Image:
    """content: the file's bytes."""

    def __init__(self, content):
        self.content = content
        fixed = bytes(content[:104]).ljust(104, b"\0")
        (magic, self.version, _, _, self.cluster_bits, self.size, _, self.l1_size, self.l1_offset,
         self.refcount_table, self.refcount_table_clusters, self.snapshot_count,
         self.snapshots_offset) = struct.unpack_from(">IIQIIQIIQQIIQ", fixed)
        if magic != MAGIC or self.version not in (2, 3) or not 9 <= self.cluster_bits <= 21:
            raise Wrong("the header is no qcow2 header")
        self.incompatible = struct.unpack_from(">Q", fixed, 72)[0] if self.version == 3 else 0
        self.lazy = self.version == 3 and bool(struct.unpack_from(">Q", fixed, 80)[0] & 1)
        self.refcount_order = struct.unpack_from(">I", fixed, 96)[0] if self.version == 3 else 4
        if self.incompatible & ~(DIRTY | CORRUPT):
            raise Wrong(f"incompatible features {self.incompatible:#x}")
        self.cluster = 1 << self.cluster_bits
        self.dirty = bool(self.incompatible & DIRTY)

    # ---- Contents -------------------------------------------------------------------------------

    def l1(self):
        return table(self.content, self.l1_offset, self.l1_size)

    def snapshots(self):
        """[(name, offset of the L1 table, entries in it, size of its disk)]"""
        found = []
        at = self.snapshots_offset
        for _ in range(self.snapshot_count):
            fields = struct.unpack_from(">QIHHIIQII", self.content, at)
            l1_offset, l1_size, id_size, name_size, extra = (*fields[:4], fields[8])
            size = self.size
            if extra >= 16:
                size = struct.unpack_from(">Q", self.content, at + 48)[0]
            name_at = at + 40 + extra + id_size
            found.append((bytes(self.content[name_at:name_at + name_size]).decode(),
                          l1_offset, l1_size, size))
            at = -(-(name_at + name_size) // 8) * 8
        self.snapshots_end = at
        return found

    def l2(self, l1_entry):
        return table(self.content, l1_entry & OFFSET_MASK, self.cluster // 8)

    def compressed_place(self, entry):
        """Offset and length of a compressed cluster's data."""
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
        return offset, sectors * 512 - offset % 512

    def inflate(self, entry):
        offset, length = self.compressed_place(entry)
        try:
            inflater = zlib.decompressobj(-15)
            return inflater.decompress(bytes(self.content[offset:offset + length]), self.cluster)
        except zlib.error as error:
            raise Wrong(f"compressed cluster at {offset:#x}: {error}") from None

    def read(self, backing, l1=None, size=None):
        """Reads the whole disk. backing: the content of the backing file, or b"". l1, size: a
        snapshot's."""
        cluster, size = self.cluster, self.size if size is None else size
        disk = bytearray(backing[:size].ljust(size, b"\0"))
        span = cluster * (cluster // 8)
        for index, l1_entry in enumerate(self.l1() if l1 is None else l1):
            if not l1_entry & OFFSET_MASK:
                continue
            for number, entry in enumerate(self.l2(l1_entry)):
                at = index * span + number * cluster
                if entry == 0 or at >= size:
                    continue
                if entry & COMPRESSED:
                    piece = self.inflate(entry)
                elif entry & ZERO and self.version == 3:
                    piece = b""
                elif entry & OFFSET_MASK:
                    piece = self.content[entry & OFFSET_MASK:(entry & OFFSET_MASK) + cluster]
                else:
                    continue
                length = min(cluster, size - at)
                disk[at:at + length] = bytes(piece[:length]).ljust(length, b"\0")
        return bytes(disk)

    def read_snapshots(self, backing):
        return {name: self.read(backing, table(self.content, offset, count), size)
                for name, offset, count, size in self.snapshots()}

    # ---- References -----------------------------------------------------------------------------

    def judge(self, end=False, leaks=False, beyond=True):
        """Raises Wrong for a state that no power cut may leave. While the image is dirty its
        refcounts tell nothing; else they must cover all references. end: the image must not be
        dirty. leaks: refcounts may be too high. beyond: also look at refcounts behind the end of
        the file."""
        References(self).judge(end, leaks, beyond)

    def refcounts(self):
        """{cluster: refcount} of those that are not 0."""
        found = {}
        bits = 1 << self.refcount_order
        per_block = self.cluster * 8 // bits
        entries = table(self.content, self.refcount_table,
                        self.refcount_table_clusters * self.cluster // 8)
        for index, entry in enumerate(entries):
            if entry == 0:
                continue
            block = bytes(self.content[entry:entry + self.cluster]).ljust(self.cluster, b"\0")
            for match in NOT_ZERO.finditer(block):  # a large block is nearly empty
                first = match.start() * 8 // bits
                for number in range(first, first + max(1, 8 // bits)):
                    value = refcount(block, number, bits)
                    if value:
                        found[index * per_block + number] = value
        return found


class References:
    """The references to each cluster of an image."""

    def __init__(self, image):
        self.image = image
        self.metadata = {}
        self.counts = {}
        self.active = {}
        self.copied = {}
        self.end = 0

    def judge(self, end, leaks, beyond):
        image = self.image
        if image.incompatible & CORRUPT:
            raise Wrong("the image is marked corrupt")
        if end and image.dirty:
            raise Wrong("the image is dirty")
        self.count_tables()
        for offset, who in self.copied.items():
            if self.counts[offset] > 1:
                raise Wrong(f"{who} is marked COPIED, but {self.counts[offset]} refer to "
                            f"{offset * image.cluster:#x}")
        for cluster in self.active:
            if cluster in self.metadata:
                raise Wrong(f"{self.active[cluster]} lies in {self.metadata[cluster]}, "
                            f"{cluster * image.cluster:#x}")
        if not image.dirty:
            self.judge_refcounts(leaks, beyond)

    def judge_refcounts(self, leaks, beyond):
        image = self.image
        refcounts = image.refcounts()
        clusters = -(-len(image.content) // image.cluster)
        if self.end > clusters:
            raise Wrong(f"not dirty, but cluster {self.end - 1:#x} of {clusters:#x} is in use")
        if not beyond:
            refcounts = {cluster: count for cluster, count in refcounts.items()
                         if cluster < clusters}
        for cluster, count in self.counts.items():
            have = refcounts.pop(cluster, 0)
            if have < count or (not leaks and have > count):
                raise Wrong(f"not dirty, but {count} refer to the cluster at "
                            f"{cluster * image.cluster:#x} and its refcount is {have}")
        if refcounts and not leaks:
            first = min(refcounts)
            raise Wrong(f"not dirty, but {len(refcounts)} clusters leak; the first is "
                        f"{first * image.cluster:#x}")

    def count_tables(self):
        image = self.image
        self.take_metadata(0, 1, "the header")
        self.take_metadata(image.l1_offset, 8 * image.l1_size, "the L1 table")
        self.take_metadata(image.refcount_table, image.refcount_table_clusters * image.cluster,
                           "the refcount table")
        entries = table(image.content, image.refcount_table,
                        image.refcount_table_clusters * image.cluster // 8)
        # A dirty image's refcounts are counted anew; its blocks may be any.
        if not image.dirty:
            for entry in entries:
                if entry:
                    self.take_metadata(entry, image.cluster, "a refcount block")
        snapshots = image.snapshots()
        if snapshots:
            self.take_metadata(image.snapshots_offset,
                               image.snapshots_end - image.snapshots_offset, "the snapshot table")
        tables = {}
        self.count_l1(image.l1(), tables, True)
        for _, offset, count, _ in snapshots:
            self.take_metadata(offset, 8 * count, "a snapshot's L1 table")
            self.count_l1(table(image.content, offset, count), tables, False)
        for offset in tables:
            cluster = offset >> image.cluster_bits
            if cluster in self.metadata:
                raise Wrong(f"an L2 table lies in {self.metadata[cluster]}, {offset:#x}")
            if cluster in self.active:
                raise Wrong(f"{self.active[cluster]} lies in an L2 table, {offset:#x}")

    def take_metadata(self, offset, length, what):
        image = self.image
        if offset % image.cluster:
            raise Wrong(f"{what} is not aligned: {offset:#x}")
        first = offset >> image.cluster_bits
        for cluster in range(first, -(-(offset + length) // image.cluster)):
            if cluster in self.metadata:
                raise Wrong(f"{what} lies in {self.metadata[cluster]}, {offset:#x}")
            self.metadata[cluster] = what
            self.add(cluster)

    def add(self, cluster):
        self.counts[cluster] = self.counts.get(cluster, 0) + 1
        self.end = max(self.end, cluster + 1)

    def count_l1(self, entries, tables, active):
        image = self.image
        for index, entry in enumerate(entries):
            offset = entry & OFFSET_MASK
            if offset == 0:
                continue
            if offset % image.cluster:
                raise Wrong(f"L1 entry {index:#x} is not aligned: {entry:#x}")
            if active and offset in tables:
                raise Wrong(f"two L1 entries for the L2 table at {offset:#x}")
            tables[offset] = tables.get(offset, 0) + 1
            self.add(offset >> image.cluster_bits)
            if active and entry & COPIED:
                self.copied[offset >> image.cluster_bits] = f"L1 entry {index:#x}"
            self.count_l2(index, image.l2(entry), active)

    def count_l2(self, index, entries, active):
        image = self.image
        for number, entry in enumerate(entries):
            if entry & COMPRESSED:
                offset, length = image.compressed_place(entry)
                for cluster in range(offset >> image.cluster_bits,
                                     ((offset + length - 1) >> image.cluster_bits) + 1):
                    self.add(cluster)
                continue
            offset = entry & OFFSET_MASK
            if offset == 0:
                continue
            who = f"L2 entry {index:#x}:{number:#x}"
            if offset % image.cluster:
                raise Wrong(f"{who} is not aligned: {entry:#x}")
            cluster = offset >> image.cluster_bits
            self.add(cluster)
            if active:
                if cluster in self.active:
                    raise Wrong(f"{self.active[cluster]} and {who} refer to {offset:#x}")
                self.active[cluster] = who
                if entry & COPIED:
                    self.copied[cluster] = who
