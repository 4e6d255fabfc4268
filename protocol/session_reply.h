// SPDX-License-Identifier: Apache-2.0
// session_reply.h: the owner's answers to requests of the transmission phase.
#ifndef LAZYCOW_PROTOCOL_SESSION_REPLY_H
#define LAZYCOW_PROTOCOL_SESSION_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/session_types.h"

struct session;

// Answers everything that carries no data: error is 0 or a positive errno, mapped to the wire's
// set. message (may be NULL: the session has one for each error) goes along where the reply is
// structured. A READ or BLOCK_STATUS that succeeded has its own function below.
void session_reply(struct session *s, const struct session_request *request, int error,
                   const char *message);

// Answers a READ that succeeded. data has room for request->length bytes. parts (count 0: one data
// part) tell the holes and what is elsewhere, their lengths sum to request->length; holes may be given
// only if session_read_holes() says that the reply can carry them. parts are not looked at afterwards.
void session_reply_read(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref);
bool session_read_holes(const struct session *s, const struct session_request *request);

// Extents from the request's offset, in order, at least one; they may end early or reach beyond the
// request. Each tells about all of request->contexts. The session merges, for each context, equal
// neighbours, and cuts what the request's end, the command's flags
// and the 32-bit fields ask for.
void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count);

#endif
