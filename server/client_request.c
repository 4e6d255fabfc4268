// SPDX-License-Identifier: Apache-2.0
#include "server/client_request.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"
#include "qcow2/base/container.h"
#include "qcow2/base/loan.h"

// A payload of zeros becomes a zero request only if both its ends are multiples of this many bytes:
// the engine would write zeros for a smaller piece anyway, after more work.
#define DETECT_ZEROES_ALIGN 4096u

struct client_request_pool *client_request_pool_new(void)
{
    struct client_request_pool *pool = calloc(1, sizeof(*pool));

    if (pool != NULL) {
        buffer_pool_init(&pool->buffers);
        SLIST_INIT(&pool->unused);
    }
    return pool;
}

static void pool_shrink(struct client_request_pool *pool, size_t count)
{
    for (; count > 0; count--) {
        struct client_request *request = SLIST_FIRST(&pool->unused);

        SLIST_REMOVE_HEAD(&pool->unused, link);
        pool->unused_count--;
        free(request);
    }
}

void client_request_pool_free(struct client_request_pool *pool)
{
    pool_shrink(pool, pool->unused_count);
    buffer_pool_destroy(&pool->buffers);
    free(pool);
}

bool client_request_pool_tick(struct client_request_pool *pool)
{
    bool buffers_left;

    pool_shrink(pool, pool->unused_low);
    pool->unused_low = pool->unused_count;
    buffers_left = buffer_pool_tick(&pool->buffers);
    return buffers_left || pool->unused_count > 0;
}

struct client_request *client_request_get(struct client_request_pool *pool)
{
    struct client_request *request = SLIST_FIRST(&pool->unused);

    if (request != NULL) {
        SLIST_REMOVE_HEAD(&pool->unused, link);
        pool->unused_count--;
        if (pool->unused_count < pool->unused_low) {
            pool->unused_low = pool->unused_count;
        }
    } else {
        request = malloc(sizeof(*request));
        if (request == NULL) {
            return NULL;
        }
    }
    memset(request, 0, offsetof(struct client_request, few));
    return request;
}

void client_request_put(struct client_request_pool *pool, struct share *share,
                        struct client_request *request)
{
    if (!client_request_settled(request)) {
        loan_return(&request->op.loan, request->extents, request->op.extent_count);
    }
    if (request->buffer != NULL) {
        buffer_pool_put(&pool->buffers, request->buffer, request->buffer_bytes);
    }
    if (request->extents_bytes > 0) {
        buffer_pool_put(&pool->buffers, request->extents, request->extents_bytes);
    }
    share_give(share, request->taken);
    if (pool->unused_count >= CLIENT_REQUEST_POOL_KEEP) {
        free(request);
        return;
    }
    SLIST_INSERT_HEAD(&pool->unused, request, link);
    pool->unused_count++;
}

// Returns how many extents the op reports; 0 if it reports none.
static size_t extents_wanted(const struct session_request *request)
{
    size_t count;

    if (request->type == NBD_CMD_BLOCK_STATUS) {
        return request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : CLIENT_REQUEST_STATUS_EXTENTS;
    }
    if (request->type != NBD_CMD_READ) {
        return 0;
    }
    count = request->length / CLIENT_REQUEST_BYTES_PER_EXTENT;
    return count < CLIENT_REQUEST_FEW_EXTENTS ? CLIENT_REQUEST_FEW_EXTENTS : count;
}

int client_request_reserve(struct client_request_pool *pool, struct share *share,
                           struct client_request *request)
{
    const struct session_request *wire = &request->request;
    size_t extents = extents_wanted(wire);
    size_t buffer_bytes = 0;
    size_t extents_bytes = 0;
    size_t total = sizeof(*request);

    assert(extents <= OP_EXTENTS_MAX);
    if (wire->type == NBD_CMD_READ || wire->type == NBD_CMD_WRITE) {
        assert(wire->length > 0 && wire->length <= SESSION_PAYLOAD_MAX);
        buffer_bytes = (size_t)wire->length;
        total += buffer_pool_size(buffer_bytes);
    }
    if (extents > CLIENT_REQUEST_FEW_EXTENTS) {
        extents_bytes = extents * sizeof(struct extent);
        total += buffer_pool_size(extents_bytes);
    }
    if (!share_take(share, total)) {
        return -EAGAIN;
    }
    request->taken = total;
    request->op.max_extents = extents;
    request->extents = request->few;
    if (buffer_bytes > 0) {
        request->buffer = buffer_pool_get(&pool->buffers, buffer_bytes);
        request->buffer_bytes = buffer_bytes;
        if (request->buffer == NULL) {
            return -ENOMEM;
        }
    }
    if (extents_bytes > 0) {
        request->extents = buffer_pool_get(&pool->buffers, extents_bytes);
        if (request->extents == NULL) {
            return -ENOMEM;
        }
        request->extents_bytes = extents_bytes;
    }
    return 0;
}

bool client_request_is_void(const struct client_request *request, const struct export *export)
{
    const struct session_request *wire = &request->request;

    // CACHE is a hint, and the host's page cache reads ahead by itself.
    return wire->type == NBD_CMD_CACHE || (wire->type == NBD_CMD_TRIM && !export->options.unmap);
}

static bool is_zero(const void *data, size_t length)
{
    const unsigned char *bytes = data;

    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

// Returns true if the write becomes a zero request (--detect-zeroes).
static bool zeroes_detected(const struct client_request *request, enum detect_zeroes mode)
{
    const struct session_request *wire = &request->request;

    return mode != DETECT_ZEROES_OFF && wire->offset % DETECT_ZEROES_ALIGN == 0 &&
           wire->length % DETECT_ZEROES_ALIGN == 0 && is_zero(request->buffer, wire->length);
}

static unsigned read_flags(const struct session_request *wire, const struct session *session)
{
    unsigned flags = session_read_holes(session, wire) ? OP_REPORT_HOLES : 0;

    // The TLS library reads the payload from memory and cannot survive a failing read of a mapping,
    // so TLS sessions take no loans.
    if (!session_tls(session) && session_output_bytes(session) < CLIENT_LOAN_OUTPUT_MAX) {
        flags |= OP_LOAN;
    }
    return flags;
}

void client_request_prepare(struct client_request *request, const struct export *export,
                            const struct session *session)
{
    const struct export_options *options = &export->options;
    const struct session_request *wire = &request->request;
    struct op *op = &request->op;

    op->offset = wire->offset;
    op->length = wire->length;
    op->buf = request->buffer;
    op->extents = op->max_extents > 0 ? request->extents : NULL;
    if (wire->flags & NBD_CMD_FLAG_FUA) {
        op->flags |= OP_FUA;
    }
    switch (wire->type) {
    case NBD_CMD_READ:
        op->kind = OP_READ;
        op->flags = read_flags(wire, session);
        break;
    case NBD_CMD_WRITE:
        op->kind = OP_WRITE;
        if (zeroes_detected(request, options->detect_zeroes)) {
            op->kind = OP_WRITE_ZEROES;
            // Space that a plain write would have allocated stays allocated, unless holes were
            // asked for.
            op->flags |= options->detect_zeroes == DETECT_ZEROES_UNMAP ? 0 : OP_NO_HOLE;
        }
        break;
    case NBD_CMD_FLUSH:
        op->kind = OP_FLUSH;
        op->flags = 0;
        break;
    case NBD_CMD_TRIM:
        op->kind = OP_DISCARD;
        break;
    case NBD_CMD_WRITE_ZEROES:
        op->kind = OP_WRITE_ZEROES;
        op->flags |= wire->flags & NBD_CMD_FLAG_NO_HOLE ? OP_NO_HOLE : 0;
        op->flags |= wire->flags & NBD_CMD_FLAG_FAST_ZERO ? OP_FAST_ZERO : 0;
        break;
    default:
        assert(wire->type == NBD_CMD_BLOCK_STATUS);
        op->kind = OP_BLOCK_STATUS;
        op->flags = 0;
        break;
    }
    if (options->force_fua && (op->kind == OP_WRITE || op->kind == OP_WRITE_ZEROES)) {
        op->flags |= OP_FUA;
    }
}

bool client_request_writes(const struct client_request *request)
{
    return request->op.kind == OP_WRITE || request->op.kind == OP_WRITE_ZEROES ||
           request->op.kind == OP_DISCARD;
}

// Translates the extents of a read and returns their number.
static size_t read_parts(struct client_request_pool *pool, const struct client_request *request)
{
    size_t count = request->op.extent_count;

    for (size_t i = 0; i < count; i++) {
        const struct extent *extent = &request->extents[i];

        pool->parts[i] = (struct session_read_part){
            .length = extent->length,
            .hole = extent->zero,
            .data = extent->data,
        };
    }
    return count;
}

static void reply_status(struct client_request_pool *pool, struct session *session,
                         const struct client_request *request)
{
    size_t count = request->op.extent_count;

    for (size_t i = 0; i < count; i++) {
        const struct extent *extent = &request->extents[i];
        uint32_t flags = extent->hole ? NBD_STATE_HOLE : 0;

        flags |= extent->zero ? NBD_STATE_ZERO : 0;
        pool->status[i] = (struct session_status_extent){
            .length = extent->length,
            .flags = flags,
            .depth = extent->depth,
        };
    }
    session_reply_status(session, &request->request, pool->status, count);
}

bool client_request_reply(struct client_request_pool *pool, struct session *session,
                          struct client_request *request)
{
    int result = request->op.result;

    if (result < 0) {
        session_reply(session, &request->request, -result, strerror(-result));
        return false;
    }
    if (request->request.type == NBD_CMD_READ) {
        size_t count = read_parts(pool, request);
        session_reply_read(session, &request->request, request->buffer, pool->parts, count,
                           &request->ref);
        return true;
    }
    if (request->request.type == NBD_CMD_BLOCK_STATUS) {
        reply_status(pool, session, request);
    } else {
        session_reply(session, &request->request, 0, NULL);
    }
    return false;
}

const void *client_request_settle(struct client_request *request, const void *data, size_t length)
{
    struct op *op = &request->op;
    const char *at = data;
    char *place = request->buffer;

    if (!client_request_settled(request) &&
        !loan_settle(&op->loan, request->extents, op->extent_count, request->buffer)) {
        return NULL;
    }
    // All bytes are in the buffer now, at the position of their extent. Adjacent extents may
    // overlap in the file; the first that contains the data serves. Bytes outside of every extent
    // were in the buffer before.
    for (size_t i = 0; i < op->extent_count; i++) {
        const struct extent *extent = &request->extents[i];
        const char *before = extent->data;

        if (before != NULL && at >= before && at + length <= before + extent->length) {
            return place + (at - before);
        }
        place += extent->length;
    }
    return data;
}

struct client_request *client_request_of_ref(struct session_payload_ref *ref)
{
    return container_of(ref, struct client_request, ref);
}

const char *client_request_name(const struct client_request *request)
{
    static const char *const names[] = {
        [NBD_CMD_READ] = "read",
        [NBD_CMD_WRITE] = "write",
        [NBD_CMD_FLUSH] = "flush",
        [NBD_CMD_TRIM] = "trim",
        [NBD_CMD_CACHE] = "cache",
        [NBD_CMD_WRITE_ZEROES] = "write zeroes",
        [NBD_CMD_BLOCK_STATUS] = "block status",
    };
    size_t type = request->request.type;

    return type < sizeof(names) / sizeof(names[0]) && names[type] != NULL ? names[type] : "request";
}
