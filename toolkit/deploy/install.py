"""The way from a bundle on this machine to a verified, active release on a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.agent.requests import OMITTED, Activate, CheckLoad, FindMissing, Install, ListReleases, Omitted, Verify
from toolkit.bundle import Block, Bundle, verify_bundle
from toolkit.bundle.blocks import bundle_blocks, lists_of
from toolkit.bundle.registry import BlobSource
from toolkit.bundle.signatures import Approval, approve, approve_all, read_signatures
from toolkit.catalog import ProbeFacts, Profile, Target
from toolkit.catalog.obstacles import RELEASE_FILES
from toolkit.deploy.provision import ensure_runtime, refuse_room, refuse_root, suitable_probe
from toolkit.deploy.pull import pull
from toolkit.deploy.push import Upload, push
from toolkit.deploy.runtime import Runtime
from toolkit.device import Device, connect
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Service, Step, Warning_
from toolkit.metrics.fit import PROMPT_TOKENS
from toolkit.units import memory_text

CHECK_PROMPT = "In the beginning"
CHECK_TOKENS = 4


@dataclass(frozen=True)
class Delivery:
    """The way that a bundle and its runtime take to a device.

    `offline` True has the runtime's wheels pushed from here, False has the device get them from its index, and None
    tries the index first. `wheels` is a folder of wheels to prefer, `force` makes too little memory a warning, and
    `verified` says that the bundle's files were held against its manifest here a moment ago. With `source` the device
    pulls the bundle's files from there; of the bundle only its manifest need be here. `approvals` are answers about its
    signatures, which aren't asked for again as long as they stand.
    """

    offline: bool | None = None
    wheels: Path | None = None
    force: bool = False
    verified: bool = False
    source: BlobSource | None = None
    approvals: tuple[Approval, ...] = ()

    def approved(self, bundle: Bundle, *targets: Target) -> Delivery:
        """This delivery with the targets' approvals of a bundle. Raises SignatureError when a target refuses it."""
        return replace(self, approvals=approve_all(bundle, targets, self.approvals))


PLAIN = Delivery()


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`: the facts of a device that suits its profile, and the runtime that is installed there.
    It holds for all that follows on the same connection.
    """

    probe: ProbeFacts
    runtime: Runtime


@dataclass(frozen=True)
class Release:
    """A bundle installed on a target, and the device prepared for it."""

    bundle_id: str
    target: str
    prepared: Prepared
    # True when every file was hashed there just now.
    fresh: bool

    @property
    def runtime(self) -> Runtime:
        return self.prepared.runtime


def prepare(device: Device, delivery: Delivery = PLAIN) -> Service[Prepared]:
    """Probe the device, hold it against its profile, and have its runtime installed.

    That starts the agent twice: other services accept a `prepared` of the same connection instead.
    """
    yield Step(f"{device.target.name}: probe")
    probe = yield from suitable_probe(device)
    refuse_root(device, probe)
    runtime = yield from ensure_runtime(device, probe, offline=delivery.offline, wheels=delivery.wheels)
    return Prepared(probe, runtime)


def install(
    bundle: Bundle, device: Device, delivery: Delivery = PLAIN, prepared: Prepared | None = None
) -> Service[Release]:
    """Bring a bundle to the target and have it verified there as a release, without activating it.

    Raises SignatureError before anything is sent when the target demands a signature that the bundle hasn't;
    ConfigError when the device hasn't the memory for it; CorruptBundle, DeviceFull, AgentError, HostUnreachable, and
    RegistryError when it pulls.
    """
    approval = approve(bundle, device.target, delivery.approvals)
    if approval is not None:
        yield Step(f"{device.target.name}: {bundle.manifest.name} is signed by {approval.signature.signer}")
    prepared = prepared or (yield from prepare(device, delivery))
    if device.ask(FindMissing(artifacts=[], release=bundle.id)).installed:
        yield Step(f"{device.target.name}: {bundle.manifest.name} is installed", skipped=True)
        if approval is not None:
            # The bundle may have been signed since it was installed.
            yield from _hand_over(bundle, device, {})
        return Release(bundle.id, device.target.name, prepared, fresh=False)
    yield from check_memory(bundle, device, prepared.probe, force=delivery.force)
    refuse_room(device, prepared.probe, files=RELEASE_FILES)
    for last in (False, True):
        # Lists of blocks that came from elsewhere may be wrong: the second try of a pull does without them.
        blocks = yield from _bring(bundle, device, delivery, trust_lists=not last)
        yield Step(f"{device.target.name}: verify {bundle.manifest.name} there and install it")
        try:
            yield from _hand_over(bundle, device, blocks)
            break
        except CorruptBundle as exc:
            if last:
                raise
            # The device has removed the damaged file: one that lay there already, or one that has just arrived.
            yield Warning_(f"{exc.message}: it is sent afresh")
    return Release(bundle.id, device.target.name, prepared, fresh=True)


def _bring(
    bundle: Bundle, device: Device, delivery: Delivery, *, trust_lists: bool
) -> Service[dict[str, tuple[Block, ...]]]:
    """Have the device pull the bundle's files, or push them from here.

    Returns the files' blocks, by SHA-256 of the file: none on a local target, or for a pull without `trust_lists`.
    """
    if delivery.source is not None:
        blocks = (yield from bundle_blocks(bundle)) if trust_lists else {}
        yield from pull(device, bundle.manifest.artifacts, delivery.source, blocks)
        return blocks
    if not delivery.verified:
        yield Step(f"verify {bundle.manifest.name} here")
        yield from verify_bundle(bundle)
    blocks = {} if device.target.transport == "local" else (yield from bundle_blocks(bundle))
    artifacts = bundle.manifest.artifacts
    yield from push(
        device, [Upload(bundle.path / a.path, a.sha256, a.size_bytes, blocks.get(a.sha256, ())) for a in artifacts]
    )
    return blocks


def _hand_over(bundle: Bundle, device: Device, blocks: Mapping[str, Sequence[Block]]) -> Service[None]:
    """Have the agent make a release of the files that have arrived, with the signatures beside the manifest."""
    yield from device.call(install_request(bundle, blocks))


def install_request(bundle: Bundle, blocks: Mapping[str, Sequence[Block]]) -> Install:
    """The request to make a release of the files that have arrived, with the bundle's signatures and files' blocks."""
    return Install(
        release=bundle.id,
        manifest=bundle.manifest_text,
        signatures=read_signatures(bundle),
        blocks=lists_of(blocks),
    )


def check_memory(bundle: Bundle, device: Device, probe: ProbeFacts, *, force: bool) -> Service[None]:
    """Compare the memory that the bundle was planned to need with the memory that the device really has.

    Bundles without a plan pass. Raises ConfigError when the device has too little and `force` isn't set.
    """
    footprint, context = bundle.manifest.plan, bundle.manifest.context_tokens
    needed = needed_bytes(bundle, device.profile)
    room = probe.room_bytes(device.profile.hardware.ram_reserved_bytes)
    if footprint is None or needed is None or room is None:
        return
    name = f"{device.target.name}: {bundle.manifest.name}"
    if needed > room:
        limit = probe.memory_limit_bytes
        has = f"{memory_text(probe.ram_bytes)}, {memory_text(room)} of it for a model" if probe.ram_bytes else "less"
        if limit is not None and room == limit:
            has = f"a limit of {memory_text(limit)} on the memory of this user's processes (control group or ulimit)"
        message = (
            f"{name} needs {memory_text(needed)} of memory with its context of {context} tokens; the device has {has}"
        )
        if not force:
            largest = footprint.largest_context(room, _prompt_tokens(device.profile))
            smaller = f"optimize again with --context {largest}" if largest else "take a smaller recipe or model"
            raise ConfigError(message, f"{smaller}; --force deploys it anyway")
        yield Warning_(message)
    elif probe.mem_available_bytes and needed > probe.mem_available_bytes:
        yield Warning_(
            f"{name} needs {memory_text(needed)} of memory, and {memory_text(probe.mem_available_bytes)} are "
            "available there now: end what else runs"
        )


def needed_bytes(bundle: Bundle, profile: Profile) -> int | None:
    """The memory that a bundle was planned to need at once on such a device; None without a plan."""
    plan = bundle.manifest.plan
    return None if plan is None else plan.needed_bytes(bundle.manifest.context_tokens, _prompt_tokens(profile))


def _prompt_tokens(profile: Profile) -> int:
    return profile.runtime.chunk_size or PROMPT_TOKENS


def deploy(
    bundle: Bundle, device: Device, delivery: Delivery = PLAIN, prepared: Prepared | None = None
) -> Service[Release]:
    """Install a bundle, prove that it loads and generates there, then activate it atomically.

    A release that lay there is hashed before, and its damaged files are sent afresh. Arguments and errors are those of
    `install`, and the error of a check that fails.
    """
    delivery = delivery.approved(bundle, device.target)
    release = yield from install(bundle, device, delivery, prepared)
    pointer = device.ask(ListReleases()).pointer
    if (pointer.release, pointer.runtime) == (release.bundle_id, release.runtime.lock):
        yield Step(f"{device.target.name}: {bundle.manifest.name} is active", skipped=True)
        return release
    if not release.fresh and (yield from damaged_files(device, bundle.id, repair=True)):
        release = yield from install(bundle, device, delivery, release.prepared)
    yield Step(f"{device.target.name}: load it and generate {CHECK_TOKENS} tokens")
    yield from device.call(check_request(device.profile, runtime=release.runtime.lock, release=bundle.id))
    device.ask(Activate(release=bundle.id, runtime=release.runtime.lock))
    yield Step(f"{device.target.name}: {bundle.manifest.name} activated")
    return release


def damaged_files(device: Device, release: str, *, repair: bool) -> Service[list[str]]:
    """Hash an installed release again; returns its damaged paths. With `repair` they and the release are removed."""
    answer = yield from device.call(Verify(release=release, repair=repair))
    damaged = [path for checked in answer.releases for path in checked.damaged]
    if damaged:
        yield Warning_(f"{device.target.name}: damaged in release {release[:12]}: {', '.join(damaged)}")
    return damaged


def check_active(device: Device) -> Service[None]:
    """Load the release that the target's pointer names, in the runtime that it names, and generate.

    Raises AgentError when that fails or nothing is active.
    """
    yield Step(f"{device.target.name}: load what is active and generate {CHECK_TOKENS} tokens")
    yield from device.call(check_request(device.profile))


def check_here(bundle: Bundle) -> Service[None]:
    """Load a built bundle on this machine in the pinned runtime of target `local`, and generate.

    A bundle for another provider than the CPU isn't loaded: a warning leaves it to the device's own check.
    """
    if bundle.manifest.provider != "cpu":
        yield Warning_(f"built for {bundle.manifest.provider}: it can only be checked on the device")
        return
    with connect("local") as device:
        runtime = (yield from prepare(device)).runtime
        yield Step(f"load {bundle.manifest.name} here and generate {CHECK_TOKENS} tokens")
        folder = str(bundle.path.resolve())
        yield from device.call(check_request(device.profile, runtime=runtime.lock, model_folder=folder))


def check_request(
    profile: Profile,
    *,
    runtime: str | Omitted = OMITTED,
    release: str | Omitted = OMITTED,
    model_folder: str | Omitted = OMITTED,
) -> CheckLoad:
    """The request for a load check of a release or a folder there; release and runtime default to the pointer's."""
    return CheckLoad(
        runtime=runtime,
        release=release,
        model_folder=model_folder,
        # The release is checked with the settings that it will be used with.
        settings=profile.runtime.settings,
        prompt=CHECK_PROMPT,
        tokens=CHECK_TOKENS,
    )
