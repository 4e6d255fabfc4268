// SPDX-License-Identifier: Apache-2.0
// nbdload.c: an NBD load generator. One thread keeps a number of requests in flight on each of a
// number of connections, sends the due requests of a connection in one call, drops the data that it
// reads, and reports requests a second, latency, and the server process's CPU time for each
// request. Changes the export's content unless the mix has reads only.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "tests/bench/load_connection.h"
#include "tests/bench/load_plan.h"
#include "tests/bench/load_result.h"

// Most connections: lazycow's own limit is larger.
#define CONNECTIONS_MAX 1024
// The protocol's default for the largest payload ("Block size constraints").
#define BLOCK_MAX (32u << 20)
// Bytes that are received with one call: they stay in the processor's cache, so that dropping data
// costs little.
#define RECEIVE_BYTES (256u << 10)
#define EVENTS_MAX 64

struct options {
    struct load_target target;
    struct load_plan plan;
    uint64_t start;
    uint64_t span; // 0: to the end of the export
    uint64_t seed;
    unsigned long connections;
    unsigned long depth;
    double duration; // seconds
    double warmup;   // seconds at the start that are not measured
    uint64_t count;  // requests; 0: for the duration
    pid_t pid;       // of the server; 0: unknown
    const char *json;
};

struct load {
    const struct options *options;
    struct load_plan plan;
    struct load_result result;
    struct load_connection *connections;
    unsigned count;
    int epoll;
    uint64_t left; // requests that are still to be sent
    void *payload;
    void *buffer;
};

static const char help[] =
    "Usage: nbdload [OPTION...]\n"
    "Puts load on an NBD export and measures.\n"
    "\n"
    "  -k, --socket=PATH        the server's Unix socket\n"
    "  -H, --host=HOST          or its host (default: localhost) ...\n"
    "  -p, --port=PORT          ... and TCP port (default: 10809)\n"
    "  -x, --export=NAME        the export (default: the empty name)\n"
    "  -c, --connections=N      connections (default: 1)\n"
    "  -d, --depth=N            requests in flight on each of them (default: 1)\n"
    "  -m, --mix=MIX            kinds and weights, as read:70,write:30 (default: read);\n"
    "                           kinds: read, write, fua, zero, trim, flush\n"
    "  -P, --pattern=PATTERN    random (default), sequential, once (each place once, scattered)\n"
    "  -b, --block=SIZE         bytes of a request (default: 4k)\n"
    "      --start=SIZE         first byte of the span (default: 0)\n"
    "      --span=SIZE          bytes to work in (default: all)\n"
    "      --align=SIZE         distance between places (default: the block's size)\n"
    "  -t, --duration=SECONDS   how long to measure (default: 2)\n"
    "      --warmup=SECONDS     how long to run before (default: 0)\n"
    "  -n, --count=N            make so many requests instead\n"
    "      --simple             ask for no structured replies\n"
    "      --pid=PID            the server's process, for its CPU time\n"
    "      --seed=N             of the random numbers (default: 1)\n"
    "      --json=FILE          also write the result there\n";

// ---- Running ------------------------------------------------------------------------------------

// Queues requests as far as there is room, and sends them.
static bool refill(struct load *load, struct load_connection *c)
{
    uint64_t now = clock_now();

    while (c->unused_count > 0 && load->left > 0) {
        uint64_t offset;
        enum load_kind kind = load_plan_next(&load->plan, &offset);

        load_connection_add(c, kind, offset, load->plan.block, now);
        load->left--;
    }
    return load_connection_send(c, load->payload, &load->result);
}

static bool set_events(const struct load *load, struct load_connection *c, int operation)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

    if (c->queue_count > 0)
        event.events |= EPOLLOUT;
    return epoll_ctl(load->epoll, operation, c->fd, &event) == 0;
}

static bool serve_events(struct load *load)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(load->epoll, events, EVENTS_MAX, -1);

    for (int i = 0; i < n; i++) {
        struct load_connection *c = events[i].data.ptr;
        bool had_more = (events[i].events & EPOLLOUT) != 0 || c->queue_count > 0;

        if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0 &&
            !load_connection_receive(c, load->buffer, RECEIVE_BYTES, false, &load->result))
            return false;
        if (!refill(load, c))
            return false;
        if (had_more != (c->queue_count > 0) && !set_events(load, c, EPOLL_CTL_MOD))
            return false;
    }
    return n >= 0 || errno == EINTR;
}

// One round of waiting, receiving and sending. A single connection that has sent everything needs
// no epoll: it waits in recv.
static bool turn(struct load *load)
{
    struct load_connection *c = &load->connections[0];

    if (load->count > 1 || c->queue_count > 0)
        return serve_events(load);
    if (!load_connection_receive(c, load->buffer, RECEIVE_BYTES, true, &load->result) ||
        !refill(load, c))
        return false;
    return c->queue_count == 0 || set_events(load, c, EPOLL_CTL_MOD);
}

static unsigned in_flight(const struct load *load)
{
    unsigned sum = 0;

    for (unsigned i = 0; i < load->count; i++)
        sum += load->connections[i].in_flight;
    return sum;
}

static bool begin_measuring(struct load *load)
{
    struct load_result *result = &load->result;

    memset(result, 0, sizeof(*result));
    if (load->options->pid != 0) {
        result->has_server = true;
        if (!read_cpu_time(load->options->pid, &result->server_before)) {
            fprintf(stderr, "nbdload: no process %ld\n", (long)load->options->pid);
            return false;
        }
    }
    result->own_cpu_before = own_cpu_time();
    result->started = clock_now();
    return true;
}

static void end_measuring(struct load *load, struct load_result *result)
{
    *result = load->result;
    result->ended = clock_now();
    result->own_cpu_after = own_cpu_time();
    if (result->has_server && !read_cpu_time(load->options->pid, &result->server_after))
        result->has_server = false;
}

static bool run_until(struct load *load, double seconds)
{
    uint64_t end = clock_now() + (uint64_t)(seconds * 1e9);

    while (clock_now() < end) {
        if (!turn(load))
            return false;
    }
    return true;
}

static bool drain(struct load *load)
{
    while (in_flight(load) > 0) {
        if (!turn(load))
            return false;
    }
    return true;
}

static bool run(struct load *load, struct load_result *result)
{
    const struct options *o = load->options;

    load->left = o->count > 0 ? o->count : UINT64_MAX;
    if (o->count > 0 && !begin_measuring(load))
        return false;
    for (unsigned i = 0; i < load->count; i++) {
        if (!refill(load, &load->connections[i]) ||
            !set_events(load, &load->connections[i], EPOLL_CTL_ADD))
            return false;
    }
    if (o->count > 0) {
        if (!drain(load))
            return false;
        end_measuring(load, result);
        return true;
    }
    if (!run_until(load, o->warmup) || !begin_measuring(load) || !run_until(load, o->duration))
        return false;
    end_measuring(load, result);
    load->left = 0;
    return drain(load);
}

// ---- Setting up ---------------------------------------------------------------------------------

static bool make_buffers(struct load *load)
{
    uint64_t *words = malloc(load->plan.block + sizeof(uint64_t));

    load->payload = words;
    load->buffer = malloc(RECEIVE_BYTES);
    if (words == NULL || load->buffer == NULL)
        return false;
    // The data is neither zeros nor compressible.
    for (uint64_t i = 0; i < load->plan.block / sizeof(*words) + 1; i++)
        words[i] = (i + 1) * 0x9e3779b97f4a7c15ull;
    return true;
}

static bool open_all(struct load *load)
{
    const struct options *o = load->options;

    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->connections = calloc(o->connections, sizeof(*load->connections));
    if (load->epoll < 0 || load->connections == NULL)
        return false;
    for (; load->count < o->connections; load->count++) {
        if (!load_connection_open(&load->connections[load->count], &o->target, (unsigned)o->depth))
            return false;
    }
    return true;
}

static bool place(struct load *load)
{
    const struct options *o = load->options;
    uint64_t size = load->connections[0].size;
    uint64_t room = o->start < size ? size - o->start : 0;

    load->plan = o->plan;
    if (load_plan_place(&load->plan, o->start, o->span > 0 && o->span < room ? o->span : room,
                        o->seed))
        return true;
    fprintf(stderr, "nbdload: the span is too short for one block\n");
    return false;
}

static bool write_json(const struct load_result *result, const char *path)
{
    json_t *json = load_result_json(result);
    bool written = json != NULL && json_dump_file(json, path, JSON_INDENT(2)) == 0;

    json_decref(json);
    if (!written)
        fprintf(stderr, "nbdload: cannot write %s\n", path);
    return written;
}

// ---- Options ------------------------------------------------------------------------------------

enum { OPT_START = 256, OPT_SPAN, OPT_ALIGN, OPT_WARMUP, OPT_SIMPLE, OPT_PID, OPT_SEED, OPT_JSON };

static const struct option long_options[] = {
    {"socket", required_argument, NULL, 'k'},
    {"host", required_argument, NULL, 'H'},
    {"port", required_argument, NULL, 'p'},
    {"export", required_argument, NULL, 'x'},
    {"connections", required_argument, NULL, 'c'},
    {"depth", required_argument, NULL, 'd'},
    {"mix", required_argument, NULL, 'm'},
    {"pattern", required_argument, NULL, 'P'},
    {"block", required_argument, NULL, 'b'},
    {"duration", required_argument, NULL, 't'},
    {"count", required_argument, NULL, 'n'},
    {"start", required_argument, NULL, OPT_START},
    {"span", required_argument, NULL, OPT_SPAN},
    {"align", required_argument, NULL, OPT_ALIGN},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"simple", no_argument, NULL, OPT_SIMPLE},
    {"pid", required_argument, NULL, OPT_PID},
    {"seed", required_argument, NULL, OPT_SEED},
    {"json", required_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, 'h'},
    {0},
};

// A number with an optional k, m, g or t behind it.
static bool parse_size(const char *text, uint64_t *size)
{
    static const char letters[] = "kmgt";
    char *end;
    const char *letter;

    *size = strtoull(text, &end, 10);
    if (end == text || text[0] == '-')
        return false;
    if (*end == '\0')
        return true;
    letter = strchr(letters, *end | 0x20);
    if (letter == NULL || end[1] != '\0')
        return false;
    *size <<= 10 * (letter - letters + 1);
    return true;
}

static bool parse_count(const char *text, unsigned long most, unsigned long *count)
{
    char *end;

    *count = strtoul(text, &end, 10);
    return end != text && *end == '\0' && *count >= 1 && *count <= most;
}

static bool parse_seconds(const char *text, double *seconds)
{
    char *end;

    *seconds = strtod(text, &end);
    return end != text && *end == '\0' && *seconds >= 0 && *seconds < 1e6;
}

static bool parse_pattern(const char *text, enum load_pattern *pattern)
{
    static const char *const names[] = {
        [LOAD_RANDOM] = "random", [LOAD_SEQUENTIAL] = "sequential", [LOAD_ONCE] = "once"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            *pattern = (enum load_pattern)i;
            return true;
        }
    }
    return false;
}

static bool parse_block(const char *text, uint32_t *block)
{
    uint64_t size;

    if (!parse_size(text, &size) || size < 1 || size > BLOCK_MAX)
        return false;
    *block = (uint32_t)size;
    return true;
}

static bool parse_pid(const char *text, pid_t *pid)
{
    unsigned long number;

    if (!parse_count(text, INT32_MAX, &number))
        return false;
    *pid = (pid_t)number;
    return true;
}

// Returns false for a value that is not allowed.
static bool set_option(struct options *o, int letter, const char *value)
{
    switch (letter) {
    case 'k':
        o->target.socket = value;
        return true;
    case 'H':
        o->target.host = value;
        return true;
    case 'p':
        o->target.port = value;
        return true;
    case 'x':
        o->target.name = value;
        return true;
    case 'c':
        return parse_count(value, CONNECTIONS_MAX, &o->connections);
    case 'd':
        return parse_count(value, LOAD_DEPTH_MAX, &o->depth);
    case 'm':
        return load_plan_parse_mix(&o->plan, value);
    case 'P':
        return parse_pattern(value, &o->plan.pattern);
    case 'b':
        return parse_block(value, &o->plan.block);
    case 't':
        return parse_seconds(value, &o->duration);
    case 'n':
        return parse_size(value, &o->count) && o->count > 0;
    case OPT_START:
        return parse_size(value, &o->start);
    case OPT_SPAN:
        return parse_size(value, &o->span);
    case OPT_ALIGN:
        return parse_size(value, &o->plan.align);
    case OPT_WARMUP:
        return parse_seconds(value, &o->warmup);
    case OPT_SIMPLE:
        o->target.structured = false;
        return true;
    case OPT_PID:
        return parse_pid(value, &o->pid);
    case OPT_SEED:
        return parse_size(value, &o->seed);
    case OPT_JSON:
        o->json = value;
        return true;
    }
    return false;
}

static void parse_options(struct options *o, int argc, char **argv)
{
    int letter;

    *o = (struct options){
        .target = {.host = "localhost", .port = "10809", .name = "", .structured = true},
        .plan = {.block = 4096},
        .seed = 1,
        .connections = 1,
        .depth = 1,
        .duration = 2,
    };
    load_plan_parse_mix(&o->plan, "read");
    while ((letter = getopt_long(argc, argv, "k:H:p:x:c:d:m:P:b:t:n:h", long_options, NULL)) !=
           -1) {
        if (letter == 'h') {
            fputs(help, stdout);
            exit(0);
        }
        if (!set_option(o, letter, optarg)) {
            if (letter != '?')
                fprintf(stderr, "nbdload: '%s' is not allowed there\n", optarg);
            exit(2);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "nbdload: what is '%s'? See nbdload --help\n", argv[optind]);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct load_result result; // large
    static struct load load;
    struct options options;
    bool done;

    parse_options(&options, argc, argv);
    load.options = &options;
    done = open_all(&load) && place(&load) && make_buffers(&load) && run(&load, &result);
    for (unsigned i = 0; done && i < load.count; i++)
        load_connection_close(&load.connections[i]);
    free(load.connections);
    free(load.payload);
    free(load.buffer);
    if (!done)
        return 1;
    load_result_print(&result, stdout);
    if (options.json != NULL && !write_json(&result, options.json))
        return 1;
    return result.errors > 0 ? 3 : 0;
}
