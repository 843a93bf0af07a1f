"""The speed of a push beside scp and rsync, in interleaved rounds: writes benchmarks/PUSH.md.

They run over loopback, and over a link of 50 ms, 1 % loss and 50 Mbit/s between two network namespaces (root,
iproute2). `--part` measures one of the two and leaves the other's section as it is. The time is that of a process that
sends one file, from its start to its end; it is given the file's hash, as a bundle's manifest gives it. rsync is left
out where it isn't installed. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shaped_link import ADDRESSES, CLIENT, SERVER, Link, shaped

from toolkit.agent.requests import Install
from toolkit.bundle import describe_file
from toolkit.catalog import Target
from toolkit.catalog.target import over
from toolkit.cli import markdown, render
from toolkit.deploy.push import Upload, push
from toolkit.device import connect
from toolkit.emulate import PrivateSshd
from toolkit.events import drain
from toolkit.units import rate_text

LOSSY = Link(round_trip_s=0.05, loss=0.01, bits_per_s=50e6)
MIB = 2**20
CLIENTS = ("auto", "paramiko", "openssh")
AGAIN = "edgephi, the same again"
PAGE = Path(__file__).with_name("PUSH.md")
# Variables that are set in the process in the server's namespace, and in those that send.
_ROLE, _SERVER = "EDGEPHI_BENCHMARK_ROLE", "EDGEPHI_BENCHMARK_SERVER"
_HEAD = """\
# Pushing beside scp and rsync

`make push-speed` writes this page. Every command sends the same file to the same sshd, in rounds that each begin with
another command; timed is the process from start to end. scp and rsync as installed, with their default ciphers.
"the same again" pushes what is in the device's store already. Both ends are on one machine of two processors, so a
loopback figure is what both cost together, not what a network carries.
"""


class FarSshd(PrivateSshd):
    """An sshd at the far end of the shaped link."""

    host = ADDRESSES[SERVER]


@dataclass(frozen=True)
class Job:
    """A file of `size` bytes and its hash, and the folder at the far end that it goes to."""

    file: Path
    sha256: str
    folder: Path

    @property
    def upload(self) -> Upload:
        return Upload(self.file, self.sha256, self.file.stat().st_size)


def send(job: Job, client: str) -> None:
    """Push, as a process of its own: connect, install the agent, send."""
    with connect(over(server_target(job.folder), client)) as device:
        render.follow(push(device, [job.upload]))


def keep(job: Job) -> None:
    """Have the pushed file verified in the store, as the release of a bundle of one file."""
    artifact = {"path": "file", "sha256": job.sha256, "size_bytes": job.file.stat().st_size}
    manifest = json.dumps({"artifacts": [artifact]})
    with connect(server_target(job.folder)) as device:
        drain(device.call(Install(release=hashlib.sha256(manifest.encode()).hexdigest(), manifest=manifest)))


def commands(server: PrivateSshd, job: Job) -> dict[str, list[str]]:
    ssh = ["-o", f"UserKnownHostsFile={server.known_hosts}", "-o", f"IdentityFile={server.identity_file}"]
    ssh += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    place = f"{server.user}@{server.host}:{job.folder}"
    found = {"scp": ["scp", "-q", *ssh, "-P", str(server.port), str(job.file), f"{place}/scp"]}
    if shutil.which("rsync"):
        shell = " ".join(["ssh", *ssh, "-p", str(server.port)])
        found["rsync"] = ["rsync", "--inplace", "-e", shell, str(job.file), f"{place}/rsync"]
    return found | {f"edgephi, {client}": ours(job, "--send", client) for client in CLIENTS}


def ours(job: Job, *what: str) -> list[str]:
    """The arguments that run this script as another process, for one job."""
    return [sys.executable, __file__, *what, "--job", str(job.file), job.sha256, str(job.folder)]


def rounds(server: PrivateSshd, size: int, count: int, prefix: Sequence[str]) -> dict[str, list[float]]:
    """Seconds by command; each sends to an empty folder."""
    times: dict[str, list[float]] = {}

    def timed(name: str, argv: Sequence[str], number: int) -> None:
        # The data of the command before mustn't be written to the disk in this one's time.
        os.sync()
        sys.stderr.write(f"> round {number + 1} of {count}: {name}\n")
        began = time.monotonic()
        subprocess.run([*prefix, *argv], check=True, stdout=subprocess.DEVNULL)
        times.setdefault(name, []).append(time.monotonic() - began)

    os.environ[_SERVER] = "\n".join(
        map(str, (server.host, server.port, server.user, server.identity_file, server.known_hosts))
    )
    with tempfile.TemporaryDirectory(dir=server.root) as scratch:
        file, folder = Path(scratch, "file"), Path(scratch, "far")
        with file.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        job = Job(file, describe_file(file, file.name).sha256, folder)
        for number in range(count):
            found = list(commands(server, job).items())
            for name, argv in found[number % len(found) :] + found[: number % len(found)]:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                timed(name, argv, number)
                if name.startswith("edgephi, auto"):
                    subprocess.run([*prefix, *ours(job, "--keep")], check=True)
                    timed(AGAIN, argv, number)
    return times


def table(times: dict[str, list[float]], size: int) -> str:
    scp = statistics.median(times["scp"])
    rows = []
    for name, values in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        middle = statistics.median(values)
        row = [name, f"{middle:.1f}", f"{min(values):.1f} … {max(values):.1f}"]
        sent = [rate_text(size / middle), f"{scp / middle:.2f}×"]
        rows.append(row + (["–", "–"] if name == AGAIN else sent))
    return markdown.table(["command", "seconds (median)", "all rounds", "rate", "speed relative to scp"], rows)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgephi-push-") as folder:
        yield Path(folder)


def over_loopback(size: int, count: int) -> dict[str, list[float]]:
    with scratch() as folder, PrivateSshd(folder) as server:
        return rounds(server, size, count, [])


def at_the_far_end(size: int, count: int) -> dict[str, list[float]]:
    """Measure in the server's namespace; the commands are started in the client's."""
    with scratch() as folder, FarSshd(folder) as server:
        return rounds(server, size, count, ["ip", "netns", "exec", CLIENT])


def over_a_lossy_link(size: int, count: int) -> dict[str, list[float]]:
    argv = ["ip", "netns", "exec", SERVER, sys.executable, __file__]
    argv += ["--lossy-mib", str(size // MIB), "--rounds", str(count)]
    with shaped(LOSSY):
        far = os.environ | {_ROLE: "far"}
        said = subprocess.run(argv, env=far, stdout=subprocess.PIPE, text=True, check=True).stdout
        found: dict[str, list[float]] = json.loads(said)
        return found


def server_target(folder: Path) -> Target:
    host, port, user, key, known = os.environ[_SERVER].split("\n")
    found = Target(name="far", host=host, port=int(port), user=user, profile="local", install_root=str(folder))
    # The time of a version manager's wrapper around `python3` here is no part of a push.
    return found.model_copy(
        update={"identity_file": Path(key), "known_hosts": Path(known), "python": os.path.realpath(sys.executable)}
    )


def write_section(page: Path, part: str, text: str) -> None:
    """Put a part's section on the page; the others stay as they are."""
    begin, end = f"<!-- begin: {part} -->\n", f"<!-- end: {part} -->\n"
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    sections = {part: f"{begin}{text}{end}"}
    for other in PARTS:
        if other != part and f"<!-- begin: {other} -->\n" in before:
            rest = before.partition(f"<!-- begin: {other} -->\n")[2].partition(f"<!-- end: {other} -->\n")[0]
            sections[other] = f"<!-- begin: {other} -->\n{rest}<!-- end: {other} -->\n"
    ordered = [sections[name] for name in PARTS if name in sections]
    page.write_text("\n".join([_HEAD, *ordered]), encoding="utf-8")


PARTS: dict[str, tuple[str, Callable[[int, int], dict[str, list[float]]]]] = {
    "loopback": ("Loopback", over_loopback),
    "lossy": ("50 ms, 1 % loss, 50 Mbit/s", over_a_lossy_link),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loopback-mib", type=int, default=2048)
    parser.add_argument("--lossy-mib", type=int, default=16)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--send", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.job:
        job = Job(Path(options.job[0]), options.job[1], Path(options.job[2]))
        keep(job) if options.keep else send(job, options.send)
        return
    if os.environ.get(_ROLE):
        sys.stdout.write(json.dumps(at_the_far_end(options.lossy_mib * MIB, options.rounds)))
        return
    sizes = {"loopback": options.loopback_mib, "lossy": options.lossy_mib}
    for part in options.part or PARTS:
        title, measure = PARTS[part]
        load = os.getloadavg()[0]
        found = table(measure(sizes[part] * MIB, options.rounds), sizes[part] * MIB)
        note = f"{options.rounds} rounds; the machine's load before them was {load:.1f}."
        write_section(options.output, part, f"## {title}, {sizes[part]} MiB\n\n{note}\n\n{found}\n")


if __name__ == "__main__":
    main()
