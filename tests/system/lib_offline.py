# SPDX-License-Identifier: Apache-2.0
"""The offline commands, compared with qemu-img."""
import json
import subprocess

import lib_server


class Answer:
    """The result of a command: code, out and err."""

    def __init__(self, result):
        self.code = result.returncode
        self.out = result.stdout.decode(errors="replace")
        self.err = result.stderr.decode(errors="replace")
        assert not lib_server.SANITIZER.search(self.err), self.err
        assert self.code >= 0, f"ended by signal {-self.code}: {self.err}"

    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def ask(*words, cwd=None):
    return Answer(subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
                                 check=False, cwd=cwd,
                                 env=lib_server.sanitizer_environment()))


def lazycow(*words, cwd=None):
    return ask(lib_server.BINARY, *words, cwd=cwd)


def qemu_img(*words, cwd=None):
    return ask("qemu-img", *words, cwd=cwd)


def one_line(answer, *parts):
    """An error: exit code 1 and one line on standard error, which has all the parts in it."""
    assert answer.code == 1, answer
    assert answer.err.startswith("lazycow: "), answer
    assert answer.err.count("\n") == 1, answer
    for part in parts:
        assert part in answer.err, answer
