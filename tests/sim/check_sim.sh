#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The simulator as a test: seeds that are always the same, then fresh ones. SIM_MINUTES says for how
# long in all; 0 only looks whether it runs. The log has the first fresh seed.
set -eu
sim=tests/sim/sim
minutes=${SIM_MINUTES:-2}

if [ "$minutes" = 0 ]; then
    exec "$sim" --seed 1 --count 100
fi
half=$(echo "$minutes" | awk '{ print $1 / 2 }')
"$sim" --seed 1 --minutes "$half"
"$sim" --fresh --minutes "$half"
