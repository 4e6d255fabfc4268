# SPDX-License-Identifier: Apache-2.0
import faulthandler
import os
import random
import shutil
import signal
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import lib_server  # noqa: E402  (after the path that it is found on)

# No test needs a minute on two cores; one that does says so with @pytest.mark.limit(seconds).
LIMIT_SECONDS = 120
# After this much more the whole run is ended, with a traceback: something waits in native code.
STUCK_SECONDS = 60


def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): time after which the test is ended")
    config.addinivalue_line("markers", "lazycow_only: asks for what qemu-nbd does not promise")


def pytest_report_header():
    what = "qemu-nbd as reference" if lib_server.REFERENCE else lib_server.BINARY
    return f"server under test: {what}"


def pytest_collection_modifyitems(items):
    if not lib_server.REFERENCE:
        return
    for item in items:
        if item.get_closest_marker("lazycow_only"):
            item.add_marker(pytest.mark.skip(reason="not promised by qemu-nbd"))


class TimeLimit(Exception):
    pass


@pytest.fixture(autouse=True)
def time_limit(request):
    """Ends a test that hangs, and the servers that it started."""
    before = set(lib_server.running)
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else LIMIT_SECONDS

    def expired(_number, _frame):
        for server in list(lib_server.running):
            server.kill()
        raise TimeLimit(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + STUCK_SECONDS, exit=True)
    yield
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, previous)
    for server in lib_server.running - before:
        server.kill()


@pytest.fixture
def workdir(request):
    """A directory with a short path (Unix sockets allow 107 bytes), removed if the test passes."""
    directory = tempfile.mkdtemp(prefix="lazycow-", dir=os.environ.get("LAZYCOW_TEST_DIR", "/tmp"))
    failed = request.session.testsfailed
    yield directory
    if request.session.testsfailed == failed:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"files of the failed test: {directory}")


@pytest.fixture
def seed():
    """LAZYCOW_SEED, or a fresh one; shown with the output of a test that fails."""
    value = int(os.environ.get("LAZYCOW_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"LAZYCOW_SEED={value}")
    return value
