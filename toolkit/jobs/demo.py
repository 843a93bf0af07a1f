"""The whole loop with edgephi's own reference model and loopback device, over real SSH, with real Olive and runtime."""

from __future__ import annotations

from pathlib import Path

from toolkit.catalog import Target
from toolkit.catalog.workload import load_workload
from toolkit.config import cache_dir
from toolkit.emulate import EmbeddedServer, PrivateSshd, start_loopback
from toolkit.events import Service, Step
from toolkit.jobs.run import LoopOptions, LoopRow, run

MODEL = "phi3-nano"
RECIPES = ("fp32", "int4-rtn-b32", "int4-kquant-b32", "int4-gptq-b32")


def demo(*, embedded: bool = False, fresh: bool = False) -> Service[list[LoopRow]]:
    """Start a device on loopback and run the whole loop against it.

    The device's disk is a folder that stays between demos, so a second demo finds its runtime and releases there.
    """
    root = cache_dir() / "demo"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with start_loopback(root, embedded=embedded) as server:
        yield Step(f"device: a loopback SSH server, {server.kind}, port {server.port}")
        target = loopback_target("demo", server, root)
        rows: list[LoopRow] = yield from run(MODEL, [target], RECIPES, LoopOptions(load_workload("demo"), fresh=fresh))
    return rows


def loopback_target(name: str, server: PrivateSshd | EmbeddedServer, root: Path) -> Target:
    """A target for a loopback server, whose disk is a folder under `root`."""
    return Target(
        name=name,
        host=server.host,
        port=server.port,
        user=server.user,
        profile="local",
        install_root=str(root / "device"),
        identity_file=server.identity_file,
        known_hosts=server.known_hosts,
    )
