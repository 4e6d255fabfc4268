// SPDX-License-Identifier: Apache-2.0
// meta_context.c: lists and selects metadata contexts ("NBD_OPT_LIST_META_CONTEXT",
// "NBD_OPT_SET_META_CONTEXT").
#include "protocol/meta_context.h"

#include <assert.h>
#include <endian.h>
#include <string.h>

#include "protocol/options.h"

static const struct meta_context {
    unsigned context; // SESSION_CONTEXT_*
    uint32_t id;      // on the wire; 0 in a listing's reply
    // The namespace with its colon. A listing's query of the namespace alone asks for all its
    // contexts.
    const char *space;
    const char *name; // the whole name of the context
} meta_contexts[META_CONTEXT_COUNT] = {
    {SESSION_CONTEXT_BASE_ALLOCATION, 1, "base:", "base:allocation"},
    {SESSION_CONTEXT_ALLOCATION_DEPTH, 2, "qemu:", "qemu:allocation-depth"},
};

uint32_t meta_context_id(unsigned context)
{
    for (size_t i = 0; i < META_CONTEXT_COUNT; i++)
        if (meta_contexts[i].context == context)
            return meta_contexts[i].id;
    assert(false);
    return 0;
}

unsigned meta_context_of_id(uint32_t id)
{
    for (size_t i = 0; i < META_CONTEXT_COUNT; i++)
        if (meta_contexts[i].id == id)
            return meta_contexts[i].context;
    return 0;
}

void meta_context_forget(struct session *s)
{
    s->contexts = 0;
    s->contexts_export = NULL;
}

static bool equals(const uint8_t *query, uint32_t length, const char *text)
{
    return strlen(text) == length && memcmp(query, text, length) == 0;
}

static unsigned matching(const uint8_t *query, uint32_t length, bool listing)
{
    unsigned contexts = 0;
    for (size_t i = 0; i < META_CONTEXT_COUNT; i++)
        if (equals(query, length, meta_contexts[i].name) ||
            (listing && equals(query, length, meta_contexts[i].space)))
            contexts |= meta_contexts[i].context;
    return contexts;
}

static unsigned all_contexts(void)
{
    unsigned contexts = 0;
    for (size_t i = 0; i < META_CONTEXT_COUNT; i++)
        contexts |= meta_contexts[i].context;
    return contexts;
}

// Reads the queries up to the end of the data. Returns false when a length does not fit. Queries of
// unknown namespaces match nothing.
static bool read_queries(struct cursor data, bool listing, unsigned *contexts)
{
    uint32_t count;
    *contexts = 0;
    if (!cursor_u32(&data, &count))
        return false;
    if (count == 0 && listing)
        *contexts = all_contexts();
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *query;
        uint32_t length;
        if (!option_string(&data, &query, &length))
            return false;
        *contexts |= matching(query, length, listing);
    }
    return data.left == 0;
}

static void reply_context(struct session *s, uint32_t option, const struct meta_context *context)
{
    size_t length = strlen(context->name);
    uint32_t id = htobe32(option == NBD_OPT_SET_META_CONTEXT ? context->id : 0);
    uint8_t *out = option_reply(s, option, NBD_REP_META_CONTEXT, sizeof(id) + length);
    if (out == NULL)
        return;
    memcpy(out, &id, sizeof(id));
    memcpy(out + sizeof(id), context->name, length);
}

void meta_context_take(struct session *s, uint32_t option, struct cursor data)
{
    bool listing = option == NBD_OPT_LIST_META_CONTEXT;
    const uint8_t *name;
    uint32_t name_length;
    unsigned contexts;
    if (!listing)
        meta_context_forget(s);
    if (s->mode == REPLY_SIMPLE) {
        option_error(s, option, NBD_REP_ERR_INVALID, "structured replies come first");
        return;
    }
    if (!option_string(&data, &name, &name_length) || !read_queries(data, listing, &contexts)) {
        option_error(s, option, NBD_REP_ERR_INVALID, "lengths do not match the option's");
        return;
    }
    const struct session_export *export = option_find_export(s, name, name_length);
    if (export == NULL) {
        option_error(s, option, NBD_REP_ERR_UNKNOWN, option_why_unknown(s, name, name_length));
        return;
    }
    contexts &= SESSION_CONTEXT_BASE_ALLOCATION | export->contexts;
    for (size_t i = 0; i < META_CONTEXT_COUNT; i++)
        if ((contexts & meta_contexts[i].context) != 0)
            reply_context(s, option, &meta_contexts[i]);
    if (!listing) {
        s->contexts = contexts;
        s->contexts_export = export;
    }
    option_ack(s, option);
}
