// SPDX-License-Identifier: Apache-2.0
// limits.h: checks the host's limits for a process (getrlimit(2)), before libuv or the kernel would
// end the process at one of them.
#ifndef LAZYCOW_SERVER_LIMITS_H
#define LAZYCOW_SERVER_LIMITS_H

#include "qcow2/base/error.h"

// Raises the soft limits of open files and of the stack to the hard ones. Called at the beginning
// of main(). Returns 0, or a negative errno with a message if the stack is too small to go on.
int limits_raise(struct error *err);

// Largest argument of limits_check_files().
#define LIMITS_FILES_MAX 4096u

// Checks that descriptors are left for the loop, a first connection and `more` others. Returns 0,
// or a negative errno with a message that names the limit.
int limits_check_files(unsigned more, struct error *err);

#endif
