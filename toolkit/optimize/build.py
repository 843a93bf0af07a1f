"""Build a bundle: model + recipe + profile → Olive → checked files in the store.

Finished folders are renamed into place: `builds/<key>` (Olive's files, whatever the context) and `bundles/<id>`. Until
then their files lie in folders whose names begin with a dot, which nothing trusts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from toolkit.bundle import Artifact, Bundle, Manifest, describe_file, open_bundle
from toolkit.bundle.manifest import ModelRecord
from toolkit.bundle.store import READ_ONLY, find_identity, link_files, store_dir, write_bundle
from toolkit.config import cache_dir, shown
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Service, Step
from toolkit.files import fresh_folder, in_turn, in_words, put_folder, replaced_folder
from toolkit.metrics.build_needs import check_host, host_needs
from toolkit.optimize.extra import require_extra
from toolkit.optimize.job import Job, make_job
from toolkit.optimize.request import BuildRequest
from toolkit.optimize.runner import run_workflow
from toolkit.units import size_text
from toolkit.untrusted import read_json_file

Check = Callable[[Bundle], Service[None]]

_GENAI_CONFIG = "genai_config.json"
_RECORD = "build.json"
# Olive's records of its own work: absolute paths and times, of no use to a device.
_OLIVE_RECORDS = {"footprint.json", "output_footprint.json", "model_config.json", "run_history.txt"}


def optimize(request: BuildRequest, *, out: Path | None = None, check: Check | None = None) -> Service[Bundle]:
    """Build the requested bundle, or find it built, and return it.

    `check` loads the bundle and generates with it before it is stored. With `out` the bundle is also put into that
    folder, and that copy is returned. Raises ConfigError, MissingExtra and BuildError, and whatever `check` raises.
    """
    require_extra()
    if out is not None:
        _refuse_occupied(out)
    job = yield from make_job(request)
    with (yield from in_turn(_builds_dir() / f"{job.key()}.lock", "builds the same")):
        build = yield from _build(job, force=request.options.force)
        bundle = yield from _store(job, build, check)
    if out is not None:
        return _put(bundle, out)
    return bundle


def _builds_dir() -> Path:
    return cache_dir() / "builds"


def _build(job: Job, *, force: bool) -> Service[Path]:
    """The folder with Olive's files for `job`, made now or found whole. The caller holds the job's lock."""
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
    """Keep the files that a device needs, and record them."""
    for name in _OLIVE_RECORDS:
        (output / name).unlink(missing_ok=True)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    artifacts = [describe_file(path, path.relative_to(output).as_posix()) for path in files]
    for path in files:
        path.chmod(READ_ONLY)
    (output / _RECORD).write_text(json.dumps([artifact.model_dump() for artifact in artifacts]), encoding="utf-8")


def _recorded(folder: Path) -> list[Artifact]:
    try:
        return [Artifact.model_validate(entry) for entry in read_json_file(folder / _RECORD)]
    except (OSError, ValueError, TypeError):
        return []


def _whole(folder: Path, artifacts: list[Artifact] | tuple[Artifact, ...]) -> bool:
    """Tell if all files are there with their sizes; their hashes aren't checked."""
    return bool(artifacts) and all(
        (folder / artifact.path).is_file() and (folder / artifact.path).stat().st_size == artifact.size_bytes
        for artifact in artifacts
    )


def _store(job: Job, build: Path, check: Check | None) -> Service[Bundle]:
    """Assemble the bundle for the job's context, check it, and move it into the store."""
    with fresh_folder(store_dir() / job.key()) as fresh:
        bundle = _assemble(job, build, fresh)
        final = store_dir() / bundle.id
        # A stored bundle that was evaluated since has the same files under another id.
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
    """Write the runtime's configuration with the planned context: the builder's has the model's whole context, whose
    memory is taken at the first token.
    """
    config = json.loads(source.read_bytes())
    config["search"]["max_length"] = context_tokens
    target.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8", newline="\n")


def _refuse_occupied(out: Path) -> None:
    """Refuse, before the work, a folder that holds something else than a bundle: it is never replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        open_bundle(out)
    except (ConfigError, CorruptBundle) as exc:
        raise _occupied(out) from exc


def _occupied(out: Path) -> ConfigError:
    return ConfigError(f"{shown(out)}: holds something else than this bundle", "name a new or an empty folder")


def _put(bundle: Bundle, out: Path) -> Bundle:
    """Put a copy of a stored bundle into `out`; it shares the store's bytes where the disk allows it."""
    if out.exists() and any(out.iterdir()):
        if open_bundle(out).id == bundle.id and _whole(out, bundle.manifest.artifacts):
            return open_bundle(out)
        raise _occupied(out)
    with replaced_folder(out) as fresh:
        link_files(bundle.path, [artifact.path for artifact in bundle.manifest.artifacts], fresh)
        put = write_bundle(fresh, bundle.manifest)
    return Bundle(out, put.manifest, put.id)
