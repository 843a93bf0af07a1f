"""Simulate a rollout to 10 … 100,000 devices: pushed from one laptop, pulled from a registry, or from mirrors of it.

    make fleet-sim                                                      # writes FLEET.md, in a few minutes
    python benchmarks/fleet_sim.py                                      # the same, to stdout
    python benchmarks/fleet_sim.py --size '2.72 GB' --load-check-s 12   # a larger bundle, on slower devices

The costs of one device are measured first, with a real bundle over a loopback SSH server and a loopback registry; an
option takes the place of the figure that it names. Without any, a second table follows for a full-size Phi-3-mini,
whose size and load time stand in RESULTS.md. The networks are assumed, by options, and the fleet is a model: see
`Fleet`. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from toolkit.agent.requests import Discard, ListReleases, Pull, TakeProbe
from toolkit.catalog import Target, load_profile, load_recipe
from toolkit.cli import markdown, render
from toolkit.config import cache_dir
from toolkit.deploy import deploy
from toolkit.deploy.install import check_active
from toolkit.device import connect
from toolkit.device.ssh.config import CONNECT_TIMEOUT_S
from toolkit.emulate import start_loopback
from toolkit.jobs.demo import loopback_target
from toolkit.jobs.rollout import RolloutOptions
from toolkit.jobs.rollout.record import plan_waves
from toolkit.optimize import BuildRequest, optimize
from toolkit.units import parse_bandwidth, parse_bytes, rate_text

FLEETS = (10, 100, 1_000, 10_000, 100_000)
MODEL, RECIPE = "phi3-nano", "int4-rtn-b32"
FULL_RECIPE = "int4-rtn-b128"
RESULTS = Path(__file__).parent / "RESULTS.md"
SAMPLE_BYTES = 256 << 20
SEED = 1207


@dataclass(frozen=True)
class Costs:
    """The costs of one device: a connection with all requests over it, a load with a few tokens, and rates in bytes a
    second: of hashing, of one SSH connection, of all that the laptop keeps busy at once, and of an agent's pull."""

    size_bytes: float
    overhead_s: float
    load_check_s: float
    hash_rate: float
    ssh_rate: float
    ssh_total: float
    pull_rate: float


@dataclass(frozen=True)
class Assumed:
    """The assumptions: links in bytes a second, and the properties of the fleet."""

    laptop: float
    registry: float
    site: float
    device: float
    site_devices: int
    off_share: float
    spread: float
    parallel: int
    parallel_pull: int


@dataclass
class Outcome:
    """The time and the waves of a rollout, and the bytes that each party sent."""

    seconds: float = 0.0
    waves: int = 0
    laptop: float = 0.0
    registry: float = 0.0
    mirrors: float = 0.0


def transfers_s(size: float, caps: Sequence[float], pool: float) -> list[float]:
    """The end of each of several transfers of one size: they share `pool` fairly, and none is faster than its cap."""
    ends, left = [0.0] * len(caps), [size] * len(caps)
    now, going = 0.0, sorted(range(len(caps)), key=lambda index: caps[index])
    while going:
        if sum(caps[index] for index in going) <= pool:
            for index in going:
                ends[index] = now + left[index] / caps[index]
            break
        rest, rates = pool, {}
        for rank, index in enumerate(going):
            rates[index] = min(caps[index], rest / (len(going) - rank))
            rest -= rates[index]
        step = min(left[index] / rates[index] for index in going)
        now += step
        for index in going:
            left[index] -= rates[index] * step
            ends[index] = now
        going = [index for index in going if left[index] > size * 1e-9]
    return ends


class Fleet:
    """Devices in sites of `site_devices`, rolled out to in their order, in waves that `edgephi deploy` would start.

    A wave lasts as long as its slowest device: overhead, transfer, hash, two loads. One device is slower or faster
    than another in everything, by a factor whose logarithm is normal. Devices of one site share its line to the world
    evenly; a mirror fetches the bundle once for its site, before its devices do, and serves them all at their full
    rate. A device that is off costs the time-out. There is no limit on failures, no loss, and no other traffic.
    """

    def __init__(self, devices: int, costs: Costs, assumed: Assumed) -> None:
        draw = random.Random(SEED)
        self._costs, self._assumed, self._devices = costs, assumed, devices
        self._slowness = [math.exp(draw.gauss(0.0, assumed.spread)) for _ in range(devices)]
        self._off = [draw.random() < assumed.off_share for _ in range(devices)]

    def push(self) -> Outcome:
        """Roll out by pushing: every byte comes from the laptop, over SSH."""

        def wave(on: list[int], outcome: Outcome) -> list[float]:
            outcome.laptop += self._costs.size_bytes * len(on)
            caps = self._caps(on, min(self._costs.ssh_rate, self._assumed.device))
            return transfers_s(self._costs.size_bytes, caps, min(self._assumed.laptop, self._costs.ssh_total))

        return self._roll(self._assumed.parallel, wave)

    def pull(self) -> Outcome:
        """Roll out by pulling: the laptop only names the files, and every device fetches them from one registry."""

        def wave(on: list[int], outcome: Outcome) -> list[float]:
            outcome.registry += self._costs.size_bytes * len(on)
            return transfers_s(self._costs.size_bytes, self._caps(on, self._pulls()), self._assumed.registry)

        return self._roll(self._assumed.parallel_pull, wave)

    def mirrors(self) -> Outcome:
        """Roll out by pulling from a mirror in each site, on the devices' own network."""
        filled: set[int] = set()

        def wave(on: list[int], outcome: Outcome) -> list[float]:
            new = sorted({self._site(index) for index in on} - filled)
            filled.update(new)
            size = self._costs.size_bytes
            fetched = transfers_s(size, [self._assumed.site] * len(new), self._assumed.registry)
            waits = dict(zip(new, fetched, strict=True))
            outcome.registry += size * len(new)
            outcome.mirrors += size * len(on)
            return [waits.get(self._site(index), 0.0) + size * self._slowness[index] / self._pulls() for index in on]

        return self._roll(self._assumed.parallel_pull, wave)

    def _roll(self, parallel: int, wave: Callable[[list[int], Outcome], list[float]]) -> Outcome:
        outcome = Outcome()
        numbers = [str(index) for index in range(self._devices)]
        for planned in plan_waves(numbers, RolloutOptions(parallel=parallel)):
            every = [int(number) for number in planned.targets]
            on = [index for index in every if not self._off[index]]
            moved = wave(on, outcome)
            ends = [seconds + self._own_s(index) for index, seconds in zip(on, moved, strict=True)]
            outcome.seconds += max([*ends, *([CONNECT_TIMEOUT_S] if len(on) < len(every) else [])], default=0.0)
            outcome.waves += 1
        return outcome

    def _pulls(self) -> float:
        return min(self._costs.pull_rate, self._assumed.device)

    def _own_s(self, index: int) -> float:
        costs = self._costs
        return self._slowness[index] * (costs.overhead_s + 2 * costs.load_check_s + costs.size_bytes / costs.hash_rate)

    def _caps(self, on: list[int], link: float) -> list[float]:
        """The most that each device receives, in bytes a second, by its own link and its part of the site's line."""
        beside = Counter(self._site(index) for index in on)
        return [min(link / self._slowness[index], self._assumed.site / beside[self._site(index)]) for index in on]

    def _site(self, index: int) -> int:
        return index // self._assumed.site_devices


def measure(parallel: int) -> Costs:
    """Measure the costs of one device here: loopback SSH, server and client on this machine, the reference model."""
    bundle = render.follow(optimize(BuildRequest(MODEL, load_recipe(RECIPE), load_profile("local"))))
    root = cache_dir() / "fleet-sim"
    root.mkdir(parents=True, exist_ok=True)
    with start_loopback(root) as server:
        target = loopback_target("sim", server, root)
        with connect(target) as device:
            render.follow(deploy(bundle, device))
        began = time.monotonic()
        with connect(target) as device:
            render.follow(deploy(bundle, device))
        overhead_s = time.monotonic() - began
        with connect(target) as device:
            device.ask(ListReleases())
            began = time.monotonic()
            render.follow(check_active(device))
            load_check_s = time.monotonic() - began
        sample = root / "sample"
        sample.write_bytes(os.urandom(1 << 20) * (SAMPLE_BYTES >> 20))
        one, many = push_rate(target, sample, 1), push_rate(target, sample, min(parallel, 4))
        began = time.monotonic()
        with sample.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        hash_rate = SAMPLE_BYTES / (time.monotonic() - began)
        pulled = pull_rate(target, sample, sha256)
    sample.unlink()
    return Costs(bundle.manifest.size_bytes, overhead_s, load_check_s, hash_rate, one, max(one, many), pulled)


def push_rate(target: Target, sample: Path, connections: int) -> float:
    """Bytes a second that so many connections send together."""

    def send(number: int) -> None:
        for _ in devices[number].transport.put(sample, devices[number].path(f"sample-{number}")):
            pass

    with ExitStack() as stack:
        devices = [stack.enter_context(connect(target)) for _ in range(connections)]
        threads = [Thread(target=send, args=(number,)) for number in range(connections)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    for number in range(connections):
        Path(target.install_root, f"sample-{number}").unlink()
    return connections * SAMPLE_BYTES / seconds


def pull_rate(target: Target, sample: Path, sha256: str) -> float:
    """Bytes a second that the agent pulls from a registry on this machine, each file held against its hash."""

    class Blob(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(SAMPLE_BYTES))
            self.end_headers()
            with sample.open("rb") as file:
                shutil.copyfileobj(file, self.wfile, 1 << 20)

        def log_message(self, *_words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Blob) as server, connect(target) as device:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v2/sim"
        device.ask(TakeProbe())
        began = time.monotonic()
        device.ask(Pull(artifacts=[{"sha256": sha256, "size_bytes": SAMPLE_BYTES}], sources=[url]))
        seconds = time.monotonic() - began
        device.ask(Discard(sha256=[sha256]))
        server.shutdown()
    return SAMPLE_BYTES / seconds


def full_size(costs: Costs) -> tuple[Costs, str] | None:
    """The same costs for Phi-3-mini as RESULTS.md has it, and the name of that file; None if it has no such row."""
    row = re.search(
        rf"^\| [^|]+ \| phi-3-mini-4k \| {FULL_RECIPE} \| ([^|]+) \| ([\d.]+) \|", RESULTS.read_text(), re.M
    )
    if row is None:
        return None
    # Starting the runtime takes as long as for the reference model.
    load_check_s = costs.load_check_s + float(row[2])
    return replace(costs, size_bytes=float(parse_bytes(row[1])), load_check_s=load_check_s), "RESULTS.md"


def table(costs: Costs, assumed: Assumed, fleets: Sequence[int]) -> str:
    """One row for each fleet and way, as Markdown."""
    rows = []
    for devices in fleets:
        fleet = Fleet(devices, costs, assumed)
        for name, way in (("push", fleet.push), ("registry", fleet.pull), ("mirrors", fleet.mirrors)):
            found = way()
            sent = [render.size(value) if value else "–" for value in (found.laptop, found.registry, found.mirrors)]
            rows.append([f"{devices:,}", name, f"{found.waves:,}", render.duration(found.seconds), *sent])
    columns = ["devices", "way", "waves", "time", "laptop sends", "registry sends", "mirrors send"]
    return markdown.table(columns, rows)


def figures(costs: Costs, assumed: Assumed, source: dict[str, str]) -> str:
    """The figures that the table was computed from, as a list in Markdown."""
    lines = [
        f"bundle: {render.size(costs.size_bytes)} ({source['size_bytes']})",
        f"connection and questions: {costs.overhead_s:.2f} s ({source['overhead_s']})",
        f"one load check of two: {costs.load_check_s:.2f} s ({source['load_check_s']})",
        f"hash on the device: {rate_text(costs.hash_rate)} ({source['hash_rate']})",
        f"SSH: {rate_text(costs.ssh_rate)} a connection ({source['ssh_rate']}), "
        f"{rate_text(costs.ssh_total)} in all ({source['ssh_total']})",
        f"pull of one device: {rate_text(costs.pull_rate)} ({source['pull_rate']})",
        f"laptop {rate_text(assumed.laptop)}, registry {rate_text(assumed.registry)}, a device "
        f"{rate_text(assumed.device)}, {assumed.site_devices} devices on one line of {rate_text(assumed.site)} "
        "(assumed)",
        f"{assumed.parallel} devices at once when pushing, {assumed.parallel_pull} when they pull; "
        f"{assumed.off_share:.1%} are off; devices differ by a factor of {math.exp(assumed.spread):.2f} (assumed)",
    ]
    return "\n".join(f"- {line}" for line in lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", dest="size_bytes", type=parse_bytes, help="of the bundle")
    parser.add_argument("--overhead-s", type=float, help="connection, probe, questions of one device")
    parser.add_argument("--load-check-s", type=float, help="loading the bundle and generating four tokens")
    parser.add_argument("--hash-rate", type=parse_bandwidth, help="SHA-256 on the device, like '400 MB/s'")
    parser.add_argument("--ssh-rate", type=parse_bandwidth, help="one SSH connection")
    parser.add_argument("--ssh-total", type=parse_bandwidth, help="all SSH connections of the laptop together")
    parser.add_argument("--pull-rate", type=parse_bandwidth, help="what a device's agent pulls from a registry")
    parser.add_argument("--laptop", type=parse_bandwidth, default="110 MB/s", help="the laptop's link")
    parser.add_argument("--registry", type=parse_bandwidth, default="1.1 GB/s", help="what the registry sends in all")
    parser.add_argument("--site", type=parse_bandwidth, default="55 MB/s", help="a site's line to the world")
    parser.add_argument("--device", type=parse_bandwidth, default="40 MB/s", help="a device's link, or its card")
    parser.add_argument("--site-devices", type=int, default=50)
    parser.add_argument("--off-share", type=float, default=0.01, help="share of devices that are off")
    parser.add_argument("--spread", type=float, default=0.25, help="standard deviation of a device's log slowness")
    parser.add_argument("--parallel", type=int, default=8, help="devices at once when the laptop pushes")
    parser.add_argument("--parallel-pull", type=int, default=256, help="devices at once when they pull")
    parser.add_argument("--fleets", type=int, nargs="+", default=FLEETS, metavar="N")
    return parser.parse_args()


def main() -> None:
    options = parse()
    names = list(Costs.__dataclass_fields__)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    source = {name: "given" if name in given else "measured here" for name in names}
    costs = Costs(**given) if len(given) == len(names) else replace(measure(options.parallel), **given)
    assumed = Assumed(**{name: getattr(options, name) for name in Assumed.__dataclass_fields__})
    print("# A rollout to many devices\n\nOutput of `make fleet-sim`; edit `benchmarks/fleet_sim.py`, not this file. A")
    print("simulation, no measurement of a fleet: what one device costs is measured, the rest is computed.\n")
    section(MODEL if not given else "As given", costs, assumed, source, options.fleets)
    if not given and (other := full_size(costs)):
        larger, where = other
        source |= {"size_bytes": where, "load_check_s": f"as above, and the load in {where}"}
        section(f"Phi-3-mini, {FULL_RECIPE}", larger, assumed, source, options.fleets)


def section(name: str, costs: Costs, assumed: Assumed, source: dict[str, str], fleets: Sequence[int]) -> None:
    print(
        f"## {name}\n\n{table(costs, assumed, fleets)}\n\nIt was computed from:\n\n{figures(costs, assumed, source)}\n"
    )


if __name__ == "__main__":
    main()
