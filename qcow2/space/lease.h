// SPDX-License-Identifier: Apache-2.0
// lease.h: bytes of the file that a read has left where they are (OP_LEND), until its owner gives
// them back. The op is done by then and may be none of the image's any more; that what is lent becomes
// no other cluster's is up to the quarantine, which asks here.
#ifndef LAZYCOW_QCOW2_SPACE_LEASE_H
#define LAZYCOW_QCOW2_SPACE_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/base/op.h"

struct image;

// Whether a read may have more of this file lent: there is a place to note it, and it has nothing from
// another file.
bool lease_possible(const struct op *op, const struct file *file);

// The read has something lent from the file, by the plan that it made last. It may have had before.
void lease_note(struct op *op, struct file *file);

// Whether something is lent by a plan made before that.
bool lease_older_than(const struct image *image, uint64_t begun);

#endif
