# SPDX-License-Identifier: Apache-2.0
"""Rows 1 to 35 of docs/protocol-checklist.md, handshake and TLS, on a live socket: test_row_NN."""
import signal
import ssl
import struct
import time

import pytest

import lib_tls
import lib_tools
from lib_server import Server
from lib_wire import *  # the protocol's names, all of them

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
OPTIONS = (OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT,
           OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """One without TLS, one where it is optional, one where it is required; two exports each."""
    directory = tmp_path_factory.mktemp("rows")
    authority = lib_tls.Authority(directory / "ca")
    authority.issue("server", directory / "server", "localhost")
    running = {}
    for mode in ("off", "on", "require"):
        images = [lib_tools.create(directory / f"{name}-{mode}.qcow2", SIZE)
                  for name in ("one", "two")]
        options = ["--description=a disk"]
        if mode != "off":
            options += ["--tls-certificates", f"{directory}/server", f"--tls={mode}"]
        running[mode] = Server(directory, ("one", images[0]), ("two", images[1]), options=options)
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture
def wire(servers):
    with Wire(servers["off"]) as connection:
        yield connection


@pytest.fixture
def optional(servers):
    with Wire(servers["on"]) as connection:
        yield connection


@pytest.fixture
def required(servers):
    with Wire(servers["require"]) as connection:
        yield connection


def in_step(wire, name="one"):
    assert wire.option_result(OPT_INFO, go_data(name)) == REP_ACK


def start_tls(wire):
    assert wire.option(OPT_STARTTLS) == [(REP_ACK, b"")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    wire.socket = context.wrap_socket(wire.socket, suppress_ragged_eofs=False)


# ---- Handshake ----------------------------------------------------------------------------------

def test_row_01_baseline(wire):
    wire.greet()
    assert wire.option(OPT_LIST)[-1] == (REP_ACK, b"")
    in_step(wire)
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    assert wire.error(CMD_WRITE, 0, 512, payload=b"x" * 512) == 0
    cookie = wire.request(CMD_READ, 0, 512)
    assert wire.reply(512) == (cookie, 0, b"x" * 512)
    assert wire.error(CMD_WRITE, 0, 512, payload=bytes(512)) == 0
    wire.request(CMD_DISC)
    wire.expect_closed()


@pytest.mark.parametrize("option", [0, OPT_PEEK_EXPORT, 12, 0x7fffffff, 0xffffffff])
def test_row_02_unknown_option(wire, option):
    wire.greet()
    for data in (b"", b"IHAVEOPT" * 20, bytes(70000), bytes(2 * MEBI)):
        [(kind, _)] = wire.option(option, data)
        assert kind == REP_ERR_UNSUP
    in_step(wire)


def test_row_03_maximum_interoperability(wire, required):
    required.greet()
    start_tls(required)
    wire.go()
    assert wire.flags & 0xd == 0xd  # HAS_FLAGS, SEND_FLUSH, SEND_FUA


def test_row_04_names(wire):
    wire.greet()
    for length in (255, 256, 257, 4095, 4096):
        assert wire.option_result(OPT_GO, go_data("n" * length)) == REP_ERR_UNKNOWN
    for length in (4097, 5000, 60000):
        assert wire.option_result(OPT_GO, go_data("n" * length)) in (
            REP_ERR_INVALID, REP_ERR_TOO_BIG)
    # A NUL makes it another name.
    for name in ("one\0", "one\0two", "\0"):
        assert wire.option_result(OPT_GO, go_data(name)) != REP_ACK
    in_step(wire)


def test_row_05_no_delay(workdir):
    """strace sees the socket option."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, tcp=True, plain=True,
                wrapper=["strace", "-D", "-f", "-o", f"{workdir}/trace",
                         "-e", "setsockopt"]) as server:
        with Wire(server) as wire:
            wire.go()
            wire.check_alive()
    with open(f"{workdir}/trace", encoding="utf-8") as trace:
        assert "TCP_NODELAY, [1]" in trace.read()


def test_row_06_greeting(servers):
    with servers["off"].raw_socket() as connection:
        assert connection.recv(100) == b"NBDMAGIC" b"IHAVEOPT" b"\0\3"
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # the client's turn


@pytest.mark.parametrize("bit", range(2, 32, 5))
def test_row_07_client_flags(wire, bit):
    assert wire.receive(18)[16:] == b"\0\3"
    wire.send(struct.pack(">I", 3 | 1 << bit))
    wire.expect_closed()


@pytest.mark.parametrize("flags, padding", [(1, 124), (3, 0)])
def test_row_08_zeroes(servers, flags, padding):
    with Wire(servers["off"]) as wire:
        wire.greet(flags)
        wire.send(option_bytes(OPT_EXPORT_NAME, b"one") + request_bytes(CMD_FLUSH, 7))
        assert wire.unpack(">QH")[0] == SIZE
        assert wire.receive(padding) == bytes(padding)
        assert wire.reply()[:2] == (7, 0)
    with Wire(servers["off"]) as wire:
        wire.greet(flags)
        assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
        wire.check_alive()


def test_row_09_option_replies(wire):
    """Wire.option checks magic and option of every reply; these come in the options' order."""
    wire.greet()
    wire.send(b"".join(option_bytes(option) for option in (77, OPT_LIST, 78, OPT_LIST)))
    for option in (77, OPT_LIST, 78, OPT_LIST):
        wire.option_replies(option)
    wire.send(struct.pack(">QII", IHAVEOPT ^ 1, OPT_LIST, 0))
    wire.expect_closed()


def test_row_10_repeated_options(wire):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    assert wire.option_result(OPT_STRUCTURED_REPLY) in (REP_ACK, REP_ERR_INVALID)
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    wire.structured = True
    wire.check_alive()


@pytest.mark.parametrize("option", OPTIONS)
def test_row_11_bad_data_does_not_disconnect(wire, option):
    wire.greet()
    for data in (b"\xff", b"\xff" * 5, b"\xff" * 8, bytes(5), b"\xff" * 100, bytes(9000),
                 struct.pack(">I", 3) + b"one" + b"\xff\xff"):
        replies = wire.option(option, data)
        assert replies[-1][0] & ERROR, (option, data[:16])
    in_step(wire)


def test_row_12_shutting_down(workdir):
    """The server is held, told to stop, and then an option comes."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    for option, data in ((OPT_LIST, b""), (OPT_GO, go_data("disk")), (99, b"what")):
        server = Server(workdir, image)
        with Wire(server) as wire:
            wire.greet()
            in_step(wire, "disk")
            server.hold_and_stop()
            wire.send(option_bytes(option, data))
            server.process.send_signal(signal.SIGCONT)
            assert wire.option_replies(option)[0][0] == REP_ERR_SHUTDOWN
            wire.expect_closed()
        server.stop()


# ---- Options ------------------------------------------------------------------------------------

def test_row_13_export_name(servers):
    for name, works in ((b"two", True), (b"", True), (b"three", False), (b"on", False),
                        (b"n" * 4096, False), (b"n" * 4097, False)):
        with Wire(servers["off"]) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_EXPORT_NAME, name))
            if works:
                assert wire.unpack(">QH")[0] == SIZE
                assert wire.error(CMD_FLUSH) == 0
            else:
                wire.expect_closed()


@pytest.mark.parametrize("data", [b"", b"bye", bytes(70000)])
def test_row_14_abort(wire, data):
    wire.greet()
    assert wire.option(OPT_ABORT, data) == [(REP_ACK, b"")]
    wire.expect_closed()


def test_row_15_list(wire):
    wire.greet()
    replies = wire.option(OPT_LIST)
    assert [kind for kind, _ in replies] == [REP_SERVER, REP_SERVER, REP_ACK]
    assert replies[0][1] == struct.pack(">I", 3) + b"one" + b"a disk"
    assert wire.option_result(OPT_LIST, b"x") == REP_ERR_INVALID
    assert wire.option_result(OPT_LIST) == REP_ACK


def test_row_16_peek_export(wire):
    wire.greet()
    assert wire.option_result(OPT_PEEK_EXPORT, b"one") == REP_ERR_UNSUP


def test_row_17_starttls(optional):
    optional.greet()
    assert optional.option_result(OPT_STARTTLS, b"x") == REP_ERR_INVALID
    assert optional.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    start_tls(optional)
    # Everything that was negotiated before is dropped.
    assert optional.option_result(OPT_LIST_META_CONTEXT, meta_data("one", [])) == REP_ERR_INVALID
    assert optional.option_result(OPT_STRUCTURED_REPLY) == REP_ACK


def test_row_18_info_and_go(wire):
    wire.greet()
    for option in (OPT_INFO, OPT_GO):
        for data in (struct.pack(">I", 4) + b"one" + b"\0\0", go_data("one") + b"\0",
                     struct.pack(">I", 3) + b"one" + b"\0\2\0\1", bytes(5),
                     struct.pack(">I", 0xffffffff) + b"one\0\0"):
            assert wire.option_result(option, data) == REP_ERR_INVALID
    replies = wire.option(OPT_INFO, go_data("one", [0, 77, 3, 0xffff, 1, 2]))
    assert replies[-1] == (REP_ACK, b"") and all(kind == REP_INFO for kind, _ in replies[:-1])
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    assert wire.error(CMD_FLUSH) == 0


def test_row_19_unknown_export(wire):
    wire.greet()
    for option in (OPT_INFO, OPT_GO):
        assert wire.option_result(option, go_data("three")) == REP_ERR_UNKNOWN
    for infos in ([], [3], [0, 1, 2, 3]):
        assert wire.option(OPT_INFO, go_data("", infos)) == wire.option(
            OPT_INFO, go_data("", infos))
    info = wire.option(OPT_INFO, go_data("two", [1, 3]))
    assert wire.option(OPT_GO, go_data("two", [1, 3])) == info


def test_row_20_block_sizes_are_not_required(wire):
    wire.greet()
    assert wire.option_result(OPT_INFO, go_data("one")) == REP_ACK
    assert wire.option_result(OPT_GO, go_data("one", [INFO_BLOCK_SIZE])) == REP_ACK
    assert wire.error(CMD_WRITE, 12345, 1, payload=b"\0") == 0


def test_row_21_structured_reply(wire):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY, b"x") == REP_ERR_INVALID
    assert wire.option(OPT_STRUCTURED_REPLY) == [(REP_ACK, b"")]
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    wire.structured = True
    assert wire.read(0, 4096) == bytes(4096)


def names_of(replies):
    assert replies[-1] == (REP_ACK, b""), replies
    assert all(kind == REP_META_CONTEXT for kind, _ in replies[:-1])
    return [data[4:].decode() for _, data in replies[:-1]]


def test_row_22_list_meta_context(wire):
    wire.greet()
    assert wire.option_result(OPT_LIST_META_CONTEXT, meta_data("one", [])) == REP_ERR_INVALID
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    both = ["base:allocation", "qemu:allocation-depth"]
    for queries, names in (([], both), (["base:"], both[:1]), (["base:allocation"], both[:1]),
                           (["qemu:"], both[1:]), (["x:y", "qemu:allocation-depth"], both[1:]),
                           (["base:", "base:allocation"], both[:1]), (["base:other"], [])):
        replies = wire.option(OPT_LIST_META_CONTEXT, meta_data("one", queries))
        assert names_of(replies) == names
        assert all(data[:4] == bytes(4) for _, data in replies[:-1])
    assert wire.option_result(OPT_LIST_META_CONTEXT, meta_data("no", [])) == REP_ERR_UNKNOWN


def selected(wire, *steps):
    """Returns true when BLOCK_STATUS works for "one" after these SET_META_CONTEXTs."""
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    for step in steps:
        wire.option(OPT_SET_META_CONTEXT, step)
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    wire.structured = True
    return wire.error(CMD_BLOCK_STATUS, 0, 4096) == 0


GOOD = meta_data("one", ["base:allocation"])


@pytest.mark.parametrize("steps, works", [
    ([GOOD], True), ([GOOD, GOOD], True), ([GOOD, meta_data("one", [])], False),
    ([GOOD, meta_data("one", ["x:y"])], False),
    ([GOOD, meta_data("no", ["base:allocation"])], False),
    ([GOOD, GOOD + b"x"], False), ([GOOD, b"short"], False), ([GOOD, bytes(70000)], False),
    ([meta_data("no", ["base:allocation"]), GOOD], True)])
def test_row_23_set_meta_context(wire, steps, works):
    assert selected(wire, *steps) == works


def test_row_23_ids_are_unique(wire):
    wire.go(contexts=["base:allocation", "qemu:allocation-depth"])
    assert len(set(wire.context_ids.values())) == 2


def test_row_23_structured_replies_come_first(wire):
    wire.greet()
    assert wire.option_result(OPT_SET_META_CONTEXT, GOOD) == REP_ERR_INVALID


def test_row_24_queries(wire):
    wire.greet()
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
    one = struct.pack(">I", 3) + b"one"
    for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
        for data in (one + struct.pack(">II", 1, 16) + b"base:allocation",
                     one + struct.pack(">II", 2, 15) + b"base:allocation",
                     one + struct.pack(">II", 1, 0xffffffff), one + struct.pack(">I", 0xffffffff),
                     one + struct.pack(">II", 1, 14) + b"base:allocation"):
            assert wire.option_result(option, data) == REP_ERR_INVALID
    assert names_of(wire.option(OPT_SET_META_CONTEXT, meta_data("one", ["base:"]))) == []
    assert names_of(wire.option(OPT_SET_META_CONTEXT, meta_data(
        "one", ["nowhere:at-all", "", "n" * 4000, "base:allocation"]))) == ["base:allocation"]


def test_row_25_contexts_of_another_export(servers):
    for name, works in (("one", True), ("two", False)):
        with Wire(servers["off"]) as wire:
            assert selected(wire, meta_data(name, ["base:allocation"])) == works
            assert wire.error(CMD_BLOCK_STATUS, 0, 512) == (0 if works else EINVAL)


def test_row_26_extended_headers(wire):
    wire.greet()
    assert wire.option_result(OPT_EXTENDED_HEADERS, b"x") == REP_ERR_INVALID
    assert wire.option(OPT_EXTENDED_HEADERS) == [(REP_ACK, b"")]
    assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ERR_EXT_HEADER_REQD
    assert names_of(wire.option(OPT_SET_META_CONTEXT, GOOD)) == ["base:allocation"]
    assert wire.option_result(OPT_GO, go_data("one")) == REP_ACK
    wire.send(extended_request_bytes(CMD_FLUSH, 5))
    assert wire.extended_chunk() == (5, 0, REPLY_FLAG_DONE, REPLY_NONE, b"")


def test_row_26_reset_by_starttls(optional):
    optional.greet()
    assert optional.option_result(OPT_EXTENDED_HEADERS) == REP_ACK
    start_tls(optional)
    assert optional.option_result(OPT_STRUCTURED_REPLY) == REP_ACK


def test_row_27_replies(wire):
    wire.greet()
    for kind, data in wire.option(OPT_LIST)[:-1]:
        length = struct.unpack(">I", data[:4])[0]
        assert kind == REP_SERVER and length <= len(data) - 4
        assert data[4:4 + length] in (b"one", b"two")
    infos = [struct.unpack(">H", data[:2])[0]
             for _, data in wire.option(OPT_INFO, go_data("one", [3, 3, 0, 0, 1, 2, 2]))[:-1]]
    assert sorted(infos) == sorted(set(infos))


def test_row_28_errors_say_why(wire):
    wire.greet()
    for option, data, error in (
            (99, b"", REP_ERR_UNSUP), (OPT_STARTTLS, b"", REP_ERR_POLICY),
            (OPT_GO, b"", REP_ERR_INVALID), (OPT_GO, go_data("no"), REP_ERR_UNKNOWN),
            (OPT_GO, bytes(70000), REP_ERR_TOO_BIG)):
        [(kind, message)] = wire.option(option, data)
        assert kind == error and 0 < len(message) <= 4096 and message.decode().isprintable()


def test_row_29_informations(wire):
    wire.greet()
    found = {data[:2]: data[2:]
             for _, data in wire.option(OPT_INFO, go_data("", [0, 1, 2, 3]))[:-1]}
    assert struct.unpack(">QH", found[b"\0\0"])[0] == SIZE
    assert found[b"\0\1"] == b"one" and found[b"\0\2"] == b"a disk"
    minimum, preferred, maximum = struct.unpack(">III", found[b"\0\3"])
    assert minimum == 1 and preferred >= 512 and maximum >= 1 << 25


# ---- TLS ----------------------------------------------------------------------------------------

def test_row_30_only_with_fixed_newstyle(servers):
    for mode in ("on", "require"):
        with Wire(servers[mode]) as wire:
            wire.greet(0)
            wire.send(option_bytes(OPT_STARTTLS))
            wire.expect_closed()


def test_row_31_off(wire):
    wire.greet()
    assert wire.option_result(OPT_STARTTLS) in (REP_ERR_POLICY, REP_ERR_UNSUP)
    for option in OPTIONS:
        for data in (b"", go_data("one"), go_data("no"), GOOD):
            if option == OPT_GO and data == go_data("one"):
                continue
            assert all(kind != REP_ERR_TLS_REQD for kind, _ in wire.option(option, data))


def test_row_32_required(servers, required):
    required.greet()
    for option in (*OPTIONS, OPT_PEEK_EXPORT, 99):
        for data in (b"", go_data("one"), bytes(70000)):
            [(kind, _)] = required.option(option, data)
            assert kind == REP_ERR_TLS_REQD, option
    assert required.option_result(OPT_ABORT) == REP_ACK
    with Wire(servers["require"]) as wire:
        wire.greet()
        wire.send(option_bytes(OPT_EXPORT_NAME, b"one"))
        wire.expect_closed()


def test_row_33_after_tls(optional):
    optional.greet()
    start_tls(optional)
    assert optional.socket.version() in ("TLSv1.2", "TLSv1.3")
    assert optional.option_result(OPT_STARTTLS) == REP_ERR_INVALID
    assert optional.option_result(OPT_GO, go_data("one")) == REP_ACK


def test_row_33_failed_handshake_is_the_end(optional):
    optional.greet()
    assert optional.option_result(OPT_STARTTLS) == REP_ACK
    optional.send(b"this is no TLS record, and never will be" * 10)
    try:
        while optional.socket.recv(4096):
            pass
    except ConnectionResetError:
        pass
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            optional.socket.sendall(option_bytes(OPT_LIST))
            time.sleep(0.01)


def test_row_34_bytes_behind_starttls(optional):
    optional.greet()
    optional.send(option_bytes(OPT_STARTTLS) + option_bytes(OPT_GO, go_data("one")))
    data = b""
    try:
        while piece := optional.socket.recv(4096):
            data += piece
    except ConnectionResetError:
        pass
    assert len(data) in (0, 20)  # the ACK, and no answer to GO


def test_row_35_disconnect(optional):
    """close_notify comes before the end; without it recv raises."""
    optional.greet()
    start_tls(optional)
    assert optional.option_result(OPT_GO, go_data("one")) == REP_ACK
    assert optional.error(CMD_FLUSH) == 0
    optional.request(CMD_DISC)
    assert optional.socket.recv(100) == b""
