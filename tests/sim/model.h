// SPDX-License-Identifier: Apache-2.0
// model.h: the allowed content of each sector. A write is out of date once another one that began
// after its end has been answered (for reads of the running image) or is durable (after a power
// cut). Only content that is not out of date is allowed.
#ifndef LAZYCOW_TESTS_SIM_MODEL_H
#define LAZYCOW_TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_SECTOR 512u
#define MODEL_TEXT 256

struct model_sector;
struct model_change;

struct model {
    uint64_t size; // guest bytes
    struct model_sector **sectors;
    uint64_t sector_count;
    struct model_change *changes;
    size_t change_count;
    size_t change_capacity;
    uint64_t clock;
    // Returns the initial content of a sector in buf.
    void (*original)(void *context, uint64_t sector, void *buf);
    void *context;
};

void model_init(struct model *model, uint64_t size,
                void (*original)(void *context, uint64_t sector, void *buf), void *context);
void model_free(struct model *model);

// A change of [offset, offset + length) to value (pattern.h) begins. weak: it may be carried out or
// not (a discard). keeps: its range has space in the image afterwards. Returns a handle for the
// change.
size_t model_begin(struct model *model, uint32_t value, uint64_t offset, uint64_t length, bool weak,
                   bool keeps);
// The change was answered: with success or not, durable or not.
void model_end(struct model *model, size_t change, bool success, bool durable);
// The change was answered with an error and certainly not carried out.
void model_refused(struct model *model, size_t change);
// Returns the present moment, for reads and flushes.
uint64_t model_now(struct model *model);
// A flush that began at this moment was answered with success.
void model_flushed(struct model *model, uint64_t began);

// Checks the bytes that the running image gave to a read that began at a moment. Returns false,
// with the reason in text (MODEL_TEXT bytes), when they are not allowed.
bool model_check_read(struct model *model, uint64_t began, uint64_t offset, uint64_t length,
                      const void *bytes, char *text);
// Checks a block status of hole as model_check_read checks bytes.
bool model_check_hole(const struct model *model, uint64_t began, uint64_t offset, uint64_t length,
                      char *text);
// Checks the content of one sector after a power cut (or after a clean end, if all was flushed
// before).
bool model_check_cut(struct model *model, uint64_t sector, const void *bytes, char *text);
// From now on the sector has this content and no other.
void model_settle(struct model *model, uint64_t sector, const void *bytes);
// All sectors are settled: forgets the changes.
void model_settled(struct model *model);
// Returns true when the sector was ever written.
bool model_touched(const struct model *model, uint64_t sector);

#endif
