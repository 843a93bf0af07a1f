"""From a bundle on this machine to a verified, active release on a target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bundle import Bundle, describe_file, verify_bundle
from toolkit.device import Device, check_profile, connect
from toolkit.errors import ConfigError, DeviceFull
from toolkit.events import Progress, Service, Step, Warning_
from toolkit.plan import PROMPT_TOKENS
from toolkit.runtime import Runtime, describe, resolve_wheels

CHECK_PROMPT = "In the beginning"
CHECK_TOKENS = 4
# What the store and the runtime's own files may need on top of what is sent.
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Release:
    """A bundle installed on a target, and the runtime that executes it there."""

    bundle_id: str
    target: str
    runtime: Runtime
    probe: dict[str, Any]


@dataclass(frozen=True)
class Upload:
    """A local file on its way into the target's store."""

    source: Path
    sha256: str
    size_bytes: int


def prepare(
    device: Device, *, offline: bool = False, wheels: Path | None = None
) -> Service[tuple[dict[str, Any], Runtime]]:
    """Probe the device, hold it against its profile, and have its runtime installed; once for each
    connection.
    """
    if device.prepared is not None:
        return device.prepared
    yield Step(f"{device.target.name}: probe")
    probe = device.ask("probe")
    check_profile(device, probe)
    runtime = yield from _ensure_runtime(device, probe, offline=offline, wheels=wheels)
    device.prepared = probe, runtime
    return device.prepared


def _ensure_runtime(device: Device, probe: dict[str, Any], *, offline: bool, wheels: Path | None) -> Service[Runtime]:
    runtime = describe(device.target, device.profile, probe)
    request: dict[str, Any] = {"lock": runtime.lock, "packages": list(runtime.packages)}
    answer = device.ask("provision", **request, query_only=True)
    if answer["installed"] is False:
        yield Step(f"{device.target.name}: runtime {runtime.lock} is installed", skipped=True)
        return runtime.with_installed(answer["packages"])
    if offline or wheels:
        yield Step(f"resolve wheels for {probe['arch']}, Python {runtime.python}")
        files = [_upload(wheel) for wheel in resolve_wheels(runtime, wheels)]
        yield from push(device, files, ask_missing(device, files))
        request["wheels"] = [{"name": file.source.name, "sha256": file.sha256} for file in files]
    yield Step(f"{device.target.name}: install runtime {runtime.lock} ({', '.join(runtime.packages)})")
    answer = yield from device.call("provision", **request)
    return runtime.with_installed(answer["packages"])


def _upload(path: Path) -> Upload:
    artifact = describe_file(path, path.name)
    return Upload(path, artifact.sha256, artifact.size_bytes)


def install(
    bundle: Bundle,
    device: Device,
    *,
    offline: bool = False,
    wheels: Path | None = None,
    force: bool = False,
    verified: bool = False,
) -> Service[Release]:
    """Have a bundle verified in the target's store as a release, without activating it.

    `verified` says that its files were held against the manifest here a moment ago. Raises ConfigError when the
    device hasn't the memory for it, which `force` makes a warning; CorruptBundle, DeviceFull, AgentError,
    HostUnreachable.
    """
    probe, runtime = yield from prepare(device, offline=offline, wheels=wheels)
    release = Release(bundle.id, device.target.name, runtime, probe)
    files = [Upload(bundle.path / a.path, a.sha256, a.size_bytes) for a in bundle.manifest.artifacts]
    state = ask_missing(device, files, release=bundle.id)
    if state["installed"]:
        yield Step(f"{device.target.name}: {bundle.manifest.name} is installed", skipped=True)
        return release
    yield from check_memory(bundle, device, probe, force=force)
    if not verified:
        yield Step(f"verify {bundle.manifest.name} here")
        yield from verify_bundle(bundle)
    yield from push(device, files, state)
    yield Step(f"{device.target.name}: verify {bundle.manifest.name} there and install it")
    yield from device.call("install", release=bundle.id, manifest=bundle.manifest_text)
    return release


def check_memory(bundle: Bundle, device: Device, probe: dict[str, Any], *, force: bool) -> Service[None]:
    """Hold what the bundle was planned to need against the memory that the device really has.

    Bundles without a plan pass. Raises ConfigError when it is too little and `force` isn't set.
    """
    footprint, context = bundle.manifest.plan, bundle.manifest.context_tokens
    if footprint is None or not probe["ram_bytes"]:
        return
    prompt = device.profile.runtime.chunk_size or PROMPT_TOKENS
    needed = footprint.needed_bytes(context, prompt)
    room = probe["ram_bytes"] - device.profile.hardware.ram_reserved_bytes
    name = f"{device.target.name}: {bundle.manifest.name}"
    if needed > room:
        message = (
            f"{name} needs {needed / 1e9:.2f} GB of memory with its context of {context} tokens; the device has "
            f"{probe['ram_bytes'] / 1e9:.2f} GB, {max(0, room) / 1e9:.2f} GB of it for a model"
        )
        if not force:
            largest = footprint.largest_context(room, prompt)
            smaller = f"optimize again with --context {largest}" if largest else "take a smaller recipe or model"
            raise ConfigError(message, f"{smaller}; --force deploys it anyway")
        yield Warning_(message)
    elif probe["mem_available_bytes"] and needed > probe["mem_available_bytes"]:
        yield Warning_(
            f"{name} needs {needed / 1e9:.2f} GB of memory, and {probe['mem_available_bytes'] / 1e9:.2f} GB are "
            "available there now: end what else runs"
        )


def deploy(
    bundle: Bundle,
    device: Device,
    *,
    offline: bool = False,
    wheels: Path | None = None,
    force: bool = False,
    verified: bool = False,
) -> Service[Release]:
    """Install a bundle, prove that it loads and generates there, then activate it atomically.

    Takes and raises what `install` does.
    """
    release = yield from install(bundle, device, offline=offline, wheels=wheels, force=force, verified=verified)
    pointer = device.ask("releases")["pointer"]
    if (pointer["release"], pointer["runtime"]) == (release.bundle_id, release.runtime.lock):
        yield Step(f"{device.target.name}: {bundle.manifest.name} is active", skipped=True)
        return release
    yield Step(f"{device.target.name}: load it and generate {CHECK_TOKENS} tokens")
    yield from device.call("check", **_check_request(device), runtime=release.runtime.lock, release=bundle.id)
    device.ask("activate", release=bundle.id, runtime=release.runtime.lock)
    yield Step(f"{device.target.name}: {bundle.manifest.name} activated")
    return release


def check_active(device: Device) -> Service[None]:
    """Load what the target's pointer names, in the runtime that it names, and generate.

    Raises AgentError when that fails or nothing is active.
    """
    yield Step(f"{device.target.name}: load what is active and generate {CHECK_TOKENS} tokens")
    yield from device.call("check", **_check_request(device))


def check_here(bundle: Bundle) -> Service[None]:
    """Load a built bundle on this machine in the pinned runtime of target `local`, and generate.

    A provider that this machine hasn't is left to the device's own check, with a warning.
    """
    if bundle.manifest.provider != "cpu":
        yield Warning_(f"built for {bundle.manifest.provider}: it can only be checked on the device")
        return
    with connect("local") as device:
        _, runtime = yield from prepare(device)
        yield Step(f"load {bundle.manifest.name} here and generate {CHECK_TOKENS} tokens")
        folder = str(bundle.path.resolve())
        yield from device.call("check", **_check_request(device), runtime=runtime.lock, model_folder=folder)


def _check_request(device: Device) -> dict[str, Any]:
    # With the profile's settings: what becomes active has been seen to work the way it will be used.
    settings = device.profile.runtime.settings.model_dump()
    return {"prompt": CHECK_PROMPT, "tokens": CHECK_TOKENS, "settings": settings}


def ask_missing(device: Device, files: list[Upload], **params: str) -> dict[str, Any]:
    """What the target still lacks of these files, each content named once."""
    sizes = {file.sha256: file.size_bytes for file in files}
    artifacts = [{"sha256": sha256, "size_bytes": size} for sha256, size in sizes.items()]
    state: dict[str, Any] = device.ask("missing", artifacts=artifacts, **params)
    return state


def push(device: Device, files: list[Upload], state: dict[str, Any]) -> Service[None]:
    """Send the files whose content the target hasn't yet; what broke off earlier goes on where it stopped.

    `state` is what `ask_missing` said of these files. Raises DeviceFull before the first byte.
    """
    by_hash = {file.sha256: file for file in files}
    plan = [(by_hash[entry["sha256"]], _resume_offset(by_hash[entry["sha256"]], entry)) for entry in state["missing"]]
    total = sum(file.size_bytes - offset for file, offset in plan)
    if total + SPARE_BYTES > state["free_bytes"] and total:
        raise DeviceFull(
            f"{device.target.name}: {_megabytes(total)} to send, {_megabytes(state['free_bytes'])} free "
            f"under {device.target.install_root}",
            "free some space there, or set `install_root` in the target's file to a larger disk",
        )
    yield Step(f"{device.target.name}: push {len(plan)} of {len(files)} files, {_megabytes(total)}", skipped=not plan)
    yield from _send(device, plan, total)


def _send(device: Device, plan: list[tuple[Upload, int]], total: int) -> Service[None]:
    done = 0
    for file, offset in plan:
        for count in device.transport.put(file.source, device.path("incoming", f"{file.sha256}.part"), offset):
            done += count
            yield Progress("push", done, total, "bytes")


def _resume_offset(file: Upload, entry: dict[str, Any]) -> int:
    """How many bytes on the target are a true prefix of the file; 0 when what lies there is something else."""
    partial = int(entry["partial_bytes"])
    if not 0 < partial <= file.size_bytes:
        return 0
    digest = hashlib.sha256()
    with file.source.open("rb") as source:
        left = partial
        while left:
            chunk = source.read(min(left, 1 << 20))
            digest.update(chunk)
            left -= len(chunk)
    return partial if digest.hexdigest() == entry["partial_sha256"] else 0


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def activate(device: Device, reference: str) -> Service[str]:
    """Activate an installed release by id, by the first characters of its id, or by name; returns its id.

    It is loaded and generates before the pointer moves. Raises ConfigError when no release, or more than one,
    fits.
    """
    _, runtime = yield from prepare(device)
    releases = device.ask("releases")["releases"]
    fitting = [
        entry["release"]
        for entry in releases
        if entry["release"].startswith(reference) or entry["manifest"]["name"] == reference
    ]
    if len(fitting) != 1:
        count = "no release" if not fitting else f"{len(fitting)} releases"
        raise ConfigError(
            f"{device.target.name}: {count} called '{reference}'", f"edgephi releases {device.target.name}"
        )
    yield from device.call("check", **_check_request(device), runtime=runtime.lock, release=fitting[0])
    device.ask("activate", release=fitting[0], runtime=runtime.lock)
    return str(fitting[0])
