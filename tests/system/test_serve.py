# SPDX-License-Identifier: Apache-2.0
"""The server around the protocol: its addresses, its output, its refusals, its options."""
import os
import random
import socket
import subprocess
import sys

import nbd
import pytest

import lib_qcow2
import lib_server
import lib_tools
from lib_server import Server, refused
from lib_wire import Wire

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")


def reads(server, name=None):
    handle = server.connect(name)
    data = handle.pread(512, 0)
    handle.shutdown()
    return data


# ---- What it says -------------------------------------------------------------------------------

def test_uri_is_one_that_clients_can_use(workdir):
    for name in ("disk", "with space", "ümlaut&=?#%", "a.b"):
        path = lib_tools.create(f"{workdir}/{name}.qcow2", SIZE)
        with Server(workdir, path) as server:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            assert handle.get_size() == SIZE
            handle.shutdown()
        with Server(workdir, path, tcp=True) as server:
            assert lib_tools.run("nbdinfo", "--size", server.uri).strip() == str(SIZE)


def test_help_and_version():
    for words in (["--help"], ["--version"], ["serve", "--help"], ["serve", "--version"]):
        text = lib_tools.run(lib_server.BINARY, *words)
        assert "lazycow" in text
    text = lib_tools.run(lib_server.BINARY, "serve", "--help")
    for option in ("--socket", "--bind", "--port", "--read-only", "--cache", "--aio", "--discard",
                   "--detect-zeroes", "--lazy-refcounts", "--max-connections", "--pid-file"):
        assert option in text, option


def test_closed_standard_output(workdir, image):
    """Nothing reads the ready line: the server serves nevertheless."""
    path = f"{workdir}/s"
    process = subprocess.Popen([lib_server.BINARY, "serve", "-k", path, image],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=lib_server.sanitizer_environment())
    process.stdout.close()
    try:
        handle = None

        def connects():
            nonlocal handle
            assert process.poll() is None
            handle = nbd.NBD()
            handle.set_export_name("disk")
            try:
                handle.connect_unix(path)
            except nbd.Error:
                return False
            return True
        lib_server.wait_for(connects)
        assert handle.get_size() == SIZE
        handle.shutdown()
        process.terminate()
        assert process.wait(lib_server.STOP_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


# ---- Errors: exit code 1, one line on standard error --------------------------------------------

@pytest.mark.parametrize("arguments, said", [
    (["--no-such-option", "disk.qcow2"], "no-such-option"),
    (["--cache=sometimes", "disk.qcow2"], "sometimes"),
    (["--aio=magic", "disk.qcow2"], "magic"),
    (["--discard=maybe", "disk.qcow2"], "maybe"),
    (["--detect-zeroes=maybe", "disk.qcow2"], "maybe"),
    (["--lazy-refcounts=maybe", "disk.qcow2"], "maybe"),
    (["--port=70000", "disk.qcow2"], "70000"),
    (["--port=x", "disk.qcow2"], "x"),
    (["--max-connections=-1", "disk.qcow2"], "-1"),
    (["--mmap-size=33G", "disk.qcow2"], "33G"),
    (["--poll-max-ns=1000001", "disk.qcow2"], "1000001"),
    (["--format=vmdk", "disk.qcow2"], "vmdk"),
    (["-k", "s"], "image"),
    (["-k", "s", "missing.qcow2"], "missing.qcow2"),
    (["-k", "s", "disk.qcow2", "missing.qcow2"], "missing.qcow2"),
    (["-k", "s", "."], ""),
    (["-k", "s", "disk.qcow2", "disk=other.qcow2"], "disk"),
    (["-k", "no/such/directory/s", "disk.qcow2"], "no/such/directory/s"),
    (["-k", "x" * 200, "disk.qcow2"], "x" * 20),
    (["--bind=203.0.113.7", "--port=0", "disk.qcow2"], "203.0.113.7"),
    (["--pid-file=no/such/directory/pid", "-k", "s", "disk.qcow2"], "no/such/directory/pid"),
], ids=lambda value: None)
def test_refused(workdir, image, arguments, said):
    lib_tools.create(f"{workdir}/other.qcow2", SIZE)
    before = lib_tools.digest(image)
    line = refused(workdir, *arguments)
    assert said in line, line
    assert lib_tools.digest(image) == before
    assert not os.path.exists(f"{workdir}/s"), "left its socket behind"


def test_unreadable_image_says_so(workdir, image):
    # Root reads everything, so the refusal is that of a directory component.
    line = refused(workdir, "-k", "s", f"{image}/disk.qcow2")
    assert "disk.qcow2/disk.qcow2" in line, line


# ---- Sockets ------------------------------------------------------------------------------------

def test_stale_socket_is_replaced(workdir, image):
    first = Server(workdir, image)
    first.kill()
    assert os.path.exists(first.socket)
    with Server(workdir, image, socket_path=first.socket) as server:
        assert reads(server) == bytes(512)
    assert not os.path.exists(first.socket), "the socket outlived a clean stop"


def test_live_socket_is_not_stolen(workdir, image):
    other = lib_tools.create(f"{workdir}/other.qcow2", SIZE)
    with Server(workdir, image) as server:
        line = refused(workdir, "-k", server.socket, other)
        assert server.socket in line, line
        assert reads(server) == bytes(512)


def test_file_in_place_of_the_socket_is_kept(workdir, image):
    path = f"{workdir}/precious"
    with open(path, "wb") as stream:
        stream.write(b"data")
    line = refused(workdir, "-k", path, image)
    assert "precious" in line, line
    with open(path, "rb") as stream:
        assert stream.read() == b"data"


def test_port_in_use(workdir, image):
    other = lib_tools.create(f"{workdir}/other.qcow2", SIZE)
    with Server(workdir, image, tcp=True) as server:
        line = refused(workdir, "-b", "127.0.0.1", "-p", server.port, other)
        assert str(server.port) in line, line
        assert reads(server) == bytes(512)


def test_port_is_free_again_at_once(workdir, image):
    with Server(workdir, image, tcp=True) as server:
        port = server.port
        handle = server.connect()
        server.stop()
        del handle
    options = ["--bind", "127.0.0.1", "--port", str(port)]
    with Server(workdir, image, socket_path="", options=options) as server:
        server.tcp, server.port = True, port
        assert reads(server) == bytes(512)


# ---- Socket activation --------------------------------------------------------------------------

# Puts descriptors in place and becomes the server, as systemd would: LISTEN_PID is the server's.
ACTIVATOR = """
import os, sys
count = int(sys.argv[1])
for index in range(count):
    os.dup2(int(sys.argv[2 + index]), 100 + index)
for index in range(count):
    os.dup2(100 + index, 3 + index)
    os.set_inheritable(3 + index, True)
    os.close(100 + index)
os.environ["LISTEN_FDS"] = str(count)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def activated(workdir, images, sockets, **keywords):
    numbers = [listener.fileno() for listener in sockets]
    wrapper = [sys.executable, "-c", ACTIVATOR, str(len(sockets)), *map(str, numbers)]
    return Server(workdir, *images, socket_path="", wrapper=wrapper, pass_fds=numbers, **keywords)


def unix_listener(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(10)
    return listener


def test_socket_activation_with_one_socket(workdir, image):
    path = f"{workdir}/activated"
    with unix_listener(path) as listener:
        server = activated(workdir, [image], [listener])
        server.socket = path
        with server:
            assert reads(server) == bytes(512)
            assert reads(server, "") == bytes(512)
    assert os.path.exists(path), "the socket belongs to whoever made it"


def test_socket_activation_with_several_sockets(workdir, image):
    path = f"{workdir}/activated"
    with unix_listener(path) as one, socket.create_server(("127.0.0.1", 0)) as two:
        server = activated(workdir, [image], [one, two])
        with server:
            server.socket = path
            assert reads(server) == bytes(512)
            server.tcp, server.port = True, two.getsockname()[1]
            assert reads(server) == bytes(512)


def test_socket_activation_for_somebody_else_is_ignored(workdir, image):
    """LISTEN_PID names another process: an ordinary start."""
    with Server(workdir, image, environment={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        assert reads(server) == bytes(512)


def test_nbdcopy_square_brackets(workdir, image):
    """libnbd starts the server itself and hands it the socket."""
    handle = nbd.NBD()
    handle.set_export_name("disk")
    handle.connect_systemd_socket_activation([lib_server.BINARY, "serve", image])
    handle.pwrite(b"hello", 100)
    handle.flush()
    assert handle.pread(5, 100) == b"hello"
    handle.shutdown()
    del handle  # ends the server with SIGTERM, and waits


def test_sd_notify(workdir, image):
    path = f"{workdir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(lib_server.PATIENCE_SECONDS)
        with Server(workdir, image, environment={"NOTIFY_SOCKET": path}) as server:
            assert b"READY=1" in notify.recv(4096).split(b"\n")
            assert reads(server) == bytes(512)
        assert b"STOPPING=1" in notify.recv(4096).split(b"\n")


def test_sd_notify_in_the_abstract_namespace(workdir, image):
    name = f"lazycow-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind("\0" + name)
        notify.settimeout(lib_server.PATIENCE_SECONDS)
        with Server(workdir, image, environment={"NOTIFY_SOCKET": "@" + name}):
            assert b"READY=1" in notify.recv(4096).split(b"\n")


# ---- Exports ------------------------------------------------------------------------------------

def test_several_exports(workdir):
    images = []
    for number, size in enumerate((SIZE, 2 * SIZE, 3 * SIZE)):
        path = lib_tools.create(f"{workdir}/d{number}.qcow2", size)
        lib_tools.qemu_io(path, f"write -P {number + 1} 0 4096")
        images.append(path)
    with Server(workdir, images[0], ("second", images[1]), ("drei ß", images[2])) as server:
        for name, number in (("d0", 0), ("second", 1), ("drei ß", 2), ("", 0)):
            handle = server.connect(name)
            assert handle.get_size() == (number + 1) * SIZE, name
            assert handle.pread(1, 0) == bytes([number + 1]), name
            handle.pwrite(bytes([number + 65]) * 5000, 8192)
            handle.shutdown()
        with pytest.raises(nbd.Error):
            server.connect("d1")
        text = lib_tools.run("nbdinfo", "--list", server.uri)
        for name in ("d0", "second", "drei ß"):
            assert f'export="{name}"' in text, text
    for number, path in enumerate(images):
        lib_tools.check_clean(path)
        lib_tools.qemu_io(path, f"read -P {number + 65} 8192 5000")


def test_export_name_of_a_single_image(workdir, image):
    with Server(workdir, image, options=["-x", "given"]) as server:
        assert reads(server, "given") == bytes(512)
        assert reads(server, "") == bytes(512)


def test_one_image_twice_is_refused(workdir, image):
    """Two engines on one file would destroy it."""
    line = refused(workdir, "-k", "s", f"a={image}", f"b={image}")
    assert "disk.qcow2" in line, line
    lib_tools.check_clean(image)


def test_served_image_is_locked(workdir, image):
    with Server(workdir, image) as server:
        line = refused(workdir, "-k", "other", image)
        assert "disk.qcow2" in line, line
        text = lib_tools.qemu_img("check", image, codes=(1,))
        assert "lock" in text, text
        assert reads(server) == bytes(512)
    lib_tools.check_clean(image)


def test_readers_share(workdir, image):
    with Server(workdir, image, read_only=True) as one:
        with Server(workdir, image, read_only=True) as two:
            assert reads(one) == reads(two) == bytes(512)


def test_raw_image(workdir):
    """Served for reading, as the format of a backing file is: given, never guessed."""
    path = f"{workdir}/disk.raw"
    content = random.Random(3).randbytes(MEBI + 512)
    with open(path, "wb") as stream:
        stream.write(content)
    assert "disk.raw" in refused(workdir, "-k", "s", path)
    with Server(workdir, path, image_format="raw", read_only=True) as server:
        handle = server.connect()
        assert handle.get_size() == len(content)
        assert handle.pread(len(content), 0) == content
        handle.shutdown()


def test_pid_file(workdir, image):
    path = f"{workdir}/pid"
    with Server(workdir, image, options=["--pid-file", path]) as server:
        with open(path, encoding="ascii") as stream:
            assert int(stream.read()) == server.pid
    assert not os.path.exists(path)


# ---- The options of qemu-nbd --------------------------------------------------------------------

def test_detect_zeroes(workdir):
    """off writes them; on makes them zeroes that keep their space; unmap makes holes."""
    holes = {}
    for mode in ("off", "on", "unmap"):
        image = lib_tools.create(f"{workdir}/{mode}.qcow2", SIZE)
        with Server(workdir, image, detect_zeroes=mode) as server:
            handle = server.connect()
            handle.pwrite(b"\1" * MEBI, 0)
            handle.pwrite(bytes(MEBI), 0)
            found = []
            handle.block_status(MEBI, 0, lambda c, o, entries, e: found.extend(entries) or 0)
            holes[mode] = found[1]
            assert handle.pread(MEBI, 0) == bytes(MEBI)
            handle.shutdown()
        lib_tools.check_clean(image)
    assert holes["off"] == 0
    assert holes["on"] & nbd.STATE_ZERO
    assert holes["unmap"] == nbd.STATE_ZERO | nbd.STATE_HOLE


def test_discard_ignore(workdir, image):
    with Server(workdir, image, discard="ignore") as server:
        handle = server.connect()
        handle.pwrite(b"\1" * MEBI, 0)
        handle.trim(MEBI, 0)
        assert handle.pread(MEBI, 0) == b"\1" * MEBI
        handle.shutdown()


@pytest.mark.parametrize("mode", ["on", "off"])
def test_lazy_refcounts_option(workdir, mode):
    """Overrides the header for this run, and does not change it."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE,
                             lazy_refcounts="off" if mode == "on" else "on")
    before = lib_qcow2.Header(image).compatible_features
    with Server(workdir, image, lazy_refcounts=mode, options=["--clean-after=0"]) as server:
        handle = server.connect()
        handle.pwrite(b"\1" * MEBI, 0)
        handle.flush()
        dirty = lib_qcow2.Header(image).incompatible & lib_qcow2.DIRTY
        assert bool(dirty) == (mode == "on")
        handle.shutdown()
    assert lib_qcow2.Header(image).compatible_features == before
    lib_tools.check_clean(image)


def test_log_is_silent_by_default_and_short_on_errors(workdir, image):
    with Server(workdir, image) as server:
        for _ in range(20):
            reads(server)
        with Wire(server) as wire:
            wire.go()
            for _ in range(1000):
                assert wire.error(1, 0, 4096, 1 << 14, bytes(4096)) != 0
        with server.raw_socket() as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        reads(server)
        assert len(server.stderr().splitlines()) < 200
