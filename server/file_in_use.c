// SPDX-License-Identifier: Apache-2.0
#include "server/file_in_use.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2/format/backing_name.h"

// Entries of the list at first; it doubles whenever it is full.
#define FILES_FIRST 16

// Finds the storage behind a name. Returns false for a file that has no name any more: this process
// opened no other file by it.
static bool find_storage(const char *name, struct storage *storage)
{
    struct stat st;

    if (stat(backing_name_path(name), &st) < 0) {
        return false;
    }
    *storage = storage_of(&st);
    return true;
}

int files_in_use_add(struct files_in_use *files, const char *name, bool read_only,
                     struct error *err)
{
    struct storage storage;

    if (!find_storage(name, &storage)) {
        return 0;
    }
    for (size_t i = 0; i < files->count; i++) {
        if ((!read_only || files->list[i].writable) &&
            storage_overlaps(&storage, &files->list[i].storage)) {
            return error_set(err, EBUSY,
                             "%s: is given twice, or stands in the backing chain of another image "
                             "of this command; name it once",
                             name);
        }
    }
    if (files->count == files->room) {
        size_t room = files->room > 0 ? 2 * files->room : FILES_FIRST;
        struct file_in_use *grown = realloc(files->list, room * sizeof(*grown));

        if (grown == NULL) {
            return error_set(err, ENOMEM, "%s: out of memory", name);
        }
        files->list = grown;
        files->room = room;
    }
    files->list[files->count++] = (struct file_in_use){.storage = storage, .writable = !read_only};
    return 0;
}

void files_in_use_keep(struct files_in_use *files, size_t count)
{
    assert(count <= files->count);
    files->count = count;
}

void files_in_use_free(struct files_in_use *files)
{
    free(files->list);
    *files = (struct files_in_use){0};
}

// Returns true if output to fd is written into the file.
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

// Directs fd elsewhere, because even the error message would be written into the file. If standard
// output is a terminal, it replaces standard error.
static void end_output(int fd)
{
    int other = fd == STDERR_FILENO && isatty(STDOUT_FILENO)
                    ? dup(STDOUT_FILENO)
                    : open("/dev/null", O_WRONLY | O_CLOEXEC);

    if (other < 0 || dup2(other, fd) < 0) {
        close(fd);
    }
    if (other >= 0) {
        close(other);
    }
}

int file_in_use_by_output(const char *name, struct error *err)
{
    struct storage storage;
    int result = 0;

    if (!find_storage(name, &storage)) {
        return 0;
    }
    for (int output = STDOUT_FILENO; output <= STDERR_FILENO; output++) {
        if (is_printed_to(&storage, output)) {
            result = error_set(err, EBUSY, "%s: standard %s goes to this image; send it elsewhere",
                               name, output == STDOUT_FILENO ? "output" : "error");
            end_output(output);
        }
    }
    return result;
}
