"""The first file system of an emulated machine, made by hand: a distribution's own tool would run for hours under
emulation.
"""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.power.kernel import Kernel

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio-rng")
# The mount point of the machine's second disk, which holds the install root.
DATA = "/data"
# The folder of the machine's own files, which `make_initrd` gets.
RUN = "/run/edgephi"

# Process 1 on the initrd, until the root file system is mounted.
START = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
mount -t ext4 -o noatime /dev/vda /root
for name in proc sys dev; do mount --move /$name /root/$name; done
mount -t tmpfs run /root/run
mkdir -p /root{RUN}
cp -a /run/edgephi/. /bin/busybox /root{RUN}
exec switch_root /root {RUN}/busybox sh {RUN}/serve
"""

# Process 1 from then on; a broken disk mustn't keep the machine from answering.
SERVE = f"""B={RUN}/busybox
$B mkdir -p /dev/pts /dev/shm /run/sshd {DATA}
$B mount -t devpts devpts /dev/pts
$B mount -t tmpfs shm /dev/shm
$B mount -t tmpfs tmp /tmp
$B mount -t cgroup2 cgroup /sys/fs/cgroup
$B hostname board
[ -b /dev/vdb ] && $B mount -t ext4 -o noatime /dev/vdb {DATA}
/usr/sbin/sshd -e -f {RUN}/sshd_config
while :; do $B sleep 60; done
"""


@dataclass(frozen=True)
class Entry:
    """A file or, where `content` is None, a folder of an archive."""

    path: str
    content: bytes | None
    mode: int = 0o755


def make_initrd(kernel: Kernel, files: Mapping[str, str]) -> bytes:
    """A packed initrd that mounts the machine's disks and starts sshd; `files` appear under RUN, readable by root."""
    modules = load_order(kernel.modules, MODULES)
    names = [module.name.removesuffix(".xz") for module in modules]
    entries = [Entry(folder, None) for folder in ("bin", "dev", "modules", "proc", "root", "run", "run/edgephi", "sys")]
    entries += [Entry("init", START.encode()), Entry("bin/busybox", kernel.busybox.read_bytes())]
    entries += [Entry(f"modules/{name}", _plain(module)) for name, module in zip(names, modules, strict=True)]
    entries += [Entry("modules/order", "\n".join(names).encode())]
    texts = {"serve": SERVE, **files}
    entries += [Entry(f"run/edgephi/{name}", text.encode(), 0o600) for name, text in texts.items()]
    return gzip.compress(cpio(entries), compresslevel=1)


def load_order(folder: Path, wanted: Iterable[str]) -> list[Path]:
    """The files of kernel modules and of the modules that they need, each after the ones that it needs.

    A module without a file is taken to be built into the kernel.
    """
    found = {_module_name(path): path for path in folder.rglob("*.ko*")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        path = found.get(name)
        if path is None or name in order:
            return
        for needed in depends(_plain(path)):
            add(needed)
        order[name] = path

    for name in wanted:
        add(name.replace("-", "_"))
    return list(order.values())


def depends(module: bytes) -> list[str]:
    """The modules that a module declares to need, by their names inside the kernel."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def cpio(entries: Iterable[Entry]) -> bytes:
    """An archive in the kernel's own format (`newc`), in which root owns everything."""
    return b"".join(_packed(entries))


def _packed(entries: Iterable[Entry]) -> Iterator[bytes]:
    number = 0
    for number, entry in enumerate(entries, start=1):
        kind = 0o040000 if entry.content is None else 0o100000
        yield _record(number, kind | entry.mode, entry.path, entry.content or b"")
    yield _record(number + 1, 0, "TRAILER!!!", b"")


def _record(number: int, mode: int, path: str, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _plain(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data
