// SPDX-License-Identifier: Apache-2.0
#include "qcow2/offline/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/offline/check_pass.h"
#include "qcow2/format/format.h"

// Longest line about one finding, in bytes.
#define MESSAGE_BYTES 256

void check_say(struct check_pass *pass, const char *format, ...)
{
    char line[MESSAGE_BYTES];
    va_list args;

    if (pass->quiet || pass->options->message == NULL || pass->messages > CHECK_MESSAGES_MAX)
        return;
    if (pass->messages++ == CHECK_MESSAGES_MAX) {
        pass->options->message(pass->options->context, "more problems were found; not listed");
        return;
    }
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    pass->options->message(pass->options->context, line);
}

void check_pass_done(void *context, int result)
{
    struct check_pass *pass = context;

    pass->finished = true;
    pass->walk_result = result;
}

int check_pass_wait(struct check_pass *pass, struct error *err)
{
    while (!pass->finished) {
        if (!runq_run(pass->file->runq))
            pass->file->ops->wait(pass->file);
    }
    if (pass->walk_result < 0)
        return error_set(err, -pass->walk_result, "'%s': cannot be checked: %s", pass->file->name,
                         strerror(-pass->walk_result));
    return 0;
}

// Refuses features that change the meaning of the tables.
static int check_features(const struct check_pass *pass, struct error *err)
{
    uint64_t understood =
        HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT | HEADER_INCOMPATIBLE_COMPRESSION;
    const struct header *h = &pass->header;
    const char *name = pass->file->name;

    if (h->incompatible & HEADER_INCOMPATIBLE_DATA_FILE)
        return error_set(err, ENOTSUP,
                         "'%s': checking images with an external data file is not supported; "
                         "use qemu-img check",
                         name);
    if (h->incompatible & HEADER_INCOMPATIBLE_EXTENDED_L2)
        return error_set(err, ENOTSUP,
                         "'%s': checking images with extended L2 entries is not supported; "
                         "use qemu-img check",
                         name);
    if (h->incompatible & ~understood)
        return error_set(err, ENOTSUP,
                         "'%s': has unknown incompatible features (%#llx); check it with what made "
                         "it",
                         name, (unsigned long long)(h->incompatible & ~understood));
    return 0;
}

int check_pass_begin(struct check_pass *pass, struct error *err)
{
    int ret = header_read_any(pass->file, &pass->header, err);
    if (ret == 0)
        ret = check_features(pass, err);
    if (ret == 0)
        ret = snapshot_table_read(pass->file, &pass->header, &pass->snapshots, err);
    if (ret == 0)
        ret = bitmap_directory_read(pass->file, &pass->header, &pass->bitmaps, err);
    if (ret < 0)
        return ret;

    int64_t size = file_size(pass->file);
    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", pass->file->name,
                         strerror((int)-size));
    uint64_t cluster_size = header_cluster_size(&pass->header);
    pass->clusters = ((uint64_t)size + cluster_size - 1) >> pass->header.cluster_bits;
    pass->result.total_clusters =
        pass->header.size / cluster_size + (pass->header.size % cluster_size != 0);

    pass->block_count =
        ((uint64_t)pass->header.refcount_table_clusters << pass->header.cluster_bits) /
        FORMAT_ENTRY_BYTES;
    pass->blocks = calloc(pass->block_count + 1, sizeof(*pass->blocks));
    // Room behind the end of the file for a refcount structure that covers all of it. A block holds
    // at least 64 refcounts, so a 32nd of the clusters is plenty.
    uint64_t room = pass->clusters + pass->clusters / 32 + 1024;
    struct counts *all[] = {&pass->counted, &pass->copied, &pass->not_copied, &pass->l2_tables,
                            &pass->fixed};
    ret = pass->blocks == NULL ? -ENOMEM : 0;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && ret == 0; i++)
        ret = counts_init(all[i], room);
    if (ret == -EFBIG)
        return error_set(err, EFBIG, "'%s': has more clusters than can be checked (2^35)",
                         pass->file->name);
    if (ret < 0)
        return error_set(err, ENOMEM, "'%s': no memory to check it", pass->file->name);
    return 0;
}

// May be called twice.
void check_pass_end(struct check_pass *pass)
{
    snapshot_table_free(&pass->snapshots);
    bitmap_directory_free(&pass->bitmaps);
    counts_free(&pass->counted);
    counts_free(&pass->copied);
    counts_free(&pass->not_copied);
    counts_free(&pass->l2_tables);
    counts_free(&pass->fixed);
    counts_free(&pass->ones_on_disk);
    free(pass->blocks);
    free(pass->ones);
    free(pass->fixes);
    pass->blocks = NULL;
    pass->ones = NULL;
    pass->fixes = NULL;
}

// Begins a pass and finds all faults; writes nothing. The caller ends the pass, also after an
// error.
static int run_pass(struct check_pass *pass, struct file *file, const struct check_options *options,
                    bool quiet, struct error *err)
{
    *pass = (struct check_pass){.file = file, .options = options, .quiet = quiet};
    int ret = check_pass_begin(pass, err);
    if (ret == 0)
        ret = check_pass_count(pass, err);
    if (ret == 0) {
        pass->stage = CHECK_COUNTED;
        ret = check_pass_compare(pass, err);
    }
    if (ret == 0) {
        pass->stage = CHECK_COMPARED;
        ret = check_pass_flags(pass, err);
    }
    if (ret == 0)
        pass->stage = CHECK_FLAGGED;
    pass->result.image_end = pass->end << pass->header.cluster_bits;
    return ret;
}

// Clears the dirty and the corrupt bit of an image that was found consistent.
static int mark_consistent(struct file *file, const struct header *header, struct error *err)
{
    uint64_t bits = HEADER_INCOMPATIBLE_DIRTY | HEADER_INCOMPATIBLE_CORRUPT;
    uint8_t field[8];

    if (!(header->incompatible & bits))
        return 0;
    // All repairs are durable before the bits that vouch for them.
    int ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    format_put64(field, header->incompatible & ~bits);
    if (ret == 0)
        ret = file_write_blocking(file, field, HEADER_OFFSET_INCOMPATIBLE, sizeof(field));
    if (ret == 0)
        ret = file_do_blocking(file, FILE_DATASYNC, 0, 0);
    if (ret < 0)
        return error_set(err, -ret, "'%s': cannot write the header: %s", file->name,
                         strerror(-ret));
    return 0;
}

static uint64_t fixed(uint64_t before, uint64_t after)
{
    return before > after ? before - after : 0;
}

// Refcounts behind the end of the file are repaired with the others but not reported: qemu-img does
// not look at them.
static bool anything_wrong(const struct check_pass *pass)
{
    return pass->result.corruptions > 0 || pass->result.leaks > 0 ||
           ((pass->found & CHECK_FOUND_REFCOUNT_BEYOND) && pass->beyond_end == 0);
}

// Ends the pass and makes another one over the image as it is now.
static int run_again(struct check_pass *pass, struct error *err)
{
    check_pass_end(pass);
    return run_pass(pass, pass->file, pass->options, true, err);
}

// Rounds of a repair: an entry that is repaired in the first round may leave a leak for the second.
#define REPAIR_ROUNDS 2

// Repairs the findings of pass, and replaces it by a pass over the repaired image.
static int repair(struct check_pass *pass, struct error *err)
{
    const struct check_result found = pass->result;
    int ret = 0;

    if (check_growth_lost(pass)) {
        ret = check_restore_growth(pass, err);
        if (ret == 0)
            ret = run_again(pass, err);
    }
    const unsigned hidden = pass->found & CHECK_FOUND_HIDDEN;
    if (ret == 0 && hidden != 0 && pass->options->message != NULL)
        pass->options->message(pass->options->context,
                               "Damaged entries may hide clusters: none that seems unused is freed "
                               "or overwritten, so leaks stay until those entries are put right");
    for (int round = 0; round < REPAIR_ROUNDS && ret == 0 && anything_wrong(pass); round++) {
        ret = check_repair(pass, err);
        if (ret == 0)
            ret = run_again(pass, err);
        pass->found |= hidden; // even if the entry has been repaired meanwhile
    }
    if (ret == 0 && pass->result.corruptions == 0)
        ret = mark_consistent(pass->file, &pass->header, err);
    pass->result.corruptions_fixed = fixed(found.corruptions, pass->result.corruptions);
    pass->result.leaks_fixed = fixed(found.leaks, pass->result.leaks);
    return ret;
}

int check_image(struct file *file, const struct check_options *options, struct check_result *result,
                struct error *err)
{
    struct check_pass pass;
    int ret = run_pass(&pass, file, options, false, err);

    if (ret == 0 && options->repair != CHECK_REPORT)
        ret = repair(&pass, err);
    if (ret == 0)
        *result = pass.result;
    check_pass_end(&pass);
    return ret;
}
