// SPDX-License-Identifier: Apache-2.0
// load_connection.h: one connection of the load generator. Requests are queued and sent together in
// one call. Replies are parsed as they come; their data is dropped.
#ifndef LAZYCOW_TESTS_LOAD_CONNECTION_H
#define LAZYCOW_TESTS_LOAD_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol/wire.h"
#include "tests/bench/load_plan.h"
#include "tests/bench/load_result.h"

// Most requests in flight on one connection: one call can send so many with header and payload.
#define LOAD_DEPTH_MAX 512

struct load_slot {
    struct nbd_request header;
    enum load_kind kind;
    uint64_t begun; // ns; when it was queued
};

struct load_target {
    const char *socket; // of a Unix socket; or
    const char *host;   // of TCP
    const char *port;
    const char *name; // of the export
    bool structured;  // ask for structured replies
};

struct load_connection {
    int fd;
    uint64_t size; // of the export, bytes
    bool structured;
    const struct load_target *target;

    struct load_slot slots[LOAD_DEPTH_MAX];
    uint16_t unused[LOAD_DEPTH_MAX]; // slots; a stack
    unsigned unused_count;
    unsigned in_flight;

    // Slots whose request is to be sent, in order; a ring.
    uint16_t queue[LOAD_DEPTH_MAX];
    unsigned queue_first;
    unsigned queue_count;
    uint32_t queue_sent; // bytes of the first one that are sent

    uint8_t head[32]; // of the reply that is being received
    unsigned head_filled;
    unsigned head_wanted;
    uint64_t skip; // bytes of payload that are still to come
    // The read that this payload belongs to, if it ends the reply.
    struct load_slot *reading;
};

// Connects and negotiates. Returns false, with the reason on standard error, when that fails.
bool load_connection_open(struct load_connection *c, const struct load_target *target,
                          unsigned depth);

void load_connection_close(struct load_connection *c);

// Queues one request. There must be an unused slot.
void load_connection_add(struct load_connection *c, enum load_kind kind, uint64_t offset,
                         uint32_t length, uint64_t now);

// Sends queued bytes as far as the socket takes them. payload is the data of every write. Returns
// false when the connection is lost.
bool load_connection_send(struct load_connection *c, void *payload, struct load_result *result);

// Receives once, waiting or not, into a buffer of that many bytes, and handles complete replies.
// Returns false when the connection is lost or the server breaks the protocol.
bool load_connection_receive(struct load_connection *c, void *buffer, uint32_t bytes, bool wait,
                             struct load_result *result);

#endif
