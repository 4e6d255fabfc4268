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

import lib_server  # noqa: E402  (after the path that they are found on)
import lib_tools  # noqa: E402
import lib_wire  # noqa: E402

# A test that takes longer hangs: none needs a minute on two idle cores, and a busy machine is several
# times slower. One that needs more says so with @pytest.mark.limit(seconds).
LIMIT_SECONDS = 300
# After this much more the whole run is ended, with a traceback: something waits in native code.
STUCK_SECONDS = 60


def take_no_signals_over():
    """Resets ignored signals. A server started here would inherit signals that nohup, or a shell
    for its background, has ignored, until it asks for them itself. A handler, in contrast, ends
    with exec."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_configure(config):
    take_no_signals_over()
    config.addinivalue_line("markers", "limit(seconds): time after which the test is ended")
    config.addinivalue_line("markers", "slow: takes more than a few seconds; not for runtests --quick")
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
    seconds = int((marker.args[0] if marker else LIMIT_SECONDS) * max(lib_tools.SCALE, 1))

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


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A server for protocol probes, none of which may disturb the next: 64 MiB, of which the first
    holds 5s and 64 KiB at 2 MiB hold 6s."""
    directory = tmp_path_factory.mktemp("p")
    image = lib_tools.create(directory / "disk.qcow2", 64 << 20, lazy_refcounts="on")
    lib_tools.qemu_io(image, "write -P 5 0 1M", "write -P 6 2M 64k")
    with lib_server.Server(directory, image) as server:
        yield server
    lib_tools.check_clean(image)


@pytest.fixture
def wire(probed):
    """A raw connection to it."""
    with lib_wire.Wire(probed) as connection:
        yield connection
