// SPDX-License-Identifier: Apache-2.0
// input.h: buffers bytes that were received and not parsed yet.
#ifndef LAZYCOW_PROTOCOL_INPUT_H
#define LAZYCOW_PROTOCOL_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Size of the buffer in bytes. 32 writes of 4 KiB with their headers, a usual queue depth, arrive
// in one receive call and still leave most of a level-2 cache to their payload buffers. The largest
// option (OPTION_DATA_MAX) fits with its header.
#define INPUT_SIZE (132u << 10)

struct input {
    uint8_t *buffer;
    size_t size;  // of the buffer
    size_t start; // bytes [start, end) of the buffer are waiting
    size_t end;
};

// Returns false without memory.
bool input_init(struct input *in);
void input_free(struct input *in);

static inline size_t input_length(const struct input *in)
{
    return in->end - in->start;
}

// Returns the waiting bytes, input_length() of them.
static inline const uint8_t *input_data(const struct input *in)
{
    return in->buffer + in->start;
}

static inline void input_consume(struct input *in, size_t bytes)
{
    in->start += bytes;
}

// Sets *space to the room for the next bytes and returns its size, 0 when the buffer is full. Moves
// the waiting bytes, which invalidates pointers from input_data().
size_t input_space(struct input *in, uint8_t **space);

// The first bytes bytes of the room from input_space() were filled.
void input_received(struct input *in, size_t bytes);

#endif
