#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Prints which lines and branches of protocol/, qcow2/ and server/ a build with --coverage has run, by
folder; --files by file. gcovr counts; `make coverage` builds and runs.

Not counted: assertions (a rule that holds has one branch that nothing reaches), and what the compiler
marks as unreachable."""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile

# Lines on which an assertion begins. Whatever it spans has its branches there.
ASSERTION = r".*\bassert\("


def measure(source, build, html):
    with tempfile.TemporaryDirectory() as scratch:
        summary = os.path.join(scratch, "summary.json")
        command = ["gcovr", "--root", source, "--object-directory", build, build]
        command += [option for folder in ("protocol", "qcow2", "server")
                    for option in ("--filter", os.path.join(source, folder, ""))]
        command += ["--exclude-lines-by-pattern", ASSERTION, "--exclude-unreachable-branches",
                    "--exclude-throw-branches", "--json-summary", summary]
        if html:
            command += ["--html-details", os.path.join(build, "index.html")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(summary, encoding="utf-8") as file:
            return json.load(file)["files"]


def share(covered, total):
    return f"{100 * covered / total:5.1f} %" if total else "      -"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=os.path.dirname(here))
    parser.add_argument("--build", default="coverage")
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--html", action="store_true", help="also BUILD/index.html, line by line")
    options = parser.parse_args()

    sums = collections.OrderedDict()
    files = measure(os.path.abspath(options.source), os.path.abspath(options.build), options.html)
    for file in sorted(files, key=lambda file: file["filename"]):
        name = file["filename"]
        row = sums.setdefault(name if options.files else os.path.dirname(name), [0] * 4)
        for i, key in enumerate(("line_covered", "line_total", "branch_covered", "branch_total")):
            row[i] += file[key]
    if not sums:
        sys.exit("coverage.py: nothing was measured: build with --coverage, and run it")
    print("| folder | lines | covered | branches | covered |\n|---|---|---|---|---|")
    for name, (lines, all_lines, branches, all_branches) in sums.items():
        print(f"| `{name}` | {all_lines} | {share(lines, all_lines)} "
              f"| {all_branches} | {share(branches, all_branches)} |")


if __name__ == "__main__":
    main()
