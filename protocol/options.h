// SPDX-License-Identifier: Apache-2.0
// options.h: option haggling.
#ifndef LAZYCOW_PROTOCOL_OPTIONS_H
#define LAZYCOW_PROTOCOL_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/cursor.h"
#include "protocol/input.h"
#include "protocol/state.h"
#include "protocol/wire.h"

// Largest data of an option that is looked at, in bytes: a full-length export name and a dozen
// full-length queries. That of a larger option is thrown away as it comes, and the option refused.
#define OPTION_DATA_MAX (64u << 10)
_Static_assert(OPTION_DATA_MAX + sizeof(struct nbd_option) <= INPUT_SIZE, "fits the input buffer");

// Takes an option's header and data, once both are there, and answers it. *event is set where that
// ends the phase.
enum step option_take(struct session *s, enum session_event *event);

// Answers the option whose data was thrown away.
enum step option_skipped(struct session *s);

// ---- For the handlers of options ----------------------------------------------------------------

// Queues a reply and returns where its length bytes of data are to be written; NULL when there is
// no memory. type is NBD_REP_*.
uint8_t *option_reply(struct session *s, uint32_t option, uint32_t type, size_t length);

void option_ack(struct session *s, uint32_t option);

// type is NBD_REP_ERR_*; message is a constant text for the client's user.
void option_error(struct session *s, uint32_t option, uint32_t type, const char *message);

// Reads a string of the option's data: a u32 of its length, then so many bytes. False where that
// overruns the data or the protocol's limit for strings ("Conventions").
bool option_string(struct cursor *c, const uint8_t **string, uint32_t *length);

// The export of that name, the first one for the empty name; NULL where there is none.
const char *option_why_unknown(const struct session *s, const uint8_t *name, size_t length);
const struct session_export *option_find_export(const struct session *s, const uint8_t *name,
                                                size_t length);

#endif
