// SPDX-License-Identifier: Apache-2.0
// info_print.c: the human-readable form of `lazycow info`, as of `qemu-img info`.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server/info.h"

// Columns of indentation for each level of nested values.
#define INDENT 4

static const char *text_of(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

static uint64_t number_of(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

// Prints text from an image without characters that a terminal would act upon.
static void print_text(const char *text)
{
    for (; *text != '\0'; text++)
        putchar((unsigned char)*text < ' ' || *text == 0x7f ? '?' : *text);
}

// Writes a size such as "196 KiB": three digits and a power of 1024.
static void format_size(uint64_t bytes, char *text, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1000 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(text, size, "%0.3g %s", value, units[unit]);
}

static void print_snapshot(const json_t *s)
{
    char date[32] = "";
    char vm_clock[48];
    char icount[32] = "";
    char vm_size[32];
    time_t seconds = (time_t)number_of(s, "date-sec");
    uint64_t clock = number_of(s, "vm-clock-sec");
    struct tm tm;

    if (localtime_r(&seconds, &tm) != NULL)
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(vm_clock, sizeof(vm_clock), "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
             clock / 3600, clock / 60 % 60, clock % 60, number_of(s, "vm-clock-nsec") / 1000000);
    if (json_object_get(s, "icount") != NULL)
        snprintf(icount, sizeof(icount), "%" PRIu64, number_of(s, "icount"));
    format_size(number_of(s, "vm-state-size"), vm_size, sizeof(vm_size));
    print_text(text_of(s, "id"));
    for (size_t n = strlen(text_of(s, "id")); n < 9; n++)
        putchar(' ');
    putchar(' ');
    print_text(text_of(s, "name"));
    for (size_t n = strlen(text_of(s, "name")); n < 16; n++)
        putchar(' ');
    printf(" %8s%20s%13s%11s\n", vm_size, date, vm_clock, icount);
}

static void print_value(const json_t *value, int depth);

static void print_members(const json_t *object, int depth)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        printf("%*s", depth * INDENT, "");
        for (const char *c = key; *c != '\0'; c++)
            putchar(*c == '-' ? ' ' : *c);
        putchar(':');
        print_value(value, depth);
    }
}

static void print_elements(const json_t *array, int depth)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        printf("%*s[%zu]:", depth * INDENT, "", i);
        print_value(json_array_get(array, i), depth);
    }
}

// Prints a value behind its name, on the same line if it is simple.
static void print_value(const json_t *value, int depth)
{
    if (json_is_object(value) || json_is_array(value)) {
        putchar('\n');
        if (json_is_object(value))
            print_members(value, depth + 1);
        else
            print_elements(value, depth + 1);
        return;
    }
    putchar(' ');
    if (json_is_string(value))
        print_text(json_string_value(value));
    else if (json_is_boolean(value))
        fputs(json_is_true(value) ? "true" : "false", stdout);
    else
        printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    putchar('\n');
}

static void print_backing(const json_t *info)
{
    const char *name = text_of(info, "backing-filename");
    const char *full = text_of(info, "full-backing-filename");

    if (name == NULL)
        return;
    fputs("backing file: ", stdout);
    print_text(name);
    if (strcmp(name, full) != 0) {
        fputs(" (actual path: ", stdout);
        print_text(full);
        putchar(')');
    }
    putchar('\n');
    if (text_of(info, "backing-filename-format") != NULL) {
        fputs("backing file format: ", stdout);
        print_text(text_of(info, "backing-filename-format"));
        putchar('\n');
    }
}

void info_print(const json_t *info)
{
    const json_t *snapshots = json_object_get(info, "snapshots");
    const json_t *specific = json_object_get(info, "format-specific");
    char size[32];

    fputs("image: ", stdout);
    print_text(text_of(info, "filename"));
    format_size(number_of(info, "virtual-size"), size, sizeof(size));
    printf("\nfile format: %s\nvirtual size: %s (%" PRIu64 " bytes)\n", text_of(info, "format"),
           size, number_of(info, "virtual-size"));
    if (json_object_get(info, "actual-size") != NULL)
        format_size(number_of(info, "actual-size"), size, sizeof(size));
    printf("disk size: %s\n", json_object_get(info, "actual-size") != NULL ? size : "unavailable");
    if (json_is_true(json_object_get(info, "encrypted")))
        puts("encrypted: yes");
    if (json_object_get(info, "cluster-size") != NULL)
        printf("cluster_size: %" PRIu64 "\n", number_of(info, "cluster-size"));
    if (json_is_true(json_object_get(info, "dirty-flag")))
        puts("cleanly shut down: no");
    print_backing(info);
    if (snapshots != NULL) {
        printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
               "VM CLOCK", "ICOUNT");
        for (size_t i = 0; i < json_array_size(snapshots); i++)
            print_snapshot(json_array_get(snapshots, i));
    }
    if (specific != NULL) {
        puts("Format specific information:");
        print_members(json_object_get(specific, "data"), 1);
    }
}
