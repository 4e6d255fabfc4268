// SPDX-License-Identifier: Apache-2.0
#include "server/listen_unix.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/socket_lock.h"

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
        return 0; // no URI names an abstract or relative path
    }
    listener->family = LISTENER_UNIX;
    path_length = strnlen(address.sun_path, length - offsetof(struct sockaddr_un, sun_path));
    listener->path = strndup(address.sun_path, path_length);
    return listener->path != NULL ? 0 : error_set(err, ENOMEM, "out of memory");
}

// Returns the path as an absolute one, allocated; NULL with errno if there is no such directory.
static char *absolute_path(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    char *directory = slash == NULL   ? strdup(".")
                      : slash == path ? strdup("/")
                                      : strndup(path, (size_t)(slash - path));
    char *real = directory != NULL ? realpath(directory, NULL) : NULL;
    char *absolute = real != NULL ? malloc(strlen(real) + strlen(base) + 2) : NULL;

    if (absolute != NULL) {
        stpcpy(stpcpy(stpcpy(absolute, real), strcmp(real, "/") == 0 ? "" : "/"), base);
    }
    free(directory);
    free(real);
    return absolute;
}

// Returns true if the path is a socket without a listener.
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

// Binds, and replaces a stale socket. Returns 0 or a negative errno.
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
    return result < 0 ? -errno : 0;
}

// Binds so that the path has its mode from the first moment on. Returns 0 or a negative errno.
static int bind_with_mode(int fd, const struct sockaddr_un *address, mode_t mode)
{
    mode_t before;
    int result;

    if (mode == LISTEN_UNIX_AS_IS) {
        return bind_path(fd, address);
    }
    before = umask(0777 & ~mode);
    result = bind_path(fd, address);
    umask(before);
    return result;
}

// Gives the path its group, and its mode if binding has set another one: a directory's default ACL
// overrides the umask. Nobody can connect to the path yet. Returns 0, or a negative errno with a
// message.
static int set_access(const char *path, const struct listen_unix_access *access, struct error *err)
{
    struct stat st;

    if (access->group != LISTEN_UNIX_AS_IS && lchown(path, (uid_t)-1, access->group) < 0) {
        return error_set(err, errno,
                         "'%s': cannot give the socket to group %u: %s; that needs root, or to be "
                         "one of the group",
                         path, access->group, strerror(errno));
    }
    if (access->mode != LISTEN_UNIX_AS_IS &&
        (lstat(path, &st) < 0 ||
         ((st.st_mode & 0777) != access->mode &&
          fchmodat(AT_FDCWD, path, access->mode, AT_SYMLINK_NOFOLLOW) < 0))) {
        return error_set(err, errno, "'%s': cannot set the socket's mode: %s", path,
                         strerror(errno));
    }
    return 0;
}

// Lets clients connect to the path, which is bound. Returns 0, or a negative errno with a message.
static int begin_listening(int fd, const char *path, const struct listen_unix_access *access,
                           struct error *err)
{
    int result = set_access(path, access, err);

    if (result == 0 && listen(fd, SOMAXCONN) < 0) {
        result = error_set(err, errno, "'%s': cannot listen: %s", path, strerror(errno));
    }
    return result;
}

// Explains why the path cannot be bound to.
static int explain_in_use(const char *path, struct error *err)
{
    struct stat st;

    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        return error_set(err, EADDRINUSE, "'%s': exists and is no socket; choose another path",
                         path);
    }
    return error_set(err, EADDRINUSE,
                     "'%s': is in use by another server; stop that, or choose another path", path);
}

// Fills the listener for a path that is locked. Tries the path as it was given, too: a relative one
// may be short enough for an address where the absolute one is not.
static int open_path(struct listener *listener, const char *path,
                     const struct listen_unix_access *access, struct error *err)
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
    result = bind_with_mode(fd, &address, access->mode);
    if (result < 0) {
        close(fd);
        if (result == -EADDRINUSE) {
            return explain_in_use(path, err);
        }
        return error_set(err, -result, "'%s': cannot make the socket: %s", path, strerror(-result));
    }
    result = begin_listening(fd, path, access, err);
    if (result < 0) {
        unlink(path);
        close(fd);
        return result;
    }
    listener->fd = fd;
    if (lstat(path, &st) == 0) {
        listener->unlink = true;
        listener->device = st.st_dev;
        listener->inode = st.st_ino;
    }
    return 0;
}

int listen_unix(struct listeners *listeners, const char *path,
                const struct listen_unix_access *access, struct error *err)
{
    struct listener listener = {.fd = -1, .family = LISTENER_UNIX, .announce = true};
    struct socket_lock lock;
    int result;

    assert(listeners->count < LISTEN_MAX);
    listener.path = absolute_path(path);
    if (listener.path == NULL) {
        return error_set(err, errno,
                         "'%s': the socket's directory cannot be found: %s; make it, or choose "
                         "another path",
                         path, strerror(errno));
    }
    result = socket_lock_take(&lock, listener.path, err);
    if (result == 0) {
        result = open_path(&listener, path, access, err);
        socket_lock_drop(&lock);
    }
    if (result < 0) {
        free(listener.path);
        return result;
    }
    listeners->list[listeners->count++] = listener;
    return 0;
}
