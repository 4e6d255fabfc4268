# SPDX-License-Identifier: Apache-2.0
"""Addresses of the server: several at once, permission to connect, vsock, vanished peers."""
import grp
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.parse

import nbd
import pytest

import lib_guest
import lib_machine
import lib_server
import lib_tools
from lib_server import Server, refused
from test_serve import activated

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 16 * MEBI

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")


def announced(server, count):
    """All its URIs, of which there must be count."""
    deadline = time.monotonic() + lib_server.START_SECONDS
    while len(server.lines) < count:
        server.lines.append(server._read_line(deadline))
    return [line.removeprefix("listening on ") for line in server.lines]


def size_at(uri):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    size = handle.get_size()
    handle.shutdown()
    return size


# ---- Several addresses --------------------------------------------------------------------------

def test_unix_and_tcp_at_once(workdir, image):
    with Server(workdir, image, options=["-b", "127.0.0.1", "-p", "0"]) as server:
        one, two = announced(server, 2)
        assert one.startswith("nbd+unix:///disk?socket=") and two.startswith("nbd://127.0.0.1:")
        assert size_at(one) == size_at(two) == SIZE
    assert not os.path.exists(server.socket)


def listening_addresses(port):
    """The IPv4 addresses that sockets listen at on a port, as in /proc/net/tcp."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return [row[1].split(":")[0] for row in rows
            if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]


@pytest.mark.parametrize("host, uri_host, address", [
    ("*", "localhost", "00000000"), ("0.0.0.0", "localhost", "00000000"),
    ("0", "localhost", "00000000"), ("127.0.0.1", "127.0.0.1", "0100007F"),
    ("localhost", "localhost", "0100007F")])
def test_all_addresses_and_one(workdir, image, host, uri_host, address):
    """The URI is one that a client on this host can use."""
    with Server(workdir, image, socket_path="", options=["-b", host, "-p", "0"]) as server:
        [uri] = announced(server, 1)
        parts = urllib.parse.urlsplit(uri)
        assert parts.hostname == uri_host
        assert listening_addresses(parts.port) == [address]
        assert size_at(uri) == SIZE


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="there is no IPv6")
def test_brackets_of_an_address(workdir, image):
    with Server(workdir, image, socket_path="", options=["-b", "[::1]", "-p", "0"]) as server:
        [uri] = announced(server, 1)
        assert uri.startswith("nbd://[::1]:") and size_at(uri) == SIZE


def test_a_port_alone_adds_localhost(workdir, image):
    with Server(workdir, image, options=["-p", "0"]) as server:
        assert announced(server, 2)[1].startswith("nbd://localhost:")


def test_several_of_each_kind(workdir, image):
    paths = [f"{workdir}/a", f"{workdir}/b"]
    words = ["-k", paths[0], "-k", paths[1], "-b", "127.0.0.1", "-b", "127.0.0.2", "-p", "0"]
    with Server(workdir, image, socket_path="", options=words) as server:
        uris = announced(server, 4)
        assert [size_at(uri) for uri in uris] == [SIZE] * 4
        assert all(os.path.exists(path) for path in paths)
    assert not any(os.path.exists(path) for path in paths)


def test_one_address_that_fails_leaves_nothing(workdir, image):
    path = f"{workdir}/a"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(workdir, "-k", path, "-b", "127.0.0.2", "-b", "127.0.0.1", "-p", port, image)
    assert f"port {port}: in use" in line
    assert not os.path.exists(path)
    line = refused(workdir, "-k", path, "-k", f"{workdir}/none/b", image)
    assert "none/b" in line and not os.path.exists(path)


def test_one_path_twice(workdir, image):
    """The second must not take the first for a stale one."""
    line = refused(workdir, "-k", f"{workdir}/a", "-k", f"{workdir}/a", image)
    assert "is in use" in line
    assert not os.path.exists(f"{workdir}/a")


def test_how_many_of_a_kind(workdir, image):
    words = [f"--socket={workdir}/{index}" for index in range(17)]
    assert "at most 16" in refused(workdir, *words, image)
    assert "at most 16" in refused(workdir, *["--vsock=5"] * 17, image)


# ---- Who may connect to a Unix socket -----------------------------------------------------------

@pytest.mark.parametrize("mode", ["0600", "660", "0777", "0"])
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_socket_mode(workdir, image, mode, umask):
    before = os.umask(umask)
    try:
        server = Server(workdir, image, options=[f"--socket-mode={mode}"])
    finally:
        os.umask(before)
    with server:
        assert stat.S_IMODE(os.stat(server.socket).st_mode) == int(mode, 8)


def test_socket_mode_replaces_a_stale_socket(workdir, image):
    with Server(workdir, image) as server:
        server.process.kill()
        server.process.wait()
        server.kill()
    with Server(workdir, image, socket_path=server.socket,
                options=["--socket-mode=0640"]) as server:
        assert stat.S_IMODE(os.stat(server.socket).st_mode) == 0o640


def test_the_umask_is_left_as_it_was(workdir, image):
    with Server(workdir, image, options=["--socket-mode=0666"]) as server, \
            open(f"/proc/{server.pid}/status", encoding="ascii") as status:
        mask = os.umask(0)
        os.umask(mask)
        assert f"Umask:\t{mask:04o}\n" in status.read()


def other_group():
    return next(group for group in grp.getgrall() if group.gr_gid != os.getgid())


@needs_root
def test_socket_group(workdir, image):
    group = other_group()
    for name in (group.gr_name, group.gr_gid):
        with Server(workdir, image,
                    options=[f"--socket-group={name}", "--socket-mode=0660"]) as server:
            found = os.stat(server.socket)
            assert (found.st_uid, found.st_gid) == (0, group.gr_gid)


@needs_root
def test_socket_group_goes_before_the_users(workdir, image):
    group = other_group()
    os.chmod(workdir, 0o755)
    with Server(workdir, image, options=["--user=nobody", f"--socket-group={group.gr_name}",
                                         "--socket-mode=0660"]) as server:
        found = os.stat(server.socket)
        assert found.st_uid != 0 and found.st_gid == group.gr_gid
        assert stat.S_IMODE(found.st_mode) == 0o660
        os.chmod(workdir, 0o777)  # so that nobody may remove it


@needs_root
def test_socket_group_that_is_not_ours_to_give(workdir, image):
    os.chmod(workdir, 0o777)
    os.chmod(image, 0o666)
    line = refused_as_nobody(workdir, "-k", f"{workdir}/a", f"--socket-group={other_group().gr_gid}",
                             image)
    assert "'%s/a': cannot give the socket to group" % workdir in line
    assert not os.path.exists(f"{workdir}/a")


def refused_as_nobody(workdir, *words):
    result = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                             lib_server.BINARY, "serve", *words], cwd=workdir,
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
                            env=lib_server.sanitizer_environment())
    assert result.returncode == 1 and result.stdout == b"", result
    [line] = result.stderr.decode().splitlines()
    return line


@needs_root
def test_nobody_connects_before_mode_and_group_are_set(workdir, image):
    """In the order of system calls: the mode with bind(), the group before listen()."""
    lib_machine.need(lib_machine.ptrace_obstacle())
    trace = f"{workdir}/trace"
    # -D: the server is the process that is started, and so the one that is stopped.
    wrapper = ["strace", "-D", "-o", trace, "-e", "trace=umask,bind,lchown,chown,fchownat,listen"]
    with Server(workdir, image, plain=True, wrapper=wrapper,
                options=["--socket-mode=0660", f"--socket-group={other_group().gr_gid}"]):
        pass
    deadline = time.monotonic() + lib_server.STOP_SECONDS
    text = ""
    while "exited" not in text:
        assert time.monotonic() < deadline, text
        with open(trace, encoding="ascii") as stream:
            text = stream.read()
    names = re.findall(r"^(\w+)\(", text, re.MULTILINE)
    begin = names.index("bind")
    assert names[begin - 1] == "umask"
    assert names[begin:begin + 4] in (["bind", "umask", "lchown", "listen"],
                                      ["bind", "umask", "fchownat", "listen"])


def test_mode_and_group_that_are_none(workdir, image):
    for mode in ("", "0999", "01000", "-1", " 7", "rw", "0x1f", "7777777777777777777777777"):
        line = refused(workdir, "-k", f"{workdir}/a", f"--socket-mode={mode}", image)
        assert "--socket-mode" in line and "octal" in line, line
    line = refused(workdir, "-k", f"{workdir}/a", "--socket-group=no such group", image)
    assert "--socket-group 'no such group'" in line
    for words in (["--socket-mode=0660"], ["--socket-group=0", "-p", "0"]):
        assert "--socket" in refused(workdir, *words, image)


def test_none_of_it_with_sockets_from_elsewhere(workdir, image):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{workdir}/given")
        listener.listen(10)
        for words in (["-k", f"{workdir}/a"], ["--vsock=5"], ["-b", "127.0.0.1"], ["-p", "0"],
                      ["-k", f"{workdir}/a", "--socket-mode=0600"]):
            with pytest.raises(AssertionError, match="do not go with socket activation"):
                activated(workdir, [image], [listener], options=words)


# ---- Vsock --------------------------------------------------------------------------------------

@pytest.fixture
def vsock():
    lib_machine.need(lib_machine.vsock_obstacle())


def loops(port):
    """Returns true when this machine reaches its own vsock sockets."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect((1, port))
            return True
        except OSError:
            return False


@pytest.mark.usefixtures("vsock")
def test_vsock_uri(workdir, image):
    with Server(workdir, image, options=["--vsock", "0"]) as server:
        uri = announced(server, 2)[1]
        found = re.fullmatch(r"nbd\+vsock://(\d+):(\d+)/disk", uri)
        assert found, uri
        if loops(int(found[2])):
            assert size_at(uri) == SIZE


@pytest.mark.usefixtures("vsock")
def test_vsock_alone(workdir, image):
    """No TCP besides it."""
    with Server(workdir, image, socket_path="", options=["--vsock=0"]) as server:
        assert server.uri.startswith("nbd+vsock://")
        sockets = subprocess.run(["ss", "-Htlnp"], stdout=subprocess.PIPE, check=True).stdout
        assert f"pid={server.pid},".encode() not in sockets


@pytest.mark.usefixtures("vsock")
def test_vsock_from_the_service_manager(workdir, image):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        with activated(workdir, [image], [listener]) as server:
            assert re.fullmatch(rf"nbd\+vsock://\d+:{listener.getsockname()[1]}/disk", server.uri)


@pytest.mark.usefixtures("vsock")
def test_vsock_errors(workdir, image):
    assert "77777" in refused(workdir, "--vsock=77777:5000", image)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as taken:
        taken.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--vsock {port}: in use" in refused(workdir, f"--vsock={port}", image)


def test_vsock_values(workdir, image):
    for value in ("", ":", "x", "5:", ":5", "1:2:3", "4294967295", "4294967295:1", "1:4294967296",
                  "-1", "18446744073709551616"):
        line = refused(workdir, f"--vsock={value}", image)
        assert "--vsock" in line and "[CID:]PORT" in line, line


def test_a_kernel_without_vsock(workdir, image):
    """As seccomp shows it: socket() with EAFNOSUPPORT."""
    lib_machine.need(lib_machine.ptrace_obstacle())
    wrapper = ["strace", "-o", "/dev/null", "-e", "inject=socket:error=EAFNOSUPPORT"]
    result = subprocess.run([*wrapper, lib_server.PLAIN_BINARY, "serve", "--vsock=5", image],
                            capture_output=True, check=False, timeout=60)
    assert result.returncode == 1
    assert b"--vsock 5: this kernel has no vsock" in result.stderr


VSOCK_SCRIPT = r"""
cd /tmp
lazycow create -q disk.qcow2 8M
lazycow serve --vsock=10809 disk.qcow2 > out 2> err &
server=$!
until grep -q listening out; do
    kill -0 $server || { cat err; false; }
    sleep 1
done
cat out
uri=$(sed -n 's/listening on //p' out)
dd if=/dev/urandom of=random bs=1M count=8 2>/dev/null
nbdcopy random $uri
nbdcopy nbd+vsock://1/disk again
cmp random again
kill $server
wait $server
cat err
lazycow check disk.qcow2
"""


@pytest.mark.slow
@pytest.mark.limit(900)
def test_vsock_in_a_guest(workdir):
    """The guest's kernel can reach itself over vsock; this one may not."""
    if not lib_guest.has_module(lib_guest.kernel()[1], "vsock_loopback"):
        lib_machine.skip("the guest's kernel has no vsock_loopback")
    text = lib_guest.boot_with(workdir, [], VSOCK_SCRIPT, modules=["vsock_loopback"],
                               programs=[lib_server.PLAIN_BINARY, "nbdcopy"])
    assert "listening on nbd+vsock://1:10809/disk" in text, text[-3000:]
    assert re.search(r"connection 1 \(vsock:1:\d+\): export 'disk'", text), text[-3000:]


# ---- Vanished peers -----------------------------------------------------------------------------

def keepalive_minutes(port):
    """Returns how long the server's end of the connection to port waits before it probes; None: for
    ever. Not known before the peer's kernel has acknowledged all sent bytes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        text = lib_tools.run("ss", "-Htno", f"sport = :{port}")
        assert "ESTAB" in text
        if "timer:(on" not in text:
            found = re.search(r"timer:\(keepalive,(?:(\d+)min)?", text)
            return found and int(found[1] or 0)
        time.sleep(0.05)
    raise AssertionError(text)


@pytest.mark.parametrize("value, minutes", [
    (None, range(60, 121)), ("on", range(60, 121)), ("off", [None]), ("600", range(8, 11))])
def test_keepalive(workdir, image, value, minutes):
    options = [f"--tcp-keepalive={value}"] if value else []
    with Server(workdir, image, tcp=True, options=options) as server:
        handle = server.connect()
        assert keepalive_minutes(server.port) in minutes
        handle.shutdown()


def test_keepalive_values(workdir, image):
    for value in ("", "0", "32768", "yes", "1s", "-1"):
        line = refused(workdir, f"--tcp-keepalive={value}", image)
        assert "on, off or 1 to 32767 seconds" in line


# In a network of its own: connects, takes the loopback device down, and says when the server has
# closed its end.
VANISH = r"""
import signal, subprocess, sys, time
import nbd
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE)
uri = server.stdout.readline().decode().split()[-1]
handle = nbd.NBD()
handle.connect_uri(uri)
reads = int(sys.argv[1])
if reads:
    # Behind this it replies to somebody who is not there any more.
    server.send_signal(signal.SIGSTOP)
    for _ in range(reads):
        handle.aio_pread(nbd.Buffer(4096), 0)
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
if reads:
    server.send_signal(signal.SIGCONT)
deadline = time.monotonic() + 60
port = uri.split(":")[2].split("/")[0]
while time.monotonic() < deadline:
    if not subprocess.run(["ss", "-Htn", "state", "established", "sport", "=", ":" + port],
                          stdout=subprocess.PIPE, check=True).stdout:
        print("ended")
        break
    time.sleep(0.2)
server.terminate()
server.wait()
"""


@needs_root
@pytest.mark.parametrize("reads", [0, 4])  # with some there is something to be acknowledged
def test_a_vanished_peer_ends_its_connection(workdir, image, reads):
    words = [sys.executable, "-c", VANISH, str(reads), lib_server.BINARY, "serve",
             "-b", "127.0.0.1", "-p", "0"]
    lib_machine.need(lib_machine.network_obstacle())
    text = lib_tools.run("unshare", "-n", *words, "--tcp-keepalive=1", image)
    assert "ended" in text and "Connection timed out" in text, text
