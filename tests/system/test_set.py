# SPDX-License-Identifier: Apache-2.0
"""Settings of single exports: --set NAME:KEY=VALUE."""
import json
import subprocess

import nbd
import pytest

import lib_tls
import lib_tools
from lib_server import BINARY, Server, refused
from lib_wire import (OPT_EXPORT_NAME, OPT_GO, OPT_INFO, REP_ACK, REP_ERR_POLICY, Wire, go_data,
                      option_bytes)

pytestmark = pytest.mark.lazycow_only

SIZE = 4 << 20


@pytest.fixture
def images(workdir):
    """Exports a and b."""
    return [lib_tools.create(f"{workdir}/{name}.qcow2", SIZE, lazy_refcounts="on")
            for name in ("a", "b")]


def settings(*words):
    return [word for setting in words for word in ("--set", setting)]


def read_only(server, name):
    handle = server.connect(name)
    found = handle.is_read_only()
    if found:
        with pytest.raises(nbd.Error):
            nbd_unchecked = server.connect(name, strict=False)
            nbd_unchecked.pwrite(b"x", 0)
    else:
        handle.pwrite(b"x", 0)
    handle.shutdown()
    return found


# ---- What is set --------------------------------------------------------------------------------

def test_read_only(workdir, images):
    with Server(workdir, *images, options=settings("a:read-only=on")) as server:
        assert read_only(server, "a") and not read_only(server, "b")


def test_writable_among_read_only_ones(workdir, images):
    with Server(workdir, *images, read_only=True, options=settings("b:read-only=off")) as server:
        assert read_only(server, "a") and not read_only(server, "b")


def test_read_only_takes_the_locks_of_a_reader(workdir, images):
    """Others may read the image, also another server, but not write."""
    with Server(workdir, *images, options=settings("a:read-only=on")):
        lib_tools.run("qemu-img", "info", images[0])
        lib_tools.run("qemu-img", "info", images[1], codes=(1,))
        lib_tools.run("qemu-io", "-c", "write 0 4k", images[0], codes=(1,))
        with Server(workdir, images[0], read_only=True) as second:
            assert read_only(second, "a")


def test_description(workdir, images):
    with Server(workdir, *images, options=["-D", "all", *settings("b:description=the, b:=x")]
                ) as server:
        text = lib_tools.run("nbdinfo", "--list", "--json", "--no-content", server.uri)
        found = {export["export-name"]: export["description"]
                 for export in json.loads(text)["exports"]}
        assert found == {"a": "all", "b": "the, b:=x"}


def test_the_last_one_counts(workdir, images):
    with Server(workdir, *images, options=settings("a:read-only=on", "a:read-only=off")) as server:
        assert not read_only(server, "a")


def test_of_the_order_of_the_command_line(workdir, images):
    """--set may come before the images and before options for all."""
    words = [BINARY, "serve", *settings("a:read-only=off"), "-k", f"{workdir}/s", "-r", *images]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"listening")
    handle = nbd.NBD()
    handle.set_export_name("a")
    handle.connect_unix(f"{workdir}/s")
    assert not handle.is_read_only()
    handle.shutdown()
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def test_cache_and_the_rest(workdir, images):
    """Each is taken, and the other export has none of it: with writethrough alone there is a barrier
    for each write."""
    every = ["cache=writethrough", "discard=ignore", "detect-zeroes=on", "lazy-refcounts=off",
             "cache-size=1M", "locking=on", "clean-after=0", "format=qcow2", "backing-format=raw",
             "read-only=on", "force-share=on", "read-only=off", "force-share=off"]
    with Server(workdir, *images, options=settings(*[f"a:{one}" for one in every])) as server:
        assert not read_only(server, "a")
        one, two = server.connect("a"), server.connect("b")
        for handle in (one, two):
            handle.pwrite(b"\1" * 65536, 0)
            handle.trim(65536, 0)
        assert one.pread(1, 0) == b"\1", "discard=ignore"
        assert two.pread(1, 0) == b"\0"
        one.shutdown()
        two.shutdown()
    for image in images:
        lib_tools.check_clean(image)


def test_format_of_one(workdir, images):
    raw = f"{workdir}/raw.img"
    with open(raw, "wb") as stream:
        stream.truncate(SIZE)
    words = settings("raw:format=raw", "raw:read-only=on")
    with Server(workdir, *images, raw, options=words) as server:
        assert server.connect("raw").is_read_only()
        assert not read_only(server, "a")


# ---- Connections --------------------------------------------------------------------------------

def test_max_connections(workdir, images):
    with Server(workdir, *images, options=settings("a:max-connections=2")) as server:
        first, second = server.connect("a"), server.connect("a")
        with pytest.raises(nbd.Error, match="policy"):
            server.connect("a")
        others = [server.connect("b") for _ in range(4)]
        # Anybody may ask what it is like.
        assert "a" in lib_tools.run("nbdinfo", "--list", "--no-content", server.uri)
        assert first.can_multi_conn() and others[0].can_multi_conn()
        first.shutdown()
        for handle in (second, *others):
            assert handle.pread(1, 0) == b"\0"
        third = server.connect("a")
        third.shutdown()
    assert "too many connections (max-connections) use the export 'a'" in server.stderr()


def test_max_connections_says_so_on_the_wire(workdir, images):
    with Server(workdir, *images, options=settings("a:max-connections=1")) as server:
        holder = server.connect("a")
        with Wire(server) as wire:
            wire.greet()
            assert wire.option_result(OPT_INFO, go_data("a")) == REP_ACK
            kind, text = wire.option(OPT_GO, go_data("a"))[-1]
            assert kind == REP_ERR_POLICY and b"max-connections" in text
            # It may take another one instead.
            assert wire.option_result(OPT_GO, go_data("b")) == REP_ACK
        with Wire(server) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_EXPORT_NAME, b"a"))
            wire.expect_closed()
        holder.shutdown()


def test_one_connection_is_no_invitation_for_several(workdir, images):
    with Server(workdir, *images, options=settings("a:max-connections=1")) as server:
        one, two = server.connect("a"), server.connect("b")
        assert not one.can_multi_conn() and two.can_multi_conn()
        one.shutdown()
        two.shutdown()
        # It would open four connections otherwise.
        lib_tools.run("nbdcopy", server.uri_of("a"), f"{workdir}/out")


def test_the_successor_of_the_only_connection_is_let_in(workdir, images):
    """It is let in even if the server has not noticed the end of its predecessor."""
    with Server(workdir, *images, options=settings("a:max-connections=1")) as server:
        for _ in range(200):
            with Wire(server) as wire:
                wire.greet()
                assert wire.option_result(OPT_GO, go_data("a")) == REP_ACK


# ---- TLS ----------------------------------------------------------------------------------------

def test_tls_allow(workdir, images):
    keys = lib_tls.psk_file(f"{workdir}/keys", alice="aa" * 16, bob="bb" * 16)
    with Server(workdir, *images, options=[
            f"--tls-psk={keys}",
            *settings("a:tls-allow=alice", "b:tls-allow=alice", "b:tls-allow=bob")]) as server:
        def lets_in(user, name):
            result = subprocess.run(["nbdinfo", "--size", lib_tls.psk_uri(server, keys, user, name)],
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            return result.returncode == 0
        assert [lets_in(user, name) for user in ("alice", "bob") for name in ("a", "b")] == \
            [True, True, False, True]


def test_tls_allow_needs_tls(workdir, images):
    assert "TLS needs" in refused(workdir, *images, *settings("a:tls-allow=alice"))


# ---- Names --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["", "x:y", "a=b", "a=b:c", "read-only=on", "a:read-only", "ü,{}",
                                  "opt/ltsp/i386", ":", "a b"])
def test_names(workdir, images, name):
    words = ["--export", f"{name}={images[0]}", *settings(f"{name}:read-only=on")]
    with Server(workdir, options=[*words, f"other={images[1]}"]) as server:
        assert read_only(server, name) and not read_only(server, "other")


def test_the_longest_name_is_meant(workdir, images):
    words = ["--export", f"a={images[0]}", "--export", f"a:b={images[1]}"]
    with Server(workdir, options=[*words, *settings("a:b:read-only=on")]) as server:
        assert not read_only(server, "a") and read_only(server, "a:b")


@pytest.mark.parametrize("setting, words", [
    ("c:read-only=on", ["no export 'c'", "'a'"]),
    ("c:d:read-only=on", ["no export 'c:d'"]),
    ("c=d:read-only=on", ["no export 'c=d'"]),
    ("A:read-only=on", ["no export 'A'"]),
    ("read-only=on", ["NAME:KEY=VALUE"]),
    ("", ["NAME:KEY=VALUE"]),
    (":read-only=on", ["no export ''"]),
    ("a:readonly=on", ["no 'readonly'", "read-only"]),
    ("a:port=5", ["no 'port'", "max-connections"]),
    ("a:set=a", ["no 'set'"]),
    ("a:=on", ["no ''"]),
    ("a:", ["no ''"]),
    ("a:read-only", ["has no value", "on or off"]),
    ("a:read-only=", ["'' is not on or off"]),
    ("a:read-only=yes", ["'yes' is not on or off"]),
    ("a:max-connections=0", ["1 to 16384"]),
    ("a:max-connections=1x", ["1 to 16384"]),
    ("a:cache=fast", ["writeback"]),
    ("a:cache-size=1", ["64k"]),
    ("a:tls-allow=", ["''"]),
    ("a:force-share=on", ["export 'a'", "--read-only"]),
])
def test_what_is_wrong(workdir, images, setting, words):
    line = refused(workdir, *images, "--set", setting)
    for word in (*words, "--set" if "force-share" not in setting else "export"):
        assert word in line, line


def test_a_value_that_is_too_long(workdir, images):
    line = refused(workdir, *images, "--set", "a:description=" + "x" * 4097)
    assert "at most 4096 bytes" in line


def test_what_does_not_go_together(workdir, images):
    line = refused(workdir, *images, "--detect-zeroes=unmap", *settings("b:discard=ignore"))
    assert "export 'b'" in line and "--discard=unmap" in line


def test_a_skipped_image(workdir, images):
    """Its settings are checked and stand for nothing."""
    broken = f"{workdir}/broken.qcow2"
    with open(broken, "wb") as stream:
        stream.write(b"none" * 1000)
    with Server(workdir, broken, *images, options=[
            "--skip-broken", *settings("broken:read-only=on", "a:read-only=on")]) as server:
        assert read_only(server, "a") and not read_only(server, "b")
        server.stop(codes=(0, 1, 2, 3))
    assert "'broken:cache=x'" in refused(workdir, broken, *images, "--skip-broken",
                                 "--set", "broken:cache=x")
