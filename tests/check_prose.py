#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the comments of C sources: each must read without its neighbours and without a second look.
Prints every offence with its line, and fails if there is any. CONTRIBUTING.md has the rules."""
import os
import re
import sys

ROOT = os.environ.get("top_srcdir") or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Folders whose comments keep the rules.
FOLDERS = ("protocol", "qcow2", "server", "tests")

COLUMNS_MAX = 100

# A sentence names its subject: "the caller", "this page".
SUBJECT = re.compile(r"(?:^|[.?!:] )(What|Whoever|Who|Whether|Where)\b")
# A pronoun for another line's word makes a comment that works only when read in order.
POINTER = re.compile(r"\b(the latter|the former)\b", re.IGNORECASE)
# Literals are skipped, so that a "//" inside of one begins no comment.
COMMENT = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?!//)[^"'])*//(.*)""")


def comments(lines):
    """Yields (number of the first line, text) for each comment, its lines joined."""
    first, parts, column = 0, [], -1
    for number, line in enumerate(lines, 1):
        match = COMMENT.fullmatch(line)
        start = match.start(1) if match else -1
        # A line of code ends the comment before it, and a blank line of a comment ends a paragraph.
        joins = match and start == column and not line[:start - 2].strip() and match[1].strip()
        if parts and not joins:
            yield first, " ".join(parts)
            parts = []
        if match and match[1].strip():
            if not parts:
                first, column = number, start
            parts.append(match[1].strip())
    if parts:
        yield first, " ".join(parts)


def offences(path):
    with open(path, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            yield number, f"{len(line)} columns, at most {COLUMNS_MAX} are allowed"
    for number, text in comments(lines):
        for match in SUBJECT.finditer(text):
            yield number, f"a sentence begins with '{match[1]}': name its subject"
        for match in POINTER.finditer(text):
            yield number, f"'{match[1]}' points to another line: name the thing"


def main():
    count = 0
    for folder in FOLDERS:
        for parent, _, names in sorted(os.walk(os.path.join(ROOT, folder))):
            for name in sorted(names):
                if not name.endswith((".c", ".h")):
                    continue
                path = os.path.join(parent, name)
                for number, text in sorted(offences(path)):
                    print(f"{os.path.relpath(path, ROOT)}:{number}: {text}", file=sys.stderr)
                    count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
