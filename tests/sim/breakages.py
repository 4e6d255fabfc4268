#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks one rule of the engine or the bridge at a time, in a copy, and tells the first seed with
which the simulator notices, or else the unit test that does: the table of docs/simulator.md. The
rules are in breakage_rows.py.

    tests/sim/breakages.py [--seed 1] [--count 10000] [--minutes M] [TEXT...]
                             M minutes a row at most; only rows that have one of the texts
    tests/sim/breakages.py --missing ...    only rows that the table has no seed or test for
    tests/sim/breakages.py --write ...      and puts what it found into docs/simulator.md
    tests/sim/breakages.py --fit            only looks whether each row applies to the sources, and
                                            whether the table has the same rows; milliseconds
    tests/sim/breakages.py --fit --write    gives the table the rows of the script, keeping its seeds

Exit code 1 where a row no longer applies, or the table differs.
"""
import argparse
import os
import re
import sys
import tempfile

from breakage_rows import ROWS
from broken_tree import ROOT, Hung, Tree, find_file

TABLE = os.path.join(ROOT, "docs", "simulator.md")
HEAD = "| rule (of `sync.c`, or as said) | change | first seed, or unit test |\n|---|---|---|\n"
UNKNOWN = "not measured"


# ---- Rows and sources -----------------------------------------------------------------------------

def pattern(text):
    """The text with any white space between its words."""
    return re.compile(r"\s+".join(re.escape(word) for word in text.split()))


def broken(folder, row):
    """Returns {path: text after the row's edits}, or an error as a string."""
    texts = {}
    for name, old, new in row["edits"]:
        path = find_file(folder, name)
        if path is None:
            return f"there is no {name}, or more than one"
        if path not in texts:
            with open(path, encoding="utf-8") as stream:
                texts[path] = stream.read()
        count = len(pattern(old).findall(texts[path]))
        if count != 1:
            return f"{os.path.relpath(path, folder)} has this {count} times: {' '.join(old.split())}"
        texts[path] = pattern(old).sub(lambda _, new=new: new, texts[path])
    return texts


def files_of(row):
    return ", ".join(dict.fromkeys(f"`{name}`" for name, _, _ in row["edits"]))


# ---- The table of docs/simulator.md ---------------------------------------------------------------

def line_of(row, seed):
    return f"| {row['rule']} | {files_of(row)} {row['change']} | {seed} |\n"


def read_table():
    """The document up to the table, {row without seed: seed} in its order, the document behind it."""
    with open(TABLE, encoding="utf-8") as stream:
        text = stream.read()
    before, _, rest = text.partition(HEAD)
    lines = re.match(r"(?:\|.*\n)*", rest)[0]
    seeds = {}
    for line in lines.splitlines():
        shown, _, seed = line.rstrip(" |").rpartition(" | ")
        seeds[shown] = seed
    return before, seeds, rest[len(lines):]


def shown_of(row):
    return line_of(row, "").rpartition(" | ")[0]


def write_table(found):
    """found: {rule and change: seed}; other rows keep theirs."""
    before, seeds, after = read_table()
    seeds.update(found)
    with open(TABLE, "w", encoding="utf-8") as stream:
        stream.write(before + HEAD + "".join(line_of(row, seeds.get(shown_of(row), UNKNOWN))
                                             for row in ROWS) + after)


def fit():
    """Every difference between the rows and the tree, as lines."""
    for row in ROWS:
        result = broken(ROOT, row)
        if isinstance(result, str):
            yield f"{row['rule']}: {result}"
        elif all(open(path, encoding="utf-8").read() == text for path, text in result.items()):
            yield f"{row['rule']}: changes nothing"
    _, seeds, _ = read_table()
    if list(seeds) != [shown_of(row) for row in ROWS]:
        yield "docs/simulator.md has other rows: tests/sim/breakages.py --fit --write"


# ---- Running --------------------------------------------------------------------------------------

def first_seed(tree, options):
    try:
        seed, tried = tree.simulate(options.seed, options.count, options.minutes)
    except Hung:
        return "hangs"
    return seed or f"not in {tried}"


def found_by(tree, row, options):
    """The first seed, or else the unit test that fails, or what is wrong with the row and True."""
    texts = broken(tree.folder, row)
    if isinstance(texts, str):
        return texts, True
    texts = {os.path.relpath(path, tree.folder): text for path, text in texts.items()}
    if not tree.change(texts):
        return "does not compile, or changes nothing", True
    seed = first_seed(tree, options)
    if seed.startswith("not in "):
        failed = tree.failing_unit_test(list(texts))
        if failed:
            return f"`{failed[0]}`: {failed[1]}", False
    return seed, False


def is_asked_for(row, seeds, options):
    known = seeds.get(shown_of(row), UNKNOWN)
    if options.text and not any(t in row["rule"] + row["change"] for t in options.text):
        return False
    return not options.missing or known == UNKNOWN or known.startswith("not in ")


def run(options):
    misfits = 0
    rows = [row for row in ROWS if is_asked_for(row, read_table()[1], options)]
    with tempfile.TemporaryDirectory(prefix="lazycow-breakages-") as folder:
        tree = Tree(folder)
        tree.learn_tests()
        print(HEAD, end="", flush=True)
        for row in rows:
            seed, wrong = found_by(tree, row, options)
            misfits += wrong
            print(line_of(row, seed), end="", flush=True)
            if options.write and not wrong:
                write_table({shown_of(row): seed})
    return misfits


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("text", nargs="*")
    options = parser.parse_args()
    if not options.fit:
        return 1 if run(options) else 0
    if options.write:
        write_table({})
    differences = list(fit())
    for line in differences:
        print(line, file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
