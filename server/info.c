// SPDX-License-Identifier: Apache-2.0
#include "server/info.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "qcow2/format/backing_name.h"
#include "qcow2/format/bitmap_directory.h"
#include "qcow2/format/foreign.h"
#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "qcow2/format/snapshot_table.h"

#define SECTOR_BYTES 512u
#define AUTOCLEAR_RAW_DATA_FILE (1ull << 1)

static json_t *number(uint64_t value)
{
    return json_integer((json_int_t)value);
}

// Makes a list of the snapshots.
static json_t *snapshots_json(const struct snapshot_table *table)
{
    json_t *list = json_array();

    for (size_t i = 0; i < table->count; i++) {
        const struct snapshot *s = &table->snapshots[i];
        json_t *object = json_object();

        json_object_set_new(object, "id", cmd_json_text(s->id));
        json_object_set_new(object, "name", cmd_json_text(s->name));
        json_object_set_new(object, "vm-state-size", number(s->vm_state_size));
        json_object_set_new(object, "date-sec", number(s->seconds));
        json_object_set_new(object, "date-nsec", number(s->nanoseconds));
        json_object_set_new(object, "vm-clock-sec", number(s->vm_clock / 1000000000));
        json_object_set_new(object, "vm-clock-nsec", number(s->vm_clock % 1000000000));
        if (s->icount != SNAPSHOT_ICOUNT_NONE)
            json_object_set_new(object, "icount", number(s->icount));
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *bitmaps_json(const struct bitmap_directory *directory)
{
    json_t *list = json_array();

    for (size_t i = 0; i < directory->count; i++) {
        const struct bitmap *b = &directory->bitmaps[i];
        json_t *object = json_object();
        json_t *flags = json_array();

        if (b->flags & BITMAP_FLAG_IN_USE)
            json_array_append_new(flags, json_string("in-use"));
        if (b->flags & BITMAP_FLAG_AUTO)
            json_array_append_new(flags, json_string("auto"));
        json_object_set_new(object, "flags", flags);
        json_object_set_new(object, "name", cmd_json_text(b->name));
        json_object_set_new(object, "granularity", number(1ull << b->granularity_bits));
        json_array_append_new(list, object);
    }
    return list;
}

// Makes a string of the external data file's name in the header's extension, or null.
static json_t *data_file_json(struct file *file, const struct header *h)
{
    char name[HEADER_BACKING_NAME_MAX + 1];

    for (size_t i = 0; i < h->extension_count; i++) {
        const struct header_extension *e = &h->extensions[i];
        if (e->type != FORMAT_EXTENSION_DATA_FILE || e->length >= sizeof(name) ||
            file_read_blocking(file, name, e->offset, e->length) < 0)
            continue;
        name[e->length] = '\0';
        return cmd_json_text(name);
    }
    return NULL;
}

// Collects the facts that only qcow2 images have, in the order in which qemu-img prints them.
static json_t *specific_json(struct file *file, const struct header *h,
                             const struct bitmap_directory *bitmaps)
{
    json_t *data = json_object();
    json_t *data_file = data_file_json(file, h);
    bool v3 = h->version >= 3;

    json_object_set_new(data, "compat", json_string(v3 ? "1.1" : "0.10"));
    json_object_set_new(data, "compression-type",
                        h->compression_type == FORMAT_COMPRESSION_ZLIB   ? json_string("zlib")
                        : h->compression_type == FORMAT_COMPRESSION_ZSTD ? json_string("zstd")
                                                                         : json_string("unknown"));
    if (v3)
        json_object_set_new(data, "lazy-refcounts",
                            json_boolean(h->compatible & HEADER_COMPATIBLE_LAZY_REFCOUNTS));
    if (bitmaps->count > 0)
        json_object_set_new(data, "bitmaps", bitmaps_json(bitmaps));
    json_object_set_new(data, "refcount-bits", number(1ull << h->refcount_order));
    if (h->crypt_method != FORMAT_CRYPT_NONE) {
        json_t *encrypt = json_object();
        json_object_set_new(encrypt, "format",
                            json_string(h->crypt_method == FORMAT_CRYPT_LUKS ? "luks" : "aes"));
        json_object_set_new(data, "encrypt", encrypt);
    }
    if (data_file != NULL)
        json_object_set_new(data, "data-file", data_file);
    if (h->incompatible & HEADER_INCOMPATIBLE_DATA_FILE)
        json_object_set_new(data, "data-file-raw",
                            json_boolean(h->autoclear & AUTOCLEAR_RAW_DATA_FILE));
    if (v3) {
        json_object_set_new(data, "corrupt",
                            json_boolean(h->incompatible & HEADER_INCOMPATIBLE_CORRUPT));
        json_object_set_new(data, "extended-l2",
                            json_boolean(h->incompatible & HEADER_INCOMPATIBLE_EXTENDED_L2));
    }
    json_t *specific = json_object();
    json_object_set_new(specific, "type", json_string("qcow2"));
    json_object_set_new(specific, "data", data);
    return specific;
}

static int backing_json(json_t *info, const char *path, const struct header *h, struct error *err)
{
    if (h->backing_name[0] == '\0')
        return 0;
    char *full = backing_name_is_local(h->backing_name)
                     ? backing_name_resolve(path, h->backing_name)
                     : strdup(h->backing_name);
    if (full == NULL)
        return error_set(err, ENOMEM, "'%s': no memory", path);
    json_object_set_new(info, "backing-filename", cmd_json_text(h->backing_name));
    json_object_set_new(info, "full-backing-filename", cmd_json_text(full));
    if (h->backing_format[0] != '\0')
        json_object_set_new(info, "backing-filename-format", cmd_json_text(h->backing_format));
    free(full);
    return 0;
}

static int qcow2_json(json_t *info, const char *path, struct file *file, struct error *err)
{
    struct header h;
    struct snapshot_table snapshots = {.count = 0};
    struct bitmap_directory bitmaps = {.count = 0};

    int ret = header_read_any(file, &h, err);
    if (ret == 0)
        ret = snapshot_table_read(file, &h, &snapshots, err);
    if (ret == 0)
        ret = bitmap_directory_read(file, &h, &bitmaps, err);
    if (ret == 0)
        ret = backing_json(info, path, &h, err);
    if (ret == 0) {
        json_object_set_new(info, "virtual-size", number(h.size & ~(uint64_t)(SECTOR_BYTES - 1)));
        json_object_set_new(info, "cluster-size", number(header_cluster_size(&h)));
        if (h.crypt_method != FORMAT_CRYPT_NONE)
            json_object_set_new(info, "encrypted", json_true());
        if (snapshots.count > 0)
            json_object_set_new(info, "snapshots", snapshots_json(&snapshots));
        json_object_set_new(info, "format-specific", specific_json(file, &h, &bitmaps));
        json_object_set_new(info, "dirty-flag",
                            json_boolean(h.incompatible & HEADER_INCOMPATIBLE_DIRTY));
    }
    snapshot_table_free(&snapshots);
    bitmap_directory_free(&bitmaps);
    return ret;
}

static int raw_json(json_t *info, const char *path, struct file *file, struct error *err)
{
    int64_t size = file_size(file);

    if (size < 0)
        return error_set(err, (int)-size, "'%s': cannot tell its size: %s", path,
                         strerror((int)-size));
    json_object_set_new(
        info, "virtual-size",
        number(((uint64_t)size + SECTOR_BYTES - 1) & ~(uint64_t)(SECTOR_BYTES - 1)));
    json_object_set_new(info, "dirty-flag", json_false());
    return 0;
}

json_t *info_read(const char *name, enum image_format format, enum cmd_access access,
                  enum file_locking locking, struct error *err)
{
    const char *path = backing_name_path(name);
    struct cmd_file cf;
    struct stat st;

    int ret = cmd_open(&cf, path, access, locking, err);
    if (ret == -EAGAIN)
        error_append(err, ", or look at it all the same with -U (--force-share)");
    if (ret < 0)
        return NULL;
    if (format == IMAGE_FORMAT_UNKNOWN) {
        const struct foreign_format *foreign = foreign_format_of(cf.file);

        // Read as raw, it would be reported with the size of the container. qemu-img calls
        // compressed data raw.
        if (foreign && foreign->driver) {
            foreign_format_refuse(foreign, path, err);
            error_append(err, ", or look at the file's own bytes with -f raw");
            cmd_close(&cf);
            return NULL;
        }
        format = cmd_is_qcow2(cf.file) ? IMAGE_FORMAT_QCOW2 : IMAGE_FORMAT_RAW;
    }

    json_t *info = json_object();
    json_object_set_new(info, "filename", cmd_json_text(path));
    json_object_set_new(info, "format",
                        json_string(format == IMAGE_FORMAT_QCOW2 ? "qcow2" : "raw"));
    if (stat(path, &st) == 0)
        json_object_set_new(info, "actual-size", number((uint64_t)st.st_blocks * 512));
    ret = format == IMAGE_FORMAT_QCOW2 ? qcow2_json(info, path, cf.file, err)
                                       : raw_json(info, path, cf.file, err);
    cmd_close(&cf);
    if (ret < 0) {
        json_decref(info);
        return NULL;
    }
    return info;
}
