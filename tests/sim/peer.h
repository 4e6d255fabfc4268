// SPDX-License-Identifier: Apache-2.0
// peer.h: the client's side of one NBD connection as plain data: composes the client's bytes and
// parses the server's, with none of the server's code but the wire's numbers. Protocol:
// doc/proto.md of NetworkBlockDevice/nbd.
#ifndef LAZYCOW_TESTS_SIM_PEER_H
#define LAZYCOW_TESTS_SIM_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum peer_mode { PEER_SIMPLE, PEER_STRUCTURED, PEER_EXTENDED };

// Options that a client asks for before it sends requests.
struct peer_wishes {
    enum peer_mode mode;
    // base:allocation and qemu:allocation-depth; not with PEER_SIMPLE.
    bool contexts;
    // Ends with EXPORT_NAME instead of GO; not with PEER_EXTENDED.
    bool export_name;
    bool no_zeroes;
};

enum peer_context { PEER_ALLOCATION, PEER_DEPTH, PEER_CONTEXTS };

struct peer_extent {
    uint64_t length;
    uint64_t value; // NBD_STATE_*, or the depth
};

// Most descriptors that are taken of one chunk; the server sends fewer.
#define PEER_EXTENTS_MAX 4096

// Receives the answers. Each call has the cookie of a request.
struct peer_listener {
    void *context;
    // Returns the length of a READ that waits for its reply; 0: no READ has this cookie.
    uint64_t (*read_length)(void *context, uint64_t cookie);
    // Takes a part of the data of a READ. bytes NULL: zeros.
    void (*data)(void *context, uint64_t cookie, uint64_t offset, const void *bytes,
                 uint64_t length);
    void (*status)(void *context, uint64_t cookie, enum peer_context which,
                   const struct peer_extent *extents, size_t count);
    // Takes the end of a reply. error is 0 or NBD_E*.
    void (*done)(void *context, uint64_t cookie, uint32_t error);
};

struct peer_queue {
    unsigned char *bytes;
    size_t start; // [start, end) is waiting
    size_t end;
    size_t capacity;
};

enum peer_phase { PEER_GREETING, PEER_OPTIONS, PEER_EXPORT_NAME, PEER_TRANSMISSION };

struct peer {
    struct peer_wishes wishes;
    const struct peer_listener *listener;
    enum peer_phase phase;
    struct peer_queue out; // to be sent
    struct peer_queue in;  // received and not parsed yet
    uint64_t size;         // bytes, of the export
    uint16_t flags;        // NBD_FLAG_*
    uint32_t context_ids[PEER_CONTEXTS];
    bool refused; // the server is shutting down
    // The server's violation of the protocol; NULL: none.
    const char *complaint;
    struct peer_extent extents[PEER_EXTENTS_MAX];
};

// listener is borrowed.
void peer_init(struct peer *peer, const struct peer_wishes *wishes,
               const struct peer_listener *listener);
void peer_free(struct peer *peer);
// Appends a request to the bytes to send. payload has length bytes for a WRITE. peer->phase must be
// PEER_TRANSMISSION.
void peer_request(struct peer *peer, uint16_t type, uint16_t flags, uint64_t cookie,
                  uint64_t offset, uint64_t length, const void *payload);
// Returns the bytes to send; peer_said removes them.
size_t peer_says(const struct peer *peer, const unsigned char **bytes);
void peer_said(struct peer *peer, size_t bytes);
// Takes bytes from the server.
void peer_hears(struct peer *peer, const void *bytes, size_t length);

#endif
