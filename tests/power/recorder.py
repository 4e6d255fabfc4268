# SPDX-License-Identifier: Apache-2.0
"""Mounting recordfs, and finding the programs that belong to it."""
import os
import shutil
import subprocess
import tempfile
import time

import lib_server

HERE = os.path.dirname(os.path.abspath(__file__))
MOUNT_SECONDS = 120

SOURCES = {
    "recordfs": ("recordfs.c", []),
    "barrier_ioctl.so": ("barrier_ioctl.c", ["-shared", "-fPIC"]),
}
built = {}


def missing():
    """Why it cannot be used here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    return None


def program(name):
    """Path of a program made from this folder: beside the server under test, or compiled here."""
    for binary in (lib_server.PLAIN_BINARY, lib_server.BINARY):
        path = os.path.join(os.path.dirname(binary), "tests", "power", name)
        if os.path.exists(path):
            return path
    if name not in built:
        directory = tempfile.mkdtemp(prefix="lazycow-recordfs-")
        source, options = SOURCES[name]
        flags = []
        if name == "recordfs":
            flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True,
                                   stdout=subprocess.PIPE, text=True).stdout.split()
        subprocess.run(["cc", "-std=gnu17", "-O1", f"-I{lib_server.ROOT}", *options,
                        os.path.join(HERE, source), "-o", os.path.join(directory, name), *flags],
                       check=True)
        built[name] = os.path.join(directory, name)
    return built[name]


def remove_built():
    for path in built.values():
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    built.clear()


class Recorder:
    """A mounted recordfs: files in directory/lower, seen in directory/mount, changes in
    directory/log. A context manager."""

    def __init__(self, directory, barrier_us=0, write_us=0):
        self.lower = os.path.join(directory, "lower")
        self.mount = os.path.join(directory, "mount")
        self.log = os.path.join(directory, "log")
        os.makedirs(self.lower, exist_ok=True)
        os.makedirs(self.mount, exist_ok=True)
        self.options = [f"--barrier-us={barrier_us}", f"--write-us={write_us}"]
        self.process = None

    def __enter__(self):
        # libfuse 3.14 complains about its own default number of threads.
        with open(os.path.join(os.path.dirname(self.log), "recordfs.log"), "wb") as stderr:
            self.process = subprocess.Popen(
                [program("recordfs"), "-f", *self.options, self.lower, self.log, self.mount],
                stdin=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + MOUNT_SECONDS
        while not os.path.ismount(self.mount):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError("recordfs does not mount")
            time.sleep(0.002)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(MOUNT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if os.path.ismount(self.mount):
            subprocess.run(["umount", "-l", self.mount], check=False)

    def path(self, name):
        return os.path.join(self.mount, name)

    def lower_path(self, name):
        return os.path.join(self.lower, name)
