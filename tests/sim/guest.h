// SPDX-License-Identifier: Apache-2.0
// guest.h: a simulated guest: an NBD client on one connection to the bridge (server/client.h),
// whose bytes pass in portions of any size. Tells the model what it asked for and what it was
// answered.
#ifndef LAZYCOW_TESTS_SIM_GUEST_H
#define LAZYCOW_TESTS_SIM_GUEST_H

#include <stdbool.h>
#include <sys/queue.h>

#include "server/client.h"
#include "tests/sim/peer.h"
#include "tests/sim/run.h"

TAILQ_HEAD(guest_request_list, guest_request);

struct guest {
    TAILQ_ENTRY(guest) link; // of whoever owns it
    struct run *run;
    const struct scenario_generation *plan;
    unsigned number;
    struct client *client;
    enum client_state state; // that it was in last
    uint64_t settles;        // that it has followed
    struct peer peer;
    struct peer_listener listener;
    struct guest_request_list requests; // that were not answered yet
    unsigned waiting;                   // how many
    uint64_t portion;                   // bytes that pass at once, at most
    unsigned deaf;                      // per cent of the times that it does not take what it could
    bool stopping;                      // the server is
    bool leaving; // DISC was said, or the end of the stream: nothing more is asked for
    enum scenario_leave how;
    bool gone; // nothing more passes in either direction
};

// A guest that connects. run, shared and plan outlive it.
struct guest *guest_new(struct run *run, struct client_shared *shared,
                        const struct scenario_generation *plan, unsigned number);
// Frees it; only where guest_over() says so.
void guest_free(struct guest *guest);

// Whether it can be asked to do something.
bool guest_ready(const struct guest *guest);
// Puts a request into the connection.
void guest_start(struct guest *guest, const struct scenario_op *plan, unsigned number);
// Some bytes pass. eager: all that can, whatever the guest's manners. Returns whether any did.
bool guest_pass(struct guest *guest, bool eager);

// It says goodbye, stops sending, or is cut off. What was not answered may have been done or not.
void guest_leave(struct guest *guest, enum scenario_leave how);
// The server is told to stop.
void guest_stop(struct guest *guest);
// It has gone, and nothing is done for it any more.
bool guest_over(const struct guest *guest);

#endif
