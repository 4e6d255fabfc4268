// SPDX-License-Identifier: Apache-2.0
// reply.h: the server's side of the transmission phase, for the modules of protocol/. The functions
// for owners are in session_reply.h.
#ifndef LAZYCOW_PROTOCOL_REPLY_H
#define LAZYCOW_PROTOCOL_REPLY_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/state.h"

// Returns the wire's error for a positive errno ("Error values"), one that may answer this request.
uint32_t reply_wire_error(const struct session_request *request, int error);

// Returns the size of a chunk's header in this session's mode, which is not REPLY_SIMPLE.
size_t reply_chunk_header_size(const struct session *s);

// Writes a chunk's header at out: flags NBD_REPLY_FLAG_*, type NBD_REPLY_TYPE_*, and length bytes
// of payload to follow. Returns the end of the header.
uint8_t *reply_chunk_header(const struct session *s, const struct session_request *request,
                            uint16_t flags, uint16_t type, uint64_t length, uint8_t *out);

#endif
