// SPDX-License-Identifier: Apache-2.0
#include "server/serve_options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/cmd.h"
#include "server/file_map.h"
#include "server/listen.h"
#include "server/serve_settings.h"
#include "server/loop_spin.h"

// The default of QEMU's built-in server. With qemu-nbd's default of one, a client that opens
// several connections waits for ever.
#define CONNECTIONS_MAX_DEFAULT 100
// Seconds without a write until an image is made clean.
#define CLEAN_AFTER_DEFAULT 10
#define CLEAN_AFTER_LIMIT (7 * 24 * 3600)
// Limits of the metadata cache in bytes: enough for a few slices of the largest tables; no image
// has more tables than the upper limit.
#define CACHE_SIZE_MIN (64ull << 10)
#define CACHE_SIZE_MAX (64ull << 30)
// Bytes of images that may be mapped: at most all that server/file_map.h can map. The default is an
// eighth of the machine's memory, so that several servers do not appear to use it up.
#define MMAP_SIZE_MAX ((uint64_t)FILE_MAP_WINDOWS_MAX * FILE_MAP_WINDOW_BYTES)
#define MMAP_SIZE_SHARE 8

// ---- A function for each option; it returns false for a value that is not allowed ---------------

static bool serve_options_set_max_connections(struct serve_options *o, const char *value)
{
    unsigned long n;

    if (!number(value, 1, SERVE_CONNECTIONS_LIMIT, &n)) {
        return false;
    }
    o->connections_max = (unsigned)n;
    return true;
}

static bool set_poll_max_ns(struct serve_options *o, const char *value)
{
    unsigned long ns;

    if (!number(value, 0, LOOP_SPIN_LIMIT_NS, &ns)) {
        return false;
    }
    o->poll_max_ns = ns;
    return true;
}

static bool set_read_only(struct serve_options *o, const char *value)
{
    return flag(value, &o->exports.read_only);
}

static bool set_export(struct serve_options *o, const char *value)
{
    serve_options_add_image(o, EXPORT_ARGUMENT_OPTION, value);
    return true;
}

static bool set_export_name(struct serve_options *o, const char *value)
{
    o->exports.default_name = value;
    return true;
}

static bool set_set(struct serve_options *o, const char *value)
{
    if (o->set_count == SERVE_SETS_MAX) {
        return false;
    }
    o->sets[o->set_count++] = value;
    return true;
}

static bool set_description(struct serve_options *o, const char *value)
{
    o->exports.description = value;
    return strlen(value) <= SESSION_STRING_MAX;
}

static bool set_cache(struct serve_options *o, const char *value)
{
    static const char *const names[] = {"writeback",  "writethrough", "none",
                                        "directsync", "unsafe",       NULL};
    int mode = choice(value, names);

    o->exports.direct = mode == 2 || mode == 3;
    o->exports.force_fua = mode == 1 || mode == 3;
    o->exports.no_flush = mode == 4;
    return mode >= 0;
}

static bool set_nocache(struct serve_options *o, const char *value)
{
    (void)value;
    return set_cache(o, "none");
}

static bool set_aio(struct serve_options *o, const char *value)
{
    static const char *const names[] = {[BACKEND_AUTO] = "auto",
                                        [BACKEND_IO_URING] = "io_uring",
                                        [BACKEND_THREADS] = "threads",
                                        NULL};
    int mode = choice(value, names);

    o->aio = mode >= 0 ? (enum backend_kind)mode : BACKEND_AUTO;
    return mode >= 0;
}

static bool set_discard(struct serve_options *o, const char *value)
{
    // The second pair has qemu-nbd's names for the first.
    static const char *const names[] = {"ignore", "unmap", "off", "on", NULL};
    int mode = choice(value, names);

    o->exports.unmap = mode == 1 || mode == 3;
    return mode >= 0;
}

static bool set_detect_zeroes(struct serve_options *o, const char *value)
{
    static const char *const names[] = {[DETECT_ZEROES_OFF] = "off",
                                        [DETECT_ZEROES_ON] = "on",
                                        [DETECT_ZEROES_UNMAP] = "unmap",
                                        NULL};
    int mode = choice(value, names);

    o->exports.detect_zeroes = mode >= 0 ? (enum detect_zeroes)mode : DETECT_ZEROES_OFF;
    return mode >= 0;
}

static bool set_lazy_refcounts(struct serve_options *o, const char *value)
{
    static const char *const names[] = {"off", "on", NULL};
    int mode = choice(value, names);

    o->exports.lazy_refcounts = mode == 1 ? LAZY_ON : LAZY_OFF;
    return mode >= 0;
}

static bool set_cache_size(struct serve_options *o, const char *value)
{
    uint64_t bytes;

    if (!cmd_parse_size(value, &bytes) || bytes < CACHE_SIZE_MIN || bytes > CACHE_SIZE_MAX) {
        return false;
    }
    o->exports.cache_bytes = (size_t)bytes;
    return true;
}

static bool set_mmap_size(struct serve_options *o, const char *value)
{
    return cmd_parse_size(value, &o->mmap_bytes) && o->mmap_bytes <= MMAP_SIZE_MAX;
}

// A share of the machine's memory: mapped bytes belong to the page cache, but count as this
// process's memory as well.
static uint64_t mmap_size_default(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long bytes = sysconf(_SC_PAGESIZE);

    return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes / MMAP_SIZE_SHARE : 0;
}

static bool set_clean_after(struct serve_options *o, const char *value)
{
    unsigned long seconds;

    if (!number(value, 0, CLEAN_AFTER_LIMIT, &seconds)) {
        return false;
    }
    o->exports.clean_after = (unsigned)seconds;
    return true;
}

static bool set_format(struct serve_options *o, const char *value)
{
    o->exports.format = image_format_parse(value);
    return o->exports.format != IMAGE_FORMAT_UNKNOWN;
}

static bool set_backing_format(struct serve_options *o, const char *value)
{
    o->exports.backing_format = image_format_parse(value);
    return o->exports.backing_format != IMAGE_FORMAT_UNKNOWN;
}

static bool set_skip_broken(struct serve_options *o, const char *value)
{
    (void)value;
    o->skip_broken = true;
    return true;
}

static bool set_force_share(struct serve_options *o, const char *value)
{
    return flag(value, &o->exports.force_share);
}

static bool set_locking(struct serve_options *o, const char *value)
{
    return file_locking_parse(value, &o->exports.locking);
}

static bool set_persistent(struct serve_options *o, const char *value)
{
    (void)o;
    (void)value;
    return true;
}

static bool set_exit_with_last_client(struct serve_options *o, const char *value)
{
    (void)value;
    o->exit_with_last_client = true;
    return true;
}

static bool set_tls(struct serve_options *o, const char *value)
{
    static const char *const names[] = {
        [SERVE_TLS_REQUIRE] = "require", [SERVE_TLS_ON] = "on", [SERVE_TLS_OFF] = "off", NULL};
    int mode = choice(value, names);

    o->tls_given = true;
    o->tls_mode = mode >= 0 ? (enum serve_tls)mode : SERVE_TLS_REQUIRE;
    return mode >= 0;
}

static bool set_tls_certificates(struct serve_options *o, const char *value)
{
    o->tls.certificates = value;
    return value[0] != '\0';
}

static bool set_tls_psk(struct serve_options *o, const char *value)
{
    o->tls.psk = value;
    return value[0] != '\0';
}

static bool set_tls_priority(struct serve_options *o, const char *value)
{
    o->tls.priority = value;
    return value[0] != '\0';
}

static bool set_tls_verify_peer(struct serve_options *o, const char *value)
{
    (void)value;
    o->tls.verify_peer = true;
    return true;
}

static bool set_tls_allow(struct serve_options *o, const char *value)
{
    if (o->tls_allow_count == SERVE_TLS_ALLOW_MAX) {
        return false;
    }
    o->tls_allow[o->tls_allow_count++] = (struct serve_tls_allow){.text = value};
    return value[0] != '\0';
}

static bool set_user(struct serve_options *o, const char *value)
{
    o->user = value;
    return value[0] != '\0';
}

static bool set_group(struct serve_options *o, const char *value)
{
    o->group = value;
    return value[0] != '\0';
}

static bool set_pid_file(struct serve_options *o, const char *value)
{
    o->pid_file = value;
    return value[0] != '\0';
}

static bool set_log_level(struct serve_options *o, const char *value)
{
    return log_level_parse(value, &o->log_level);
}

static bool set_log_timestamps(struct serve_options *o, const char *value)
{
    (void)value;
    o->log_timestamps = true;
    return true;
}

static bool set_verbose(struct serve_options *o, const char *value)
{
    (void)value;
    o->log_level = LOG_LEVEL_DEBUG;
    return true;
}

// ---- The table ----------------------------------------------------------------------------------

const struct serve_setting serve_settings[] = {
    {"socket", 'k', serve_set_socket, "one of at most 16 paths"},
    {"socket-mode", 0, serve_set_socket_mode, "an octal number from 0 to 0777"},
    {"socket-group", 0, serve_set_socket_group, "a group"},
    {"bind", 'b', serve_set_bind, "one of at most 16 addresses or host names"},
    {"port", 'p', serve_set_port, "0 to 65535"},
    {"vsock", 0, serve_set_vsock, "one of at most 16 addresses [CID:]PORT"},
    {"stdio", 0, serve_set_stdio, NULL},
    {"tcp-keepalive", 0, serve_set_tcp_keepalive, "on, off or 1 to 32767 seconds"},
    {"max-connections", 'e', serve_options_set_max_connections, "1 to 16384"},
    {"shared", 0, serve_options_set_max_connections, "1 to 16384"}, // qemu-nbd's name for it
    {"read-only", 'r', set_read_only, NULL},
    {"export", 0, set_export, "NAME=IMAGE"},
    {"export-name", 'x', set_export_name, "a name"},
    {"set", 0, set_set, "one of at most 4096 NAME:KEY=VALUE"},
    {"description", 'D', set_description, "a text of at most 4096 bytes"},
    {"cache", 0, set_cache, "writeback, writethrough, none, directsync or unsafe"},
    {"nocache", 'n', set_nocache, NULL},
    {"aio", 0, set_aio, "auto, io_uring or threads"},
    {"discard", 0, set_discard, "unmap or ignore"},
    {"detect-zeroes", 0, set_detect_zeroes, "off, on or unmap"},
    {"lazy-refcounts", 0, set_lazy_refcounts, "on or off"},
    {"cache-size", 0, set_cache_size, "a size from 64k to 64G"},
    {"clean-after", 0, set_clean_after, "0 to 604800 seconds"},
    {"mmap-size", 0, set_mmap_size, "a size up to 32G"},
    {"poll-max-ns", 0, set_poll_max_ns, "0 to 1000000 nanoseconds"},
    {"format", 'f', set_format, "qcow2 or raw"},
    {"backing-format", 0, set_backing_format, "qcow2 or raw"},
    {"force-share", 'U', set_force_share, NULL},
    {"skip-broken", 0, set_skip_broken, NULL},
    {"locking", 0, set_locking, FILE_LOCKING_VALUES},
    {"persistent", 't', set_persistent, NULL},
    {"exit-with-last-client", 0, set_exit_with_last_client, NULL},
    {"tls", 0, set_tls, "require, on or off"},
    {"tls-certificates", 0, set_tls_certificates, "a directory"},
    {"tls-psk", 0, set_tls_psk, "a file"},
    {"tls-verify-peer", 0, set_tls_verify_peer, NULL},
    {"tls-priority", 0, set_tls_priority, "a priority string of GnuTLS"},
    {"tls-allow", 0, set_tls_allow, "one of at most 256 patterns"},
    {"user", 0, set_user, "a user"},
    {"group", 0, set_group, "a group"},
    {"pid-file", 0, set_pid_file, "a path"},
    {"log-level", 0, set_log_level, "error, warning, info, debug or trace"},
    {"log-timestamps", 0, set_log_timestamps, NULL},
    {"verbose", 'v', set_verbose, NULL},
    {0},
};

void serve_options_init(struct serve_options *options)
{
    *options = (struct serve_options){
        .exports = {.unmap = true,
                    .locking = FILE_LOCKING_AUTO,
                    .format = IMAGE_FORMAT_QCOW2,
                    .clean_after = CLEAN_AFTER_DEFAULT},
        .listen = {.port = LISTEN_PORT_DEFAULT},
        .connections_max = CONNECTIONS_MAX_DEFAULT,
        .poll_max_ns = LOOP_SPIN_DEFAULT_NS,
        .mmap_bytes = mmap_size_default(),
        .log_level = LOG_LEVEL_INFO,
    };
}
