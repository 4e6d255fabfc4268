// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // pthread_timedjoin_np
#include "server/stdio_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Bytes that are passed on at a time: the size of a pipe.
#define RELAY_BYTES (64u << 10)
// Seconds that a client has to take its last replies; as STOP_DEADLINE_MS of connections.
#define FINISH_SECONDS 3

// ---- The two threads ----------------------------------------------------------------------------

// Waits for a descriptor that another process has made non-blocking. Returns true to try again.
static bool wait_again(int fd, short events)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};

    return errno == EINTR || (errno == EAGAIN && poll(&poll_fd, 1, -1) >= 0);
}

static bool stdio_client_write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);

        if (n >= 0) {
            data += n;
            length -= (size_t)n;
        } else if (!wait_again(fd, POLLOUT)) {
            return false;
        }
    }
    return true;
}

// Passes bytes on until the source ends or the sink takes no more.
static void pass_on(int from, int to)
{
    char buffer[RELAY_BYTES];
    ssize_t n;

    do {
        n = read(from, buffer, sizeof(buffer));
    } while (n > 0 ? stdio_client_write_all(to, buffer, (size_t)n)
                   : n < 0 && wait_again(from, POLLIN));
}

// The thread may wait for the client for longer than the rest of the process lives, so it uses only
// its own copy of these.
struct in_ends {
    int input;
    int relay;
};

static void *pass_in(void *argument)
{
    const struct in_ends ends = *(const struct in_ends *)argument;

    free(argument);
    pass_on(ends.input, ends.relay);
    shutdown(ends.relay, SHUT_WR);
    return NULL;
}

static void *pass_out(void *argument)
{
    const struct stdio_client *client = argument;

    pass_on(client->relay, client->output);
    // The client sees the end now, not only when the images are finished. If the client no longer
    // takes bytes, the connection ends now, too.
    close(client->output);
    shutdown(client->relay, SHUT_RDWR);
    return NULL;
}

static int start_in_thread(const struct stdio_client *client)
{
    struct in_ends *ends = malloc(sizeof(*ends));
    pthread_t thread;
    int error;

    if (ends == NULL) {
        return -ENOMEM;
    }
    *ends = (struct in_ends){.input = client->input, .relay = client->relay};
    error = pthread_create(&thread, NULL, pass_in, ends);
    if (error != 0) {
        free(ends);
        return -error;
    }
    pthread_detach(thread);
    return 0;
}

static int start_threads(struct stdio_client *client)
{
    int error = pthread_create(&client->out_thread, NULL, pass_out, client);
    int result;

    if (error != 0) {
        return -error;
    }
    result = start_in_thread(client);
    if (result < 0) {
        shutdown(client->relay, SHUT_RDWR);
        pthread_join(client->out_thread, NULL);
    }
    return result;
}

// ---- Taking the descriptors ---------------------------------------------------------------------

static bool same_file(int one, int two)
{
    struct stat a;
    struct stat b;

    return fstat(one, &a) == 0 && fstat(two, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

static bool is_socket(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
}

// Refuses an input that cannot be a client. Returns 0, or a negative errno with a message.
static int check_input(struct error *err)
{
    int type = 0;
    int listening = 0;
    socklen_t length = sizeof(int);

    if (isatty(STDIN_FILENO) || isatty(STDOUT_FILENO)) {
        return error_set(err, EINVAL,
                         "--stdio: a terminal is no NBD client; a program starts the server so");
    }
    if (!is_socket(STDIN_FILENO)) {
        return 0;
    }
    (void)getsockopt(STDIN_FILENO, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length);
    length = sizeof(int);
    (void)getsockopt(STDIN_FILENO, SOL_SOCKET, SO_TYPE, &type, &length);
    if (listening) {
        return error_set(err, EINVAL,
                         "--stdio: standard input is a listening socket; inetd needs 'nowait', "
                         "systemd Accept=yes");
    }
    if (type != SOCK_STREAM) {
        return error_set(err, EINVAL, "--stdio: standard input is no stream socket");
    }
    return 0;
}

static int copy_descriptor(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);

    return copy >= 0 ? copy : -errno;
}

// A single socket for both directions becomes the connection.
static int take_socket(struct stdio_client *client)
{
    int flags = fcntl(STDIN_FILENO, F_GETFL);

    if (flags < 0 || fcntl(STDIN_FILENO, F_SETFL, flags | O_NONBLOCK) < 0) {
        return -errno;
    }
    client->fd = copy_descriptor(STDIN_FILENO);
    return client->fd < 0 ? client->fd : 0;
}

// Other descriptors get a socket pair, whose other end two threads connect to them.
static int take_pair(struct stdio_client *client)
{
    int ends[2];
    int flags;

    client->input = copy_descriptor(STDIN_FILENO);
    client->output = copy_descriptor(STDOUT_FILENO);
    if (client->input < 0 || client->output < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        return -errno;
    }
    client->fd = ends[0];
    client->relay = ends[1];
    flags = fcntl(client->fd, F_GETFL);
    if (flags < 0 || fcntl(client->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        return -errno;
    }
    client->relayed = true;
    return start_threads(client);
}

// Points the standard descriptors at /dev/null: nothing printed may come between the replies, and
// the client must see the end when the connection's descriptor is closed.
static int stdio_client_let_go(void)
{
    bool log_too =
        same_file(STDERR_FILENO, STDOUT_FILENO) || same_file(STDERR_FILENO, STDIN_FILENO);
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int result = 0;

    if (fd < 0) {
        return -errno;
    }
    if (dup2(fd, STDIN_FILENO) < 0 || dup2(fd, STDOUT_FILENO) < 0 ||
        (log_too && dup2(fd, STDERR_FILENO) < 0)) {
        result = -errno;
    }
    close(fd);
    return result;
}

int stdio_client_take(struct stdio_client *client, struct error *err)
{
    bool one = is_socket(STDIN_FILENO) && same_file(STDIN_FILENO, STDOUT_FILENO);
    int result = check_input(err);

    if (result < 0) {
        return result;
    }
    *client = (struct stdio_client){.fd = -1};
    result = one ? take_socket(client) : take_pair(client);
    if (result == 0) {
        result = stdio_client_let_go();
    }
    if (result < 0) {
        return error_set(err, -result, "--stdio: cannot take the client: %s", strerror(-result));
    }
    return 0;
}

void stdio_client_finish(struct stdio_client *client)
{
    struct timespec deadline;

    if (!client->relayed) {
        return;
    }
    // Ends the output thread, also if no connection used its socket. Bytes sent before are still
    // passed on.
    shutdown(client->relay, SHUT_RD);
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += FINISH_SECONDS;
    // A thread that does not end in time ends with the process.
    (void)pthread_timedjoin_np(client->out_thread, NULL, &deadline);
}
