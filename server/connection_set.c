// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // POLLRDHUP
#include "server/connection_set.h"

#include <poll.h>
#include <unistd.h>

#include "server/connection_end.h"
#include "server/connection_output.h"
#include "server/loop.h"

// Connections that one call of poll() checks.
#define LOOKED_AT_ONCE 64

void connection_set_init(struct connection_set *set, uv_loop_t *uv, struct client_shared *shared,
                         const struct tls_server *tls, struct log *log, unsigned served_max,
                         void (*emptied)(void *context), void *context)
{
    *set = (struct connection_set){
        .uv = uv,
        .shared = shared,
        .tls = tls,
        .log = log,
        .served_max = served_max,
        .place = connection_set_place,
        .emptied = emptied,
        .context = context,
    };
    TAILQ_INIT(&set->open);
    TAILQ_INIT(&set->send_pending);
    TAILQ_INIT(&set->runnable);
    TAILQ_INIT(&set->handshakes_queued);
}

// Returns true if bytes of the client were not read yet.
static bool has_spoken(const struct connection *connection)
{
    struct pollfd polled = {.fd = connection->fd, .events = POLLIN};

    return poll(&polled, 1, 0) > 0;
}

// Returns the half-open connection whose client has been silent for longest. NULL: the next step of
// each is the server's.
static struct connection *slowest_half_open(struct connection_set *set)
{
    struct connection *connection;
    struct connection *slowest = NULL;

    TAILQ_FOREACH (connection, &set->open, open_link) {
        if (connection->standing == CONNECTION_HALF_OPEN && !connection_in_step(connection) &&
            (slowest == NULL || connection->progress < slowest->progress)) {
            slowest = connection;
        }
    }
    return slowest;
}

bool connection_set_room(struct connection_set *set)
{
    struct connection *slowest;

    if (set->counts[CONNECTION_HALF_OPEN] < HALF_OPEN_MAX) {
        return true;
    }
    slowest = slowest_half_open(set);
    if (slowest == NULL || uv_now(set->uv) - slowest->progress < HALF_OPEN_SILENCE_MS) {
        return false;
    }
    if (has_spoken(slowest)) {
        slowest->progress = uv_now(set->uv); // the loop is late, not the client
        return false;
    }
    connection_give_up(slowest, "gave way to a newer one, too many negotiate");
    return true;
}

static bool has_place(const struct connection_set *set)
{
    unsigned leaving = set->counts[CONNECTION_LEAVING];

    return set->counts[CONNECTION_SERVED] + (leaving > LEAVING_FREE ? leaving - LEAVING_FREE : 0) <
           set->served_max;
}

// Acts on the events of a connection that is served. Its client may have ended behind requests that
// cannot be read at present.
static void look_at(struct connection *connection, short events)
{
    if ((events & POLLIN) != 0) {
        connection_receive(connection);
    }
    if ((events & (POLLRDHUP | POLLHUP | POLLERR)) != 0 && connection->state == CONNECTION_OPEN &&
        connection->standing == CONNECTION_SERVED) {
        connection_become(connection, CONNECTION_LEAVING);
    }
}

// Checks the next served connections, from *next on.
static void look_at_some(struct connection **next)
{
    struct connection *connections[LOOKED_AT_ONCE];
    struct pollfd polled[LOOKED_AT_ONCE];
    nfds_t count = 0;

    while (*next != NULL && count < LOOKED_AT_ONCE) {
        struct connection *connection = *next;

        *next = TAILQ_NEXT(connection, open_link);
        if (connection->standing == CONNECTION_SERVED) {
            polled[count] = (struct pollfd){.fd = connection->fd, .events = POLLIN | POLLRDHUP};
            connections[count++] = connection;
        }
    }
    if (poll(polled, count, 0) <= 0) {
        return;
    }
    for (nfds_t i = 0; i < count; i++) {
        look_at(connections[i], polled[i].revents);
    }
}

bool connection_set_place(struct connection_set *set)
{
    struct connection *next = TAILQ_FIRST(&set->open);

    while (!has_place(set) && next != NULL) {
        look_at_some(&next);
    }
    return has_place(set);
}

void connection_set_find_ended(struct connection_set *set)
{
    struct connection *next = TAILQ_FIRST(&set->open);

    while (next != NULL) {
        look_at_some(&next);
    }
}

void connection_set_add(struct connection_set *set, int fd)
{
    unsigned skipped;

    if (!connection_set_place(set)) {
        if (log_limit_pass(&set->refusals, &skipped)) {
            log_line(set->log, LOG_LEVEL_WARNING,
                     "a connection was refused, there are %u already (--max-connections); %u more "
                     "since the last such line",
                     set->counts[CONNECTION_SERVED], skipped);
        }
        close(fd);
        return;
    }
    connection_open(set, fd);
}

// Runs the runnable clients if something has changed since their last try. Returns true if any was
// run.
static bool run_runnable(struct connection_set *set)
{
    uint64_t returned = set->shared->budget.returned;
    struct connection *connection = TAILQ_FIRST(&set->runnable);

    if (connection == NULL || (!set->progress && returned == set->returned)) {
        return false;
    }
    set->progress = false;
    set->returned = returned;
    // Each client runs once, the one that has waited longest first; one that must wait on keeps its
    // place.
    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, runnable_link);

        connection_run(connection);
        connection = next;
    }
    return true;
}

// Sends once for each connection in the list. Connections with more to send join the end of the
// list, for the next turn.
static void send_all(struct connection_set *set)
{
    const struct connection *last = TAILQ_LAST(&set->send_pending, connection_list);
    const struct connection *sent = NULL;

    while (sent != last) {
        struct connection *connection = TAILQ_FIRST(&set->send_pending);

        sent = connection;
        connection_send_pending(connection); // may free the connection
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
    unsigned turn;

    send_all(set);
    if (set->stopping) {
        linger_all(set);
    }
    if (run_runnable(set) || !TAILQ_EMPTY(&set->send_pending)) {
        set->turn |= LOOP_MORE;
    }
    turn = set->turn;
    set->turn = 0;
    return turn;
}

static bool anyone_starved(const struct connection_set *set)
{
    const struct connection *connection;

    TAILQ_FOREACH (connection, &set->runnable, runnable_link) {
        if (client_starved(connection->client)) {
            return true;
        }
    }
    return false;
}

void connection_set_settle(struct connection_set *set)
{
    struct connection *connection = TAILQ_FIRST(&set->open);

    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        connection_settle(connection);
        connection = next;
    }
}

bool connection_set_tick(struct connection_set *set, uint64_t now)
{
    bool starved = anyone_starved(set);
    struct connection *connection = TAILQ_FIRST(&set->open);
    unsigned skipped;

    while (connection != NULL) {
        struct connection *next = TAILQ_NEXT(connection, open_link);

        if (connection->standing == CONNECTION_HALF_OPEN && !connection_in_step(connection) &&
            now - connection->since >= HANDSHAKE_DEADLINE_MS) {
            connection_give_up(connection, "took too long to negotiate");
        } else if (starved && connection->blocked && now - connection->progress >= STUCK_MS) {
            connection_close(connection, "took no replies while others waited for memory");
        } else if (connection->standing == CONNECTION_LEAVING && connection->blocked &&
                   now - connection->progress >= STUCK_MS) {
            connection_close(connection, "has ended, and took no replies");
        } else if (set->stopping && client_idle(connection->client) &&
                   now - connection->idle_since >= STOP_DEADLINE_MS) {
            connection_close(connection, connection->state == CONNECTION_LINGERING
                                             ? "sent on after the server had stopped"
                                             : "did not take its last replies");
        }
        connection = next;
    }
    connection_set_settle(set);
    if (log_limit_rest(&set->failures, &skipped)) {
        log_line(set->log, LOG_LEVEL_WARNING, "%u more negotiations failed", skipped);
    }
    return set->alive > 0 || set->failures.skipped > 0;
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
