"""A kit: one folder with all that another engine needs to bring a bundle to devices through their agent.

kit.json            the complete requests to the agent; see `export_kit`
agent.pyz           the agent
blobs/<sha256>      the bundle's files
wheels/<sha256>     the runtimes' wheels, where they don't come from the devices' index
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.agent import agent_archive, agent_sha256
from toolkit.agent.requests import (
    Activate,
    FindMissing,
    ListReleases,
    Provision,
    Pull,
    Request,
    SentWheel,
    Settle,
    TakeProbe,
)
from toolkit.bundle import Block, Bundle, describe_file, verify_bundle
from toolkit.bundle.blocks import bundle_blocks
from toolkit.bundle.registry import BlobSource
from toolkit.catalog import Profile
from toolkit.catalog.python import MINORS, suits
from toolkit.deploy.consent import ask_for_unlocked
from toolkit.deploy.install import check_request, install_request, needed_bytes
from toolkit.deploy.provision import provision_request
from toolkit.deploy.pull import requested
from toolkit.deploy.push import CHUNK_BYTES
from toolkit.deploy.runtime import Runtime, fetch_wheels, runtime_for
from toolkit.errors import ConfigError
from toolkit.events import Service, Step
from toolkit.files import copy_file, in_words, replaced_folder

KIT_VERSION = 1
KIT_FILE = "kit.json"


def export_kit(
    bundle: Bundle,
    profiles: Sequence[Profile],
    folder: Path,
    *,
    pythons: Sequence[str] = (),
    wheels: bool = False,
    source: BlobSource | None = None,
) -> Service[None]:
    """Write the kit that brings a bundle to devices of these profiles, in place of a kit that is there.

    `pythons` are the versions (like 3.12) that devices have, by default all that suit; `wheels` puts the wheels for
    them into the kit. With `source` the devices pull the bundle's files from there, and of the bundle only its manifest
    need be here. Raises ConfigError when the folder is something else, none of `pythons` suits a profile, or the user
    doesn't consent to packages without a locked hash.
    """
    if folder.exists() and not (folder / KIT_FILE).is_file():
        raise ConfigError(f"{folder} is there and isn't a kit", "name a folder that doesn't exist yet")
    if source is None:
        yield Step(f"verify {bundle.manifest.name}")
        yield from verify_bundle(bundle)
    with replaced_folder(folder, over_content=True) as beside:
        (beside / "blobs").mkdir()
        for artifact in bundle.manifest.artifacts if source is None else ():
            _copy(bundle.path / artifact.path, beside / "blobs" / artifact.sha256)
        (beside / "agent.pyz").write_bytes(agent_archive())
        described = {}
        for profile in profiles:
            runtimes = {}
            for runtime in _runtimes(profile, pythons):
                yield from ask_for_unlocked(f"profile {profile.name}", runtime)
                files = (yield from _put_wheels(runtime, beside / "wheels")) if wheels else []
                runtimes[runtime.platform.python] = _runtime_part(bundle, profile, runtime, files)
            described[profile.name] = _profile_part(bundle, profile, runtimes)
        blocks = {} if source is None else (yield from bundle_blocks(bundle))
        text = json.dumps(_kit(bundle, described, source, blocks), indent=1, sort_keys=True)
        (beside / KIT_FILE).write_text(text + "\n", encoding="utf-8")


def _runtimes(profile: Profile, pythons: Sequence[str]) -> Iterator[Runtime]:
    wanted = profile.runtime.python
    found = [minor for minor in pythons or MINORS if suits(f"{minor}.0", wanted)]
    if not found:
        raise ConfigError(f"profile {profile.name}: its runtime needs Python {wanted}", "name such a --python, or none")
    for minor in found:
        yield runtime_for(profile, minor)


def _put_wheels(runtime: Runtime, folder: Path) -> Service[list[SentWheel]]:
    yield Step(f"fetch wheels for {runtime.platform}")
    folder.mkdir(exist_ok=True)
    files: list[SentWheel] = []
    for path in (yield from fetch_wheels(runtime, None)):
        sha256 = describe_file(path, path.name).sha256
        _copy(path, folder / sha256)
        files.append({"name": path.name, "sha256": sha256})
    return files


def _copy(source: Path, target: Path) -> None:
    """Copy a file, unless the target is there: then it has the same hash."""
    if not target.exists():
        with in_words(target):
            copy_file(source, target)


def _kit(
    bundle: Bundle, profiles: dict[str, Any], source: BlobSource | None, blocks: Mapping[str, Sequence[Block]]
) -> dict[str, Any]:
    name = f"agent-{agent_sha256()[:16]}"
    artifacts = bundle.manifest.artifacts
    places = [place.url for place in source.repositories()] if source else []
    missing = FindMissing(release=bundle.id, artifacts=requested(artifacts, {}), chunk_bytes=CHUNK_BYTES)
    pull = Pull(artifacts=requested(artifacts, blocks), sources=places) if places else None
    return {
        "kit_version": KIT_VERSION,
        "agent": {"name": f"{name}.pyz", "arrival": f"{name}.kit.tmp", "sha256": agent_sha256()},
        "settle": _message(Settle()),
        "probe": _message(TakeProbe()),
        "releases": _message(ListReleases()),
        "bundle": {"name": bundle.manifest.name, "release": bundle.id},
        "missing": _message(missing),
        "pull": pull and _message(pull),
        "install": _message(install_request(bundle, blocks)),
        "profiles": profiles,
    }


def _profile_part(bundle: Bundle, profile: Profile, runtimes: dict[str, Any]) -> dict[str, Any]:
    """The kit's entry of a profile: the requirements on a device, and its runtimes' requests by version of Python."""
    needed = needed_bytes(bundle, profile)
    return {
        "arch": profile.hardware.arch,
        "os": profile.hardware.os,
        "ram_bytes": needed and needed + profile.hardware.ram_reserved_bytes,
        "memory_bytes": needed,
        "runtimes": runtimes,
    }


def _runtime_part(bundle: Bundle, profile: Profile, runtime: Runtime, wheels: Sequence[SentWheel]) -> dict[str, Any]:
    return {
        "lock": runtime.lock,
        "wheels": [wheel["sha256"] for wheel in wheels],
        "query": _message(Provision(lock=runtime.lock, query_only=True)),
        "provision": _message(provision_request(runtime, wheels)),
        "check": _message(check_request(profile, runtime=runtime.lock, release=bundle.id)),
        "activate": _message(Activate(runtime=runtime.lock, release=bundle.id)),
    }


def _message(request: Request[Any]) -> dict[str, Any]:
    return request.message(by="a kit")
