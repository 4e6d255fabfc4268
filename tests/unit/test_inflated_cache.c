// SPDX-License-Identifier: Apache-2.0
// test_inflated_cache.c: the cache of inflated clusters: a reader gets the bytes that were
// compressed, or an error, at any number of tries and after any other request.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <libdeflate.h>

#include "qcow2/base/container.h"
#include "qcow2/core/image_state.h"
#include "qcow2/format/format.h"
#include "qcow2/image.h"
#include "qcow2/request/inflated_cache.h"
#include "qcow2/mapping/map.h"
#include "tests/unit/scripted_file.h"

#define CLUSTER_BITS 12
#define CLUSTER 4096u
#define SECTOR 512u

// An image whose first cluster is plain data; tests add compressed ones behind it.
struct fixture {
    struct scripted_file *disk;
    struct image *image; // NULL: not open
    uint64_t l2_offset;
    uint64_t host_end; // where the next compressed cluster goes
    unsigned char bytes[CLUSTER];
};

static int set_up(void **state)
{
    struct create_options create = {.size = 64 * CLUSTER,
                                    .version = 3,
                                    .cluster_bits = CLUSTER_BITS,
                                    .refcount_order = 4,
                                    .lazy_refcounts = 1};
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2};
    struct fixture *f = calloc(1, sizeof(*f));
    struct error err;

    assert_non_null(f);
    f->disk = scripted_file_new();
    struct image *image = scripted_image_new(f->disk, &create, &options);
    memset(f->bytes, 'd', CLUSTER);
    assert_int_equal(scripted_write(f->disk, image, f->bytes, 0, CLUSTER), 0);
    assert_int_equal(image_finish(image, &err), 0);
    image_close(image);

    uint64_t l1 = format_get64(f->disk->bytes + FORMAT_HEADER_L1_OFFSET);
    f->l2_offset = format_get64(f->disk->bytes + l1) & FORMAT_L1_OFFSET_MASK;
    f->host_end = (f->disk->size + CLUSTER - 1) / CLUSTER * CLUSTER;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    if (f->image)
        image_close(f->image);
    scripted_file_free(f->disk);
    free(f);
    return 0;
}

static void open_image(struct fixture *f)
{
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2, .read_only = true};

    f->image = scripted_image_open(f->disk, &options);
}

static void set_entry(struct fixture *f, unsigned index, uint64_t entry)
{
    format_put64(f->disk->bytes + f->l2_offset + index * FORMAT_ENTRY_BYTES, entry);
}

static uint64_t descriptor(uint64_t offset, uint64_t sectors)
{
    return FORMAT_COMPRESSED | (sectors - 1) << format_compressed_shift(CLUSTER_BITS) | offset;
}

static void fill(unsigned char *bytes, unsigned value)
{
    for (size_t i = 0; i < CLUSTER; i++)
        bytes[i] = (unsigned char)(value + i / 64);
}

// Guest cluster index is compressed, and holds the bytes of fill(value). Returns its host offset.
static uint64_t add_compressed(struct fixture *f, unsigned index, unsigned value)
{
    struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(6);
    uint64_t offset = f->host_end;

    fill(f->bytes, value);
    size_t packed = libdeflate_deflate_compress(compressor, f->bytes, CLUSTER,
                                                f->disk->bytes + offset, CLUSTER - SECTOR);
    libdeflate_free_compressor(compressor);
    assert_true(packed > 0);
    f->host_end += CLUSTER;
    f->disk->size = f->host_end;
    set_entry(f, index, descriptor(offset, (packed + SECTOR - 1) / SECTOR));
    return offset;
}

static void assert_reads(struct fixture *f, unsigned index, unsigned value)
{
    unsigned char expected[CLUSTER];

    fill(expected, value);
    memset(f->bytes, 0xee, CLUSTER);
    assert_int_equal(scripted_read(f->disk, f->image, f->bytes, index * CLUSTER, CLUSTER), 0);
    assert_memory_equal(f->bytes, expected, CLUSTER);
}

static void assert_fails(struct fixture *f, unsigned index)
{
    assert_int_equal(scripted_read(f->disk, f->image, f->bytes, index * CLUSTER, CLUSTER), -EIO);
    assert_int_equal(scripted_read(f->disk, f->image, f->bytes, index * CLUSTER + 77, 100), -EIO);
}

// ---- Damage -------------------------------------------------------------------------------------

static void bad_data_stays_an_error(void **state)
{
    struct fixture *f = *state;

    uint64_t bad = add_compressed(f, 1, 10);
    add_compressed(f, 2, 20);
    memset(f->disk->bytes + bad, 0xff, SECTOR);
    open_image(f);
    for (int round = 0; round < 3; round++) {
        assert_fails(f, 1);
        assert_reads(f, 2, 20);
        assert_fails(f, 1);
    }
}

static void impossible_places_stay_errors(void **state)
{
    struct fixture *f = *state;

    add_compressed(f, 1, 10);
    uint64_t places[] = {0,
                         1,
                         100,
                         SECTOR,
                         CLUSTER - 1,
                         f->disk->size,
                         f->disk->size + 1,
                         f->disk->size + CLUSTER,
                         1ull << 55};
    size_t count = sizeof(places) / sizeof(places[0]);
    for (unsigned i = 0; i < count; i++)
        set_entry(f, 2 + i, descriptor(places[i], 1 + i % 3));
    open_image(f);
    assert_reads(f, 1, 10);
    unsigned before = f->disk->submitted[FILE_READ];
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 0; i < count; i++) {
            assert_fails(f, 2 + i);
            assert_reads(f, 1, 10);
        }
    }
    // The entry itself is refused: the data was not even read.
    assert_int_equal(f->disk->submitted[FILE_READ], before);
}

// The descriptor counts whole sectors; a file may end in the middle of the last one.
static void data_may_end_with_the_file(void **state)
{
    struct fixture *f = *state;

    uint64_t offset = add_compressed(f, 1, 10);
    set_entry(f, 1, descriptor(offset, 8));
    f->disk->size = offset + SECTOR;
    open_image(f);
    assert_reads(f, 1, 10);
    assert_reads(f, 1, 10);
}

static void a_failed_read_is_tried_again(void **state)
{
    struct fixture *f = *state;

    uint64_t offset = add_compressed(f, 1, 10);
    add_compressed(f, 2, 20);
    open_image(f);
    f->disk->fail_kind = FILE_READ;
    f->disk->fail_offset = offset;
    f->disk->fail_length = 1;
    f->disk->fail_error = -EIO;
    assert_fails(f, 1);
    assert_reads(f, 2, 20);
    assert_fails(f, 1);
    f->disk->fail_length = 0;
    assert_reads(f, 1, 10);
    assert_reads(f, 1, 10);
}

// ---- The entries themselves ---------------------------------------------------------------------

struct probe {
    struct op op;
    struct mapping mapping;
    int result;
    bool ended;
    unsigned char bytes[CLUSTER];
};

static void probe_step(struct op *op)
{
    struct probe *probe = container_of(op, struct probe, op);
    const unsigned char *bytes;

    epoch_enter(&op->image->grace.plans, &op->plan);
    probe->result = op->wait.result;
    if (probe->result == 0)
        probe->result = inflated_cache_get(op, op->image, &probe->mapping, &bytes);
    if (probe->result == OP_PARKED)
        return;
    if (probe->result == 0)
        memcpy(probe->bytes, bytes, CLUSTER);
    epoch_leave(&op->plan);
    probe->ended = true;
}

static const char *const probe_states[] = {"probe"};
static const struct op_machine probe_machine = OP_MACHINE("probe", probe_step, probe_states);

// Asks the cache directly, without the checks of an L2 entry.
static void start_probe(struct fixture *f, struct probe *probe, uint64_t offset, uint64_t length)
{
    *probe = (struct probe){
        .mapping = {.kind = ENTRY_COMPRESSED, .host_offset = offset, .host_length = length}};
    op_init(&probe->op, f->image, f->image->runq, &probe_machine);
    op_post(&probe->op);
}

static int ask(struct fixture *f, uint64_t offset, uint64_t length)
{
    struct probe probe;

    start_probe(f, &probe, offset, length);
    scripted_file_run(f->disk);
    assert_true(probe.ended);
    return probe.result;
}

static void no_key_means_unused(void **state)
{
    struct fixture *f = *state;

    open_image(f);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(ask(f, 0, SECTOR), -EIO);
        assert_int_equal(ask(f, 0, 2 * SECTOR), -EIO);
    }
    for (size_t i = 0; i < f->image->inflated->count; i++)
        assert_int_equal(f->image->inflated->kept[i].state, INFLATED_EMPTY);
}

static void equal_misses_share_a_load(void **state)
{
    struct fixture *f = *state;
    struct probe probes[3];
    unsigned char expected[CLUSTER];

    uint64_t offset = add_compressed(f, 1, 10);
    open_image(f);
    for (int round = 0; round < 2; round++) {
        int error = round == 0 ? -EIO : 0;
        unsigned before = f->disk->submitted[FILE_READ];

        for (size_t i = 0; i < 3; i++)
            start_probe(f, &probes[i], offset, SECTOR);
        scripted_file_turns(f->disk);
        assert_int_equal(f->disk->submitted[FILE_READ], before + 1);
        scripted_file_end(f->disk, 0, error);
        scripted_file_run(f->disk);
        for (size_t i = 0; i < 3; i++) {
            assert_true(probes[i].ended);
            assert_int_equal(probes[i].result, error);
        }
    }
    fill(expected, 10);
    assert_memory_equal(probes[0].bytes, expected, CLUSTER);
}

// More clusters than are kept, each in its turn and again: a place that is reused shows nothing of
// the cluster before, damaged or not.
static void places_are_used_anew(void **state)
{
    struct fixture *f = *state;
    const unsigned count = 40;

    for (unsigned i = 1; i < count; i++) {
        uint64_t offset = add_compressed(f, i, i);

        if (i % 3 == 0)
            memset(f->disk->bytes + offset, 0xff, SECTOR);
    }
    open_image(f);
    assert_fails(f, 3);
    // Few places, so that each is used many times.
    f->image->inflated->count = INFLATED_KEPT_MIN;
    for (int round = 0; round < 3; round++) {
        for (unsigned i = 1; i < count; i++) {
            if (i % 3 == 0)
                assert_fails(f, i);
            else
                assert_reads(f, i, i);
        }
    }
    f->image->inflated->count = INFLATED_KEPT_MAX;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bad_data_stays_an_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(impossible_places_stay_errors, set_up, tear_down),
        cmocka_unit_test_setup_teardown(data_may_end_with_the_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_failed_read_is_tried_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_key_means_unused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(equal_misses_share_a_load, set_up, tear_down),
        cmocka_unit_test_setup_teardown(places_are_used_anew, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("inflated cache", tests, NULL, NULL);
}
