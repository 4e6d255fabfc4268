# SPDX-License-Identifier: Apache-2.0
"""lazycow create: the options and the output of qemu-img create, images that qemu finds sound."""
import os
import re
import subprocess

import pytest

import lib_qcow2
import lib_server
import lib_tools
from lib_offline import ask, lazycow, one_line, qemu_img

pytestmark = pytest.mark.lazycow_only

def formatting(answer):
    """Returns the printed text except lazy_refcounts, which has another default."""
    return re.sub(r"lazy_refcounts=\w+ ", "", answer.out)


def info(image):
    found = qemu_img("info", "--output=json", image).json()
    for volatile in ("actual-size", "filename"):
        del found[volatile]
    found["format-specific"]["data"].pop("lazy-refcounts", None)
    return found


OPTIONS = [
    "",
    "compat=0.10",
    "compat=v2",
    "compat=1.1",
    "compat=v3,refcount_bits=64",
    "refcount_bits=1",
    "refcount_bits=8",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "cluster_size=65536,nocow=off",
    "lazy_refcounts=on",
    "lazy_refcounts=off",
    "preallocation=off",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "preallocation=metadata,cluster_size=512,refcount_bits=1",
    "preallocation=metadata,cluster_size=512,refcount_bits=64",
    "preallocation=metadata,cluster_size=2M",
    "preallocation=full,compat=0.10",
    "compression_type=zlib,extended_l2=off",
    "compression_type=zstd",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options(workdir, options):
    words = ["-o", options] if options else []
    mine = lazycow("create", "-f", "qcow2", *words, "a.qcow2", "20M", cwd=workdir)
    assert mine.code == 0, mine
    image = f"{workdir}/a.qcow2"
    found = info(image)
    report = lib_tools.check_report(image)
    os.rename(image, f"{workdir}/mine.qcow2")
    theirs = qemu_img("create", "-f", "qcow2", *words, "a.qcow2", "20M", cwd=workdir)
    assert theirs.code == 0, theirs

    assert formatting(mine) == formatting(theirs)
    assert found == info(image)
    expected = lib_tools.check_report(image)
    for field in ("corruptions", "leaks", "allocated-clusters", "total-clusters"):
        assert report.get(field, 0) == expected.get(field, 0), report
    if found["format-specific"]["data"]["compat"] == "1.1":
        lazy = lib_qcow2.peek(f"{workdir}/mine.qcow2", 80, ">Q") & 1
        assert lazy == (0 if "lazy_refcounts=off" in options else 1)
    lib_tools.check_clean(f"{workdir}/mine.qcow2")
    assert lib_tools.read_all(f"{workdir}/mine.qcow2") == bytes(20 << 20)


def test_space_is_taken_as_asked(workdir):
    taken = {}
    for mode in ("off", "metadata", "falloc", "full"):
        image = f"{workdir}/{mode}"
        assert lazycow("create", "-q", "-o", f"preallocation={mode}", image, "16M").code == 0
        taken[mode] = lib_tools.host_bytes(image)
    assert taken["off"] < 1 << 20
    assert taken["metadata"] < 1 << 20
    assert taken["falloc"] >= 16 << 20
    assert taken["full"] >= 16 << 20


@pytest.mark.parametrize("size,nbytes", [
    ("0", 0), ("1", 512), ("512", 512), ("1000b", 1024), ("1k", 1 << 10), ("1.5M", 3 << 19),
    ("3G", 3 << 30), ("2T", 2 << 40), ("0x100000", 1 << 20), ("1K", 1 << 10), ("0.5P", 1 << 49)])
def test_sizes(workdir, size, nbytes):
    image = f"{workdir}/a.qcow2"
    assert lazycow("create", "-q", image, size).code == 0
    assert qemu_img("info", "--output=json", image).json()["virtual-size"] == nbytes
    lib_tools.check_clean(image)
    # As an option it means the same.
    assert lazycow("create", "-q", "-o", f"size={size}", image).code == 0
    assert qemu_img("info", "--output=json", image).json()["virtual-size"] == nbytes


def test_largest_sizes(workdir):
    """The L1 table ends at 32 MiB, as in qemu-img."""
    for bits in (9, 12, 16, 21):
        cluster = 1 << bits
        largest = (32 << 20) // 8 * cluster // 8 * cluster
        image = f"{workdir}/a.qcow2"
        answer = lazycow("create", "-q", "-o", f"cluster_size={cluster}", image, largest)
        assert answer.code == 0, answer
        lib_tools.check_clean(image)
        one_line(lazycow("create", "-q", "-o", f"cluster_size={cluster}", image, largest + 512),
                 "cluster_size")
        # A refusal leaves the file alone.
        lib_tools.check_clean(image)


@pytest.mark.parametrize("size", ["", "x", "1.5", "1Q", "-1", "8E", "9E", "1e3", "1 M", "1kk"])
def test_bad_sizes(workdir, size):
    one_line(lazycow("create", "-q", "--", f"{workdir}/a.qcow2", size), "a.qcow2", "size")
    assert not os.path.exists(f"{workdir}/a.qcow2")


@pytest.mark.parametrize("options,part", [
    ("cluster_size=1000", "power of two"), ("cluster_size=256", "512"),
    ("cluster_size=4M", "2M"), ("cluster_size=", "cluster_size"), ("refcount_bits=3", "refcount"),
    ("refcount_bits=128", "64"), ("refcount_bits=0", "refcount"),
    ("compat=0.10,refcount_bits=8", "compat"), ("compat=0.10,lazy_refcounts=on", "lazy"),
    ("compat=2", "compat"), ("lazy_refcounts=maybe", "on or off"), ("preallocation=some", "falloc"),
    ("extended_l2=on", "extended_l2"), ("compression_type=lzma", "zlib or zstd"),
    ("compat=0.10,compression_type=zstd", "zlib"),
    ("data_file=x", "data_file"), ("encryption=on", "encryption"),
    ("encrypt.format=luks", "encrypt.format"), ("nocow=on", "nocow"), ("size=2G", "twice"),
    ("backing_fmt=raw", "backing file")])
def test_refused_options(workdir, options, part):
    one_line(lazycow("create", "-o", options, f"{workdir}/a.qcow2", "1G"), "a.qcow2", part)
    assert not os.path.exists(f"{workdir}/a.qcow2")


@pytest.mark.parametrize("words", [
    ("-o", "nonsense=1", "a", "1G"), ("-x", "a", "1G"), (), ("a", "1G", "b"), ("--nonsense", "a")])
def test_wrong_use_has_a_hint(workdir, words):
    answer = lazycow("create", *words, cwd=workdir)
    assert answer.code == 1
    assert "'lazycow create --help'" in answer.err, answer
    assert os.listdir(workdir) == []


def test_missing_size(workdir):
    one_line(lazycow("create", f"{workdir}/a.qcow2"), "no size")


def test_help(workdir):
    for words in (("--help",), ("-h",), ("-o", "help")):
        answer = lazycow("create", *words, cwd=workdir)
        assert answer.code == 0 and "Usage: lazycow create" in answer.out, answer


class TestBacking:
    @pytest.fixture
    def bases(self, workdir):
        os.mkdir(f"{workdir}/sub")
        lib_tools.create(f"{workdir}/sub/base.qcow2", 5 << 20)
        lib_tools.qemu_io(f"{workdir}/sub/base.qcow2", "write -P 7 0 1M")
        with open(f"{workdir}/sub/base.raw", "wb") as stream:
            stream.write(b"\x08" * 1000000)
        return workdir

    @pytest.mark.parametrize("base,base_format,size", [
        ("base.qcow2", "qcow2", 5 << 20), ("base.raw", "raw", 1000448)])
    def test_size_and_content_come_from_it(self, bases, base, base_format, size):
        image = f"{bases}/sub/top.qcow2"
        # The name is relative to the image's folder, wherever the command runs.
        answer = lazycow("create", "-b", base, "-F", base_format, image, cwd="/")
        assert answer.code == 0, answer
        assert f"backing_file={base} backing_fmt={base_format}" in answer.out
        found = qemu_img("info", "--output=json", image).json()
        assert found["virtual-size"] == size
        assert found["backing-filename"] == base
        assert found["full-backing-filename"] == f"{bases}/sub/{base}"
        assert found["backing-filename-format"] == base_format
        content = lib_tools.read_all(f"{bases}/sub/{base}", base_format)
        assert lib_tools.read_all(image)[:len(content)] == content
        lib_tools.check_clean(image)

    def test_size_may_differ(self, bases):
        image = f"{bases}/top.qcow2"
        answer = lazycow("create", "-o", "backing_file=sub/base.qcow2,backing_fmt=qcow2", image,
                         "9M")
        assert answer.code == 0, answer
        assert qemu_img("info", "--output=json", image).json()["virtual-size"] == 9 << 20

    def test_commas_are_doubled(self, bases):
        os.rename(f"{bases}/sub/base.raw", f"{bases}/a,b.raw")
        image = f"{bases}/top.qcow2"
        answer = lazycow("create", "-o", "backing_file=a,,b.raw,backing_fmt=raw", image)
        assert answer.code == 0, answer
        found = qemu_img("info", "--output=json", image).json()
        assert found["backing-filename"] == "a,b.raw"

    def test_format_is_never_guessed(self, bases):
        one_line(lazycow("create", "-b", "sub/base.qcow2", f"{bases}/top.qcow2"), "-F qcow2")

    def test_it_must_be_what_is_said(self, bases):
        one_line(lazycow("create", "-b", "sub/base.raw", "-F", "qcow2", f"{bases}/top.qcow2"),
                 "sub/base.raw", "not a qcow2 image")
        one_line(lazycow("create", "-b", "sub/base.raw", "-F", "vmdk", f"{bases}/top.qcow2"),
                 "vmdk")
        one_line(lazycow("create", "-b", "sub/none", "-F", "raw", f"{bases}/top.qcow2"),
                 "sub/none", "No such file")
        one_line(lazycow("create", "-b", "nbd://localhost/x", "-F", "raw", f"{bases}/top.qcow2"),
                 "nbd://localhost/x")
        assert not os.path.exists(f"{bases}/top.qcow2")

    def test_unchecked(self, bases):
        image = f"{bases}/top.qcow2"
        answer = lazycow("create", "-u", "-b", "not-there-yet", "-F", "raw", image, "1M")
        assert answer.code == 0, answer
        assert qemu_img("info", "--output=json", image).json()["backing-filename"] == \
            "not-there-yet"
        one_line(lazycow("create", "-u", "-b", "not-there-yet", "-F", "raw", image), "no size")

    def test_name_must_fit_the_first_cluster(self, bases):
        name = "n" * 380
        words = ("create", "-q", "-u", "-F", "raw", "-b")
        image = f"{bases}/top.qcow2"
        one_line(lazycow(*words, name, "-o", "cluster_size=512", image, "1M"), "cluster_size")
        assert lazycow(*words, name, "-o", "cluster_size=1k", image, "1M").code == 0
        assert qemu_img("info", "--output=json", image).json()["backing-filename"] == name
        assert lazycow(*words, "n" * 1023, image, "1M").code == 0
        assert qemu_img("info", "--output=json", image).json()["backing-filename"] == "n" * 1023
        one_line(lazycow(*words, "n" * 1024, image, "1M"), "1023")

    def test_preallocation_would_hide_it(self, bases):
        one_line(lazycow("create", "-b", "sub/base.qcow2", "-F", "qcow2", "-o",
                         "preallocation=metadata", f"{bases}/top.qcow2"), "preallocation=off")


def test_existing_file_is_replaced(workdir):
    image = lib_tools.create(f"{workdir}/a.qcow2", 50 << 20)
    lib_tools.qemu_io(image, "write -P 1 0 50M")
    assert lazycow("create", "-q", image, "1M").code == 0
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == bytes(1 << 20)


@pytest.mark.parametrize("holder", ["lazycow", "qemu"])
def test_image_in_use_is_left_alone(workdir, holder):
    image = lib_tools.create(f"{workdir}/a.qcow2", 1 << 20)
    lib_tools.qemu_io(image, "write -P 5 0 64k")
    before = lib_tools.digest(image)
    if holder == "lazycow":
        with lib_server.Server(workdir, image):
            one_line(lazycow("create", image, "2M"), "a.qcow2")
            assert lib_tools.digest(image) == before
    else:
        command = ["qemu-io", "-f", "qcow2", image]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
            # It prompts when the image is open.
            assert user.stdout.read(1) != b""
            one_line(lazycow("create", image, "2M"), "a.qcow2")
            user.communicate(b"quit\n", timeout=300)
    assert lib_tools.digest(image) == before


def test_errors_of_the_host_are_told(workdir):
    one_line(lazycow("create", f"{workdir}/none/a.qcow2", "1M"), "none/a.qcow2", "No such file")
    one_line(lazycow("create", workdir, "1M"), workdir)
    limited = ask("bash", "-c", f"ulimit -f 4096; trap '' XFSZ; exec {lib_server.BINARY} create -q "
                                f"-o preallocation=full {workdir}/big.qcow2 100M")
    one_line(limited, "big.qcow2")
    assert not os.path.exists(f"{workdir}/big.qcow2")


def test_a_link_that_leads_nowhere(workdir):
    """Creates the file that the link names, as qemu-img does; a file that cannot be created is an
    error."""
    os.symlink("target", f"{workdir}/link")
    assert lazycow("create", "link", "1M", cwd=workdir).code == 0
    assert os.path.islink(f"{workdir}/link") and os.path.isfile(f"{workdir}/target")
    os.symlink("folder/target", f"{workdir}/other")
    answer = lazycow("create", "-q", "other", "1M", cwd=workdir)
    assert answer.code == 1 and "a link to a file that is not there" in answer.err
    assert os.path.islink(f"{workdir}/other")
