# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in qemu without hardware virtualisation: the distribution's kernel, and an initial
file system made of busybox, the modules that the disk needs and the host's mkfs.ext4."""
import glob
import gzip
import lzma
import os
import re
import shutil
import stat
import subprocess
import threading
import time

import lib_tools

MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")

# An idle machine boots a guest in 10 seconds; one with six busy processes more needs over a minute.
GUEST_SECONDS = 600


def kernel():
    """(path, release) of the newest installed kernel that has its modules."""
    def version(path):
        return [int(part) for part in re.findall(r"\d+", os.path.basename(path))]
    for path in sorted(glob.glob("/boot/vmlinuz-*"), key=version, reverse=True):
        release = os.path.basename(path)[len("vmlinuz-"):]
        if os.path.isdir(f"/lib/modules/{release}/kernel"):
            return path, release
    raise AssertionError("no kernel with modules in /boot; install linux-image-amd64")


def module_paths(release, modules):
    """The files of modules and of all that they need, in the order in which to load them."""
    root = f"/lib/modules/{release}"
    needs = {}
    names = {}
    with open(f"{root}/modules.dep", encoding="ascii") as listing:
        for line in listing:
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
            names[os.path.basename(path).split(".")[0].replace("-", "_")] = path
    order = []

    def visit(path):
        for needed in reversed(needs[path]):
            visit(needed)
        if path not in order:
            order.append(path)
    for name in modules:
        if name in names:  # else it is part of the kernel
            visit(names[name])
    return [os.path.join(root, path) for path in order]


def has_module(release, name):
    """Returns true when the guest's kernel can have the module, loaded or built in."""
    listings = [f"/lib/modules/{release}/{listing}" for listing in ("modules.dep",
                                                                    "modules.builtin")]
    for listing in listings:
        with open(listing, encoding="ascii") as stream:
            if re.search(rf"/{name}\.ko\b", stream.read()):
                return True
    return False


def unpack_module(path, target):
    """Copies a module; busybox loads only uncompressed ones."""
    if path.endswith(".xz"):
        opener = lzma.open
    elif path.endswith(".gz"):
        opener = gzip.open
    elif path.endswith(".zst"):
        lib_tools.run("zstd", "-q", "-d", path, "-o", target)
        return
    else:
        opener = open
    with opener(path, "rb") as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out)


def copy_program(path, root):
    """A program of the host with the shared libraries that it is linked with."""
    shutil.copy(path, os.path.join(root, "bin"))
    for library in re.findall(r"(/\S+) \(0x", lib_tools.run("ldd", path, codes=(0, 1))):
        target = root + library
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(library, target)


def compiled(directory, name):
    """A C program of this folder for guests, which need no library for it. Returns its path."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.c")
    program = os.path.join(directory, name)
    lib_tools.run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, source)
    return program


def build_initramfs(directory, release, script, modules=MODULES, programs=()):
    """The initial file system, whose /init loads the modules, runs script and powers off."""
    root = os.path.join(directory, "root")
    for name in ("bin", "dev", "proc", "sys", "mnt", "modules", "tmp"):
        os.makedirs(os.path.join(root, name))
    shutil.copy(shutil.which("busybox"), os.path.join(root, "bin", "busybox"))
    copy_program(shutil.which("mkfs.ext4") or "/sbin/mkfs.ext4", root)
    copy_program(shutil.which("e2fsck") or "/sbin/e2fsck", root)
    for program in programs:
        copy_program(shutil.which(program) or f"/sbin/{program}", root)
    loads = []
    for number, path in enumerate(module_paths(release, modules)):
        name = f"{number:02}.ko"
        unpack_module(path, os.path.join(root, "modules", name))
        loads.append(f"insmod /modules/{name} || echo 'not loaded: {os.path.basename(path)}'")
    init = os.path.join(root, "init")
    with open(init, "w", encoding="ascii") as stream:
        stream.write("\n".join([
            "#!/bin/busybox sh",
            "/bin/busybox --install -s /bin",
            "export PATH=/bin",
            "mount -t devtmpfs none /dev; mount -t proc none /proc; mount -t sysfs none /sys",
            "echo 2 > /proc/sys/kernel/printk",
            *loads,
            *(["for wait in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; sleep 1; done"]
              if "virtio_blk" in modules else []),
            "fail() { echo \"GUEST FAILED: $*\"; sync; poweroff -f; }",
            "sh -e /script || fail script",
            "sync",
            "echo GUEST DONE",
            "poweroff -f",
            "",
        ]))
    os.chmod(init, os.stat(init).st_mode | stat.S_IXUSR)
    # In a shell of its own: -e has no effect inside a list with ||.
    with open(os.path.join(root, "script"), "w", encoding="ascii") as stream:
        stream.write(script)
    archive = os.path.join(directory, "initramfs")
    names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names, stdout=out,
                       check=True)
    shutil.rmtree(root)
    return archive


def boot(directory, drive, script, timeout=GUEST_SECONDS):
    """Runs script in a guest that has drive (-drive's words) as /dev/vda. Returns its output."""
    return boot_with(directory, ["-drive", drive], script, timeout=timeout)


def boot_with(directory, devices, script, modules=MODULES, programs=(), timeout=GUEST_SECONDS):
    """Boots with other devices (words for qemu), and the modules and programs that they need. The
    guest's output is in the file `console` of the directory at once."""
    path, release = kernel()
    archive = build_initramfs(directory, release, script, modules, programs)
    console = os.path.join(directory, "console")
    lib_tools.run(
        "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "384",
        "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{console}", "-kernel", path, "-initrd", archive,
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on",
        *devices, timeout=timeout)
    os.unlink(archive)
    with open(console, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    assert "GUEST DONE" in text and "GUEST FAILED" not in text, text[-6000:]
    for bad in ("I/O error", "EXT4-fs error", "not loaded"):
        assert bad not in text, text[-6000:]
    return text


def console(directory):
    """Returns the guest's output so far."""
    try:
        with open(f"{directory}/console", encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


class BackgroundGuest:
    """boot_with() in a thread, while the test does something to the server; a context manager."""

    def __init__(self, directory, *words, timeout, **keywords):
        self.directory = directory
        self.timeout = timeout
        self.said = None
        self.thread = threading.Thread(
            target=self.run, args=(directory, *words), kwargs={"timeout": timeout, **keywords})

    def run(self, *words, **keywords):
        try:
            self.said = boot_with(*words, **keywords)
        except Exception as error:  # raised by result(), in the test's own thread
            self.said = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join(self.timeout + 10)

    def wait_until(self, reached):
        """Waits for something that the guest brings about."""
        while self.thread.is_alive() and not reached():
            time.sleep(0.2)
        assert self.thread.is_alive(), self.said

    def wait_for_word(self, word):
        self.wait_until(lambda: word in console(self.directory))

    def result(self):
        """Returns the guest's whole output when it has ended."""
        self.thread.join(self.timeout)
        assert isinstance(self.said, str), self.said
        return self.said
