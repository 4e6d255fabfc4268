// SPDX-License-Identifier: Apache-2.0
// service.h: what stands between guests and the simulated disk: the image, opened and exported as
// the server does it.
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

// Opens the image. Returns false, and says why, where that failed; nothing is to be closed then.
bool service_open(struct service *service, struct run *run, const struct scenario_generation *plan);
// A second passes, but the image does not count as idle.
void service_tick(struct service *service);
// The image has been idle for long: it is made clean, if there is anything to clean.
void service_idle(struct service *service);
// Looks whether that has come to an end, and how.
void service_check_clean(struct service *service);
// As at the end of the server, when all clients have gone. Returns whether the image is clean.
bool service_finish(struct service *service);
void service_close(struct service *service);

#endif
