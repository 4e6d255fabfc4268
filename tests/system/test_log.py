# SPDX-License-Identifier: Apache-2.0
"""Lines on standard error: priorities for the journal, times for others."""
import datetime
import os
import re
import subprocess

import pytest

import lib_server
import lib_tools
from lib_server import Server

pytestmark = pytest.mark.lazycow_only


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", 1 << 20, lazy_refcounts="on")


def journal_of(path):
    """JOURNAL_STREAM for a process whose standard error is the file."""
    found = os.stat(path)
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


def served_lines(workdir, image, options=(), environment=None):
    """The log lines of a server with a client that finds no export, and one that finds one."""
    with Server(workdir, image, options=options, environment=environment) as server:
        server.connect().shutdown()
        with pytest.raises(Exception):
            server.connect("none")
    return server.stderr().splitlines()


def to_the_journal(workdir, arguments):
    """The lines of a command whose standard error is the journal, as far as it can tell."""
    path = f"{workdir}/journal"
    with open(path, "wb") as stream:
        subprocess.run([lib_server.BINARY, *arguments], stderr=stream, timeout=60, check=False,
                       stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                       env=lib_server.sanitizer_environment(journal_of(path)))
    with open(path, encoding="utf-8") as stream:
        return stream.read().splitlines()


def test_priorities_for_the_journal(workdir, image):
    # The file is there before the server, so that its number is known.
    path = f"{workdir}/stderr{Server.count + 1}"
    with open(path, "wb"):
        pass
    lines = served_lines(workdir, image, ["-v"], journal_of(path))
    assert all(re.match(r"<[3467]>lazycow: ", line) for line in lines), lines
    assert [line[:3] for line in lines if "stopping" in line] == ["<6>"]
    assert [line[:3] for line in lines if "accepted" in line][0] == "<7>"


@pytest.mark.parametrize("arguments", [
    ["serve", "none.qcow2"], ["serve", "--no-such-option"], ["serve"], ["create", "/none/a", "1G"],
    ["info", "none"], ["nonsense"]])
def test_errors_for_the_journal(workdir, arguments):
    assert to_the_journal(workdir, arguments)[0].startswith("<3>lazycow: ")


def test_only_what_goes_to_the_journal(workdir, image):
    """The variable is inherited where standard error is not."""
    for value in ("1:1", "", ":", "x"):
        lines = served_lines(workdir, image, environment={"JOURNAL_STREAM": value})
        assert lines and all(line.startswith("lazycow: ") for line in lines), lines


def test_timestamps(workdir, image):
    before = datetime.datetime.now(datetime.timezone.utc)
    # A zone with an offset, to tell UTC from local time.
    lines = served_lines(workdir, image, ["--log-timestamps"], {"TZ": "UTC-5"})
    after = datetime.datetime.now(datetime.timezone.utc)
    times = []
    for line in lines:
        found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z lazycow: ", line)
        assert found, line
        times.append(datetime.datetime.fromisoformat(found[1] + "+00:00"))
    assert times == sorted(times) and len(times) > 2
    millisecond = datetime.timedelta(milliseconds=1)
    assert before - millisecond <= times[0] and times[-1] <= after


def test_timestamps_of_errors_at_the_start(workdir):
    result = subprocess.run([lib_server.BINARY, "serve", "--log-timestamps", "none.qcow2"],
                            cwd=workdir, capture_output=True, check=False, timeout=60)
    assert re.match(rb"\d{4}-.*Z lazycow: .*none\.qcow2", result.stderr), result.stderr


def test_no_timestamps_in_the_journal(workdir):
    [line] = to_the_journal(workdir, ["serve", "--log-timestamps", "none.qcow2"])
    assert line.startswith("<3>lazycow: ")
