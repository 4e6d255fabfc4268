# SPDX-License-Identifier: Apache-2.0
"""Reading and damaging qcow2 metadata. Names of fields are those of the qcow2 specification."""
import struct

# Offset and struct format of the header's fields.
FIELDS = {
    "magic": (0, ">I"),
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_size": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_size": (36, ">I"),
    "l1_table_offset": (40, ">Q"),
    "refcount_table_offset": (48, ">Q"),
    "refcount_table_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible_features": (72, ">Q"),
    "compatible_features": (80, ">Q"),
    "autoclear_features": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}

DIRTY = 1
CORRUPT = 2
OFFSET_MASK = 0x00fffffffffffe00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

EXTENSION_END = 0
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857


def peek(path, offset, layout):
    with open(path, "rb") as stream:
        stream.seek(offset)
        return struct.unpack(layout, stream.read(struct.calcsize(layout)))[0]


def poke(path, offset, layout, value):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(struct.pack(layout, value))


def poke_bytes(path, offset, data):
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def set_field(path, name, value):
    offset, layout = FIELDS[name]
    poke(path, offset, layout, value)


class Header:
    def __init__(self, path):
        self.path = str(path)
        with open(path, "rb") as stream:
            data = stream.read(112).ljust(112, b"\0")
        for name, (offset, layout) in FIELDS.items():
            setattr(self, name, struct.unpack_from(layout, data, offset)[0])
        if self.version < 3:
            self.incompatible_features = self.compatible_features = self.autoclear_features = 0
            self.refcount_order = 4
            self.header_length = 72
        self.incompatible = self.incompatible_features
        self.cluster = 1 << self.cluster_bits

    def extensions(self):
        """[(type, data)] in file order, without the end marker."""
        found = []
        with open(self.path, "rb") as stream:
            stream.seek(self.header_length)
            while True:
                kind, length = struct.unpack(">II", stream.read(8))
                if kind == EXTENSION_END:
                    return found
                found.append((kind, stream.read(length)))
                stream.read(-length % 8)

    def write_extensions(self, extensions):
        """Replaces them; only for images without a backing file name behind them."""
        assert self.backing_file_offset == 0
        data = b""
        for kind, content in extensions:
            data += struct.pack(">II", kind, len(content)) + content + b"\0" * (-len(content) % 8)
        data += struct.pack(">II", EXTENSION_END, 0)
        assert self.header_length + len(data) <= self.cluster
        poke_bytes(self.path, self.header_length, data)

    # ---- Tables ---------------------------------------------------------------------------------

    def l1_entry_offset(self, guest):
        return self.l1_table_offset + 8 * (guest // (self.cluster * (self.cluster // 8)))

    def l2_table_offset(self, guest):
        return peek(self.path, self.l1_entry_offset(guest), ">Q") & OFFSET_MASK

    def l2_entry_offset(self, guest):
        table = self.l2_table_offset(guest)
        assert table, f"no L2 table for {guest:#x}"
        return table + 8 * (guest // self.cluster % (self.cluster // 8))

    def l2_entry(self, guest):
        return peek(self.path, self.l2_entry_offset(guest), ">Q")

    def set_l2_entry(self, guest, value):
        poke(self.path, self.l2_entry_offset(guest), ">Q", value)

    def refcount_block_offset(self, index=0):
        return peek(self.path, self.refcount_table_offset + 8 * index, ">Q") & OFFSET_MASK
