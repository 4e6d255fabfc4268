// SPDX-License-Identifier: Apache-2.0
// guest_files.c: random operations on the files of a directory, and a model of their content.
// Usage: guest_files run DIRECTORY MODEL SEED COUNT     continues from MODEL, or creates it
//        guest_files verify DIRECTORY MODEL             later, for example after umount and mount
// MODEL is a file elsewhere. Ends with 0 if every file agrees with the model.
#define _GNU_SOURCE // fallocate
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 16
#define FILE_MAX (512u << 10)
#define CHANGE_MAX (64u << 10)

struct file {
    uint32_t name; // 0: there is no such file
    uint32_t size;
    uint8_t data[FILE_MAX]; // zeros behind size
};

struct model {
    uint32_t last_name;
    struct file files[FILES];
};

static struct model *model;
static const char *directory;
static uint64_t random_state;

static void must(int condition, const char *what, const struct file *file)
{
    if (condition)
        return;
    printf("guest_files: %s, f%u: %s\n", what, file ? file->name : 0, strerror(errno));
    exit(1);
}

// xorshift64*
static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % limit;
}

static const char *path_of(const struct file *file)
{
    static char path[4096];

    snprintf(path, sizeof(path), "%s/f%u", directory, file->name);
    return path;
}

static int open_file(const struct file *file, int flags)
{
    int fd = open(path_of(file), flags, 0644);

    must(fd >= 0, "open", file);
    return fd;
}

// A range inside the largest size.
static void random_range(uint32_t *offset, uint32_t *length)
{
    *offset = random_below(FILE_MAX - 1);
    *length = 1 + random_below(CHANGE_MAX);
    if (random_below(3) == 0) {
        *offset &= ~4095u;
        *length = (*length + 4095) & ~4095u;
    }
    if (*length > FILE_MAX - *offset)
        *length = FILE_MAX - *offset;
}

static void fill(uint8_t *data, uint32_t length)
{
    uint32_t value = random_below(1u << 30);

    for (uint32_t i = 0; i < length; i++)
        data[i] = (uint8_t)((value + i) * 2654435761u >> 13);
}

static void grow(struct file *file, uint32_t size)
{
    if (file->size < size)
        file->size = size;
}

// ---- Operations ---------------------------------------------------------------------------------

static void write_range(struct file *file, int fd)
{
    uint32_t offset, length;

    random_range(&offset, &length);
    fill(file->data + offset, length);
    grow(file, offset + length);
    must(pwrite(fd, file->data + offset, length, offset) == (ssize_t)length, "pwrite", file);
}

static void write_mapped(struct file *file, int fd)
{
    uint32_t offset, length;

    random_range(&offset, &length);
    if (offset + length > file->size) {
        grow(file, offset + length);
        must(ftruncate(fd, file->size) == 0, "ftruncate", file);
    }
    uint8_t *mapped = mmap(NULL, file->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(mapped != MAP_FAILED, "mmap", file);
    fill(file->data + offset, length);
    memcpy(mapped + offset, file->data + offset, length);
    if (random_below(4) == 0)
        must(msync(mapped, file->size, MS_SYNC) == 0, "msync", file);
    must(munmap(mapped, file->size) == 0, "munmap", file);
}

static void cut(struct file *file, int fd)
{
    uint32_t size = random_below(FILE_MAX);

    must(ftruncate(fd, size) == 0, "ftruncate", file);
    if (size < file->size)
        memset(file->data + size, 0, file->size - size);
    file->size = size;
}

static void reserve(struct file *file, int fd)
{
    uint32_t offset, length;

    random_range(&offset, &length);
    must(fallocate(fd, 0, offset, length) == 0, "fallocate", file);
    grow(file, offset + length);
}

static void zero(struct file *file, int fd)
{
    int mode = random_below(2) ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    uint32_t offset, length;

    random_range(&offset, &length);
    must(fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, length) == 0, "fallocate", file);
    if (offset < file->size)
        memset(file->data + offset, 0, length < file->size - offset ? length : file->size - offset);
}

static void verify(const struct file *file, int fd)
{
    static uint8_t data[FILE_MAX];
    struct stat st;

    must(fstat(fd, &st) == 0 && st.st_size == file->size, "another size", file);
    must(pread(fd, data, sizeof(data), 0) == file->size, "pread", file);
    must(memcmp(data, file->data, file->size) == 0, "other content", file);
}

// Moves the file to a new name or over another file.
static void rename_file(struct file *file)
{
    struct file *other = &model->files[random_below(FILES)];
    char from[4096];

    snprintf(from, sizeof(from), "%s", path_of(file));
    if (other != file && other->name != 0) {
        must(rename(from, path_of(other)) == 0, "rename", file);
        file->name = other->name;
        memset(other, 0, sizeof(*other));
    } else {
        file->name = ++model->last_name;
        must(rename(from, path_of(file)) == 0, "rename", file);
    }
}

static void operate(void)
{
    struct file *file = &model->files[random_below(FILES)];
    uint32_t what = random_below(100);

    if (file->name == 0) {
        file->name = ++model->last_name;
        close(open_file(file, O_CREAT | O_EXCL | O_RDWR));
    }
    if (what < 8) {
        rename_file(file);
        return;
    }
    if (what < 12) {
        must(unlink(path_of(file)) == 0, "unlink", file);
        memset(file, 0, sizeof(*file));
        return;
    }
    int fd = open_file(file, O_RDWR | (what % 10 == 0 ? O_SYNC : 0));
    if (what < 50)
        write_range(file, fd);
    else if (what < 65)
        write_mapped(file, fd);
    else if (what < 72)
        cut(file, fd);
    else if (what < 78)
        reserve(file, fd);
    else if (what < 88)
        zero(file, fd);
    else
        verify(file, fd);
    if (what % 3 == 0)
        must((what % 2 ? fsync(fd) : fdatasync(fd)) == 0, "fsync", file);
    must(close(fd) == 0, "close", file);
}

// ---- All of it ----------------------------------------------------------------------------------

static void verify_all(void)
{
    unsigned expected = 0, found = 0;
    struct dirent *entry;
    DIR *dir = opendir(directory);

    for (unsigned i = 0; i < FILES; i++) {
        if (model->files[i].name == 0)
            continue;
        int fd = open_file(&model->files[i], O_RDONLY);
        verify(&model->files[i], fd);
        close(fd);
        expected++;
    }
    must(dir != NULL, "opendir", NULL);
    while ((entry = readdir(dir)) != NULL)
        found += entry->d_name[0] == 'f';
    closedir(dir);
    must(found == expected, "another number of files", NULL);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    directory = argv[2];
    int fd = open(argv[3], O_RDWR | O_CREAT, 0644);
    must(fd >= 0 && ftruncate(fd, sizeof(*model)) == 0, "the model", NULL);
    model = mmap(NULL, sizeof(*model), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(model != MAP_FAILED, "the model", NULL);
    if (strcmp(argv[1], "run") == 0 && argc == 6) {
        random_state = strtoull(argv[4], NULL, 10) * 2654435761u + 1;
        for (unsigned long left = strtoul(argv[5], NULL, 10); left > 0; left--)
            operate();
    }
    verify_all();
    printf("guest_files: %s is as it must be\n", directory);
    return 0;
}
