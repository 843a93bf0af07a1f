"""Two network namespaces with a slow, lossy link between them, for measuring a push over a bad network.

The link is this process: it reads packets from a TUN device in each namespace and writes them to the other one later,
or never. Needs root, iproute2 and /dev/net/tun; nothing leaves the two namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLIENT, SERVER = "edgephi-near", "edgephi-far"
ADDRESSES = {CLIENT: "10.99.0.1", SERVER: "10.99.0.2"}
_DEVICE, _NETWORK = "shaped0", "10.99.0.0/24"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PACKET_BYTES = 2048
# The delay that a home router's buffer reaches before it drops packets.
_BUFFERED_S = 0.1


@dataclass(frozen=True)
class Link:
    """A link's round trip in seconds, its loss each way as a share, and its rate each way in bits a second."""

    round_trip_s: float
    loss: float
    bits_per_s: float


@contextmanager
def shaped(link: Link) -> Iterator[None]:
    """While the block runs, `ip netns exec` in CLIENT and SERVER sees the other at its address."""
    ready = multiprocessing.Event()
    for name in ADDRESSES:
        # A run that was killed has left its namespaces behind.
        subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        carrier = multiprocessing.Process(target=_carry, args=(link, ready), daemon=True)
        carrier.start()
        if not ready.wait(10):
            raise SystemExit("the shaped link didn't come up")
        try:
            yield
        finally:
            carrier.terminate()
            carrier.join()
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", name], check=True)


def _carry(link: Link, ready: object) -> None:
    ends = [_open_end(name) for name in ADDRESSES]
    ready.set()  # type: ignore[attr-defined]
    chance = random.Random(0)
    free_at = [0.0, 0.0]
    due: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        for end in select.select(ends, [], [], wait)[0]:
            packet, way, now = os.read(end, _PACKET_BYTES), ends.index(end), time.monotonic()
            starts = max(now, free_at[way])
            if chance.random() < link.loss or starts - now > _BUFFERED_S:
                continue
            free_at[way] = starts + len(packet) * 8 / link.bits_per_s
            count += 1
            heapq.heappush(due, (free_at[way] + link.round_trip_s / 2, count, ends[1 - way], packet))
        while due and due[0][0] <= time.monotonic():
            _, _, end, packet = heapq.heappop(due)
            os.write(end, packet)


def _open_end(namespace: str) -> int:
    """The TUN device of a namespace, up, with its address."""
    with Path("/run/netns", namespace).open() as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    address = ADDRESSES[namespace]
    for command in (
        "link set lo up",
        f"addr add {address}/24 dev {_DEVICE}",
        f"link set {_DEVICE} up",
        # The congestion control that most systems have, whatever this one has.
        f"route replace {_NETWORK} dev {_DEVICE} proto kernel scope link src {address} congctl cubic",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return end
