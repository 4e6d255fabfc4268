# SPDX-License-Identifier: Apache-2.0
"""lazycow check: the findings, the words and the exit codes of qemu-img check; and repair."""
import os
import random
import shutil
import struct

import pytest

import lib_qcow2
import lib_server
import lib_tools
from lib_offline import ask, lazycow, one_line, qemu_img

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


def assert_same(image):
    """Asserts that both find equal faults. Returns the report."""
    mine = lazycow("check", "--output=json", image)
    theirs = qemu_img("check", "--output=json", image)
    assert mine.code == theirs.code, (mine, theirs)
    assert mine.json() == theirs.json(), (mine, theirs)
    assert lazycow("check", image).out == qemu_img("check", image).out
    return mine.json()


def scribble(image, rng, size, count=30):
    commands = []
    for _ in range(count):
        offset = rng.randrange(size // 512) * 512
        length = min(size - offset, rng.randrange(1, 400) * 512)
        kind = rng.choice(("write", "write", "write -z", "discard"))
        commands.append(f"{kind} {offset} {length}")
    lib_tools.qemu_io(image, *commands, options=("-d", "unmap"))


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MEBI])
@pytest.mark.parametrize("refcount_bits", [1, 2, 8, 16, 64])
def test_sound_images(workdir, seed, cluster, refcount_bits):
    rng = random.Random(seed)
    image = lib_tools.create(f"{workdir}/a.qcow2", 10 * MEBI, cluster_size=cluster,
                             refcount_bits=refcount_bits)
    assert_same(image)
    scribble(image, rng, 10 * MEBI)
    assert_same(image)
    if refcount_bits >= 8:
        for name in ("one", "two"):
            lib_tools.qemu_img("snapshot", "-c", name, image)
            scribble(image, rng, 10 * MEBI)
        assert assert_same(image).get("corruptions", 0) == 0


@pytest.mark.parametrize("options", [
    {"compat": "0.10"}, {"preallocation": "metadata"}, {"compression_type": "zstd"}])
def test_other_images(workdir, options):
    assert_same(lib_tools.create(f"{workdir}/a.qcow2", 10 * MEBI, **options))


def test_compressed_clusters(workdir):
    with open(f"{workdir}/a.raw", "wb") as stream:
        for block in range(100):
            stream.write(bytes([block]) * 40000 + os.urandom(25536))
    for cluster in (4096, 65536):
        image = f"{workdir}/{cluster}.qcow2"
        lib_tools.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                           f"cluster_size={cluster}", f"{workdir}/a.raw", image)
        assert assert_same(image)["compressed-clusters"] > 0


def test_bitmaps(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 100 * MEBI)
    lib_tools.qemu_img("bitmap", "--add", image, "first")
    lib_tools.qemu_io(image, "write 0 30M")
    lib_tools.qemu_img("bitmap", "--add", image, "second")
    assert_same(image)


def test_crash_leaves_what_qemu_finds_too(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 100 * MEBI, lazy_refcounts="on")
    lib_tools.run("bash", "-c", f"qemu-io -f qcow2 -c 'write 5M 1M' -c 'write 50M 3M' -c flush "
                                f"-c 'sigraise 9' {image} || true")
    assert assert_same(image)["corruptions"] > 0
    mine = lazycow("check", "-r", "all", "--output=json", image)
    assert mine.code == 0, mine
    lib_tools.check_clean(image)


class Damaged:
    """An image with clusters in use, to be damaged; its content before."""

    def __init__(self, workdir, cluster=4096, snapshot=False, **options):
        self.path = lib_tools.create(f"{workdir}/a.qcow2", 4 * MEBI, cluster_size=cluster,
                                     **options)
        # Two L2 tables where clusters have 4 KiB.
        lib_tools.qemu_io(self.path, "write -P 1 0 1M", "write -P 2 1280k 64k",
                          "write -P 3 3M 64k")
        if snapshot:
            lib_tools.qemu_img("snapshot", "-c", "one", self.path)
        self.content = lib_tools.read_all(self.path)
        self.cluster = cluster
        self.l1 = self.field("l1_table_offset")
        self.refcount_table = self.field("refcount_table_offset")
        self.block = lib_qcow2.peek(self.path, self.refcount_table, ">Q")
        self.l2 = self.entry(self.l1) & lib_qcow2.OFFSET_MASK

    def field(self, name):
        return lib_qcow2.peek(self.path, *lib_qcow2.FIELDS[name])

    def entry(self, offset):
        return lib_qcow2.peek(self.path, offset, ">Q")

    def set_entry(self, offset, value):
        lib_qcow2.poke(self.path, offset, ">Q", value)

    def set_refcount(self, cluster, value):
        lib_qcow2.poke(self.path, self.block + 2 * cluster, ">H", value)

    def host_cluster(self, guest_cluster):
        entries = self.cluster // 8
        table = self.entry(self.l1 + 8 * (guest_cluster // entries)) & lib_qcow2.OFFSET_MASK
        entry = self.entry(table + 8 * (guest_cluster % entries)) if table else 0
        return (entry & lib_qcow2.OFFSET_MASK) // self.cluster

    def assert_repairs(self, **fixed):
        """-r all repairs it, and the content stays."""
        mine = lazycow("check", "-r", "all", "--output=json", self.path)
        assert mine.code == 0, mine
        report = mine.json()
        for name, count in fixed.items():
            assert report.get(name.replace("_", "-"), 0) == count, report
        lib_tools.check_clean(self.path)
        assert lib_tools.read_all(self.path) == self.content
        before = lib_tools.digest(self.path)
        assert lazycow("check", "-r", "all", self.path).code == 0  # again, with nothing to do
        assert lib_tools.digest(self.path) == before


@pytest.fixture
def damaged(workdir):
    return Damaged(workdir)


def test_leaks(damaged):
    end = damaged.field("refcount_table_offset")  # in use, so not a leak
    damaged.set_refcount(end // damaged.cluster, 1)
    image_end = lazycow("check", "--output=json", damaged.path).json()["image-end-offset"]
    with open(damaged.path, "r+b") as stream:
        stream.truncate(image_end + 5 * damaged.cluster)
    for cluster in range(image_end // damaged.cluster, image_end // damaged.cluster + 5):
        damaged.set_refcount(cluster, 1)
    damaged.set_refcount(damaged.host_cluster(3), 4)
    report = assert_same(damaged.path)
    assert report["leaks"] == 6
    damaged.assert_repairs(leaks_fixed=6)


def test_leaks_only(damaged):
    leaked = damaged.host_cluster(3)
    damaged.set_refcount(leaked, 4)
    damaged.set_refcount(damaged.host_cluster(4), 0)
    answer = lazycow("check", "-r", "leaks", "--output=json", damaged.path)
    assert answer.code == 2, answer
    assert answer.json()["leaks-fixed"] == 1
    assert answer.json()["corruptions"] > 0
    damaged.set_refcount(damaged.host_cluster(4), 1)
    lib_tools.check_clean(damaged.path)


def test_refcounts_beyond_the_end(damaged):
    """They leak nothing until the file has grown. qemu-img does not look there, and clears them only
    where it builds all refcounts anew."""
    beyond = -(-os.path.getsize(damaged.path) // damaged.cluster)
    for cluster in (beyond, damaged.cluster // 2 - 1):
        damaged.set_refcount(cluster, 1)
    assert assert_same(damaged.path).get("leaks", 0) == 0
    damaged.assert_repairs(leaks_fixed=0)
    assert lib_qcow2.peek(damaged.path, damaged.block + 2 * beyond, ">H") == 0
    assert lib_qcow2.peek(damaged.path, damaged.block + damaged.cluster - 2, ">H") == 0


def test_refcounts_too_low(damaged):
    for guest in (3, 4, 5, 9, 100):
        damaged.set_refcount(damaged.host_cluster(guest), 0)
    assert assert_same(damaged.path)["corruptions"] == 10  # and as many COPIED flags
    damaged.assert_repairs(corruptions_fixed=10)


def test_refcount_of_header_and_tables(damaged):
    for offset in (0, damaged.l1, damaged.l2, damaged.refcount_table, damaged.block):
        damaged.set_refcount(offset // damaged.cluster, 0)
    assert_same(damaged.path)
    damaged.assert_repairs()


def test_copied_flags(damaged):
    for guest in (0, 7, 8, 200):
        entry = damaged.l2 + 8 * guest
        damaged.set_entry(entry, damaged.entry(entry) & ~lib_qcow2.COPIED)
    damaged.set_entry(damaged.l1, damaged.entry(damaged.l1) & ~lib_qcow2.COPIED)
    assert assert_same(damaged.path)["corruptions"] == 5
    damaged.assert_repairs(corruptions_fixed=5)


def test_copied_flags_of_shared_clusters(workdir):
    damaged = Damaged(workdir, snapshot=True)
    entry = damaged.l2 + 8 * 7
    damaged.set_entry(entry, damaged.entry(entry) | lib_qcow2.COPIED)
    assert assert_same(damaged.path)["corruptions"] == 1
    damaged.assert_repairs(corruptions_fixed=1)


def test_shared_by_two_guest_clusters(damaged):
    damaged.set_entry(damaged.l2 + 8 * 7, damaged.entry(damaged.l2 + 8 * 8))
    damaged.content = lib_tools.read_all(damaged.path)
    assert_same(damaged.path)
    damaged.assert_repairs()


@pytest.mark.parametrize("value", [0, 1, 512, 1 << 40, (1 << 64) - 1, "l1", "self"])
def test_broken_refcount_table(damaged, value):
    value = {"l1": damaged.l1, "self": damaged.refcount_table}.get(value, value)
    damaged.set_entry(damaged.refcount_table, value)
    answer = lazycow("check", damaged.path)
    assert answer.code == 2, answer
    damaged.assert_repairs()


def test_missing_refcount_table(damaged):
    lib_qcow2.set_field(damaged.path, "refcount_table_clusters", 0)
    assert lazycow("check", damaged.path).code == 2
    damaged.assert_repairs()


def test_corrupt_bit_is_cleared(workdir):
    damaged = Damaged(workdir)
    lib_qcow2.set_field(damaged.path, "incompatible_features", lib_qcow2.CORRUPT)
    answer = lazycow("check", "-r", "all", damaged.path)
    assert answer.code == 0, answer
    lib_tools.check_clean(damaged.path)


@pytest.mark.parametrize("entry,text", [
    (lib_qcow2.COPIED | 1 << 40, "beyond the end"),
    (lib_qcow2.COPIED | 0x10200, "not aligned"),
    (lib_qcow2.COPIED | 1 << 60 | 0x10000, "reserved bits"),
    (lib_qcow2.COPIED | lib_qcow2.COMPRESSED | 0x10000, "COPIED"),
])
@pytest.mark.parametrize("table", ["l1", "l2"])
def test_bad_entries(damaged, table, entry, text):
    """They are found and told with where they are, and never repaired into something else."""
    offset = getattr(damaged, table) + 8
    before = damaged.entry(offset)
    damaged.set_entry(offset, entry)
    answer = lazycow("check", damaged.path)
    assert answer.code == 2, answer
    if table == "l2" or not entry & lib_qcow2.COMPRESSED:
        assert text in answer.err, answer
    if table == "l2" and entry & lib_qcow2.COMPRESSED:
        return  # the flag can be cleared
    repair = lazycow("check", "-r", "all", damaged.path)
    assert repair.code == 2, repair
    mask = ~lib_qcow2.COPIED
    assert damaged.entry(offset) & mask == entry & mask
    # With the entry as it was, nothing is lost.
    damaged.set_entry(offset, before)
    assert lib_tools.read_all(damaged.path) == damaged.content


@pytest.fixture
def hiding(damaged):
    """Damages an L1 entry, which hides a table and its clusters. Returns the place of the entry and
    its old value."""
    entry = damaged.entry(damaged.l1 + 8)
    assert entry & lib_qcow2.OFFSET_MASK
    damaged.set_entry(damaged.l1 + 8, entry | 512)
    return damaged.l1 + 8, entry


@pytest.mark.parametrize("repair", ["all", "leaks"])
@pytest.mark.parametrize("block", ["sound", "broken", "gone"])
def test_repair_spares_what_a_damaged_entry_hides(damaged, hiding, repair, block):
    """Neither a new refcount structure nor later writes go to the hidden table and its data. With
    the entry restored everything is there, and can be repaired."""
    if block != "sound":
        damaged.set_entry(damaged.refcount_table, 0x123456 if block == "broken" else 0)
    for _ in range(2):
        answer = lazycow("check", "-r", repair, "--output=json", damaged.path)
        assert answer.code == 2, answer
        assert answer.json().get("leaks-fixed", 0) == 0
        assert "Damaged entries may hide clusters" in answer.err
    if repair == "all":
        # A cluster that counts as used is not freed.
        lib_tools.qemu_io(damaged.path, "write -P 9 0 64k")
        damaged.content = b"\x09" * 65536 + damaged.content[65536:]
    damaged.set_entry(*hiding)
    assert lib_tools.read_all(damaged.path) == damaged.content
    damaged.assert_repairs()


def test_repair_keeps_shared_clusters_shared(workdir):
    """Clusters that a hidden table shares with a snapshot keep their refcounts, and no entry claims
    them alone."""
    damaged = Damaged(workdir, snapshot=True)
    entry = damaged.entry(damaged.l1 + 8)
    table = entry & lib_qcow2.OFFSET_MASK
    mapped = table + 8 * 257  # behind 3 MiB
    data = damaged.entry(mapped) & lib_qcow2.OFFSET_MASK
    damaged.set_entry(damaged.l1 + 8, entry | 512)
    damaged.set_refcount(damaged.host_cluster(3), 0)
    assert lazycow("check", "-r", "all", damaged.path).code == 2
    block = lib_qcow2.peek(damaged.path, damaged.block + 2 * (data // damaged.cluster), ">H")
    assert block == 2
    assert not damaged.entry(mapped) & lib_qcow2.COPIED
    damaged.set_entry(damaged.l1 + 8, entry)
    damaged.assert_repairs()


def test_new_refcounts_spare_what_entries_name(damaged):
    """Entries may name clusters behind the end of the file: a new structure goes elsewhere."""
    end = -(-os.path.getsize(damaged.path) // damaged.cluster)
    for number in range(6):
        damaged.set_entry(damaged.l2 + 8 * (400 + number),
                          lib_qcow2.COPIED | (end + number) * damaged.cluster)
    damaged.set_entry(damaged.refcount_table, 0x123456)
    lazycow("check", "-r", "all", damaged.path)
    assert lib_tools.read_all(damaged.path) == damaged.content  # zeros there


def test_misaligned_zero_cluster_is_repaired(damaged):
    damaged.set_entry(damaged.l2 + 8 * 20, lib_qcow2.COPIED | 0x10200 | lib_qcow2.ZERO)
    damaged.content = (damaged.content[:20 * 4096] + bytes(4096) + damaged.content[21 * 4096:])
    damaged.assert_repairs()


def test_data_over_metadata(damaged):
    damaged.set_entry(damaged.l2 + 8 * 7, damaged.l1 | lib_qcow2.COPIED)
    answer = lazycow("check", damaged.path)
    assert answer.code == 2 and "holds metadata" in answer.err, answer
    before = lib_tools.digest(damaged.path)
    assert lazycow("check", damaged.path).code == 2
    assert lib_tools.digest(damaged.path) == before


def test_lost_growth_is_restored(workdir):
    """A crash may keep the entries of the last clusters and lose the size of the file."""
    damaged = Damaged(workdir, lazy_refcounts="on")
    lib_qcow2.set_field(damaged.path, "incompatible_features", lib_qcow2.DIRTY)
    size = os.path.getsize(damaged.path)
    last = max(range(1024), key=damaged.host_cluster)
    assert (damaged.host_cluster(last) + 1) * damaged.cluster == size
    with open(damaged.path, "r+b") as stream:
        stream.truncate(size - damaged.cluster)
    assert lazycow("check", damaged.path).code == 2
    answer = lazycow("check", "-r", "all", damaged.path)
    assert answer.code == 0, answer
    lib_tools.check_clean(damaged.path)
    content = bytearray(damaged.content)
    content[last * 4096:(last + 1) * 4096] = bytes(4096)
    assert lib_tools.read_all(damaged.path) == content


def test_cut_file_is_not_taken_for_lost_growth(damaged):
    with open(damaged.path, "r+b") as stream:
        stream.truncate(os.path.getsize(damaged.path) // 2)
    size = os.path.getsize(damaged.path)
    answer = lazycow("check", "-r", "all", damaged.path)
    assert answer.code == 2 and "beyond the end" in answer.err, answer
    assert os.path.getsize(damaged.path) == size


@pytest.mark.limit(900)
def test_random_damage_never_crashes(workdir, seed):
    rng = random.Random(seed)
    damaged = Damaged(workdir, cluster=512, snapshot=True)
    image = f"{workdir}/b.qcow2"
    size = os.path.getsize(damaged.path)
    for _ in range(lib_tools.scaled(60)):
        shutil.copy(damaged.path, image)
        with open(image, "r+b") as stream:
            for _ in range(rng.randrange(1, 8)):
                # Mostly where tables are: at the beginning.
                stream.seek(rng.choice((rng.randrange(72, 200), rng.randrange(16384),
                                        rng.randrange(size))))
                stream.write(rng.choice((rng.randbytes(1), rng.randbytes(8), b"\xff" * 8,
                                         struct.pack(">Q", rng.randrange(size)))))
            if rng.random() < 0.2:
                stream.truncate(rng.randrange(size))
        for words in ((), ("-r", "leaks"), ("-r", "all"), ()):
            answer = lazycow("check", *words, image)
            assert answer.code in (0, 1, 2, 3, 63), answer
            if answer.code in (1, 63):
                assert answer.err.startswith("lazycow: ") or "ERROR" in answer.err, answer
        if answer.code == 0:  # qemu agrees, or does not open it (odd bits in the header)
            assert qemu_img("check", image).code in (0, 1)


def test_hostile_sizes_take_little_memory(workdir):
    """Tables that claim to be as large as the format allows, in a file that is one large hole."""
    image = lib_tools.create(f"{workdir}/a.qcow2", MEBI)
    lib_qcow2.set_field(image, "l1_size", (32 << 20) // 8)
    lib_qcow2.set_field(image, "refcount_table_clusters", (8 << 20) // 65536)
    with open(image, "r+b") as stream:
        stream.truncate(1 << 42)
    script = f"ulimit -v 2000000; exec {lib_server.PLAIN_BINARY} check {image}"
    answer = ask("bash", "-c", script)
    assert answer.code in (1, 2), answer


def test_image_in_use(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", MEBI)
    with lib_server.Server(workdir, image):
        one_line(lazycow("check", image), "a.qcow2")
        one_line(lazycow("check", "-r", "all", image), "a.qcow2")
        assert lazycow("check", "-U", image).code == 0
        answer = lazycow("check", "-U", "-r", "all", image)
        one_line(answer, "--force-share")


def test_not_supported(workdir):
    with open(f"{workdir}/a.raw", "wb") as stream:
        stream.truncate(MEBI)
    for words in (("a.raw",), ("-f", "raw", "a.raw")):
        answer = lazycow("check", *words, cwd=workdir)
        assert answer.code == 63 and "no checks" in answer.err, answer
    image = lib_tools.create(f"{workdir}/x.qcow2", MEBI, extended_l2="on")
    answer = lazycow("check", image)
    assert answer.code == 63 and "extended L2" in answer.err, answer
    image = lib_tools.create(f"{workdir}/u.qcow2", MEBI)
    lib_qcow2.set_field(image, "incompatible_features", 1 << 50)
    assert lazycow("check", image).code == 63


def test_cannot_be_checked(workdir):
    one_line(lazycow("check", f"{workdir}/none"), "none", "No such file")
    with open(f"{workdir}/a", "wb") as stream:
        stream.write(b"QFI\xfb" + struct.pack(">I", 3) + bytes(504))
    one_line(lazycow("check", f"{workdir}/a"), "/a", "broken")


def test_quiet(workdir):
    damaged = Damaged(workdir, snapshot=True)
    damaged.set_refcount(damaged.host_cluster(3), 4)
    answer = lazycow("check", "-q", damaged.path)
    assert (answer.code, answer.out, answer.err) == (3, "", "")


@pytest.mark.parametrize("words", [("--output=xml", "a"), ("a", "b"), (), ("--nonsense", "a"),
                                   ("-r", "some", "a")])
def test_wrong_use_has_a_hint(workdir, words):
    answer = lazycow("check", *words, cwd=workdir)
    assert answer.code == 1
    assert "'lazycow check --help'" in answer.err, answer


def test_help():
    answer = lazycow("check", "--help")
    assert answer.code == 0 and "Usage: lazycow check" in answer.out
