# SPDX-License-Identifier: Apache-2.0
"""Rows 36 to 61 of docs/protocol-checklist.md, transmission and extended headers, on a live socket:
test_row_NN."""
import random
import signal
import struct

import pytest

import lib_tools
from lib_server import Server
from lib_wire import *  # the protocol's names, all of them

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
PAYLOAD_MAX = 32 * MEBI
TEBI = 1 << 40
ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"
RANGED = (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS)


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """8 TiB, empty but for one cluster at 5 GiB and one at 4 TiB."""
    directory = tmp_path_factory.mktemp("h")
    image = lib_tools.create(directory / "disk.qcow2", 8 * TEBI)
    lib_tools.qemu_io(image, "write -P 7 5G 64k", "write -P 8 4T 64k")
    with Server(directory, image) as server:
        yield server


@pytest.fixture
def read_only(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, read_only=True) as server:
        with Wire(server) as wire:
            yield wire


def extended(server, contexts=(ALLOCATION, DEPTH)):
    wire = Wire(server)
    wire.greet()
    assert wire.option_result(OPT_EXTENDED_HEADERS) == REP_ACK
    if contexts:
        replies = wire.option(OPT_SET_META_CONTEXT, meta_data(wire.name, contexts))
        wire.context_ids = {data[4:].decode(): struct.unpack(">I", data[:4])[0]
                            for _, data in replies[:-1]}
    replies = wire.option(OPT_GO, go_data(wire.name))
    assert replies[-1][0] == REP_ACK
    wire.flags = struct.unpack(">QH", replies[0][1][2:])[1]
    return wire


def extended_call(wire, kind, offset=0, length=0, flags=0, payload=b""):
    """One request and its whole answer: (error, [(type, payload)])."""
    wire.cookie += 1
    wire.send(extended_request_bytes(kind, wire.cookie, offset, length, flags, payload))
    error, chunks = 0, []
    while True:
        cookie, echoed, reply_flags, reply, data = wire.extended_chunk()
        assert (cookie, echoed) == (wire.cookie, offset)
        chunks.append((reply, data))
        if reply in (REPLY_ERROR, REPLY_ERROR_OFFSET):
            error = struct.unpack(">I", data[:4])[0]
        if reply_flags & REPLY_FLAG_DONE:
            return error, chunks


def extents(payload):
    """(context id, [(length, flags)]) of a BLOCK_STATUS chunk."""
    numbers = struct.unpack(f">{len(payload) // 4}I", payload)
    return numbers[0], list(zip(numbers[1::2], numbers[2::2]))


def extended_extents(payload):
    context, count = struct.unpack(">II", payload[:8])
    numbers = struct.unpack(f">{count * 2}Q", payload[8:])
    return context, list(zip(numbers[::2], numbers[1::2]))


# ---- Transmission flags -------------------------------------------------------------------------

def test_row_36_flags(wire, read_only):
    wire.go()
    assert wire.flags & 0xff == 0b11101101
    read_only.go()
    assert read_only.flags & 3 == 3
    for kind in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
        assert read_only.error(kind, 0, 512, 0, b"x" * 512 if kind == CMD_WRITE else b"") == EPERM
    read_only.check_alive()


def test_row_37_multi_conn(wire, probed):
    """A write of one connection is visible to another one, which can flush it; the other flags are
    right."""
    wire.go()
    assert wire.flags & 1 << 8 and not wire.flags & 1 << 9 and not wire.flags & 1 << 12
    assert wire.flags & 1 << 11 == 0 or wire.flags & 1 << 6
    with Wire(probed) as other:
        other.go()
        for value in range(1, 20):
            content = bytes([value]) * 4096
            assert wire.error(CMD_WRITE, 20 * MEBI, 4096, payload=content) == 0
            assert other.error(CMD_FLUSH) == 0
            assert other.read(20 * MEBI, 4096) == content


def test_row_38_nothing_more_than_works(wire, read_only):
    wire.go(structured=False)
    assert not wire.flags & 1 << 7
    read_only.go()
    assert read_only.flags & 1 << 2 == 0 or read_only.error(CMD_FLUSH) == 0
    for kind, bit in ((CMD_TRIM, 5), (CMD_WRITE_ZEROES, 6), (CMD_CACHE, 10)):
        if not read_only.flags & 1 << bit:
            assert read_only.error(kind, 0, 512) in (EPERM, EINVAL)
        if wire.flags & 1 << bit:
            assert wire.error(kind, 40 * MEBI, 512) == 0


# ---- Transmission -------------------------------------------------------------------------------

def test_row_39_messages(wire):
    wire.go(structured=False)
    wire.send(bytes.fromhex("25609513 0000 0000 0102030405060708 0000000000000000 00000004"))
    assert wire.receive(20) == bytes.fromhex("67446698 00000000 0102030405060708 05050505")
    wire.send(bytes.fromhex("25609514 0000 0000 0102030405060708 0000000000000000 00000004"))
    wire.expect_closed()


def test_row_39_structured_chunk(wire):
    wire.go()
    wire.send(bytes.fromhex("25609513 0004 0000 f102030405060708 0000000000000000 00000004"))
    assert wire.receive(32) == bytes.fromhex(
        "668e33ef 0001 0001 f102030405060708 0000000c 0000000000000000 05050505")


def test_row_40_cookies(wire):
    wire.go(structured=False)
    cookies = [random.getrandbits(64) for _ in range(300)]
    wire.send(b"".join(request_bytes(CMD_READ, cookie, 512 * number, 512)
                       for number, cookie in enumerate(cookies)))
    assert sorted(wire.reply(512)[0] for _ in cookies) == sorted(cookies)


@pytest.mark.parametrize("kind", RANGED)
def test_row_41_errors_are_structured(wire, kind):
    wire.go()
    wire.request(kind, SIZE, 4096, 0, bytes(4096) if kind == CMD_WRITE else b"")
    cookie, flags, reply, payload = wire.chunk()
    assert (cookie, flags, reply) == (wire.cookie, REPLY_FLAG_DONE, REPLY_ERROR)
    assert len(payload) > 6 and payload[6:].decode().isprintable()


@pytest.mark.parametrize("fua", [False, True])
def test_row_42_flush_and_fua(workdir, fua):
    """Flushed data is in the file when the server is killed."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    server = Server(workdir, image)
    with Wire(server) as wire:
        wire.go()
        for number in range(20):
            assert wire.error(CMD_WRITE, number * 3 * MEBI, 4096, CMD_FLAG_FUA if fua else 0,
                              bytes([number + 1]) * 4096) == 0
        assert fua or wire.error(CMD_FLUSH) == 0
        for kind in RANGED[:-1]:
            assert wire.error(kind, 62 * MEBI, 512, CMD_FLAG_FUA,
                              bytes(512) if kind == CMD_WRITE else b"") == 0
        server.kill()
    lib_tools.run("qemu-img", "check", "-q", "-r", "all", image, codes=(0, 3))
    lib_tools.qemu_io(image, *(f"read -P {number + 1} {number * 3}M 4k" for number in range(20)))


def test_row_43_simple_read_error(wire):
    wire.go(structured=False)
    wire.send(request_bytes(CMD_READ, 1, SIZE, 4096) + request_bytes(CMD_FLUSH, 2))
    assert {wire.reply()[:2], wire.reply()[:2]} == {(1, EINVAL), (2, 0)}


@pytest.mark.parametrize("offset, length", [
    (0, 1), (511, 2), (MEBI - 1, 2), (MEBI - 100, 65536 * 3), (2 * MEBI - 7, 65536 + 14),
    (0, PAYLOAD_MAX), (SIZE - 1, 1), (SIZE - PAYLOAD_MAX, PAYLOAD_MAX)])
def test_row_44_structured_read(wire, offset, length):
    wire.go()
    error, chunks = wire.call(CMD_READ, offset, length)
    assert error == 0
    assemble(chunks, offset, length)
    for _, payload in chunks[1:]:
        assert struct.unpack(">Q", payload[:8])[0] % 512 == 0


def test_row_45_do_not_fragment(wire):
    wire.go()
    for offset, length in ((MEBI - 100, 65536), (2 * MEBI - 512, 65536), (0, 1), (0, 8 * MEBI)):
        error, chunks = wire.call(CMD_READ, offset, length, CMD_FLAG_DF)
        if error == 0:
            assert [kind for kind, _ in chunks] in ([REPLY_OFFSET_DATA], [REPLY_OFFSET_HOLE])
            assemble(chunks, offset, length)
        else:
            assert error == EOVERFLOW and length > 65536


def test_row_46_chunks(wire):
    wire.go(contexts=[ALLOCATION])
    assert wire.call(CMD_READ, 4 * MEBI, 4096) == (
        0, [(REPLY_OFFSET_HOLE, struct.pack(">QI", 4 * MEBI, 4096))])
    assert wire.call(CMD_READ, 0, 3) == (
        0, [(REPLY_OFFSET_DATA, struct.pack(">Q", 0) + b"\5\5\5")])
    error, [(kind, payload)] = wire.call(CMD_BLOCK_STATUS, 0, 4096)
    assert (error, kind) == (0, REPLY_BLOCK_STATUS)
    assert extents(payload) == (wire.context_ids[ALLOCATION], [(4096, 0)])


def test_row_47_disconnect(probed):
    with Wire(probed) as wire:
        wire.go(structured=False)
        wire.send(b"".join(request_bytes(CMD_READ, cookie, 0, MEBI) for cookie in range(20))
                  + request_bytes(CMD_DISC, 99))
        assert {wire.reply(MEBI)[:2] for _ in range(20)} == {(cookie, 0) for cookie in range(20)}
        wire.expect_closed()


def test_row_48_trim_and_cache(wire):
    wire.go()
    assert wire.error(CMD_TRIM, 100, 900) == 0
    assert wire.read(0, 4096).count(5) >= 4096 - 900
    assert wire.read(0, 100) == b"\5" * 100 and wire.read(1000, 24) == b"\5" * 24
    assert wire.error(CMD_WRITE, 0, 4096, payload=b"\5" * 4096) == 0
    assert wire.error(CMD_CACHE, 0, SIZE) == 0
    assert wire.error(CMD_CACHE, 0, 512, CMD_FLAG_NO_HOLE) == EINVAL
    assert wire.read(0, 512) == b"\5" * 512


def test_row_49_write_zeroes(wire):
    wire.go(contexts=[ALLOCATION])
    at = 30 * MEBI
    for flags in (0, CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO, CMD_FLAG_NO_HOLE | CMD_FLAG_FUA):
        assert wire.error(CMD_WRITE, at, 65536 * 3, payload=b"\7" * 65536 * 3) == 0
        error = wire.error(CMD_WRITE_ZEROES, at + 1000, 65536 * 2, flags)
        assert error in ((0, ENOTSUP) if flags & CMD_FLAG_FAST_ZERO else (0,))
        middle = bytes(131072) if error == 0 else b"\7" * 131072
        assert wire.read(at, 65536 * 3) == b"\7" * 1000 + middle + b"\7" * (65536 - 1000)
    _, chunks = wire.call(CMD_BLOCK_STATUS, at, 65536 * 3)
    assert all(not flags & 1 for _, flags in extents(chunks[0][1])[1])  # NO_HOLE: provisioned
    assert wire.error(CMD_WRITE_ZEROES, at, 65536 * 3) == 0


def test_row_50_block_status(huge):
    with Wire(huge) as wire:
        wire.go(contexts=[ALLOCATION, DEPTH])
        for offset, length in ((0, 0xffffffff), (0, 0xffffff00), (5 << 30, 65536), (1, 1),
                               ((5 << 30) - 512, 66560), (4 * TEBI, 0xfffff000),
                               (8 * TEBI - 1, 1), (8 * TEBI - 0xffffffff, 0xffffffff)):
            for flags in (0, CMD_FLAG_REQ_ONE):
                error, chunks = wire.call(CMD_BLOCK_STATUS, offset, length, flags)
                assert error == 0 and len(chunks) == 2
                assert {extents(p)[0] for _, p in chunks} == set(wire.context_ids.values())
                for _, payload in chunks:
                    _, found = extents(payload)
                    assert 1 <= len(found) <= 1 << 20 and all(size > 0 for size, _ in found)
                    assert sum(size for size, _ in found[:-1]) < length
                    assert all(a[1] != b[1] for a, b in zip(found, found[1:]))
                    if flags:
                        assert len(found) == 1 and found[0][0] <= length
        assert wire.error(CMD_BLOCK_STATUS, 0, 512, CMD_FLAG_DF) == EINVAL


def test_row_51_base_allocation(wire):
    wire.go(contexts=[ALLOCATION])
    _, chunks = wire.call(CMD_BLOCK_STATUS, 0, 4 * MEBI)
    assert extents(chunks[0][1])[1][:3] == [(MEBI, 0), (MEBI, 3), (65536, 0)]


@pytest.mark.parametrize("kind", RANGED)
def test_row_52_zero_length(wire, kind):
    wire.go(contexts=[ALLOCATION])
    assert wire.error(kind, 0, 0) == (EINVAL if kind == CMD_BLOCK_STATUS else 0)
    wire.check_alive()


def test_row_53_errors_do_not_disconnect(wire):
    wire.go()
    for kind in (*RANGED, CMD_FLUSH, 8, 99, 0xffff):
        for flags in (0, 0x8000, 0x7fff):
            for offset, length in ((SIZE, 1), ((1 << 64) - 1, 1), (SIZE - 100, 100),
                                   (1 << 63, 5000)):
                wire.error(kind, offset, length, flags, bytes(length) if kind == CMD_WRITE else b"")
    wire.check_alive()


def test_row_53_shutdown(workdir):
    """A request that comes after the stop is neither done nor answered, so that a client sends it
    again to the next server (docs/decisions/013-a-stop-refuses-no-requests.md)."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    server = Server(workdir, image)
    with Wire(server) as wire:
        wire.go(structured=False)
        assert wire.error(CMD_WRITE, 0, 4096, payload=b"\6" * 4096) == 0
        server.hold_and_stop()
        wire.send(request_bytes(CMD_READ, 1, 0, 512)
                  + request_bytes(CMD_WRITE, 2, 0, 4096, 0, bytes(4096))
                  + request_bytes(CMD_FLUSH, 3))
        server.process.send_signal(signal.SIGCONT)
        wire.expect_closed()
    server.stop()
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 6 0 4096")


# ---- Sizes and errors ---------------------------------------------------------------------------

def test_row_54_block_sizes(wire):
    minimum, preferred, maximum = struct.unpack(">III", wire.go()[INFO_BLOCK_SIZE])
    for number in (minimum, preferred):
        assert number & number - 1 == 0
    assert minimum <= 65536 and preferred >= max(minimum, 512) and maximum >= preferred
    assert maximum % minimum == 0 and maximum == PAYLOAD_MAX


def test_row_55_payloads(wire):
    wire.go()
    content = random.Random(1).randbytes(PAYLOAD_MAX)
    assert wire.error(CMD_WRITE, PAYLOAD_MAX, PAYLOAD_MAX, payload=content) == 0
    assert wire.read(PAYLOAD_MAX, PAYLOAD_MAX) == content
    assert wire.error(CMD_WRITE_ZEROES, PAYLOAD_MAX, PAYLOAD_MAX) == 0
    assert wire.error(CMD_READ, 0, PAYLOAD_MAX + 1) in (EINVAL, EOVERFLOW)
    for kind in (CMD_CACHE, CMD_WRITE_ZEROES, CMD_TRIM):
        start = 0 if kind == CMD_CACHE else 3 * MEBI
        assert wire.error(kind, start, SIZE - start) in (0, EINVAL, EOVERFLOW)
    wire.check_alive()


def test_row_56_errors(wire):
    wire.go()
    allowed = {0, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN}
    rng = random.Random(2)
    for _ in range(300):
        kind = rng.choice([CMD_READ, CMD_CACHE, CMD_BLOCK_STATUS, CMD_FLUSH, rng.randrange(8, 999)])
        assert wire.error(kind, rng.choice([0, SIZE - 1, SIZE, rng.getrandbits(64)]),
                          rng.choice([0, 1, 4096, rng.randrange(PAYLOAD_MAX)]),
                          rng.choice([0, 0, rng.getrandbits(16)])) in allowed


@pytest.mark.parametrize("kind", RANGED)
def test_row_57_beyond_the_end(wire, kind):
    wire.go(contexts=[ALLOCATION])
    expected = ENOSPC if kind in (CMD_WRITE, CMD_WRITE_ZEROES) else EINVAL
    for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE + MEBI, 512), ((1 << 64) - 1, 1),
                           ((1 << 64) - 512, 1024), (1 << 63, 512)):
        payload = b"x" * length if kind == CMD_WRITE else b""
        assert wire.error(kind, offset, length, 0, payload) == expected
    assert wire.read(SIZE - 512, 512) == bytes(512)


def test_row_58_unknown_commands_and_flags(wire):
    wire.go(contexts=[ALLOCATION])
    for kind in (8, 9, 100, 0xffff):
        assert wire.error(kind, 0, 512) == EINVAL
    for kind in RANGED:
        other = CMD_FLAG_REQ_ONE if kind != CMD_BLOCK_STATUS else CMD_FLAG_DF
        for flags in (32, 64, 0x8000, other):
            payload = b"y" * 512 if kind == CMD_WRITE else b""
            assert wire.error(kind, 0, 512, flags, payload) == EINVAL
    assert wire.read(0, 512) == b"\5" * 512


# ---- Extended headers ---------------------------------------------------------------------------

def test_row_59_headers(probed):
    with extended(probed) as wire:
        wire.send(bytes.fromhex(
            "21e41c71 0004 0000 0102030405060708 0000000000000002 0000000000000004"))
        assert wire.receive(44) == bytes.fromhex(
            "6e8a278c 0001 0001 0102030405060708 0000000000000002 000000000000000c"
            "0000000000000002 05050505")
        assert extended_call(wire, CMD_FLUSH) == (0, [(REPLY_NONE, b"")])
        assert extended_call(wire, CMD_TRIM, 60 * MEBI, MEBI) == (0, [(REPLY_NONE, b"")])
        assert extended_call(wire, 99, 5, 5)[0] == EINVAL
        assert extended_call(wire, CMD_READ, 1 << 62, 1 << 62)[0] == EINVAL
        wire.send(request_bytes(CMD_FLUSH, 1) + bytes(4))
        wire.expect_closed()


def test_row_59_lengths_of_64_bits(huge):
    with extended(huge) as wire:
        assert extended_call(wire, CMD_CACHE, 0, 8 * TEBI)[0] in (0, EINVAL, EOVERFLOW)
        assert extended_call(wire, CMD_TRIM, 6 * TEBI, TEBI)[0] == 0
        assert extended_call(wire, CMD_WRITE_ZEROES, 6 * TEBI, TEBI, CMD_FLAG_FAST_ZERO)[0] in (
            0, ENOTSUP)
        assert extended_call(wire, CMD_WRITE_ZEROES, 7 * TEBI, 2 * TEBI)[0] == ENOSPC
        assert extended_call(wire, CMD_READ, 0, 1 << 33)[0] in (EINVAL, EOVERFLOW)


def test_row_60_payload_flag(probed):
    with extended(probed) as wire:
        data = b"\7" * 1000
        assert extended_call(wire, CMD_WRITE, 44 * MEBI, 1000, CMD_FLAG_PAYLOAD_LEN, data)[0] == 0
        error, chunks = extended_call(wire, CMD_READ, 44 * MEBI, 1000, CMD_FLAG_DF)
        assert error == 0 and chunks[0][1][8:] == data
        for kind in (CMD_READ, CMD_TRIM, CMD_FLUSH, CMD_CACHE, CMD_WRITE_ZEROES, 99):
            assert extended_call(wire, kind, 0, 77, CMD_FLAG_PAYLOAD_LEN, bytes(77))[0] == EINVAL
        assert extended_call(wire, CMD_WRITE, 0, 512)[0] == EINVAL
        assert extended_call(wire, CMD_TRIM, 44 * MEBI, MEBI)[0] == 0
        wire.send(extended_request_bytes(CMD_WRITE, 1, 0, PAYLOAD_MAX + 1, CMD_FLAG_PAYLOAD_LEN))
        wire.expect_closed()


def test_row_61_block_status(huge):
    with extended(huge) as wire:
        error, chunks = extended_call(wire, CMD_BLOCK_STATUS, 0, 8 * TEBI)
        assert error == 0 and [kind for kind, _ in chunks] == [REPLY_BLOCK_STATUS_EXT] * 2
        found = dict(extended_extents(payload) for _, payload in chunks)
        assert sum(size for size, _ in found[wire.context_ids[ALLOCATION]]) <= 8 * TEBI
        assert found[wire.context_ids[ALLOCATION]][:3] == [
            (5 << 30, 3), (65536, 0), (4 * TEBI - (5 << 30) - 65536, 3)]


def test_row_61_request_with_payload(huge):
    with extended(huge) as wire:
        assert wire.flags & 1 << 12
        for name, number in wire.context_ids.items():
            payload = struct.pack(">QI", 65536, number)
            error, chunks = extended_call(wire, CMD_BLOCK_STATUS, 5 << 30, len(payload),
                                          CMD_FLAG_PAYLOAD_LEN, payload)
            value = 0 if name == ALLOCATION else 1
            assert error == 0
            assert [extended_extents(p) for _, p in chunks] == [(number, [(65536, value)])]
        one = wire.context_ids[ALLOCATION]
        for payload in (struct.pack(">QI", 65536, 77), struct.pack(">QII", 65536, one, one),
                        struct.pack(">Q", 65536), bytes(7), bytes(4096)):
            assert extended_call(wire, CMD_BLOCK_STATUS, 0, len(payload), CMD_FLAG_PAYLOAD_LEN,
                                 payload)[0] == EINVAL
        assert extended_call(wire, CMD_FLUSH)[0] == 0


def test_row_37_payload_flag_needs_contexts(huge):
    with extended(huge, contexts=()) as wire:
        assert not wire.flags & 1 << 12
        assert extended_call(wire, CMD_BLOCK_STATUS, 0, 512)[0] == EINVAL
