# SPDX-License-Identifier: Apache-2.0
"""Running the server under a service manager, as another user, or for one program."""
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time

import nbd
import pytest

import lib_server
import lib_tls
import lib_tools
from lib_server import ROOT, Server, refused, wait_for
from lib_tools import run
from lib_wire import OPT_EXPORT_NAME, OPT_GO, Wire, go_data, option_bytes

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI


@pytest.fixture
def image(workdir):
    path = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(path, "write -P 5 1M 64k")
    return path


def ids(server):
    """(uids, gids, supplementary groups) of the server's threads, which must be equal."""
    found = set()
    for thread in os.listdir(f"/proc/{server.pid}/task"):
        with open(f"/proc/{server.pid}/task/{thread}/status", encoding="ascii") as status:
            fields = dict(line.rstrip("\n").split(":", 1) for line in status)
        found.add((tuple(fields["Uid"].split()), tuple(fields["Gid"].split()),
                   fields["Groups"].strip()))
    [one] = found
    return one


# ---- --user and --group -------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


@needs_root
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_user(workdir, image, aio):
    """Images, socket and pid file are opened as root; then root's rights are dropped."""
    nobody = pwd.getpwnam("nobody")
    os.chmod(workdir, 0o755)
    assert os.stat(image).st_uid == 0 and stat.S_IMODE(os.stat(image).st_mode) & 2 == 0
    with Server(workdir, image, aio=aio,
                options=["--user=nobody", f"--pid-file={workdir}/pid"]) as server:
        uid, gid = str(nobody.pw_uid), str(nobody.pw_gid)
        handle = server.connect()
        handle.pwrite(b"x" * 4096, 0)
        handle.flush()
        assert ids(server) == ((uid,) * 4, (gid,) * 4, "")
        with open(f"{workdir}/pid", encoding="ascii") as stream:
            assert int(stream.read()) == server.pid
        assert os.stat(server.socket).st_uid == nobody.pw_uid
        handle.shutdown()
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 0x78 0 4096", "read -P 5 1M 64k")


@needs_root
def test_user_and_group_by_number(workdir, image):
    with Server(workdir, image, options=["--user=12345", "--group=54321"]) as server:
        assert ids(server) == (("12345",) * 4, ("54321",) * 4, "")
        server.connect().shutdown()


def test_unknown_user_and_group(workdir, image):
    where = f"--socket={workdir}/s"
    assert "no such user" in refused(workdir, where, "--user=nosuchuser", image)
    assert "no such group" in refused(workdir, where, "--group=nosuchgroup", image)
    assert "--group" in refused(workdir, where, "--user=4294967", image)
    assert not os.path.exists(f"{workdir}/s")


# ---- --exit-with-last-client --------------------------------------------------------------------

def test_exit_with_last_client(workdir, image):
    server = Server(workdir, image, options=["--exit-with-last-client"])
    # One that looks at the list only, and one that says nothing, are no clients.
    run("nbdinfo", "--list", "--json", "--no-content", f"nbd+unix:///?socket={server.socket}")
    server.raw_socket().close()
    time.sleep(0.3)
    if not server.alive():
        pytest.fail("it has ended before there was a client")
    first, second = server.connect(), server.connect()
    first.shutdown()
    time.sleep(0.3)
    assert server.alive()
    second.pwrite(b"y" * 512, 0)
    second.shutdown()
    assert server.wait_exit() == 0
    server.check_sanitizers()
    lib_tools.check_clean(image)
    assert not os.path.exists(server.socket)


BRACKETS = ["[", lib_server.BINARY, "serve", "--exit-with-last-client"]


def test_nbdcopy_in_square_brackets(workdir, image):
    out = f"{workdir}/out.raw"
    run("nbdcopy", "--", *BRACKETS, image, "]", out)
    lib_tools.qemu_io(out, "read -P 5 1M 64k", "read -P 0 0 1M", image_format="raw")
    with open(out, "r+b") as stream:
        stream.seek(2 * MEBI)
        stream.write(b"\6" * MEBI)
    run("nbdcopy", "--", out, *BRACKETS, image, "]")
    lib_tools.check_clean(image)
    lib_tools.qemu_io(image, "read -P 5 1M 64k", "read -P 6 2M 1M")


def test_standard_output_belongs_to_the_program_that_starts_it(workdir, image):
    result = subprocess.run(["nbdcopy", "--", *BRACKETS, image, "]", "-"], check=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300)
    assert len(result.stdout) == SIZE
    assert result.stdout[MEBI:MEBI + 65536] == b"\5" * 65536


# ---- systemd ------------------------------------------------------------------------------------

def test_units_verify(workdir):
    """systemd-analyze has nothing to say about the units."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    for kind in ("service", "socket"):
        with open(f"{ROOT}/dist/systemd/lazycow@.{kind}", encoding="ascii") as source:
            text = source.read()
        # It looks for the program, which need not be installed here.
        text = text.replace("ExecStart=lazycow ", f"ExecStart={lib_server.BINARY} ")
        with open(f"{workdir}/lazycow@.{kind}", "w", encoding="ascii") as out:
            out.write(text)
    text = run("systemd-analyze", "verify", "--man=no", f"{workdir}/lazycow@.service",
               f"{workdir}/lazycow@.socket")
    assert text == ""


def test_user_of_the_units():
    """systemd-sysusers takes the file, which makes the user that the service names."""
    if not shutil.which("systemd-sysusers"):
        pytest.skip("there is no systemd-sysusers")
    with open(f"{ROOT}/dist/systemd/lazycow@.service", encoding="ascii") as stream:
        assert "User=lazycow\n" in stream.read()
    with open(f"{ROOT}/dist/systemd/lazycow.conf", encoding="ascii") as stream:
        assert "\nu lazycow " in stream.read()
    run("systemd-sysusers", "--dry-run", f"{ROOT}/dist/systemd/lazycow.conf")


def test_reload_keeps_the_connections(workdir, image):
    """Does the work of the unit's ExecReload."""
    with Server(workdir, image) as server:
        handle = server.connect()
        server.process.send_signal(signal.SIGHUP)
        for _ in range(20):
            assert handle.pread(512, MEBI) == b"\5" * 512
            time.sleep(0.01)
        server.connect().shutdown()
        handle.shutdown()


def test_sigusr1_dumps_what_goes_on(workdir, image):
    """The dump comes at any log level, and the server goes on."""
    with Server(workdir, image, options=("--log-level=error",)) as server:
        handle = server.connect()
        server.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: "releaser" in server.stderr())
        log = server.stderr()
        assert "dump: 1 connections, 1 of them past negotiation" in log
        assert "export 'disk', wants bytes; 0 requests" in log
        assert "dump: export 'disk': requests: 0" in log
        assert "dump: export 'disk': sync: idle;" in log
        assert handle.pread(512, MEBI) == b"\5" * 512
        handle.shutdown()


def test_trace_tells_of_each_request(workdir, image):
    with Server(workdir, image, options=("--log-level=trace",)) as server:
        handle = server.connect()
        handle.pwrite(b"\6" * 512, 0, nbd.CMD_FLAG_FUA)
        log = server.stderr()
        assert "starts: write of 512 bytes at 0 (0 done), state plan" in log
        assert "stage: sync, state durable" in log
        assert "done: write of 512 bytes at 0 (512 done), state sync" in log
        handle.shutdown()


# ---- The log ------------------------------------------------------------------------------------

def test_log_says_why_a_client_got_no_export(workdir, image):
    """Once a connection, at the usual level; questions about exports are no complaint."""
    with Server(workdir, image) as server:
        run("nbdinfo", "--list", "--json", "--no-content", f"nbd+unix:///?socket={server.socket}")
        assert server.stderr() == ""
        run("nbdinfo", f"nbd+unix:///dsik?socket={server.socket}", codes=(1,))
        with Wire(server) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_EXPORT_NAME, b"other\x1b\n" + b"n" * 200))
            wire.expect_closed()
        with Wire(server) as wire:
            wire.greet()
            wire.option(OPT_GO, go_data("no"))
            wire.option(OPT_GO, go_data("disk"))  # in the end it found one
        lines = [line.split("): ")[1] for line in server.stderr().splitlines()]
        assert lines[0] == "there is no export for it with the name 'dsik'"
        assert lines[1] == "there is no export for it with the name 'other??" + "n" * 57 + "'"
        assert lines[2].startswith("export 'disk'")
        for _ in range(30):
            with Wire(server) as wire:
                wire.greet()
                wire.option(OPT_GO, go_data("no"))
        assert server.stderr().count("with the name") <= 20


def test_log_says_that_tls_is_missing(workdir, image):
    keys = lib_tls.psk_file(f"{workdir}/keys", alice="00112233445566778899aabbccddeeff")
    with Server(workdir, image, options=["--tls-psk", keys]) as server:
        run("nbdinfo", f"nbd+unix:///disk?socket={server.socket}", codes=(1,))
        # The client may be gone before the line is there.
        wait_for(lambda: "it has to begin TLS first" in server.stderr())
    assert server.stderr().count("it has to begin TLS first") == 1
