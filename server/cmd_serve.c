// SPDX-License-Identifier: Apache-2.0
// cmd_serve.c: `lazycow serve`, from the command line to the exit code.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/access.h"
#include "server/cmd.h"
#include "server/export.h"
#include "server/export_plan.h"
#include "server/file_in_use.h"
#include "server/limits.h"
#include "server/listen.h"
#include "server/loop.h"
#include "server/notify.h"
#include "server/pid_file.h"
#include "server/privileges.h"
#include "server/serve_listen.h"
#include "server/serve_options.h"
#include "server/serve_set.h"
#include "server/server.h"
#include "server/start_watch.h"
#include "server/stdio_client.h"
#include "server/tls.h"
#include "server/tls_log.h"
#include "server/loop_workers.h"

// Exit code of a stop in good order after --skip-broken has left images out.
#define EXIT_SKIPPED 3
// Descriptors of the server itself: the workers' eventfd, the backend's, a socket, the pid file.
#define OWN_DESCRIPTORS 4u

// The parts of a running server, in the order in which they are opened.
struct serve {
    const struct serve_options *options;
    struct log log;
    struct runq runq;
    struct loop_workers workers;
    struct start_watch watch;
    struct backend *backend;
    struct export_plans plans;
    struct exports exports;
    struct access access;
    struct tls_server *tls; // or NULL
    struct privileges privileges;
    struct listeners listeners;
    // The client at standard input and output; NULL: clients come to the listeners.
    struct stdio_client *client;
    // A service manager or a program handed the listeners over.
    bool activated;
};

static int open_listeners(struct serve *serve, unsigned activated, struct error *err)
{
    const struct serve_options *options = serve->options;

    serve->activated = activated > 0;
    if (activated > 0) {
        if (serve_listen_given(&options->listen)) {
            return error_set(err, EINVAL,
                             "--socket, --bind, --port and --vsock do not go with socket "
                             "activation; remove them");
        }
        return listen_take(&serve->listeners, activated, err);
    }
    return serve->client != NULL
               ? 0
               : serve_listen_open(&options->listen, &serve->watch, &serve->listeners, err);
}

// Prints the URIs. Failing to print them stops nothing: clients know the address by other means.
static void announce(struct serve *serve)
{
    for (size_t i = 0; i < serve->listeners.count; i++) {
        const struct listener *listener = &serve->listeners.list[i];
        char *uri;

        if (!listener->announce) {
            continue;
        }
        uri = listen_uri(listener, serve->exports.list[0].name,
                         serve->tls != NULL && serve->options->tls_mode == SERVE_TLS_REQUIRE);
        if (uri != NULL) {
            printf("listening on %s\n", uri);
        } else {
            printf("listening on descriptor %d\n", listener->fd);
        }
        free(uri);
    }
    if (fflush(stdout) != 0) {
        log_line(&serve->log, LOG_LEVEL_WARNING,
                 "standard output takes no 'listening on' line: %s; serving without",
                 strerror(errno));
        __fpurge(stdout);
        clearerr(stdout);
    }
}

// Announces that connections are answered from now on.
static void on_ready(void *context)
{
    struct serve *serve = context;

    log_line(&serve->log, LOG_LEVEL_DEBUG, "files are served with %s",
             backend_name(serve->backend));
    // A program that starts a server for itself knows the address, and standard output belongs to
    // that program: an image may be copied to it.
    if (!serve->activated || !serve->options->exit_with_last_client) {
        announce(serve);
    }
    notify("READY=1");
    if (serve->exports.skipped_count > 0) {
        char status[64];

        snprintf(status, sizeof(status), "STATUS=%zu images served, %zu skipped",
                 serve->exports.count, serve->exports.skipped_count);
        notify(status);
    }
}

// Reads the keys and certificates if TLS is used.
static int open_tls(struct serve *serve, struct error *err)
{
    const struct serve_options *options = serve->options;
    bool given = options->tls.certificates != NULL || options->tls.psk != NULL;
    int result;

    if (!given || options->tls_mode == SERVE_TLS_OFF) {
        return 0;
    }
    result = tls_server_new(&serve->tls, &options->tls, time(NULL), err);
    if (result == 0) {
        tls_log_warnings(serve->tls, &serve->log);
    }
    return result;
}

// Changes to the user that the command line names and gives it our socket.
static int drop_privileges(struct serve *serve, struct error *err)
{
    const struct privileges *privileges = &serve->privileges;
    gid_t gid = serve->options->listen.socket_group != NULL ? (gid_t)-1 : privileges->gid;

    if (privileges->user == NULL) {
        return 0;
    }
    for (size_t i = 0; i < serve->listeners.count; i++) {
        const struct listener *listener = &serve->listeners.list[i];

        if (listener->unlink && lchown(listener->path, privileges->uid, gid) < 0) {
            return error_set(err, errno, "'%s': cannot give the socket to '%s': %s", listener->path,
                             privileges->user, strerror(errno));
        }
    }
    return privileges_drop(privileges, err);
}

// Reports at the end which images were not served. Returns the exit code of a stop in good order.
static int account_for_skipped(struct serve *serve)
{
    const struct exports *exports = &serve->exports;

    for (size_t i = 0; i < exports->skipped_count; i++) {
        log_line(&serve->log, LOG_LEVEL_ERROR, "export '%s': %s", exports->skipped[i].name,
                 exports->skipped[i].reason);
    }
    return exports->skipped_count > 0 ? EXIT_SKIPPED : 0;
}

// Writes the error to the log. Returns the exit code.
static int cmd_serve_failed(struct serve *serve, const struct error *err)
{
    log_line(&serve->log, LOG_LEVEL_ERROR, "%s", err->text);
    return 1;
}

// Serves once everything is open. Returns the exit code.
static int cmd_serve_run(struct serve *serve, int signal_fd)
{
    const struct server_options server_options = {
        .exports = &serve->exports,
        .access = &serve->access,
        .tls = serve->tls,
        .tls_required = serve->options->tls_mode == SERVE_TLS_REQUIRE,
        .exit_with_last_client = serve->options->exit_with_last_client,
        .listeners = &serve->listeners,
        .client_fd = serve->client != NULL ? serve->client->fd : -1,
        .runq = &serve->runq,
        .backend = serve->backend,
        .log = &serve->log,
        .signal_fd = signal_fd,
        .connections_max = serve->options->connections_max,
        .keepalive = serve->options->keepalive,
        .poll_max_ns = serve->options->poll_max_ns,
        .ready = on_ready,
        .context = serve,
    };
    struct pid_file pid_file = {.fd = -1};
    struct error err;
    int code = 0;

    // Before privileges are dropped, because the directory often belongs to root.
    if (serve->options->pid_file != NULL &&
        pid_file_take(&pid_file, serve->options->pid_file, &err) < 0) {
        return cmd_serve_failed(serve, &err);
    }
    if (drop_privileges(serve, &err) < 0 || limits_check_files(0, &err) < 0 ||
        backend_prepare(serve->backend, &err) < 0 || server_run(&server_options, &err) < 0) {
        code = cmd_serve_failed(serve, &err);
    }
    if (exports_finish(&serve->exports) < 0) {
        code = 1; // the log has the reason
    }
    if (code == 0) {
        code = account_for_skipped(serve);
    }
    pid_file_drop(&pid_file);
    return code;
}

// Builds the rules about which peer may use which export.
static int open_access(struct serve *serve, struct error *err)
{
    const struct serve_options *options = serve->options;
    int result = access_init(&serve->access, &serve->exports, NULL, 0, err);

    for (size_t i = 0; result == 0 && i < options->tls_allow_count; i++) {
        result =
            access_add(&serve->access, options->tls_allow[i].name, options->tls_allow[i].text, err);
    }
    return result;
}

// Opens everything but the images, which are open already, serves, and closes it. Returns the exit
// code.
static int open_rest_and_run(struct serve *serve, unsigned activated, int signal_fd)
{
    const struct serve_options *options = serve->options;
    struct error err;
    int result;
    int code;

    if (open_access(serve, &err) < 0) {
        access_destroy(&serve->access);
        return cmd_serve_failed(serve, &err);
    }
    result = open_tls(serve, &err);
    if (result == 0) {
        result = privileges_find(&serve->privileges, options->user, options->group, &err);
    }
    if (result == 0) {
        result = open_listeners(serve, activated, &err);
    }
    if (result < 0) {
        code = cmd_serve_failed(serve, &err);
        // A stop that was asked for while waiting is no failure.
        code = result == -EINTR ? 0 : code;
    } else {
        start_watch_end(&serve->watch);
        code = cmd_serve_run(serve, signal_fd);
        listeners_close(&serve->listeners);
    }
    tls_server_free(serve->tls);
    access_destroy(&serve->access);
    return code;
}

// Opens the planned exports and the rest, serves, and closes everything. Returns the exit code.
static int serve_plans(struct serve *serve, unsigned activated, int signal_fd)
{
    const struct serve_options *options = serve->options;
    struct error err;
    int code;

    serve->backend = backend_new(options->aio, &serve->runq, &err);
    if (serve->backend == NULL) {
        return cmd_serve_failed(serve, &err);
    }
    backend_set_map_max(serve->backend, options->mmap_bytes);
    if (exports_open(&serve->exports, &serve->plans, options->skip_broken, options->connections_max,
                     serve->backend, &serve->workers, &serve->log, &err) < 0) {
        backend_free(serve->backend);
        return cmd_serve_failed(serve, &err);
    }
    code = open_rest_and_run(serve, activated, signal_fd);
    exports_close(&serve->exports);
    backend_free(serve->backend);
    return code;
}

// Refuses images that standard output or the log would be written into, before the first line is
// written.
static int check_outputs(const struct export_plans *plans, struct error *err)
{
    int result = 0;

    for (size_t i = 0; result == 0 && i < plans->count; i++) {
        result = file_in_use_by_output(plans->list[i].path, err);
    }
    return result;
}

// Makes the exports with their settings, which may add to the options.
static int plan_exports(struct export_plans *plans, struct serve_options *options,
                        struct error *err)
{
    int result =
        export_plans_make(plans, &options->exports, options->images, options->image_count, err);

    if (result < 0) {
        return result;
    }
    result = check_outputs(plans, err);
    if (result == 0) {
        result = serve_set_apply(options, plans, err);
    }
    if (result == 0) {
        result = export_plans_check(plans, err);
    }
    if (result < 0) {
        export_plans_free(plans);
    }
    return result;
}

// Plans the exports and serves them. Returns the exit code.
static int plan_and_serve(struct serve *serve, struct serve_options *options, unsigned activated,
                          int signal_fd)
{
    struct error err;
    int code;

    if (plan_exports(&serve->plans, options, &err) < 0) {
        return cmd_serve_failed(serve, &err);
    }
    code = serve_options_check_tls(options) ? serve_plans(serve, activated, signal_fd) : 1;
    export_plans_free(&serve->plans);
    return code;
}

// Reports an error, unless the report would be written into an image. Returns the exit code.
static int fail_before_plans(struct serve *serve, struct serve_options *options,
                             const struct error *err)
{
    struct error of_plan;

    if (plan_exports(&serve->plans, options, &of_plan) < 0) {
        return cmd_serve_failed(serve, &of_plan);
    }
    export_plans_free(&serve->plans);
    return cmd_serve_failed(serve, err);
}

// Serves the options' exports, to client if it is not NULL. Images are looked at only while
// start_watch waits for signals, because their file system may hang. Returns the exit code.
static int serve(struct serve_options *options, unsigned activated, struct stdio_client *client,
                 int signal_fd)
{
    struct serve serve = {.options = options, .client = client};
    struct error err;
    int code;

    log_init(&serve.log, options->log_level, STDERR_FILENO);
    serve.log.timestamps = options->log_timestamps;
    runq_init(&serve.runq);
    serve.workers.runq = &serve.runq;
    // Each image takes at least one descriptor, and libuv, which aborts without them, takes some
    // later.
    if (limits_check_files((unsigned)options->image_count + OWN_DESCRIPTORS, &err) < 0 ||
        loop_workers_open(&serve.workers, &err) < 0) {
        return fail_before_plans(&serve, options, &err);
    }
    if (start_watch_begin(&serve.watch, &serve.workers, &err) == 0) {
        code = plan_and_serve(&serve, options, activated, signal_fd);
        start_watch_end(&serve.watch);
    } else {
        code = fail_before_plans(&serve, options, &err);
    }
    loop_workers_close(&serve.workers);
    return code;
}

// As serve(), but with the client at standard input and output if the options ask for it.
static int serve_clients(struct serve_options *options, unsigned activated, int signal_fd)
{
    struct stdio_client client;
    struct error err;
    int code;

    if (!options->listen.stdio) {
        return serve(options, activated, NULL, signal_fd);
    }
    if (activated > 0) {
        // libnbd's tools hand a socket over to the server that they start.
        options->exit_with_last_client = true;
        return serve(options, activated, NULL, signal_fd);
    }
    // Refuses a second connection, and tells the client so: standard input and output carry only
    // one.
    options->connections_max = 1;
    // Taken before anything is printed, because standard output may be the client's.
    if (stdio_client_take(&client, &err) < 0) {
        return cmd_fail("%s", err.text);
    }
    code = serve(options, 0, &client, signal_fd);
    stdio_client_finish(&client);
    return code;
}

int cmd_serve(int argc, char **argv)
{
    // First, so that a signal that comes from now on stops the server in good order.
    int signal_fd = loop_block_signals();
    unsigned activated = listen_activated();
    struct serve_options options;
    int code;

    if (signal_fd < 0) {
        return cmd_fail("cannot receive signals: %s", strerror(-signal_fd));
    }
    switch (serve_options_parse(&options, argc, argv)) {
    case SERVE_PARSE_RUN:
        code = serve_clients(&options, activated, signal_fd);
        break;
    case SERVE_PARSE_DONE:
        code = 0;
        break;
    default:
        code = 1;
        break;
    }
    close(signal_fd);
    return code;
}
