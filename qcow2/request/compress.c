// SPDX-License-Identifier: Apache-2.0
#include "qcow2/request/compress.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2/engine.h"
#include "qcow2/codec/inflate.h"
#include "qcow2/mapping/map.h"

void compress_init(struct compress *c)
{
    *c = (struct compress){0};
    waitq_init(&c->room);
}

void compress_free(struct compress *c)
{
    for (size_t i = 0; i < c->count; i++) {
        free(c->kept[i].bytes);
        free(c->kept[i].packed);
    }
    free(c->kept);
    compress_init(c);
}

static struct inflated *entry_of_job(struct offload_job *job)
{
    return (struct inflated *)((char *)job - offsetof(struct inflated, job));
}

// On another thread.
static void inflate_work(struct offload_job *job)
{
    struct inflated *entry = entry_of_job(job);

    entry->result =
        inflate_cluster(entry->image->header.compression_type, entry->packed, entry->host_length,
                        entry->bytes, entry->image->geometry.cluster_size);
}

static void end_load(struct inflated *entry, int result)
{
    struct image *image = entry->image;

    if (result < 0)
        image_log(image, "cannot read the compressed cluster at offset %llu: %s",
                  (unsigned long long)entry->host_offset, strerror(-result));
    free(entry->packed);
    entry->packed = NULL;
    entry->loading = false;
    image->compress.loading--;
    if (result < 0)
        entry->host_offset = 0;
    waitq_wake(&entry->waiters, result);
    waitq_wake(&image->compress.room, 0);
}

static void inflate_ended(struct task *task)
{
    struct inflated *entry =
        entry_of_job((struct offload_job *)((char *)task - offsetof(struct offload_job, task)));

    end_load(entry, entry->result);
}

static void read_ended(struct file_io *io)
{
    struct inflated *entry = (struct inflated *)((char *)io - offsetof(struct inflated, io));
    struct image *image = entry->image;

    op_leave_active(&entry->op);
    if (io->result < 0) {
        end_load(entry, io->result);
        return;
    }
    entry->job = (struct offload_job){.work = inflate_work, .task = {.run = inflate_ended}};
    if (image->host.offload) {
        image->host.offload(image->host.context, &entry->job);
    } else {
        inflate_work(&entry->job);
        runq_post(image->runq, &entry->job.task);
    }
}

static int make_room(struct image *image)
{
    struct compress *c = &image->compress;
    size_t count = COMPRESS_KEPT_BYTES >> image->geometry.cluster_bits;

    if (c->kept)
        return 0;
    if (count < COMPRESS_KEPT_MIN)
        count = COMPRESS_KEPT_MIN;
    if (count > COMPRESS_KEPT_MAX)
        count = COMPRESS_KEPT_MAX;
    c->kept = calloc(count, sizeof(*c->kept));
    if (!c->kept)
        return -ENOMEM;
    c->count = count;
    for (size_t i = 0; i < count; i++) {
        c->kept[i].image = image;
        waitq_init(&c->kept[i].waiters);
    }
    return 0;
}

// The entry that was not looked at for the longest time; NULL when all are loading.
static struct inflated *oldest(struct compress *c)
{
    struct inflated *best = NULL;

    for (size_t i = 0; i < c->count; i++) {
        if (!c->kept[i].loading && (!best || c->kept[i].used < best->used))
            best = &c->kept[i];
    }
    return best;
}

static int start_load(struct image *image, struct inflated *entry, const struct mapping *m)
{
    if (!entry->bytes && !(entry->bytes = malloc(image->geometry.cluster_size)))
        return -ENOMEM;
    if (posix_memalign((void **)&entry->packed, 4096, m->host_length) != 0) {
        entry->packed = NULL;
        return -ENOMEM;
    }
    entry->host_offset = m->host_offset;
    entry->host_length = m->host_length;
    entry->loading = true;
    image->compress.loading++;
    entry->iov = (struct iovec){.iov_base = entry->packed, .iov_len = m->host_length};
    entry->io = (struct file_io){.kind = FILE_READ,
                                 .offset = m->host_offset,
                                 .length = m->host_length,
                                 .iov = &entry->iov,
                                 .iovcnt = 1,
                                 .done = read_ended};
    // The mapping was looked up in this turn; whoever waits for the load holds nothing meanwhile.
    op_init_internal(&entry->op, image, NULL);
    op_replan(&entry->op);
    file_submit(image->file, &entry->io);
    return 0;
}

static struct inflated *find(struct compress *c, const struct mapping *m)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->kept[i].host_offset == m->host_offset && c->kept[i].host_length == m->host_length)
            return &c->kept[i];
    }
    return NULL;
}

void compress_prefetch(struct image *image, const struct mapping *m)
{
    struct compress *c = &image->compress;

    if (make_room(image) < 0 || c->loading >= COMPRESS_AHEAD || c->loading >= c->count / 2 ||
        find(c, m))
        return;

    struct inflated *entry = oldest(c);
    if (entry) {
        entry->used = ++c->looks;
        start_load(image, entry, m);
    }
}

int compress_get(struct op *op, struct image *image, const struct mapping *m,
                 const unsigned char **bytes)
{
    struct compress *c = &image->compress;
    int result = make_room(image);

    if (result < 0)
        return result;

    struct inflated *entry = find(c, m);
    if (!entry) {
        entry = oldest(c);
        if (!entry)
            return waitq_park(&c->room, op);
        result = start_load(image, entry, m);
        if (result < 0)
            return result;
    }
    entry->used = ++c->looks;
    if (entry->loading)
        return waitq_park(&entry->waiters, op);
    *bytes = entry->bytes;
    return 0;
}
