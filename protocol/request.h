// SPDX-License-Identifier: Apache-2.0
// request.h: the client's side of the transmission phase, decoded and checked once.
#ifndef LAZYCOW_PROTOCOL_REQUEST_H
#define LAZYCOW_PROTOCOL_REQUEST_H

#include "protocol/state.h"

// Takes one request's header. Answers what is refused itself; *request and *event are set for what
// the owner has to do.
enum step request_take(struct session *s, struct session_request *request,
                       enum session_event *event);

#endif
