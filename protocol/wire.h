// SPDX-License-Identifier: Apache-2.0
// wire.h: the NBD protocol's numbers and structs on the wire. Names are those of doc/proto.md
// (NetworkBlockDevice/nbd), those of extended headers from its branch extension-ext-header.
// Everything is big-endian. Structs are packed and hold the wire's bytes: convert with <endian.h>
// when reading or writing a field, never in place.
#ifndef LAZYCOW_PROTOCOL_WIRE_H
#define LAZYCOW_PROTOCOL_WIRE_H

#include <stdint.h>

// ---- Handshake ("Newstyle negotiation") ---------------------------------------------------------

#define NBD_MAGIC 0x4e42444d41474943ull    // "NBDMAGIC"
#define NBD_IHAVEOPT 0x49484156454f5054ull // "IHAVEOPT"
#define NBD_OPTION_REPLY_MAGIC 0x3e889045565a9ull

// Handshake flags (server) and client flags have equal bits.
#define NBD_FLAG_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_NO_ZEROES (1u << 1)

// Bytes of zeros behind the answer to EXPORT_NAME when NO_ZEROES was not negotiated.
#define NBD_EXPORT_NAME_PADDING 124

enum {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_PEEK_EXPORT = 4, // withdrawn
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

// Option reply types; errors have bit 31 set.
#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERROR_BIT (1u << 31)
#define NBD_REP_ERR_UNSUP (NBD_REP_ERROR_BIT + 1)
#define NBD_REP_ERR_POLICY (NBD_REP_ERROR_BIT + 2)
#define NBD_REP_ERR_INVALID (NBD_REP_ERROR_BIT + 3)
#define NBD_REP_ERR_PLATFORM (NBD_REP_ERROR_BIT + 4)
#define NBD_REP_ERR_TLS_REQD (NBD_REP_ERROR_BIT + 5)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_ERROR_BIT + 6)
#define NBD_REP_ERR_SHUTDOWN (NBD_REP_ERROR_BIT + 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERROR_BIT + 8)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_ERROR_BIT + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERROR_BIT + 10)

// Information types of NBD_OPT_INFO and NBD_OPT_GO.
enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

struct nbd_greeting {
    uint64_t magic;        // NBD_MAGIC
    uint64_t option_magic; // NBD_IHAVEOPT
    uint16_t flags;        // NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES
} __attribute__((packed));

struct nbd_option {
    uint64_t magic;  // NBD_IHAVEOPT
    uint32_t option; // NBD_OPT_*
    uint32_t length; // bytes of data that follow
} __attribute__((packed));

struct nbd_option_reply {
    uint64_t magic;  // NBD_OPTION_REPLY_MAGIC
    uint32_t option; // of the client's request
    uint32_t type;   // NBD_REP_*
    uint32_t length; // bytes of data that follow
} __attribute__((packed));

// The answer to EXPORT_NAME without the padding.
struct nbd_export_name_reply {
    uint64_t size;  // bytes
    uint16_t flags; // transmission flags
} __attribute__((packed));

struct nbd_info_export {
    uint16_t type;  // NBD_INFO_EXPORT
    uint64_t size;  // bytes
    uint16_t flags; // transmission flags
} __attribute__((packed));

struct nbd_info_block_size {
    uint16_t type;    // NBD_INFO_BLOCK_SIZE
    uint32_t minimum; // bytes, all three
    uint32_t preferred;
    uint32_t maximum;
} __attribute__((packed));

_Static_assert(sizeof(struct nbd_greeting) == 18, "Newstyle negotiation");
_Static_assert(sizeof(struct nbd_option) == 16, "Newstyle negotiation");
_Static_assert(sizeof(struct nbd_option_reply) == 20, "Newstyle negotiation");
_Static_assert(sizeof(struct nbd_export_name_reply) == 10, "NBD_OPT_EXPORT_NAME");
_Static_assert(sizeof(struct nbd_info_export) == 12, "NBD_INFO_EXPORT");
_Static_assert(sizeof(struct nbd_info_block_size) == 14, "NBD_INFO_BLOCK_SIZE");

// ---- Transmission flags -------------------------------------------------------------------------

#define NBD_FLAG_HAS_FLAGS (1u << 0)
#define NBD_FLAG_READ_ONLY (1u << 1)
#define NBD_FLAG_SEND_FLUSH (1u << 2)
#define NBD_FLAG_SEND_FUA (1u << 3)
#define NBD_FLAG_ROTATIONAL (1u << 4)
#define NBD_FLAG_SEND_TRIM (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1u << 8)
#define NBD_FLAG_SEND_RESIZE (1u << 9)
#define NBD_FLAG_SEND_CACHE (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12) // extended headers only

// ---- Transmission -------------------------------------------------------------------------------

#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_EXTENDED_REPLY_MAGIC 0x6e8a278cu

enum {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5) // extended headers only

#define NBD_REPLY_FLAG_DONE (1u << 0)

enum {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_OFFSET_HOLE = 2,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6, // extended headers only
    NBD_REPLY_TYPE_ERROR = 0x8001,
    NBD_REPLY_TYPE_ERROR_OFFSET = 0x8002,
};

// Flags of the context base:allocation.
#define NBD_STATE_HOLE (1u << 0)
#define NBD_STATE_ZERO (1u << 1)

// Error values. They are Linux's numbers, but the protocol's meaning wins over the host's.
enum {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

struct nbd_request {
    uint32_t magic; // NBD_REQUEST_MAGIC
    uint16_t flags; // NBD_CMD_FLAG_*
    uint16_t type;  // NBD_CMD_*
    uint64_t cookie;
    uint64_t offset; // bytes
    uint32_t length; // bytes
} __attribute__((packed));

struct nbd_extended_request {
    uint32_t magic; // NBD_EXTENDED_REQUEST_MAGIC
    uint16_t flags; // NBD_CMD_FLAG_*
    uint16_t type;  // NBD_CMD_*
    uint64_t cookie;
    uint64_t offset; // bytes
    // Bytes: of the payload with PAYLOAD_LEN, else of the range.
    uint64_t length;
} __attribute__((packed));

struct nbd_simple_reply {
    uint32_t magic; // NBD_SIMPLE_REPLY_MAGIC
    uint32_t error;
    uint64_t cookie;
} __attribute__((packed));

struct nbd_structured_reply {
    uint32_t magic; // NBD_STRUCTURED_REPLY_MAGIC
    uint16_t flags; // NBD_REPLY_FLAG_*
    uint16_t type;  // NBD_REPLY_TYPE_*
    uint64_t cookie;
    uint32_t length; // bytes of payload that follow
} __attribute__((packed));

struct nbd_extended_reply {
    uint32_t magic; // NBD_EXTENDED_REPLY_MAGIC
    uint16_t flags; // NBD_REPLY_FLAG_*
    uint16_t type;  // NBD_REPLY_TYPE_*
    uint64_t cookie;
    uint64_t offset; // of the request
    uint64_t length; // bytes of payload that follow
} __attribute__((packed));

// Payloads of chunks.
struct nbd_chunk_offset_data {
    uint64_t offset; // data follows
} __attribute__((packed));

struct nbd_chunk_offset_hole {
    uint64_t offset;
    uint32_t length; // bytes, not zero
} __attribute__((packed));

struct nbd_chunk_block_status {
    uint32_t context; // its id; descriptors follow
} __attribute__((packed));

struct nbd_block_descriptor {
    uint32_t length; // bytes, not zero
    uint32_t flags;
} __attribute__((packed));

struct nbd_chunk_block_status_ext {
    uint32_t context; // its id
    uint32_t count;   // of the descriptors that follow
} __attribute__((packed));

struct nbd_block_descriptor_ext {
    uint64_t length; // bytes, not zero
    uint64_t flags;
} __attribute__((packed));

struct nbd_chunk_error {
    uint32_t error;
    uint16_t message_length; // the message follows
} __attribute__((packed));

_Static_assert(sizeof(struct nbd_request) == 28, "Request message");
_Static_assert(sizeof(struct nbd_extended_request) == 32, "Request message");
_Static_assert(sizeof(struct nbd_extended_reply) == 32, "Extended reply chunk message");
_Static_assert(sizeof(struct nbd_chunk_block_status_ext) == 8, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT");
_Static_assert(sizeof(struct nbd_block_descriptor_ext) == 16, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT");
_Static_assert(sizeof(struct nbd_simple_reply) == 16, "Simple reply message");
_Static_assert(sizeof(struct nbd_structured_reply) == 20, "Structured reply chunk message");
_Static_assert(sizeof(struct nbd_chunk_offset_hole) == 12, "NBD_REPLY_TYPE_OFFSET_HOLE");
_Static_assert(sizeof(struct nbd_block_descriptor) == 8, "NBD_REPLY_TYPE_BLOCK_STATUS");
_Static_assert(sizeof(struct nbd_chunk_error) == 6, "NBD_REPLY_TYPE_ERROR");

#endif
