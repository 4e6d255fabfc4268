// SPDX-License-Identifier: Apache-2.0
// memcheck.h: tells valgrind, if the program runs under it (make memcheck), which bytes are
// undefined, and makes it complain about undefined bytes that leave the program. Without valgrind,
// or its headers, these functions do nothing.
#ifndef LAZYCOW_TESTS_MEMCHECK_H
#define LAZYCOW_TESTS_MEMCHECK_H

#include <stddef.h>

#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_UNDEFINED(at, length) ((void)(at), (void)(length), 0)
#define VALGRIND_CHECK_MEM_IS_DEFINED(at, length) ((void)(at), (void)(length), 0)
#define VALGRIND_COUNT_ERRORS 0
#define RUNNING_ON_VALGRIND 0
#endif

// Marks bytes as undefined until they are written.
static inline void memcheck_forget(void *at, size_t length)
{
    (void)VALGRIND_MAKE_MEM_UNDEFINED(at, length);
}

// Checks bytes that leave the program, to a disk or to a client.
static inline void memcheck_leave(const void *at, size_t length)
{
    (void)VALGRIND_CHECK_MEM_IS_DEFINED(at, length);
}

// Returns the number of valgrind's complaints so far.
static inline unsigned memcheck_errors(void)
{
    return VALGRIND_COUNT_ERRORS;
}

// Returns the factor by which things take longer.
static inline unsigned memcheck_slowness(void)
{
    return RUNNING_ON_VALGRIND ? 40 : 1;
}

#endif
