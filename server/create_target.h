// SPDX-License-Identifier: Apache-2.0
// create_target.h: the file that `lazycow create` writes: made, or taken once it is certain that
// nobody uses it and that the new image does not stand on it.
#ifndef LAZYCOW_SERVER_CREATE_TARGET_H
#define LAZYCOW_SERVER_CREATE_TARGET_H

#include "server/cmd.h"
#include "server/create_options.h"

struct create_target {
    struct cmd_file cf; // open for writing and locked
    char *made;         // path of a file that was made for this; NULL: it was there
};

// Opens the file as it is: nothing of it is changed yet. Refuses a member of the new image's backing
// chain, under whatever name, and, unless the backing file is not to be looked at, a chain that cannot
// be followed to its end. Returns 0, or 1 after a message; then what was made is removed.
int create_target_open(struct create_target *target, const struct create_command *command);

// keep false: removes the file if it was made for this.
void create_target_close(struct create_target *target, bool keep);

#endif
