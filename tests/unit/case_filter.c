// SPDX-License-Identifier: Apache-2.0
// case_filter.c: tests/unit/test_X 'PATTERN' runs only the cases whose names match, with * and ? as
// in a shell. A test program needs no line of its own for it: the C library passes the arguments to
// constructors, too, and the makefile links this file by its symbol.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

void unit_case_filter(int argc, char **argv);

__attribute__((constructor)) void unit_case_filter(int argc, char **argv)
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
}
