# SPDX-License-Identifier: Apache-2.0
"""One file under two names: nothing is written where something else is kept."""
import fcntl
import os
import socket
import subprocess
import threading

import pytest

import lib_tools
from lib_server import BINARY, START_SECONDS, Server, sanitizer_environment

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20


def run(*arguments, **keywords):
    done = subprocess.run([BINARY, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=sanitizer_environment(),
                          timeout=START_SECONDS, check=False, **keywords)
    return done.returncode, done.stderr.decode()


def refused(*arguments, **keywords):
    code, text = run(*arguments, **keywords)
    assert code == 1 and text.count("\n") == 1, (code, text)
    return text


@pytest.fixture
def chain(workdir):
    """base.raw <- base <- middle <- top, with data in each. Returns their paths."""
    base = lib_tools.create(f"{workdir}/base.qcow2", 4 * MEBI)
    middle = lib_tools.create(f"{workdir}/middle.qcow2", 4 * MEBI, base=base, base_format="qcow2")
    top = lib_tools.create(f"{workdir}/top.qcow2", 4 * MEBI, base=middle, base_format="qcow2")
    for number, name in enumerate((base, middle, top)):
        lib_tools.qemu_io(name, f"write -P {number + 1} {number}M 64k")
    return [base, middle, top]


@pytest.fixture
def image(workdir):
    path = lib_tools.create(f"{workdir}/disk.qcow2", 4 * MEBI)
    lib_tools.qemu_io(path, "write -P 7 0 1M")
    return path


@pytest.fixture
def loop(image):
    """A loop device over the image."""
    done = subprocess.run(["losetup", "--find", "--show", image], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        pytest.skip("no loop devices here")
    device = done.stdout.decode().strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


# ---- create -------------------------------------------------------------------------------------

def alias(workdir, path, kind):
    name = f"{workdir}/alias"
    if kind == "itself":
        return path
    if kind == "relative":
        return os.path.relpath(path, workdir)
    if kind == "dot":
        return "./" + os.path.basename(path)
    if kind == "dot dot":
        return f"{workdir}/../{os.path.basename(workdir)}/{os.path.basename(path)}"
    if kind == "link":
        os.symlink(path, name)
    elif kind == "link to a link":
        os.symlink(path, f"{workdir}/first")
        os.symlink(f"{workdir}/first", name)
    elif kind == "directory link":
        os.symlink(workdir, f"{workdir}/directory")
        return f"{workdir}/directory/{os.path.basename(path)}"
    else:
        os.link(path, name)
    return name


ALIASES = ["itself", "relative", "dot", "dot dot", "link", "link to a link", "directory link",
           "hard link"]


@pytest.mark.parametrize("kind", ALIASES)
@pytest.mark.parametrize("member", [0, 1, 2], ids=["base", "middle", "top"])
@pytest.mark.parametrize("words", [[], ["4M"], ["-u", "4M"], ["-q", "4M"]], ids=" ".join)
def test_create_over_its_own_chain(workdir, chain, kind, member, words):
    before = [lib_tools.digest(path) for path in chain]
    target = alias(workdir, chain[member], kind)
    options, size = [w for w in words if w[0] == "-"], [w for w in words if w[0] != "-"]
    text = refused("create", *options, "-b", chain[2], "-F", "qcow2", target, *size, cwd=workdir)
    assert "backing chain" in text and target in text
    assert [lib_tools.digest(path) for path in chain] == before


@pytest.mark.parametrize("kind", ALIASES)
def test_create_with_an_alias_as_backing(workdir, image, kind):
    before = lib_tools.digest(image)
    name = alias(workdir, image, kind)
    for backing_format in ("qcow2", "raw"):
        for option in (["-b", name, "-F", backing_format],
                       ["-o", f"backing_file={name},backing_fmt={backing_format}"]):
            assert "backing chain" in refused("create", *option, image, "4M", cwd=workdir)
    assert lib_tools.digest(image) == before


def test_create_by_descriptor(workdir, image):
    before = lib_tools.digest(image)
    descriptor = os.open(image, os.O_RDWR)
    for path in (f"/dev/fd/{descriptor}", f"/proc/self/fd/{descriptor}"):
        refused("create", "-b", image, "-F", "qcow2", path, cwd=workdir, pass_fds=[descriptor])
        refused("create", "-b", path, "-F", "qcow2", image, cwd=workdir, pass_fds=[descriptor])
    os.close(descriptor)
    assert lib_tools.digest(image) == before


def test_create_that_would_name_itself(workdir):
    """Unlooked at, the backing file need not exist; the new one would be it."""
    for name in ("new.qcow2", "./new.qcow2", f"{workdir}/new.qcow2"):
        assert "backing chain" in refused("create", "-u", "-b", name, "-F", "qcow2",
                                          f"{workdir}/new.qcow2", "1M", cwd=workdir)
        assert not os.path.exists(f"{workdir}/new.qcow2")


def test_create_on_a_chain_that_is_a_circle(workdir, chain):
    lib_tools.qemu_img("rebase", "-u", "-f", "qcow2", "-b", chain[2], "-F", "qcow2", chain[0])
    assert "stands behind itself" in refused("create", "-b", chain[1], "-F", "qcow2",
                                             f"{workdir}/new.qcow2")
    before = [lib_tools.digest(path) for path in chain]
    for path in chain:
        refused("create", "-b", chain[1], "-F", "qcow2", path)
    assert [lib_tools.digest(path) for path in chain] == before


@pytest.mark.parametrize("damage", ["missing", "broken", "elsewhere"])
def test_create_on_a_chain_that_cannot_be_followed(workdir, chain, damage):
    """The target may then be a part of the chain, which nothing can tell."""
    if damage == "missing":
        os.rename(chain[1], f"{workdir}/away.qcow2")
    elif damage == "broken":
        with open(chain[1], "r+b") as stream:
            stream.write(b"QFI\xfb\0\0\0\x09")
    else:
        lib_tools.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "nbd://localhost/x", "-F", "raw",
                           chain[1])
    before = lib_tools.digest(chain[0])
    new = f"{workdir}/new.qcow2"
    for target in (chain[0], new):
        assert "backing chain" in refused("create", "-b", chain[2], "-F", "qcow2", target, "1M")
    assert lib_tools.digest(chain[0]) == before and not os.path.exists(new)
    assert run("create", "-u", "-b", chain[2], "-F", "qcow2", new, "1M")[0] == 0


def test_create_on_a_raw_image_that_looks_like_another(workdir, chain):
    """A raw image has no chain, whatever its first bytes are."""
    os.remove(chain[0])
    assert run("create", "-b", chain[1], "-F", "raw", f"{workdir}/new.qcow2")[0] == 0
    assert run("create", "-b", f"{workdir}/new.qcow2", "-F", "qcow2",
               f"{workdir}/newer.qcow2")[0] == 0


@pytest.mark.slow
def test_create_on_a_long_chain(workdir):
    base = lib_tools.create(f"{workdir}/0.qcow2", MEBI)
    name = base
    for number in range(1, 60):
        assert run("create", "-q", "-b", name, "-F", "qcow2", f"{workdir}/{number}.qcow2")[0] == 0
        name = f"{workdir}/{number}.qcow2"
    before = lib_tools.digest(base)
    assert base in refused("create", "-b", name, "-F", "qcow2", base)
    assert lib_tools.digest(base) == before


def test_create_over_another_image_replaces_it(workdir, image, chain):
    assert run("create", "-b", chain[2], "-F", "qcow2", image)[0] == 0
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 1 0 64k", "read -P 3 2M 64k")


def test_create_with_loop_devices(image, loop):
    before = lib_tools.digest(image)
    node = f"{os.path.dirname(image)}/node"
    os.mknod(node, 0o60600, os.stat(loop).st_rdev)
    for backing, target in ((image, loop), (loop, image), (loop, loop), (loop, node), (node, loop),
                            (image, node), (node, image)):
        assert "backing chain" in refused("create", "-b", backing, "-F", "qcow2", target, "1M")
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("by", ["lazycow", "lazycow -r", "qemu-nbd"])
def test_create_over_an_image_in_use(workdir, image, by):
    before = lib_tools.digest(image)
    if by == "qemu-nbd":
        path = f"{workdir}/q"
        process = subprocess.Popen(["qemu-nbd", "-t", "-k", path, "-f", "qcow2", image])
        try:
            while not os.path.exists(path):
                assert process.poll() is None
            # It listens first and opens the image then; it greets clients when it has both.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                assert client.recv(8) == b"NBDMAGIC"
                refused("create", image, "1M")
        finally:
            process.terminate()
            process.wait()
    else:
        with Server(workdir, image, read_only=by == "lazycow -r"):
            assert "in use" in refused("create", image, "1M")
    assert lib_tools.digest(image) == before


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device"])
def test_create_over_no_file(workdir, kind):
    path = f"{workdir}/path"
    reader = None
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
        # A writer that waits must not be woken.
        reader = threading.Thread(target=lambda: os.close(os.open(path, os.O_WRONLY)), daemon=True)
        reader.start()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
    else:
        path = "/dev/null"
    before = os.lstat(path)
    for words in (["create", path, "1M"], ["check", path], ["info", path],
                  ["serve", "-k", f"{workdir}/s", path]):
        assert path in refused(*words)
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
    if reader is not None:
        assert reader.is_alive()
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        reader.join()


def test_create_that_fails_leaves_what_was_there(workdir, image):
    before = lib_tools.digest(image)
    for words in (["-b", f"{workdir}/none", "-F", "qcow2", image],
                  ["-b", image, "-F", "vmdk", image], ["-o", "cluster_size=3", image, "1M"],
                  [image, "9E"], ["-o", "data_file=x", image, "1M"], [image]):
        run("create", *words)
        assert lib_tools.digest(image) == before, words


# ---- serve --------------------------------------------------------------------------------------

@pytest.mark.parametrize("locking", ["auto", "off"])
@pytest.mark.parametrize("kind", ["itself", "link", "hard link", "dot dot"])
def test_serve_one_file_twice(workdir, image, kind, locking):
    before = lib_tools.digest(image)
    name = alias(workdir, image, kind)
    text = refused("serve", "-k", f"{workdir}/s", f"--locking={locking}", f"a={image}", f"b={name}")
    assert name in text and "twice" in text
    assert lib_tools.digest(image) == before


def test_serve_one_file_twice_read_only(workdir, image):
    os.symlink(image, f"{workdir}/link")
    with Server(workdir, ("a", image), ("b", f"{workdir}/link"), read_only=True) as server:
        for name in "ab":
            assert server.connect(name).pread(512, 0) == b"\7" * 512


@pytest.mark.parametrize("locking", ["auto", "off"])
@pytest.mark.parametrize("order", [(0, 2), (2, 0)], ids=["base first", "overlay first"])
def test_serve_an_overlay_and_its_base(workdir, chain, order, locking):
    before = [lib_tools.digest(path) for path in chain]
    text = refused("serve", "-k", f"{workdir}/s", f"--locking={locking}",
                   *[chain[index] for index in order])
    assert chain[0] in text and "backing chain" in text
    assert [lib_tools.digest(path) for path in chain] == before


def test_serve_two_overlays_of_one_base(workdir, chain):
    other = lib_tools.create(f"{workdir}/other.qcow2", 4 * MEBI, base=chain[1],
                             base_format="qcow2")
    with Server(workdir, chain[2], other) as server:
        for name in ("top", "other"):
            assert server.connect(name).pread(512, MEBI) == b"\2" * 512


def test_serve_a_file_and_its_loop_device(workdir, image, loop):
    assert "twice" in refused("serve", "-k", f"{workdir}/s", f"a={image}", f"b={loop}")
    assert "twice" in refused("serve", "-k", f"{workdir}/s", f"a={loop}", f"b={image}")


@pytest.mark.parametrize("flags", [os.O_APPEND, 0], ids=["behind it", "over it"])
@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2)], ids=["output", "error", "both"])
@pytest.mark.parametrize("command", [["serve", "-v"], ["serve", "-r"], ["serve", "overlay"],
                                     ["serve", "--set=nobody:cache=none"], ["check", "-r", "all"],
                                     ["check"], ["info"]], ids=" ".join)
def test_output_into_the_image(workdir, image, command, descriptors, flags):
    """`lazycow serve disk.qcow2 2>>disk.qcow2`, and with 2<>, which begins at the header: not even
    the message about it is written there."""
    before = lib_tools.digest(image)
    path = image
    if command[-1] == "overlay":
        path = lib_tools.create(f"{workdir}/overlay.qcow2", None, base=image, base_format="qcow2")
    where = ["-k", f"{workdir}/s"] if command[0] == "serve" else []
    options = [word for word in command[1:] if word[0] == "-" or command[0] == "check"]
    stream = os.open(image, os.O_RDWR | flags)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    streams.update({("stdout", "stderr")[n - 1]: stream for n in descriptors})
    done = subprocess.run([BINARY, command[0], *options, *where, path], stdin=subprocess.DEVNULL,
                          env=sanitizer_environment(), timeout=START_SECONDS, check=False,
                          **streams)
    os.close(stream)
    assert done.returncode == 1
    assert lib_tools.digest(image) == before
    if descriptors == (1,):
        assert b"standard output goes to this image" in done.stderr


def test_locks_are_kept_while_a_chain_is_looked_at(workdir, chain):
    """Looking at the chain must not let go of the target's lock, as a POSIX lock would."""
    with open(chain[2], "r+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX, 1, 101)
        refused("create", "-b", chain[1], "-F", "qcow2", chain[2], "1M")
