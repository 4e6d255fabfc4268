# SPDX-License-Identifier: Apache-2.0
"""Limits of the host: each ends in one line that names it, or in serving; never in a signal."""
import os
import select
import shutil
import signal
import subprocess

import pytest

import lib_tools
from lib_server import PLAIN_BINARY, START_SECONDS, STOP_SECONDS, sanitizer_environment

pytestmark = pytest.mark.lazycow_only

KIBI = 1 << 10
MEBI = 1 << 20

# Sanitizers reserve terabytes of addresses and have threads of their own: a plain binary is limited.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is made to become a user, whose "
                                "processes are counted")

CLIENT = """
import nbd, sys
handle = nbd.NBD()
handle.set_uri_allow_local_file(True)
handle.connect_uri(sys.argv[1])
assert handle.pread(1 << 20, 0) == bytes([7]) * (1 << 20)
handle.pwrite(b'x' * 200000, 3 << 20)
handle.flush()
handle.shutdown()
"""


class Limited:
    """A server under limits, as a user of its own, until it listens or ends."""

    def __init__(self, workdir, limits, options=()):
        self.workdir = workdir
        os.chmod(workdir, 0o777)
        self.image = f"{workdir}/disk.qcow2"
        source = lib_tools.create(f"{workdir}/source.qcow2", 8 * MEBI)
        lib_tools.qemu_io(source, "write -P 7 0 1M")
        lib_tools.qemu_img("convert", "-c", "-O", "qcow2", source, self.image)
        os.chmod(self.image, 0o666)
        self.psk = f"{workdir}/psk"
        with open(self.psk, "w", encoding="ascii") as stream:
            stream.write("user:00112233445566778899aabbccddeeff\n")
        os.chmod(self.psk, 0o600)
        if os.geteuid() == 0:
            os.chown(self.psk, 65532, 65532)
        self.socket = f"{workdir}/socket"
        user = (["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"]
                if os.geteuid() == 0 else [])
        binary = shutil.copy(PLAIN_BINARY, f"{workdir}/lazycow")
        with open(f"{workdir}/stderr", "wb") as stderr:
            # The limits last: they are lazycow's, not those of what starts it.
            self.process = subprocess.Popen(
                [*user, "prlimit", *limits, binary, "serve", "-k", self.socket, "--tls=on",
                 "--tls-psk", self.psk, *options, self.image], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=stderr, env=sanitizer_environment())
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        if not ready:
            self.process.kill()
            raise AssertionError("neither listens nor ends")
        self.served = self.process.stdout.readline() != b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def use(self, tls):
        uri = (f"nbds+unix://user@/disk?socket={self.socket}&tls-psk-file={self.psk}" if tls
               else f"nbd+unix:///disk?socket={self.socket}")
        return subprocess.run(["/usr/bin/python3", "-c", CLIENT, uri], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=STOP_SECONDS, check=False)

    def end(self):
        if self.served:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS)
        with open(f"{self.workdir}/stderr", encoding="utf-8") as stream:
            return code, stream.read()


def refused_or_serving(workdir, limits, options=(), may_fail=False):
    """Returns the message of a refusal, "" for a server. may_fail: memory may lack for a request."""
    with Limited(workdir, limits, options) as server:
        if server.served:
            for tls in (True, False):
                done = server.use(tls)
                assert done.returncode == 0 or may_fail, done.stdout.decode()
        code, text = server.end()
    if server.served:
        assert code == 0, (code, text)
        lib_tools.check_clean(server.image)
        return ""
    if code == 127:
        pytest.skip("the dynamic linker itself is refused")
    assert code == 1 and text.startswith("lazycow: ") and text.count("\n") == 1, (code, text)
    return text


@needs_root
@pytest.mark.parametrize("aio", ["auto", "io_uring", "threads"])
@pytest.mark.parametrize("processes", [0, 1, 2, 3, 4, 5, 6, 8])
def test_processes(workdir, processes, aio):
    """A TLS handshake and inflating want a thread, files another: both are there before
    "listening"."""
    text = refused_or_serving(workdir, [f"--nproc={processes}"], [f"--aio={aio}"])
    assert (text != "") == (processes < 3)
    assert text == "" or ("TasksMax=" in text and "ulimit -u" in text)


@pytest.mark.parametrize("files", range(4, 34))
def test_open_files(workdir, files):
    text = refused_or_serving(workdir, [f"--nofile={files}"])
    assert text == "" or ("ulimit -n" in text and "LimitNOFILE=" in text)
    assert files < 30 or text == ""


@pytest.mark.parametrize("resource", ["as", "data"])
@pytest.mark.parametrize("size", [m * MEBI for m in (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28,
                                                     32, 40, 48, 64, 96, 128, 192, 256)])
def test_memory(workdir, resource, size):
    # glibc sets addresses aside for each thread that allocates: more of them can be too few again.
    refused_or_serving(workdir, [f"--{resource}={size}"], may_fail=True)


@pytest.mark.parametrize("size", [k * KIBI for k in (32, 64, 96, 128, 192, 256, 512)])
def test_stack(workdir, size):
    text = refused_or_serving(workdir, [f"--stack={size}"])
    assert (text != "") == (size < 256 * KIBI)
    assert text == "" or "ulimit -s" in text
    # A soft limit alone is raised.
    shutil.rmtree(workdir)
    os.mkdir(workdir)
    assert refused_or_serving(workdir, [f"--stack={size}:unlimited"]) == ""


@pytest.mark.parametrize("limit", ["memlock=0", "memlock=4096", "sigpending=0", "msgqueue=0",
                                   "rtprio=0", "nice=0", "core=0", "locks=0", "rss=0"])
def test_limits_that_do_not_matter(workdir, limit):
    assert refused_or_serving(workdir, [f"--{limit}"]) == ""


@pytest.mark.parametrize("size", [0, 65536, 300000])
def test_file_size(workdir, size):
    """A limit of the file's size is lack of space for the client, and no SIGXFSZ."""
    with Limited(workdir, [f"--fsize={size}"]) as server:
        assert b"No space left" in server.use(False).stdout
        assert server.end()[0] == 0


@pytest.mark.parametrize("command", [["info"], ["check"], ["check", "-r", "all"], ["create"]],
                         ids=" ".join)
@pytest.mark.parametrize("limit", [*(f"--nofile={n}" for n in range(3, 12)),
                                   *(f"--as={m * MEBI}" for m in (9, 10, 11, 12, 14, 16, 20, 24)),
                                   *(f"--stack={k * KIBI}" for k in (32, 64, 128)), "--fsize=0",
                                   "--memlock=0"])
def test_commands(workdir, limit, command):
    image = lib_tools.create(f"{workdir}/disk.qcow2", 8 * MEBI)
    before = lib_tools.digest(image)
    arguments = [f"{workdir}/new.qcow2", "8M"] if command == ["create"] else [image]
    done = subprocess.run(["prlimit", limit, PLAIN_BINARY, *command, *arguments],
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, timeout=STOP_SECONDS, check=False)
    text = done.stderr.decode()
    assert done.returncode in (0, 1, 127), (done.returncode, text)
    assert done.returncode != 1 or text.count("\n") == 1, text
    assert lib_tools.digest(image) == before
