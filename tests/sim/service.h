// SPDX-License-Identifier: Apache-2.0
// service.h: the layer between guests and the simulated disk: the image, opened and exported as the
// server does it.
#ifndef LAZYCOW_TESTS_SIM_SERVICE_H
#define LAZYCOW_TESTS_SIM_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "server/access.h"
#include "server/client.h"
#include "server/export.h"
#include "tests/sim/run.h"

struct service {
    struct run *run;
    struct log log; // goes nowhere
    struct exports exports;
    struct access access;
    struct client_shared clients;
    uint64_t clock; // milliseconds, for exports_tick
    bool cleaning;  // a clean point is under way
};

// Opens the image. On failure returns false, reports the reason, and leaves nothing to close.
bool service_open(struct service *service, struct run *run, const struct scenario_generation *plan);
// A second passes, and the image does not count as idle.
void service_tick(struct service *service);
// The image has been idle for long: begins to make it clean if that is needed.
void service_idle(struct service *service);
// Checks the result of making the image clean, once there is one.
void service_check_clean(struct service *service);
// Ends the image as the server does when all clients have gone. Returns true when it is clean.
bool service_finish(struct service *service);
void service_close(struct service *service);

#endif
