# SPDX-License-Identifier: Apache-2.0
"""One client at standard input and output: --stdio."""
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading

import nbd
import pytest

import lib_server
import lib_tls
import lib_tools
from lib_server import BINARY, refused
from lib_wire import IHAVEOPT, NBDMAGIC, OPT_GO, go_data, option_bytes

pytestmark = pytest.mark.lazycow_only

SIZE = 4 << 20
GREETING = struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)
SECONDS = 60


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")


def spawn(workdir, image, *options, **keywords):
    keywords.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen([BINARY, "serve", "--stdio", *options, image], cwd=workdir,
                            env=lib_server.sanitizer_environment(), **keywords)


def ended(process, code=0):
    """Waits for the end of the server and checks its output. Returns the output."""
    assert process.wait(SECONDS) == code
    text = process.stderr.read().decode() if process.stderr else ""
    if process.stderr:
        process.stderr.close()
    assert not lib_server.SANITIZER.search(text), text
    return text


def over_socket(workdir, image, *options, **keywords):
    """As inetd starts it. Returns our end of the socket, and the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = spawn(workdir, image, *options, stdin=theirs, stdout=theirs, **keywords)
    ours.settimeout(SECONDS)
    return ours, process


def handle_on(connection):
    handle = nbd.NBD()
    handle.set_export_name("disk")
    handle.connect_socket(os.dup(connection.fileno()))
    return handle


# ---- libnbd -------------------------------------------------------------------------------------

def test_connect_command(workdir, image):
    handle = nbd.NBD()
    handle.connect_command([BINARY, "serve", "--stdio", image])
    assert handle.get_size() == SIZE and not handle.can_multi_conn()
    handle.pwrite(b"hello", 1000)
    handle.flush()
    assert handle.pread(5, 1000) == b"hello"
    handle.shutdown()
    del handle
    lib_tools.qemu_io(image, "read -P 104 1000 1", "read -P 111 1004 1")
    lib_tools.check_clean(image)


def test_square_brackets(workdir, image):
    """libnbd's tools hand over a listening socket there."""
    words = ["[", BINARY, "serve", "--stdio", image, "]"]
    result = subprocess.run(["nbdinfo", "--size", "--", *words], stdout=subprocess.PIPE, check=True,
                            timeout=SECONDS)
    assert result.stdout.decode().strip() == str(SIZE)


def test_tls(workdir, image):
    keys = lib_tls.psk_file(f"{workdir}/keys", alice="aa" * 16)
    for output in (None, f"{workdir}/pipes"):
        handle = nbd.NBD()
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_psk_file(keys)
        handle.set_tls_username("alice")
        command = [BINARY, "serve", "--stdio", f"--tls-psk={keys}", image]
        if output:
            # cat makes a pipe of what comes and of what goes.
            command = ["sh", "-c", "cat | \"$@\" | cat", "sh", *command]
        handle.connect_command(command)
        assert handle.get_tls_negotiated()
        handle.pwrite(b"\7" * 100000, 0)
        assert handle.pread(100000, 0) == b"\7" * 100000
        handle.shutdown()
        del handle


# ---- A socket -----------------------------------------------------------------------------------

def test_socket(workdir, image):
    """It writes only NBD, logs to standard error, and ends with the client."""
    connection, process = over_socket(workdir, image)
    with connection:
        handle = handle_on(connection)
        handle.pwrite(b"\1" * 512, 0)
        handle.shutdown()
        del handle
        assert connection.recv(100) == b""
        text = ended(process)
    assert "export 'disk'" in text and "listening" not in text
    lib_tools.check_clean(image)


def test_end_without_a_word(workdir, image):
    connection, process = over_socket(workdir, image)
    with connection:
        assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
    ended(process)


def test_end_in_the_middle(workdir, image):
    connection, process = over_socket(workdir, image)
    with connection:
        handle = handle_on(connection)
        handle.pwrite(b"\1" * 512, 0, nbd.CMD_FLAG_FUA)
        connection.shutdown(socket.SHUT_RDWR)
    ended(process)
    lib_tools.check_clean(image)


def test_tcp(workdir, image):
    """As inetd has it, with the client's address in the log."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        theirs, address = listener.accept()
    with client:
        with theirs:
            process = spawn(workdir, image, stdin=theirs, stdout=theirs)
        handle = handle_on(client)
        assert handle.get_size() == SIZE
        handle.shutdown()
        del handle
    assert f"(127.0.0.1:{address[1]})" in ended(process)


def test_standard_error_is_the_client_too(workdir, image):
    """Classic inetd gives all three: no line of the log comes between."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = spawn(workdir, image, "-v", stdin=theirs, stdout=theirs, stderr=theirs)
        ours.settimeout(SECONDS)
        handle = handle_on(ours)
        for _ in range(10):
            assert handle.pread(4096, 0) == bytes(4096)
        handle.shutdown()
        del handle
        assert ours.recv(100) == b""
    assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(workdir, image, number):
    connection, process = over_socket(workdir, image)
    with connection:
        handle = handle_on(connection)
        handle.pwrite(b"\1" * 512, 0)
        process.send_signal(number)
        with pytest.raises(nbd.Error):
            while True:
                handle.pread(512, 0)
        ended(process)
    lib_tools.check_clean(image)


# ---- Two pipes ----------------------------------------------------------------------------------

def over_pipes(workdir, image, *options, **keywords):
    return spawn(workdir, image, *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                 bufsize=0, **keywords)


def read_exactly(stream, length):
    data = b""
    while len(data) < length:
        piece = stream.read(length - len(data))
        assert piece, f"the end after {len(data)} bytes"
        data += piece
    return data


class Bridge:
    """Our end of two pipes as one socket, which libnbd wants."""

    def __init__(self, process):
        self.ours, self.theirs = socket.socketpair()
        self.threads = [threading.Thread(target=self._in, args=(process.stdin,)),
                        threading.Thread(target=self._out, args=(process.stdout,))]
        for thread in self.threads:
            thread.start()

    def _in(self, stream):
        while data := self.theirs.recv(1 << 16):
            view = memoryview(data)
            while view:
                view = view[stream.write(view):]
        stream.close()

    def _out(self, stream):
        while data := stream.read(1 << 16):
            self.theirs.sendall(data)
        stream.close()
        self.theirs.shutdown(socket.SHUT_WR)

    def close(self):
        self.ours.close()
        for thread in self.threads:
            thread.join(SECONDS)
        self.theirs.close()


def test_pipes(workdir, image):
    process = over_pipes(workdir, image)
    bridge = Bridge(process)
    handle = handle_on(bridge.ours)
    content = os.urandom(SIZE)
    for offset in range(0, SIZE, 1 << 20):
        handle.pwrite(content[offset:offset + (1 << 20)], offset)
    assert handle.pread(SIZE, 0) == content
    handle.shutdown()
    del handle
    bridge.close()
    assert "(standard input)" in ended(process)
    lib_tools.check_clean(image)


def test_end_of_input(workdir, image):
    """The end of input ends the server, and the client has its replies."""
    process = over_pipes(workdir, image)
    process.stdin.write(struct.pack(">I", 3) + option_bytes(OPT_GO, go_data("disk")))
    process.stdin.close()
    data = process.stdout.read()
    rest = data
    while piece := process.stdout.read():
        rest += piece
    assert rest.startswith(GREETING) and len(rest) > len(GREETING) + 20
    process.stdout.close()
    ended(process)


def test_no_input_at_all(workdir, image):
    result = subprocess.run([BINARY, "serve", "--stdio", image], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, timeout=SECONDS, check=True)
    assert result.stdout in (GREETING, b"")


@pytest.mark.slow
def test_nobody_reads(workdir, image):
    """A client that takes no replies does not delay a stop for ever."""
    process = over_pipes(workdir, image)
    assert read_exactly(process.stdout, len(GREETING)) == GREETING
    process.stdin.write(struct.pack(">I", 3) + option_bytes(OPT_GO, go_data("disk")))
    request = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 1 << 20)
    process.stdin.write(request * 8)
    assert read_exactly(process.stdout, 1)  # it is at it
    process.terminate()
    ended(process)
    process.stdin.close()
    process.stdout.close()


def test_the_reader_goes_away(workdir, image):
    """That is noticed by the next reply."""
    process = over_pipes(workdir, image)
    assert read_exactly(process.stdout, len(GREETING)) == GREETING
    process.stdout.close()
    process.stdin.write(struct.pack(">I", 3) + option_bytes(OPT_GO, go_data("disk")))
    ended(process)
    process.stdin.close()


def test_pipes_that_do_not_block(workdir, image):
    """They may be shared with a parent that has made them so."""
    process = None
    ours_in, theirs_in = os.pipe()
    theirs_out, ours_out = os.pipe()
    for fd in (ours_in, ours_out):
        os.set_blocking(fd, False)
    process = spawn(workdir, image, stdin=ours_in, stdout=ours_out)
    os.close(ours_in)
    os.close(ours_out)
    with os.fdopen(theirs_out, "rb", buffering=0) as out:
        assert read_exactly(out, len(GREETING)) == GREETING
        os.write(theirs_in, struct.pack(">I", 3) + option_bytes(OPT_GO, go_data("disk")))
        assert read_exactly(out, 20)
        os.write(theirs_in, struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4 << 20))
        while len(out.read(1 << 16)) > 0:
            if theirs_in is not None:
                os.close(theirs_in)
                theirs_in = None
    ended(process)


def test_log_in_the_same_pipe(workdir, image):
    process = over_pipes(workdir, image, "-v", stderr=subprocess.STDOUT)
    process.stdin.close()
    assert process.stdout.read() in (GREETING, b"")
    process.stdout.close()
    assert process.wait(SECONDS) == 0


# ---- What does not go ---------------------------------------------------------------------------

def test_an_image_that_is_not_there(workdir):
    for keywords in ({"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}, None):
        if keywords:
            process = spawn(workdir, "none.qcow2", **keywords)
            assert process.stdout.read() == b""
            process.stdin.close()
            process.stdout.close()
        else:
            connection, process = over_socket(workdir, "none.qcow2")
            with connection:
                assert connection.recv(1) == b""
        assert "none.qcow2" in ended(process, code=1)


@pytest.mark.parametrize("words", [["-k", "s"], ["-b", "127.0.0.1"], ["-p", "0"], ["--vsock=5"]])
def test_not_with_addresses(workdir, image, words):
    assert "--stdio listens nowhere" in refused(workdir, "--stdio", *words, image)


def test_no_terminal(workdir, image):
    if not shutil.which("script"):
        pytest.skip("there is no script(1)")
    text = lib_tools.run("script", "-qec", f"{BINARY} serve --stdio {image}", "/dev/null",
                         codes=(1,))
    assert "terminal" in text


def test_no_listening_socket(workdir, image):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = spawn(workdir, image, stdin=listener, stdout=listener)
        assert "listening socket" in ended(process, code=1)


def test_no_datagrams(workdir, image):
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        process = spawn(workdir, image, stdin=one, stdout=one)
        assert "no stream socket" in ended(process, code=1)


def test_options_of_running(workdir, image):
    """The file with the process's number is there while it serves."""
    connection, process = over_socket(workdir, image, f"--pid-file={workdir}/pid")
    with connection:
        assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
        with open(f"{workdir}/pid", encoding="ascii") as stream:
            assert int(stream.read()) == process.pid
    ended(process)
    assert not os.path.exists(f"{workdir}/pid")
