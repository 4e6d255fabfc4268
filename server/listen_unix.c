// SPDX-License-Identifier: Apache-2.0
#include "server/listen_unix.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int listen_prepare(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        return -errno;
    }
    return 0;
}

int listen_unix_name(struct listener *listener, struct error *err)
{
    struct sockaddr_un address = {0};
    socklen_t length = sizeof(address);
    size_t path_length;

    if (getsockname(listener->fd, (struct sockaddr *)&address, &length) < 0) {
        return error_set(err, errno, "descriptor %d: %s", listener->fd, strerror(errno));
    }
    if (length <= offsetof(struct sockaddr_un, sun_path) || address.sun_path[0] != '/') {
        return 0; // abstract or relative: no URI names it
    }
    path_length = strnlen(address.sun_path, length - offsetof(struct sockaddr_un, sun_path));
    listener->path = strndup(address.sun_path, path_length);
    return listener->path != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

void listen_unix_remove(const struct listener *listener)
{
    struct stat st;

    if (lstat(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode) {
        unlink(listener->path);
    }
}

// The directory of a path and the path as an absolute one. Returns the directory's descriptor,
// which is locked until it is closed: two servers that start at once must not both find the same
// socket stale, and the second remove the first one's new socket. -1 (no lock) where the directory
// cannot be opened. *absolute is allocated, or NULL when there is no such directory.
static int lock_directory(const char *path, char **absolute)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    char *directory = slash == NULL   ? strdup(".")
                      : slash == path ? strdup("/")
                                      : strndup(path, (size_t)(slash - path));
    char *real;
    int fd;

    *absolute = NULL;
    if (directory == NULL) {
        return -1;
    }
    real = realpath(directory, NULL);
    free(directory);
    if (real == NULL) {
        return -1;
    }
    *absolute = malloc(strlen(real) + strlen(base) + 2);
    if (*absolute != NULL) {
        stpcpy(stpcpy(stpcpy(*absolute, real), strcmp(real, "/") == 0 ? "" : "/"), base);
    }
    fd = open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(real);
    if (fd >= 0) {
        (void)flock(fd, LOCK_EX);
    }
    return fd;
}

// Whether the path is a socket that nobody listens on any more.
static bool is_stale(const struct sockaddr_un *address)
{
    struct stat st;
    bool stale;
    int fd;

    if (lstat(address->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return false;
    }
    stale = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
            errno == ECONNREFUSED;
    close(fd);
    return stale;
}

// Binds and listens. Returns 0 or a negative errno.
static int bind_path(int fd, const struct sockaddr_un *address)
{
    const struct sockaddr *any = (const struct sockaddr *)address;
    int result = bind(fd, any, sizeof(*address));

    if (result < 0 && errno == EADDRINUSE && is_stale(address)) {
        if (unlink(address->sun_path) < 0 && errno != ENOENT) {
            return -errno;
        }
        result = bind(fd, any, sizeof(*address));
    }
    if (result < 0) {
        return -errno;
    }
    if (listen(fd, SOMAXCONN) < 0) {
        result = -errno;
        unlink(address->sun_path);
    }
    return result;
}

// Fills the listener for a path whose directory is locked. The path is tried as it was given, too:
// a relative one may be short enough where the absolute one is not.
static int open_path(struct listener *listener, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;
    int fd;
    int result;

    if (strlen(path) >= sizeof(address.sun_path)) {
        return error_set(err, ENAMETOOLONG,
                         "'%s': a socket's path has at most %zu bytes; choose a shorter one, it "
                         "may be relative",
                         path, sizeof(address.sun_path) - 1);
    }
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return error_set(err, errno, "'%s': %s", path, strerror(errno));
    }
    result = bind_path(fd, &address);
    if (result < 0) {
        close(fd);
        if (result == -EADDRINUSE) {
            return error_set(err, EADDRINUSE,
                             "'%s': exists and is in use, or is no socket; choose another path or "
                             "stop the server that uses it",
                             path);
        }
        return error_set(err, -result, "'%s': cannot make the socket: %s", path, strerror(-result));
    }
    listener->fd = fd;
    if (lstat(path, &st) == 0) {
        listener->unlink = true;
        listener->device = st.st_dev;
        listener->inode = st.st_ino;
    }
    return 0;
}

int listen_unix(struct listeners *listeners, const char *path, struct error *err)
{
    struct listener *listener = &listeners->list[0];
    char *absolute;
    int directory = lock_directory(path, &absolute);
    int result;

    *listener = (struct listener){.fd = -1, .announce = true};
    listeners->count = 0;
    if (absolute == NULL) {
        result = error_set(err, ENOENT, "'%s': the socket's directory cannot be found: %s", path,
                           strerror(errno));
    } else {
        result = open_path(listener, path, err);
    }
    if (directory >= 0) {
        close(directory);
    }
    if (result < 0) {
        free(absolute);
        return result;
    }
    listener->path = absolute;
    listeners->count = 1;
    return 0;
}
