// SPDX-License-Identifier: Apache-2.0
// slow_sync.c: for LD_PRELOAD. Makes every barrier take SLOW_SYNC_MS milliseconds, so that requests
// are in flight at any moment, on any disk.
#define _GNU_SOURCE // RTLD_NEXT
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int slowly(const char *name, int fd)
{
    const char *text = getenv("SLOW_SYNC_MS");
    long milliseconds = text != NULL ? atol(text) : 0;
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    int (*sync_file)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    nanosleep(&pause, NULL);
    return sync_file(fd);
}

int fdatasync(int fd)
{
    return slowly("fdatasync", fd);
}

int fsync(int fd)
{
    return slowly("fsync", fd);
}
