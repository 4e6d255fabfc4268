# SPDX-License-Identifier: Apache-2.0
"""lazycow info: the facts and the words of qemu-img info."""
import os

import pytest

import lib_qcow2
import lib_server
import lib_tools
from lib_offline import lazycow, one_line, qemu_img

pytestmark = pytest.mark.lazycow_only


def assert_same(image, cwd=None, json_only=False):
    """Asserts that both describe an image alike, for people and for programs, alone and with its
    chain."""
    for chain in ((), ("--backing-chain",)):
        mine = lazycow("info", *chain, "--output=json", image, cwd=cwd)
        theirs = qemu_img("info", *chain, "--output=json", image, cwd=cwd)
        assert (mine.code, theirs.code) == (0, 0), (mine, theirs)
        assert mine.json() == theirs.json()
        if not json_only:
            assert lazycow("info", *chain, image, cwd=cwd).out == \
                qemu_img("info", *chain, image, cwd=cwd).out


@pytest.mark.parametrize("options", [
    {}, {"compat": "0.10"}, {"lazy_refcounts": "on"}, {"cluster_size": 512, "refcount_bits": 1},
    {"cluster_size": "2M", "refcount_bits": 64}, {"compression_type": "zstd"},
    {"extended_l2": "on"}, {"preallocation": "falloc"}])
@pytest.mark.parametrize("size", [0, 512, 1234567 * 512, 3 << 40])
def test_options(workdir, options, size):
    if size > 1 << 36 and (options.get("cluster_size") == 512 or "preallocation" in options):
        size = 1 << 30
    if "preallocation" in options:
        size = min(size, 10 << 20)
    assert_same(lib_tools.create(f"{workdir}/a.qcow2", size, **options))


def test_names_of_files(workdir):
    os.mkdir(f"{workdir}/sub")
    lib_tools.create(f"{workdir}/sub/base.qcow2", 1 << 20)
    lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
                  "sub/middle.qcow2", cwd=workdir)
    lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
                  f"{workdir}/sub/middle.qcow2", "-F", "qcow2", "top.qcow2", cwd=workdir)
    lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "sub/../top.qcow2", "-F",
                  "qcow2", "over.qcow2", cwd=workdir)
    for image in ("sub/base.qcow2", "sub/middle.qcow2", "top.qcow2", "over.qcow2",
                  "./sub/middle.qcow2", f"{workdir}/over.qcow2"):
        assert_same(image, cwd=workdir)


def test_raw_files(workdir):
    for size in (0, 1, 511, 512, 1000, 3 << 20):
        with open(f"{workdir}/a.raw", "wb") as stream:
            stream.truncate(size)
        assert_same(f"{workdir}/a.raw")
    lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw",
                  "top.qcow2", cwd=workdir)
    assert_same(f"{workdir}/top.qcow2")


def test_format_can_be_said(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    found = lazycow("info", "-f", "raw", "--output=json", image).json()
    assert found["format"] == "raw"
    assert found["virtual-size"] == (os.path.getsize(image) + 511) // 512 * 512
    with open(f"{workdir}/a.raw", "wb") as stream:
        stream.truncate(1 << 20)
    one_line(lazycow("info", "-f", "qcow2", f"{workdir}/a.raw"), "a.raw", "not a qcow2 image")
    one_line(lazycow("info", "-f", "vmdk", image), "vmdk")


def test_snapshots(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    for name in ("one", "a name that is longer than its column", "ünïcode"):
        lib_tools.qemu_img("snapshot", "-c", name, image)
    assert_same(image, json_only=True)
    ascii_only = lib_tools.create(f"{workdir}/b.qcow2", 1 << 20)
    for name in ("one", "a name that is longer than its column"):
        lib_tools.qemu_img("snapshot", "-c", name, ascii_only)
    assert_same(ascii_only)


def test_bitmaps(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 10 << 20)
    lib_tools.qemu_img("bitmap", "--add", image, "first")
    lib_tools.qemu_img("bitmap", "--add", "-g", "1M", "--disable", image, "second")
    assert_same(image)


def test_data_file(workdir):
    lib_tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-o",
                  "data_file=data.raw,data_file_raw=on", "a.qcow2", "1M", cwd=workdir)
    assert_same("a.qcow2", cwd=workdir)


@pytest.mark.parametrize("feature,field", [(lib_qcow2.DIRTY, "dirty"),
                                           (lib_qcow2.CORRUPT, "corrupt")])
def test_state_bits(workdir, feature, field):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20, lazy_refcounts="on")
    lib_qcow2.set_field(image, "incompatible_features", feature)
    found = lazycow("info", "--output=json", image).json()
    assert found["dirty-flag"] == (field == "dirty")
    assert found["format-specific"]["data"]["corrupt"] == (field == "corrupt")
    assert_same(image)


def test_unknown_features_are_no_obstacle(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    lib_qcow2.set_field(image, "incompatible_features", 1 << 50)
    assert lazycow("info", "--output=json", image).json()["virtual-size"] == 1 << 20


def test_image_in_use(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    with lib_server.Server(workdir, image):
        one_line(lazycow("info", image), "a.qcow2")
        answer = lazycow("info", "-U", "--output=json", image)
        assert answer.code == 0 and answer.json()["virtual-size"] == 1 << 20, answer


def test_control_characters_stay_off_the_terminal(workdir):
    image = f"{workdir}/a.qcow2"
    answer = lazycow("create", "-q", "-u", "-F", "raw", "-b", "a\033[2J", image, "1M")
    assert answer.code == 0, answer
    text = lazycow("info", image)
    assert "backing file: a?[2J" in text.out and "\033" not in text.out
    assert lazycow("info", "--output=json", image).json()["backing-filename"] == "a\033[2J"


def test_names_that_are_not_utf_8(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    lib_tools.qemu_img("snapshot", "-c", "XYZ", image)
    table = lib_qcow2.peek(image, *lib_qcow2.FIELDS["snapshots_offset"])
    with open(image, "rb") as stream:
        at = stream.read().index(b"XYZ", table)
    lib_qcow2.poke_bytes(image, at, b"X\xffZ")
    found = lazycow("info", "--output=json", image).json()
    assert found["snapshots"][0]["name"] == "X?Z"


def test_chain_that_bites_its_tail(workdir):
    for image, base in (("a", "b"), ("b", "a")):
        # lazycow refuses to make the second one.
        lib_tools.qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", "qcow2",
                           f"{workdir}/{image}", "1M")
    one_line(lazycow("info", "--backing-chain", f"{workdir}/a"), "stands behind itself")
    assert lazycow("info", f"{workdir}/a").code == 0


def test_missing_files(workdir):
    one_line(lazycow("info", f"{workdir}/none"), "none", "No such file")
    image = f"{workdir}/top.qcow2"
    answer = lazycow("create", "-q", "-u", "-b", "none", "-F", "raw", image, "1M")
    assert answer.code == 0
    assert lazycow("info", image).code == 0
    one_line(lazycow("info", "--backing-chain", image), "none", "No such file")


@pytest.mark.parametrize("words", [("--output=xml", "a"), ("a", "b"), (), ("--nonsense", "a")])
def test_wrong_use_has_a_hint(workdir, words):
    answer = lazycow("info", *words, cwd=workdir)
    assert answer.code == 1
    assert "'lazycow info --help'" in answer.err, answer


def test_help():
    answer = lazycow("info", "--help")
    assert answer.code == 0 and "Usage: lazycow info" in answer.out
