#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# tests/memcheck.sh PROGRAM...: runs unit tests, and then the simulator for MINUTES, from SEED on or
# with fresh seeds, under valgrind: nothing may depend on, or leave the program with, bytes that were
# never written. In the build directory; prints what fails, and fails then.
#
# Left out are the tests of file backends, as valgrind does not see what the kernel writes for io_uring,
# those of times, as it makes everything slow, and test_sync, whose children abort: it needs a minute
# to report that. VALGRIND_OPTS=--track-origins=yes says more.
set -u
minutes=${MINUTES:-1}
seed=${SEED:-}
valgrind='valgrind --quiet --error-exitcode=99'

command -v valgrind >/dev/null || {
    echo "memcheck needs valgrind; install it (apt-get install valgrind)" >&2
    exit 1
}
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT

printf '%s\n' "$@" | grep -vE '/test_(file|file_map|file_pace|loop_spin|sync)$' |
    LOGS=$logs VALGRIND=$valgrind xargs -P "$(nproc)" -I PROGRAM sh -c '
        log=$LOGS/$(basename PROGRAM)
        $VALGRIND PROGRAM >"$log" 2>&1 && exit 0
        echo "memcheck: PROGRAM failed" >>"$log"
        mv "$log" "$log.failed"
        exit 1'
failed=$?
cat "$logs"/*.failed 2>/dev/null
[ "$minutes" = 0 ] || {
    # shellcheck disable=SC2086 # words
    $valgrind tests/sim/sim ${seed:+--seed} ${seed:---fresh} --minutes "$minutes" ||
        failed=1
}
[ "$failed" = 0 ] || exit 1
echo "memcheck: no complaint"
