// SPDX-License-Identifier: Apache-2.0
#include "server/file_guarded_copy.h"

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

// The point to which a failing copy of this thread jumps back.
static _Thread_local sigjmp_buf *copy_guard;

static void on_sigbus(int number)
{
    if (copy_guard != NULL) {
        siglongjmp(*copy_guard, 1);
    }
    signal(number, SIG_DFL);
    raise(number);
}

void file_guarded_copy_init(void)
{
    // SA_NODEFER, because the handler jumps out and never returns to unblock the signal.
    struct sigaction action = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};
    sigset_t set;

    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    // SIGBUS may be blocked by the parent process; a blocked SIGBUS of a failing copy would end the
    // process.
    sigemptyset(&set);
    sigaddset(&set, SIGBUS);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

bool file_guarded_copy(void *to, const void *from, size_t bytes)
{
    sigjmp_buf env;

    if (sigsetjmp(env, 0) != 0) {
        copy_guard = NULL;
        return false;
    }
    copy_guard = &env;
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(to, from, bytes);
    atomic_signal_fence(memory_order_seq_cst);
    copy_guard = NULL;
    return true;
}
