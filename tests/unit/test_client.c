// SPDX-License-Identifier: Apache-2.0
// test_client.c: the bridge, between a real session and an engine that the test controls.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "protocol/wire.h"
#include "qcow2/image.h"
#include "server/client.h"

#define SIZE (1ull << 40)
#define COOKIE 0x1122334455667788ull

// ---- The engine ---------------------------------------------------------------------------------

struct image {
    struct op *ops[2 * CLIENT_REQUESTS_MAX]; // started, in order
    size_t started;
};

void op_start(struct image *image, struct op *op)
{
    assert_true(image->started < sizeof(image->ops) / sizeof(image->ops[0]));
    image->ops[image->started++] = op;
}

// Loans that were not returned; and whether their bytes can still be read.
struct owner {
    struct file file;
    size_t loans;
    bool lost;
};

static struct owner *owner_of(const struct loan *loan)
{
    return (struct owner *)loan->file;
}

void loan_return(struct loan *loan, const struct extent *extents, size_t count)
{
    (void)extents;
    (void)count;
    assert_true(owner_of(loan)->loans > 0);
    owner_of(loan)->loans--;
    loan->file = NULL;
}

bool loan_settle(struct loan *loan, const struct extent *extents, size_t count, void *buf)
{
    char *to = buf;

    if (owner_of(loan)->lost) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (extents[i].data != NULL) {
            memcpy(to, extents[i].data, extents[i].length);
        }
        to += extents[i].length;
    }
    loan_return(loan, extents, count);
    return true;
}

// Functions that export.c needs to link.
uint64_t image_size(const struct image *image)
{
    (void)image;
    return SIZE;
}

bool image_read_only(const struct image *image)
{
    (void)image;
    return false;
}

void image_close(struct image *image)
{
    (void)image;
}

// ---- A client of it -----------------------------------------------------------------------------

struct fixture {
    struct image image;
    struct export export;
    struct exports exports;
    struct log log;
    struct access access;
    struct client_shared shared;
    struct client *client;
    enum client_state state;
    unsigned changed;
    uint8_t *output; // taken and not checked yet
    size_t output_bytes;
};

static void on_changed(void *context)
{
    ((struct fixture *)context)->changed++;
}

static void say(struct fixture *f, const void *data, size_t length)
{
    const uint8_t *bytes = data;

    while (length > 0) {
        struct iovec iov[2];
        int count = client_input(f->client, iov);
        size_t total = 0;

        assert_true(count > 0);
        for (int i = 0; i < count && length > 0; i++) {
            size_t n = iov[i].iov_len < length ? iov[i].iov_len : length;

            memcpy(iov[i].iov_base, bytes, n);
            bytes += n;
            length -= n;
            total += n;
        }
        client_received(f->client, total);
        f->state = client_run(f->client);
    }
}

// Takes all output there is.
static void listen_all(struct fixture *f)
{
    struct iovec iov[16];
    int count;

    while ((count = client_output(f->client, iov, 16)) > 0) {
        size_t total = 0;

        for (int i = 0; i < count; i++) {
            f->output = realloc(f->output, f->output_bytes + iov[i].iov_len);
            assert_non_null(f->output);
            memcpy(f->output + f->output_bytes, iov[i].iov_base, iov[i].iov_len);
            f->output_bytes += iov[i].iov_len;
            total += iov[i].iov_len;
        }
        client_sent(f->client, total);
    }
    assert_int_equal(client_output_bytes(f->client), 0);
}

// Takes the next bytes of the output, which must be there.
static void hear(struct fixture *f, void *data, size_t length)
{
    assert_true(f->output_bytes >= length);
    memcpy(data, f->output, length);
    f->output_bytes -= length;
    memmove(f->output, f->output + length, f->output_bytes);
}

static void hear_simple(struct fixture *f, uint32_t error)
{
    struct nbd_simple_reply reply;

    hear(f, &reply, sizeof(reply));
    assert_int_equal(be32toh(reply.magic), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(be64toh(reply.cookie), COOKIE);
    assert_int_equal(be32toh(reply.error), error);
}

// Takes the header of a chunk of `type`; its payload of `length` bytes is taken later.
static void hear_chunk(struct fixture *f, uint16_t type, uint16_t flags, uint32_t length)
{
    struct nbd_structured_reply reply;

    hear(f, &reply, sizeof(reply));
    assert_int_equal(be32toh(reply.magic), NBD_STRUCTURED_REPLY_MAGIC);
    assert_int_equal(be64toh(reply.cookie), COOKIE);
    assert_int_equal(be16toh(reply.type), type);
    assert_int_equal(be16toh(reply.flags), flags);
    assert_int_equal(be32toh(reply.length), length);
}

static void ask(struct fixture *f, uint16_t type, uint16_t flags, uint64_t offset, uint32_t length)
{
    struct nbd_request request = {
        .magic = htobe32(NBD_REQUEST_MAGIC),
        .flags = htobe16(flags),
        .type = htobe16(type),
        .cookie = htobe64(COOKIE),
        .offset = htobe64(offset),
        .length = htobe32(length),
    };

    say(f, &request, sizeof(request));
}

// Ends the op that was started as the index-th.
static void finish(struct fixture *f, size_t index, int result)
{
    struct op *op = f->image.ops[index];

    assert_true(index < f->image.started);
    f->image.ops[index] = NULL;
    op->result = result;
    op->done(op);
}

static void option(struct fixture *f, uint32_t type, const void *data, uint32_t length)
{
    struct nbd_option header = {
        .magic = htobe64(NBD_IHAVEOPT),
        .option = htobe32(type),
        .length = htobe32(length),
    };

    say(f, &header, sizeof(header));
    say(f, data, length);
}

static void setup(struct fixture *f, struct export_options options)
{
    memset(f, 0, sizeof(*f));
    f->exports = (struct exports){.list = &f->export, .count = 1};
    f->export = (struct export){
        .session =
            {
                .name = "disk",
                .size = SIZE,
                .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                         NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_CACHE |
                         NBD_FLAG_SEND_FAST_ZERO,
                .block_min = 1,
                .block_preferred = 4096,
                .block_max = SESSION_PAYLOAD_MAX,
            },
        .exports = &f->exports,
        .options = options,
        .name = (char *)"disk",
        .image = &f->image,
    };
    log_init(&f->log, LOG_LEVEL_ERROR, -1);
    assert_int_equal(access_init(&f->access, &f->exports, NULL, 0, NULL), 0);
    assert_int_equal(client_shared_init(&f->shared, &f->access, &f->log), 0);
    f->client = client_new(&f->shared, "client", on_changed, f);
    assert_non_null(f->client);
}

static const struct export_options plain_options = {.unmap = true};

// In the transmission phase with simple replies.
static void begin(struct fixture *f, struct export_options options)
{
    uint32_t flags = htobe32(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);

    setup(f, options);
    say(f, &flags, sizeof(flags));
    option(f, NBD_OPT_EXPORT_NAME, "disk", 4);
    assert_true(client_negotiated(f->client));
    listen_all(f);
    f->output_bytes = 0;
}

// In the transmission phase with structured replies and base:allocation.
static void begin_structured(struct fixture *f, struct export_options options)
{
    static const uint8_t set[] = "\0\0\0\4disk\0\0\0\1\0\0\0\17base:allocation";
    static const uint8_t go[] = "\0\0\0\4disk\0\0";
    uint32_t flags = htobe32(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);

    setup(f, options);
    say(f, &flags, sizeof(flags));
    option(f, NBD_OPT_STRUCTURED_REPLY, "", 0);
    option(f, NBD_OPT_SET_META_CONTEXT, set, sizeof(set) - 1);
    option(f, NBD_OPT_GO, go, sizeof(go) - 1);
    assert_true(client_negotiated(f->client));
    listen_all(f);
    f->output_bytes = 0;
}

// Also checks that all memory was given back.
static void end(struct fixture *f)
{
    client_free(f->client);
    assert_int_equal(f->shared.budget.used, 0);
    assert_int_equal(f->export.ops, 0);
    client_shared_destroy(&f->shared);
    free(f->output);
}

// ---- Tests --------------------------------------------------------------------------------------

static void read_becomes_op_and_reply(void **state)
{
    struct fixture f;
    char data[16];

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 512, 16);
    assert_int_equal(f.image.started, 1);
    assert_int_equal(f.image.ops[0]->kind, OP_READ);
    assert_int_equal(f.image.ops[0]->offset, 512);
    assert_int_equal(f.image.ops[0]->length, 16);
    assert_int_equal((uintptr_t)f.image.ops[0]->buf % BUFFER_ALIGN, 0);
    assert_int_equal(f.image.ops[0]->flags, OP_LOAN); // but no holes
    assert_int_equal(client_output_bytes(f.client), 0);
    memcpy(f.image.ops[0]->buf, "0123456789abcdef", 16);
    finish(&f, 0, 0);
    assert_int_equal(f.changed, 1);
    listen_all(&f);
    hear_simple(&f, 0);
    hear(&f, data, 16);
    assert_memory_equal(data, "0123456789abcdef", 16);
    assert_int_equal(f.output_bytes, 0);
    assert_int_equal(f.shared.budget.used, 0);
    end(&f);
}

static void an_error_is_a_reply(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 4096);
    ask(&f, NBD_CMD_FLUSH, 0, 0, 0);
    finish(&f, 1, 0);
    finish(&f, 0, -EIO);
    listen_all(&f);
    hear_simple(&f, 0);
    hear_simple(&f, NBD_EIO);
    assert_int_equal(f.output_bytes, 0);
    ask(&f, NBD_CMD_READ, 0, 0, 4096);
    assert_int_equal(f.image.started, 3);
    finish(&f, 2, 0);
    end(&f);
}

// Ends a read of 24 bytes, the first and the last 8 of which are on loan.
static void finish_with_loan(struct fixture *f, size_t index, struct owner *owner,
                             const char *first, const char *last)
{
    struct op *op = f->image.ops[index];

    assert_true(op->flags & OP_LOAN);
    assert_true(op->max_extents >= 3);
    op->extents[0] = (struct extent){.length = 8, .data = first};
    op->extents[1] = (struct extent){.length = 8};
    op->extents[2] = (struct extent){.length = 8, .data = last};
    op->extent_count = 3;
    memset(op->buf, '!', 24);
    memcpy((char *)op->buf + 8, "buffered", 8);
    op->loan.file = &owner->file;
    owner->loans++;
    finish(f, index, 0);
}

static void a_loan_is_sent_from_where_it_is(void **state)
{
    struct owner owner = {.loans = 0};
    char first[] = "aaaaaaaa";
    struct fixture f;
    char data[24];

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 24);
    finish_with_loan(&f, 0, &owner, first, "cccccccc");
    assert_false(client_settled(f.client));
    assert_int_equal(owner.loans, 1);
    memcpy(first, "AAAAAAAA", 8); // until it is sent it shows the present bytes
    listen_all(&f);
    assert_true(client_settled(f.client));
    assert_int_equal(owner.loans, 0);
    hear_simple(&f, 0);
    hear(&f, data, 24);
    assert_memory_equal(data, "AAAAAAAAbufferedcccccccc", 24);
    end(&f);
}

static void a_reply_that_waits_is_settled(void **state)
{
    struct owner owner = {.loans = 0};
    char bytes[3][9] = {"aaaaaaaa", "bbbbbbbb", "cccccccc"};
    struct fixture f;
    struct iovec iov[16];
    char data[24];

    (void)state;
    begin(&f, plain_options);
    for (size_t i = 0; i < 3; i++) {
        ask(&f, NBD_CMD_READ, 0, 0, 24);
        finish_with_loan(&f, i, &owner, bytes[i], bytes[i]);
    }
    assert_int_equal(owner.loans, 3);
    // The first reply is sent except for its last four bytes.
    assert_true(client_output(f.client, iov, 16) > 0);
    client_sent(f.client, sizeof(struct nbd_simple_reply) + 20);
    assert_int_equal(owner.loans, 3);
    assert_true(client_settle(f.client));
    assert_true(client_settled(f.client));
    assert_int_equal(owner.loans, 0);
    memset(bytes, '?', sizeof(bytes));
    assert_true(client_settle(f.client));
    listen_all(&f);
    hear(&f, data, 4);
    assert_memory_equal(data, "aaaa", 4);
    hear_simple(&f, 0);
    hear(&f, data, 24);
    assert_memory_equal(data, "bbbbbbbbbufferedbbbbbbbb", 24);
    hear_simple(&f, 0);
    hear(&f, data, 24);
    assert_memory_equal(data, "ccccccccbufferedcccccccc", 24);
    assert_int_equal(f.output_bytes, 0);
    end(&f);
}

static void what_is_lost_cannot_be_settled(void **state)
{
    struct owner owner = {.lost = true};
    struct fixture f;

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 24);
    finish_with_loan(&f, 0, &owner, "aaaaaaaa", "cccccccc");
    assert_false(client_settle(f.client));
    client_abandon(f.client);
    assert_int_equal(owner.loans, 0);
    end(&f);
}

static void an_abandoned_client_returns_its_loans(void **state)
{
    struct owner owner = {.loans = 0};
    struct fixture f;

    (void)state;
    begin_structured(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 24);
    ask(&f, NBD_CMD_READ, 0, 0, 24);
    finish_with_loan(&f, 0, &owner, "aaaaaaaa", "cccccccc");
    client_abandon(f.client);
    assert_int_equal(owner.loans, 0);
    finish_with_loan(&f, 1, &owner, "aaaaaaaa", "cccccccc");
    assert_int_equal(owner.loans, 0);
    end(&f);
}

static void holes_are_told(void **state)
{
    struct fixture f;
    struct nbd_chunk_offset_hole hole;
    struct nbd_chunk_offset_data data;
    char content[512];

    (void)state;
    begin_structured(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 4096, 1024);
    assert_true(f.image.ops[0]->flags & OP_REPORT_HOLES);
    assert_true(f.image.ops[0]->max_extents >= 2);
    f.image.ops[0]->extents[0] = (struct extent){.length = 512, .hole = true, .zero = true};
    f.image.ops[0]->extents[1] = (struct extent){.length = 512};
    f.image.ops[0]->extent_count = 2;
    memset((char *)f.image.ops[0]->buf + 512, 'x', 512);
    finish(&f, 0, 0);
    listen_all(&f);
    hear_chunk(&f, NBD_REPLY_TYPE_OFFSET_HOLE, 0, sizeof(hole));
    hear(&f, &hole, sizeof(hole));
    assert_int_equal(be64toh(hole.offset), 4096);
    assert_int_equal(be32toh(hole.length), 512);
    hear_chunk(&f, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_FLAG_DONE, sizeof(data) + 512);
    hear(&f, &data, sizeof(data));
    assert_int_equal(be64toh(data.offset), 4096 + 512);
    hear(&f, content, 512);
    assert_int_equal(content[0], 'x');
    assert_int_equal(f.output_bytes, 0);

    // Nothing but a hole: no payload is sent, and its memory comes back.
    ask(&f, NBD_CMD_READ, 0, 0, 1 << 20);
    f.image.ops[1]->extents[0] = (struct extent){.length = 1 << 20, .zero = true};
    f.image.ops[1]->extent_count = 1;
    finish(&f, 1, 0);
    listen_all(&f);
    hear_chunk(&f, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REPLY_FLAG_DONE, sizeof(hole));
    assert_int_equal(f.output_bytes, sizeof(hole));
    assert_int_equal(f.shared.budget.used, 0);
    end(&f);
}

static void large_read_gets_room_for_extents(void **state)
{
    struct fixture f;

    (void)state;
    begin_structured(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, SESSION_PAYLOAD_MAX);
    assert_int_equal(f.image.ops[0]->max_extents,
                     SESSION_PAYLOAD_MAX / CLIENT_REQUEST_BYTES_PER_EXTENT);
    for (size_t i = 0; i < f.image.ops[0]->max_extents; i++) {
        f.image.ops[0]->extents[i] =
            (struct extent){.length = CLIENT_REQUEST_BYTES_PER_EXTENT, .zero = i % 2 == 0};
    }
    f.image.ops[0]->extent_count = f.image.ops[0]->max_extents;
    memset(f.image.ops[0]->buf, 1, SESSION_PAYLOAD_MAX);
    finish(&f, 0, 0);
    assert_true(client_output_bytes(f.client) > SESSION_PAYLOAD_MAX / 2);
    assert_true(client_output_bytes(f.client) < SESSION_PAYLOAD_MAX / 2 + (1 << 20));
    end(&f);
}

static void block_status_is_translated(void **state)
{
    struct fixture f;
    struct nbd_chunk_block_status head;
    struct nbd_block_descriptor descriptors[2];

    (void)state;
    begin_structured(&f, plain_options);
    ask(&f, NBD_CMD_BLOCK_STATUS, 0, 0, 1 << 20);
    assert_int_equal(f.image.ops[0]->kind, OP_BLOCK_STATUS);
    assert_int_equal(f.image.ops[0]->max_extents, CLIENT_REQUEST_STATUS_EXTENTS);
    f.image.ops[0]->extents[0] = (struct extent){.length = 65536, .hole = true, .zero = true};
    f.image.ops[0]->extents[1] = (struct extent){.length = 131072, .zero = true};
    f.image.ops[0]->extent_count = 2;
    finish(&f, 0, 0);
    listen_all(&f);
    hear_chunk(&f, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_FLAG_DONE,
               sizeof(head) + sizeof(descriptors));
    hear(&f, &head, sizeof(head));
    hear(&f, descriptors, sizeof(descriptors));
    assert_int_equal(be32toh(descriptors[0].length), 65536);
    assert_int_equal(be32toh(descriptors[0].flags), NBD_STATE_HOLE | NBD_STATE_ZERO);
    assert_int_equal(be32toh(descriptors[1].length), 131072);
    assert_int_equal(be32toh(descriptors[1].flags), NBD_STATE_ZERO);

    ask(&f, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 1 << 20);
    assert_int_equal(f.image.ops[1]->max_extents, 1);
    finish(&f, 1, -EIO);
    end(&f);
}

// Each kind of change, with the op and flags that it becomes.
static void changes_become_ops(void **state)
{
    static const struct {
        uint16_t type, flags;
        enum op_kind kind;
        unsigned op_flags;
        unsigned forced_flags; // where every write is to be durable
    } table[] = {
        {NBD_CMD_FLUSH, 0, OP_FLUSH, 0, 0},
        {NBD_CMD_TRIM, 0, OP_DISCARD, 0, 0},
        {NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, OP_DISCARD, OP_FUA, OP_FUA},
        {NBD_CMD_WRITE_ZEROES, 0, OP_WRITE_ZEROES, 0, OP_FUA},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, OP_WRITE_ZEROES,
         OP_NO_HOLE | OP_FUA, OP_NO_HOLE | OP_FUA},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, OP_WRITE_ZEROES, OP_FAST_ZERO,
         OP_FAST_ZERO | OP_FUA},
    };

    (void)state;
    for (int forced = 0; forced < 2; forced++) {
        struct fixture f;
        struct export_options options = plain_options;

        options.force_fua = forced;
        begin(&f, options);
        for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
            bool flush = table[i].type == NBD_CMD_FLUSH;

            ask(&f, table[i].type, table[i].flags, flush ? 0 : 8192, flush ? 0 : 12288);
            assert_int_equal(f.image.started, i + 1);
            assert_int_equal(f.image.ops[i]->kind, table[i].kind);
            assert_int_equal(f.image.ops[i]->flags,
                             forced ? table[i].forced_flags : table[i].op_flags);
            assert_int_equal(f.image.ops[i]->length, flush ? 0 : 12288);
            finish(&f, i, 0);
        }
        // All but the flush.
        assert_int_equal(f.export.writes, sizeof(table) / sizeof(table[0]) - 1);
        end(&f);
    }
}

static void write_carries_its_payload(void **state)
{
    struct fixture f;
    char data[5000];

    (void)state;
    memset(data, 'w', sizeof(data));
    begin(&f, plain_options);
    ask(&f, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 4096, sizeof(data));
    assert_int_equal(f.image.started, 0);
    say(&f, data, sizeof(data));
    assert_int_equal(f.image.started, 1);
    assert_int_equal(f.image.ops[0]->kind, OP_WRITE);
    assert_int_equal(f.image.ops[0]->flags, OP_FUA);
    assert_memory_equal(f.image.ops[0]->buf, data, sizeof(data));
    finish(&f, 0, -ENOSPC);
    listen_all(&f);
    hear_simple(&f, NBD_ENOSPC);
    end(&f);
}

static void zeroes_are_detected(void **state)
{
    static const struct {
        enum detect_zeroes mode;
        uint64_t offset;
        uint32_t length;
        char last; // byte of the payload
        enum op_kind kind;
        unsigned flags;
    } table[] = {
        {DETECT_ZEROES_OFF, 0, 8192, 0, OP_WRITE, 0},
        {DETECT_ZEROES_ON, 0, 8192, 0, OP_WRITE_ZEROES, OP_NO_HOLE},
        {DETECT_ZEROES_UNMAP, 0, 8192, 0, OP_WRITE_ZEROES, 0},
        {DETECT_ZEROES_UNMAP, 0, 8192, 1, OP_WRITE, 0},
        {DETECT_ZEROES_UNMAP, 512, 8192, 0, OP_WRITE, 0},
        {DETECT_ZEROES_UNMAP, 0, 8191, 0, OP_WRITE, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct fixture f;
        struct export_options options = plain_options;
        char data[8192] = {0};

        options.detect_zeroes = table[i].mode;
        data[table[i].length - 1] = table[i].last;
        begin(&f, options);
        ask(&f, NBD_CMD_WRITE, 0, table[i].offset, table[i].length);
        say(&f, data, table[i].length);
        assert_int_equal(f.image.ops[0]->kind, table[i].kind);
        assert_int_equal(f.image.ops[0]->flags, table[i].flags);
        finish(&f, 0, 0);
        end(&f);
    }
}

static void hints_need_no_op(void **state)
{
    struct fixture f;
    const struct export_options ignore = {.unmap = false};

    (void)state;
    begin(&f, ignore);
    ask(&f, NBD_CMD_CACHE, 0, 0, 4096);
    ask(&f, NBD_CMD_TRIM, 0, 0, 4096);
    assert_int_equal(f.image.started, 0);
    listen_all(&f);
    hear_simple(&f, 0);
    hear_simple(&f, 0);
    end(&f);
}

// Reads of the largest size: two fit into the share; the others wait until replies were sent.
static void share_holds_a_client_back(void **state)
{
    struct fixture f;
    struct iovec iov[2];

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, SESSION_PAYLOAD_MAX);
    assert_int_equal(f.state, CLIENT_OPEN);
    ask(&f, NBD_CMD_READ, 0, 0, SESSION_PAYLOAD_MAX);
    assert_int_equal(f.state, CLIENT_STALLED);
    assert_int_equal(f.image.started, 1); // two with their bookkeeping are a little too much
    assert_int_equal(client_input(f.client, iov), 0);
    assert_true(f.shared.budget.used <= CLIENT_SHARE);

    finish(&f, 0, 0);
    assert_int_equal(client_run(f.client), CLIENT_STALLED); // not before it was sent
    listen_all(&f);
    assert_int_equal(client_run(f.client), CLIENT_OPEN);
    assert_int_equal(f.image.started, 2);
    finish(&f, 1, -EIO);
    end(&f);
}

// A write that finds no memory waits with its payload.
static void share_holds_a_payload_back(void **state)
{
    struct fixture f;
    char data[4096];

    (void)state;
    memset(data, 'p', sizeof(data));
    begin(&f, plain_options);
    f.shared.budget.used = f.shared.budget.limit + f.shared.budget.reserve;
    ask(&f, NBD_CMD_WRITE, 0, 0, sizeof(data));
    assert_int_equal(f.state, CLIENT_STALLED);
    assert_true(client_starved(f.client));
    f.shared.budget.used = 0;
    assert_int_equal(client_run(f.client), CLIENT_OPEN);
    assert_false(client_starved(f.client));
    say(&f, data, sizeof(data));
    assert_int_equal(f.image.started, 1);
    assert_memory_equal(f.image.ops[0]->buf, data, sizeof(data));
    finish(&f, 0, 0);
    end(&f);
}

static void requests_are_limited(void **state)
{
    struct fixture f;
    struct nbd_request requests[CLIENT_REQUESTS_MAX + 1];
    unsigned yields = 0;

    (void)state;
    for (size_t i = 0; i <= CLIENT_REQUESTS_MAX; i++) {
        requests[i] = (struct nbd_request){
            .magic = htobe32(NBD_REQUEST_MAGIC),
            .type = htobe16(NBD_CMD_FLUSH),
            .cookie = htobe64(COOKIE),
        };
    }
    begin(&f, plain_options);
    say(&f, requests, sizeof(requests));
    while (f.state == CLIENT_YIELDED) {
        f.state = client_run(f.client);
        yields++;
    }
    assert_true(yields >= CLIENT_REQUESTS_MAX / CLIENT_RUN_REQUESTS - 1);
    assert_int_equal(f.state, CLIENT_STALLED);
    assert_int_equal(f.image.started, CLIENT_REQUESTS_MAX);
    finish(&f, 0, 0);
    assert_int_equal(client_run(f.client), CLIENT_STALLED);
    assert_int_equal(f.image.started, CLIENT_REQUESTS_MAX + 1);
    for (size_t i = 1; i < f.image.started; i++) {
        finish(&f, i, 0);
    }
    end(&f);
}

// The first of many reads are started, and so answered, before the others are looked at.
static void the_first_reads_go_ahead(void **state)
{
    static const size_t steps[] = {8, 24, 56, 100};
    struct fixture f;
    struct nbd_request requests[100];

    (void)state;
    for (size_t i = 0; i < 100; i++) {
        requests[i] = (struct nbd_request){
            .magic = htobe32(NBD_REQUEST_MAGIC),
            .type = htobe16(NBD_CMD_READ),
            .cookie = htobe64(COOKIE),
            .length = htobe32(512),
        };
    }
    begin(&f, plain_options);
    for (size_t batch = 0; batch < 2; batch++) {
        say(&f, requests, sizeof(requests));
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(f.image.started, 100 * batch + steps[i]);
            assert_int_equal(f.state, i < 3 ? CLIENT_YIELDED : CLIENT_OPEN);
            f.state = client_run(f.client);
        }
    }
    for (size_t i = 0; i < f.image.started; i++) {
        finish(&f, i, 0);
    }
    end(&f);
}

// A client that sends requests and takes no answer is not read from any more, whatever it sends.
static void unsent_replies_are_limited(void **state)
{
    struct fixture f;
    size_t asked = 0;

    (void)state;
    begin_structured(&f, plain_options);
    do {
        struct op *op;

        ask(&f, NBD_CMD_BLOCK_STATUS, 0, 0, 1 << 30);
        op = f.image.ops[0];
        f.image.started = 0;
        for (size_t i = 0; i < op->max_extents; i++) {
            op->extents[i] = (struct extent){.length = 4096, .zero = i % 2 == 0};
        }
        op->extent_count = op->max_extents;
        op->done(op);
        assert_true(++asked < 1000); // 8 MiB
        f.state = client_run(f.client);
    } while (f.state == CLIENT_OPEN);
    assert_int_equal(f.state, CLIENT_STALLED);
    assert_true(client_output_bytes(f.client) < 1 << 20);
    listen_all(&f);
    assert_int_equal(client_run(f.client), CLIENT_OPEN);
    end(&f);
}

static void stopping_begins_nothing(void **state)
{
    struct fixture f;
    char data[512] = {0};

    (void)state;
    begin(&f, plain_options);
    struct iovec iov[2];

    ask(&f, NBD_CMD_FLUSH, 0, 0, 0);
    ask(&f, NBD_CMD_WRITE, 0, 0, sizeof(data));
    say(&f, data, sizeof(data) / 2); // not all of it
    client_stop(f.client);
    assert_int_equal(client_run(f.client), CLIENT_ENDING);
    assert_int_equal(client_input(f.client, iov), 0); // and no more is taken
    assert_int_equal(f.image.started, 1);
    assert_false(client_drained(f.client));
    listen_all(&f);
    assert_int_equal(f.output_bytes, 0); // the write has no answer
    finish(&f, 0, 0);
    listen_all(&f);
    hear_simple(&f, 0); // requests in flight get their true answers
    assert_true(client_drained(f.client));
    end(&f);
}

static void stopping_drops_what_waits_for_memory(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, plain_options);
    f.shared.budget.used = f.shared.budget.limit + f.shared.budget.reserve;
    ask(&f, NBD_CMD_READ, 0, 0, 4096);
    assert_int_equal(f.state, CLIENT_STALLED);
    client_stop(f.client);
    assert_int_equal(client_run(f.client), CLIENT_ENDING);
    assert_true(client_drained(f.client));
    assert_int_equal(client_output_bytes(f.client), 0);
    f.shared.budget.used = 0;
    end(&f);
}

static void abandoned_ops_finish(void **state)
{
    struct fixture f;
    char data[100] = {0};

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 4096);
    ask(&f, NBD_CMD_READ, 0, 0, 4096);
    finish(&f, 0, 0); // answered, not sent
    ask(&f, NBD_CMD_WRITE, 0, 0, 4096);
    say(&f, data, sizeof(data)); // not all of it
    client_abandon(f.client);
    assert_false(client_idle(f.client));
    assert_int_equal(client_output_bytes(f.client), 0);
    f.changed = 0;
    finish(&f, 1, 0);
    assert_int_equal(f.changed, 1);
    assert_true(client_idle(f.client));
    assert_int_equal(f.shared.budget.used, 0);
    end(&f);
}

static void disconnect_finishes_what_is_outstanding(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 16);
    ask(&f, NBD_CMD_DISC, 0, 0, 0);
    assert_int_equal(f.state, CLIENT_ENDING);
    assert_true(client_ending(f.client));
    assert_false(client_drained(f.client));
    finish(&f, 0, 0);
    assert_false(client_drained(f.client));
    listen_all(&f);
    hear_simple(&f, 0);
    assert_true(client_drained(f.client));
    end(&f);
}

static void eof_finishes_what_is_outstanding(void **state)
{
    struct fixture f;
    struct iovec iov[2];
    char data[100] = {0};

    (void)state;
    begin(&f, plain_options);
    ask(&f, NBD_CMD_FLUSH, 0, 0, 0);
    ask(&f, NBD_CMD_WRITE, 0, 0, 4096);
    say(&f, data, sizeof(data));
    client_eof(f.client);
    assert_int_equal(client_run(f.client), CLIENT_ENDING);
    assert_int_equal(client_input(f.client, iov), 0);
    finish(&f, 0, 0);
    listen_all(&f);
    hear_simple(&f, 0);
    assert_true(client_drained(f.client));
    assert_int_equal(f.shared.budget.used, 0); // the half write's, too
    end(&f);
}

static void nonsense_breaks_the_client(void **state)
{
    struct fixture f;
    char data[28];

    (void)state;
    memset(data, 'n', sizeof(data));
    begin(&f, plain_options);
    ask(&f, NBD_CMD_READ, 0, 0, 16);
    say(&f, data, sizeof(data));
    assert_int_equal(f.state, CLIENT_BROKEN);
    assert_true(strlen(client_reason(f.client)) > 0);
    client_abandon(f.client);
    finish(&f, 0, 0);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(read_becomes_op_and_reply),
        cmocka_unit_test(an_error_is_a_reply),
        cmocka_unit_test(a_loan_is_sent_from_where_it_is),
        cmocka_unit_test(a_reply_that_waits_is_settled),
        cmocka_unit_test(what_is_lost_cannot_be_settled),
        cmocka_unit_test(an_abandoned_client_returns_its_loans),
        cmocka_unit_test(holes_are_told),
        cmocka_unit_test(large_read_gets_room_for_extents),
        cmocka_unit_test(block_status_is_translated),
        cmocka_unit_test(changes_become_ops),
        cmocka_unit_test(write_carries_its_payload),
        cmocka_unit_test(zeroes_are_detected),
        cmocka_unit_test(hints_need_no_op),
        cmocka_unit_test(share_holds_a_client_back),
        cmocka_unit_test(share_holds_a_payload_back),
        cmocka_unit_test(requests_are_limited),
        cmocka_unit_test(the_first_reads_go_ahead),
        cmocka_unit_test(unsent_replies_are_limited),
        cmocka_unit_test(stopping_begins_nothing),
        cmocka_unit_test(stopping_drops_what_waits_for_memory),
        cmocka_unit_test(abandoned_ops_finish),
        cmocka_unit_test(disconnect_finishes_what_is_outstanding),
        cmocka_unit_test(eof_finishes_what_is_outstanding),
        cmocka_unit_test(nonsense_breaks_the_client),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
