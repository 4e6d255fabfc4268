// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/wire.h"
#include "tests/sim/heap.h"
#include "tests/sim/pattern.h"

// A request of a guest, from its first byte in the connection to its answer.
struct guest_request {
    TAILQ_ENTRY(guest_request) link;
    unsigned number; // its cookie
    uint16_t type;   // NBD_CMD_*
    uint16_t flags;
    uint64_t offset;
    uint64_t length;
    size_t change; // of the model
    bool changes;
    uint64_t began;
    unsigned char *data; // of a READ, as far as it came
    uint64_t received;   // bytes of it
    bool status[PEER_CONTEXTS];
};

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static struct sim *sim_of(const struct guest *guest)
{
    return &guest->run->sim;
}

// ---- What is heard

static struct guest_request *find(struct guest *guest, uint64_t cookie)
{
    struct guest_request *request;

    TAILQ_FOREACH (request, &guest->requests, link) {
        if (request->number == cookie)
            return request;
    }
    sim_fail(sim_of(guest), "guest %u hears of a request %llu that does not wait for an answer",
             guest->number, (unsigned long long)cookie);
    return NULL;
}

static uint64_t read_length(void *context, uint64_t cookie)
{
    const struct guest_request *request = find(context, cookie);

    return request && request->type == NBD_CMD_READ ? request->length : 0;
}

static void take_data(void *context, uint64_t cookie, uint64_t offset, const void *bytes,
                      uint64_t length)
{
    struct guest *guest = context;
    struct guest_request *request = find(guest, cookie);

    if (!request)
        return;
    if (offset == UINT64_MAX)
        offset = request->offset;
    if (request->type != NBD_CMD_READ || offset < request->offset || length == 0 ||
        length > request->length || offset - request->offset > request->length - length ||
        (!bytes && request->flags & NBD_CMD_FLAG_DF)) {
        sim_fail(sim_of(guest), "op %u is answered with bytes %llu+%llu that it did not ask for",
                 request->number, (unsigned long long)offset, (unsigned long long)length);
        return;
    }
    request->received += length;
    if (bytes)
        memcpy(request->data + (offset - request->offset), bytes, length);
    else
        memset(request->data + (offset - request->offset), 0, length);
}

static void take_status(void *context, uint64_t cookie, enum peer_context which,
                        const struct peer_extent *extents, size_t count)
{
    struct guest *guest = context;
    struct run *run = guest->run;
    struct guest_request *request = find(guest, cookie);
    uint64_t at = 0;
    char text[MODEL_TEXT];

    if (!request)
        return;
    if (request->type != NBD_CMD_BLOCK_STATUS || request->status[which] ||
        (request->flags & NBD_CMD_FLAG_REQ_ONE && count != 1))
        sim_fail(&run->sim, "op %u is answered with a block status too many", request->number);
    request->status[which] = true;
    for (size_t i = 0; i < count; i++) {
        bool zero = which == PEER_DEPTH ? extents[i].value == 0 : extents[i].value & NBD_STATE_ZERO;

        if (extents[i].length == 0 || extents[i].length > request->length - at ||
            (which == PEER_DEPTH && extents[i].value > 1 + run->scenario.depth)) {
            sim_fail(&run->sim, "op %u is answered with an impossible block status",
                     request->number);
            return;
        }
        unsigned char *zeros = need(calloc(1, extents[i].length));
        if (zero && !model_check_read(&run->model, request->began, request->offset + at,
                                      extents[i].length, zeros, text))
            sim_fail(&run->sim, "block status says zeros: %s", text);
        free(zeros);
        if (which == PEER_ALLOCATION && extents[i].value & NBD_STATE_HOLE &&
            !model_check_hole(&run->model, request->began, request->offset + at, extents[i].length,
                              text))
            sim_fail(&run->sim, "block status says hole: %s", text);
        at += extents[i].length;
    }
}

static bool may_fail(const struct guest *guest, const struct guest_request *request, uint32_t error)
{
    switch (error) {
    case NBD_ENOTSUP:
        return (request->flags & NBD_CMD_FLAG_FAST_ZERO) != 0;
    case NBD_EPERM:
        return guest->plan->read_only;
    case NBD_EIO:
    case NBD_ENOMEM:
        return guest->run->sim.faults_hit > 0;
    case NBD_ENOSPC:
        return guest->run->sim.faults_hit > 0 || guest->run->scenario.device_tight;
    default:
        return false;
    }
}

static void check_success(struct guest *guest, struct guest_request *request)
{
    struct run *run = guest->run;
    char text[MODEL_TEXT];

    if (request->type == NBD_CMD_READ) {
        if (request->received != request->length)
            sim_fail(&run->sim, "op %u reads %llu bytes and gets %llu", request->number,
                     (unsigned long long)request->length, (unsigned long long)request->received);
        else if (!model_check_read(&run->model, request->began, request->offset, request->length,
                                   request->data, text))
            sim_fail(&run->sim, "read: %s", text);
    } else if (request->type == NBD_CMD_FLUSH) {
        model_flushed(&run->model, request->began);
    } else if (request->type == NBD_CMD_BLOCK_STATUS) {
        if (!request->status[PEER_ALLOCATION] || !request->status[PEER_DEPTH])
            sim_fail(&run->sim, "op %u is not told of all contexts", request->number);
    }
}

static void forget(struct guest *guest, struct guest_request *request)
{
    TAILQ_REMOVE(&guest->requests, request, link);
    guest->waiting--;
    free(request->data);
    free(request);
}

static bool durable(const struct guest *guest, const struct guest_request *request)
{
    return request->flags & NBD_CMD_FLAG_FUA ||
           (guest->run->scenario.force_fua && request->type != NBD_CMD_TRIM);
}

static void take_end(void *context, uint64_t cookie, uint32_t error)
{
    struct guest *guest = context;
    struct run *run = guest->run;
    struct guest_request *request = find(guest, cookie);

    if (!request)
        return;
    sim_trace(&run->sim, "op %u ends: %s", request->number, error ? strerror((int)error) : "well");
    if (request->changes)
        model_end(&run->model, request->change, error == 0, durable(guest, request));
    if (request->changes && error == NBD_EPERM)
        model_refused(&run->model, request->change);
    if (error == 0)
        check_success(guest, request);
    else if (!may_fail(guest, request, error))
        sim_fail(&run->sim, "op %u ended with %s, and nothing had failed", request->number,
                 strerror((int)error));
    forget(guest, request);
}

// ---- What is said

static const struct {
    uint16_t type;
    const char *name;
} commands[] = {
    [OP_READ] = {NBD_CMD_READ, "read"},
    [OP_WRITE] = {NBD_CMD_WRITE, "write"},
    [OP_DISCARD] = {NBD_CMD_TRIM, "discard"},
    [OP_WRITE_ZEROES] = {NBD_CMD_WRITE_ZEROES, "write zeroes"},
    [OP_FLUSH] = {NBD_CMD_FLUSH, "flush"},
    [OP_BLOCK_STATUS] = {NBD_CMD_BLOCK_STATUS, "block status"},
};

static uint16_t flags_of(const struct guest *guest, const struct scenario_op *plan)
{
    uint16_t flags = 0;

    flags |= plan->flags & OP_FUA ? NBD_CMD_FLAG_FUA : 0;
    flags |= plan->flags & OP_NO_HOLE ? NBD_CMD_FLAG_NO_HOLE : 0;
    flags |= plan->flags & OP_FAST_ZERO ? NBD_CMD_FLAG_FAST_ZERO : 0;
    if (plan->kind == OP_READ && plan->whole && guest->peer.flags & NBD_FLAG_SEND_DF)
        flags |= NBD_CMD_FLAG_DF;
    if (plan->kind == OP_BLOCK_STATUS && plan->whole)
        flags |= NBD_CMD_FLAG_REQ_ONE;
    return flags;
}

// Begins a change in the model. Returns the payload of a WRITE; NULL when there is none.
static void *begin_change(struct guest *guest, struct guest_request *request,
                          const struct scenario_op *plan)
{
    struct run *run = guest->run;
    uint32_t value = PATTERN_ZEROS;
    void *payload = NULL;
    bool keeps = plan->kind == OP_WRITE_ZEROES && plan->flags & OP_NO_HOLE;

    if (plan->kind == OP_WRITE) {
        keeps = !plan->zeros || run->scenario.detect_zeroes != DETECT_ZEROES_UNMAP;
        if (!plan->zeros)
            value = ++run->last_value;
        payload = need(malloc(request->length));
        pattern_fill(payload, value, request->offset, request->length);
    }
    // The protocol does not tell the content of a discarded range.
    request->change = model_begin(&run->model, value, request->offset, request->length,
                                  plan->kind == OP_DISCARD, keeps);
    request->changes = true;
    sim_trace(&run->sim, "  value %u", value);
    return payload;
}

void guest_start(struct guest *guest, const struct scenario_op *plan, unsigned number)
{
    struct run *run = guest->run;
    struct guest_request *request = need(calloc(1, sizeof(*request)));
    void *payload = NULL;

    request->number = number;
    request->type = commands[plan->kind].type;
    request->flags = flags_of(guest, plan);
    // A guest that did not negotiate contexts cannot ask for a block status.
    if (request->type == NBD_CMD_BLOCK_STATUS && !guest->peer.wishes.contexts) {
        request->type = NBD_CMD_CACHE;
        request->flags = 0;
    }
    if (plan->kind != OP_FLUSH) {
        request->offset = plan->offset;
        request->length = plan->length;
    }
    sim_trace(&run->sim, "op %u: guest %u: %s%s%s%s %llu+%llu", number, guest->number,
              commands[plan->kind].name, plan->flags & OP_FUA ? " fua" : "",
              plan->flags & OP_NO_HOLE ? " no-hole" : "", plan->flags & OP_FAST_ZERO ? " fast" : "",
              (unsigned long long)request->offset, (unsigned long long)request->length);
    if (plan->kind == OP_WRITE || plan->kind == OP_DISCARD || plan->kind == OP_WRITE_ZEROES)
        payload = begin_change(guest, request, plan);
    if (request->type == NBD_CMD_READ)
        request->data = need(malloc(request->length));
    request->began = model_now(&run->model);
    TAILQ_INSERT_TAIL(&guest->requests, request, link);
    guest->waiting++;
    run->ops++;
    peer_request(&guest->peer, request->type, request->flags, number, request->offset,
                 request->length, payload);
    free(payload);
}

// ---- The connection

static void changed(void *context)
{
    // guest_pass checks this itself.
    (void)context;
}

static void draw_wishes(struct peer_wishes *wishes, struct rng *rng)
{
    wishes->mode = (enum peer_mode)rng_below(rng, PEER_EXTENDED + 1);
    wishes->contexts = wishes->mode != PEER_SIMPLE && rng_percent(rng, 80);
    wishes->export_name = wishes->mode != PEER_EXTENDED && rng_percent(rng, 25);
    wishes->no_zeroes = rng_percent(rng, 50);
}

struct guest *guest_new(struct run *run, struct client_shared *shared,
                        const struct scenario_generation *plan, unsigned number)
{
    struct guest *guest = need(calloc(1, sizeof(*guest)));
    struct peer_wishes wishes;

    guest->run = run;
    guest->plan = plan;
    guest->number = number;
    guest->portion = plan->portion;
    guest->deaf = plan->deaf;
    TAILQ_INIT(&guest->requests);
    guest->listener = (struct peer_listener){.context = guest,
                                             .read_length = read_length,
                                             .data = take_data,
                                             .status = take_status,
                                             .done = take_end};
    draw_wishes(&wishes, &run->sim.rng);
    peer_init(&guest->peer, &wishes, &guest->listener);
    guest->client = need(client_new(shared, "guest", changed, guest));
    sim_trace(&run->sim, "guest %u connects%s%s", number,
              wishes.mode == PEER_SIMPLE       ? ""
              : wishes.mode == PEER_STRUCTURED ? ", structured replies"
                                               : ", extended headers",
              wishes.contexts ? ", contexts" : "");
    return guest;
}

void guest_free(struct guest *guest)
{
    struct guest_request *request;

    // No work is done for these requests any more; they may have been done.
    while ((request = TAILQ_FIRST(&guest->requests)) != NULL) {
        if (request->changes && !sim_of(guest)->dead)
            model_end(&guest->run->model, request->change, false, false);
        forget(guest, request);
    }
    client_free(guest->client);
    peer_free(&guest->peer);
    free(guest);
}

bool guest_ready(const struct guest *guest)
{
    return guest->peer.phase == PEER_TRANSMISSION && !guest->leaving && !guest->gone;
}

static size_t portion(struct guest *guest, bool eager, size_t most)
{
    if (eager || guest->portion == 0)
        return most;
    size_t n = (size_t)rng_scaled(&sim_of(guest)->rng, guest->portion);
    return n < most ? n : most;
}

static bool pass_to_server(struct guest *guest, bool eager)
{
    const unsigned char *bytes;
    struct iovec iov[2];
    size_t length = peer_says(&guest->peer, &bytes);
    size_t passed = 0;
    int count = length > 0 ? client_input(guest->client, iov) : 0;

    if (count == 0)
        return false;
    length = portion(guest, eager, length);
    for (int i = 0; i < count && passed < length; i++) {
        size_t n = iov[i].iov_len < length - passed ? iov[i].iov_len : length - passed;

        memcpy(iov[i].iov_base, bytes + passed, n);
        passed += n;
    }
    client_received(guest->client, passed);
    peer_said(&guest->peer, passed);
    return passed > 0;
}

#define IOV_MAX_SENT 16
// Per cent of the times that replies waiting for a guest are settled, when the engine asks for that
// and when it does not.
#define SETTLE_WANTED_PERCENT 30
#define SETTLE_PERCENT 5

static bool pass_to_guest(struct guest *guest, bool eager)
{
    struct iovec iov[IOV_MAX_SENT];
    int count = client_output(guest->client, iov, IOV_MAX_SENT);
    size_t length = 0;

    for (int i = 0; i < count; i++)
        length += iov[i].iov_len;
    if (length == 0 || (!eager && rng_percent(&sim_of(guest)->rng, guest->deaf)))
        return false;
    length = portion(guest, eager, length);
    size_t left = length;
    for (int i = 0; i < count && left > 0; i++) {
        size_t n = iov[i].iov_len < left ? iov[i].iov_len : left;

        peer_hears(&guest->peer, iov[i].iov_base, n);
        left -= n;
    }
    client_sent(guest->client, length);
    return true;
}

// Settles the replies that wait for the guest: when the engine asks for that, and now and then.
static bool settle_output(struct guest *guest)
{
    struct sim *sim = sim_of(guest);
    bool unsettled = !client_settled(guest->client);
    bool wanted =
        guest->settles != guest->run->settles && rng_percent(&sim->rng, SETTLE_WANTED_PERCENT);

    if (!wanted && !rng_percent(&sim->rng, SETTLE_PERCENT))
        return guest->settles != guest->run->settles;
    guest->settles = guest->run->settles;
    if (!client_settle(guest->client))
        sim_fail(sim, "replies to guest %u cannot be settled", guest->number);
    return unsettled;
}

static void go(struct guest *guest)
{
    guest->gone = true;
    client_abandon(guest->client);
}

// The server has stopped and this guest has received everything: a request without an answer was
// never begun, so that the guest may send it again to the next server.
static void begun_is_answered(struct guest *guest)
{
    struct guest_request *request;

    while ((request = TAILQ_FIRST(&guest->requests)) != NULL) {
        sim_trace(sim_of(guest), "op %u was not begun", request->number);
        if (request->changes) {
            model_end(&guest->run->model, request->change, false, false);
            model_refused(&guest->run->model, request->change);
        }
        forget(guest, request);
    }
}

// Acts on the state that the bridge reports.
static void check_client(struct guest *guest, enum client_state state)
{
    struct sim *sim = sim_of(guest);

    if (state == CLIENT_BROKEN && heap_failed() > 0) {
        go(guest);
        return;
    }
    if (state == CLIENT_BROKEN)
        sim_fail(sim, "the server drops guest %u: %s", guest->number, client_reason(guest->client));
    if (state != CLIENT_ENDING || !client_drained(guest->client))
        return;
    if (!guest->leaving && !guest->stopping)
        sim_fail(sim, "the server leaves guest %u: %s", guest->number,
                 client_reason(guest->client));
    if (guest->stopping)
        begun_is_answered(guest);
    if (guest->waiting > 0 && guest->how == LEAVE_DISCONNECT)
        sim_fail(sim, "the server leaves guest %u without all its answers", guest->number);
    go(guest);
}

bool guest_pass(struct guest *guest, bool eager)
{
    bool passed;

    if (guest->gone)
        return false;
    // Works like a connection: bytes in, act on them, bytes out.
    uint64_t taken = client_requests_taken(guest->client);
    passed = pass_to_server(guest, eager);
    uint64_t failed = heap_failed();
    heap_enter(true);
    enum client_state state = client_run(guest->client);
    heap_enter(false);
    sim_count_heap(sim_of(guest), failed);
    passed |= state == CLIENT_YIELDED || client_requests_taken(guest->client) != taken ||
              state != guest->state;
    guest->state = state;
    passed |= settle_output(guest);
    passed |= pass_to_guest(guest, eager);
    if (guest->peer.complaint)
        sim_fail(sim_of(guest), "the server sends guest %u %s", guest->number,
                 guest->peer.complaint);
    check_client(guest, state);
    return passed || guest->gone;
}

void guest_leave(struct guest *guest, enum scenario_leave how)
{
    struct sim *sim = sim_of(guest);
    const unsigned char *bytes;

    if (guest->gone || (guest->leaving && how != LEAVE_CUT_OFF))
        return;
    guest->leaving = true;
    guest->how = how;
    sim_trace(sim, "guest %u leaves%s", guest->number, how == LEAVE_CUT_OFF ? ", cut off" : "");
    if (how == LEAVE_CUT_OFF) {
        go(guest);
    } else if (how == LEAVE_DISCONNECT && guest->peer.phase == PEER_TRANSMISSION) {
        peer_request(&guest->peer, NBD_CMD_DISC, 0, 0, 0, 0, NULL);
    } else {
        // The bytes that still pass end anywhere in a request; nothing follows.
        size_t left = peer_says(&guest->peer, &bytes);

        while (left > 0 && rng_percent(&sim->rng, 80) && pass_to_server(guest, false)) {
            client_run(guest->client);
            left = peer_says(&guest->peer, &bytes);
        }
        peer_said(&guest->peer, left);
        client_eof(guest->client);
    }
}

void guest_stop(struct guest *guest)
{
    guest->stopping = true;
    if (!guest->gone)
        client_stop(guest->client);
}

bool guest_over(const struct guest *guest)
{
    return guest->gone && client_idle(guest->client);
}
