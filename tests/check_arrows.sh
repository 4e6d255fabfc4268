#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks what a compiler does not: who may include whom (docs/architecture.md), how long files and
# functions may grow, and how a file begins. Prints every offence and fails if there is any.
set -u
cd "${top_srcdir:-.}" || exit 1

# About what is read in one sitting. A ratchet: files and functions over the limit are named below
# with a reason and leave the list when they shrink.
FILE_LINES_MAX=500
FUNCTION_LINES_MAX=70

# The files that own a libuv handle, and so may include uv.h.
uv_owner() {
    case $1 in
    *) false ;;
    esac
}

file_length_exception() {
    case $1 in
    tests/unit/test_file.c) ;; # one contract, each case on every backend
    *) false ;;
    esac
}

function_length_exception() { # FILE FUNCTION
    case $1:$2 in
    *) false ;;
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
    [ "$lines" -le "$FILE_LINES_MAX" ] || file_length_exception "$1" ||
        echo "$1: $lines lines, the limit is $FILE_LINES_MAX"
    # A function's body stands between braces in the first column, below the line that names it.
    awk -v limit="$FUNCTION_LINES_MAX" '
        /^[A-Za-z_].*\(/ { name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name) }
        /^\{$/ { begin = FNR }
        /^\}$/ && begin { if (FNR - begin - 1 > limit) print name, FNR - begin - 1; begin = 0 }
    ' "$1" | while read -r name lines; do
        function_length_exception "$1" "$name" ||
            echo "$1: $name has $lines lines, the limit is $FUNCTION_LINES_MAX"
    done
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
