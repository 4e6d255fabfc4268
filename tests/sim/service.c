// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/heap.h"

// Seconds without a write until an image is made clean.
#define CLEAN_AFTER 1u

// ---- What the engine asks of its host

static int open_backing(void *context, const char *path, struct file **out, struct error *err)
{
    struct run *run = context;

    for (unsigned i = 0; i < run->scenario.depth; i++) {
        if (strcmp(path, run->scenario.backings[i].name) != 0)
            continue;
        *out = file_sim_open(&run->sim, &run->backing_disks[i], path, true);
        return 0;
    }
    sim_fail(&run->sim, "the engine asks for a backing file '%s'", path);
    return error_set(err, ENOENT, "'%s': not here", path);
}

static void offload(void *context, struct offload_job *job)
{
    struct run *run = context;

    sim_offload(&run->sim, job);
}

static void settle(void *context)
{
    struct run *run = context;

    run->settles++;
}

// Returns true for lines of the log that tell of no fault. Every other line is a complaint about an
// image that has no fault, since only whole images and those after a power cut are served here.
static bool is_harmless(const char *line)
{
    static const char *const lines[] = {
        "': was not closed cleanly", "': recovery: done, 0 faults found",
        "persistent bitmaps",        "': refcounts cannot be written (No space left",
        "': its bitmaps are gone",   " % of the tables counted"};

    if (strstr(line, "fault") && !strstr(line, ", 0 faults"))
        return false;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (strstr(line, lines[i]))
            return true;
    }
    return false;
}

static void take_log(void *context, const char *line)
{
    struct run *run = context;

    sim_trace(&run->sim, "log: %s", line);
    if (run->sim.faults_hit + heap_failed() == 0 && !run->sim.dead && !is_harmless(line))
        sim_fail(&run->sim, "the engine says: %s", line);
}

// ---- Opening

static struct image *open_image(struct run *run, const struct scenario_generation *plan)
{
    const struct scenario *s = &run->scenario;
    struct image_options options = {.format = IMAGE_FORMAT_QCOW2,
                                    .read_only = plan->read_only,
                                    .unmap = s->unmap,
                                    .lazy_refcounts = (enum lazy_refcounts)s->lazy,
                                    .cache_bytes = s->cache_bytes};
    struct image_host host = {.context = run,
                              .open_backing = open_backing,
                              .log = take_log,
                              .offload = s->offload ? offload : NULL,
                              .settle = settle};
    struct file *file = file_sim_open(&run->sim, &run->disk, "image", plan->read_only);
    struct image *image;
    struct error err;
    int result = image_open(&image, file, &options, &host, &err);

    if (result == 0)
        return image;
    file_close(file);
    sim_trace(&run->sim, "cannot open: %s", err.text);
    if (!run->sim.dead && run->sim.faults_hit == 0)
        sim_fail(&run->sim, "cannot open: %s", err.text);
    return NULL;
}

bool service_open(struct service *service, struct run *run, const struct scenario_generation *plan)
{
    const struct scenario *s = &run->scenario;
    struct image *image = open_image(run, plan);
    struct error err;

    if (!image)
        return false;
    *service = (struct service){.run = run, .clock = 1};
    log_init(&service->log, LOG_LEVEL_ERROR, -1);
    service->exports = (struct exports){.count = 1, .log = &service->log};
    service->exports.list = calloc(1, sizeof(struct export));
    if (!service->exports.list)
        abort();
    service->exports.list->exports = &service->exports;
    service->exports.list->name = strdup("image");
    service->exports.list->options = (struct export_options){.read_only = plan->read_only,
                                                             .force_fua = s->force_fua,
                                                             .unmap = s->unmap,
                                                             .detect_zeroes = s->detect_zeroes,
                                                             .clean_after = CLEAN_AFTER};
    export_init(service->exports.list, image);
    if (access_init(&service->access, &service->exports, NULL, 0, &err) < 0 ||
        client_shared_init(&service->clients, &service->access, &service->log) < 0)
        abort();
    if (s->budget > 0) {
        service->clients.budget.limit = s->budget;
        service->clients.budget.reserve = SCENARIO_RESERVE;
    }
    return true;
}

// ---- Time

void service_tick(struct service *service)
{
    exports_tick(&service->exports, service->clock);
    client_shared_tick(&service->clients);
}

void service_idle(struct service *service)
{
    // The first tick sees the writes, the second one that they are long ago.
    exports_tick(&service->exports, service->clock);
    service->clock += CLEAN_AFTER * 1000;
    exports_tick(&service->exports, service->clock);
    if (exports_quiet(&service->exports))
        return;
    service->cleaning = true;
    sim_trace(&service->run->sim, "clean point");
}

// Returns true when an image had a reason not to become clean: a fault, or the end of a device.
static bool excused(const struct run *run)
{
    return run->sim.dead || run->sim.faults_hit > 0 || run->scenario.device_tight;
}

void service_check_clean(struct service *service)
{
    struct sim *sim = &service->run->sim;

    if (!service->cleaning || !exports_quiet(&service->exports))
        return;
    service->cleaning = false;
    sim_trace(sim, "clean point ends%s",
              service->exports.list->clean == EXPORT_CLEAN_FAILED ? " badly" : "");
    if (service->exports.list->clean == EXPORT_CLEAN_FAILED && !excused(service->run))
        sim_fail(sim, "a clean point failed, and nothing else had");
}

// ---- The end

bool service_finish(struct service *service)
{
    struct sim *sim = &service->run->sim;

    sim_trace(sim, "finish");
    int result = exports_finish(&service->exports);
    sim_trace(sim, "finished: %s", result < 0 ? strerror(-result) : "clean");
    if (result < 0 && !excused(service->run))
        sim_fail(sim, "finishing failed, and nothing else had: %s", strerror(-result));
    service->run->out_of_room = result == -ENOSPC && !sim->dead && heap_failed() == 0 &&
                                sim->faults_hit == sim->growth_refused;
    return result == 0 && !sim->dead;
}

void service_close(struct service *service)
{
    client_shared_destroy(&service->clients);
    access_destroy(&service->access);
    exports_close(&service->exports);
}
