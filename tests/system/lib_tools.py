# SPDX-License-Identifier: Apache-2.0
"""qemu's tools and others, run with a time limit, their output in the error where they fail."""
import hashlib
import json
import os
import subprocess

import lib_qcow2

# Scales how much random work the suite does; 1 keeps all of it under ten minutes on two idle cores.
SCALE = float(os.environ.get("LAZYCOW_TEST_SCALE", "1"))


def scaled(count):
    return max(1, round(count * SCALE))


def run(*arguments, timeout=300, codes=(0,), **keywords):
    arguments = [str(argument) for argument in arguments]
    result = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, timeout=timeout, check=False, **keywords)
    text = result.stdout.decode(errors="replace")
    assert result.returncode in codes, f"exit code {result.returncode}: {arguments}\n{text}"
    return text


def qemu_img(*arguments, **keywords):
    return run("qemu-img", *arguments, **keywords)


def qemu_io(image, *commands, image_format="qcow2", options=()):
    words = ["qemu-io", "-f", image_format, *options]
    for command in commands:
        words += ["-c", command]
    text = run(*words, image)
    # qemu-io ends with 0 for some failures.
    assert "failed" not in text and "error" not in text.lower(), text
    return text


def create(path, size, base=None, base_format=None, **options):
    """qemu-img create; options as -o takes them. Returns the path."""
    words = ["create", "-q", "-f", "qcow2"]
    if options:
        words += ["-o", ",".join(f"{name}={value}" for name, value in options.items())]
    if base:
        words += ["-b", base, "-F", base_format]
    qemu_img(*words, path, *([] if size is None else [size]))
    return str(path)


def check_report(image):
    text = qemu_img("check", "--output=json", "-f", "qcow2", image, codes=(0, 2, 3))
    start = text.find("{")
    assert start >= 0, text
    return json.loads(text[start:])


def check_clean(image):
    """Checks that the image has no error, no leak, and neither a dirty nor a corrupt bit."""
    report = check_report(image)
    for field in ("check-errors", "corruptions", "leaks"):
        assert report.get(field, 0) == 0, report
    header = lib_qcow2.Header(image)
    assert header.incompatible & 3 == 0, f"incompatible features {header.incompatible:#x}"
    return report


def read_all(image, image_format="qcow2", snapshot=None):
    """Reads the whole image with qemu."""
    raw = f"{image}.all"
    words = ["convert", "-f", image_format, "-O", "raw"]
    if snapshot:
        words += ["-l", f"snapshot.name={snapshot}"]
    qemu_img(*words, image, raw)
    with open(raw, "rb") as stream:
        content = stream.read()
    os.unlink(raw)
    return content


def compare_raw(image, content, image_format="qcow2"):
    """qemu-img finds the image identical to content."""
    raw = f"{image}.model"
    with open(raw, "wb") as stream:
        stream.write(content)
    text = qemu_img("compare", "-f", "raw", "-F", image_format, raw, image, codes=(0, 1))
    assert "identical" in text, text
    os.unlink(raw)


def digest(path):
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def host_bytes(path):
    return os.stat(path).st_blocks * 512
