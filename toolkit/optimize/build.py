"""Build a bundle: model + recipe + profile → Olive → checked files in the store.

What is finished is renamed into place: `builds/<key>` (Olive's files, whatever the context) and
`bundles/<id>`. Everything before that lies in folders whose names begin with a dot, which nothing trusts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.bundle.manifest import Artifact, Manifest, ModelRecord, canonical_json, describe_file
from toolkit.bundle.store import READ_ONLY, Bundle, find_identity, link_files, open_bundle, store_dir, write_bundle
from toolkit.catalog.model import SourceModel, hash_model
from toolkit.catalog.profile import Profile
from toolkit.catalog.recipe import PROVIDERS, Recipe, calibration_file
from toolkit.config import cache_dir, shown
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Service, Step, Warning_
from toolkit.files import fresh_folder, in_turn, in_words, put_folder, replaced_folder
from toolkit.metrics.build_needs import check_host, host_needs
from toolkit.metrics.fit import FitPlan, plan
from toolkit.optimize import require_extra, tool_versions
from toolkit.optimize.calibration import token_ids
from toolkit.optimize.hub import local_model, resolve_model, resolve_shape
from toolkit.optimize.remote_code import without_tokenizer_code
from toolkit.optimize.runner import run_workflow
from toolkit.optimize.workflow import render_workflow
from toolkit.units import memory_text, size_text

Check = Callable[[Bundle], Service[None]]

_GENAI_CONFIG = "genai_config.json"
_RECORD = "build.json"
# What Olive writes about itself: absolute paths and times, of no use to a device.
_OLIVE_RECORDS = {"footprint.json", "output_footprint.json", "model_config.json", "run_history.txt"}


@dataclass(frozen=True)
class Job:
    """All that decides what a bundle's bytes are."""

    model: SourceModel
    model_sha256: str
    recipe: Recipe
    provider: str
    calibration: Path | None
    calibration_sha256: str | None
    fit: FitPlan
    tools: dict[str, str]

    @property
    def name(self) -> str:
        return bundle_name(self.model.name, self.recipe, self.provider)

    def recipe_table(self) -> dict[str, Any]:
        table = self.recipe.table()
        if self.calibration_sha256:
            table["calibration"] = table["calibration"] | {"sha256": self.calibration_sha256}
        return table | {"trust_remote_code": True} if self.model.remote_code else table

    def workflow(self, work: Path) -> dict[str, Any]:
        """What Olive is given to do in the folder `work`, where it finds a model with remote code as well."""
        folder = self.model.folder.resolve()
        if self.model.remote_code:
            folder = without_tokenizer_code(folder, work / "model")
        return self._render(folder, self.calibration, work / "output", work / "cache")

    def _render(self, model: Path | str, text: Path | None, output: Path, cache: Path) -> dict[str, Any]:
        trusted = self.model.remote_code
        return render_workflow(self.recipe, model, self.provider, text, output, cache, trust_remote_code=trusted)

    def workflow_sha256(self) -> str:
        """Hash of the workflow with placeholders for what differs from machine to machine."""
        text = self.calibration and Path("CALIBRATION").with_suffix(self.calibration.suffix)
        workflow = self._render("MODEL", text, Path("OUTPUT"), Path("CACHE"))
        return _sha256(canonical_json([workflow, self.recipe.kv_cache_bits]))

    def kv_cache(self) -> dict[str, Any] | None:
        """What is done after the workflow, for `run_workflow`."""
        settings = self.recipe.calibration
        if self.recipe.kv_cache_bits is None or settings is None:
            return None
        return {
            "calibration": str(self.calibration),
            "samples": settings.samples,
            "sequence_tokens": settings.sequence_tokens,
        }

    def key(self) -> str:
        """Two jobs with the same key give the same files, except for the context."""
        parts = [self.model_sha256, self.workflow_sha256(), self.calibration_sha256, self.tools]
        return _sha256(canonical_json(parts))


def optimize(
    model_ref: str,
    recipe: Recipe,
    profile: Profile,
    *,
    context: int | None = None,
    calibration: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    check: Check | None = None,
) -> Service[Bundle]:
    """Build `model_ref` by `recipe` for `profile`, or find it built, and return the bundle.

    `context` is in tokens and defaults to the profile's. `check` loads the bundle and generates with it
    before it is stored. With `out` the bundle is also put into that folder, and that copy is returned.
    `force` builds even what isn't expected to fit. `trust_remote_code` lets Python files of the model's folder run
    where its architecture needs them; they are part of its hash. Raises ConfigError, MissingExtra and BuildError, and
    whatever `check` raises.
    """
    require_extra()
    if out is not None:
        _refuse_occupied(out)
    yield from _check_fit(model_ref, recipe, profile, context, force=force, trust_remote_code=trust_remote_code)
    job = yield from _prepare(model_ref, recipe, profile, context, calibration, trust_remote_code=trust_remote_code)
    with (yield from in_turn(_builds_dir() / f"{job.key()}.lock", "builds the same")):
        build = yield from _build(job, force=force)
        bundle = yield from _store(job, build, check)
    if out is not None:
        return _put(bundle, out)
    return bundle


def workflow_for(
    model_ref: str,
    recipe: Recipe,
    profile: Profile,
    calibration: Path | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The Olive configuration that `optimize` would run, with its output beside the working folder's files.

    A hub id stays as it is: nothing is downloaded.
    """
    model = local_model(model_ref, trust_remote_code=trust_remote_code)
    source: Path | str = model.folder.resolve() if model else model_ref.partition("@")[0]
    remote_code = model.remote_code if model else trust_remote_code
    provider, file = build_provider(profile), calibration_file(recipe, calibration)
    output, cache = Path("olive-output"), Path("olive-cache")
    return render_workflow(recipe, source, provider, file, output, cache, trust_remote_code=remote_code)


def bundle_name(model: str, recipe: Recipe, provider: str) -> str:
    """What a bundle is called: the model's short name, the recipe, and the provider unless it is the CPU's."""
    suffix = "" if provider == "cpu" else f"-{provider}"
    return f"{model.rpartition('/')[2]}-{recipe.name}{suffix}"


def build_provider(profile: Profile) -> str:
    """The provider a bundle for `profile` is built for: the CPU's where the device's own can't be built
    for."""
    provider: str = profile.runtime.provider
    return provider if provider in PROVIDERS else "cpu"


def _prepare(
    model_ref: str,
    recipe: Recipe,
    profile: Profile,
    context: int | None,
    calibration: Path | None,
    *,
    trust_remote_code: bool,
) -> Service[Job]:
    model = yield from resolve_model(model_ref, trust_remote_code=trust_remote_code)
    if model.remote_code:
        yield Warning_(f"{model.id}: Python files that come with this model run while it is built, as you said")
    provider = build_provider(profile)
    if provider != profile.runtime.provider:
        yield Warning_(
            f"no bundle can be built for provider '{profile.runtime.provider}'; this one runs on the device's CPU"
        )
    file = calibration_file(recipe, calibration)
    if file is not None and recipe.calibration is not None:
        token_ids(file, model.folder, recipe.calibration.tokens)
    fit = plan(model.shape, recipe, profile, context)
    return Job(
        model=model,
        model_sha256=(yield from hash_model(model)),
        recipe=recipe,
        provider=provider,
        calibration=file,
        calibration_sha256=hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        fit=fit,
        tools=tool_versions() | {"edgephi": __version__},
    )


def _check_fit(
    ref: str, recipe: Recipe, profile: Profile, context: int | None, *, force: bool, trust_remote_code: bool
) -> Service[None]:
    """Say the plan, and refuse what it rules out: of a hub id before its weights are fetched."""
    local = local_model(ref, trust_remote_code=trust_remote_code)
    shape = local.shape if local else (yield from resolve_shape(ref))
    fit = plan(shape, recipe, profile, context)
    name = bundle_name(local.name if local else ref.partition("@")[0], recipe, build_provider(profile))
    if fit.fits:
        yield Step(
            f"plan {name}: {size_text(fit.bundle_bytes)} on disk, {memory_text(fit.needed_bytes)} of "
            f"{memory_text(fit.available_bytes)} of memory with a context of {fit.context_tokens} tokens"
        )
        return
    message = (
        f"{name} needs {memory_text(fit.needed_bytes)} of memory with a context of "
        f"{fit.context_tokens} tokens; '{profile.name}' has {memory_text(fit.available_bytes)} for it"
    )
    if not force:
        raise ConfigError(message, _smaller(fit))
    yield Warning_(message)


def _smaller(fit: FitPlan) -> str:
    if fit.largest_context_tokens:
        return f"--context {fit.largest_context_tokens} is the most that fits; --force builds it anyway"
    return "take a smaller model or recipe (int4-rtn-b128-int2 is the smallest); --force builds it anyway"


def _builds_dir() -> Path:
    return cache_dir() / "builds"


def _build(job: Job, *, force: bool) -> Service[Path]:
    """The folder with Olive's files for `job`, made now or found whole. The job's lock is held."""
    key = job.key()
    folder = _builds_dir() / key
    if _whole(folder, _recorded(folder)):
        yield Step(f"build {job.name}", skipped=True)
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with fresh_folder(folder) as work:
        needs = host_needs(job.model.shape, job.recipe, job.provider)
        yield from check_host(needs, job.name, folder.parent, force=force)
        yield Step(f"build {job.name}")
        yield from run_workflow(job.workflow(work), work, kv_cache=job.kv_cache())
        _finish(work / "output")
        with in_words(folder):
            put_folder(work / "output", folder)
    return folder


def _finish(output: Path) -> None:
    """Keep what a device needs, and record it."""
    for name in _OLIVE_RECORDS:
        (output / name).unlink(missing_ok=True)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    artifacts = [describe_file(path, path.relative_to(output).as_posix()) for path in files]
    for path in files:
        path.chmod(READ_ONLY)
    (output / _RECORD).write_text(json.dumps([artifact.model_dump() for artifact in artifacts]), encoding="utf-8")


def _recorded(folder: Path) -> list[Artifact]:
    try:
        return [Artifact.model_validate(entry) for entry in json.loads((folder / _RECORD).read_bytes())]
    except (OSError, ValueError):
        return []


def _whole(folder: Path, artifacts: list[Artifact] | tuple[Artifact, ...]) -> bool:
    """Whether all files are there with their sizes; hashes are `verify`'s work."""
    return bool(artifacts) and all(
        (folder / artifact.path).is_file() and (folder / artifact.path).stat().st_size == artifact.size_bytes
        for artifact in artifacts
    )


def _store(job: Job, build: Path, check: Check | None) -> Service[Bundle]:
    """Assemble the bundle for the job's context, check it, and move it into the store."""
    with fresh_folder(store_dir() / job.key()) as fresh:
        bundle = _assemble(job, build, fresh)
        final = store_dir() / bundle.id
        # It may have been evaluated since: the same files under another id.
        if stored := find_identity(bundle.manifest.identity):
            if _whole(stored.path, stored.manifest.artifacts):
                yield Step(f"bundle {stored.id[:12]}", skipped=True)
                return stored
            shutil.rmtree(stored.path)
        if check is not None:
            yield from check(bundle)
        with in_words(final):
            put_folder(fresh, final)
        yield Step(f"bundle {bundle.id[:12]} ({size_text(bundle.manifest.size_bytes)})")
        return Bundle(final, bundle.manifest, bundle.id)


def _assemble(job: Job, build: Path, folder: Path) -> Bundle:
    built = [artifact for artifact in _recorded(build) if artifact.path != _GENAI_CONFIG]
    link_files(build, [artifact.path for artifact in built], folder)
    _write_genai_config(build / _GENAI_CONFIG, folder / _GENAI_CONFIG, job.fit.context_tokens)
    artifacts = [*built, describe_file(folder / _GENAI_CONFIG, _GENAI_CONFIG)]
    model = job.model
    manifest = Manifest(
        name=job.name,
        artifacts=tuple(sorted(artifacts, key=lambda artifact: artifact.path)),
        model=ModelRecord(
            id=model.id,
            revision=model.revision,
            architecture=model.shape.architecture,
            weights_sha256=job.model_sha256,
            parameters=model.shape.parameters,
        ),
        recipe=job.recipe_table(),
        provider=job.provider,
        context_tokens=job.fit.context_tokens,
        tools=job.tools,
        workflow_sha256=job.workflow_sha256(),
        plan=job.fit.footprint,
    )
    return write_bundle(folder, manifest)


def _write_genai_config(source: Path, target: Path, context_tokens: int) -> None:
    """The builder plans for the model's whole context, and that memory is taken at the first token."""
    config = json.loads(source.read_bytes())
    config["search"]["max_length"] = context_tokens
    target.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8", newline="\n")


def _refuse_occupied(out: Path) -> None:
    """Before the work: a folder that holds something else than a bundle is never replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        open_bundle(out)
    except (ConfigError, CorruptBundle) as exc:
        raise _occupied(out) from exc


def _occupied(out: Path) -> ConfigError:
    return ConfigError(f"{shown(out)}: holds something else than this bundle", "name a new or an empty folder")


def _put(bundle: Bundle, out: Path) -> Bundle:
    """A copy of a stored bundle in `out`, which shares the store's bytes where the disk allows it."""
    if out.exists() and any(out.iterdir()):
        if open_bundle(out).id == bundle.id and _whole(out, bundle.manifest.artifacts):
            return open_bundle(out)
        raise _occupied(out)
    with replaced_folder(out) as fresh:
        link_files(bundle.path, [artifact.path for artifact in bundle.manifest.artifacts], fresh)
        put = write_bundle(fresh, bundle.manifest)
    return Bundle(out, put.manifest, put.id)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
