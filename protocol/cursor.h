// SPDX-License-Identifier: Apache-2.0
// cursor.h: reads fields from an option's data without ever passing its end.
#ifndef LAZYCOW_PROTOCOL_CURSOR_H
#define LAZYCOW_PROTOCOL_CURSOR_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct cursor {
    const uint8_t *at;
    size_t left; // bytes
};

// Each function returns false, and moves nothing, when fewer bytes are left than it needs.
static inline bool cursor_u16(struct cursor *c, uint16_t *value)
{
    if (c->left < sizeof(*value))
        return false;
    memcpy(value, c->at, sizeof(*value));
    *value = be16toh(*value);
    c->at += sizeof(*value);
    c->left -= sizeof(*value);
    return true;
}

static inline bool cursor_u32(struct cursor *c, uint32_t *value)
{
    if (c->left < sizeof(*value))
        return false;
    memcpy(value, c->at, sizeof(*value));
    *value = be32toh(*value);
    c->at += sizeof(*value);
    c->left -= sizeof(*value);
    return true;
}

static inline bool cursor_u64(struct cursor *c, uint64_t *value)
{
    if (c->left < sizeof(*value))
        return false;
    memcpy(value, c->at, sizeof(*value));
    *value = be64toh(*value);
    c->at += sizeof(*value);
    c->left -= sizeof(*value);
    return true;
}

// Sets *bytes to a pointer into the data of the cursor.
static inline bool cursor_bytes(struct cursor *c, size_t length, const uint8_t **bytes)
{
    if (c->left < length)
        return false;
    *bytes = c->at;
    c->at += length;
    c->left -= length;
    return true;
}

#endif
