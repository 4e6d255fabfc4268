#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes many small changes in files of the engine, one at a time and in a copy, and tells which of them
no unit test and no scenario of the simulator notices. docs/simulator.md has what came out.

    tests/sim/mutate.py [--count 200] [--every N] [--results FILE] FILE...
        FILE        such as qcow2/durable/sync.c, or sync.c
        --count     seeds of the simulator, from 1 on, for what no unit test finds; 0: none
        --every     only every N-th change, from the first on
        --results   is written as it goes, and what is in it already is not tried again
        --again     tries those again of which FILE says that nothing found them
        --list      tells the changes, and tries none
        --survivors tells from the results alone what was not found, and the score

What does not compile does not count, nor what gives the same object code. mutants.py makes the changes.
"""
import argparse
import glob
import json
import os
import sys
import tempfile
from collections import Counter

from broken_tree import ROOT, Hung, Tree, find_file
from mutants import File, enumerators

UNCOUNTED = ("does not compile", "is the same")
ALIVE = "survives"


def read(path):
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def mutants_of(path):
    headers = [read(name) for name in glob.glob(os.path.join(ROOT, "qcow2/**/*.h"), recursive=True)]
    text = read(path)
    return File(text, enumerators(headers + [text])).mutants()


def try_one(tree, source, text, count):
    """What became of a mutant: a pair of one word or two, and where it was seen."""
    changed = tree.change({source: text})
    if changed is None:
        return UNCOUNTED[1], ""
    if not changed:
        return UNCOUNTED[0], ""
    failed = tree.failing_unit_test([source])
    if failed:
        return failed
    if count == 0:
        return ALIVE, "unit tests"
    try:
        seed, tried = tree.simulate(1, count)
    except Hung:
        return "simulator", "hangs"
    if seed is None and tried < count:
        return "simulator", "ends early"
    return ("simulator", f"seed {seed}") if seed else (ALIVE, f"{tried} scenarios")


class Results:
    def __init__(self, path):
        self.path = path
        self.entries = {}
        if path and os.path.exists(path):
            for line in read(path).splitlines():
                entry = json.loads(line)
                self.entries[entry["file"], entry["name"]] = entry

    def add(self, **entry):
        self.entries[entry["file"], entry["name"]] = entry
        if self.path:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    def report(self, names):
        """names: {source: names of mutants}"""
        for source, wanted in names.items():
            found = [self.entries[source, name] for name in wanted if (source, name) in self.entries]
            counted = [entry for entry in found if entry["by"] not in UNCOUNTED]
            alive = [entry for entry in counted if entry["by"] == ALIVE]
            kinds = Counter("simulator" if entry["by"] == "simulator" else "unit tests"
                            for entry in counted if entry["by"] != ALIVE)
            print(f"{source}: {len(counted) - len(alive)} of {len(counted)} found, "
                  f"{kinds['unit tests']} by unit tests, {kinds['simulator']} by the simulator; "
                  f"{len(found) - len(counted)} do not compile or are the same; "
                  f"{len(wanted) - len(found)} not tried")
            for entry in alive:
                print(f"  {entry['line']}: {entry['name']}")


def run(options, sources, names, results):
    with tempfile.TemporaryDirectory(prefix="lazycow-mutations-") as folder:
        tree = Tree(folder)
        tree.learn_tests()
        for source, mutants in sources.items():
            for name in names[source]:
                known = results.entries.get((source, name))
                if known and not (options.again and known["by"] == ALIVE):
                    continue
                line, text = mutants[name]
                by, how = try_one(tree, source, text, options.count)
                results.add(file=source, name=name, line=line, by=by, how=how)
                print(f"{os.path.basename(source)}:{line}: {name}: {by} {how}", flush=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--results")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    sources = {}
    for name in options.files:
        path = os.path.join(ROOT, name) if "/" in name else find_file(ROOT, name)
        if not path or not os.path.exists(path):
            parser.error(f"there is no {name}")
        sources[os.path.relpath(path, ROOT)] = mutants_of(path)
    names = {source: list(mutants)[::options.every] for source, mutants in sources.items()}
    if options.list:
        for source in sources:
            for name in names[source]:
                print(f"{source}:{sources[source][name][0]}: {name}")
        return 0
    results = Results(options.results)
    if not options.survivors:
        run(options, sources, names, results)
    results.report(sources)
    return 0


if __name__ == "__main__":
    sys.exit(main())
