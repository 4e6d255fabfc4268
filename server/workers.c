// SPDX-License-Identifier: Apache-2.0
#include "server/workers.h"

#include <stdlib.h>
#include <uv.h>

struct request {
    uv_work_t work;
    struct workers *workers;
    struct offload_job *job;
};

static void on_work(uv_work_t *work)
{
    struct request *request = work->data;

    request->job->work(request->job);
}

static void on_worked(uv_work_t *work, int status)
{
    struct request *request = work->data;

    (void)status; // nothing is ever cancelled
    runq_post(request->workers->runq, &request->job->task);
    free(request);
}

void workers_run(struct workers *workers, struct offload_job *job)
{
    struct request *request = workers->loop ? malloc(sizeof(*request)) : NULL;

    if (request) {
        request->work.data = request;
        request->workers = workers;
        request->job = job;
        if (uv_queue_work(workers->loop, &request->work, on_work, on_worked) == 0) {
            return;
        }
        free(request);
    }
    job->work(job);
    runq_post(workers->runq, &job->task);
}
