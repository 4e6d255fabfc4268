// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/checker.h"

#include <stdio.h>
#include <string.h>

#define LINE_BYTES 256

struct finding {
    // Line about a fault that a power cut must not leave.
    char first[LINE_BYTES];
};

// Returns true for a finding that an image with its dirty bit set may have: outdated refcounts,
// flags that contradict them, entries for space that the file did not keep. Every other fault would
// mislead recovery.
static bool bearable(const char *line)
{
    static const char *const parts[] = {"Leaked cluster", " refcount=", "the COPIED flag, but",
                                        "is beyond the end of the file", "more problems"};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        if (strstr(line, parts[i]))
            return true;
    }
    return false;
}

static void take_line(void *context, const char *line)
{
    struct finding *finding = context;

    if (finding->first[0] == '\0' && !bearable(line))
        snprintf(finding->first, sizeof(finding->first), "%s", line);
}

void checker_judge(struct run *run, const struct memory *state, const struct judge_result *judged)
{
    struct finding finding = {""};
    struct check_options options = {.message = take_line, .context = &finding};
    struct check_result result;
    struct sim_disk disk;
    struct memory copy;
    struct sim sim;
    struct error err;

    sim_init(&sim, rng_stream(run->scenario.seed, 0));
    sim_disk_init(&disk);
    memory_copy(&copy, state);
    sim_disk_restart(&disk, &copy);
    struct file *file = file_sim_open(&sim, &disk, "image", true);
    uint64_t corruptions = judged->too_low + judged->flags + judged->beyond;
    if (check_image(file, &options, &result, &err) < 0)
        sim_fail(&run->sim, "check: %s", err.text);
    else if (finding.first[0] != '\0')
        sim_fail(&run->sim, "check finds: %s", finding.first);
    else if (result.corruptions != corruptions || result.leaks != judged->leaks_in_file)
        sim_fail(&run->sim,
                 "check finds %llu corruptions and %llu leaks; there are %llu (%llu refcounts, "
                 "%llu flags, %llu beyond the end) and %llu",
                 (unsigned long long)result.corruptions, (unsigned long long)result.leaks,
                 (unsigned long long)corruptions, (unsigned long long)judged->too_low,
                 (unsigned long long)judged->flags, (unsigned long long)judged->beyond,
                 (unsigned long long)judged->leaks_in_file);
    file_close(file);
    sim_disk_free(&disk);
}
