#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compares what `make dist` packs (DISTFILES of the makefile) with the files of the repository: what is
# tracked and in no list is missing from every tarball, and nobody notices.
set -u
cd "${top_srcdir:-.}" || exit 1

git ls-files >/dev/null 2>&1 && [ "$(git rev-parse --show-toplevel)" = "$(pwd -P)" ] || {
    echo "this is no work tree of git: there is nothing to compare with"
    exit 77
}
[ -n "${DISTFILES-}" ] || {
    echo "run by make check, which knows the lists" >&2
    exit 1
}

# Of use only where git is.
of_git_only() {
    case $1 in
    .gitignore | .github/*) ;;
    *) false ;;
    esac
}

# The lists name files, and folders with all that is in them.
packed=" $(echo "$DISTFILES" | tr -s ' \n\t' '\n' | sed "s|^$top_srcdir/||; s|^\./||" | tr '\n' ' ')"

is_packed() { # FILE
    name=$1
    while :; do
        case $packed in
        *" $name "*) return 0 ;;
        esac
        case $name in
        */*) name=${name%/*} ;;
        *) return 1 ;;
        esac
    done
}

missing=$(git ls-files | while IFS= read -r file; do
    [ ! -e "$file" ] || of_git_only "$file" || is_packed "$file" || echo "$file"
done)
[ -z "$missing" ] || {
    echo "not in the tarball; name them in a list of Makefile.am (or in $0):" >&2
    echo "$missing" >&2
    exit 1
}
