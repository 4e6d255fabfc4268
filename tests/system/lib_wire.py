# SPDX-License-Identifier: Apache-2.0
"""NBD byte by byte, for bytes that a well-behaved library would never send. Names are those of
doc/proto.md in NetworkBlockDevice/nbd."""
import struct

from lib_server import PATIENCE_SECONDS

NBDMAGIC = 0x4e42444d41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003e889045565a9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668e33ef
EXTENDED_REQUEST_MAGIC = 0x21e41c71
EXTENDED_REPLY_MAGIC = 0x6e8a278c

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_PEEK_EXPORT = 4
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
ERROR = 1 << 31
REP_ERR_UNSUP = ERROR + 1
REP_ERR_POLICY = ERROR + 2
REP_ERR_INVALID = ERROR + 3
REP_ERR_TLS_REQD = ERROR + 5
REP_ERR_UNKNOWN = ERROR + 6
REP_ERR_SHUTDOWN = ERROR + 7
REP_ERR_TOO_BIG = ERROR + 9
REP_ERR_EXT_HEADER_REQD = ERROR + 10

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

CMD_FLAG_FUA = 1
CMD_FLAG_NO_HOLE = 2
CMD_FLAG_DF = 4
CMD_FLAG_REQ_ONE = 8
CMD_FLAG_FAST_ZERO = 16
CMD_FLAG_PAYLOAD_LEN = 32

REPLY_FLAG_DONE = 1
REPLY_NONE = 0
REPLY_OFFSET_DATA = 1
REPLY_OFFSET_HOLE = 2
REPLY_BLOCK_STATUS = 5
REPLY_BLOCK_STATUS_EXT = 6
REPLY_ERROR = 0x8001
REPLY_ERROR_OFFSET = 0x8002

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108


class Closed(Exception):
    """The server ended the connection."""


def option_bytes(option, data=b""):
    return struct.pack(">QII", IHAVEOPT, option, len(data)) + data


def go_data(name, infos=()):
    name = name.encode()
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
            + b"".join(struct.pack(">H", info) for info in infos))


def meta_data(name, queries):
    name = name.encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    for query in queries:
        data += struct.pack(">I", len(query)) + query.encode()
    return data


def request_bytes(kind, cookie, offset=0, length=0, flags=0, payload=b""):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, cookie, offset, length) + payload


def extended_request_bytes(kind, cookie, offset=0, length=0, flags=0, payload=b""):
    return struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, kind, cookie, offset,
                       length) + payload


class Wire:
    """One raw connection."""

    def __init__(self, server, timeout=PATIENCE_SECONDS):
        self.socket = server.raw_socket(timeout)
        self.server = server
        self.name = server.name()
        self.cookie = 0x1122334400000000
        self.structured = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed() from None

    def receive(self, length):
        pieces = []
        while length:
            try:
                piece = self.socket.recv(min(length, 1 << 20))
            except ConnectionResetError:
                raise Closed() from None
            if not piece:
                raise Closed()
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def unpack(self, layout):
        return struct.unpack(layout, self.receive(struct.calcsize(layout)))

    def expect_closed(self):
        """Nothing more comes but the end of the connection."""
        try:
            data = self.socket.recv(1)
        except ConnectionResetError:
            return
        assert data == b"", f"still open, sent {data!r}"

    # ---- Handshake ------------------------------------------------------------------------------

    def greet(self, flags=FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES):
        greeting = self.unpack(">QQH")
        assert greeting == (NBDMAGIC, IHAVEOPT, 3), greeting
        self.send(struct.pack(">I", flags))

    def option(self, option, data=b""):
        """Sends it and returns all its replies, [(type, data)], up to the ACK or an error."""
        self.send(option_bytes(option, data))
        return self.option_replies(option)

    def option_replies(self, option):
        replies = []
        while True:
            magic, answered, kind, length = self.unpack(">QIII")
            assert (magic, answered) == (OPTION_REPLY_MAGIC, option), (hex(magic), answered)
            replies.append((kind, self.receive(length)))
            if kind == REP_ACK or kind & ERROR:
                return replies

    def option_result(self, option, data=b""):
        return self.option(option, data)[-1][0]

    def go(self, name=None, infos=(), structured=True, contexts=()):
        """The whole handshake. Returns {information type: data}."""
        self.greet()
        if structured:
            assert self.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
            self.structured = True
        name = self.name if name is None else name
        self.context_ids = {}
        if contexts:
            replies = self.option(OPT_SET_META_CONTEXT, meta_data(name, contexts))
            assert replies[-1][0] == REP_ACK, replies
            for kind, data in replies[:-1]:
                assert kind == REP_META_CONTEXT
                self.context_ids[data[4:].decode()] = struct.unpack(">I", data[:4])[0]
        replies = self.option(OPT_GO, go_data(name, infos))
        assert replies[-1][0] == REP_ACK, replies
        found = {}
        for kind, data in replies[:-1]:
            assert kind == REP_INFO, replies
            found[struct.unpack(">H", data[:2])[0]] = data[2:]
        self.size, self.flags = struct.unpack(">QH", found[INFO_EXPORT])
        return found

    # ---- Transmission ---------------------------------------------------------------------------

    def request(self, kind, offset=0, length=0, flags=0, payload=b""):
        """Sends a request; returns its cookie."""
        self.cookie += 1
        self.send(request_bytes(kind, self.cookie, offset, length, flags, payload))
        return self.cookie

    def reply(self, read_length=None):
        """Next simple reply. Returns (cookie, error, data). read_length: for a READ."""
        magic, error, cookie = self.unpack(">IIQ")
        assert magic == SIMPLE_REPLY_MAGIC, hex(magic)
        data = self.receive(read_length) if read_length and error == 0 else b""
        return cookie, error, data

    def chunk(self):
        """Next structured chunk. Returns (cookie, flags, type, payload)."""
        magic, flags, kind, cookie, length = self.unpack(">IHHQI")
        assert magic == STRUCTURED_REPLY_MAGIC, hex(magic)
        return cookie, flags, kind, self.receive(length)

    def extended_chunk(self):
        """Next chunk with an extended header. Returns (cookie, offset, flags, type, payload)."""
        magic, flags, kind, cookie, offset, length = self.unpack(">IHHQQQ")
        assert magic == EXTENDED_REPLY_MAGIC, hex(magic)
        return cookie, offset, flags, kind, self.receive(length)

    def any_reply(self, cookie):
        """The whole answer to the only request in flight. Returns (error, [(type, payload)])."""
        magic = struct.unpack(">I", self.receive(4))[0]
        if magic == SIMPLE_REPLY_MAGIC:
            error, answered = self.unpack(">IQ")
            assert answered == cookie
            return error, []
        error, chunks = 0, []
        while True:
            assert magic == STRUCTURED_REPLY_MAGIC, hex(magic)
            flags, kind, answered, length = self.unpack(">HHQI")
            assert answered == cookie
            payload = self.receive(length)
            chunks.append((kind, payload))
            if kind in (REPLY_ERROR, REPLY_ERROR_OFFSET):
                error, text = struct.unpack(">IH", payload[:6])
                tail = 8 if kind == REPLY_ERROR_OFFSET else 0
                assert len(payload) == 6 + text + tail, payload
                payload[6:6 + text].decode()
                assert error != 0
            if flags & REPLY_FLAG_DONE:
                return error, chunks
            magic = struct.unpack(">I", self.receive(4))[0]

    def call(self, kind, offset=0, length=0, flags=0, payload=b""):
        """One request and its whole answer."""
        return self.any_reply(self.request(kind, offset, length, flags, payload))

    def error(self, *arguments, **keywords):
        return self.call(*arguments, **keywords)[0]

    def read(self, offset, length, flags=0):
        """A structured READ that must succeed. Returns its data, checked for complete cover."""
        error, chunks = self.call(CMD_READ, offset, length, flags)
        assert error == 0
        return assemble(chunks, offset, length)

    def check_alive(self):
        """The connection is in step: a request gets its own answer."""
        assert self.error(CMD_FLUSH) == 0
        if self.structured:
            assert len(self.read(0, 512)) == 512


def assemble(chunks, offset, length):
    """The data of a READ's content chunks, which must cover the range once."""
    data = bytearray(length)
    covered = []
    for kind, payload in chunks:
        if kind == REPLY_NONE:
            assert payload == b""
            continue
        at = struct.unpack(">Q", payload[:8])[0]
        if kind == REPLY_OFFSET_DATA:
            piece = payload[8:]
        else:
            assert kind == REPLY_OFFSET_HOLE and len(payload) == 12, (kind, payload)
            piece = bytes(struct.unpack(">I", payload[8:])[0])
        assert piece and at >= offset and at + len(piece) <= offset + length
        data[at - offset:at - offset + len(piece)] = piece
        covered.append((at, at + len(piece)))
    covered.sort()
    at = offset
    for start, end in covered:
        assert start == at, covered
        at = end
    assert at == offset + length, covered
    return bytes(data)
