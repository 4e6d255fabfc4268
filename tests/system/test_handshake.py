# SPDX-License-Identifier: Apache-2.0
"""The handshake on a live socket. Names of tests say which requirement of the protocol they probe;
the sections meant are those of doc/proto.md in NetworkBlockDevice/nbd."""
import struct

import pytest

import lib_server
from lib_wire import *  # the protocol's names, all of them

MEBI = 1 << 20
SIZE = 64 * MEBI
PAYLOAD_MAX = 32 * MEBI


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
def test_option_of_megabytes_costs_no_memory(wire, probed):
    """More than any option needs: skipped or refused, by an error or by the end."""
    before = probed.resident_bytes()
    wire.greet()
    wire.send(struct.pack(">QII", IHAVEOPT, 0x7ffe, 256 * MEBI))
    try:
        for _ in range(256):
            wire.send(bytes(MEBI))
        assert wire.option_replies(0x7ffe)[-1][0] & ERROR
        assert wire.option_result(OPT_LIST) == REP_ACK
    except Closed:
        pass
    assert probed.resident_bytes() - before < 32 * MEBI


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


def test_abort_without_waiting(probed):
    for _ in range(20):
        with Wire(probed) as wire:
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
    meta_data("disk", [])[:-4] + struct.pack(">II", 0xffffffff, 1) + b"x",
    meta_data("disk", ["base:allocation"])[:-1]],
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
