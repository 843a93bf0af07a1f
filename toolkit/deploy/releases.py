"""The releases on a target: activate one, verify them, remove old ones."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.agent.requests import Activate, ListReleases, Prune, ReadManifest, Verify
from toolkit.bundle.signatures import check_signatures
from toolkit.deploy.install import check_active, check_request, damaged_files, prepare
from toolkit.device import Device
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Service, Step


@dataclass(frozen=True)
class Checked:
    """A release whose files were hashed again, and the paths that no longer have their SHA-256."""

    release: str
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The result of verifying a store. `active` is the release that is active afterwards, None when none is."""

    target: str
    releases: tuple[Checked, ...]
    active: str | None
    repaired: bool

    @property
    def damaged(self) -> list[Checked]:
        return [checked for checked in self.releases if checked.damaged]

    def enforce(self) -> None:
        """Raise CorruptBundle unless everything is whole."""
        if not self.damaged:
            return
        found = "; ".join(f"{checked.release[:12]}: {', '.join(checked.damaged)}" for checked in self.damaged)
        if self.repaired:
            hint = "they were removed; `edgephi deploy` sends what was damaged afresh, and nothing else"
        else:
            hint = f"edgephi verify {self.target} --repair removes them; a deploy then sends what was damaged afresh"
        raise CorruptBundle(f"{self.target}: damaged releases: {found}", hint)


@dataclass(frozen=True)
class Pruned:
    """The releases that were removed, or would be, those that stay, and the bytes that this frees."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed_bytes: int


def activate(device: Device, reference: str) -> Service[str]:
    """Activate an installed release by id, by the first characters of its id, or by name; returns its id.

    The release is hashed, and loaded to generate, before the pointer moves. Raises ConfigError unless exactly one
    release fits; SignatureError when the target demands a signature that isn't kept there with the release;
    CorruptBundle when one of its files is damaged.
    """
    runtime = (yield from prepare(device)).runtime
    fitting = [
        entry.release
        for entry in device.ask(ListReleases()).releases
        if entry.release.startswith(reference) or entry.manifest.name == reference
    ]
    if len(fitting) != 1:
        count = "no release" if not fitting else f"{len(fitting)} releases"
        raise ConfigError(
            f"{device.target.name}: {count} called '{reference}'", f"edgephi releases {device.target.name}"
        )
    _check_signed(device, fitting[0])
    if (yield from damaged_files(device, fitting[0], repair=False)):
        raise CorruptBundle(
            f"{device.target.name}: release {fitting[0][:12]} is damaged, and stays inactive",
            "deploy its bundle again: what was damaged is sent afresh",
        )
    yield from device.call(check_request(device.profile, runtime=runtime.lock, release=fitting[0]))
    device.ask(Activate(release=fitting[0], runtime=runtime.lock))
    return fitting[0]


def _check_signed(device: Device, release: str) -> None:
    if device.target.signers_file is None:
        return
    kept = device.ask(ReadManifest(release=release))
    check_signatures(device.target, "the release", release, kept.manifest.encode(), kept.signatures)


def load_active(device: Device) -> Service[str | None]:
    """Load the active release and generate with it; returns its id, None when nothing is active.

    Raises AgentError, CorruptBundle, HostUnreachable.
    """
    release = device.ask(ListReleases()).pointer.release
    if release is not None:
        yield from check_active(device)
    return release


def verify(device: Device, *, repair: bool = False) -> Service[Verification]:
    """Hash every file of every release on the device again; nothing is sent.

    With `repair` damaged releases are removed, and the newest whole one that was active before takes the place of a
    damaged active one.
    """
    yield Step(f"{device.target.name}: hash every release")
    found = yield from device.call(Verify(repair=repair))
    checked = tuple(Checked(entry.release, entry.damaged) for entry in found.releases)
    return Verification(device.target.name, checked, found.active, found.repaired)


def prune(device: Device, *, keep: int, dry_run: bool = False) -> Service[Pruned]:
    """Remove all releases but the active one and `keep` others, with the files and runtimes that only they needed."""
    found = yield from device.call(Prune(keep=keep, dry_run=dry_run))
    return Pruned(found.removed, found.kept, found.freed_bytes)
