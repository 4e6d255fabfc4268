#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks what a compiler does not: who may include whom (docs/architecture.md), how long files and
# functions may grow, and how a file begins. Prints every offence and fails if there is any.
set -u
cd "${top_srcdir:-.}" || exit 1

# The files that own a libuv handle, and so may include uv.h: the loop itself, a connection's
# socket, the listening sockets, the queue of libuv's worker threads.
uv_owner() {
    case $1 in
    server/loop.h | server/connection.h | server/server.c | server/loop_workers.c) ;;
    *) false ;;
    esac
}

# The files that stand on these: what puts the loop and its connections together. The bridge between
# session and engine (client*), the exports and the file backends are not among them.
loop_user() {
    case $1 in
    server/server.[ch] | server/connection*.[ch] | server/loop.c | server/cmd_serve.c | server/dump.c) ;;
    *) false ;;
    esac
}

# The files that know of loans (docs/architecture.md, "Glossary"): the file under the image, the read
# that takes one, with its admission, and the request that settles or returns it. All others see a
# payload that can be settled, or a grace period.
loan_user() {
    case $1 in
    qcow2/base/file.[ch] | qcow2/base/loan.[ch] | qcow2/base/op.h) ;;
    qcow2/request/request.c | qcow2/request/read.c) ;;
    server/file_posix.c | server/file_map.[ch] | server/client_request.[ch]) ;;
    *) false ;;
    esac
}

# The most lines that a file may have.
file_limit() {
    case $1 in
    tests/*) echo 1000 ;; # a table of cases has no flow to follow
    *) echo 500 ;;        # about what is read in one sitting
    esac
}

# The most lines between the braces of a function.
function_limit() {
    case $1 in
    tests/*) echo 100 ;; # the table of cases often stands in the test
    *) echo 70 ;;
    esac
}

# forbid FOLDER PATTERN WHY: no source under FOLDER includes a header that PATTERN matches.
forbid() {
    grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" "$1" --include='*.[ch]' |
        sed "s|\$| : $3|"
}

LOOP='uv\.h|uv/|liburing|libnbd'
SOCKETS='sys/socket|sys/un\.h|netinet/|arpa/|netdb|poll\.h|sys/poll|sys/epoll|sys/select'
THREADS='pthread|threads\.h|stdatomic|semaphore'
DESCRIPTORS='unistd\.h|fcntl\.h|sys/ioctl|sys/file|sys/mman'

check_arrows() {
    forbid protocol 'qcow2/|server/|tests/' 'protocol/ knows nothing of the engine and the server'
    forbid protocol "$LOOP|$SOCKETS|$THREADS|$DESCRIPTORS" 'protocol/ is bytes in, bytes out'
    forbid qcow2 'protocol/|server/|tests/' 'qcow2/ knows nothing of the protocol and the server'
    forbid qcow2 "$LOOP|$SOCKETS|$THREADS" 'qcow2/ has no sockets, loop or threads'
    forbid qcow2 "$DESCRIPTORS" 'qcow2/ reaches the disk through file.h only'
    forbid server 'tests/' 'server/ knows nothing of the tests'
    for folder in protocol qcow2 server tests; do
        forbid "$folder" '\.\.?/|[^">]*\.c[">]' 'includes are written from the root and name headers'
    done
    grep -rlE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]uv\.h' server --include='*.[ch]' |
        while read -r file; do
            uv_owner "$file" || echo "$file: includes uv.h but is not in the list of handle owners"
        done
    grep -rliE '(^|[^a-z])(loans?|lend|lent|lender|leases?)([^a-z]|$)' protocol qcow2 server --include='*.[ch]' |
        while read -r file; do
            loan_user "$file" || echo "$file: speaks of loans but is not in the list of those that may"
        done
    grep -rlE '^#include "server/(loop|connection|connection_set|server)\.h"' server |
        while read -r file; do
            loop_user "$file" || echo "$file: stands on the loop but is not in the list of those that do"
        done
}

check_head() { # FILE
    [ "$(head -n 1 "$1")" = '// SPDX-License-Identifier: Apache-2.0' ] ||
        echo "$1:1: does not begin with the license line"
    case $1 in
    *.h)
        guard=$(basename "$1" | tr 'a-z.' 'A-Z_')
        grep -q "^#define LAZYCOW_[A-Z0-9_]*$guard\$" "$1" ||
            echo "$1: has no include guard LAZYCOW_..._$guard"
        ;;
    esac
}

check_length() { # FILE
    lines=$(wc -l <"$1")
    limit=$(file_limit "$1")
    [ "$lines" -le "$limit" ] || echo "$1: $lines lines, the limit is $limit"
    # A function's body stands between braces in the first column, below the line that names it.
    awk -v file="$1" -v limit="$(function_limit "$1")" '
        /^[A-Za-z_].*\(/ { name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name) }
        /^\{$/ { begin = FNR }
        /^\}$/ && begin {
            if (FNR - begin - 1 > limit)
                print file ": " name " has " FNR - begin - 1 " lines, the limit is " limit
            begin = 0
        }
    ' "$1"
}

check_all() {
    check_arrows
    find protocol qcow2 server tests -name '*.[ch]' | sort | while read -r file; do
        check_head "$file"
        check_length "$file"
    done
}

offences=$(check_all)
[ -z "$offences" ] || {
    echo "$offences" >&2
    exit 1
}
