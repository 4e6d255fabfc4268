# SPDX-License-Identifier: Apache-2.0
"""Unlucky and hostile clients: they may hurt themselves, never the server or another client."""
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

import lib_tools
from lib_server import Server, wait_for
from lib_wire import *  # the protocol's names, all of them

MEBI = 1 << 20
SIZE = 64 * MEBI
# Most memory that a server holds for one client: a few requests of 32 MiB, and in a sanitized build as
# much again in freed memory that is kept aside (256 MiB by default).
MEMORY_BOUND = 600 * MEBI


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("c")
    image = lib_tools.create(directory / "disk.qcow2", SIZE, lazy_refcounts="on")
    with Server(directory, image, max_connections=400) as server:
        server.one_of_each()
        handle = server.connect()
        handle.pwrite(b"\5" * (32 * MEBI), 0)
        handle.shutdown()
        yield server
    lib_tools.check_clean(image)


def settle_descriptors(server, expected):
    """Waits until the server has no more descriptors open than expected."""
    wait_for(lambda: server.descriptors() <= expected)


def check_serves(server):
    with Wire(server) as wire:
        wire.go()
        wire.check_alive()


def serves(server):
    """Returns True if there is room for a client."""
    try:
        check_serves(server)
    except (Closed, OSError):
        return False
    return True


def test_reads_whose_answers_are_never_taken(shared):
    """A gigabyte is asked for and left in the socket: bounded memory, and others are served."""
    check_serves(shared)
    before = shared.resident_bytes()
    with Wire(shared) as greedy:
        greedy.go()
        greedy.socket.settimeout(0.2)
        try:
            for cookie in range(1000):
                greedy.socket.sendall(request_bytes(CMD_READ, cookie, 0, MEBI))
        except TimeoutError:
            pass
        with Wire(shared) as other:
            other.go()
            for _ in range(50):
                other.read(0, 4096)
        assert shared.resident_bytes() - before < MEMORY_BOUND
    check_serves(shared)


def test_small_requests_whose_answers_are_never_taken(shared):
    """The reply headers of a million flushes are data too."""
    check_serves(shared)
    before = shared.resident_bytes()
    with Wire(shared) as greedy:
        greedy.go(structured=False)
        greedy.socket.settimeout(1)
        block = request_bytes(CMD_READ, 1, 0, 1) * 2000
        sent = 0
        try:
            for _ in range(500):
                greedy.socket.sendall(block)
                sent += 2000
        except TimeoutError:
            pass
        assert sent < 1000 * 1000, "a million requests were taken in without one reply leaving"
        assert shared.resident_bytes() - before < MEMORY_BOUND
        check_serves(shared)


def test_slow_reader_gets_everything(shared):
    """Back-pressure delays, it loses nothing."""
    with Wire(shared) as wire:
        wire.go(structured=False)
        count = 200
        sender = threading.Thread(target=wire.send, args=(
            b"".join(request_bytes(CMD_READ, cookie, 4096 * cookie, 256 << 10)
                     for cookie in range(count)),))
        sender.start()
        time.sleep(0.5)
        answered = set()
        for _ in range(count):
            cookie, error, data = wire.reply(256 << 10)
            assert error == 0 and data == b"\5" * (256 << 10)
            answered.add(cookie)
        sender.join()
        assert answered == set(range(count))


def test_writes_without_taking_replies(shared):
    """Many megabytes of writes pass or stall; once the replies are taken all of them are there."""
    count = 1500
    payload = os.urandom(4096)
    with Wire(shared) as wire:
        wire.go(structured=False)
        data = b"".join(request_bytes(CMD_WRITE, cookie, 40 * MEBI + cookie * 4096, 4096, 0,
                                      payload)
                        for cookie in range(count))
        sender = threading.Thread(target=wire.send, args=(data,))
        sender.start()
        time.sleep(0.5)
        answered = {wire.reply()[:2] for _ in range(count)}
        sender.join()
        assert answered == {(cookie, 0) for cookie in range(count)}
    with Wire(shared) as wire:
        wire.go()
        assert wire.read(40 * MEBI, count * 4096) == payload * count


def conversation(name):
    """A client's bytes from the first to the last, for a session with two writes and a read."""
    return (struct.pack(">I", 3) + option_bytes(OPT_STRUCTURED_REPLY)
            + option_bytes(OPT_SET_META_CONTEXT, meta_data(name, ["base:allocation"]))
            + option_bytes(OPT_GO, go_data(name, [INFO_BLOCK_SIZE]))
            + request_bytes(CMD_WRITE, 1, 33 * MEBI, 512, 0, b"\7" * 512)
            + request_bytes(CMD_READ, 2, 0, 65536)
            + request_bytes(CMD_BLOCK_STATUS, 3, 0, MEBI)
            + request_bytes(CMD_WRITE, 4, 33 * MEBI, 64, CMD_FLAG_FUA, b"\7" * 64)
            + request_bytes(CMD_DISC, 5))


def test_disconnect_at_every_byte(shared):
    data = conversation(shared.name())
    before = shared.descriptors()
    resident = shared.resident_bytes()
    ends = (lambda s: None,
            lambda s: s.shutdown(socket.SHUT_WR),
            lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)))
    for cut in range(len(data) + 1):
        with shared.raw_socket() as connection:
            connection.sendall(data[:cut])
            ends[cut % len(ends)](connection)
    settle_descriptors(shared, before)
    assert shared.resident_bytes() - resident < MEMORY_BOUND
    check_serves(shared)


def test_disconnect_under_load(shared):
    """Gone with reads, writes and flushes in flight, their buffers still in the engine."""
    rng = random.Random(7)
    before = shared.descriptors()
    for _ in range(60):
        with Wire(shared) as wire:
            wire.go()
            requests = b""
            for cookie in range(rng.randint(1, 60)):
                kind = rng.choice([CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_WRITE_ZEROES])
                length = 0 if kind == CMD_FLUSH else rng.choice([512, 4096, 65536, 300000])
                payload = bytes([cookie]) * length if kind == CMD_WRITE else b""
                requests += request_bytes(kind, cookie, 50 * MEBI + 100 * cookie if length else 0,
                                          length, CMD_FLAG_FUA if cookie % 5 == 0 else 0, payload)
            wire.socket.settimeout(0.2)  # nobody takes the answers: the server may stop reading
            try:
                wire.send(requests[:rng.randint(1, len(requests))])
            except TimeoutError:
                pass
            time.sleep(rng.choice((0, 0, 0.001, 0.01)))
    settle_descriptors(shared, before)
    check_serves(shared)


def test_half_closed_client_gets_its_answers(shared):
    """A client that shuts down only its sending side may still read: it gets answers or the end,
    and no hang."""
    with Wire(shared) as wire:
        wire.go(structured=False)
        wire.send(request_bytes(CMD_READ, 1, 0, 4096) + request_bytes(CMD_FLUSH, 2))
        wire.socket.shutdown(socket.SHUT_WR)
        try:
            while True:
                wire.receive(1)
        except Closed:
            pass


@pytest.mark.lazycow_only  # qemu-nbd 7.2 fails an assertion here
def test_random_bytes(shared, seed):
    """In the handshake and behind it."""
    rng = random.Random(seed)
    before = shared.descriptors()
    data = conversation(shared.name())
    for number in range(lib_tools.scaled(300)):
        with shared.raw_socket() as connection:
            if number % 3 == 0:
                noise = rng.randbytes(rng.randint(1, 2000))
            else:
                noise = bytearray(data)
                for _ in range(rng.randint(1, 6)):
                    noise[rng.randrange(len(noise))] = rng.randrange(256)
            try:
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass
    settle_descriptors(shared, before)
    check_serves(shared)


def test_hundreds_of_connections(shared):
    before = shared.descriptors()
    wires = []
    try:
        for _ in range(300):
            wires.append(Wire(shared))
            wires[-1].go()
        for wire in wires:
            wire.request(CMD_READ, 4096, 4096)
        for wire in wires:
            error, chunks = wire.any_reply(wire.cookie)
            assert error == 0 and assemble(chunks, 4096, 4096) == b"\5" * 4096
    finally:
        for wire in wires:
            wire.socket.close()
    settle_descriptors(shared, before)


def test_thousands_of_connections_in_a_row(shared):
    check_serves(shared)
    for _ in range(200):
        check_serves(shared)
    before, resident = shared.descriptors(), shared.resident_bytes()
    for _ in range(lib_tools.scaled(1500)):
        check_serves(shared)
    settle_descriptors(shared, before)
    assert shared.resident_bytes() - resident < 64 * MEBI


@pytest.mark.lazycow_only
@pytest.mark.parametrize("silent", [0, 200])
def test_many_clients_at_once_all_get_in(workdir, silent):
    """More than may negotiate at a time, as when a server comes back: they wait, none is turned
    away; nor where others say nothing."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image) as server:
        quiet = [server.raw_socket() for _ in range(silent)]
        wires = [Wire(server) for _ in range(90)]
        start = threading.Event()
        done = []

        def negotiate(wire):
            start.wait()
            wire.go()
            wire.check_alive()
            done.append(wire)
        threads = [threading.Thread(target=negotiate, args=(wire,)) for wire in wires]
        for thread in threads:
            thread.start()
        start.set()
        for thread in threads:
            thread.join()
        assert len(done) == len(wires)
        for connection in [wire.socket for wire in wires] + quiet:
            connection.close()


@pytest.mark.slow
@pytest.mark.lazycow_only
def test_a_late_loop_is_no_silence(workdir):
    """Clients whose options the server has not read yet do not give way to newer ones, however long ago
    it has last heard of them."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, max_connections=400) as server:
        wires = [Wire(server, timeout=60) for _ in range(128)]
        for wire in wires:
            wire.greet()
            assert wire.option(OPT_LIST)[-1][0] == REP_ACK
        server.process.send_signal(signal.SIGSTOP)
        for wire in wires:
            wire.send(option_bytes(OPT_GO, go_data(server.name())))
        newer = [Wire(server, timeout=60) for _ in range(40)]
        time.sleep(4)  # longer than any silence is borne
        server.process.send_signal(signal.SIGCONT)
        for wire in newer:
            wire.go()
        for wire in wires:
            assert wire.option_replies(OPT_GO)[-1][0] == REP_ACK
        for wire in wires + newer:
            wire.socket.close()


@pytest.mark.slow
@pytest.mark.lazycow_only
def test_silent_clients_are_dropped(workdir):
    """A handshake has a deadline, and waiting handshakes do not keep other clients out."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image) as server:
        silent = [server.raw_socket() for _ in range(20)]
        drip = server.raw_socket()
        established = Wire(server)
        established.go()
        check_serves(server)
        dripping = True
        while dripping:  # to the end of the test where the server lets it
            try:
                drip.sendall(b"\0")
                time.sleep(0.25)
            except OSError:
                dripping = False
        for connection in silent:
            data = b"x"
            while data:
                try:
                    data = connection.recv(100)
                except ConnectionResetError:
                    break
            connection.close()
        try:
            while drip.recv(100):
                pass
        except ConnectionResetError:
            pass
        drip.close()
        # One that is through the handshake may be idle for as long as it likes.
        established.check_alive()
        established.socket.close()


@pytest.mark.lazycow_only
def test_connection_limit(workdir):
    """Beyond the limit clients wait or are turned away; when one leaves there is room again."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, max_connections=4) as server:
        wires = [Wire(server) for _ in range(4)]
        for wire in wires:
            wire.go()
        excess = []
        for _ in range(3):
            connection = server.raw_socket(timeout=0.5)
            excess.append(connection)
            try:
                assert connection.recv(18) == b"", "a fifth client was greeted"
            except (TimeoutError, ConnectionResetError):
                pass
        for wire in wires:
            wire.check_alive()
        for connection in excess:
            connection.close()
        wires.pop().socket.close()
        wait_for(lambda: serves(server))
        for wire in wires:
            wire.check_alive()
            wire.socket.close()


def test_one_flooding_client_leaves_room_for_another(shared):
    """32 MiB requests without pause, and small reads of another client: each read waits for a few
    large requests at most. The bound leaves room for a machine that is slow to run this client."""
    stop = threading.Event()
    flooded = [0]

    def flood():
        with Wire(shared) as wire:
            wire.go(structured=False)
            while not stop.is_set():
                cookie = wire.request(CMD_READ, 0, 32 * MEBI)
                assert wire.reply(32 * MEBI)[:2] == (cookie, 0)
                flooded[0] += 1
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with Wire(shared) as wire:
            wire.go()
            for _ in range(100):
                wire.read(4096, 4096)
            assert flooded[0] < 10 * 100
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.lazycow_only
def test_no_descriptors_left(workdir):
    """Served clients stay, the log tells once why no other one is accepted, and when some have left
    others come in."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    with Server(workdir, image, wrapper=["prlimit", "--nofile=40:40"]) as server:
        with Wire(server) as established:
            established.go()
            crowd = []
            begun = time.monotonic()
            for _ in range(60):
                crowd.append(server.raw_socket())
            time.sleep(2.5)
            established.check_alive()
            told = server.stderr().count("cannot accept connections: Too many open files")
            assert 1 <= told <= 1 + time.monotonic() - begun
            # A server that turned round and round would have what processor it can get.
            spent, waited = server.cpu_ticks(), server.switches()
            time.sleep(1)
            assert server.cpu_ticks() - spent < os.sysconf("SC_CLK_TCK") / 2
            assert server.switches() - waited < 100
            for connection in crowd:
                connection.close()
            wait_for(lambda: serves(server))
            established.check_alive()


@pytest.mark.parametrize("piece", [1, 27, 28, 29, 4095, 4124, 4223, 4224, 4225, 4253, 9000])
def test_requests_in_pieces(shared, piece):
    """Each request is done once, in whatever pieces it comes."""
    rng = random.Random(piece)
    count = 6 if piece < 27 else 60
    expected = {}
    stream = b""
    for number in range(count):
        length = rng.choice([1, 512, 4096, 4196, 8192]) if piece > 1 else 64
        payload = rng.randbytes(length)
        expected[number] = payload
        stream += request_bytes(CMD_WRITE, 2 * number, number * 16384, length, 0, payload)
        stream += request_bytes(CMD_FLUSH, 2 * number + 1)
    with Wire(shared) as wire:
        wire.go(structured=False)
        for at in range(0, len(stream), piece):
            wire.send(stream[at:at + piece])
            if rng.random() < 0.3:
                time.sleep(0.001)
        answered = sorted(wire.reply()[0] for _ in range(2 * count))
        assert answered == list(range(2 * count))
        for number, payload in expected.items():
            wire.send(request_bytes(CMD_READ, 1000 + number, number * 16384, len(payload)))
            assert wire.reply(len(payload)) == (1000 + number, 0, payload)


@pytest.mark.lazycow_only
def test_nonsense_ends_the_connection_without_a_reset(shared):
    """Also when received bytes are still in the socket: a reset could overtake replies."""
    with Wire(shared) as wire:
        wire.go(structured=False)
        for number in range(3):
            wire.send(request_bytes(CMD_READ, number, 0, 512))
            assert wire.reply(512)[:2] == (number, 0)
        wire.send(b"\xff" * 28)
        assert wire.socket.recv(1) == b""


@pytest.mark.lazycow_only
def test_slow_drip_into_requests(shared):
    """A request that comes a byte at a time delays only its own client."""
    payload = os.urandom(64)
    data = request_bytes(CMD_WRITE, 5, 40 * MEBI, len(payload), 0, payload)
    with Wire(shared) as dripping, Wire(shared) as other:
        dripping.go(structured=False)
        other.go()
        for at in range(len(data)):
            dripping.send(data[at:at + 1])
            other.read(0, 4096)
        assert dripping.reply()[:2] == (5, 0)
        assert other.read(40 * MEBI, len(payload)) == payload


@pytest.mark.slow
@pytest.mark.lazycow_only
def test_stuck_clients_give_way(workdir):
    """A client that takes no replies holds memory as long as no other client waits for it, else
    half a minute."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", SIZE)
    lib_tools.qemu_io(image, f"write -P 5 0 {SIZE}")
    text = "took no replies while others waited for memory"
    with Server(workdir, image) as server:
        start = time.monotonic()
        stuck = [Wire(server) for _ in range(24)]
        for wire in stuck:
            wire.go(structured=False)
            wire.send(b"".join(request_bytes(CMD_READ, cookie, 0, 32 * MEBI)
                               for cookie in range(3)))
        check_serves(server)
        wait_for(lambda: text in server.stderr())
        assert time.monotonic() - start > 25
        check_serves(server)
        for wire in stuck:
            wire.socket.close()
