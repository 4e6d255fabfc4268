# SPDX-License-Identifier: Apache-2.0
"""Planned restarts under clients that come back: QEMU with reconnect-delay sees no error, whatever was
in flight, and everything that it was told is done is there."""
import os
import random
import ssl
import subprocess
import threading
import time

import nbd
import pytest

import lib_guest
import lib_tls
import lib_tools
from lib_server import PATIENCE_SECONDS, Server
from lib_wire import (CMD_FLUSH, CMD_READ, CMD_WRITE, OPT_GO, OPT_STARTTLS, REP_ACK, Wire, go_data,
                      request_bytes)

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
# Threads of the load, each with a part of the disk of its own.
WRITERS = 4
PART = SIZE // WRITERS
# A restart comes when so many more requests were answered: at any point of their lives.
BETWEEN_RESTARTS = 40
# A barrier takes so long that some request waits for one nearly always.
SLOW_SYNC_MS = 20


def wait_for(condition, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class StorageDaemon:
    """A qemu-storage-daemon that has the export with reconnect-delay, and serves it again to clients
    that do not come back."""

    def __init__(self, directory, server, objects=(), blockdev=""):
        address = (f"server.type=inet,server.host=127.0.0.1,server.port={server.port}"
                   if server.tcp else f"server.type=unix,server.path={server.socket}")
        self.socket = f"{directory}/again"
        self.log = open(f"{directory}/qemu.log", "wb")
        words = ["qemu-storage-daemon"]
        for text in objects:
            words += ["--object", text]
        self.process = subprocess.Popen(words + [
            "--blockdev", f"driver=nbd,node-name=disk,export=disk,reconnect-delay=300,{address}"
                          f"{blockdev}",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket}", "--export",
            "type=nbd,id=e,node-name=disk,name=again,writable=on"], stderr=self.log)
        wait_for(lambda: os.path.exists(self.socket) or self.process.poll() is not None)
        assert self.process.poll() is None

    def connect(self):
        handle = nbd.NBD()
        handle.set_export_name("again")
        handle.connect_unix(self.socket)
        return handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A daemon whose server is gone would first wait out its reconnect-delay.
        self.process.kill()
        self.process.wait(30)
        self.log.close()


class Load:
    """Threads that write, flush, trim and read their data back, each in its part of the disk. An
    error or a wrong byte ends the thread and is kept for check()."""

    def __init__(self, connect):
        self.answered = 0
        self.stop = False
        self.problems = []
        self.contents = [bytearray(PART) for _ in range(WRITERS)]
        self.threads = [threading.Thread(target=self.run, args=(connect, number))
                        for number in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def run(self, connect, number):
        try:
            handle = connect()
            rng = random.Random(number)
            while not self.stop:
                self.step(handle, rng, number * PART, self.contents[number])
                self.answered += 1
            handle.flush()
            handle.shutdown()
        except Exception as error:  # for check(), in the test's own thread
            self.problems.append(f"writer {number}: {error!r}")

    @staticmethod
    def step(handle, rng, base, content):
        length = rng.choice((512, 4096, 70000, MEBI))
        at = rng.randrange(0, PART - length, 512)
        kind = rng.choice(("write", "write", "write", "fua", "zero", "flush", "read", "read"))
        if kind in ("write", "fua"):
            data = rng.randbytes(length)
            handle.pwrite(data, base + at, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
            content[at:at + length] = data
        elif kind == "zero":
            handle.zero(length, base + at)
            content[at:at + length] = bytes(length)
        elif kind == "flush":
            handle.flush()
        else:
            assert handle.pread(length, base + at) == content[at:at + length], "other bytes"

    def wait_for_answers(self, count):
        goal = self.answered + count
        wait_for(lambda: self.answered >= goal or self.problems)
        assert not self.problems, self.problems

    def check(self):
        self.stop = True
        for thread in self.threads:
            thread.join()
        assert not self.problems, self.problems


@pytest.fixture(scope="module")
def slow_sync(tmp_path_factory):
    """The environment of a server whose barriers are slow."""
    library = tmp_path_factory.mktemp("slow") / "slow_sync.so"
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "slow_sync.c")
    lib_tools.run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
                  source)
    return {"LD_PRELOAD": str(library), "SLOW_SYNC_MS": str(SLOW_SYNC_MS)}


def restart_under_load(connect, start, first, restarts):
    """Stops the server and starts it anew, again and again, while clients work on. Returns the last
    one, which has stopped, and the load."""
    load = Load(connect)
    server = first
    try:
        for _ in range(restarts):
            load.wait_for_answers(BETWEEN_RESTARTS)
            server.stop()
            lib_tools.check_clean(server.images[0][1])
            server = start()
        load.wait_for_answers(BETWEEN_RESTARTS)
        load.check()
        server.stop()
    finally:
        load.stop = True
        server.kill()
        for thread in load.threads:
            thread.join(10)
    return load


@pytest.mark.limit(300)
@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_qemu_sees_no_error(workdir, slow_sync, kind):
    """Restarts on one address under QEMU's own client, with requests in flight."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    options = []
    objects = []
    blockdev = ""
    if kind == "tls":
        authority = lib_tls.Authority(f"{workdir}/ca")
        options = ["--tls-certificates", authority.issue("server", f"{workdir}/s", "localhost")]
        objects = [f"tls-creds-x509,id=t,endpoint=client,dir={workdir}/s,verify-peer=on"]
        blockdev = ",tls-creds=t"

    def start(port=0):
        return Server(workdir, image, aio="threads", plain=True, environment=slow_sync,
                      tcp=kind != "unix", socket_path=f"{workdir}/nbd",
                      options=options + (["--port", str(port)] if kind != "unix" else []))
    first = start()
    try:
        with StorageDaemon(workdir, first, objects, blockdev) as qemu:
            load = restart_under_load(qemu.connect, lambda: start(first.port), first,
                                      lib_tools.scaled(12 if kind == "unix" else 4))
    finally:
        first.kill()
    lib_tools.check_clean(image)
    assert lib_tools.read_all(image) == b"".join(load.contents)


# ---- Byte by byte -------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_what_was_begun_is_answered(workdir, slow_sync, tcp):
    """A flush that runs when the stop comes is answered, and nothing that is sent behind that: neither
    a whole write nor one whose payload is not all there. Then comes the end, not a reset, however much
    the client still sends."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    server = Server(workdir, image, aio="threads", plain=True, tcp=tcp,
                    environment={**slow_sync, "SLOW_SYNC_MS": "3000"}, options=["--clean-after=0"])
    with Wire(server, timeout=60) as wire:
        wire.go(structured=False)
        assert wire.error(CMD_WRITE, 0, 4096, payload=b"\1" * 4096) == 0
        wire.send(request_bytes(CMD_FLUSH, 77))
        # The reply to a read that came behind the flush tells that the flush was begun.
        wire.send(request_bytes(CMD_READ, 78, 0, 512))
        assert wire.reply(512)[:2] == (78, 0)
        server.process.send_signal(15)
        wait_for(lambda: "stopping" in server.stderr())
        late = (request_bytes(CMD_READ, 79, 0, 512)
                + request_bytes(CMD_WRITE, 80, 0, 4096, 0, b"\2" * 4096))
        wire.socket.settimeout(0.2)
        try:
            for _ in range(300):
                wire.socket.sendall(late)
            wire.socket.sendall(request_bytes(CMD_WRITE, 81, 0, MEBI, 0, b"\3" * 1000))
        except TimeoutError:
            pass  # the server does not read
        wire.socket.settimeout(60)
        assert wire.reply()[:2] == (77, 0)
        assert wire.socket.recv(1) == b""
    assert server.wait_exit() == 0, server.stderr_tail()
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 1 0 4096", "read -P 0 4096 1M")


@pytest.mark.parametrize("sent", [0, 20, 28, 2000], ids=["nothing", "header", "whole", "payload"])
def test_a_write_in_part_is_dropped(workdir, sent):
    """It gets no answer, and the stop does not wait for the rest."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    server = Server(workdir, image)
    with Wire(server) as wire:
        wire.go(structured=False)
        assert wire.error(CMD_FLUSH) == 0
        wire.send(request_bytes(CMD_WRITE, 5, 0, MEBI, 0, b"\3" * 2000)[:sent])
        server.process.send_signal(15)
        assert wire.socket.recv(1) == b""
        wire.socket.close()
    assert server.wait_exit() == 0, server.stderr_tail()
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 0 0 1M")


def test_several_connections_end_together(workdir, slow_sync):
    """A client with four connections: each gets the answers to its begun requests, and its end."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    server = Server(workdir, image, aio="threads", plain=True, environment=slow_sync)
    wires = [Wire(server, timeout=60) for _ in range(4)]
    for wire in wires:
        wire.go(structured=False)
    for number, wire in enumerate(wires):
        for cookie in range(50):
            wire.send(request_bytes(CMD_WRITE, cookie, number * MEBI, 4096, 1,
                                    bytes([number + 1]) * 4096))
    assert wires[0].reply()[1] == 0
    server.process.send_signal(15)
    answered = []
    for number, wire in enumerate(wires):
        replies = b""
        while data := wire.socket.recv(4096):
            replies += data
        assert len(replies) % 16 == 0
        assert all(replies[at + 4:at + 8] == bytes(4) for at in range(0, len(replies), 16))
        answered.append(len(replies) > 0 or number == 0)
        wire.socket.close()
    assert server.wait_exit() == 0, server.stderr_tail()
    lib_tools.check_clean(image)
    for number, any_answered in enumerate(answered):
        if any_answered:
            lib_tools.qemu_io(image, f"read -P {number + 1} {number}M 4096")


@pytest.mark.slow
def test_tls_is_ended_before_tcp(workdir, slow_sync):
    """A client learns from TLS that nothing was cut off, behind the answers to its begun requests."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    directory = lib_tls.Authority(f"{workdir}/ca").issue("server", f"{workdir}/s", "localhost")
    server = Server(workdir, image, aio="threads", plain=True, tcp=True,
                    environment={**slow_sync, "SLOW_SYNC_MS": "3000"},
                    options=["--tls-certificates", directory, "--clean-after=0"])
    with Wire(server, timeout=60) as wire:
        wire.greet()
        assert wire.option_result(OPT_STARTTLS) == REP_ACK
        context = ssl.create_default_context(cafile=f"{directory}/ca-cert.pem")
        # Without a shutdown of TLS recv() would raise SSLEOFError.
        wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost",
                                          suppress_ragged_eofs=False)
        assert wire.option(OPT_GO, go_data("disk"))[-1][0] == REP_ACK
        assert wire.error(CMD_WRITE, 0, 4096, payload=b"\1" * 4096) == 0
        wire.send(request_bytes(CMD_FLUSH, 77) + request_bytes(CMD_READ, 78, 0, 512))
        assert wire.reply(512)[:2] == (78, 0)
        server.process.send_signal(15)
        assert wire.reply()[:2] == (77, 0)
        assert wire.socket.recv(1) == b""
    assert server.wait_exit() == 0, server.stderr_tail()


# ---- The Linux kernel ---------------------------------------------------------------------------

KERNEL_RESTARTS = 3
# The host restarts the server at each word RESTART. A device with one connection waits where that is
# dead; of one with three, any may be dead while the others are not.
KERNEL_SCRIPT = r"""
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15 netmask 255.255.255.0
prepare() {
    guest_nbd connect $1 HOST PORT $2 $3
    mkfs.ext4 -q -F /dev/nbd$1
    mkdir /mnt/$2
    mount -t ext4 -o discard /dev/nbd$1 /mnt/$2
    mkdir /mnt/$2/files
}
load() { guest_files run /mnt/$1/files /tmp/model.$1 $round OPERATIONS; }
reconnect() {
    until guest_nbd reconnect $1 HOST PORT $2 $3 2>/dev/null; do
        sleep 1
    done
}
verify() {
    umount /mnt/$2
    e2fsck -fn /dev/nbd$1
    mount -t ext4 /dev/nbd$1 /mnt/$2
    guest_files verify /mnt/$2/files /tmp/model.$2
    umount /mnt/$2
    nbd-client -d /dev/nbd$1
}
prepare 0 one 1
prepare 1 three 3
round=1
while [ $round -le ROUNDS ]; do
    load one &
    one=$!
    load three &
    three=$!
    sleep 1
    echo RESTART $round
    guest_nbd wait HOST PORT
    reconnect 0 one 1
    reconnect 1 three 3
    wait $one
    wait $three
    round=$((round + 1))
done
verify 0 one
verify 1 three
"""


@pytest.mark.slow
@pytest.mark.limit(900)
def test_kernel_sees_no_error(workdir, slow_sync):
    """The kernel's client over netlink with dead_conn_timeout, mounted file systems on it, and the
    server restarted while files are written."""
    rounds = lib_tools.scaled(KERNEL_RESTARTS)
    images = [(name, lib_tools.create(f"{workdir}/{name}.qcow2", 512 * MEBI, lazy_refcounts="on"))
              for name in ("one", "three")]
    programs = [lib_guest.compiled(workdir, "guest_files"),
                lib_guest.compiled(workdir, "guest_nbd"), "nbd-client"]

    def start(port):
        return Server(workdir, *images, aio="threads", plain=True, tcp=True,
                      environment=slow_sync, options=["--port", str(port)])
    server = start(0)
    port = server.port
    script = KERNEL_SCRIPT
    for word, value in (("HOST", "10.0.2.2"), ("PORT", port), ("ROUNDS", rounds),
                        ("OPERATIONS", 100)):
        script = script.replace(word, str(value))
    try:
        with lib_guest.BackgroundGuest(
                workdir, ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"], script,
                modules=("crc32c_generic", "virtio_pci", "virtio_net", "nbd", "ext4"),
                programs=programs, timeout=850) as guest:
            for number in range(1, rounds + 1):
                guest.wait_for_word(f"RESTART {number}")
                server.stop()
                for _, image in images:
                    lib_tools.check_clean(image)
                server = start(port)
            text = guest.result()
        server.stop()
    finally:
        server.kill()
    assert text.count("is as it must be") == 2 * (rounds + 1), text[-6000:]
    for _, image in images:
        lib_tools.check_clean(image)
