// SPDX-License-Identifier: Apache-2.0
#include "protocol/input.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// Under AddressSanitizer the bytes of the buffer outside of [start, end) are poisoned, so that each
// test and each fuzzer run notices a parser that reads a single byte too many.
#if defined(__SANITIZE_ADDRESS__)
#define INPUT_GUARD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define INPUT_GUARD 1
#endif
#endif

#ifdef INPUT_GUARD
#include <sanitizer/asan_interface.h>

static void guard(const struct input *in)
{
    ASAN_UNPOISON_MEMORY_REGION(in->buffer, in->end);
    ASAN_POISON_MEMORY_REGION(in->buffer + in->end, in->size - in->end);
}

static void unguard(const struct input *in)
{
    ASAN_UNPOISON_MEMORY_REGION(in->buffer, in->size);
}
#else
static void guard(const struct input *in)
{
    (void)in;
}

static void unguard(const struct input *in)
{
    (void)in;
}
#endif

bool input_init(struct input *in)
{
    in->buffer = malloc(INPUT_SIZE);
    in->size = INPUT_SIZE;
    in->start = 0;
    in->end = 0;
    if (in->buffer == NULL)
        return false;
    guard(in);
    return true;
}

void input_free(struct input *in)
{
    unguard(in);
    free(in->buffer);
}

size_t input_space(struct input *in, uint8_t **space)
{
    unguard(in);
    // The waiting bytes are a part of a header or option, seldom more than a few bytes.
    if (in->start > 0) {
        memmove(in->buffer, in->buffer + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    *space = in->buffer + in->end;
    return in->size - in->end;
}

void input_received(struct input *in, size_t bytes)
{
    assert(bytes <= in->size - in->end);
    in->end += bytes;
    guard(in);
}
