"""How fast a push is beside scp and rsync, in interleaved rounds: `python benchmarks/push.py > benchmarks/PUSH.md`.

Over loopback, and over a link of 50 ms, 1 % loss and 50 Mbit/s between two network namespaces (root, iproute2). What
is timed is one file from start to end of the command that sends it, without hashing there. rsync is left out where it
isn't installed. Talk goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shaped_link import ADDRESSES, CLIENT, SERVER, Link, shaped

from toolkit.bundle import describe_file
from toolkit.cli import render
from toolkit.device import connect
from toolkit.push import Upload, push
from toolkit.targets import Target
from toolkit.transport.sshd import PrivateSshd

LOSSY = Link(round_trip_s=0.05, loss=0.01, bits_per_s=50e6)
MIB = 2**20
# Set in the processes that run in the namespaces.
_ROLE = "EDGEPHI_BENCHMARK_ROLE"


class FarSshd(PrivateSshd):
    """An sshd at the far end of the shaped link."""

    host = ADDRESSES[SERVER]


def send(file: Path, target: Target) -> None:
    """What a push does, as a process of its own: connect, install the agent, send."""
    artifact = describe_file(file, file.name)
    with connect(target) as device:
        render.follow(push(device, [Upload(file, artifact.sha256, artifact.size_bytes)]))


def commands(server: PrivateSshd, file: Path, folder: Path) -> dict[str, list[str]]:
    ssh = ["-o", f"UserKnownHostsFile={server.known_hosts}", "-o", f"IdentityFile={server.identity_file}"]
    ssh += ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    place = f"{server.user}@{server.host}:{folder}"
    found = {
        "scp": ["scp", "-q", *ssh, "-P", str(server.port), str(file), f"{place}/scp"],
        "edgephi": [sys.executable, __file__, "--send", str(file), "--to", str(folder)],
    }
    if shutil.which("rsync"):
        shell = " ".join(["ssh", *ssh, "-p", str(server.port)])
        found["rsync"] = ["rsync", "--inplace", "-e", shell, str(file), f"{place}/rsync"]
    return found


def rounds(server: PrivateSshd, size: int, count: int, prefix: list[str]) -> dict[str, list[float]]:
    """Seconds by command, in interleaved rounds; each sends to an empty folder."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=server.root) as scratch:
        file, folder = Path(scratch, "file"), Path(scratch, "far")
        with file.open("wb") as out:
            for _ in range(size // MIB):
                out.write(os.urandom(MIB))
        os.environ["EDGEPHI_BENCHMARK_SERVER"] = f"{server.host} {server.port} {server.user}"
        os.environ["EDGEPHI_BENCHMARK_KEYS"] = f"{server.identity_file}\n{server.known_hosts}"
        for number in range(count):
            for name, argv in commands(server, file, folder).items():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                sys.stderr.write(f"> round {number + 1} of {count}: {name}\n")
                began = time.monotonic()
                subprocess.run([*prefix, *argv], check=True, stdout=subprocess.DEVNULL)
                times.setdefault(name, []).append(time.monotonic() - began)
    return times


def table(times: dict[str, list[float]], size: int) -> str:
    scp = statistics.median(times["scp"])
    rows = [
        [
            name,
            f"{statistics.median(values):.1f}",
            f"{min(values):.1f} … {max(values):.1f}",
            render.size(size / statistics.median(values)) + "/s",
            f"{scp / statistics.median(values):.2f}×",
        ]
        for name, values in sorted(times.items(), key=lambda item: statistics.median(item[1]))
    ]
    return render.markdown_table(["command", "seconds (median)", "all rounds", "rate", "speed relative to scp"], rows)


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgephi-push-") as folder:
        yield Path(folder)


def over_loopback(size: int, count: int) -> str:
    with scratch() as folder, PrivateSshd(folder) as server:
        return table(rounds(server, size, count, []), size)


def at_the_far_end(size: int, count: int) -> str:
    """In the namespace of the server; clients are started in the other one."""
    with scratch() as folder, FarSshd(folder) as server:
        return table(rounds(server, size, count, ["ip", "netns", "exec", CLIENT]), size)


def over_a_lossy_link(size: int, count: int) -> str:
    argv = ["ip", "netns", "exec", SERVER, sys.executable, __file__]
    argv += ["--lossy-mib", str(size // MIB), "--rounds", str(count)]
    with shaped(LOSSY):
        far = os.environ | {_ROLE: "far"}
        return subprocess.run(argv, env=far, stdout=subprocess.PIPE, text=True, check=True).stdout


def server_target(folder: Path) -> Target:
    host, port, user = os.environ["EDGEPHI_BENCHMARK_SERVER"].split()
    key, known = os.environ["EDGEPHI_BENCHMARK_KEYS"].split("\n")
    found = Target(name="far", host=host, port=int(port), user=user, profile="local", install_root=str(folder))
    return found.model_copy(update={"identity_file": Path(key), "known_hosts": Path(known)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loopback-mib", type=int, default=2048)
    parser.add_argument("--lossy-mib", type=int, default=48)
    parser.add_argument("--send", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send, server_target(options.to))
    elif os.environ.get(_ROLE):
        sys.stdout.write(at_the_far_end(options.lossy_mib * MIB, options.rounds))
    else:
        parts: dict[str, Callable[[], str]] = {
            f"Loopback, {options.loopback_mib} MiB": lambda: over_loopback(options.loopback_mib * MIB, options.rounds),
            f"50 ms, 1 % loss, 50 Mbit/s, {options.lossy_mib} MiB": lambda: over_a_lossy_link(
                options.lossy_mib * MIB, options.rounds
            ),
        }
        sys.stdout.write("# Pushing beside scp and rsync\n\nOutput of `make push-speed`, in interleaved rounds.\n")
        for title, measure in parts.items():
            sys.stdout.write(f"\n## {title}\n\n{measure()}\n")


if __name__ == "__main__":
    main()
