// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOLDER_BYTES 64
#define PATH_BYTES (FOLDER_BYTES + 16)

static bool save(const struct memory *memory, const char *folder, const char *name)
{
    char path[PATH_BYTES];
    unsigned char page[MEMORY_PAGE_BYTES];
    bool good = true;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)memory->size) < 0)
        return false;
    for (uint64_t at = 0; good && at < memory->size;) {
        uint64_t length;

        if (!memory_hole(memory, at, &length)) {
            length = length < sizeof(page) ? length : sizeof(page);
            memory_read(memory, page, at, length);
            good = pwrite(fd, page, length, (off_t)at) == (ssize_t)length;
        }
        at += length;
    }
    close(fd);
    return good;
}

// Runs qemu-img in the folder; its output goes to the file "said". Returns its exit code.
static int qemu_img(const char *folder, const char *const arguments[])
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        int fd;

        if (chdir(folder) < 0 || (fd = open("said", O_WRONLY | O_CREAT | O_TRUNC, 0600)) < 0)
            _exit(126);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execvp("qemu-img", (char *const *)arguments);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}

static void complain(struct run *run, const char *folder, const char *what, int code)
{
    char path[PATH_BYTES];
    char said[256] = "";
    size_t length = 0;

    snprintf(path, sizeof(path), "%s/said", folder);
    FILE *file = fopen(path, "r");
    if (file) {
        length = fread(said, 1, sizeof(said) - 1, file);
        fclose(file);
    }
    said[length] = '\0';
    sim_fail(&run->sim, "qemu-img %s ends with %d: %s", what, code, said);
}

static void compare(struct run *run, const struct reader *reader, const char *folder)
{
    char path[PATH_BYTES];
    unsigned char *ours = malloc(2 * reader->cluster_size);
    unsigned char *theirs = ours + reader->cluster_size;

    snprintf(path, sizeof(path), "%s/raw", folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !ours)
        abort();
    for (unsigned i = 0; i < run->scenario.image.zone_count; i++) {
        const struct forge_zone *zone = &run->scenario.image.zones[i];
        uint64_t end = zone->offset + zone->length;

        // qemu-img knows whole sectors only.
        end -= end % SIM_SECTOR;
        for (uint64_t at = zone->offset; at < end; at += reader->cluster_size) {
            uint64_t length = end - at < reader->cluster_size ? end - at : reader->cluster_size;

            reader_cluster(reader, &reader->active, at >> reader->cluster_bits, ours);
            if (pread(fd, theirs, length, (off_t)at) != (ssize_t)length ||
                memcmp(ours, theirs, length) != 0)
                sim_fail(&run->sim, "qemu-img reads something else at guest offset %llu",
                         (unsigned long long)at);
        }
    }
    close(fd);
    free(ours);
}

static void judge_in(struct run *run, const struct reader *reader, bool clean, const char *folder)
{
    static const char *const check[] = {"qemu-img", "check", "-f", "qcow2", "image", NULL};
    static const char *const repair[] = {"qemu-img", "check", "-r",    "all",
                                         "-f",       "qcow2", "image", NULL};
    static const char *const convert[] = {"qemu-img", "convert", "-f",  "qcow2", "-O",
                                          "raw",      "image",   "raw", NULL};
    int code;

    if (clean && (code = qemu_img(folder, check)) != 0)
        complain(run, folder, "check", code);
    // The exit code of a repair tells its findings, too. The check after it must find nothing.
    qemu_img(folder, repair);
    if ((code = qemu_img(folder, check)) != 0)
        complain(run, folder, "check after check -r all", code);
    if ((code = qemu_img(folder, convert)) != 0)
        complain(run, folder, "convert", code);
    else
        compare(run, reader, folder);
}

static bool save_all(struct run *run, const struct reader *reader, const char *folder)
{
    bool good = save(reader->memory, folder, "image");

    for (unsigned i = 0; i < run->scenario.depth; i++)
        good = good && save(&run->backing_disks[i].live, folder, run->scenario.backings[i].name);
    return good;
}

static void delete (const char *folder, const char *name)
{
    char path[PATH_BYTES];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

void qemu_judge(struct run *run, const struct reader *reader, bool clean)
{
    char folder[FOLDER_BYTES] = "/tmp/lazycow-sim-XXXXXX";

    if (!mkdtemp(folder) || !save_all(run, reader, folder))
        sim_fail(&run->sim, "cannot write the state for qemu-img: %s", strerror(errno));
    else
        judge_in(run, reader, clean, folder);
    delete (folder, "image");
    delete (folder, "raw");
    delete (folder, "said");
    for (unsigned i = 0; i < run->scenario.depth; i++)
        delete (folder, run->scenario.backings[i].name);
    rmdir(folder);
}
