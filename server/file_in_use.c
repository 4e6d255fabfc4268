// SPDX-License-Identifier: Apache-2.0
#include "server/file_in_use.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/file_posix.h"
#include "server/storage.h"

// Whether what is printed there would be written into the file.
static bool is_printed_to(const struct storage *storage, int fd)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || fstat(fd, &st) < 0 ||
        (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))) {
        return false;
    }
    const struct storage printed = storage_of(&st);
    return storage_overlaps(storage, &printed);
}

int file_in_use_check(const struct backend *backend, int fd, bool read_only, const char *path,
                      struct error *err)
{
    const struct posix_file *file;
    struct storage storage;
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return error_set(err, errno, "%s: %s", path, strerror(errno));
    }
    storage = storage_of(&st);
    LIST_FOREACH (file, &backend->files, files_link) {
        if ((!read_only || !file->file.read_only) && storage_overlaps(&storage, &file->storage)) {
            return error_set(err, EBUSY,
                             "%s: is given twice, or stands in the backing chain of another image "
                             "of this command; name it once",
                             path);
        }
    }
    for (int output = STDOUT_FILENO; output <= STDERR_FILENO; output++) {
        if (is_printed_to(&storage, output)) {
            return error_set(err, EBUSY, "%s: standard %s goes to this image; send it elsewhere",
                             path, output == STDOUT_FILENO ? "output" : "error");
        }
    }
    return 0;
}
