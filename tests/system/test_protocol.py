# SPDX-License-Identifier: Apache-2.0
"""The protocol on a live socket. Names of tests say which requirement of the protocol they probe;
the sections meant are those of doc/proto.md in NetworkBlockDevice/nbd."""
import struct

import pytest

import lib_server
import lib_tools
from lib_server import Server
from lib_wire import *  # the protocol's names, all of them

MEBI = 1 << 20
SIZE = 64 * MEBI
PAYLOAD_MAX = 32 * MEBI


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for all probes: none of them may disturb the next."""
    directory = tmp_path_factory.mktemp("p")
    image = lib_tools.create(directory / "disk.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(image, "write -P 5 0 1M", "write -P 6 2M 64k")
    with Server(directory, image) as server:
        yield server
    lib_tools.check_clean(image)


@pytest.fixture
def wire(shared):
    with Wire(shared) as connection:
        yield connection


# ---- Handshake ----------------------------------------------------------------------------------

def test_greeting_byte_by_byte(wire):
    """[Newstyle negotiation] A client may be slow, and take the handshake in single bytes."""
    greeting = b"".join(wire.receive(1) for _ in range(18))
    assert greeting == struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3)
    data = struct.pack(">I", 3) + option_bytes(OPT_GO, go_data(wire.name))
    for index in range(len(data)):
        wire.send(data[index:index + 1])
    assert wire.option_replies(OPT_GO)[-1][0] == REP_ACK
    assert wire.error(CMD_FLUSH) == 0


@pytest.mark.parametrize("flags", [4, 7, 0x80000003])
def test_unknown_client_flags_end_the_connection(wire, flags):
    wire.greet(flags)
    wire.expect_closed()


@pytest.mark.parametrize("length", [0, 1, 5000, 60000])
def test_unknown_option_is_skipped(wire, length):
    """[Baseline] ERR_UNSUP, the payload consumed, the next option understood."""
    wire.greet()
    for _ in range(3):
        assert wire.option_result(0x7ffe, b"x" * length) == REP_ERR_UNSUP
    assert wire.option_result(OPT_LIST) == REP_ACK


@pytest.mark.lazycow_only
def test_option_of_megabytes_costs_no_memory(wire, shared):
    """More than any option needs: skipped or refused, by an error or by the end."""
    before = shared.resident_bytes()
    wire.greet()
    wire.send(struct.pack(">QII", IHAVEOPT, 0x7ffe, 256 * MEBI))
    try:
        for _ in range(256):
            wire.send(bytes(MEBI))
        assert wire.option_replies(0x7ffe)[-1][0] & ERROR
        assert wire.option_result(OPT_LIST) == REP_ACK
    except Closed:
        pass
    assert shared.resident_bytes() - before < 32 * MEBI


def test_option_magic_wrong_ends_the_connection(wire):
    wire.greet()
    wire.send(struct.pack(">QII", IHAVEOPT + 1, OPT_LIST, 0))
    wire.expect_closed()


def test_list(wire):
    wire.greet()
    replies = wire.option(OPT_LIST)
    assert replies[-1] == (REP_ACK, b"")
    names = []
    for kind, data in replies[:-1]:
        assert kind == REP_SERVER
        length = struct.unpack(">I", data[:4])[0]
        names.append(data[4:4 + length].decode())
    assert names == [wire.name]


def test_list_with_data_is_refused_in_step(wire):
    wire.greet()
    assert wire.option_result(OPT_LIST, b"junk") == REP_ERR_INVALID
    assert wire.option_result(OPT_LIST) == REP_ACK


def test_abort_with_data(wire):
    wire.greet()
    assert wire.option_result(OPT_ABORT, b"bye") == REP_ACK
    wire.expect_closed()


def test_abort_without_waiting(shared):
    for _ in range(20):
        with Wire(shared) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_ABORT))


def test_withdrawn_and_absent_options(wire):
    wire.greet()
    assert wire.option_result(OPT_PEEK_EXPORT) == REP_ERR_UNSUP
    assert wire.option_result(OPT_STARTTLS) in (REP_ERR_UNSUP, REP_ERR_POLICY)
    assert wire.option_result(OPT_EXTENDED_HEADERS) in (REP_ERR_UNSUP, REP_ACK)
    assert wire.option_result(OPT_LIST) == REP_ACK


@pytest.mark.parametrize("no_zeroes", [True, False])
@pytest.mark.parametrize("empty_name", [False, True])
def test_export_name(wire, no_zeroes, empty_name):
    if empty_name and lib_server.REFERENCE:
        pytest.skip("qemu-nbd has no default export under another name")
    wire.greet(FLAG_FIXED_NEWSTYLE | (FLAG_NO_ZEROES if no_zeroes else 0))
    wire.send(option_bytes(OPT_EXPORT_NAME, b"" if empty_name else wire.name.encode()))
    size, flags = wire.unpack(">QH")
    assert size == SIZE and flags & 1
    if not no_zeroes:
        assert wire.receive(124) == bytes(124)
    cookie = wire.request(CMD_READ, 0, 4)
    assert wire.reply(4) == (cookie, 0, b"\5" * 4)


def test_export_name_unknown_ends_the_connection(wire):
    wire.greet()
    wire.send(option_bytes(OPT_EXPORT_NAME, b"no such export"))
    wire.expect_closed()


def test_unknown_export(wire):
    wire.greet()
    for option in (OPT_INFO, OPT_GO):
        for name in ("no such export", "x" * 4096, "../disk"):
            assert wire.option_result(option, go_data(name)) == REP_ERR_UNKNOWN
    assert wire.option_result(OPT_GO, go_data(wire.name)) == REP_ACK
    wire.check_alive()


def test_info_and_go_agree(wire):
    wire.greet()
    infos = (INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 0x7ff0)
    asked = wire.option(OPT_INFO, go_data(wire.name, infos))
    assert asked[-1][0] == REP_ACK
    assert asked == wire.option(OPT_GO, go_data(wire.name, infos))
    found = {struct.unpack(">H", data[:2])[0]: data[2:] for _, data in asked[:-1]}
    assert len(found) == len(asked) - 1, "an information type came twice"
    assert struct.unpack(">QH", found[INFO_EXPORT])[0] == SIZE
    minimum, preferred, maximum = struct.unpack(">III", found[INFO_BLOCK_SIZE])
    assert minimum == 1
    assert preferred & (preferred - 1) == 0 and preferred >= 512
    assert maximum >= max(preferred, PAYLOAD_MAX)


@pytest.mark.parametrize("option", [OPT_INFO, OPT_GO])
@pytest.mark.parametrize("data", [
    b"", b"\0\0\0", struct.pack(">I", 0xffffffff), struct.pack(">IH", 1, 0),
    struct.pack(">IH", 0, 5), go_data("disk") + b"more", struct.pack(">IH", 0, 0xffff) + b"\0\3"],
    ids=["empty", "short", "huge-name", "name-overruns", "infos-overrun", "more-behind",
         "many-infos"])
def test_malformed_go_is_refused_in_step(wire, option, data):
    wire.greet()
    assert wire.option_result(option, data) == REP_ERR_INVALID
    assert wire.option_result(OPT_GO, go_data(wire.name)) == REP_ACK
    wire.check_alive()


def test_structured_reply_with_data_is_refused(wire):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY, b"x") == REP_ERR_INVALID
    assert wire.option_result(OPT_GO, go_data(wire.name)) == REP_ACK
    cookie = wire.request(CMD_READ, 0, 1)
    assert wire.reply(1) == (cookie, 0, b"\5")


def test_list_meta_context(wire):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    for queries in ([], ["base:"], ["base:allocation"], ["other:", "base:allocation"]):
        replies = wire.option(OPT_LIST_META_CONTEXT, meta_data(wire.name, queries))
        names = [data[4:] for kind, data in replies[:-1]]
        assert b"base:allocation" in names, (queries, replies)
        assert replies[-1][0] == REP_ACK
    replies = wire.option(OPT_LIST_META_CONTEXT, meta_data(wire.name, ["other:thing", "base:no"]))
    assert replies == [(REP_ACK, b"")]
    replies = wire.option(OPT_LIST_META_CONTEXT, meta_data("no such export", []))
    assert replies[-1][0] == REP_ERR_UNKNOWN


def test_set_meta_context(wire):
    wire.greet()
    assert wire.option_result(OPT_SET_META_CONTEXT,
                              meta_data(wire.name, ["base:allocation"])) & ERROR
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    for queries, count in ((["base:allocation"], 1), (["base:allocation"] * 2, 1), ([], 0),
                           (["base:"], 0), (["other:x", "base:allocation"], 1)):
        replies = wire.option(OPT_SET_META_CONTEXT, meta_data(wire.name, queries))
        assert replies[-1] == (REP_ACK, b"")
        assert len(replies) == count + 1, queries


@pytest.mark.parametrize("data", [
    b"", meta_data("disk", [])[:-4] + b"\0\0\0\1",
    meta_data("disk", [])[:-4] + struct.pack(">II", 1, 50) + b"base:",
    meta_data("disk", [])[:-4] + struct.pack(">II", 0xffffffff, 1) + b"x", meta_data("disk", ["base:allocation"])[:-1]],
    ids=["empty", "no-query", "query-overruns", "huge-count", "cut"])
def test_malformed_meta_context_is_refused_in_step(wire, data):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
        assert wire.option_result(option, data) == REP_ERR_INVALID
    assert wire.option_result(OPT_GO, go_data(wire.name)) == REP_ACK
    wire.structured = True
    wire.check_alive()


def test_contexts_count_for_their_export_only(wire):
    """A set that fails clears the one before; block status without contexts is EINVAL."""
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    wire.option(OPT_SET_META_CONTEXT, meta_data(wire.name, ["base:allocation"]))
    assert wire.option_result(OPT_SET_META_CONTEXT,
                              meta_data("no such export", ["base:allocation"])) & ERROR
    assert wire.option_result(OPT_GO, go_data(wire.name)) == REP_ACK
    wire.structured = True
    assert wire.error(CMD_BLOCK_STATUS, 0, 4096) == EINVAL
    wire.check_alive()


def test_pipelined_handshake(wire):
    """Everything at once, the first requests too, without waiting for an answer."""
    wire.send(struct.pack(">I", 3) + option_bytes(OPT_STRUCTURED_REPLY)
              + option_bytes(OPT_LIST) + option_bytes(OPT_GO, go_data(wire.name))
              + request_bytes(CMD_FLUSH, 77) + request_bytes(CMD_READ, 78, 0, 512))
    assert wire.unpack(">QQH") == (NBDMAGIC, IHAVEOPT, 3)
    for option in (OPT_STRUCTURED_REPLY, OPT_LIST, OPT_GO):
        assert wire.option_replies(option)[-1][0] == REP_ACK
    answers = {}
    while len(answers) < 2:
        magic = struct.unpack(">I", wire.receive(4))[0]
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = wire.unpack(">IQ")
            answers[cookie] = error
            continue
        flags, kind, cookie, length = wire.unpack(">HHQI")
        wire.receive(length)
        if flags & REPLY_FLAG_DONE:
            answers[cookie] = kind & 0x8000
    assert answers == {77: 0, 78: 0}


# ---- Transmission -------------------------------------------------------------------------------

def test_transmission_flags(wire):
    wire.go()
    has = {name: bool(wire.flags >> bit & 1) for bit, name in enumerate(
        "flags read_only flush fua rotational trim zeroes df multi resize cache fast payload".split())}
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
def test_disconnect_answers_what_is_outstanding(shared):
    for _ in range(10):
        with Wire(shared) as wire:
            wire.go(structured=False)
            wire.send(b"".join(request_bytes(CMD_READ, cookie, 0, 4096) for cookie in range(100))
                      + request_bytes(CMD_DISC, 100))
            answered = sorted(wire.reply(4096)[0] for _ in range(100))
            assert answered == list(range(100))
            wire.expect_closed()


@pytest.mark.parametrize("structured", [True, False])
def test_ranges_beyond_the_end(wire, structured):
    """[Error values] Beyond the end: ENOSPC for what writes, EINVAL for the rest."""
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


def test_zero_length_requests_do_not_disconnect(wire):
    wire.go(contexts=["base:allocation"])
    for kind in (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE, CMD_BLOCK_STATUS):
        assert wire.error(kind, 0, 0) in (0, EINVAL), kind
        assert wire.error(kind, SIZE, 0) in (0, EINVAL, ENOSPC), kind
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
