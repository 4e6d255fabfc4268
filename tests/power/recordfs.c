// SPDX-License-Identifier: Apache-2.0
// recordfs.c: a file system over a directory that records everything that a power cut could lose.
// All calls go to real files below. Every change of a file and every barrier is also appended to a
// log, with its beginning and its end, so that the log has the order in which the kernel saw them.
//
//   recordfs [FUSE options] LOWER LOG MOUNTPOINT        (in the foreground with -f)
//   --barrier-us=N    a barrier takes up to so many microseconds (default 0)
//   --write-us=N      one change in eight takes up to so many microseconds
//
// The page cache keeps reads but delays no write: each reaches this process before the system call
// that made it returns. Locks are the kernel's own. Barriers are recorded, not passed on: the file
// system below does not have to be slow.
//
// The kernel holds an inode's lock through a barrier, so that changes which a process begins
// meanwhile come after it. The ioctl BARRIER is a barrier without that lock: barrier_ioctl.c turns
// the fdatasync of a program into it.
#define _GNU_SOURCE 1 // fallocate
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "tests/power/recordfs.h"

struct options {
    unsigned barrier_us;
    unsigned write_us;
};

static struct options options;
static int lower = -1;
static int log_fd = -1;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint_fast64_t next_id = 1;

static const struct fuse_opt option_table[] = {
    {"--barrier-us=%u", offsetof(struct options, barrier_us), 0},
    {"--write-us=%u", offsetof(struct options, write_us), 0},
    FUSE_OPT_END,
};

// ---- The log ------------------------------------------------------------------------------------

// Nothing may happen without a record: if the log fails the file system ends.
static void append(const struct record *record, const char *data)
{
    const struct iovec iov[] = {
        {.iov_base = (void *)record, .iov_len = sizeof(*record)},
        {.iov_base = (void *)data, .iov_len = data != NULL ? record->length : 0},
    };
    ssize_t all = (ssize_t)(iov[0].iov_len + iov[1].iov_len);

    pthread_mutex_lock(&log_lock);
    if (writev(log_fd, iov, 2) != all) {
        perror("recordfs: log");
        abort();
    }
    pthread_mutex_unlock(&log_lock);
}

static void record_end(uint64_t id, int error, uint64_t length)
{
    const struct record record = {
        .kind = RECORD_END, .mode = (uint32_t)error, .id = id, .length = length};

    append(&record, NULL);
}

static uint64_t inode_of(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

static uint64_t record_begin(int fd, struct record record, const char *data)
{
    record.id = atomic_fetch_add(&next_id, 1);
    record.inode = inode_of(fd);
    append(&record, data);
    return record.id;
}

// A random sequence for each thread; it only decides delays.
static unsigned draw(void)
{
    static _Thread_local unsigned state;

    if (state == 0)
        state = (unsigned)(uintptr_t)&state | 1;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void dawdle(unsigned most_us)
{
    if (most_us > 0)
        usleep(draw() % most_us);
}

static void dawdle_in_change(void)
{
    if (draw() % 8 == 0)
        dawdle(options.write_us);
}

static int barrier(int fd)
{
    uint64_t id = record_begin(fd, (struct record){.kind = RECORD_BARRIER}, NULL);

    dawdle(options.barrier_us);
    record_end(id, 0, 0);
    return 0;
}

// ---- Calls that are recorded --------------------------------------------------------------------

static int fs_write(const char *path, const char *data, size_t size, off_t offset,
                    struct fuse_file_info *file)
{
    (void)path;
    const struct record record = {.kind = RECORD_WRITE, .offset = (uint64_t)offset, .length = size};
    int fd = (int)file->fh;
    uint64_t id = record_begin(fd, record, data);
    ssize_t done = pwrite(fd, data, size, offset);
    int error = done < 0 ? errno : 0;

    dawdle_in_change();
    record_end(id, error, done < 0 ? 0 : (uint64_t)done);
    return done < 0 ? -error : (int)done;
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
    const struct record record = {.kind = RECORD_TRUNCATE, .offset = (uint64_t)size};
    int fd = file != NULL ? (int)file->fh : openat(lower, path + 1, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return -errno;
    uint64_t id = record_begin(fd, record, NULL);
    int error = ftruncate(fd, size) != 0 ? errno : 0;

    dawdle_in_change();
    record_end(id, error, 0);
    if (file == NULL)
        close(fd);
    return -error;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t length,
                        struct fuse_file_info *file)
{
    (void)path;
    // The log has no data for it: the length stands in the record only.
    const struct record record = {.kind = RECORD_FALLOCATE,
                                  .mode = (uint32_t)mode,
                                  .offset = (uint64_t)offset,
                                  .length = (uint64_t)length};
    int fd = (int)file->fh;
    uint64_t id = record_begin(fd, record, NULL);
    int error = fallocate(fd, mode, offset, length) != 0 ? errno : 0;

    dawdle_in_change();
    record_end(id, error, 0);
    return -error;
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    (void)path;
    (void)data_only;
    return barrier((int)file->fh);
}

static int fs_ioctl(const char *path, unsigned command, void *argument, struct fuse_file_info *file,
                    unsigned flags, void *data)
{
    (void)path;
    (void)argument;
    (void)flags;
    (void)data;
    return command == RECORDFS_BARRIER ? barrier((int)file->fh) : -ENOTTY;
}

// ---- Calls that only go below -------------------------------------------------------------------

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    connection->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
    config->use_ino = 1;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *file)
{
    int result = file != NULL
                     ? fstat((int)file->fh, st)
                     : fstatat(lower, path[1] != '\0' ? path + 1 : ".", st, AT_SYMLINK_NOFOLLOW);

    return result != 0 ? -errno : 0;
}

static int open_lower(const char *path, int flags, mode_t mode, struct fuse_file_info *file)
{
    // Buffers of requests are not aligned, so direct I/O above is not direct below.
    int fd =
        openat(lower, path + 1, (flags & ~(O_DIRECT | O_APPEND | O_NOFOLLOW)) | O_CLOEXEC, mode);

    if (fd < 0)
        return -errno;
    file->fh = (uint64_t)fd;
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file)
{
    return open_lower(path, file->flags, 0, file);
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
    return open_lower(path, file->flags | O_CREAT, mode, file);
}

static int fs_release(const char *path, struct fuse_file_info *file)
{
    (void)path;
    close((int)file->fh);
    return 0;
}

static int fs_read(const char *path, char *data, size_t size, off_t offset,
                   struct fuse_file_info *file)
{
    (void)path;
    ssize_t done = pread((int)file->fh, data, size, offset);

    return done < 0 ? -errno : (int)done;
}

static off_t fs_lseek(const char *path, off_t offset, int whence, struct fuse_file_info *file)
{
    (void)path;
    off_t found = lseek((int)file->fh, offset, whence);

    return found < 0 ? -errno : found;
}

static int fs_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *file, enum fuse_readdir_flags flags)
{
    (void)path;
    (void)offset;
    (void)file;
    (void)flags;
    int fd = openat(lower, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    if (directory == NULL)
        return -errno;
    while ((entry = readdir(directory)) != NULL)
        fill(buffer, entry->d_name, NULL, 0, 0);
    closedir(directory);
    return 0;
}

static int fs_statfs(const char *path, struct statvfs *st)
{
    (void)path;
    return fstatvfs(lower, st) != 0 ? -errno : 0;
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .open = fs_open,
    .create = fs_create,
    .release = fs_release,
    .read = fs_read,
    .write = fs_write,
    .truncate = fs_truncate,
    .fallocate = fs_fallocate,
    .fsync = fs_fsync,
    .ioctl = fs_ioctl,
    .lseek = fs_lseek,
    .readdir = fs_readdir,
    .statfs = fs_statfs,
};

// Takes LOWER and LOG; other arguments are for the library.
static int take_path(void *context, const char *argument, int key, struct fuse_args *rest)
{
    (void)context;
    (void)rest;
    if (key != FUSE_OPT_KEY_NONOPT)
        return 1;
    if (lower < 0) {
        lower = open(argument, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (lower < 0)
            perror(argument);
        return lower < 0 ? -1 : 0;
    }
    if (log_fd < 0) {
        log_fd = open(argument, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
        if (log_fd < 0)
            perror(argument);
        return log_fd < 0 ? -1 : 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    struct fuse_args arguments = FUSE_ARGS_INIT(argc, argv);

    if (fuse_opt_parse(&arguments, &options, option_table, take_path) != 0)
        return EXIT_FAILURE;
    if (log_fd < 0) {
        fprintf(stderr, "recordfs [options] LOWER LOG MOUNTPOINT\n");
        return EXIT_FAILURE;
    }
    // A killed parent would leave a mount behind.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    umask(0);
    int result = fuse_main(arguments.argc, arguments.argv, &operations, NULL);
    fuse_opt_free_args(&arguments);
    return result;
}
