# SPDX-License-Identifier: Apache-2.0
"""The transmission phase on a live socket. Names of tests say which requirement of the
protocol they probe; the sections meant are those of doc/proto.md in NetworkBlockDevice/nbd."""
import struct

import pytest

import lib_server
import lib_tools
from lib_server import Server
from lib_wire import *  # the protocol's names, all of them

MEBI = 1 << 20
SIZE = 64 * MEBI
PAYLOAD_MAX = 32 * MEBI


def test_transmission_flags(wire):
    wire.go()
    names = "flags read_only flush fua rotational trim zeroes df multi resize cache fast payload"
    has = {name: bool(wire.flags >> bit & 1) for bit, name in enumerate(names.split())}
    for name in ("flags", "flush", "fua", "trim", "zeroes", "df", "multi", "cache", "fast"):
        if name == "multi" and lib_server.REFERENCE:
            continue
        assert has[name], name
    for name in ("read_only", "rotational", "resize", "payload"):
        assert not has[name], name


def test_no_df_without_structured_replies(wire):
    wire.go(structured=False)
    assert not wire.flags & 0x80
    assert wire.error(CMD_READ, 0, 512, CMD_FLAG_DF) == EINVAL
    wire.check_alive()


def test_cookies_are_echoed_once(wire):
    wire.go(structured=False)
    cookies = [0, 1, 0xffffffffffffffff, *range(1 << 40, (1 << 40) + 500)]
    wire.send(b"".join(request_bytes(CMD_READ, cookie, 0, 512) for cookie in cookies))
    answered = [wire.reply(512)[0] for _ in cookies]
    assert sorted(answered) == sorted(cookies)
    # A cookie may be used again at once, and even twice at a time.
    wire.send(request_bytes(CMD_FLUSH, 9) * 2)
    assert [wire.reply()[:2] for _ in range(2)] == [(9, 0), (9, 0)]


def test_structured_read_covers_the_range(wire):
    wire.go()
    assert wire.read(MEBI - 3, 70) == b"\5" * 3 + bytes(67)
    error, chunks = wire.call(CMD_READ, 0, 4 * MEBI)
    assert error == 0
    data = assemble(chunks, 0, 4 * MEBI)
    assert data == b"\5" * MEBI + bytes(MEBI) + b"\6" * 65536 + bytes(2 * MEBI - 65536)
    assert REPLY_OFFSET_HOLE in [kind for kind, _ in chunks]
    assert len(chunks) <= 6, "more chunks than pieces"


@pytest.mark.parametrize("length", [512, 65536, MEBI])
def test_df_gives_one_chunk(wire, length):
    wire.go()
    start = MEBI - 256
    error, chunks = wire.call(CMD_READ, start, length, CMD_FLAG_DF)
    if length > 65536 and error:
        assert error == EOVERFLOW
        return
    assert error == 0
    assert len([kind for kind, _ in chunks if kind != REPLY_NONE]) == 1
    assert assemble(chunks, start, length) == b"\5" * 256 + bytes(length - 256)


def test_write_then_read_on_one_connection(wire):
    wire.go()
    for flags in (0, CMD_FLAG_FUA):
        payload = bytes(range(256)) * 33
        assert wire.error(CMD_WRITE, 5 * MEBI + 7, len(payload), flags, payload) == 0
        assert wire.read(5 * MEBI + 7, len(payload)) == payload
    assert wire.error(CMD_WRITE_ZEROES, 5 * MEBI, MEBI) == 0
    assert wire.read(5 * MEBI, MEBI) == bytes(MEBI)


@pytest.mark.lazycow_only
def test_disconnect_answers_what_is_outstanding(probed):
    for _ in range(10):
        with Wire(probed) as wire:
            wire.go(structured=False)
            wire.send(b"".join(request_bytes(CMD_READ, cookie, 0, 4096) for cookie in range(100))
                      + request_bytes(CMD_DISC, 100))
            answered = sorted(wire.reply(4096)[0] for _ in range(100))
            assert answered == list(range(100))
            wire.expect_closed()


@pytest.mark.parametrize("structured", [True, False])
def test_ranges_beyond_the_end(wire, structured):
    """[Error values] Beyond the end: ENOSPC for commands that write, EINVAL for the others."""
    contexts = ["base:allocation"] if structured else []
    wire.go(structured=structured, contexts=contexts)
    full = EINVAL if lib_server.REFERENCE else ENOSPC
    for offset, length in ((SIZE, 1), (SIZE - 1, 2), (SIZE - 512, 1024), (SIZE + 512, 512),
                           ((1 << 64) - 512, 1024), ((1 << 64) - 1, 1), (1 << 63, 512)):
        assert wire.error(CMD_READ, offset, length) == EINVAL
        assert wire.error(CMD_WRITE, offset, length, 0, bytes(length)) == full
        assert wire.error(CMD_WRITE_ZEROES, offset, length) == full
        assert wire.error(CMD_TRIM, offset, length) == EINVAL
        if structured:
            assert wire.error(CMD_BLOCK_STATUS, offset, length) == EINVAL
    wire.check_alive()
    if structured:
        assert wire.read(SIZE - 1, 1) == bytes(1)


def test_range_error_leaves_data_alone(wire):
    wire.go()
    before = wire.read(SIZE - 4096, 4096)
    assert wire.error(CMD_WRITE, SIZE - 512, 1024, 0, b"\xee" * 1024) != 0
    assert wire.read(SIZE - 4096, 4096) == before


@pytest.mark.parametrize("structured", [True, False])
def test_zero_length_requests_succeed(wire, structured):
    """Nothing is asked for: that is done at once. Only a block status has no such answer."""
    wire.go(structured=structured, contexts=["base:allocation"] if structured else [])
    for kind in (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE):
        for offset in (0, 77, SIZE):
            error, chunks = wire.call(kind, offset, 0)
            assert error == 0, (kind, offset)
            reads = structured and kind == CMD_READ
            assert chunks == ([(REPLY_NONE, b"")] if reads else []), (kind, offset)
        assert wire.error(kind, SIZE + 1, 0) in (EINVAL, ENOSPC), kind
        wire.check_alive()
    if structured:
        assert wire.error(CMD_BLOCK_STATUS, 0, 0) == EINVAL
        wire.check_alive()


@pytest.mark.parametrize("structured", [True, False])
def test_unknown_commands_and_flags(wire, structured):
    """[Request types] EINVAL, the payload of a write consumed first."""
    wire.go(structured=structured)
    for kind in (8, 9, 100, 0xffff):
        assert wire.error(kind, 0, 512) == EINVAL
    for kind, flags in ((CMD_READ, CMD_FLAG_NO_HOLE), (CMD_READ, CMD_FLAG_REQ_ONE),
                        (CMD_TRIM, CMD_FLAG_NO_HOLE), (CMD_FLUSH, CMD_FLAG_FAST_ZERO),
                        (CMD_WRITE_ZEROES, CMD_FLAG_DF), (CMD_READ, 1 << 15)):
        length = 0 if kind == CMD_FLUSH else 512
        assert wire.error(kind, 0, length, flags) == EINVAL, (kind, flags)
    for flags in (CMD_FLAG_NO_HOLE, 1 << 14):
        assert wire.error(CMD_WRITE, 8 * MEBI, 70000, flags, b"\xdd" * 70000) == EINVAL
    wire.check_alive()
    if structured:
        assert wire.read(8 * MEBI, 512) == bytes(512)


@pytest.mark.parametrize("kind", [CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES])
def test_fua_is_accepted_on_every_command(wire, kind):
    wire.go()
    assert wire.error(kind, 0 if kind == CMD_FLUSH else 9 * MEBI,
                      0 if kind == CMD_FLUSH else 4096, CMD_FLAG_FUA) == 0


def test_block_status(wire):
    wire.go(contexts=["base:allocation"])
    context = wire.context_ids["base:allocation"]

    def status(offset, length, flags=0):
        error, chunks = wire.call(CMD_BLOCK_STATUS, offset, length, flags)
        assert error == 0
        [(kind, payload)] = [chunk for chunk in chunks if chunk[0] != REPLY_NONE]
        assert kind == REPLY_BLOCK_STATUS
        assert struct.unpack(">I", payload[:4])[0] == context
        words = struct.unpack(f">{(len(payload) - 4) // 4}I", payload[4:])
        return list(zip(words[::2], words[1::2]))
    extents = status(0, 4 * MEBI)
    assert extents[0] == (MEBI, 0) and extents[1] == (MEBI, 3), extents
    assert extents[2] == (65536, 0), extents
    [(length, flags)] = status(MEBI - 4096, 8192, CMD_FLAG_REQ_ONE)
    assert (length, flags) == (4096, 0)
    [(length, flags)] = status(MEBI, MEBI // 2, CMD_FLAG_REQ_ONE)
    assert (length, flags) == (MEBI // 2, 3)
    assert sum(length for length, _ in status(0, SIZE)) <= SIZE


def test_read_error_is_structured(wire):
    """[Structured replies] A READ that fails early is answered in the structured way too."""
    wire.go()
    cookie = wire.request(CMD_READ, SIZE, 512)
    answered, flags, kind, _ = wire.chunk()
    assert answered == cookie and flags & REPLY_FLAG_DONE
    assert kind in (REPLY_ERROR, REPLY_ERROR_OFFSET)


def test_largest_payloads(wire):
    """[Block size constraints] 32 MiB in one request, both ways."""
    wire.go()
    payload = bytes(range(256)) * (PAYLOAD_MAX // 256)
    assert wire.error(CMD_WRITE, 16 * MEBI, PAYLOAD_MAX, 0, payload) == 0
    assert wire.read(16 * MEBI, PAYLOAD_MAX) == payload
    assert wire.error(CMD_WRITE_ZEROES, 16 * MEBI, PAYLOAD_MAX) == 0


def test_read_above_the_maximum(wire):
    wire.go()
    error, _ = wire.call(CMD_READ, 0, PAYLOAD_MAX + 512)
    assert error in (EINVAL, EOVERFLOW)
    wire.check_alive()


def test_write_above_the_maximum(wire):
    """May end the connection, or consume all of it and answer; never lose step."""
    wire.go()
    length = PAYLOAD_MAX + 512
    try:
        cookie = wire.request(CMD_WRITE, 0, length, 0, b"\xcc" * length)
        assert wire.any_reply(cookie)[0] in (EINVAL, EOVERFLOW)
        wire.check_alive()
    except Closed:
        pass
    with Wire(wire.server) as other:
        other.go()
        assert other.read(0, 16) == b"\5" * 16


def test_commands_without_payload_may_be_large(wire):
    """TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS take lengths above the largest payload."""
    wire.go(contexts=["base:allocation"])
    length = SIZE - 9 * MEBI
    for kind in (CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE, CMD_BLOCK_STATUS):
        assert wire.error(kind, 9 * MEBI, length) in (0, EINVAL, EOVERFLOW), kind
        wire.check_alive()
    assert wire.error(CMD_WRITE_ZEROES, 9 * MEBI, length) == 0


@pytest.mark.lazycow_only
def test_bad_request_magic_ends_the_connection(wire):
    wire.go()
    wire.send(b"\0" * 28)
    wire.expect_closed()


def test_cache_changes_nothing(wire):
    wire.go()
    assert wire.error(CMD_CACHE, 0, 4 * MEBI) == 0
    assert wire.read(0, 512) == b"\5" * 512
    assert wire.error(CMD_CACHE, 0, 4096, CMD_FLAG_DF) == EINVAL


def test_trim_rounds_inward(wire):
    wire.go()
    assert wire.error(CMD_WRITE, 12 * MEBI, 256 << 10, 0, b"\7" * (256 << 10)) == 0
    assert wire.error(CMD_TRIM, (12 << 20) + 1000, 200000) == 0
    data = wire.read(12 * MEBI, 256 << 10)
    assert data[:1000] == b"\7" * 1000
    assert data[201000:] == b"\7" * ((256 << 10) - 201000)


def test_zeroes_of_odd_ranges(wire):
    wire.go()
    for flags in (0, CMD_FLAG_NO_HOLE):
        assert wire.error(CMD_WRITE, 13 * MEBI, 256 << 10, 0, b"\7" * (256 << 10)) == 0
        assert wire.error(CMD_WRITE_ZEROES, (13 << 20) + 1000, 200001, flags) == 0
        data = wire.read(13 * MEBI, 256 << 10)
        assert data == b"\7" * 1000 + bytes(200001) + b"\7" * ((256 << 10) - 201001)


def test_read_only_export(workdir):
    """[Transmission flags] Every change is EPERM, and its payload is consumed."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    before = lib_tools.digest(image)
    refusal = EINVAL if lib_server.REFERENCE else EPERM
    with Server(workdir, image, read_only=True) as server, Wire(server) as wire:
        wire.go()
        assert wire.flags & 2
        assert wire.error(CMD_WRITE, 0, 100000, 0, bytes(100000)) == refusal
        assert wire.error(CMD_WRITE_ZEROES, 0, 4096) == refusal
        assert wire.error(CMD_TRIM, 0, 4096) == refusal
        assert wire.error(CMD_FLUSH) in (0, EPERM)
        assert wire.read(0, 512) == bytes(512)
    assert lib_tools.digest(image) == before
