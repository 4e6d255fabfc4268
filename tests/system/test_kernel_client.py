# SPDX-License-Identifier: Apache-2.0
"""The NBD client of the Linux kernel: nbd.ko and nbd-client in a guest, over TCP to the server."""
import pytest

import lib_guest
import lib_tls
import lib_tools
from lib_server import PLAIN_BINARY, Server

pytestmark = [pytest.mark.lazycow_only, pytest.mark.slow]

GIBI = 1 << 30
MODULES = ("crc32c_generic", "virtio_pci", "virtio_net", "nbd", "ext4", "xfs")
# The host as qemu's user network shows it to the guest.
HOST = "10.0.2.2"

# Some hundred operations on files, most of them made durable, with contents that tell where they
# belong.
FILE_OPERATIONS = r"""
operations() {
    i=0
    while [ $i -lt 250 ]; do
        d=/mnt/$1/d$((i % 7))
        [ -d $d ] || mkdir -p $d
        dd if=/dev/urandom of=$d/f$i bs=1000 count=$((i % 23 * 3 + 1)) conv=fsync 2>/dev/null
        case $((i % 6)) in
        1) mv $d/f$i $d/m$i ;;
        2) dd if=/dev/zero of=$d/f$i bs=512 seek=$i count=9 conv=notrunc,fsync 2>/dev/null ;;
        3) truncate -s $((i * 311)) $d/f$i; dd if=/dev/null of=$d/f$i conv=notrunc,fsync 2>/dev/null ;;
        4) ln $d/f$i $d/l$i; cp $d/f$i $d/c$i; rm $d/f$i ;;
        5) rm $d/f$i ;;
        esac
        i=$((i + 1))
    done
    sync
}
"""

SCRIPT = FILE_OPERATIONS + r"""
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15 netmask 255.255.255.0

nbd-client HOST PORT /dev/nbd0 -N first -b 512 -C 1 -t 300
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 512 ]
[ "$(cat /sys/block/nbd0/size)" = 4194304 ]
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
operations one
cp -r /mnt/one /mnt/two
rm -r /mnt/one/d1 /mnt/one/d2
fstrim -v /mnt
cd /mnt; find . -type f | sort | xargs sha256sum > /tmp/sums; cd /
umount /mnt
e2fsck -fn /dev/nbd0

nbd-client HOST PORT /dev/nbd1 -N xfs -b 4096 -C 4 -t 300
mkfs.xfs -q -f /dev/nbd1
mount -t xfs -o discard /dev/nbd1 /mnt
operations xfs
rm -r /mnt/xfs/d3
fstrim -v /mnt
umount /mnt
xfs_repair -n /dev/nbd1 >/tmp/repair 2>&1 || { cat /tmp/repair; false; }
nbd-client -d /dev/nbd1

nbd-client -d /dev/nbd0
echo FIRST DONE

# The server stops and another one starts, which has the image under another name.
tries=0
until nbd-client HOST PORT /dev/nbd0 -N second -b 4096 -C 4 -t 300; do
    tries=$((tries + 1))
    [ $tries -lt 40 ]
    sleep 1
done
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 4096 ]
e2fsck -fn /dev/nbd0
mount -t ext4 -o discard /dev/nbd0 /mnt
cd /mnt; sha256sum -c -s /tmp/sums; cd /
echo SUMS MATCH
operations three
rm -r /mnt/two
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
"""


NETWORK = ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]


@pytest.mark.limit(1500)
def test_kernel_client(workdir):
    """ext4 with one connection and 512-byte blocks, then, after the server was stopped and started
    again, with four connections and blocks of 4096 bytes; in between XFS on another export."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", 2 * GIBI, lazy_refcounts="on")
    xfs = lib_tools.create(f"{workdir}/xfs.qcow2", GIBI, lazy_refcounts="on")
    first = Server(workdir, ("first", image), ("xfs", xfs), tcp=True)
    script = SCRIPT.replace("HOST", HOST).replace("PORT", str(first.port))
    try:
        with lib_guest.BackgroundGuest(
                workdir, NETWORK, script, modules=MODULES,
                programs=("nbd-client", "mkfs.xfs", "xfs_repair"), timeout=900) as guest:
            # Four connections to the one export, one to the other.
            guest.wait_until(lambda: first.stderr().count("disconnected by the client") >= 5)
            first.stop()
            lib_tools.check_clean(image)
            lib_tools.check_clean(xfs)
            with Server(workdir, ("second", image), tcp=True,
                        options=["--port", str(first.port)]) as second:
                text = guest.result()
                assert second.stderr().count("export 'second'") == 4
    finally:
        first.kill()
    assert "FIRST DONE" in text and "SUMS MATCH" in text, text[-6000:]
    assert text.count("trimmed") == 3, text[-6000:]
    lib_tools.check_clean(image)
    raw = f"{workdir}/disk.raw"
    lib_tools.qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    lib_tools.run("e2fsck", "-fn", raw)


TLS_SCRIPT = FILE_OPERATIONS + r"""
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15 netmask 255.255.255.0
nbd-client HOST PORT /dev/nbd0 -N disk -enable-tls -cacertfile /tmp/ca-cert.pem \
    -certfile /tmp/client-cert.pem -keyfile /tmp/client-key.pem -tlshostname localhost
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
operations tls
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
"""


@pytest.mark.limit(1500)
def test_kernel_client_over_tls(workdir):
    """nbd-client -certfile: TLS ends in a process of nbd-client's, the kernel speaks NBD inside."""
    authority = lib_tls.Authority(f"{workdir}/ca")
    authority.issue("server", f"{workdir}/server", "localhost")
    client = authority.issue("client", f"{workdir}/client", "guest")
    files = ""
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        with open(f"{client}/{name}", encoding="ascii") as stream:
            files += f"cat >/tmp/{name} <<END_OF_FILE\n{stream.read()}END_OF_FILE\n"
    image = lib_tools.create(f"{workdir}/disk.qcow2", GIBI, lazy_refcounts="on")
    with Server(workdir, image, tcp=True, options=[
            "--tls-certificates", f"{workdir}/server", "--tls-verify-peer",
            "--tls-allow=disk:CN=guest,*"]) as server:
        script = files + TLS_SCRIPT.replace("HOST", HOST).replace("PORT", str(server.port))
        text = lib_guest.boot_with(workdir, NETWORK, script, modules=MODULES,
                                   programs=("nbd-client",), timeout=900)
        assert "TLS as CN=guest" in server.stderr()
    assert "trimmed" in text, text[-6000:]
    lib_tools.check_clean(image)


# Operations of guest_files.c in all, in four parts.
OPERATIONS = 2000

# A file system lives on while the server is stopped and started again, and while a client of the
# kernel's that nothing tells of it has requests waiting.
RECONNECT_SCRIPT = r"""
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15 netmask 255.255.255.0
load() { guest_files run /mnt/files /tmp/model $1 OPERATIONS; }
guest_nbd connect 0 HOST PORT disk CONNECTIONS
MAKE /dev/nbd0
mount -t TYPE -o discard /dev/nbd0 /mnt
mkdir /mnt/files
load 1
sync
echo STOP THE SERVER
# Nothing answers meanwhile: this waits for the new connections.
sleep 4
load 2 &
sleep 3
guest_nbd wait HOST PORT
tries=0
until guest_nbd reconnect 0 HOST PORT disk CONNECTIONS; do
    tries=$((tries + 1))
    [ $tries -lt 60 ]
    sleep 1
done
wait $!
echo RECONNECTED
load 3
umount /mnt
CHECK /dev/nbd0 >/tmp/check 2>&1 || { cat /tmp/check; false; }
mount -t TYPE /dev/nbd0 /mnt
guest_files verify /mnt/files /tmp/model
load 4
fstrim -v /mnt
umount /mnt
CHECK /dev/nbd0 >/tmp/check 2>&1 || { cat /tmp/check; false; }
mount -t TYPE /dev/nbd0 /mnt
guest_files verify /mnt/files /tmp/model
umount /mnt
nbd-client -d /dev/nbd0
"""


@pytest.mark.limit(1500)
@pytest.mark.parametrize("kind, make, check, connections", [
    ("ext4", "mkfs.ext4 -q -F", "e2fsck -fn", 1),
    ("xfs", "mkfs.xfs -q -f", "xfs_repair -n", 4)], ids=["ext4", "xfs"])
def test_mounted_file_system_outlives_the_server(workdir, kind, make, check, connections):
    """Thousands of operations of all kinds on files with contents that a model knows: before the
    server is stopped, while it is away and behind that, then behind a mount."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", GIBI, lazy_refcounts="on")
    programs = [lib_guest.compiled(workdir, "guest_files"),
                lib_guest.compiled(workdir, "guest_nbd"), "nbd-client",
                *(["mkfs.xfs", "xfs_repair"] if kind == "xfs" else [])]
    first = Server(workdir, image, tcp=True)
    script = RECONNECT_SCRIPT
    for word, value in (("HOST", HOST), ("PORT", first.port), ("CONNECTIONS", connections),
                        ("TYPE", kind), ("MAKE", make), ("CHECK", check),
                        ("OPERATIONS", lib_tools.scaled(OPERATIONS) // 4)):
        script = script.replace(word, str(value))
    try:
        with lib_guest.BackgroundGuest(workdir, NETWORK, script, modules=MODULES,
                                       programs=programs, timeout=900) as guest:
            guest.wait_for_word("STOP THE SERVER")
            first.stop()
            lib_tools.check_clean(image)
            with Server(workdir, image, tcp=True, options=["--port", str(first.port)]) as second:
                text = guest.result()
                assert second.stderr().count("export 'disk'") == connections
    finally:
        first.kill()
    assert "RECONNECTED" in text and text.count("is as it must be") == 6, text[-6000:]
    lib_tools.check_clean(image)


UNIX_SCRIPT = r"""
ifconfig lo 127.0.0.1
start() {
    rm -f /tmp/ready
    lazycow serve -k /tmp/socket --pid-file=/tmp/pid /tmp/disk.qcow2 >/tmp/ready 2>/tmp/log &
    until grep -q listening /tmp/ready; do sleep 0.1; done
}
stop() {
    kill $(cat /tmp/pid)
    wait $!
    lazycow check /tmp/disk.qcow2
}
lazycow create /tmp/disk.qcow2 GIBI
start
nbd-client -unix /tmp/socket /dev/nbd0 -N disk -b 512 -t 300
mkfs.ext4 -q -F /dev/nbd0
mount -t ext4 -o discard /dev/nbd0 /mnt
mkdir /mnt/files
guest_files run /mnt/files /tmp/model 1 OPERATIONS
umount /mnt
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
stop
start
nbd-client -unix /tmp/socket /dev/nbd0 -N disk -b 4096 -C 4 -t 300
mount -t ext4 -o discard /dev/nbd0 /mnt
guest_files verify /mnt/files /tmp/model
guest_files run /mnt/files /tmp/model 2 OPERATIONS
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/nbd0
nbd-client -d /dev/nbd0
stop
grep -c "export 'disk'" /tmp/log
"""


@pytest.mark.limit(1500)
def test_kernel_client_over_a_unix_socket(workdir):
    """Server and client in one guest, like a host that has its own images as devices."""
    script = UNIX_SCRIPT.replace("GIBI", str(GIBI)).replace(
        "OPERATIONS", str(lib_tools.scaled(OPERATIONS) // 4))
    text = lib_guest.boot_with(
        workdir, [], script, modules=MODULES, timeout=900,
        programs=(lib_guest.compiled(workdir, "guest_files"), "nbd-client", PLAIN_BINARY))
    assert text.count("is as it must be") == 3 and "trimmed" in text, text[-6000:]
    assert text.count("No errors were found on the image") == 2, text[-6000:]
