// SPDX-License-Identifier: Apache-2.0
// create_target.h: the file that `lazycow create` writes. An existing file is taken only once it is
// certain that nobody uses it and that it is not in the new image's backing chain.
#ifndef LAZYCOW_SERVER_CREATE_TARGET_H
#define LAZYCOW_SERVER_CREATE_TARGET_H

#include "server/cmd.h"
#include "server/create_options.h"

struct create_target {
    struct cmd_file cf; // open for writing and locked
    // Path of a file that was made for this image; NULL: the file existed.
    char *made;
};

// Opens the file and changes nothing in it. Refuses a member of the new image's backing chain,
// under any name, and a chain that cannot be followed to its end, unless the backing file is not to
// be opened. Returns 0, or 1 after a message; a file that was made is removed then.
int create_target_open(struct create_target *target, const struct create_command *command);

// If keep is false, removes a file that was made for this image.
void create_target_close(struct create_target *target, bool keep);

#endif
