// SPDX-License-Identifier: Apache-2.0
// request.h: takes the client's requests of the transmission phase, decoded and checked once.
#ifndef LAZYCOW_PROTOCOL_REQUEST_H
#define LAZYCOW_PROTOCOL_REQUEST_H

#include "protocol/state.h"

// Takes one request's header. Answers a refused request itself; else sets *request and *event for
// the owner.
enum step request_take(struct session *s, struct session_request *request,
                       enum session_event *event);

#endif
