# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared, and the load generators that are put on them."""
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time

# A server that is not ready by then hangs.
START_SECONDS = 30
STOP_SECONDS = 60
# Beyond a run's own time.
LOAD_SECONDS = 120


class BenchError(Exception):
    """Something that the benchmark needs did not work."""


def run(*words, timeout=600, **keywords):
    """Runs a tool; returns its output."""
    words = [str(word) for word in words]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, timeout=timeout, check=False, **keywords)
    text = result.stdout.decode(errors="replace")
    if result.returncode != 0:
        raise BenchError(f"{' '.join(words)}: exit code {result.returncode}: {text.strip()}")
    return text


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Programs:
    """Paths of the programs: ours in the build directory, the others in PATH."""

    def __init__(self, build):
        self.lazycow = os.path.join(build, "lazycow")
        self.null = os.path.join(build, "tests", "bench", "lazycow_null")
        self.load = os.path.join(build, "tests", "bench", "nbdload")
        for path in (self.lazycow, self.null, self.load):
            if not os.access(path, os.X_OK):
                raise BenchError(f"{path} is not there; run 'make bench'")


# Names of servers in the table, and their commands. {image} is qcow2, {raw} its content as raw bytes.
# Options that mean the same are given to all.
def command(name, programs, image, address, direct):
    unix = address.get("socket")
    cache = "none" if direct else "writeback"
    if name.startswith("lazycow") or name == "null":
        program = programs.null if name == "null" else programs.lazycow
        where = ["-k", unix] if unix else ["-b", "127.0.0.1", "-p", str(address["port"])]
        more = {"lazycow threads": ["--aio=threads"],
                "lazycow raw": ["--format=raw", "--read-only"]}.get(name, [])
        return [program, "serve", "--log-level=error", f"--cache={cache}", "--max-connections=512",
                *more, *where, f"disk={image}"]
    if name.startswith("qemu-nbd"):
        where = ["-k", unix] if unix else ["-b", "127.0.0.1", "-p", str(address["port"])]
        return ["qemu-nbd", "--persistent", "--shared=512", "--format=qcow2", f"--cache={cache}",
                f"--aio={name.split()[1]}", "--discard=unmap", "--export-name=disk", *where, image]
    if name == "nbdkit file":
        where = ["-U", unix] if unix else ["-i", "127.0.0.1", "-p", str(address["port"])]
        return ["nbdkit", "--foreground", "--exit-with-parent", *where, "file", f"file={image}"]
    raise BenchError(f"no server named {name}")


class Server:
    """A running server; a context manager."""

    def __init__(self, name, programs, image, directory, tcp=False, direct=False, wrap=()):
        self.address = ({"port": free_port()} if tcp
                        else {"socket": os.path.join(directory, "bench.sock")})
        self.words = [*wrap, *command(name, programs, image, self.address, direct)]
        # Messages about clients that vanish do not matter, unless a server fails.
        self.log = os.path.join(directory, "server.log")
        self.process = None
        self.pid = None

    def __enter__(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address.get("socket", ""))
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, stderr=log)
        self.pid = self.process.pid
        try:
            self.connect().close()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def connect(self):
        """Connects as soon as that works."""
        end = time.monotonic() + START_SECONDS
        while True:
            unix = "socket" in self.address
            link = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
            try:
                link.connect(self.address["socket"] if unix
                             else ("127.0.0.1", self.address["port"]))
                return link
            except OSError as error:
                link.close()
                if self.process.poll() is not None:
                    with open(self.log, encoding="utf-8", errors="replace") as log:
                        raise BenchError(f"{' '.join(self.words)}: {log.read().strip()}") from error
                if time.monotonic() > end:
                    raise BenchError(f"{' '.join(self.words)}: not ready") from error
                time.sleep(0.0005)

    def stop(self):
        self.process.terminate()
        self.process.wait(STOP_SECONDS)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()

    def load_words(self, programs, arguments):
        where = (["--socket", self.address["socket"]] if "socket" in self.address
                 else ["--host", "127.0.0.1", "--port", str(self.address["port"])])
        return [programs.load, *where, "--export=disk", *arguments]

    def load(self, programs, arguments, pid=None):
        """Runs nbdload; returns its result."""
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            run(*self.load_words(programs, arguments), f"--pid={pid or self.pid}",
                f"--json={out.name}", timeout=LOAD_SECONDS)
            return json.load(out)

    def fio(self, arguments, seconds):
        """Runs fio's nbd engine; returns IOPS of reads and writes together."""
        uri = (f"nbd+unix:///disk?socket={self.address['socket']}" if "socket" in self.address
               else f"nbd://127.0.0.1:{self.address['port']}/disk")
        return fio("--ioengine=nbd", f"--uri={uri}", *arguments, seconds=seconds)


def fio(*arguments, seconds):
    text = run("fio", "--name=bench", "--output-format=json", "--time_based", f"--runtime={seconds}",
               *arguments, timeout=LOAD_SECONDS)
    # Notes may stand before the object.
    job = json.loads(text[text.index("{"):])["jobs"][0]
    return {"iops": job["read"]["iops"] + job["write"]["iops"]}


def memory(pid):
    """Resident memory in MiB: all of it, and without the pages of files."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {"rss_mib": int(fields["VmRSS"].split()[0]) / 1024,
            "anonymous_mib": int(fields["RssAnon"].split()[0]) / 1024}
