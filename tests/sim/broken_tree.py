# SPDX-License-Identifier: Apache-2.0
"""A copy of the tree in which single files are broken: compiled once, then only what was broken is
compiled again, and linked into the simulator or a unit test. For breakages.py and mutate.py.
"""
import concurrent.futures
import glob
import os
import re
import resource
import shutil
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# No -g: objects are compared, and ccache finds them again in another folder.
FLAGS = ["-O2", "-fPIC", "-std=gnu17", "-I.", '-DPACKAGE_VERSION="0"', "-w"]
PACKAGES = ["libuv", "liburing", "libdeflate", "libzstd", "jansson", "gnutls", "zlib", "cmocka"]
WRAPPED = "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=posix_memalign"

# A unit test may take so much longer than with the sources as they are before it counts as hanging. The
# processor's time counts, and the clock's only for those that wait for nothing for ever.
TEST_SLOWER = 20
TEST_SECONDS = 5
WALL_FACTOR = 15
# The simulator ends a scenario that hangs by itself; this is for one that never gets so far.
SCENARIO_SECONDS = 20
# Of the simulator: a loop that allocates must not take the machine with it.
MEMORY_BYTES = 4 << 30


def find_file(folder, name):
    found = [path for top in ("protocol", "qcow2", "server")
             for path in glob.glob(os.path.join(folder, top, "**", name), recursive=True)]
    return found[0] if len(found) == 1 else None


class Hung(Exception):
    pass


def execute(words, seconds, folder=None, memory=resource.RLIM_INFINITY):
    """Exit code and all that was said. Raises Hung."""
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    environment = dict(os.environ, top_srcdir=ROOT)
    try:
        said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
                              env=environment, check=False, preexec_fn=limit,
                              stdin=subprocess.DEVNULL, timeout=seconds * WALL_FACTOR)
    except subprocess.TimeoutExpired as error:
        raise Hung from error
    return said.returncode, said.stdout.decode(errors="replace")


class Tree:
    def __init__(self, folder):
        self.folder = folder
        self.compiler = os.environ.get("CC", "cc").split()
        for name in ("protocol", "qcow2", "server", "tests"):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name),
                            ignore=shutil.ignore_patterns("corpus", "__pycache__"))
        self.flags, self.libraries = (self._packages(word) for word in ("--cflags", "--libs"))
        with open(os.path.join(ROOT, "Makefile.am"), encoding="utf-8") as stream:
            self.makefile = stream.read()
        self.changed = {}  # source: object
        self.durations = {}  # of unit tests, with the sources as they are
        self.parts = {}  # unit test: sources of the tree that are in it
        self.engine = [s for top in ("protocol", "qcow2", "server") for s in self._sources(top)
                       if s != "server/main.c"]
        self.sim = self._sources("tests/sim")
        with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count()))) as pool:
            list(pool.map(self._compile, self.engine + self.sim))
        # For the simulator, an archive: no more of server/ is taken than is needed. Unit tests have a
        # library that is shared, so that they need not be linked again.
        self._run("ar", "cr", "libtree.a", *(s[:-2] + ".o" for s in self.engine))

    def _run(self, *words, **options):
        return subprocess.run(words, cwd=self.folder, check=True, **options)

    def _packages(self, word):
        return self._run("pkg-config", word, *PACKAGES, text=True, stdout=subprocess.PIPE).stdout.split()

    def _sources(self, folder):
        found = glob.glob(os.path.join(self.folder, folder, "**", "*.c"), recursive=True)
        return sorted(os.path.relpath(path, self.folder) for path in found)

    def _compile(self, source, output=None, **options):
        self._run(*self.compiler, *FLAGS, *self.flags, "-c", source, "-o",
                  output or source[:-2] + ".o", **options)

    def text(self, source):
        with open(os.path.join(self.folder, source), encoding="utf-8") as stream:
            return stream.read()

    def change(self, texts):
        """From now on these files have these texts ({}: all are as they are). Returns False where one
        does not compile, None where all the objects are as they were, else True."""
        self.changed = {}
        differs = False
        for source, text in texts.items():
            path = os.path.join(self.folder, source)
            before = self.text(source)
            output = source[:-2] + "-changed.o"
            # Under its own name, which assertions tell.
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(text)
            try:
                self._compile(source, output, stderr=subprocess.DEVNULL)
            except subprocess.CalledProcessError:
                self.changed = {}
                return False
            finally:
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(before)
            with open(os.path.join(self.folder, output), "rb") as new, \
                 open(os.path.join(self.folder, source[:-2] + ".o"), "rb") as old:
                differs |= new.read() != old.read()
            self.changed[source] = output
        self._share()
        return True if differs else None

    def _share(self):
        objects = [self.changed.get(s, s[:-2] + ".o") for s in self.engine]
        self._run("cc", "-shared", *objects, "-o", "libshared.so", *self.libraries)

    def _link(self, output, objects, *options):
        self._run("cc", *objects, *self.changed.values(), "libtree.a", "-o", output,
                  *options, *self.libraries, "-lpthread")
        return os.path.join(self.folder, output)

    # ---- The simulator

    def simulate(self, seed, count, minutes=None):
        """The first seed that fails as a string, or None; how many scenarios were tried."""
        program = self._link("simulator", [s[:-2] + ".o" for s in self.sim], WRAPPED)
        words = [program, "--seed", str(seed), "--count", str(count)]
        if minutes:
            words += ["--minutes", str(minutes)]
        _, text = execute(words, SCENARIO_SECONDS * count, memory=MEMORY_BYTES)
        found = re.search(r"seed (\d+) FAILED|signal \d+ in seed (\d+)", text)
        if found:
            return found[1] or found[2], 0
        tried = re.search(r"sim: (\d+) scenarios", text)
        return None, int(tried[1]) if tried else 0

    # ---- Unit tests

    def _of_makefile(self, name, word):
        found = re.search(rf"^tests_unit_{name}_{word} = ((?:.*\\\n)*.*)", self.makefile, re.M)
        return found[1].replace("\\\n", " ").split() if found else []

    def _objects_of(self, name):
        """Those of the test alone; what tests share is in libtests.a."""
        shared = ["tests/unit/" + s for s in ("case_filter.c", "engine.c", "scripted_file.c", "talk.c")]
        own = self._of_makefile(name, "SOURCES") or [f"tests/unit/{name}.c"]
        own = [s for s in own if s.endswith(".c")]
        for source in own + shared:
            if not os.path.exists(os.path.join(self.folder, source[:-2] + ".o")):
                self._compile(source)
        if not os.path.exists(os.path.join(self.folder, "libtests.a")):
            self._run("ar", "cr", "libtests.a", *(s[:-2] + ".o" for s in shared))
        return [s[:-2] + ".o" for s in own]

    def _flags_of(self, name):
        return [flag for flag in self._of_makefile(name, "LDFLAGS") if flag.startswith("-Wl,")]

    def _link_test(self, name):
        output = os.path.join("tests/unit", name)
        objects = self._objects_of(name) + ["libtests.a"]
        flags = self._flags_of(name)
        # Calls are wrapped in what the engine is linked with, so it cannot be shared.
        if flags:
            return self._link(output, objects, *flags)
        if not os.path.exists(os.path.join(self.folder, output)):
            self._run("cc", *objects, "-L.", "-lshared", "-Wl,-rpath," + self.folder, "-o", output,
                      *self.libraries, "-lpthread")
        return os.path.join(self.folder, output)

    def learn_tests(self):
        """Builds and runs all unit tests with the sources as they are. Those that fail are left out."""
        self.changed = {}
        self._share()
        listed = re.findall(r"^\ttests/unit/(test_\w+)", self.makefile, re.M)
        for name in dict.fromkeys(listed):
            if not os.path.exists(os.path.join(self.folder, "tests/unit", name + ".c")):
                continue
            try:
                program = self._link_test(name)
            except subprocess.CalledProcessError:
                print(f"{name} cannot be linked here, and is left out")
                continue
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            try:
                code, _ = execute([program], 60, ROOT)
            except Hung:
                code = 1
            if code:
                print(f"{name} fails here, and is left out")
                continue
            self.durations[name] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
            self.parts[name] = self._parts_of(name)
        assert any(self.parts.values())

    def _parts_of(self, name):
        """The members of the archive that a test needs."""
        said = self._run("cc", "-Wl,-t,-t", *self._objects_of(name), "libtests.a", "libtree.a", "-o",
                         "traced", *self._flags_of(name), *self.libraries, "-lpthread", text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        return set(re.findall(r"libtree\.a\)?\(?(\w+)\.o", said))

    def tests_of(self, source):
        """Unit tests that have this file in them: its own first, then the quick ones."""
        module = os.path.basename(source)[:-2]
        own = "test_" + module
        names = [name for name, parts in self.parts.items() if module in parts]
        return sorted(names, key=lambda name: (not name.startswith(own), self.durations[name]))

    def unit_test(self, name):
        """What is wrong, or None."""
        program = self._link_test(name)
        seconds = TEST_SECONDS + TEST_SLOWER * self.durations[name]
        try:
            code, text = execute([program], seconds, ROOT)
        except Hung:
            return "hangs"
        if code == 0:
            return None
        found = re.search(r"^\[  FAILED  \] (\w+)", text, re.M)
        return found[1] if found else f"ends with {code}"

    def failing_unit_test(self, sources):
        """(test, what is wrong) of the first that fails, or None."""
        for name in dict.fromkeys(name for source in sources for name in self.tests_of(source)):
            wrong = self.unit_test(name)
            if wrong:
                return name, wrong
        return None
