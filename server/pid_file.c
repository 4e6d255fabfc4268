// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // F_OFD_SETLK
#include "server/pid_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Bytes of a pid file: a number of at most ten digits, spaces that some programs put around it, and
// a newline. A longer file is something else.
#define PID_TEXT_MAX 32

// Tries to open the file anew because its holder has removed it. Each time another server must have
// ended between two of our system calls.
#define PID_FILE_TRIES 16

static int no_pid_file(const char *path, const char *is, struct error *err)
{
    return error_set(err, EINVAL, "--pid-file '%s': is %s; choose another path", path, is);
}

static int cannot(const char *path, int code, struct error *err)
{
    return error_set(err, code, "--pid-file '%s': cannot write it: %s", path, strerror(code));
}

static int pid_file_check_type(const char *path, const struct stat *st, struct error *err)
{
    if (S_ISREG(st->st_mode)) {
        return 0;
    }
    return no_pid_file(path,
                       S_ISDIR(st->st_mode)    ? "a directory"
                       : S_ISSOCK(st->st_mode) ? "a socket"
                                               : "no regular file",
                       err);
}

// Opens the file, or makes it. Sets *made. Returns the descriptor or a negative errno.
static int pid_file_open_one(const char *path, bool *made, struct error *err)
{
    struct stat st;
    int result;
    int fd;

    // Opening a FIFO would wait, and opening a device could trigger it.
    if (stat(path, &st) == 0) {
        result = pid_file_check_type(path, &st, err);
        if (result < 0) {
            return result;
        }
    }
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    *made = fd >= 0;
    if (fd < 0 && errno == EEXIST) {
        // Another process has made the file since, or the path is a dangling link.
        fd = open(path, O_RDWR | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
    }
    if (fd < 0) {
        return cannot(path, errno, err);
    }
    result = fstat(fd, &st) < 0 ? cannot(path, errno, err) : pid_file_check_type(path, &st, err);
    if (result < 0) {
        close(fd);
        return result;
    }
    return fd;
}

// Reads the number; 0 if the file is empty. Returns -EINVAL if it holds anything else.
static int read_number(int fd, const char *path, long *number, struct error *err)
{
    char text[PID_TEXT_MAX + 1];
    ssize_t length = pread(fd, text, sizeof(text), 0);
    size_t digits;

    if (length < 0) {
        return cannot(path, errno, err);
    }
    if (length > PID_TEXT_MAX) {
        return no_pid_file(path, "no pid file but something longer", err);
    }
    text[length] = '\0';
    digits = strspn(text, " ");
    digits += strspn(text + digits, "0123456789");
    digits += strspn(text + digits, " \r\n");
    if (digits != (size_t)length) {
        return no_pid_file(path, "no pid file: it holds more than a number", err);
    }
    *number = strtol(text, NULL, 10);
    return 0;
}

// Locks the whole file as QEMU's qemu_write_pidfile() does. Returns 0, -EAGAIN if another process
// holds a lock, or another negative errno.
static int lock(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    while (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        if (errno == EACCES) {
            return -EAGAIN;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int write_number(int fd, const char *path, struct error *err)
{
    char text[PID_TEXT_MAX];
    int length = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
    ssize_t written = ftruncate(fd, 0) < 0 ? -1 : pwrite(fd, text, (size_t)length, 0);

    return written == length ? 0 : cannot(path, written < 0 ? errno : ENOSPC, err);
}

// Returns true if the path leads to the open file.
static bool leads_to(const char *path, int fd)
{
    struct stat named;
    struct stat open;

    return stat(path, &named) == 0 && fstat(fd, &open) == 0 && named.st_dev == open.st_dev &&
           named.st_ino == open.st_ino;
}

static int refuse_held(const char *path, long number, struct error *err)
{
    if (number > 0) {
        return error_set(err, EBUSY,
                         "--pid-file '%s': process %ld runs with it; stop that, or choose another "
                         "path",
                         path, number);
    }
    return error_set(err, EBUSY,
                     "--pid-file '%s': another process that starts just now runs with it; choose "
                     "another path",
                     path);
}

// Locks the open file and writes it. Returns 0, 1 if the file was removed meanwhile, or a negative
// errno with a message.
static int take_open(struct pid_file *pid_file, const char *path, int fd, struct error *err)
{
    long number = 0;
    int result = read_number(fd, path, &number, err);

    if (result < 0) {
        return result;
    }
    result = lock(fd);
    // On a file system without locks two servers can share the file, which is better than having
    // none.
    if (result < 0 && result != -ENOLCK && result != -EOPNOTSUPP && result != -EINVAL) {
        return result == -EAGAIN ? refuse_held(path, number, err) : cannot(path, -result, err);
    }
    if (!leads_to(path, fd)) {
        return 1;
    }
    // Read under the lock, because the last holder may have written before it.
    result = read_number(fd, path, &number, err);
    if (result < 0) {
        return result;
    }
    pid_file->path = realpath(path, NULL);
    result = pid_file->path != NULL ? write_number(fd, path, err) : cannot(path, errno, err);
    if (result < 0) {
        (void)!ftruncate(fd, 0); // half a number is no pid file
        free(pid_file->path);
        pid_file->path = NULL;
        return result;
    }
    pid_file->fd = fd;
    return 0;
}

int pid_file_take(struct pid_file *pid_file, const char *path, struct error *err)
{
    *pid_file = (struct pid_file){.fd = -1};
    for (int i = 0; i < PID_FILE_TRIES; i++) {
        bool made;
        int fd = pid_file_open_one(path, &made, err);
        int result;

        if (fd < 0) {
            return fd;
        }
        result = take_open(pid_file, path, fd, err);
        if (result == 0) {
            return 0;
        }
        if (result < 0 && made && leads_to(path, fd)) {
            unlink(path);
        }
        close(fd);
        if (result < 0) {
            return result;
        }
    }
    return cannot(path, ESTALE, err);
}

void pid_file_drop(struct pid_file *pid_file)
{
    if (pid_file->fd < 0) {
        return;
    }
    if (leads_to(pid_file->path, pid_file->fd) && unlink(pid_file->path) < 0) {
        (void)!ftruncate(pid_file->fd, 0);
    }
    close(pid_file->fd);
    free(pid_file->path);
    *pid_file = (struct pid_file){.fd = -1};
}
