// SPDX-License-Identifier: Apache-2.0
// limits.h: what the host allows a process (getrlimit(2)), looked at before libuv or the kernel ends
// the process for want of it.
#ifndef LAZYCOW_SERVER_LIMITS_H
#define LAZYCOW_SERVER_LIMITS_H

#include "qcow2/base/error.h"

// Raises the soft limits of open files and of the stack to the hard ones. To be called at the
// beginning of main(). Returns 0, or a negative errno with a message when the stack is too small to
// go on.
int limits_raise(struct error *err);

// The most that limits_check_files() is asked for.
#define LIMITS_FILES_MAX 4096u

// Checks that the loop and a first connection have room, and so many more. Returns 0, or a negative
// errno with a message that names the limit.
int limits_check_files(unsigned more, struct error *err);

#endif
