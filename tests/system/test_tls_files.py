# SPDX-License-Identifier: Apache-2.0
"""The content of the files of TLS: dates, chains, keys that do not match; and log lines about
failed handshakes."""
import os
import shutil
import signal
import ssl

import nbd
import pytest

import lib_tls
import lib_tools
from lib_server import Server, refused, wait_for
from lib_tls import LONG_AGO, MUCH_LATER, Authority
from lib_wire import OPT_STARTTLS, REP_ACK, Wire

pytestmark = pytest.mark.lazycow_only

MEBI = 1 << 20
DAY = 24 * 3600
KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture
def image(workdir):
    return lib_tools.create(f"{workdir}/disk.qcow2", 16 * MEBI)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def connect(server, directory):
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(lib_tls.certificate_uri(server, directory))
    assert handle.pread(512, 0) == bytes(512)
    handle.shutdown()


def refusal(workdir, image, directory, *more):
    return refused(workdir, "-k", f"{workdir}/s", "--tls-certificates", directory, *more, image)


# ---- At the start -------------------------------------------------------------------------------

@pytest.mark.parametrize("dates, words", [(LONG_AGO, ("expired at 2021-02-03 04:05:06", "renew")),
                                          (MUCH_LATER, ("not valid before 2092-01-01", "clock"))],
                         ids=["expired", "early"])
def test_the_servers_certificate_has_dates(workdir, image, authority, dates, words):
    directory = authority.issue("server", f"{workdir}/pki", "localhost", dates=dates)
    text = refusal(workdir, image, directory)
    assert f"{directory}/server-cert.pem" in text
    assert all(word in text for word in words), text


def append(path, *sources):
    with open(path, "ab") as out:
        for source in sources:
            with open(source, "rb") as stream:
                out.write(stream.read())


@pytest.mark.parametrize("dates, good", [(lib_tls.FOR_A_WEEK, True), (LONG_AGO, False),
                                         (MUCH_LATER, False)], ids=["valid", "expired", "early"])
def test_intermediates_have_dates(workdir, image, authority, dates, good):
    between = Authority(f"{workdir}/between", "Between", dates, under=authority)
    directory = between.issue("server", f"{workdir}/pki", "localhost")
    # The root behind it is of no concern: clients have one of their own.
    append(f"{directory}/server-cert.pem", between.certificate, authority.certificate)
    shutil.copy(authority.certificate, f"{directory}/ca-cert.pem")
    if good:
        with Server(workdir, image, options=["--tls-certificates", directory]) as server:
            connect(server, directory)
            assert "warn" not in server.stderr() and "signed" not in server.stderr()
    else:
        text = refusal(workdir, image, directory)
        assert "the intermediate 'CN=Between'" in text, text


@pytest.mark.parametrize("dates", [LONG_AGO, MUCH_LATER], ids=["expired", "early"])
@pytest.mark.parametrize("verify", [False, True])
def test_authorities_have_dates(workdir, image, authority, dates, verify):
    """If clients are verified none could connect; else the authority's dates do not matter."""
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    shutil.copy(Authority(f"{workdir}/old", "Old", dates).certificate, f"{directory}/ca-cert.pem")
    if verify:
        text = refusal(workdir, image, directory, "--tls-verify-peer")
        assert "ca-cert.pem' " in text and ("2021-02-03" in text or "2092-01-01" in text), text
    else:
        with Server(workdir, image, options=["--tls-certificates", directory]) as server:
            assert "ca-cert.pem" in server.stderr()


def test_a_key_of_another_certificate(workdir, image, authority):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    shutil.copy(f"{authority.issue('server', f'{workdir}/other', 'other')}/server-key.pem",
                f"{directory}/server-key.pem")
    text = refusal(workdir, image, directory)
    assert "is not the key of" in text and f"{directory}/server-key.pem" in text, text


def test_an_encrypted_key(workdir, image, authority):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    lib_tools.run("openssl", "pkey", "-aes256", "-passout", "pass:x", "-in",
                  f"{directory}/server-key.pem", "-out", f"{workdir}/encrypted")
    os.replace(f"{workdir}/encrypted", f"{directory}/server-key.pem")
    text = refusal(workdir, image, directory)
    assert "encrypted" in text and "server-key.pem" in text, text


def test_warnings(workdir, image, authority):
    """Settings that work for some clients and are hardly intended: one line each, and the server
    serves."""
    directory = authority.issue("client", f"{workdir}/pki", "localhost")
    for kind in ("cert", "key"):
        os.rename(f"{directory}/client-{kind}.pem", f"{directory}/server-{kind}.pem")
    os.chmod(f"{directory}/server-key.pem", 0o644)
    stranger = Authority(f"{workdir}/stranger", "Stranger")
    shutil.copy(stranger.certificate, f"{directory}/ca-cert.pem")
    stranger.revoke(f"{directory}/server-cert.pem", f"{directory}/ca-crl.pem",
                    'crl_this_update_date = "2020-01-01 00:00:00"\n'
                    'crl_next_update_date = "2020-02-01 00:00:00"\n')
    with Server(workdir, image, options=["--tls-certificates", directory]) as server:
        text = server.stderr()
        for words in ("is not for servers", "every user", "has not signed server-cert.pem",
                      "should have been replaced by 2020-02-01"):
            assert text.count(words) == 1, (words, text)


def test_a_psk_file_that_everybody_may_read(workdir, image):
    for mode, warned in ((0o600, False), (0o640, False), (0o644, True)):
        keys = lib_tls.psk_file(f"{workdir}/keys.psk", alice=KEY)
        os.chmod(keys, mode)
        with Server(workdir, image, options=["--tls-psk", keys]) as server:
            assert ("every user" in server.stderr()) == warned


# ---- While serving ------------------------------------------------------------------------------

@pytest.mark.parametrize("dates, word", [(LONG_AGO, "expired at"), (MUCH_LATER, "not valid before")],
                         ids=["expired", "early"])
def test_sighup_keeps_what_was_valid(workdir, image, authority, dates, word):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    with Server(workdir, image, options=["--tls-certificates", directory]) as server:
        authority.issue("server", directory, "localhost", dates=dates)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "new connections get what was there before" in server.stderr())
        assert word in server.stderr()
        connect(server, directory)


@pytest.fixture(scope="module")
def shifted_time(tmp_path_factory):
    library = tmp_path_factory.mktemp("time") / "shifted_time.so"
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shifted_time.c")
    lib_tools.run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
                  source)
    return str(library)


def test_it_expires_while_serving(workdir, image, authority, shifted_time):
    """One line a day, while clients come."""
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    shift = f"{workdir}/shift"

    def shift_to(days):
        with open(f"{shift}.new", "w", encoding="ascii") as stream:
            stream.write(str(days * DAY))
        os.replace(f"{shift}.new", shift)
    with Server(workdir, image, options=["--tls-certificates", directory], plain=True,
                environment={"LD_PRELOAD": shifted_time, "SHIFTED_TIME": shift}) as server:
        for days, lines in ((0, 0), (6, 0), (8, 1), (8, 1), (10, 2), (10, 2)):
            shift_to(days)
            connect(server, directory)
            assert server.stderr().count("the server's certificate expired at") == lines


# ---- Handshakes that fail -----------------------------------------------------------------------

def begin(server):
    wire = Wire(server, timeout=60)
    wire.greet()
    assert wire.option_result(OPT_STARTTLS) == REP_ACK
    return wire


def test_failed_handshakes_are_told(workdir, image, authority):
    """By a client that does not trust the certificate, one that goes away and one that talks nonsense:
    each is a line with the peer and the reason, at the default level."""
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    stranger = Authority(f"{workdir}/stranger", "Stranger")
    with Server(workdir, image, options=["--tls-certificates", directory]) as server:
        wire = begin(server)
        context = ssl.create_default_context(cafile=stranger.certificate)
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(wire.socket, server_hostname="localhost")
        wait_for(lambda: "the client has ended the TLS handshake" in server.stderr())
        wire = begin(server)
        wire.socket.close()
        wait_for(lambda: "the client has closed the connection" in server.stderr())
        wire = begin(server)
        wire.send(b"GET / HTTP/1.0\r\n\r\n" * 10)
        while wire.socket.recv(100):
            pass  # the alert
        wait_for(lambda: server.stderr().count("TLS handshake failed") == 2)
        wire.socket.close()
        assert all("(process " in line for line in server.stderr().splitlines()), server.stderr()
        # A client that only connects is no failure.
        Wire(server).socket.close()
        connect(server, directory)
        assert server.stderr().count("handshake") == 3


@pytest.mark.slow
def test_a_handshake_that_takes_too_long_is_told(workdir, image, authority):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    with Server(workdir, image, options=["--tls-certificates", directory]) as server:
        wire = begin(server)
        wire.expect_closed()
        wait_for(lambda: "took too long to negotiate" in server.stderr())
        wire.socket.close()


@pytest.mark.slow
def test_many_failures_are_few_lines(workdir, image, authority):
    """Omitted lines are counted."""
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    count = 300
    with Server(workdir, image, options=["--tls-certificates", directory]) as server:
        for _ in range(count):
            begin(server).socket.close()

        def told():
            lines = [line for line in server.stderr().splitlines() if "negotiat" in line
                     or "handshake" in line]
            more = sum(int(line.split(" more negotiations failed")[0].split()[-1])
                       for line in lines if " more negotiations failed" in line)
            return len([line for line in lines if "connection" in line]), more
        wait_for(lambda: sum(told()) == count)
        assert told()[0] < count


# ---- Priorities ---------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["", "NONSENSE", "NORMAL:+WHAT", "NORMAL:-VERS-TLS-ALL",
                                  "NORMAL:-VERS-TLS-ALL:+VERS-TLS1.1", "NORMAL:-CIPHER-ALL"])
def test_priorities_are_checked(workdir, image, authority, text):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    assert "--tls-priority" in refusal(workdir, image, directory, f"--tls-priority={text}")


def test_priorities_without_tls(workdir, image):
    assert "--tls-certificates" in refused(workdir, "-k", f"{workdir}/s", "--tls-priority=NORMAL",
                                           image)


@pytest.mark.parametrize("text, version", [
    ("NORMAL", "TLS1.3"), ("NORMAL:-VERS-TLS1.3", "TLS1.2"), ("SECURE128", "TLS1.3"),
    ("NORMAL:+VERS-TLS1.1:-VERS-TLS1.3", "TLS1.2"), ("NORMAL:%SERVER_PRECEDENCE", "TLS1.3")])
def test_priorities_are_used(workdir, image, authority, text, version):
    directory = authority.issue("server", f"{workdir}/pki", "localhost")
    with Server(workdir, image, options=["--tls-certificates", directory, "-v",
                                         f"--tls-priority={text}"]) as server:
        connect(server, directory)
        assert f": {version}, " in server.stderr(), server.stderr()


def test_priorities_with_keys(workdir, image):
    keys = lib_tls.psk_file(f"{workdir}/keys.psk", alice=KEY)
    with Server(workdir, image, options=["--tls-psk", keys, "--tls-priority=SECURE128"]) as server:
        handle = nbd.NBD()
        handle.set_uri_allow_local_file(True)
        handle.connect_uri(lib_tls.psk_uri(server, keys, "alice"))
        assert handle.pread(512, 0) == bytes(512)
        handle.shutdown()
