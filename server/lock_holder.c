// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE 1 // openat, dirfd
#include "server/lock_holder.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/file_lock.h"

// Most descriptors that are examined, at some 10 us each, so that the search ends within a second.
#define DESCRIPTORS_MAX 65536
// Length of "/proc/PID/fdinfo/FD" and the like.
#define PROC_PATH_MAX 64
#define LINE_BYTES_MAX 256

struct search {
    struct stat file;
    bool only_writers;
    // Descriptors examined so far.
    unsigned descriptors;
};

// Parses one line of fdinfo, "lock:\t1: OFDLCK ADVISORY READ -1 fd:00:5432170 100 103". Returns
// true if it is a lock of the searched inode on one of the image lock bytes.
static bool is_image_lock(const struct search *search, const char *line, bool *writes)
{
    char kind[16], mode[16], access[16], end_text[24];
    unsigned long id, major, minor;
    long pid;
    uint64_t inode, start;

    if (sscanf(line, "lock: %lu: %15s %15s %15s %ld %lx:%lx:%" SCNu64 " %" SCNu64 " %23s", &id,
               kind, mode, access, &pid, &major, &minor, &inode, &start, end_text) != 10 ||
        inode != (uint64_t)search->file.st_ino) {
        return false;
    }
    uint64_t end = strcmp(end_text, "EOF") == 0 ? UINT64_MAX : strtoull(end_text, NULL, 10);
    if (start > FILE_LOCK_BYTE_LAST || end < FILE_LOCK_BYTE_FIRST) {
        return false;
    }
    *writes |= strcmp(access, "WRITE") == 0 ||
               (start <= FILE_LOCK_BYTE_WRITES && end >= FILE_LOCK_BYTE_WRITES);
    return true;
}

// Returns true if the descriptor holds locks on the image.
static bool holds_lock(const struct search *search, const char *pid, const char *fd, bool *writes)
{
    char path[PROC_PATH_MAX];
    char line[LINE_BYTES_MAX];
    bool found = false;
    FILE *info;

    snprintf(path, sizeof(path), "/proc/%.16s/fdinfo/%.16s", pid, fd);
    info = fopen(path, "re");
    if (info == NULL) {
        return false;
    }
    *writes = false;
    while (fgets(line, sizeof(line), info) != NULL) {
        found |= is_image_lock(search, line, writes);
    }
    fclose(info);
    return found && (*writes || !search->only_writers);
}

// Returns true if the descriptor leads to the searched file. A lock alone does not tell: inode
// numbers repeat on other file systems, and the device number in a lock may differ from that of
// stat(2).
static bool is_searched_file(const struct search *search, int directory, const char *fd)
{
    struct stat st;

    return fstatat(directory, fd, &st, 0) == 0 && st.st_dev == search->file.st_dev &&
           st.st_ino == search->file.st_ino;
}

static void read_command(const char *pid, char command[LOCK_HOLDER_COMMAND_MAX])
{
    char path[PROC_PATH_MAX];
    ssize_t length = -1;
    int fd;

    snprintf(path, sizeof(path), "/proc/%.16s/comm", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, command, LOCK_HOLDER_COMMAND_MAX - 1);
        close(fd);
    }
    command[length > 0 ? length : 0] = '\0';
    command[strcspn(command, "\n")] = '\0';
    for (char *c = command; *c != '\0'; c++) {
        *c = isprint((unsigned char)*c) ? *c : '?';
    }
}

static bool search_process(struct search *search, const char *pid, struct lock_holder *holder)
{
    char path[PROC_PATH_MAX];
    bool found = false;
    struct dirent *entry;
    DIR *descriptors;

    snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
    descriptors = opendir(path);
    if (descriptors == NULL) {
        return false;
    }
    while (!found && search->descriptors < DESCRIPTORS_MAX &&
           (entry = readdir(descriptors)) != NULL) {
        char target[2];

        if (!isdigit((unsigned char)entry->d_name[0])) {
            continue;
        }
        search->descriptors++;
        // Sockets and pipes have no path.
        found = readlinkat(dirfd(descriptors), entry->d_name, target, sizeof(target)) > 0 &&
                target[0] == '/' && holds_lock(search, pid, entry->d_name, &holder->writes) &&
                is_searched_file(search, dirfd(descriptors), entry->d_name);
    }
    closedir(descriptors);
    if (found) {
        holder->pid = (pid_t)atol(pid);
        read_command(pid, holder->command);
    }
    return found;
}

bool lock_holder_find(int fd, bool only_writers, struct lock_holder *holder)
{
    struct search search = {.only_writers = only_writers};
    bool found = false;
    struct dirent *entry;
    DIR *processes;

    if (fstat(fd, &search.file) < 0 || (processes = opendir("/proc")) == NULL) {
        return false;
    }
    while (!found && search.descriptors < DESCRIPTORS_MAX && (entry = readdir(processes)) != NULL) {
        found = isdigit((unsigned char)entry->d_name[0]) &&
                search_process(&search, entry->d_name, holder);
    }
    closedir(processes);
    return found;
}
