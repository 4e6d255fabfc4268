// SPDX-License-Identifier: Apache-2.0
#include "server/file_locking.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/lock_holder.h"

// Time to wait for a lock, in nanoseconds. The files of a killed server, and so its locks, stay
// until the kernel has ended its requests in io_uring, such as a flush. A user who restarts the
// server at once should not get an error.
#define LOCK_WAIT_NS 2000000000
#define LOCK_RETRY_NS 10000000
// Attempts between two searches for the holder among all processes; the first refusal also makes
// one. A process that was found twice, 100 ms apart, is not about to end.
#define LOOK_EVERY 10

bool file_locking_parse(const char *text, enum file_locking *locking)
{
    static const char *const names[] = {
        [FILE_LOCKING_OFF] = "off", [FILE_LOCKING_AUTO] = "auto", [FILE_LOCKING_ON] = "on"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            *locking = (enum file_locking)i;
            return true;
        }
    }
    return false;
}

static int explain_holder(const struct lock_holder *holder, const char *name, struct error *err)
{
    if (holder->pid == getpid()) {
        return error_set(err, EBUSY,
                         "%s: is given twice, or stands in the backing chain of another image of "
                         "this command; name it once",
                         name);
    }
    return error_set(err, EAGAIN, "%s: in use by %s (process %ld), which %s it; stop that first",
                     name, holder->command, (long)holder->pid,
                     holder->writes ? "writes to" : "reads");
}

// Locks the file, or names the holder of the lock. Returns as file_locking_take().
static int lock_or_explain(int fd, enum file_lock_role role, const char *name, struct error *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_RETRY_NS};
    int result = file_lock(fd, role, name, err);

    for (int i = 0; result == -EAGAIN && i < LOCK_WAIT_NS / LOCK_RETRY_NS; i++) {
        struct lock_holder holder;

        if (i % LOOK_EVERY == 0 && lock_holder_find(fd, role == FILE_LOCK_READER, &holder) &&
            (i > 0 || holder.pid == getpid())) {
            return explain_holder(&holder, name, err);
        }
        nanosleep(&pause, NULL);
        result = file_lock(fd, role, name, err);
    }
    return result;
}

// Returns true for the errors of file systems without locks: network and FUSE file systems whose
// server has none, and kernels without locks of open file descriptions.
static bool means_no_locks(int result)
{
    return result == -ENOLCK || result == -EOPNOTSUPP || result == -ENOSYS || result == -EINVAL;
}

int file_locking_take(int fd, enum file_lock_role role, enum file_locking locking, const char *name,
                      file_locking_warn *warn, void *context, struct error *err)
{
    int result = locking == FILE_LOCKING_OFF ? 0 : lock_or_explain(fd, role, name, err);

    if (result == 0 || result == -EAGAIN || result == -EBUSY) {
        return result;
    }
    if (!means_no_locks(result)) {
        error_append(err, "; --locking=off takes no locks, where nothing else uses the image");
        return result;
    }
    if (locking == FILE_LOCKING_ON) {
        error_append(err, "; its file system has no locks: where nothing else uses the image, "
                          "leave --locking=on out");
        return result;
    }
    if (warn != NULL) {
        error_append(err, "; its file system has no locks, so nothing keeps other programs from "
                          "using the image (--locking=off takes none, --locking=on insists)");
        warn(context, err->text);
    }
    return 0;
}
