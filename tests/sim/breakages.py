#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks one rule of the engine or the bridge at a time, in a copy, and tells the first seed with
which the simulator notices: the table of docs/simulator.md. The rules are in breakage_rows.py.

    tests/sim/breakages.py [--seed 1] [--count 10000] [--minutes M] [TEXT...]
                             M minutes a row at most; only rows that have one of the texts
    tests/sim/breakages.py --write ...      and puts what it found into docs/simulator.md
    tests/sim/breakages.py --fit            only looks whether each row applies to the sources, and
                                            whether the table has the same rows; milliseconds
    tests/sim/breakages.py --fit --write    gives the table the rows of the script, keeping its seeds

Exit code 1 where a row no longer applies, or the table differs.
"""
import argparse
import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

from breakage_rows import ROWS

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TABLE = os.path.join(ROOT, "docs", "simulator.md")
HEAD = "| rule (of `sync.c`, or as said) | change | first seed |\n|---|---|---|\n"
UNKNOWN = "not measured"
FLAGS = ["-O2", "-g", "-std=gnu17", "-I.", '-DPACKAGE_VERSION="0"']
PACKAGES = ["libuv", "liburing", "libdeflate", "libzstd", "jansson", "gnutls", "zlib"]
WRAPPED = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=posix_memalign"


# ---- Rows and sources -----------------------------------------------------------------------------

def find_file(folder, name):
    found = [path for top in ("protocol", "qcow2", "server")
             for path in glob.glob(os.path.join(folder, top, "**", name), recursive=True)]
    return found[0] if len(found) == 1 else None


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

class Build:
    """A copy of the tree, compiled once; a row compiles its own file again."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("protocol", "qcow2", "server", "tests"):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name),
                            ignore=shutil.ignore_patterns("corpus", "__pycache__"))
        self.flags, self.libraries = (self.packages(word) for word in ("--cflags", "--libs"))
        self.objects = {source: source[:-2] + ".o" for source in self.sources()}
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.compile, self.objects, self.objects.values()))

    def packages(self, word):
        return subprocess.run(["pkg-config", word, *PACKAGES], check=True, text=True,
                              stdout=subprocess.PIPE).stdout.split()

    def sources(self):
        found = []
        for name in ("protocol", "qcow2", "server", "tests/sim"):
            found += glob.glob(os.path.join(self.folder, name, "**", "*.c"), recursive=True)
        return sorted(os.path.relpath(path, self.folder) for path in found
                      if not path.endswith("server/main.c"))

    def compile(self, source, output):
        subprocess.run([*os.environ.get("CC", "cc").split(), *FLAGS, *self.flags, "-c", source, "-o",
                        output], cwd=self.folder, check=True)

    def program(self, row):
        """Returns the simulator with the row's edits, or an error as a string."""
        texts = broken(self.folder, row)
        if isinstance(texts, str):
            return texts
        objects = dict(self.objects)
        for path, text in texts.items():
            source = os.path.relpath(path, self.folder)
            objects[source] = source[:-2] + "-broken.o"
            changed = source[:-2] + "-broken.c"
            with open(os.path.join(self.folder, changed), "w", encoding="utf-8") as stream:
                stream.write(text)
            try:
                self.compile(changed, objects[source])
            except subprocess.CalledProcessError:
                return "does not compile"
            finally:
                os.unlink(os.path.join(self.folder, changed))
        # The bridge comes out of an archive, so that no more of server/ is taken than is needed.
        server = [name for source, name in objects.items() if source.startswith("server/")]
        archive = os.path.join(self.folder, "libserver.a")
        if os.path.exists(archive):
            os.unlink(archive)
        subprocess.run(["ar", "cr", archive, *server], cwd=self.folder, check=True)
        subprocess.run(["cc", *(name for name in objects.values() if name not in server), archive,
                        "-o", "broken", WRAPPED, *self.libraries], cwd=self.folder, check=True)
        return os.path.join(self.folder, "broken"), None


def first_seed(program, options):
    words = [program, "--seed", str(options.seed), "--count", str(options.count)]
    if options.minutes:
        words += ["--minutes", str(options.minutes)]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    text = said.stdout + said.stderr
    found = re.search(r"seed (\d+) FAILED|signal \d+ in seed (\d+)", text)
    if found:
        return found[1] or found[2]
    tried = re.search(r"sim: (\d+) scenarios", text)
    return f"not in {tried[1] if tried else '?'}"


def run(options):
    misfits = 0
    with tempfile.TemporaryDirectory(prefix="lazycow-breakages-") as folder:
        build = Build(folder)
        print(HEAD, end="", flush=True)
        for row in ROWS:
            if options.text and not any(t in row["rule"] + row["change"] for t in options.text):
                continue
            program = build.program(row)
            misfits += isinstance(program, str)
            seed = program if isinstance(program, str) else first_seed(program[0], options)
            print(line_of(row, seed), end="", flush=True)
            if options.write and not isinstance(program, str):
                write_table({shown_of(row): seed})
    return misfits


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--write", action="store_true")
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
