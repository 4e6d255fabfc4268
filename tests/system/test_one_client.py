# SPDX-License-Identifier: Apache-2.0
"""Few connections allowed (--max-connections=1 and 2): clients do not open more than they may, and one
that comes right behind another is let in."""
import random
import signal
import socket
import struct

import nbd
import pytest

import lib_tls
import lib_tools
from lib_server import Server
from lib_wire import (CMD_DISC, CMD_FLUSH, CMD_READ, CMD_WRITE, OPT_GO, REP_ACK, Closed, Wire, go_data,
                      option_bytes, request_bytes)

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI
FLAG_CAN_MULTI_CONN = 1 << 8
INFO_EXPORT = 0


@pytest.fixture
def image(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    lib_tools.qemu_io(image, "write -P 5 0 4M")
    return image


@pytest.mark.parametrize("limit", [1, 2, None])
@pytest.mark.parametrize("read_only", [False, True])
def test_multi_conn_is_offered_where_there_may_be_several(workdir, image, limit, read_only):
    with Server(workdir, image, max_connections=limit, read_only=read_only) as server:
        with Wire(server) as wire:
            flags = struct.unpack(">QH", wire.go()[INFO_EXPORT])[1]
            assert bool(flags & FLAG_CAN_MULTI_CONN) == (limit != 1)


def test_copies_with_one_connection(workdir, image):
    """nbdcopy opens four connections where it may, qemu-img one."""
    with Server(workdir, image, max_connections=1) as server:
        for number in range(5):
            out = f"{workdir}/copy{number}"
            if number % 2:
                lib_tools.qemu_img("convert", "-f", "raw", "-O", "raw", server.uri, out)
            else:
                lib_tools.run("nbdcopy", server.uri, out)
            with open(out, "rb") as stream:
                assert stream.read(4 * MEBI) == b"\5" * (4 * MEBI)


def test_copy_with_two_connections(workdir, image):
    with Server(workdir, image, max_connections=2) as server:
        out = f"{workdir}/copy"
        for _ in range(5):
            lib_tools.run("nbdcopy", "--connections=2", server.uri, out)


def leave(wire, how):
    if how == "disconnect":
        wire.send(request_bytes(CMD_DISC, 9))
    elif how == "reset":
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("how", ["disconnect", "close", "reset"])
@pytest.mark.parametrize("behind", ["nothing", "requests"])
def test_the_next_client_is_let_in(workdir, image, tcp, how, behind):
    """It connects right after the one before it has ended, whose requests may not be done, or not even
    have been read."""
    with Server(workdir, image, max_connections=1, tcp=tcp) as server:
        for number in range(lib_tools.scaled(60)):
            wire = Wire(server)
            wire.go(structured=False)
            if behind == "requests":
                # More than are taken at a time, some of which are slow.
                wire.send(b"".join(
                    request_bytes(CMD_WRITE, at, at % 64 * 65536, 4096, 0, bytes([number]) * 4096)
                    + request_bytes(CMD_FLUSH, at) for at in range(number % 20)))
                wire.send(request_bytes(CMD_READ, 1, 0, 512) * 100)
            leave(wire, how)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_its_end_lies_unread(workdir, image, tcp):
    """The server sleeps while one client ends and the next one connects: it finds both at once. One that
    is still there keeps its place."""
    with Server(workdir, image, max_connections=1, tcp=tcp) as server:
        for how in ("disconnect", "close", "reset") * 3:
            wire = Wire(server)
            wire.go(structured=False)
            server.process.send_signal(signal.SIGSTOP)
            wire.send(request_bytes(CMD_READ, 1, 0, MEBI) * 200)  # not all can be taken at once
            leave(wire, how)
            following = Wire(server)
            server.process.send_signal(signal.SIGCONT)
            following.go()
            with pytest.raises(Closed):
                Wire(server).go()
            following.check_alive()
            following.socket.close()


def test_the_next_client_is_let_in_with_tls(workdir, image):
    authority = lib_tls.Authority(f"{workdir}/ca")
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    with Server(workdir, image, max_connections=1,
                options=["--tls-certificates", directory]) as server:
        uri = lib_tls.certificate_uri(server, directory)
        for number in range(lib_tools.scaled(40)):
            handle = nbd.NBD()
            handle.set_uri_allow_local_file(True)
            handle.connect_uri(uri)
            assert handle.pread(512, 0) == b"\5" * 512
            if number % 2:
                handle.shutdown()
            del handle


def test_those_who_stay_are_not_counted_out(workdir, image):
    """Clients that work keep their places while others knock."""
    rng = random.Random(1)
    with Server(workdir, image, max_connections=2) as server:
        wires = [Wire(server) for _ in range(2)]
        for wire in wires:
            wire.go()
        for _ in range(50):
            with pytest.raises(Closed):
                Wire(server).go()
            rng.choice(wires).check_alive()
        for wire in wires:
            wire.socket.close()


@pytest.mark.parametrize("how", ["disconnect", "close", "reset"])
def test_limits_of_one_export(workdir, image, how):
    """The limit is that of the export."""
    with Server(workdir, image, options=["--set", "disk:max-connections=1"]) as server:
        for _ in range(lib_tools.scaled(20)):
            wire = Wire(server)
            flags = struct.unpack(">QH", wire.go()[INFO_EXPORT])[1]
            assert not flags & FLAG_CAN_MULTI_CONN
            following = Wire(server)
            following.greet()
            server.process.send_signal(signal.SIGSTOP)
            wire.send(request_bytes(CMD_READ, 1, 0, MEBI) * 100)
            leave(wire, how)
            following.send(option_bytes(OPT_GO, go_data("disk")))
            server.process.send_signal(signal.SIGCONT)
            assert following.option_replies(OPT_GO)[-1][0] == REP_ACK
            following.socket.close()
