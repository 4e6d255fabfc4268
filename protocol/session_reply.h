// SPDX-License-Identifier: Apache-2.0
// session_reply.h: the owner's answers to requests of the transmission phase.
#ifndef LAZYCOW_PROTOCOL_SESSION_REPLY_H
#define LAZYCOW_PROTOCOL_SESSION_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol/session_types.h"

struct session;

// Answers a request whose answer has no data. error is 0 or a positive errno, which is mapped to
// the wire's set. message goes along in a structured reply; NULL: the session's own text for the
// error. A READ or BLOCK_STATUS that succeeded has its own function below.
void session_reply(struct session *s, const struct session_request *request, int error,
                   const char *message);

// Answers a READ that succeeded. data has room for request->length bytes. parts tell which bytes
// are holes or lie elsewhere; their lengths sum to request->length (count 0: all is in data). Holes
// are allowed only if session_read_holes() returns true. parts are not used after the call.
void session_reply_read(struct session *s, const struct session_request *request, const void *data,
                        const struct session_read_part *parts, size_t count,
                        struct session_payload_ref *ref);
bool session_read_holes(const struct session *s, const struct session_request *request);

// Answers a BLOCK_STATUS that succeeded. extents begin at the request's offset, in order; there is
// at least one, and they may end early or reach beyond the request. Each extent has a value for all
// of request->contexts. For each context the session merges neighbours of one value, and cuts the
// answer as the request's end, the command's flags and the 32-bit fields demand.
void session_reply_status(struct session *s, const struct session_request *request,
                          const struct session_status_extent *extents, size_t count);

#endif
