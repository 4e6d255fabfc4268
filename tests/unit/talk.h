// SPDX-License-Identifier: Apache-2.0
// talk.h: a conversation of an NBD client with a session, as bytes said and bytes heard. A test
// writes both sides down; talk_check() plays the client's side in every way a network may cut it
// and compares what comes out.
#ifndef LAZYCOW_TESTS_TALK_H
#define LAZYCOW_TESTS_TALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/session.h"

struct bytes {
    uint8_t *data;
    size_t length;
    size_t capacity;
};

void put_bytes(struct bytes *b, const void *data, size_t length);
void put_text(struct bytes *b, const char *text);
void put_zeros(struct bytes *b, size_t length);
void put_u16(struct bytes *b, uint16_t value);
void put_u32(struct bytes *b, uint32_t value);
void put_u64(struct bytes *b, uint64_t value);
// What the exports' content is at offset.
void put_pattern(struct bytes *b, uint64_t offset, size_t length);

// Exports of every talk, in the order of LIST.
enum {
    EXPORT_DISK,      // "disk": 1 MiB, writable, with all that there is
    EXPORT_READ_ONLY, // "read-only": 3001 bytes
    EXPORT_PLAIN,     // "plain": 1 TiB, no description, no flags at all
    EXPORT_LONG,      // a name of 4096 bytes
    EXPORT_COUNT,
};
extern const struct session_export talk_exports[EXPORT_COUNT];
extern char talk_long_name[SESSION_STRING_MAX + 1];

// How the owner of the session answers.
struct answers {
    int error; // every request, with this errno
    const char *message;
    bool reverse;                          // when the client is done, the last request first
    bool no_memory;                        // for payloads
    bool any_payload;                      // payloads may be something else than the pattern
    const struct session_read_part *parts; // READ, where the reply can carry holes
    size_t part_count;
    const struct session_status_extent *extents; // BLOCK_STATUS
    size_t extent_count;
};

struct talk {
    struct session_host host;
    struct answers answers;
    struct bytes said;      // by the client
    size_t tls_from;        // where in it TLS begins, if STARTTLS is accepted
    struct bytes heard;     // what it must hear
    struct bytes requests;  // lines "type flags offset length\n" that the owner must see, if any
    enum session_event end; // the last event but SESSION_MORE that the owner must see
};

void talk_init(struct talk *t);
// Plays the talk at once, cut in two at every byte, and byte by byte; then every beginning of it,
// which must be answered with a beginning of the answers. Fails the test where anything differs.
// Frees the talk.
void talk_check(struct talk *t);
// Plays it once only, sip bytes at a time: for talks of megabytes.
void talk_check_once(struct talk *t, size_t sip);

// How bytes pass.
struct pace {
    size_t cut;      // the first that many bytes are received before, not together with, the rest
    size_t sip;      // most bytes that are received and sent at a time
    size_t tls_from; // received apart from what is before it, for it comes inside TLS
};

// Plays bytes into a session that the caller made; returns the last event but SESSION_MORE.
// out and requests are appended to.
enum session_event talk_play(struct session *s, const struct answers *answers, const uint8_t *data,
                             size_t length, struct pace pace, struct bytes *out,
                             struct bytes *requests);

// ---- What clients say ---------------------------------------------------------------------------

void say_flags(struct talk *t, uint32_t flags);
void say_option(struct talk *t, uint32_t option, const void *data, size_t length);
// INFO and GO for count information types.
void say_info(struct talk *t, uint32_t option, const char *name, const uint16_t *types,
              size_t count);
// LIST_META_CONTEXT and SET_META_CONTEXT; queries end with NULL.
void say_meta(struct talk *t, uint32_t option, const char *name, const char *const *queries);
void say_request(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                 uint32_t length);

void say_extended(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                  uint64_t length);

// ---- What servers answer ------------------------------------------------------------------------

void hear_greeting(struct talk *t);
void hear_option(struct talk *t, uint32_t option, uint32_t type, const void *data, size_t length);
void hear_error(struct talk *t, uint32_t option, uint32_t type, const char *message);
void hear_ack(struct talk *t, uint32_t option);
// INFO_EXPORT and INFO_BLOCK_SIZE of an export; flags are the transmission flags.
void hear_info(struct talk *t, uint32_t option, const struct session_export *export,
               uint16_t flags);
void hear_context(struct talk *t, uint32_t option, uint32_t id, const char *name);
void hear_simple(struct talk *t, uint32_t error, uint64_t cookie);
void hear_chunk(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length);
void hear_error_chunk(struct talk *t, uint32_t error, uint64_t cookie, const char *message);
// The header of an extended reply chunk; offset is the request's.
void hear_extended(struct talk *t, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                   uint64_t length);
void hear_extended_error(struct talk *t, uint32_t error, uint64_t cookie, uint64_t offset,
                         const char *message);
// A line of requests.
void see_request(struct talk *t, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length);

// ---- Whole beginnings ---------------------------------------------------------------------------

// Greeting and client flags with fixed newstyle and no zeroes.
void talk_hello(struct talk *t);
void talk_structured(struct talk *t);
void talk_extended(struct talk *t);
void talk_starttls(struct talk *t);
// SET_META_CONTEXT for an export: base:allocation with id 1 and, if depth, qemu:allocation-depth
// with id 2.
void talk_contexts(struct talk *t, const char *name, bool depth);
// GO to an export; flags are the transmission flags expected.
void talk_go(struct talk *t, const struct session_export *export, uint16_t flags);
// All of the above, simple or structured, to the export "disk" or another one.
void talk_transmission(struct talk *t, const struct session_export *export, bool structured);

#endif
