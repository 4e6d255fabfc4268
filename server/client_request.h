// SPDX-License-Identifier: Apache-2.0
// client_request.h: one request of a client from its header to its reply: its memory, op and reply.
#ifndef LAZYCOW_SERVER_CLIENT_REQUEST_H
#define LAZYCOW_SERVER_CLIENT_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "protocol/session.h"
#include "qcow2/base/op.h"
#include "server/budget.h"
#include "server/buffer_pool.h"
#include "server/export.h"

// Extents that fit into a request without further memory: those of a read of up to 1 MiB.
#define CLIENT_REQUEST_FEW_EXTENTS 16
// Bytes of a read for each extent that its reply may report: the default cluster size. Finer pieces
// are sent as data.
#define CLIENT_REQUEST_BYTES_PER_EXTENT (64u << 10)
// Extents in one answer to BLOCK_STATUS: 8 KiB of descriptors. A client that takes no answers can
// make the server hold so much memory for each request in flight.
#define CLIENT_REQUEST_STATUS_EXTENTS 1024u
// Unused requests that are kept, of about 600 bytes each: those of four connections at their limit.
#define CLIENT_REQUEST_POOL_KEEP 4096u

// Output of a connection, in bytes, above which its reads take no loans of the file: a full socket,
// and as much again for when the socket has room. A slow client's further replies are copies.
#define CLIENT_LOAN_OUTPUT_MAX (2u << 20)

struct client_request {
    struct op op; // the client sets op.done
    struct session_request request;
    // The client sets the functions.
    struct session_payload_ref ref;
    // The client that sent the request.
    void *owner;
    // Bytes taken of the client's share.
    size_t taken;
    // The payload, of buffer_bytes; NULL for requests without one.
    void *buffer;
    size_t buffer_bytes;
    // Points at few, or at extents_bytes of a buffer.
    struct extent *extents;
    // 0: extents is few.
    size_t extents_bytes;
    SLIST_ENTRY(client_request) link;
    // Last, because it is not cleared.
    struct extent few[CLIENT_REQUEST_FEW_EXTENTS];
};

// Memory for the requests of all clients; a server has one.
struct client_request_pool {
    struct buffer_pool buffers;
    SLIST_HEAD(, client_request) unused;
    size_t unused_count;
    // Fewest unused requests at any moment since the last tick.
    size_t unused_low;
    // Scratch space of client_request_reply().
    struct session_read_part parts[OP_EXTENTS_MAX];
    struct session_status_extent status[CLIENT_REQUEST_STATUS_EXTENTS];
};

// Returns NULL when there is no memory.
struct client_request_pool *client_request_pool_new(void);
// All requests must have been put back.
void client_request_pool_free(struct client_request_pool *pool);
// Called about once a second: frees memory that stayed unused since the last call. Returns true if
// it wants to be called again.
bool client_request_pool_tick(struct client_request_pool *pool);

// Returns a cleared request, or NULL when there is no memory.
struct client_request *client_request_get(struct client_request_pool *pool);
// Takes the request back and frees its memory.
void client_request_put(struct client_request_pool *pool, struct share *share,
                        struct client_request *request);

// Gets the memory that the request needs. Returns 0, -EAGAIN while the share has no room, or
// -ENOMEM.
int client_request_reserve(struct client_request_pool *pool, struct share *share,
                           struct client_request *request);

// True if the request succeeds without an op: a hint that has no effect here, or a trim that the
// command line says to ignore.
bool client_request_is_void(const struct client_request *request, const struct export *export);

// Sets up the op of the request. For a read, the session tells which forms of reply are possible.
void client_request_prepare(struct client_request *request, const struct export *export,
                            const struct session *session);

// True if the request may change the image.
bool client_request_writes(const struct client_request *request);

// Replies to a request whose op is done. Returns true if the session holds a reference to the
// payload: request->ref is then released later, or already was, and the caller must not touch the
// request.
bool client_request_reply(struct client_request_pool *pool, struct session *session,
                          struct client_request *request);

// True if the reply's payload is in the request's own buffer, or there is no payload.
static inline bool client_request_settled(const struct client_request *request)
{
    return request->op.loan.file == NULL;
}

// Moves the reply's payload into the request's own buffer. Returns the new place of the bytes that
// were at data, or NULL when they are lost.
const void *client_request_settle(struct client_request *request, const void *data, size_t length);

// Returns the request that contains ref.
struct client_request *client_request_of_ref(struct session_payload_ref *ref);

// Returns "read", "write" and so on, for the log.
const char *client_request_name(const struct client_request *request);

#endif
