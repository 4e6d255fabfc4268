// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/pattern.h"

// The part of a sector that a change covers.
struct model_version {
    uint32_t change;
    uint16_t from; // bytes [from, to) of the sector
    uint16_t to;
};

struct model_sector {
    bool settled; // base holds; else the content is the original one
    unsigned char base[MODEL_SECTOR];
    struct model_version *versions;
    uint32_t count;
    uint32_t capacity;
};

struct model_change {
    uint32_t value;
    uint64_t began;
    uint64_t ended; // UINT64_MAX: not yet
    bool weak;
    bool keeps;
    bool success;
    bool durable;
    bool refused;
};

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

void model_init(struct model *model, uint64_t size,
                void (*original)(void *context, uint64_t sector, void *buf), void *context)
{
    *model = (struct model){.size = size, .original = original, .context = context};
    model->sector_count = (size + MODEL_SECTOR - 1) / MODEL_SECTOR;
    model->sectors = need(calloc(model->sector_count + 1, sizeof(struct model_sector *)));
}

void model_free(struct model *model)
{
    for (uint64_t i = 0; i < model->sector_count; i++) {
        if (model->sectors[i])
            free(model->sectors[i]->versions);
        free(model->sectors[i]);
    }
    free(model->sectors);
    free(model->changes);
}

static void add_version(struct model *model, uint64_t sector, const struct model_version *version)
{
    struct model_sector *s = model->sectors[sector];

    if (!s)
        s = model->sectors[sector] = need(calloc(1, sizeof(*s)));
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 4;
        s->versions = need(realloc(s->versions, s->capacity * sizeof(*s->versions)));
    }
    s->versions[s->count++] = *version;
}

size_t model_begin(struct model *model, uint32_t value, uint64_t offset, uint64_t length, bool weak,
                   bool keeps)
{
    size_t change = model->change_count++;

    if (change == model->change_capacity) {
        model->change_capacity = model->change_capacity ? 2 * model->change_capacity : 64;
        model->changes =
            need(realloc(model->changes, model->change_capacity * sizeof(*model->changes)));
    }
    model->changes[change] = (struct model_change){
        .value = value, .began = ++model->clock, .ended = UINT64_MAX, .weak = weak, .keeps = keeps};
    for (uint64_t at = offset; at < offset + length;) {
        uint64_t sector = at / MODEL_SECTOR;
        uint64_t next = (sector + 1) * MODEL_SECTOR;

        if (next > offset + length)
            next = offset + length;
        add_version(model, sector,
                    &(struct model_version){.change = (uint32_t)change,
                                            .from = (uint16_t)(at % MODEL_SECTOR),
                                            .to = (uint16_t)(next - sector * MODEL_SECTOR)});
        at = next;
    }
    return change;
}

void model_end(struct model *model, size_t change, bool success, bool durable)
{
    struct model_change *c = &model->changes[change];

    c->ended = ++model->clock;
    c->success = success;
    c->durable = success && durable;
}

void model_refused(struct model *model, size_t change)
{
    model->changes[change].refused = true;
}

uint64_t model_now(struct model *model)
{
    return ++model->clock;
}

void model_flushed(struct model *model, uint64_t began)
{
    for (size_t i = 0; i < model->change_count; i++) {
        struct model_change *c = &model->changes[i];

        c->durable |= c->success && c->ended <= began;
    }
}

// ---- What may be found

// Returns true when the change's effect is certain at the moment: that of a read's beginning, or
// UINT64_MAX for the state after a power cut.
static bool established(const struct model_change *c, uint64_t moment)
{
    if (c->weak || !c->success)
        return false;
    return moment == UINT64_MAX ? c->durable : c->ended < moment;
}

// Returns true when a change that ended then is out of date in [from, to) of the sector.
static bool out_of_date(const struct model *model, const struct model_sector *s, uint64_t ended,
                        unsigned from, unsigned to, uint64_t moment)
{
    for (uint32_t i = 0; i < s->count; i++) {
        const struct model_version *v = &s->versions[i];
        const struct model_change *c = &model->changes[v->change];

        if (v->from <= from && v->to >= to && c->began > ended && established(c, moment))
            return true;
    }
    return false;
}

static void base_of(const struct model *model, uint64_t sector, unsigned char *buf)
{
    const struct model_sector *s = model->sectors[sector];

    if (s && s->settled)
        memcpy(buf, s->base, MODEL_SECTOR);
    else
        model->original(model->context, sector, buf);
}

static bool part_allowed(const struct model *model, uint64_t sector, unsigned from, unsigned to,
                         const unsigned char *bytes, uint64_t moment)
{
    const struct model_sector *s = model->sectors[sector];
    unsigned char expected[MODEL_SECTOR];

    // The latest version comes first, because nearly every check finds it.
    for (uint32_t i = s ? s->count : 0; i-- > 0;) {
        const struct model_version *v = &s->versions[i];
        const struct model_change *c = &model->changes[v->change];

        if (v->from > from || v->to < to || c->refused)
            continue;
        pattern_fill(expected, c->value, sector * MODEL_SECTOR + from, to - from);
        if (memcmp(expected, bytes, to - from) == 0 &&
            !out_of_date(model, s, c->ended, from, to, moment))
            return true;
    }
    base_of(model, sector, expected);
    return memcmp(expected + from, bytes, to - from) == 0 &&
           (!s || !out_of_date(model, s, 0, from, to, moment));
}

// A read that meets writes may see some bytes before and some after them, so each byte is checked
// by itself.
static bool bytes_allowed(const struct model *model, uint64_t sector, unsigned from, unsigned to,
                          const unsigned char *bytes, uint64_t moment)
{
    for (unsigned i = from; i < to; i++) {
        if (!part_allowed(model, sector, i, i + 1, bytes + (i - from), moment))
            return false;
    }
    return true;
}

// Returns the end of the part that begins at from: the next change begins or ends there.
static unsigned part_end(const struct model_sector *s, unsigned from, unsigned to)
{
    for (uint32_t i = 0; s && i < s->count; i++) {
        if (s->versions[i].from > from && s->versions[i].from < to)
            to = s->versions[i].from;
        if (s->versions[i].to > from && s->versions[i].to < to)
            to = s->versions[i].to;
    }
    return to;
}

static void describe(const struct model *model, uint64_t sector, unsigned from, unsigned to,
                     const unsigned char *bytes, uint64_t moment, char *text)
{
    const struct model_sector *s = model->sectors[sector];
    unsigned char word[8] = {0};
    char found[PATTERN_TEXT];
    int at;

    memcpy(word, bytes, to - from < sizeof(word) ? to - from : sizeof(word));
    pattern_describe(word, found);
    at = snprintf(text, MODEL_TEXT, "guest bytes %llu..%llu hold %s; allowed:",
                  (unsigned long long)(sector * MODEL_SECTOR + from),
                  (unsigned long long)(sector * MODEL_SECTOR + to - 1), found);
    for (uint32_t i = 0; s && i < s->count && at < MODEL_TEXT; i++) {
        const struct model_version *v = &s->versions[i];
        const struct model_change *c = &model->changes[v->change];

        if (v->from <= from && v->to >= to && !c->refused &&
            !out_of_date(model, s, c->ended, from, to, moment))
            at += snprintf(text + at, (size_t)(MODEL_TEXT - at), " %u", c->value);
    }
    if (at < MODEL_TEXT && (!s || !out_of_date(model, s, 0, from, to, moment)))
        snprintf(text + at, (size_t)(MODEL_TEXT - at), " or as before");
}

static bool check_parts(const struct model *model, uint64_t sector, unsigned from, unsigned to,
                        const unsigned char *bytes, uint64_t moment, char *text)
{
    while (from < to) {
        unsigned end = part_end(model->sectors[sector], from, to);

        if (!part_allowed(model, sector, from, end, bytes, moment) &&
            (moment == UINT64_MAX || !bytes_allowed(model, sector, from, end, bytes, moment))) {
            describe(model, sector, from, end, bytes, moment, text);
            return false;
        }
        bytes += end - from;
        from = end;
    }
    return true;
}

bool model_check_read(struct model *model, uint64_t began, uint64_t offset, uint64_t length,
                      const void *bytes, char *text)
{
    const unsigned char *at = bytes;
    uint64_t end = offset + length;

    while (offset < end) {
        uint64_t sector = offset / MODEL_SECTOR;
        uint64_t next = (sector + 1) * MODEL_SECTOR < end ? (sector + 1) * MODEL_SECTOR : end;

        if (!check_parts(model, sector, (unsigned)(offset % MODEL_SECTOR),
                         (unsigned)(next - sector * MODEL_SECTOR), at, began, text))
            return false;
        at += next - offset;
        offset = next;
    }
    return true;
}

// Returns true when the sector was given space, and no request that may take it away has ended
// since.
static bool has_space(const struct model *model, const struct model_sector *s, uint64_t began)
{
    uint64_t kept = 0;

    for (uint32_t i = 0; i < s->count; i++) {
        const struct model_change *c = &model->changes[s->versions[i].change];

        if (c->keeps && established(c, began) && c->began > kept)
            kept = c->began;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        const struct model_change *c = &model->changes[s->versions[i].change];

        if (!c->keeps && !c->refused && c->ended > kept)
            return false;
    }
    return kept > 0;
}

bool model_check_hole(const struct model *model, uint64_t began, uint64_t offset, uint64_t length,
                      char *text)
{
    for (uint64_t sector = offset / MODEL_SECTOR; sector * MODEL_SECTOR < offset + length;
         sector++) {
        const struct model_sector *s = model->sectors[sector];

        if (!s || !has_space(model, s, began))
            continue;
        snprintf(text, MODEL_TEXT, "guest bytes from %llu on have space",
                 (unsigned long long)(sector * MODEL_SECTOR));
        return false;
    }
    return true;
}

static unsigned sector_bytes(const struct model *model, uint64_t sector)
{
    uint64_t left = model->size - sector * MODEL_SECTOR;

    return left < MODEL_SECTOR ? (unsigned)left : MODEL_SECTOR;
}

bool model_check_cut(struct model *model, uint64_t sector, const void *bytes, char *text)
{
    return check_parts(model, sector, 0, sector_bytes(model, sector), bytes, UINT64_MAX, text);
}

void model_settle(struct model *model, uint64_t sector, const void *bytes)
{
    struct model_sector *s = model->sectors[sector];

    if (!s)
        return;
    s->settled = true;
    s->count = 0;
    memcpy(s->base, bytes, sector_bytes(model, sector));
}

void model_settled(struct model *model)
{
    model->change_count = 0;
}

bool model_touched(const struct model *model, uint64_t sector)
{
    return model->sectors[sector] != NULL;
}
