// SPDX-License-Identifier: Apache-2.0
// talk.h: a conversation of an NBD client with a session, as sent and received bytes. A test writes
// both sides down. talk_check() plays the client's side in every way in which a network may cut it,
// and compares the session's bytes.
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
// Appends the exports' content at offset.
void put_pattern(struct bytes *b, uint64_t offset, size_t length);

// Exports of every talk, in the order of LIST.
enum {
    EXPORT_DISK,      // "disk": 1 MiB, writable, with all features
    EXPORT_READ_ONLY, // "read-only": 3001 bytes
    EXPORT_PLAIN,     // "plain": 1 TiB, no description, no flags
    EXPORT_LONG,      // a name of 4096 bytes
    EXPORT_COUNT,
};
extern const struct session_export talk_exports[EXPORT_COUNT];
extern char talk_long_name[SESSION_STRING_MAX + 1];

// The behaviour of the session's owner.
struct answers {
    int error; // every request ends with this errno
    const char *message;
    // Answers when the client is done, the last request first.
    bool reverse;
    bool no_memory;                        // for payloads
    bool any_payload;                      // payloads may differ from the pattern
    const struct session_read_part *parts; // READ, where the reply can carry holes
    size_t part_count;
    const struct session_status_extent *extents; // BLOCK_STATUS
    size_t extent_count;
};

struct talk {
    struct session_host host;
    struct answers answers;
    struct bytes said;  // by the client
    size_t tls_from;    // offset at which TLS begins, if STARTTLS is accepted
    struct bytes heard; // what it must hear
    // Lines "type flags offset length\n" of the requests that the owner must see.
    struct bytes requests;
    enum session_event end; // the last event but SESSION_MORE that the owner must see
};

void talk_init(struct talk *t);
// Plays the talk at once, cut in two at every byte, and byte by byte; then every beginning of it,
// which must be answered with a beginning of the answers. Fails the test when any byte differs.
// Frees the talk.
void talk_check(struct talk *t);
// Plays the talk once, sip bytes at a time: for talks of megabytes.
void talk_check_once(struct talk *t, size_t sip);

// The way in which bytes pass.
struct pace {
    // The first cut bytes are received before the rest, not together with it.
    size_t cut;
    size_t sip; // most bytes that are received and sent at a time
    // Bytes from here on are received apart from those before, because they come inside TLS.
    size_t tls_from;
};

// Plays bytes into a session of the caller. Returns the last event but SESSION_MORE. Appends to out
// and requests.
enum session_event talk_play(struct session *s, const struct answers *answers, const uint8_t *data,
                             size_t length, struct pace pace, struct bytes *out,
                             struct bytes *requests);

// ---- What clients say ---------------------------------------------------------------------------

void say_flags(struct talk *t, uint32_t flags);
void say_option(struct talk *t, uint32_t option, const void *data, size_t length);
// Appends INFO or GO for count information types.
void say_info(struct talk *t, uint32_t option, const char *name, const uint16_t *types,
              size_t count);
// Appends LIST_META_CONTEXT or SET_META_CONTEXT; queries end with NULL.
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
// All of the above, with simple or structured replies, for the export "disk" or another one.
void talk_transmission(struct talk *t, const struct session_export *export, bool structured);

#endif
