// SPDX-License-Identifier: Apache-2.0
// options.h: takes and answers options ("Option haggling").
#ifndef LAZYCOW_PROTOCOL_OPTIONS_H
#define LAZYCOW_PROTOCOL_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "protocol/cursor.h"
#include "protocol/input.h"
#include "protocol/state.h"
#include "protocol/wire.h"

// Largest data of an option in bytes: an export name of full length and a dozen queries of full
// length. The data of a larger option is thrown away as it comes, and the option is refused.
#define OPTION_DATA_MAX (64u << 10)
_Static_assert(OPTION_DATA_MAX + sizeof(struct nbd_option) <= INPUT_SIZE, "fits the input buffer");

// Takes an option's header and data, once both have arrived, and answers it. Sets *event when the
// option ends the phase.
enum step option_take(struct session *s, enum session_event *event);

// Answers the option whose data was thrown away.
enum step option_skipped(struct session *s);

// ---- For the handlers of options ----------------------------------------------------------------

// Queues a reply and returns the place for its length bytes of data; NULL without memory. type is
// NBD_REP_*.
uint8_t *option_reply(struct session *s, uint32_t option, uint32_t type, size_t length);

void option_ack(struct session *s, uint32_t option);

// Queues an error reply. type is NBD_REP_ERR_*. message is a constant text for the client's user.
void option_error(struct session *s, uint32_t option, uint32_t type, const char *message);

// Reads a string of the option's data: a u32 length, then the bytes. Returns false when the length
// exceeds the data or the protocol's limit for strings ("Conventions").
bool option_string(struct cursor *c, const uint8_t **string, uint32_t *length);

// Returns the export of that name (the first one for the empty name), or NULL.
const char *option_why_unknown(const struct session *s, const uint8_t *name, size_t length);
const struct session_export *option_find_export(const struct session *s, const uint8_t *name,
                                                size_t length);

#endif
