// SPDX-License-Identifier: Apache-2.0
// client_request.h: one request of a client on its way: memory for it, its engine op, its reply.
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

// Extents that a request can hold without memory of its own: a read of up to 1 MiB.
#define CLIENT_REQUEST_FEW_EXTENTS 16
// A read tells about one extent for so many bytes, the default cluster size; what is in finer
// pieces is sent as data.
#define CLIENT_REQUEST_BYTES_PER_EXTENT (64u << 10)
// Extents of one answer to BLOCK_STATUS: 8 KiB of descriptors. A client that takes no answers can
// have so much memory held for each request in flight.
#define CLIENT_REQUEST_STATUS_EXTENTS 1024u
// Requests that are kept for use again, about 600 bytes each: four connections at their limit.
#define CLIENT_REQUEST_POOL_KEEP 4096u

// Output of a connection, in bytes, beyond which its reads take no loans of the file: what a socket
// takes, and what is ready when it takes more. The rest waits for a slow client.
#define CLIENT_LOAN_OUTPUT_MAX (2u << 20)

struct client_request {
    struct op op; // op.done is set by the client
    struct session_request request;
    struct session_payload_ref ref; // its functions are set by the client
    void *owner;                    // the client
    size_t taken;                   // bytes of the client's share
    void *buffer;                   // payload, of buffer_bytes; NULL where it takes none
    size_t buffer_bytes;
    struct extent *extents; // few, or extents_bytes of a buffer
    size_t extents_bytes;   // 0: few
    SLIST_ENTRY(client_request) link;
    struct extent few[CLIENT_REQUEST_FEW_EXTENTS]; // last, for it is not cleared
};

// Memory for the requests of all clients; one a server.
struct client_request_pool {
    struct buffer_pool buffers;
    SLIST_HEAD(, client_request) unused;
    size_t unused_count;
    size_t unused_low; // fewest since the last tick
    // Room to translate extents in; used only inside client_request_reply().
    struct session_read_part parts[OP_EXTENTS_MAX];
    struct session_status_extent status[CLIENT_REQUEST_STATUS_EXTENTS];
};

// Returns NULL when there is no memory.
struct client_request_pool *client_request_pool_new(void);
// All requests must have been put back.
void client_request_pool_free(struct client_request_pool *pool);
// To be called about once a second: gives memory back that nobody needed since. Returns whether it
// wants to be called again.
bool client_request_pool_tick(struct client_request_pool *pool);

// A cleared request, or NULL when there is no memory.
struct client_request *client_request_get(struct client_request_pool *pool);
// Takes the request and its memory back.
void client_request_put(struct client_request_pool *pool, struct share *share,
                        struct client_request *request);

// Gets the memory that the request needs. Returns 0, -EAGAIN while the share has no room, or -ENOMEM.
int client_request_reserve(struct client_request_pool *pool, struct share *share,
                           struct client_request *request);

// Whether the answer is success without anything being done: a hint that we do not take, or a trim
// where the command line says to ignore them.
bool client_request_is_void(const struct client_request *request, const struct export *export);

// Sets up the engine op that the request asks for; of a read the session tells what its reply can be.
void client_request_prepare(struct client_request *request, const struct export *export,
                            const struct session *session);

// Whether the request may change the image.
bool client_request_writes(const struct client_request *request);

// Answers a request whose op is done. Returns whether the session holds a reference to its payload:
// then request->ref is released later, or was already, and request is not to be touched.
bool client_request_reply(struct client_request_pool *pool, struct session *session,
                          struct client_request *request);

// True when the reply's payload is in the request's own buffer, or there is none.
static inline bool client_request_settled(const struct client_request *request)
{
    return request->op.loan.file == NULL;
}

// Has the reply's payload in the request's own buffer. Returns where a piece of it is now that was at
// data before, or NULL when it cannot be had any more.
const void *client_request_settle(struct client_request *request, const void *data, size_t length);

// The request whose ref this is.
struct client_request *client_request_of_ref(struct session_payload_ref *ref);

// "read", "write" and so on, for the log.
const char *client_request_name(const struct client_request *request);

#endif
