# SPDX-License-Identifier: Apache-2.0
"""A real guest on a served disk: its kernel's file system must find its own data again."""
import pytest

import lib_guest
import lib_tools
from lib_server import Server

pytestmark = pytest.mark.slow

GIBI = 1 << 30

FIRST_BOOT = r"""
mkfs.ext4 -q -F /dev/vda
mount -t ext4 -o discard /dev/vda /mnt
mkdir /mnt/a
i=0
while [ $i -lt 60 ]; do
    dd if=/dev/urandom of=/mnt/a/f$i bs=1000 count=$((i * 17 + 1)) 2>/dev/null
    i=$((i + 1))
done
cp -r /mnt/a /mnt/b
sync
cp -r /mnt/b /mnt/c
rm -r /mnt/b
rm /mnt/a/f1*
sync
fstrim -v /mnt
dd if=/dev/zero of=/mnt/zeroes bs=64k count=200 2>/dev/null
cp -r /mnt/c /mnt/d
dd if=/mnt/c/f59 of=/mnt/a/f58 bs=777 seek=3 conv=notrunc 2>/dev/null
sync
cd /mnt
find . -type f | sort | xargs sha256sum > /tmp/sums
cp /tmp/sums /mnt/sums
cd /
sha256sum /tmp/sums
umount /mnt
"""

SECOND_BOOT = r"""
e2fsck -fn /dev/vda
mount -t ext4 /dev/vda /mnt
cd /mnt
sha256sum -c -s sums
sha256sum sums
[ $(find . -type f | wc -l) -gt 150 ]
cp -r a e
rm -r d
cd /
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/vda
"""


def checksum_line(text):
    return next(line.split()[0] for line in text.splitlines() if line.rstrip().endswith("sums"))


@pytest.mark.limit(900)
def test_a_failing_script_is_noticed(workdir):
    """Else the guest below could not fail."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", GIBI)
    drive = f"file={image},format=qcow2,if=virtio"
    with pytest.raises(AssertionError, match="GUEST FAILED"):
        lib_guest.boot(workdir, drive, "true\nfalse\ntrue\n")


@pytest.mark.limit(1500)
def test_guest_finds_its_files_after_a_reboot(workdir):
    image = lib_tools.create(f"{workdir}/disk.qcow2", 2 * GIBI, lazy_refcounts="on")

    def boot(server, script):
        drive = (f"file=nbd:unix:{server.socket}:exportname={server.name()},format=raw,if=virtio,"
                 "discard=unmap,detect-zeroes=unmap,cache=none")
        return lib_guest.boot(workdir, drive, script, timeout=700)
    with Server(workdir, image) as server:
        first = boot(server, FIRST_BOOT)
        assert "trimmed" in first, "fstrim said nothing"
    lib_tools.check_clean(image)
    with Server(workdir, image, aio="threads") as server:
        second = boot(server, SECOND_BOOT)
    assert checksum_line(first) == checksum_line(second)
    lib_tools.check_clean(image)
    raw = f"{workdir}/disk.raw"
    lib_tools.qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    lib_tools.run("e2fsck", "-fn", raw)


# Operations of guest_files.c in all, in three parts.
OPERATIONS = 3000

RECONNECT_SCRIPT = r"""
load() { guest_files run /mnt/files /tmp/model $1 OPERATIONS; }
mkfs.ext4 -q -F /dev/vda
mount -t ext4 -o discard /dev/vda /mnt
mkdir /mnt/files
load 1
sync
echo STOP THE SERVER
sleep 4
load 2
umount /mnt
e2fsck -fn /dev/vda
mount -t ext4 -o discard /dev/vda /mnt
guest_files verify /mnt/files /tmp/model
load 3
fstrim -v /mnt
umount /mnt
e2fsck -fn /dev/vda
mount -t ext4 /dev/vda /mnt
guest_files verify /mnt/files /tmp/model
umount /mnt
"""


@pytest.mark.limit(1500)
@pytest.mark.lazycow_only  # qemu-nbd would be stopped and started in other words
def test_guest_outlives_the_server(workdir):
    """QEMU's own client, with reconnect-delay: the guest writes to its files before and after the
    server is stopped and started again, and notices nothing."""
    image = lib_tools.create(f"{workdir}/disk.qcow2", GIBI, lazy_refcounts="on")
    first = Server(workdir, image)
    devices = ["-blockdev", f"driver=nbd,node-name=d,server.type=unix,server.path={first.socket},"
                            f"export={first.name()},reconnect-delay=600,discard=unmap",
               "-device", "virtio-blk-pci,drive=d"]
    script = RECONNECT_SCRIPT.replace("OPERATIONS", str(lib_tools.scaled(OPERATIONS) // 3))
    program = lib_guest.compiled(workdir, "guest_files")
    try:
        with lib_guest.BackgroundGuest(workdir, devices, script, programs=[program],
                                       timeout=700) as guest:
            guest.wait_for_word("STOP THE SERVER")
            first.stop()
            lib_tools.check_clean(image)
            with Server(workdir, image, socket_path=first.socket) as second:
                text = guest.result()
                assert second.stderr().count("export 'disk'") == 1
    finally:
        first.kill()
    assert text.count("is as it must be") == 5 and "trimmed" in text, text[-6000:]
    lib_tools.check_clean(image)
