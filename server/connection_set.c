// SPDX-License-Identifier: Apache-2.0
#include "server/connection_set.h"

#include <unistd.h>

#include "server/connection_end.h"
#include "server/connection_output.h"
#include "server/loop.h"

void connection_set_init(struct connection_set *set, uv_loop_t *uv, struct client_shared *shared,
                         const struct tls_server *tls, struct log *log, unsigned negotiated_max,
                         void (*emptied)(void *context), void *context)
{
    *set = (struct connection_set){
        .uv = uv,
        .shared = shared,
        .tls = tls,
        .log = log,
        .negotiated_max = negotiated_max,
        .emptied = emptied,
        .context = context,
    };
    TAILQ_INIT(&set->open);
    TAILQ_INIT(&set->dirty);
    TAILQ_INIT(&set->waiting);
    TAILQ_INIT(&set->shakers);
}

// The half-open connection whose client has kept us waiting for longest. NULL: it is for us to go on
// with all of them.
static struct connection *slowest_half_open(struct connection_set *set)
{
    struct connection *connection;
    struct connection *slowest = NULL;

    TAILQ_FOREACH (connection, &set->open, open_link) {
        if (!connection->negotiated && !connection->shaking &&
            (slowest == NULL || connection->progress < slowest->progress)) {
            slowest = connection;
        }
    }
    return slowest;
}

bool connection_set_room(struct connection_set *set)
{
    struct connection *slowest;

    if (set->half_open < HALF_OPEN_MAX) {
        return true;
    }
    slowest = slowest_half_open(set);
    if (slowest == NULL || uv_now(set->uv) - slowest->progress < HALF_OPEN_PATIENCE_MS) {
        return false;
    }
    connection_close(slowest, "gave way to a newer one, too many negotiate");
    return true;
}

void connection_set_add(struct connection_set *set, int fd)
{
    unsigned skipped;

    if (set->negotiated >= set->negotiated_max) {
        if (log_limit_pass(&set->refusals, &skipped)) {
            log_line(set->log, LOG_LEVEL_WARNING,
                     "a connection was refused, there are %u already (--max-connections); %u more "
                     "since the last such line",
                     set->negotiated, skipped);
        }
        close(fd);
        return;
    }
    connection_open(set, fd);
}

// Lets those clients go on that could not, if something has changed since they last tried. Returns
// whether any had a try.
static bool run_waiting(struct connection_set *set)
{
    uint64_t returned = set->shared->budget.returned;
    struct connection *connection = TAILQ_FIRST(&set->waiting);

    if (connection == NULL || (!set->progress && returned == set->returned)) {
        return false;
    }
    set->progress = false;
    set->returned = returned;
    // Each once, the one that has waited longest first; who still waits keeps its place.
    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, waiting_link);

        connection_run(connection);
        connection = next;
    }
    return true;
}

// Connections that have more to send come to the end of the list: one pass, no more.
static void flush_dirty(struct connection_set *set)
{
    const struct connection *last = TAILQ_LAST(&set->dirty, connection_list);
    const struct connection *flushed = NULL;

    while (flushed != last) {
        struct connection *connection = TAILQ_FIRST(&set->dirty);

        flushed = connection;
        connection_flush(connection); // may free it
    }
}

static void linger_all(struct connection_set *set)
{
    struct connection *connection = TAILQ_FIRST(&set->open);

    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        if (connection->state == CONNECTION_LINGERING) {
            connection_linger(connection);
        }
        connection = next;
    }
}

unsigned connection_set_turn(struct connection_set *set)
{
    unsigned told;

    flush_dirty(set);
    if (set->stopping) {
        linger_all(set);
    }
    if (run_waiting(set) || !TAILQ_EMPTY(&set->dirty)) {
        set->told |= LOOP_MORE;
    }
    told = set->told;
    set->told = 0;
    return told;
}

static bool anyone_starved(const struct connection_set *set)
{
    const struct connection *connection;

    TAILQ_FOREACH (connection, &set->waiting, waiting_link) {
        if (client_starved(connection->client)) {
            return true;
        }
    }
    return false;
}

void connection_set_keep_output(struct connection_set *set)
{
    struct connection *connection = TAILQ_FIRST(&set->open);

    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        connection_keep_output(connection);
        connection = next;
    }
}

bool connection_set_tick(struct connection_set *set, uint64_t now)
{
    bool starved = anyone_starved(set);
    struct connection *connection = TAILQ_FIRST(&set->open);

    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        if (!connection->negotiated && now - connection->accepted >= HANDSHAKE_DEADLINE_MS) {
            connection_close(connection, "took too long to negotiate");
        } else if (starved && connection->blocked && now - connection->progress >= STUCK_MS) {
            connection_close(connection, "took no replies while others waited for memory");
        } else if (set->stopping && client_idle(connection->client) &&
                   now - connection->idle_since >= STOP_DEADLINE_MS) {
            connection_close(connection, connection->state == CONNECTION_LINGERING
                                             ? "sent on after the server had stopped"
                                             : "did not take its last replies");
        }
        connection = next;
    }
    connection_set_keep_output(set);
    return set->alive > 0;
}

void connection_set_stop(struct connection_set *set)
{
    struct connection *connection = TAILQ_FIRST(&set->open);

    set->stopping = true;
    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        connection->idle_since = uv_now(set->uv);
        connection_stop(connection);
        connection = next;
    }
}
