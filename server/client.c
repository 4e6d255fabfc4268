// SPDX-License-Identifier: Apache-2.0
#include "server/client.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/session.h"
#include "protocol/wire.h"
#include "qcow2/base/container.h"
#include "server/access.h"
#include "server/budget.h"
#include "server/client_request.h"
#include "server/export.h"
#include "server/log.h"

// The request that is being received; there is at most one.
//
//   NONE ──a request──> HELD ──memory is granted──> NONE: its op has started
//    └─a WRITE begins─> HELD_PAYLOAD ─memory is granted─> RECEIVING ─payload is complete─> NONE
enum client_intake {
    INTAKE_NONE,
    INTAKE_RECEIVING, // a WRITE whose payload is being received
    // In the states below no event is taken until there is memory.
    INTAKE_HELD,
    INTAKE_HELD_PAYLOAD, // for a WRITE whose payload comes next
};

struct client {
    struct client_shared *shared;
    struct access_view view;
    struct session *session; // NULL once the session is abandoned
    const char *identity;    // the peer's identity, proven by TLS, or NULL
    struct export *export;   // NULL until one is negotiated
    bool has_place;          // counts among the connections of the export
    const char *name;
    void (*changed)(void *context);
    void *context;

    enum client_state state;
    bool eof; // the peer sends no more bytes
    const char *reason;

    struct share share;
    enum client_intake intake;
    struct client_request *taking; // the request that is being received, or NULL
    unsigned requests;             // requests that were taken and not yet released
    unsigned reads_max;            // reads that one run takes at present
    unsigned reads;                // reads that the current run has taken
    unsigned in_flight;            // requests with an op in the engine
    unsigned unsettled;            // requests with a reply that is not settled (client.h)
    uint64_t request_count;
};

struct client *client_new(struct client_shared *shared, const char *name,
                          void (*changed)(void *context), void *context)
{
    struct client *client = calloc(1, sizeof(*client));

    if (client == NULL) {
        return NULL;
    }
    *client = (struct client){
        .shared = shared,
        .name = name,
        .changed = changed,
        .context = context,
        .state = CLIENT_OPEN,
        .reason = "",
        .reads_max = CLIENT_RUN_READS,
        .share = {.budget = &shared->budget, .limit = CLIENT_SHARE},
    };
    if (access_view_init(&client->view, shared->access, shared->tls) < 0) {
        free(client);
        return NULL;
    }
    client->session = session_new(&client->view.host);
    if (client->session == NULL) {
        access_view_destroy(&client->view);
        free(client);
        return NULL;
    }
    return client;
}

static void release_request(struct client *client, struct client_request *request)
{
    assert(client->requests > 0);
    client->requests--;
    client->unsettled -= !client_request_settled(request);
    client_request_put(client->shared->requests, &client->share, request);
}

// Returns the request whose reception ends.
static struct client_request *end_intake(struct client *client)
{
    struct client_request *request = client->taking;

    client->taking = NULL;
    client->intake = INTAKE_NONE;
    return request;
}

// Releases the request that is being received; it has no op yet.
static void release_unstarted(struct client *client)
{
    if (client->intake != INTAKE_NONE) {
        release_request(client, end_intake(client));
    }
}

void client_leave(struct client *client)
{
    if (client->has_place) {
        client->has_place = false;
        client->export->connections--;
    }
}

void client_abandon(struct client *client)
{
    client_leave(client);
    session_free(client->session);
    client->session = NULL;
    client->state = CLIENT_BROKEN;
    release_unstarted(client);
}

void client_free(struct client *client)
{
    assert(client->in_flight == 0);
    client_abandon(client);
    assert(client->requests == 0 && client->share.used == 0);
    access_view_destroy(&client->view);
    free(client);
}

// ---- Replies ------------------------------------------------------------------------------------

static void on_payload_sent(struct session_payload_ref *ref)
{
    struct client_request *request = client_request_of_ref(ref);

    release_request(request->owner, request);
}

static const void *on_payload_settle(struct session_payload_ref *ref, const void *data,
                                     size_t length)
{
    struct client_request *request = client_request_of_ref(ref);
    bool unsettled = !client_request_settled(request);
    const void *now = client_request_settle(request, data, length);

    ((struct client *)request->owner)->unsettled -= unsettled && now != NULL;
    return now;
}

// Replies without an op. error is a positive errno or 0.
static void reply_at_once(struct client *client, struct client_request *request, int error)
{
    session_reply(client->session, &request->request, error, error != 0 ? strerror(error) : NULL);
    release_request(client, request);
}

static void on_op_done(struct op *op)
{
    struct client_request *request = container_of(op, struct client_request, op);
    struct client *client = request->owner;

    client->in_flight--;
    client->shared->in_flight--;
    client->export->ops--;
    client->unsettled += !client_request_settled(request);
    if (op->result < 0) {
        client_shared_log_failure(client->shared, client->name, client->export, request);
    }
    if (client->session == NULL ||
        !client_request_reply(client->shared->requests, client->session, request)) {
        release_request(client, request);
    }
    client->changed(client->context);
}

// ---- Requests -----------------------------------------------------------------------------------

static void client_start(struct client *client, struct client_request *request)
{
    if (client_request_is_void(request, client->export)) {
        reply_at_once(client, request, 0);
        return;
    }
    client_request_prepare(request, client->export, client->session);
    request->op.done = on_op_done;
    request->ref.release = on_payload_sent;
    request->ref.settle = on_payload_settle;
    client->in_flight++;
    client->shared->in_flight++;
    client->export->ops++;
    client->export->writes += client_request_writes(request);
    op_start(client->export->image, &request->op);
}

// Makes a request whose payload memory is still to be had. NULL when there is no memory for the
// request itself.
static struct client_request *new_request(struct client *client, const struct session_request *wire)
{
    struct client_request *request = client_request_get(client->shared->requests);

    if (request != NULL) {
        request->request = *wire;
        request->owner = client;
        client->requests++;
        client->request_count++;
    }
    return request;
}

// Gives the held request its memory, then starts its op or the reception of its payload. Returns
// false while the share has no room.
static bool held_proceed(struct client *client)
{
    struct client_request *request = client->taking;
    bool payload = client->intake == INTAKE_HELD_PAYLOAD;
    int result = client_request_reserve(client->shared->requests, &client->share, request);

    if (result == -EAGAIN) {
        return false;
    }
    end_intake(client);
    if (payload) {
        // Without a buffer the session discards the payload and answers ENOMEM itself.
        session_payload(client->session, request->buffer);
        if (result < 0) {
            release_request(client, request);
            return true;
        }
        client->taking = request;
        client->intake = INTAKE_RECEIVING;
    } else if (result < 0) {
        reply_at_once(client, request, -result);
    } else {
        client_start(client, request);
    }
    return true;
}

// Holds a request until held_proceed() starts it.
static void hold(struct client *client, const struct session_request *wire, bool payload)
{
    assert(client->intake == INTAKE_NONE);
    client->taking = new_request(client, wire);
    if (client->taking != NULL) {
        client->intake = payload ? INTAKE_HELD_PAYLOAD : INTAKE_HELD;
    } else if (payload) {
        session_payload(client->session, NULL);
    } else {
        session_reply(client->session, wire, ENOMEM, strerror(ENOMEM));
    }
}

static void take_request(struct client *client, const struct session_request *wire)
{
    if (client->intake == INTAKE_RECEIVING) {
        assert(wire->payload == client->taking->buffer);
        client_start(client, end_intake(client));
        return;
    }
    if (wire->type == NBD_CMD_READ) {
        client->reads++;
    }
    // The session has answered a WRITE that got no buffer.
    assert(wire->type != NBD_CMD_WRITE);
    hold(client, wire, false);
}

// ---- Events -------------------------------------------------------------------------------------

static void negotiated(struct client *client)
{
    const struct session *session = client->session;

    client->export = exports_chosen(client->shared->access->exports, session_chosen(session));
    client->export->connections++;
    client->has_place = true;
    client_shared_log_export(client->shared, client->name, client->export, session,
                             client->identity);
}

// Acts on one event. Returns false when there is none.
static bool take_event(struct client *client)
{
    struct session_request wire;
    struct iovec iov[2];

    switch (session_next(client->session, &wire)) {
    case SESSION_MORE:
        if (session_input(client->session, iov) == 0) {
            client->state = CLIENT_STALLED; // its output is full
        } else if (client->eof) {
            client->reason = client->intake == INTAKE_RECEIVING
                                 ? "closed by the client inside a request"
                                 : "closed by the client";
            client->state = CLIENT_ENDING;
        }
        return false;
    case SESSION_STARTTLS:
        client->state = CLIENT_STARTTLS;
        return false;
    case SESSION_NEGOTIATED:
        negotiated(client);
        return true;
    case SESSION_PAYLOAD:
        hold(client, &wire, true);
        return true;
    case SESSION_REQUEST:
        take_request(client, &wire);
        return true;
    case SESSION_DISCONNECT:
        client->reason = "disconnected by the client";
        client->state = CLIENT_ENDING;
        return false;
    case SESSION_CLOSE:
        client->reason = session_reason(client->session);
        client->state = CLIENT_ENDING;
        return false;
    case SESSION_BAD:
        client->reason = session_reason(client->session);
        client->state = CLIENT_BROKEN;
        return false;
    }
    return false;
}

static enum client_state client_yield(struct client *client)
{
    if (client->reads_max < CLIENT_RUN_REQUESTS) {
        client->reads_max *= 2;
    }
    return client->state = CLIENT_YIELDED;
}

enum client_state client_run(struct client *client)
{
    unsigned left = CLIENT_RUN_REQUESTS;

    client->reads = 0;
    while (client->state < CLIENT_STARTTLS) {
        if (client->intake >= INTAKE_HELD && !held_proceed(client)) {
            return client->state = CLIENT_STALLED;
        }
        if (client->requests >= CLIENT_REQUESTS_MAX) {
            return client->state = CLIENT_STALLED;
        }
        if (left-- == 0 || client->reads >= client->reads_max) {
            return client_yield(client);
        }
        client->state = CLIENT_OPEN;
        if (!take_event(client)) {
            break;
        }
    }
    client->reads_max = CLIENT_RUN_READS;
    if (client->state >= CLIENT_ENDING) {
        release_unstarted(client);
    }
    return client->state;
}

int client_tls_started(struct client *client, const char *identity)
{
    assert(client->state == CLIENT_STARTTLS);
    if (access_view_identify(&client->view, identity) < 0) {
        return -ENOMEM;
    }
    client->identity = identity;
    client->state = CLIENT_OPEN;
    session_tls_started(client->session);
    return 0;
}

bool client_wants_tls(const struct client *client)
{
    return client->state == CLIENT_STARTTLS;
}

void client_stop(struct client *client)
{
    client->view.host.shutting_down = true;
    if (client_negotiated(client) && client->state < CLIENT_ENDING) {
        client->reason = "server is stopping";
        client->state = CLIENT_ENDING;
        release_unstarted(client);
    }
}

int client_input(struct client *client, struct iovec iov[2])
{
    return client->state == CLIENT_OPEN && !client->eof ? session_input(client->session, iov) : 0;
}

void client_received(struct client *client, size_t bytes)
{
    session_received(client->session, bytes);
}

void client_eof(struct client *client)
{
    client->eof = true;
}

size_t client_output_bytes(const struct client *client)
{
    return client->session != NULL ? session_output_bytes(client->session) : 0;
}

int client_output(struct client *client, struct iovec *iov, int max)
{
    return client->session != NULL ? session_output(client->session, iov, max) : 0;
}

void client_sent(struct client *client, size_t bytes)
{
    session_sent(client->session, bytes);
}

bool client_settled(const struct client *client)
{
    return client->unsettled == 0;
}

bool client_settle(struct client *client)
{
    return client->unsettled == 0 || session_settle(client->session);
}

bool client_ending(const struct client *client)
{
    return client->state == CLIENT_ENDING;
}

bool client_idle(const struct client *client)
{
    return client->in_flight == 0;
}

bool client_drained(const struct client *client)
{
    return client_idle(client) && client_output_bytes(client) == 0;
}

bool client_starved(const struct client *client)
{
    return client->intake >= INTAKE_HELD && client->share.used == 0;
}

bool client_negotiated(const struct client *client)
{
    return client->export != NULL;
}

const char *client_obstacle(const struct client *client, const char **name)
{
    return client->session != NULL && client->export == NULL
               ? session_obstacle(client->session, name)
               : NULL;
}

const char *client_reason(const struct client *client)
{
    return client->reason;
}

uint64_t client_requests_taken(const struct client *client)
{
    return client->request_count;
}

void client_describe(const struct client *client, char *text, size_t size)
{
    static const char *const states[] = {
        [CLIENT_OPEN] = "wants bytes",
        [CLIENT_YIELDED] = "has more to act on",
        [CLIENT_STALLED] = "waits for its replies to be taken",
        [CLIENT_STARTTLS] = "in a TLS handshake",
        [CLIENT_ENDING] = "ending",
        [CLIENT_BROKEN] = "broken",
    };

    snprintf(text, size,
             "export '%s', %s; %u requests, %u of them in the engine, %u not settled; %zu bytes of "
             "output",
             client->export != NULL ? client->export->name : "none yet",
             client->intake >= INTAKE_HELD ? "waits for memory" : states[client->state],
             client->requests, client->in_flight, client->unsettled,
             session_output_bytes(client->session));
}
