// SPDX-License-Identifier: Apache-2.0
// guest.h: a simulated guest: an NBD client on one connection to the bridge (server/client.h),
// whose bytes pass in portions of any size. Tells the model of its requests and their answers.
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
    uint64_t portion;                   // most bytes that pass at once
    // Per cent of the times that it does not take bytes that it could take.
    unsigned deaf;
    bool stopping; // the server is
    // DISC was sent, or the stream has ended: the guest asks for nothing more.
    bool leaving;
    enum scenario_leave how;
    bool gone; // no more bytes pass in either direction
};

// Connects a guest. run, shared and plan outlive it.
struct guest *guest_new(struct run *run, struct client_shared *shared,
                        const struct scenario_generation *plan, unsigned number);
// Frees the guest, for which guest_over() is true.
void guest_free(struct guest *guest);

// Returns true when the guest can be given a request.
bool guest_ready(const struct guest *guest);
// Puts a request into the connection.
void guest_start(struct guest *guest, const struct scenario_op *plan, unsigned number);
// Passes some bytes; eager: all that can pass, whatever the guest's portion and deafness. Returns
// whether any did.
bool guest_pass(struct guest *guest, bool eager);

// Disconnects the guest, stops its sending, or cuts it off. A request without an answer may have
// been done.
void guest_leave(struct guest *guest, enum scenario_leave how);
// Tells the guest's client that the server stops.
void guest_stop(struct guest *guest);
// Returns true when the guest has gone and no work is done for it any more.
bool guest_over(const struct guest *guest);

#endif
