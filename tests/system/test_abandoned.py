# SPDX-License-Identifier: Apache-2.0
"""Connections that end at any byte of real conversations, thousands in a row: nothing may stay
behind. With -s memory and descriptors are shown on the way."""
import random
import socket
import ssl
import struct

import pytest

import lib_tls
import lib_tools
from lib_server import PATIENCE_SECONDS, PLAIN_BINARY, Server, wait_for
from lib_wire import *  # the protocol's names, all of them

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
NAME = "disk"
# Of these so many are open at once; well below the limit of half-open ones, so that each lives
# until its own end.
OPEN = 8
# Memory that malloc may keep for later, and a connection's buffers; a leak of 1 KiB a connection exceeds
# it after 10 000 connections. Only checked with a binary without sanitizers: their allocator keeps other
# amounts aside, and they look for leaks themselves.
MEMORY_GROWTH = 8 * MEBI


# ---- Conversations ------------------------------------------------------------------------------

def request(rng, number, extended):
    """One request, most of them good ones."""
    kind = rng.choice([CMD_READ, CMD_READ, CMD_WRITE, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE,
                       CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, 77])
    length = rng.choice([1, 512, 4096, 65536, 300000, 2 * MEBI])
    offset = rng.randrange(SIZE - length)
    flags = CMD_FLAG_FUA if rng.random() < 0.1 else 0
    if rng.random() < 0.05:
        offset, length = rng.choice([(SIZE, 1), (1 << 63, 512), (0, 0), (0, 33 * MEBI)])
    payload = b""
    if kind == CMD_WRITE:
        length = min(length, 300000)
        payload = rng.randbytes(length)
    if kind == CMD_FLUSH:
        offset = length = 0
    if not extended:
        return request_bytes(kind, number, offset, length, flags, payload)
    if kind == CMD_WRITE:
        flags |= CMD_FLAG_PAYLOAD_LEN
    elif kind == CMD_BLOCK_STATUS and rng.random() < 0.5:
        payload = struct.pack(">QI", length, rng.choice([1, 2, 9]))
        flags, length = flags | CMD_FLAG_PAYLOAD_LEN, len(payload)
    return extended_request_bytes(kind, number, offset, length, flags, payload)


def requests(rng, extended=False):
    data = b"".join(request(rng, number, extended) for number in range(rng.randint(0, 12)))
    bye = extended_request_bytes if extended else request_bytes
    return data + (bye(CMD_DISC, 99) if rng.random() < 0.7 else b"")


def options(rng):
    """Some that change nothing."""
    data = b""
    for _ in range(rng.randint(0, 4)):
        data += rng.choice([
            option_bytes(OPT_LIST), option_bytes(OPT_LIST, b"x"), option_bytes(OPT_STARTTLS),
            option_bytes(OPT_INFO, go_data(NAME, [0, 1, 2, 3])),
            option_bytes(OPT_INFO, go_data("n" * 4096)),
            option_bytes(OPT_LIST_META_CONTEXT, meta_data(NAME, [])),
            option_bytes(12345, bytes(rng.choice([0, 10, 100000]))),
            option_bytes(OPT_GO, go_data("no such name"))])
    return data


def conversation(rng):
    """The bytes of a client, from the first to the last."""
    kind = rng.choice(["old", "simple", "structured", "structured", "extended", "abort"])
    if kind == "old":
        return (struct.pack(">I", rng.choice([0, 1, 3])) + option_bytes(OPT_EXPORT_NAME, b"disk")
                + requests(rng))
    data = struct.pack(">I", 3) + options(rng)
    if kind == "abort":
        return data + option_bytes(OPT_ABORT)
    if kind != "simple":
        data += option_bytes(OPT_STRUCTURED_REPLY if kind == "structured"
                             else OPT_EXTENDED_HEADERS)
        data += option_bytes(OPT_SET_META_CONTEXT, meta_data(
            NAME, ["base:allocation", "qemu:allocation-depth", "other:thing"]))
    data += option_bytes(OPT_GO, go_data(NAME, [3]))
    return data + requests(rng, kind == "extended")


# ---- Clients that go away -----------------------------------------------------------------------

def leave(rng, connection):
    """Closed, shut in one direction first, or reset; with or without a look at the replies."""
    way = rng.randrange(4)
    try:
        if way == 1:
            connection.shutdown(socket.SHUT_WR)
        elif way == 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if rng.random() < 0.3:
            connection.settimeout(0.01)
            connection.recv(rng.choice([1, 18, 4096, MEBI]))
    except OSError:
        pass
    connection.close()


def cut(rng, length):
    """Chooses the end of a conversation: anywhere, but often in the negotiation, which is short."""
    return rng.randint(0, length if rng.random() < 0.5 else min(length, 600))


def begin(rng, server):
    """Returns a connection on which a client has sent a part of its conversation."""
    connection = server.raw_socket()
    data = conversation(rng)
    connection.settimeout(0.05)  # the server takes no more while replies are not taken
    try:
        connection.sendall(data[:cut(rng, len(data))])
    except OSError:
        pass
    return connection


def begin_tls(rng, server):
    """Returns a connection inside TLS, or in its handshake: the end is a number of bytes of
    ciphertext."""
    connection = server.raw_socket()
    connection.settimeout(0.05)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = context.wrap_bio(incoming, outgoing)
    left = cut(rng, 100000) if rng.random() < 0.5 else cut(rng, 1500)
    data = struct.pack(">I", 3) + option_bytes(OPT_STARTTLS)
    try:
        connection.sendall(data[:left])
        left -= len(data)
        if left > 0:
            connection.settimeout(PATIENCE_SECONDS)
            missing = 18 + 20  # the greeting and the ACK
            while missing > 0:
                missing -= len(connection.recv(missing)) or missing
        shaken = False
        while left > 0:
            try:
                if not shaken:
                    inside.do_handshake()
                    shaken = True
                    connection.settimeout(0.05)
                    inside.write(conversation(rng)[4:])
                else:
                    inside.read(4096)
            except ssl.SSLWantReadError:
                pass
            data = outgoing.read(left)
            connection.sendall(data)
            left -= len(data)
            if shaken and not data:
                break
            if not shaken and left > 0:
                incoming.write(connection.recv(65536) or b"the end")
    except (OSError, ssl.SSLError):
        pass
    return connection


# ---- What stays behind --------------------------------------------------------------------------

def settle(server, descriptors):
    """Waits until the server has closed the connections that its clients have left."""
    wait_for(lambda: server.descriptors() <= descriptors)


def abandon(server, rng, count, start):
    """count connections. Asserts that descriptors and memory are those of the first fifth."""
    measured = server.binary == PLAIN_BINARY
    server.one_of_each()
    descriptors = server.descriptors()
    open_ones = []
    early = None
    for number in range(1, count + 1):
        open_ones.append(start(rng, server))
        if len(open_ones) == OPEN:
            leave(rng, open_ones.pop(rng.randrange(OPEN)))
        if number % max(count // 10, 1) == 0:
            while open_ones:
                leave(rng, open_ones.pop())
            settle(server, descriptors)
            resident = server.resident_bytes()
            print(f"{number} connections: {server.descriptors()} descriptors, "
                  f"{resident // 1024} KiB")
            if number >= count // 5:
                early = resident if early is None else early
                assert not measured or resident - early < MEMORY_GROWTH
    with Wire(server) as wire:
        wire.go()
        wire.check_alive()


@pytest.fixture
def image(workdir):
    image = lib_tools.create(f"{workdir}/{NAME}.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(image, f"write -P 5 0 {32 * MEBI}")
    return image


@pytest.mark.limit(3000)
@pytest.mark.parametrize("plain", [False, True], ids=["tested", "plain"])
def test_abandoned_connections(workdir, image, seed, plain):
    with Server(workdir, image, plain=plain) as server:
        abandon(server, random.Random(seed), lib_tools.scaled(10000), begin)
    lib_tools.check_clean(image)


@pytest.mark.limit(3000)
@pytest.mark.parametrize("plain", [False, True], ids=["tested", "plain"])
def test_abandoned_connections_with_tls(workdir, image, seed, plain):
    authority = lib_tls.Authority(f"{workdir}/ca")
    authority.issue("server", f"{workdir}/server", "localhost")
    with Server(workdir, image, plain=plain, options=[
            "--tls-certificates", f"{workdir}/server", "--tls=on"]) as server:
        abandon(server, random.Random(seed), lib_tools.scaled(2000), begin_tls)
    lib_tools.check_clean(image)
