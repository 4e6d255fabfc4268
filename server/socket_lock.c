// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // asprintf
#include "server/socket_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// Milliseconds to wait for the lock. A server holds it for a few system calls; one that holds it
// for seconds is stopped, or hangs in its file system.
#define LOCK_WAIT_MS 2000
#define LOCK_RETRY_MS 10

static bool stop_is_pending(void)
{
    sigset_t pending;

    return sigpending(&pending) == 0 &&
           (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

// Returns true if the file looks like one that try_lock() made: empty, ours, with one name.
static bool is_lock_file(const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_size == 0 && st->st_uid == geteuid() && st->st_nlink <= 1;
}

// Opens the file and tries to lock it. Returns 0, -EAGAIN if it should be tried again, or another
// negative errno with a message.
static int try_lock(struct socket_lock *lock, struct error *err)
{
    struct stat st;
    struct stat named;
    int fd =
        open(lock->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);

    if (fd < 0) {
        return error_set(err, errno, "'%s': cannot make the lock file of the socket: %s",
                         lock->path, strerror(errno));
    }
    if (fstat(fd, &st) < 0 || !is_lock_file(&st)) {
        close(fd);
        // A file without a name passes is_lock_file(): its holder has just removed it.
        return error_set(err, EEXIST,
                         "'%s': is no lock file of ours, but lies where one is needed; remove it, "
                         "or choose another path for the socket",
                         lock->path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        close(fd);
        return -EAGAIN;
    }
    // Other errors of flock() mean a file system without locks: it cannot keep two servers from
    // starting at once.
    if (lstat(lock->path, &named) < 0 || named.st_dev != st.st_dev || named.st_ino != st.st_ino) {
        close(fd);
        // The last holder has removed the file.
        return -EAGAIN;
    }
    lock->fd = fd;
    return 0;
}

int socket_lock_take(struct socket_lock *lock, const char *socket_path, struct error *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_RETRY_MS * 1000000};
    const char *slash = strrchr(socket_path, '/');
    int result = -EAGAIN;

    lock->fd = -1;
    if (asprintf(&lock->path, "%.*s/.%s.lazycow-lock", (int)(slash - socket_path), socket_path,
                 slash + 1) < 0) {
        lock->path = NULL;
        return error_set(err, ENOMEM, "out of memory");
    }
    for (int i = 0; i < LOCK_WAIT_MS / LOCK_RETRY_MS; i++) {
        result = try_lock(lock, err);
        if (result != -EAGAIN) {
            break;
        }
        if (stop_is_pending()) {
            result = error_set(err, EINTR, "'%s': stopped while waiting for '%s'", socket_path,
                               lock->path);
            break;
        }
        nanosleep(&pause, NULL);
    }
    if (result == -EAGAIN) {
        error_set(err, EAGAIN,
                  "'%s': '%s' is locked by another process, a server that starts there and hangs; "
                  "stop that (fuser tells which), or choose another path",
                  socket_path, lock->path);
    }
    if (result < 0) {
        free(lock->path);
        lock->path = NULL;
    }
    return result;
}

void socket_lock_drop(struct socket_lock *lock)
{
    if (lock->fd >= 0) {
        unlink(lock->path);
        close(lock->fd);
    }
    free(lock->path);
    *lock = (struct socket_lock){.fd = -1};
}
