# SPDX-License-Identifier: Apache-2.0
"""Starting, reaching and stopping the server under test.

Environment:
  LAZYCOW            the binary, default build/lazycow at the root of the tree
  LAZYCOW_PLAIN      a binary without sanitizers, for what is counted or measured; default LAZYCOW
  LAZYCOW_REFERENCE  "qemu-nbd": run it in place of lazycow, with the options that mean the same.
                     A test that it fails as well asks for more than the interface promises.
"""
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse

import nbd

import lib_machine

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.path.abspath(os.environ.get("LAZYCOW", os.path.join(ROOT, "build", "lazycow")))
PLAIN_BINARY = os.path.abspath(os.environ.get("LAZYCOW_PLAIN", BINARY))
REFERENCE = os.environ.get("LAZYCOW_REFERENCE", "") == "qemu-nbd"

# Longer means that it hangs. A sanitized server on two cores is up within a second, on a machine that
# is busy with other things within ten.
START_SECONDS = 120
# The stop writes every refcount and runs the leak checker.
STOP_SECONDS = 120
# For whatever else must come: a reply, the end of a connection, a line of the log.
PATIENCE_SECONDS = 120


def wait_for(condition):
    """Waits until the condition holds. This is the only use of time in an assertion: an awaited
    event may take long, and no event has to be quick."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not after {PATIENCE_SECONDS} s"
        time.sleep(0.02)

SANITIZER = re.compile(
    r"(AddressSanitizer|LeakSanitizer|UndefinedBehaviorSanitizer|ThreadSanitizer|runtime error:)")

# Every server that runs, so that a test which hangs can be ended without leaving one behind.
running = set()


def sanitizer_environment(extra=None):
    environment = dict(os.environ)
    environment["ASAN_OPTIONS"] = "exitcode=99:detect_stack_use_after_return=1"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
    environment.pop("LISTEN_FDS", None)
    environment.pop("NOTIFY_SOCKET", None)
    environment.update(extra or {})
    return environment


def default_name(image):
    """The export name of an image that was given none: the file's name without its extension."""
    return os.path.splitext(os.path.basename(image))[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server; a context manager that stops it cleanly and checks that it was clean."""

    count = 0

    def __init__(self, directory, *images, tcp=False, options=(), cache=None, aio=None,
                 read_only=False, discard="unmap", detect_zeroes=None, lazy_refcounts=None,
                 image_format=None, backing_format=None, max_connections=None, wrapper=(),
                 plain=False, environment=None, pass_fds=(), socket_path=None, wait=True):
        """images: paths, or (name, path) pairs. wrapper: words before the command (strace).
        socket_path: "" for none, if another option gives the address."""
        if aio == "io_uring" and not REFERENCE:
            lib_machine.need(lib_machine.io_uring_obstacle())
        if wrapper and wrapper[0] == "strace":
            lib_machine.need(lib_machine.ptrace_obstacle())
        Server.count += 1
        self.directory = str(directory)
        self.images = [image if isinstance(image, tuple) else (None, str(image))
                       for image in images]
        self.socket = (os.path.join(self.directory, f"s{Server.count}") if socket_path is None
                       else socket_path)
        self.port = None
        self.tcp = tcp
        self.lines = []
        self.stderr_path = os.path.join(self.directory, f"stderr{Server.count}")
        self.binary = PLAIN_BINARY if plain else BINARY
        if REFERENCE:
            command = self._reference_command(cache, aio, read_only, discard, detect_zeroes,
                                              lazy_refcounts, image_format, max_connections)
        else:
            command = self._command(cache, aio, read_only, discard, detect_zeroes, lazy_refcounts,
                                    image_format, backing_format, max_connections)
        command += list(options)
        command += [f"{name}={path}" if name and not REFERENCE else str(path)
                    for name, path in self.images]
        self.command = list(wrapper) + command
        with open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                pass_fds=pass_fds, env=sanitizer_environment(environment))
        running.add(self)
        self.pid = self.process.pid
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def _command(self, cache, aio, read_only, discard, detect_zeroes, lazy_refcounts, image_format,
                 backing_format, max_connections):
        command = [self.binary, "serve"]
        if self.tcp:
            command += ["--bind", "127.0.0.1", "--port", "0"]
        elif self.socket:
            command += ["--socket", self.socket]
        for option, value in (("cache", cache), ("aio", aio), ("discard", discard),
                              ("detect-zeroes", detect_zeroes),
                              ("lazy-refcounts", lazy_refcounts), ("format", image_format),
                              ("backing-format", backing_format),
                              ("max-connections", max_connections)):
            if value is not None:
                command.append(f"--{option}={value}")
        if read_only:
            command.append("--read-only")
        return command

    def _reference_command(self, cache, aio, read_only, discard, detect_zeroes, lazy_refcounts,
                           image_format, max_connections):
        name, path = self.images[0]
        command = ["qemu-nbd", "-t", "-x", name or default_name(path),
                   "-e", str(max_connections or 0)]
        if self.tcp:
            self.port = free_port()
            command += ["-b", "127.0.0.1", "-p", str(self.port)]
        else:
            command += ["-k", self.socket]
        for option, value in (("cache", cache), ("aio", aio), ("discard", discard),
                              ("detect-zeroes", detect_zeroes)):
            if value is not None:
                command.append(f"--{option}={value}")
        if read_only:
            command.append("-r")
        if lazy_refcounts:
            self.images = [(None, f"driver=qcow2,lazy-refcounts={lazy_refcounts},"
                                  f"file.driver=file,file.filename={path}")]
            command.append("--image-opts")
        else:
            command += ["-f", image_format or "qcow2"]
        self.reference_name = name or default_name(path)
        return command

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        if REFERENCE:
            self._wait_reference(deadline)
            return
        line = self._read_line(deadline)
        assert line.startswith("listening on "), f"first line of standard output: {line!r}"
        self.lines.append(line)
        self.uri = line[len("listening on "):]
        if self.tcp:
            self.port = urllib.parse.urlsplit(self.uri).port
            assert self.port, f"no port in {self.uri}"

    def _read_line(self, deadline):
        data = b""
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(left, 0))
            assert ready, f"not ready after {START_SECONDS} s: {self.command}\n{self.stderr_tail()}"
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                code = self.process.wait(STOP_SECONDS)
                raise AssertionError(f"ended with {code} before it was ready: {self.command}\n"
                                     f"{self.stderr_tail()}")
            data += byte
        return data.decode().rstrip("\n")

    def _wait_reference(self, deadline):
        # The greeting is sent by the main loop, so a stop after it is not lost.
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.stderr_tail()
            try:
                with self.raw_socket() as probe:
                    if probe.recv(18):
                        break
            except OSError:
                time.sleep(0.01)
        name = urllib.parse.quote(self.reference_name)
        self.uri = (f"nbd://127.0.0.1:{self.port}/{name}" if self.tcp
                    else f"nbd+unix:///{name}?socket={self.socket}")

    # ---- Reaching it ----------------------------------------------------------------------------

    def name(self, index=0):
        if REFERENCE:
            return self.reference_name
        name, path = self.images[index]
        return name or default_name(path)

    def uri_of(self, name):
        name = urllib.parse.quote(name, safe="")
        return (f"nbd://127.0.0.1:{self.port}/{name}" if self.tcp
                else f"nbd+unix:///{name}?socket={self.socket}")

    def raw_socket(self, timeout=PATIENCE_SECONDS):
        if self.tcp:
            return socket.create_connection(("127.0.0.1", self.port), timeout)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(self.socket)
        except OSError:
            connection.close()
            raise
        return connection

    def connect(self, name=None, structured=True, contexts=("base:allocation",), strict=True):
        """A libnbd handle on an export, default the first."""
        handle = nbd.NBD()
        handle.set_request_structured_replies(structured)
        if structured:
            for context in contexts:
                handle.add_meta_context(context)
        if not strict:
            handle.set_strict_mode(0)
        handle.set_export_name(self.name() if name is None else name)
        if self.tcp:
            handle.connect_tcp("127.0.0.1", str(self.port))
        else:
            handle.connect_unix(self.socket)
        return handle

    def one_of_each(self):
        """Makes one request of each kind. Descriptors that are opened for the first request of a
        kind stay open, so this comes before descriptors are compared."""
        handle = self.connect()
        handle.pwrite(handle.pread(4096, 0), 0)
        handle.block_status(handle.get_size(), 0, lambda *_: 0)
        handle.trim(4096, 0)
        handle.zero(4096, 0)
        handle.flush()
        handle.shutdown()

    # ---- Looking at it --------------------------------------------------------------------------

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as stderr:
            return stderr.read()

    def stderr_tail(self):
        return self.stderr()[-4000:]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self, field="VmRSS"):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field}")

    def alive(self):
        return self.process.poll() is None

    # ---- Stopping it ----------------------------------------------------------------------------

    def hold_and_stop(self):
        """Tells the server to stop while it is held: bytes that are sent now come behind the
        signal. SIGCONT lets it go."""
        wait_for(self._rests)
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: self._state() == "T")
        self.process.send_signal(signal.SIGTERM)

    def _stat(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()

    def _state(self):
        return self._stat()[0]

    def cpu_ticks(self):
        return sum(map(int, self._stat()[11:13]))

    def _rests(self):
        """True where it has slept for half a second: it waits for events, none is left over."""
        before = self.switches()
        time.sleep(0.5)
        return self._state() == "S" and self.switches() - before <= 2  # a tick

    def switches(self):
        """How often its threads went to sleep or lost the processor."""
        count = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with open(f"/proc/{self.pid}/task/{task}/status", encoding="ascii") as status:
                count += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
        return count

    def check_sanitizers(self):
        text = self.stderr()
        found = SANITIZER.search(text)
        assert not found, text[max(0, found.start() - 200):found.start() + 6000]

    def wait_exit(self, timeout=STOP_SECONDS):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"did not stop within {timeout} s: {self.command}\n{self.stderr_tail()}") from None
        finally:
            running.discard(self)
        rest = self.process.stdout.read().decode()
        self.process.stdout.close()
        self.lines += rest.splitlines()
        return code

    def stop(self, number=signal.SIGTERM, codes=(0,), timeout=STOP_SECONDS):
        """Stops it as an operator would; it must end with one of codes and no sanitizer report."""
        if self.process.returncode is not None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.wait_exit(timeout)
        self.check_sanitizers()
        assert code in codes, f"exit code {code}: {self.command}\n{self.stderr_tail()}"
        if not REFERENCE:
            other = [line for line in self.lines if not line.startswith("listening on ")]
            assert not other, f"on standard output: {other}"

    def kill(self):
        """As a crash would; nothing is checked."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if not self.process.stdout.closed:
            self.process.stdout.close()
        running.discard(self)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            self.stop()
        else:
            self.kill()
            text = self.stderr_tail()
            if text:
                print(f"standard error of {self.command}:\n{text}")


def refused(directory, *arguments, timeout=STOP_SECONDS, environment=None):
    """Runs `lazycow serve` with arguments that it must refuse; returns its one line of error. A server
    that begins to serve fails the test at once."""
    with tempfile.TemporaryFile() as stderr:
        with subprocess.Popen([BINARY, "serve", *map(str, arguments)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=stderr, cwd=str(directory),
                              env=sanitizer_environment(environment)) as process:
            try:
                ready, _, _ = select.select([process.stdout], [], [], timeout)
                assert ready, f"neither refused nor served after {timeout} s: {arguments}"
                said = os.read(process.stdout.fileno(), 4096)
                assert said == b"", f"not refused: {arguments}: {said}"
                code = process.wait(timeout)
            finally:
                process.kill()
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    assert not SANITIZER.search(text), text
    assert code == 1, f"exit code {code}: {arguments}\n{text}"
    lines = text.splitlines()
    assert len(lines) == 1, f"not one line: {text!r}"
    return lines[0]
