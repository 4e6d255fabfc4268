// SPDX-License-Identifier: Apache-2.0
// container.h: from a member to the struct that embeds it.
#ifndef LAZYCOW_QCOW2_BASE_CONTAINER_H
#define LAZYCOW_QCOW2_BASE_CONTAINER_H

#include <stddef.h>

#define container_of(pointer, type, member)                                                        \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#endif
