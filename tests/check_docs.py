#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Compares documents with the tree: the rows of docs/protocol-checklist.md with the tests that are
named after them, the modules with the tables of docs/architecture.md, the pages of docs/decisions with
their index. Prints every difference, and fails if there is any."""
import glob
import os
import re
import sys

ROOT = os.environ.get("top_srcdir") or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as stream:
        return stream.read()


def paths(pattern):
    return sorted(glob.glob(os.path.join(ROOT, pattern), recursive=True))


def check_rows():
    told = set()
    for number, tests in re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", read("docs/protocol-checklist.md"),
                                    re.MULTILINE):
        told |= {f"test_row_{int(number):02}_{name}" for name in re.findall(r"`(\w+)`", tests)}
    there = set()
    for path in paths("tests/system/test_*.py"):
        there |= set(re.findall(r"^def (test_row_\w+)", read(path), re.MULTILINE))
    for name in sorted(there - told):
        yield f"docs/protocol-checklist.md does not name {name}"
    for name in sorted(told - there):
        yield f"docs/protocol-checklist.md names {name}, which is no test"


def check_modules():
    text = read("docs/architecture.md")
    named = {os.path.splitext(name)[0] for name in re.findall(r"`([a-z0-9_.]+)`", text)}
    for folder in ("protocol", "qcow2", "server"):
        modules = {os.path.splitext(path)[0] for path in paths(f"{folder}/**/*.[ch]")}
        for module in sorted(modules):
            name = os.path.basename(module)
            # cmd_* are one row of the table.
            if name not in named and not name.startswith("cmd_"):
                yield f"docs/architecture.md has no row for {os.path.relpath(module, ROOT)}"


def check_decisions():
    index = set(re.findall(r"\((\d{3}-[\w-]+\.md)\)", read("docs/decisions/README.md")))
    there = {os.path.basename(path) for path in paths("docs/decisions/[0-9]*.md")}
    for name in sorted(there ^ index):
        yield f"docs/decisions/README.md and the pages there differ: {name}"


def main():
    differences = [*check_rows(), *check_modules(), *check_decisions()]
    for line in differences:
        print(line, file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
