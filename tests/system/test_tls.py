# SPDX-License-Identifier: Apache-2.0
"""TLS: admission of clients, and the events around the handshake."""
import concurrent.futures
import os
import random
import shutil
import signal
import ssl
import threading
import time

import nbd
import pytest

import lib_tools
import lib_tls
from lib_server import Server, refused, wait_for
from lib_tools import run
from lib_wire import (Closed, Wire, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_LIST,
                      OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK,
                      REP_ERR_INVALID, REP_ERR_POLICY, go_data, meta_data, option_bytes)

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
SIZE = 64 * MEBI
REP_ERR_TLS_REQD = (1 << 31) + 5
ALICE = "00112233445566778899aabbccddeeff"
BOB = "ffeeddccbbaa99887766554433221100"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """server/, client/ (CN=alice), other/ (CN=bob) of one authority; stranger/ of another."""
    root = tmp_path_factory.mktemp("pki")
    authority = lib_tls.Authority(root / "ca")
    authority.issue("server", root / "server", "localhost")
    authority.issue("client", root / "client", "alice")
    authority.issue("client", root / "other", "bob")
    lib_tls.Authority(root / "ca2", "Stranger").issue("client", root / "stranger", "alice")
    shutil.copy(root / "ca" / "ca-cert.pem", root / "stranger" / "ca-cert.pem")
    return root, authority


@pytest.fixture
def image(workdir):
    path = lib_tools.create(f"{workdir}/disk.qcow2", SIZE, lazy_refcounts="on")
    lib_tools.qemu_io(path, "write -P 5 1M 64k")
    return path


def certificates(pki, *more):
    return ["--tls-certificates", str(pki[0] / "server"), *more]


def read_over(uri):
    """The 512 bytes at 1 MiB; raises nbd.Error."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    assert handle.get_tls_negotiated()
    data = handle.pread(512, MEBI)
    handle.shutdown()
    return data


def is_refused(uri):
    with pytest.raises(nbd.Error):
        read_over(uri)
    return True


# ---- Clients ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tcp", [False, True])
def test_nbdinfo_and_nbdcopy_with_certificates(workdir, pki, image, tcp):
    content = random.Random(1).randbytes(SIZE // 2) + bytes(SIZE // 2)
    raw, out = f"{workdir}/in.raw", f"{workdir}/out.raw"
    with open(raw, "wb") as stream:
        stream.write(content)
    with Server(workdir, image, tcp=tcp,
                options=certificates(pki, "--tls=require", "--tls-verify-peer")) as server:
        assert server.uri.startswith("nbds://" if tcp else "nbds+unix:///")
        uri = lib_tls.certificate_uri(server, pki[0] / "client")
        assert "newstyle-fixed with TLS" in run("nbdinfo", uri)
        assert "disk" in run("nbdinfo", "--list", uri)
        run("nbdcopy", "--connections=4", raw, uri)
        run("nbdcopy", "--connections=4", uri, out)
        assert "TLS as CN=alice,O=Example" in server.stderr()
    with open(out, "rb") as stream:
        assert stream.read() == content
    lib_tools.check_clean(image)
    lib_tools.compare_raw(image, content)


def test_psk(workdir, image):
    keys = lib_tls.psk_file(f"{workdir}/keys", alice=ALICE, bob=BOB)
    wrong = lib_tls.psk_file(f"{workdir}/wrong", alice=BOB, carol=ALICE)
    with Server(workdir, image, options=["--tls-psk", keys]) as server:
        assert read_over(lib_tls.psk_uri(server, keys, "alice")) == b"\5" * 512
        assert read_over(lib_tls.psk_uri(server, keys, "bob")) == b"\5" * 512
        assert is_refused(lib_tls.psk_uri(server, wrong, "alice"))
        assert is_refused(lib_tls.psk_uri(server, wrong, "carol"))
        assert "TLS as bob" in server.stderr()
        assert server.stderr().count("TLS handshake failed") == 2


def test_psktool_makes_files_that_are_taken(workdir, image):
    run("psktool", "--username=alice", f"--passwd={workdir}/keys")
    with Server(workdir, image, options=["--tls-psk", f"{workdir}/keys"]) as server:
        assert read_over(lib_tls.psk_uri(server, f"{workdir}/keys", "alice")) == b"\5" * 512


def test_qemu_with_certificates(workdir, pki, image):
    with Server(workdir, image, tcp=True,
                options=certificates(pki, "--tls-verify-peer")) as server:
        credentials = ("tls-creds-x509,id=t,endpoint=client,verify-peer=on,"
                       f"dir={pki[0] / 'client'}")
        # An address: not every machine resolves localhost. The name is that of the certificate.
        where = (f"driver=nbd,host=127.0.0.1,port={server.port},export=disk,tls-creds=t,"
                 "tls-hostname=localhost")
        run("qemu-io", "--object", credentials, "-c", "read -P 5 1M 64k", "-c",
            "write -P 6 2M 1M", "-c", "flush", "-c", "read -P 6 2M 1M", "--image-opts", where)
        text = run("qemu-img", "convert", "--object", credentials, "--image-opts", where, "-O",
                   "raw", f"{workdir}/out.raw")
        assert text == ""
    lib_tools.qemu_io(f"{workdir}/out.raw", "read -P 5 1M 64k", "read -P 6 2M 1M",
                      image_format="raw")


def test_qemu_with_psk(workdir, image):
    os.mkdir(f"{workdir}/psk")
    keys = lib_tls.psk_file(f"{workdir}/psk/keys.psk", qemu=ALICE)
    with Server(workdir, image, options=["--tls-psk", keys]) as server:
        credentials = f"tls-creds-psk,id=t,endpoint=client,username=qemu,dir={workdir}/psk"
        where = (f"driver=nbd,server.type=unix,server.path={server.socket},export=disk,"
                 "tls-creds=t")
        run("qemu-io", "--object", credentials, "-c", "read -P 5 1M 64k", "--image-opts", where)


# ---- Who gets in --------------------------------------------------------------------------------

def test_wrong_certificates(workdir, pki, image):
    root = pki[0]
    with Server(workdir, image, options=certificates(pki, "--tls-verify-peer")) as server:
        bare = f"{workdir}/bare"
        os.mkdir(bare)
        shutil.copy(root / "client" / "ca-cert.pem", bare)
        assert is_refused(lib_tls.certificate_uri(server, root / "stranger"))
        assert is_refused(lib_tls.certificate_uri(server, bare))
        # A server's certificate is none for clients.
        wrong = f"{workdir}/wrong"
        shutil.copytree(bare, wrong)
        shutil.copy(root / "server" / "server-cert.pem", f"{wrong}/client-cert.pem")
        shutil.copy(root / "server" / "server-key.pem", f"{wrong}/client-key.pem")
        assert is_refused(lib_tls.certificate_uri(server, wrong))
        assert read_over(lib_tls.certificate_uri(server, root / "client")) == b"\5" * 512
        assert server.stderr().count("TLS handshake failed") == 3


def test_without_verification_a_client_needs_no_certificate(workdir, pki, image):
    bare = f"{workdir}/bare"
    os.mkdir(bare)
    shutil.copy(pki[0] / "client" / "ca-cert.pem", bare)
    with Server(workdir, image, options=certificates(pki)) as server:
        assert read_over(lib_tls.certificate_uri(server, bare)) == b"\5" * 512


def test_revoked_certificate(workdir, pki, image):
    root, authority = pki
    directory = f"{workdir}/server"
    shutil.copytree(root / "server", directory)
    authority.revoke(root / "other" / "client-cert.pem", f"{directory}/ca-crl.pem")
    with Server(workdir, image,
                options=["--tls-certificates", directory, "--tls-verify-peer"]) as server:
        assert is_refused(lib_tls.certificate_uri(server, root / "other"))
        assert read_over(lib_tls.certificate_uri(server, root / "client")) == b"\5" * 512
        assert "revoked" in server.stderr()


def test_allow_hides_exports(workdir, pki):
    for name in ("open", "hers", "both"):
        lib_tools.create(f"{workdir}/{name}.qcow2", SIZE)
    images = [f"{workdir}/{name}.qcow2" for name in ("hers", "open", "both")]
    with Server(workdir, *images, options=certificates(
            pki, "--tls=on", "--tls-verify-peer", "--tls-allow=hers:CN=alice,*",
            "--tls-allow=both:CN=alice,*", "--tls-allow=both:CN=bob,*")) as server:
        def listed(directory):
            handle = nbd.NBD()
            handle.set_opt_mode(True)
            handle.set_uri_allow_local_file(True)
            handle.connect_uri(lib_tls.certificate_uri(server, directory))
            names = []
            handle.opt_list(lambda name, _description: names.append(name) or 0)
            handle.opt_abort()
            return names
        client, other = pki[0] / "client", pki[0] / "other"
        assert listed(client) == ["hers", "open", "both"]
        assert listed(other) == ["open", "both"]
        read_over(lib_tls.certificate_uri(server, client, "hers"))
        read_over(lib_tls.certificate_uri(server, other, "both"))
        assert is_refused(lib_tls.certificate_uri(server, other, "hers"))
        # Without TLS nobody is known.
        with Wire(server) as wire:
            wire.greet()
            replies = wire.option(OPT_LIST)
            assert [data[4:] for _kind, data in replies[:-1]] == [b"open"]
            assert wire.option_result(OPT_GO, go_data("both")) != REP_ACK
            assert wire.option_result(OPT_GO, go_data("open")) == REP_ACK


def test_allow_by_name_of_key(workdir, image):
    keys = lib_tls.psk_file(f"{workdir}/keys", alice=ALICE, bob=BOB)
    with Server(workdir, image, options=["--tls-psk", keys, "--tls-allow", "al*"]) as server:
        assert read_over(lib_tls.psk_uri(server, keys, "alice")) == b"\5" * 512
        assert is_refused(lib_tls.psk_uri(server, keys, "bob"))


# ---- The handshake, byte by byte ----------------------------------------------------------------

def starttls(wire):
    wire.greet()
    assert wire.option_result(OPT_STARTTLS) == REP_ACK


def wrap(wire):
    """Goes on with the connection inside TLS, and without a look at the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    wire.socket = context.wrap_socket(wire.socket)


def test_plain_client_where_tls_is_required(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki)) as server:
        with Wire(server) as wire:
            wire.greet()
            for option, data in ((OPT_LIST, b""), (OPT_GO, go_data("disk")),
                                 (OPT_STRUCTURED_REPLY, b""), (99, b"what")):
                assert wire.option_result(option, data) == REP_ERR_TLS_REQD
            assert wire.option_result(OPT_ABORT) == REP_ACK
        with Wire(server) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_EXPORT_NAME, b"disk"))
            wire.expect_closed()


def test_plain_client_where_tls_is_optional(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki, "--tls=on")) as server:
        assert server.uri.startswith("nbd+unix:")
        with Wire(server) as wire:
            wire.go()
            assert wire.read(MEBI, 512) == b"\5" * 512
        assert read_over(lib_tls.certificate_uri(server, pki[0] / "client")) == b"\5" * 512


def test_tls_off(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki, "--tls=off")) as server:
        with Wire(server) as wire:
            wire.greet()
            assert wire.option_result(OPT_STARTTLS) == REP_ERR_POLICY


def test_bytes_injected_behind_starttls(workdir, pki, image):
    """CVE-2021-3716: they must not count as said inside TLS."""
    with Server(workdir, image, options=certificates(pki, "--tls=on")) as server:
        with Wire(server) as wire:
            wire.greet()
            wire.send(option_bytes(OPT_STARTTLS) + option_bytes(OPT_GO, go_data("disk")))
            # At most the ACK comes, and then the end.
            data = b""
            try:
                while piece := wire.socket.recv(4096):
                    data += piece
            except ConnectionResetError:
                pass
            assert len(data) in (0, 20), data
        # Later than the ACK they are no TLS.
        with Wire(server) as wire:
            starttls(wire)
            wire.send(option_bytes(OPT_GO, go_data("disk")))
            try:
                while piece := wire.socket.recv(4096):
                    assert piece[0] == 21, piece  # a TLS alert, nothing of NBD
            except ConnectionResetError:
                pass
        with Wire(server) as wire:
            wire.go()
            wire.check_alive()


def test_what_was_negotiated_before_is_forgotten(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki, "--tls=on")) as server:
        with Wire(server) as wire:
            wire.greet()
            assert wire.option_result(OPT_STRUCTURED_REPLY) == REP_ACK
            query = meta_data("disk", ["base:allocation"])
            assert wire.option_result(OPT_SET_META_CONTEXT, query) == REP_ACK
            assert wire.option_result(OPT_STARTTLS) == REP_ACK
            wrap(wire)
            assert wire.option_result(OPT_SET_META_CONTEXT, query) == REP_ERR_INVALID
            assert wire.option_result(OPT_STARTTLS) == REP_ERR_INVALID
            assert wire.option_result(OPT_GO, go_data("disk")) == REP_ACK
            cookie = wire.request(0, MEBI, 512)
            assert wire.reply(512) == (cookie, 0, b"\5" * 512)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_no_old_versions_of_tls(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki)) as server:
        for version, works in (("1.1", False), ("1.2", True), ("1.3", True)):
            with Wire(server) as wire:
                starttls(wire)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                context.set_ciphers("ALL:@SECLEVEL=0")
                number = getattr(ssl.TLSVersion, f"TLSv{version.replace('.', '_')}")
                context.minimum_version = ssl.TLSVersion.TLSv1
                context.maximum_version = number
                if works:
                    wire.socket = context.wrap_socket(wire.socket)
                    assert wire.socket.version() == f"TLSv{version}"
                    assert wire.option_result(OPT_GO, go_data("disk")) == REP_ACK
                else:
                    with pytest.raises((ssl.SSLError, OSError)):
                        context.wrap_socket(wire.socket)


def test_disconnect_at_each_step_of_the_handshake(workdir, pki, image):
    """The client goes away after every number of bytes of its part; nothing stays behind."""
    with Server(workdir, image, options=certificates(pki)) as server:
        with Wire(server) as wire:
            starttls(wire)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            outgoing = ssl.MemoryBIO()
            inside = context.wrap_bio(ssl.MemoryBIO(), outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                inside.do_handshake()
            hello = outgoing.read()
        before = server.descriptors()
        for length in list(range(0, len(hello), 23)) + [len(hello)]:
            with Wire(server) as wire:
                starttls(wire)
                wire.send(hello[:length])
        wait_for(lambda: server.descriptors() <= before)
        assert read_over(lib_tls.certificate_uri(server, pki[0] / "client")) == b"\5" * 512


@pytest.mark.slow
def test_half_open_handshakes_are_limited(workdir, pki, image):
    """More clients than may negotiate begin TLS and say nothing more: the oldest give way, long before
    their deadline, and all end."""
    with Server(workdir, image, options=certificates(pki)) as server:
        wires = []
        for _ in range(140):
            wire = Wire(server, timeout=60)
            wires.append(wire)
            starttls(wire)
        assert read_over(lib_tls.certificate_uri(server, pki[0] / "client")) == b"\5" * 512
        wires[0].expect_closed()
        wires[-1].expect_closed()
        for wire in wires:
            wire.socket.close()


def hello_of_a_client():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.slow
def test_a_flood_of_handshakes_keeps_no_reads_waiting(workdir, pki):
    """Worker threads also inflate clusters: clients that only ask for signatures may not take all
    threads. The server stops while signatures are outstanding."""
    raw, image = f"{workdir}/disk.raw", f"{workdir}/disk.qcow2"
    with open(raw, "wb") as stream:
        stream.write((random.Random(1).randbytes(2048) + bytes(2048)) * (8 * MEBI // 4096))
    lib_tools.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    pki[1].issue("server", f"{workdir}/server", "localhost", key_kind=("rsa", "--bits", "4096"))
    hello = hello_of_a_client()
    stop = threading.Event()

    def flood(server):
        wires = []
        while not stop.is_set():
            try:
                wires.append(Wire(server))
                starttls(wires[-1])
                wires[-1].send(hello)
            except (AssertionError, Closed, OSError):
                pass  # it stops, and says so
            if len(wires) > 20:
                wires.pop(0).socket.close()
        return wires
    with Server(workdir, image, options=[
            "--tls-certificates", f"{workdir}/server", "--tls=on"]) as server:
        with Wire(server) as wire:
            wire.go()
            threads = [threading.Thread(target=flood, args=(server,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            try:
                for number in range(32):
                    wire.read(65536 * number, 512)
                server.stop()
            finally:
                stop.set()
                for thread in threads:
                    thread.join()


def test_many_handshakes_at_once(workdir, pki, image):
    """None is turned away for being slow, on however busy a machine."""
    with Server(workdir, image, options=certificates(pki)) as server:
        uri = lib_tls.certificate_uri(server, pki[0] / "client")
        with concurrent.futures.ThreadPoolExecutor(80) as pool:
            answers = [pool.submit(read_over, uri) for _ in range(80)]
            assert all(answer.result(300) == b"\5" * 512 for answer in answers)


def test_slow_handshake_byte_by_byte(workdir, pki, image):
    """TLS works whatever pieces its records come in."""
    with Server(workdir, image, options=certificates(pki)) as server:
        with Wire(server) as wire:
            starttls(wire)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            inside = context.wrap_bio(incoming, outgoing)

            def exchange(step):
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        data = outgoing.read()
                        for at in range(0, len(data), 3):
                            wire.send(data[at:at + 3])
                        incoming.write(wire.socket.recv(1000))
            exchange(inside.do_handshake)
            inside.write(option_bytes(OPT_LIST))
            answer = exchange(lambda: inside.read(64))
            assert b"disk" in answer


# ---- Running ------------------------------------------------------------------------------------

def test_sighup_reloads_certificates(workdir, pki, image):
    root, _authority = pki
    directory = f"{workdir}/server"
    shutil.copytree(root / "server", directory)
    fresh = lib_tls.Authority(f"{workdir}/fresh-ca", "Fresh CA")
    fresh_client = fresh.issue("client", f"{workdir}/fresh", "carol")
    with Server(workdir, image,
                options=["--tls-certificates", directory, "--tls-verify-peer"]) as server:
        old = nbd.NBD()
        old.set_uri_allow_local_file(True)
        old.connect_uri(lib_tls.certificate_uri(server, root / "client"))
        assert is_refused(lib_tls.certificate_uri(server, fresh_client))
        for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
            os.unlink(f"{directory}/{name}")
        fresh.issue("server", directory, "localhost")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "read again" in server.stderr())
        assert read_over(lib_tls.certificate_uri(server, fresh_client)) == b"\5" * 512
        assert is_refused(lib_tls.certificate_uri(server, root / "client"))
        # Existing connections stay.
        assert old.pread(512, MEBI) == b"\5" * 512
        # A file that cannot be read changes nothing.
        os.unlink(f"{directory}/server-key.pem")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "server-key.pem" in server.stderr())
        assert read_over(lib_tls.certificate_uri(server, fresh_client)) == b"\5" * 512
        old.shutdown()


def test_sighup_without_tls(workdir, image):
    with Server(workdir, image) as server:
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP" in server.stderr())
        with Wire(server) as wire:
            wire.go()
            wire.check_alive()


def test_stop_while_inside_tls(workdir, pki, image):
    with Server(workdir, image, options=certificates(pki)) as server:
        wire = Wire(server)
        starttls(wire)
        wrap(wire)
        assert wire.option_result(OPT_GO, go_data("disk")) == REP_ACK
        wire.request(0, 0, 4096)
        assert wire.reply(4096)[1] == 0
        server.stop()
        # The end is announced: nothing was cut off.
        assert wire.socket.recv(1) == b""
        wire.socket.close()


def test_large_requests_and_a_reader_that_dawdles(workdir, pki, image):
    """More output than socket and TLS hold, taken in small pieces, comes out whole."""
    with Server(workdir, image, options=certificates(pki)) as server:
        wire = Wire(server)
        starttls(wire)
        wrap(wire)
        assert wire.option_result(OPT_GO, go_data("disk")) == REP_ACK
        payload = random.Random(2).randbytes(8 * MEBI)
        cookie = wire.request(1, 8 * MEBI, len(payload), payload=payload)
        assert wire.reply() == (cookie, 0, b"")
        cookies = [wire.request(0, 8 * MEBI, len(payload)) for _ in range(4)]
        time.sleep(0.5)
        for _ in cookies:
            answered, error, data = wire.reply(len(payload))
            assert error == 0 and answered in cookies and data == payload
        wire.socket.close()


def test_wrong_options(workdir, pki, image):
    server = str(pki[0] / "server")
    assert "--tls-certificates or --tls-psk" in refused(workdir, "--tls=on", image)
    assert "choose one" in refused(workdir, "--tls-psk=x", f"--tls-certificates={server}", image)
    assert "server-cert.pem" in refused(workdir, f"--tls-certificates={workdir}", image)
    assert "nowhere" in refused(workdir, "--tls-psk=nowhere", image)
    assert "--tls-verify-peer" in refused(
        workdir, f"--tls-certificates={server}", "--tls-allow=*", image)
    with open(f"{workdir}/keys", "w", encoding="ascii") as stream:
        stream.write("alice:nothexadecimal\n")
    assert "line 1" in refused(workdir, "--tls-psk=keys", image)
    lib_tls.psk_file(f"{workdir}/keys", alice=ALICE)
    assert "no export 'dsik'" in refused(workdir, "--tls-psk=keys", "--tls-allow=dsik:a*", image)
