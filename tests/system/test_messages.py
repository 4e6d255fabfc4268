# SPDX-License-Identifier: Apache-2.0
"""Mistakes of users, and the one line that tells the failure, the file, and the remedy."""
import os
import shlex
import socket
import subprocess

import pytest

import lib_tools
from lib_server import BINARY, SANITIZER, sanitizer_environment
from lib_tools import run

pytestmark = pytest.mark.lazycow_only

# (command line, text of the message); in the folder that the fixture makes.
WRONG = [
    ("frob", "unknown command 'frob'"),
    ("--frob", "unknown option '--frob'"),
    # Options, of all commands.
    ("serve -Zr d.qcow2", "unknown option '-Z' in '-Zr'"),
    ("serve -rZ d.qcow2", "unknown option '-Z' in '-rZ'"),
    ("serve -r -Z d.qcow2", "unknown option '-Z';"),
    ("serve d.qcow2 -Zr", "unknown option '-Z' in '-Zr'"),
    ("info -UZ d.qcow2", "unknown option '-Z' in '-UZ'"),
    ("check d.qcow2 -Zq", "unknown option '-Z' in '-Zq'"),
    ("create -qZ x 1M", "unknown option '-Z' in '-qZ'"),
    ("create x -5", "no size is negative"),
    ("serve -ü d.qcow2", "unknown option '-ü'"),
    ("serve --read-only=yes d.qcow2", "option '--read-only' takes no value; leave '=yes' out"),
    ("info --backing-chain=yes d.qcow2", "option '--backing-chain' takes no value"),
    ("info --force-share=yes d.qcow2", "option '--force-share' takes no value"),
    ("check --quiet= d.qcow2", "option '--quiet' takes no value; leave '=' out"),
    ("create --quiet=1 x 1M", "option '--quiet' takes no value"),
    ("serve --ca d.qcow2", "'--ca' is ambiguous: --cache or --cache-size?"),
    ("serve --lo=x d.qcow2", "'--lo' is ambiguous: --"),
    ("create --back x", "'--back' is ambiguous: --backing or --backing-format?"),
    ("check --f d.qcow2", "'--f' is ambiguous: --format or --force-share?"),
    ("serve --bogus=3 d.qcow2", "unknown option '--bogus'"),
    ("info --bogus d.qcow2", "unknown option '--bogus'"),
    ("serve d.qcow2 -p", "a value is missing after '-p'"),
    ("serve d.qcow2 --port", "a value is missing after '--port'"),
    ("serve -rp", "a value is missing after '-rp'"),
    ("create -b", "a value is missing after '-b'"),
    ("info --output", "a value is missing after '--output'"),
    ("check --repair", "a value is missing after '--repair'"),
    ("serve", "no image; say which"),
    ("create", "expected IMAGE and maybe SIZE, not 0 arguments"),
    ("create a 1M 2M", "not 3 arguments"),
    ("info", "expected one IMAGE, not 0"),
    ("check a b", "expected one IMAGE, not 2"),
    # Options of qemu-nbd.
    ("serve -c /dev/nbd0 d.qcow2", "nbd-client"),
    ("serve --connect=/dev/nbd0 d.qcow2", "nbd-client"),
    ("serve -L", "nbdinfo --list"),
    ("serve --fork d.qcow2", "systemd"),
    ("serve -l snap d.qcow2", "qemu-img convert -l"),
    ("serve --image-opts driver=qcow2", "instead: name the file"),
    ("serve --tls-creds=x d.qcow2", "--tls-certificates"),
    ("serve -rs d.qcow2", "lazycow create -b"),
    # Help of a command, and of none.
    ("help bogus", "unknown command 'bogus'"),
    # Values.
    ("serve -p 70000 d.qcow2", "--port: '70000' is not 0 to 65535"),
    ("serve -p -1 d.qcow2", "--port: '-1' is not 0 to 65535"),
    ("serve -p http d.qcow2", "--port: 'http' is not 0 to 65535"),
    ("serve -e 0 d.qcow2", "is not 1 to 16384"),
    ("serve --cache=foo d.qcow2", "'foo' is not writeback, writethrough"),
    ("serve --aio=native d.qcow2", "is not auto, io_uring or threads"),
    ("serve --cache-size=10MB d.qcow2", "'10MB' is not a size from 64k to 64G"),
    ("serve -k '' d.qcow2", "--socket: '' is not one of at most 16 paths"),
    ("serve -f vmdk d.qcow2", "'vmdk' is not qcow2 or raw"),
    ("info -f vmdk d.qcow2", "format 'vmdk' is not supported"),
    ("info --output=xml d.qcow2", "'xml' is not human or json"),
    ("check --output=xml d.qcow2", "'xml' is not human or json"),
    ("check -r some d.qcow2", "'some' is not leaks or all"),
    ("check -U -r all d.qcow2", "leave --force-share out"),
    ("serve -U d.qcow2", "--force-share is for --read-only"),
    ("serve --user=no-such-user -k s d.qcow2", "there is no such user"),
    ("serve --pid-file=none/p -k s d.qcow2", "No such file or directory"),
    ("serve -x a d.qcow2 d2.qcow2", "for a single image"),
    ("serve -k s d.qcow2 ./d.qcow2", "there is an export 'd' already"),
    ("serve -k s a=", "names no image"),
    # Sizes.
    ("create x 10GB", "'x': invalid size '10GB'"),
    ("create x 10GiB", "such as 10G"),
    ("create x '10 G'", "invalid size '10 G'"),
    ("create x -- -5", "invalid size '-5'"),
    ("create x ''", "invalid size ''"),
    ("create x 99E", "up to 2^63-1"),
    ("create x 1.5.5G", "invalid size"),
    ("create 10G x", "'10G': invalid size 'x'"),
    ("create x", "no size is given; add one"),
    ("create -o size=1M x 1M", "given twice"),
    ("create -o cluster_size=512 x 1E", "use a larger cluster_size"),
    # Options of the image.
    ("create -o nonsense=1 x 1M", "unknown option 'nonsense'"),
    ("create -o cluster_size x 1M", "cluster_size has no value: must be a power of two"),
    ("create -o cluster_size=3k x 1M", "cluster_size=3k: must be a power of two"),
    ("create -o preallocation=some x 1M", "must be off, metadata, falloc or full"),
    ("create -o encryption=on x 1M", "encryption is not supported"),
    ("create -o lazy_refcounts=on,compat=0.10 x 1M", "use compat=1.1"),
    ("create -f vmdk x 1M", "cannot be created; use qcow2"),
    ("create -b d.qcow2 x", "add -F qcow2"),
    ("create -F qcow2 x 1M", "add -b"),
    ("create -b d.qcow2 -F vmdk x", "use qcow2 or raw"),
    ("create -b '' -F qcow2 x", "leave -b out"),
    ("create -b missing -F qcow2 x", "'x': backing file: missing: cannot open"),
    ("create -b text -F qcow2 x", "-F raw"),
    ("create -q '' 1M", "the name of the image is empty"),
    ("create -q folder 1M", "folder: cannot open: Is a directory; name an image file"),
    ("create -q none/x 1M", "make its folder first"),
    ("create -q away 1M", "a link to a file that is not there"),
    ("create nbd://host/x 1M", "not the name of a local file"),
    # Addresses.
    ("serve -k text d.qcow2", "'text': exists and is no socket"),
    ("serve -k folder d.qcow2", "'folder': exists and is no socket"),
    ("serve -k live d.qcow2", "'live': is in use by another server"),
    ("serve -k none/s d.qcow2", "'none/s': the socket's directory cannot be found"),
    ("serve -k " + 200 * "x" + " d.qcow2", "at most 107 bytes"),
    ("serve -b no-such-host.invalid d.qcow2", "give a name or address of this host"),
    ("serve -b 127.0.0.1 -p PORT d.qcow2", "in use by another server"),
    ("serve --tls-certificates=encrypted -k s d.qcow2",
     "'encrypted/server-key.pem': the key is encrypted"),
    ("serve --tls-certificates=other -k s d.qcow2", "is not the key of"),
    ("serve --tls-certificates=none -k s d.qcow2", "'none/server-cert.pem': No such file"),
    ("serve --tls-psk=text -k s d.qcow2", "line 1 is not NAME:KEY"),
]

# Files that are no image, for every command that opens one: (file, text, other text of `check`).
NO_IMAGES = [
    ("missing", "missing: cannot open: No such file or directory; check the name", None),
    ("folder", "irectory; name an image file or a block device", None),
    ("pipe", "neither a file nor a block device", None),
    ("/dev/null", "neither a file nor a block device", None),
    ("live", "neither a file nor a block device", None),
    ("http://host/x", "only local files and block devices", None),
    ("json:{}", "only local files and block devices", None),
    ("empty", "'empty': is empty", "'empty': not a qcow2 image"),
    ("text", "'text': not a qcow2 image; name the right file, or say that it is raw",
     "'text': not a qcow2 image"),
    ("cut20", "broken qcow2 header: it is cut off", None),
    ("cut100", "broken qcow2 header: it is cut off", None),
    ("v9", "qcow2 version 9 is not supported, 2 and 3 are", None),
]

FOREIGN = ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that can be in the way. Yields it and a port in use."""
    folder = tmp_path_factory.mktemp("messages")
    for name in "d.qcow2", "d2.qcow2":
        lib_tools.create(folder / name, 1 << 20)
    content = (folder / "d.qcow2").read_bytes()
    (folder / "folder").mkdir()
    (folder / "text").write_text("some text\n")
    (folder / "empty").touch()
    (folder / "cut20").write_bytes(content[:20])
    (folder / "cut100").write_bytes(content[:100])
    (folder / "v9").write_bytes(content[:7] + b"\x09" + content[8:])
    (folder / "away").symlink_to("none/x")
    os.mkfifo(folder / "pipe")
    for name in "encrypted", "other":
        (folder / name).mkdir()
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-days",
            "2", "-passout", "pass:x", "-keyout", folder / name / "server-key.pem",
            "-out", folder / name / "server-cert.pem")
    run("openssl", "genpkey", "-algorithm", "RSA", "-out", folder / "other" / "server-key.pem")
    with socket.socket(socket.AF_UNIX) as live, socket.socket() as port:
        live.bind(str(folder / "live"))
        live.listen()
        port.bind(("127.0.0.1", 0))
        port.listen()
        yield folder, port.getsockname()[1]


def complaint(place, words, code=1):
    """Runs a command that must fail; returns its one line."""
    folder, port = place
    words = [word.replace("PORT", str(port)) for word in words]
    result = subprocess.run([BINARY, *words], cwd=folder, stdin=subprocess.DEVNULL,
                            capture_output=True, timeout=60, check=False,
                            env=sanitizer_environment())
    text = result.stderr.decode()
    assert not SANITIZER.search(text), text
    assert result.returncode == code, text
    lines = text.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lazycow: "), text
    return lines[0]


@pytest.mark.parametrize("line, expected", WRONG, ids=[line[:60] for line, _ in WRONG])
def test_wrong_use(place, line, expected):
    assert expected in complaint(place, shlex.split(line))


@pytest.mark.parametrize("name, expected, of_check", NO_IMAGES, ids=[row[0] for row in NO_IMAGES])
def test_no_image(place, name, expected, of_check):
    assert expected in complaint(place, ["serve", "-k", "s", name])
    assert expected in complaint(place, ["serve", "-r", "-k", "s", name])
    assert expected in complaint(place, ["info", "-f", "qcow2", name])
    code = 63 if of_check or name == "v9" else 1
    assert (of_check or expected) in complaint(place, ["check", name], code)


@pytest.mark.parametrize("driver", FOREIGN)
def test_other_formats(place, driver):
    folder, _ = place
    path = f"image.{driver}"
    lib_tools.qemu_img("create", "-q", "-f", driver, folder / path, "10M")
    advice = f"qemu-img convert -f {driver} -O qcow2"
    assert advice in complaint(place, ["serve", "-k", "s", path])
    assert advice in complaint(place, ["info", path])
    assert advice in complaint(place, ["create", "-b", path, "-F", "qcow2", "x"])
    text = complaint(place, ["check", path], 63)
    assert "looks like a" in text and "qemu-img" in text
    assert "file format: raw" in run(BINARY, "info", "-f", "raw", folder / path)
    lib_tools.create(folder / "overlay", None, path, driver)
    assert f"backing format '{driver}' is not supported" in complaint(
        place, ["serve", "-k", "s", "overlay"])


def test_a_fixed_vhd_has_its_signature_at_the_end(place):
    folder, _ = place
    lib_tools.qemu_img("create", "-q", "-f", "vpc", "-o", "subformat=fixed", folder / "fixed.vhd",
                       "10M")
    assert "looks like a VHD image" in complaint(place, ["info", "fixed.vhd"])


def test_permission_denied(place):
    folder, _ = place
    if os.geteuid() == 0:
        pytest.skip("root may do everything")
    (folder / "d2.qcow2").chmod(0)
    try:
        assert "this user needs access" in complaint(place, ["info", "d2.qcow2"])
    finally:
        (folder / "d2.qcow2").chmod(0o600)
