// SPDX-License-Identifier: Apache-2.0
// qemu.h: has qemu-img repair a state of the image, check it without a finding afterwards, and read
// equal content.
#ifndef LAZYCOW_TESTS_SIM_QEMU_H
#define LAZYCOW_TESTS_SIM_QEMU_H

#include <stdbool.h>

#include "tests/sim/reader.h"
#include "tests/sim/run.h"

// clean: nothing is found before a repair either. Failures go to run->sim.
void qemu_judge(struct run *run, const struct reader *reader, bool clean);

#endif
