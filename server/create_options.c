// SPDX-License-Identifier: Apache-2.0
#include "server/create_options.h"

#include <stdint.h>
#include <string.h>

#include "qcow2/format/format.h"
#include "qcow2/format/header.h"
#include "server/cmd.h"

static bool parse_switch(const char *value, bool *on)
{
    *on = value == NULL || strcmp(value, "on") == 0 || strcmp(value, "yes") == 0 ||
          strcmp(value, "true") == 0 || strcmp(value, "y") == 0;
    return *on || strcmp(value, "off") == 0 || strcmp(value, "no") == 0 ||
           strcmp(value, "false") == 0 || strcmp(value, "n") == 0;
}

// Sets *exponent. Returns false for a number that is not a power of two.
static bool create_options_power_of_two(uint64_t value, unsigned *exponent)
{
    if (value == 0 || (value & (value - 1)) != 0)
        return false;
    *exponent = (unsigned)__builtin_ctzll(value);
    return true;
}

static int bad_value(const struct create_command *c, const char *name, const char *value,
                     const char *wanted)
{
    return cmd_fail("'%s': option %s%s%s: must be %s", c->path, name, value ? "=" : "",
                    value ? value : " has no value", wanted);
}

int create_take_size(struct create_command *c, const char *text)
{
    if (c->have_size)
        return cmd_fail("'%s': the size is given twice; leave one of them out", c->path);
    if (!cmd_parse_size(text, &c->options.size))
        return cmd_fail("'%s': invalid size '%s'; use a number up to 2^63-1, or with a suffix "
                        "k, M, G, T, P or E, such as 10G",
                        c->path, text);
    c->have_size = true;
    return 0;
}

static int option_size(struct create_command *c, const char *name, char *value)
{
    return value == NULL ? bad_value(c, name, value, "a size") : create_take_size(c, value);
}

static int option_compat(struct create_command *c, const char *name, char *value)
{
    if (value != NULL && (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0))
        c->options.version = 2;
    else if (value != NULL && (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0))
        c->options.version = 3;
    else
        return bad_value(c, name, value, "0.10 (or v2) or 1.1 (or v3)");
    c->version = value;
    return 0;
}

static int option_cluster_size(struct create_command *c, const char *name, char *value)
{
    uint64_t size;

    if (value == NULL || !cmd_parse_size(value, &size) ||
        !create_options_power_of_two(size, &c->options.cluster_bits) ||
        c->options.cluster_bits < HEADER_CLUSTER_BITS_MIN ||
        c->options.cluster_bits > HEADER_CLUSTER_BITS_MAX)
        return bad_value(c, name, value, "a power of two from 512 to 2M");
    return 0;
}

static int option_refcount_bits(struct create_command *c, const char *name, char *value)
{
    uint64_t bits;

    if (value == NULL || !cmd_parse_size(value, &bits) ||
        !create_options_power_of_two(bits, &c->options.refcount_order) ||
        c->options.refcount_order > FORMAT_REFCOUNT_ORDER_MAX)
        return bad_value(c, name, value, "a power of two from 1 to 64");
    return 0;
}

static int option_lazy_refcounts(struct create_command *c, const char *name, char *value)
{
    c->lazy_asked = true;
    return parse_switch(value, &c->options.lazy_refcounts) ? 0
                                                           : bad_value(c, name, value, "on or off");
}

static int option_preallocation(struct create_command *c, const char *name, char *value)
{
    static const char *const modes[] = {[CREATE_PREALLOCATE_OFF] = "off",
                                        [CREATE_PREALLOCATE_METADATA] = "metadata",
                                        [CREATE_PREALLOCATE_SPACE] = "falloc",
                                        [CREATE_PREALLOCATE_ZEROS] = "full"};

    for (size_t i = 0; value != NULL && i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(value, modes[i]) == 0) {
            c->options.preallocation = (enum create_preallocation)i;
            c->preallocation = value;
            return 0;
        }
    }
    return bad_value(c, name, value, "off, metadata, falloc or full");
}

static int option_backing_file(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || value[0] == '\0')
        return bad_value(c, name, value, "a file name");
    c->options.backing_name = value;
    return 0;
}

static int option_backing_format(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || value[0] == '\0')
        return bad_value(c, name, value, "qcow2 or raw");
    c->options.backing_format = value;
    return 0;
}

// Accepts an unsupported option whose value turns it off.
static int option_off(struct create_command *c, const char *name, char *value)
{
    bool on;

    if (!parse_switch(value, &on))
        return bad_value(c, name, value, "off");
    if (on)
        return cmd_fail("'%s': %s is not supported; leave it out", c->path, name);
    if (strcmp(name, "nocow") == 0)
        c->nocow = value;
    return 0;
}

static int option_compression(struct create_command *c, const char *name, char *value)
{
    if (value == NULL || (strcmp(value, "zlib") != 0 && strcmp(value, "zstd") != 0))
        return bad_value(c, name, value, "zlib or zstd");
    c->options.compression_type =
        strcmp(value, "zstd") == 0 ? FORMAT_COMPRESSION_ZSTD : FORMAT_COMPRESSION_ZLIB;
    return 0;
}

static int option_unsupported(struct create_command *c, const char *name, char *value)
{
    (void)value;
    return cmd_fail("'%s': %s is not supported; leave it out", c->path, name);
}

static int take_option(struct create_command *c, const char *name, char *value)
{
    static const struct {
        const char *name;
        int (*take)(struct create_command *c, const char *name, char *value);
    } options[] = {
        {"size", option_size},
        {"compat", option_compat},
        {"cluster_size", option_cluster_size},
        {"refcount_bits", option_refcount_bits},
        {"lazy_refcounts", option_lazy_refcounts},
        {"preallocation", option_preallocation},
        {"backing_file", option_backing_file},
        {"backing_fmt", option_backing_format},
        {"nocow", option_off},
        {"extended_l2", option_off},
        {"data_file_raw", option_off},
        {"encryption", option_off},
        {"compression_type", option_compression},
        {"data_file", option_unsupported},
    };

    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (strcmp(name, options[i].name) == 0)
            return options[i].take(c, name, value);
    }
    if (strncmp(name, "encrypt.", 8) == 0)
        return option_unsupported(c, name, value);
    return cmd_wrong_use("create", "-o: unknown option '%s'", name);
}

int create_take_options(struct create_command *c, char *list)
{
    char *name, *value;

    while (cmd_next_option(&list, &name, &value)) {
        int ret = take_option(c, name, value);
        if (ret != 0)
            return ret;
    }
    return 0;
}
