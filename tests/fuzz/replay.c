// SPDX-License-Identifier: Apache-2.0
// replay.c: runs a fuzzer's entry point over the files of a folder, without a fuzzer, so that every
// build tests a corpus and each input that once failed.
// Usage: PROGRAM [FOLDER]; the default is $top_srcdir/tests/fuzz/corpus/NAME for fuzz_NAME.
#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Most bytes of an input that are read; fuzzers make far smaller ones.
#define REPLAY_MAX (1u << 20)

static int run_file(const char *path)
{
    static uint8_t data[REPLAY_MAX];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    size_t size = fread(data, 1, sizeof(data), file);
    fclose(file);
    // A copy of exactly the input's size, so that a sanitizer sees its end.
    uint8_t *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        perror("malloc");
        return -1;
    }
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    return 0;
}

int main(int argc, char **argv)
{
    char folder[PATH_MAX];
    const char *top = getenv("top_srcdir");
    const char *name = strrchr(argv[0], '_');
    int n = argc > 1 ? snprintf(folder, sizeof(folder), "%s", argv[1])
                     : snprintf(folder, sizeof(folder), "%s/tests/fuzz/corpus/%s",
                                top != NULL ? top : ".", name != NULL ? name + 1 : "");
    DIR *dir = n < (int)sizeof(folder) ? opendir(folder) : NULL;
    if (dir == NULL) {
        perror(folder);
        return 1;
    }
    unsigned files = 0;
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        char path[PATH_MAX + NAME_MAX + 2];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (run_file(path) != 0)
            return 1;
        files++;
    }
    closedir(dir);
    printf("%u inputs of %s\n", files, folder);
    return files > 0 ? 0 : 1;
}
