"""Build a bundle: model + recipe + profile → Olive → checked files in the store.

Finished folders are renamed into place: `builds/<key>` (Olive's files, whatever the context) and `bundles/<id>`. Until
then their files lie in folders whose names begin with a dot, which nothing trusts. Once a bundle is stored, its files
lie in the store alone; of the build its record stays, by which they are found again. Nothing that was kept counts as
built before its content was hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle import Artifact, Bundle, Manifest, describe_file, open_bundle
from toolkit.bundle.manifest import ModelRecord
from toolkit.bundle.store import (
    NOT_LISTED,
    READ_ONLY,
    copy_files,
    find_identity,
    find_problem,
    find_problems,
    in_use,
    keep_with,
    link_files,
    signature_files,
    store_dir,
    write_bundle,
)
from toolkit.catalog.model import hash_model
from toolkit.config import cache_dir, shown
from toolkit.errors import BuildError, ConfigError, CorruptBundle
from toolkit.events import Service, Step, Warning_
from toolkit.files import copy_file, fresh_folder, in_turn, in_words, put_folder, replaced_folder, sweep
from toolkit.metrics.build_needs import check_host, host_needs
from toolkit.optimize.extra import require_extra
from toolkit.optimize.job import Job, make_job
from toolkit.optimize.request import BuildRequest
from toolkit.optimize.runner import run_workflow
from toolkit.units import size_text
from toolkit.untrusted import SIGNATURES, read_json_file

Check = Callable[[Bundle], Service[None]]

_GENAI_CONFIG = "genai_config.json"
_RECORD = "build.json"
# Olive's records of its own work: absolute paths and times, of no use to a device.
_OLIVE_RECORDS = {"footprint.json", "output_footprint.json", "model_config.json", "run_history.txt"}


@dataclass(frozen=True)
class _Build:
    """The result of Olive's work: `folder` has the record and the runtime's configuration, `source` the other files."""

    folder: Path
    artifacts: tuple[Artifact, ...]
    source: Path


def optimize(
    request: BuildRequest, *, out: Path | None = None, check: Check | None = None, fresh: bool = False
) -> Service[Bundle]:
    """Build the requested bundle, or find it built and whole, and return it; with `fresh` build it in any case.

    `check` loads the bundle and generates with it before it is stored. With `out` a copy of the bundle is put into that
    folder, and that copy is returned. Raises ConfigError, MissingExtra and BuildError, and whatever `check` raises.
    """
    require_extra()
    if out is not None:
        _refuse_occupied(out)
    for folder in (builds_dir(), store_dir()):
        sweep(folder)
    job = yield from make_job(request)
    with (yield from in_turn(builds_dir() / f"{job.key()}.lock", "builds the same")):
        folder = builds_dir() / job.key()
        bundle = None if fresh else (yield from _stored(job, folder))
        if bundle is None:
            build = yield from _build(job, folder, force=request.options.force, fresh=fresh)
            bundle = yield from _store(job, build, check)
        _drop_files(folder)
        _own_files(bundle)
    in_use(bundle)
    if out is not None:
        return (yield from _put(bundle, out))
    return bundle


def builds_dir() -> Path:
    return cache_dir() / "builds"


def _stored(job: Job, folder: Path) -> Service[Bundle | None]:
    """The stored bundle of the job, found by the record of its build, if it is whole; a damaged one is told of."""
    artifacts = _recorded(folder)
    try:
        stored = find_identity(_manifest(job, artifacts, _genai_config(folder, job)).identity)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stored is None:
        return None
    wrong = yield from find_problems(stored)
    if not wrong:
        yield Step(f"build {job.name}", skipped=True)
        yield Step(f"bundle {stored.id[:12]}", skipped=True)
        return stored
    said = "; ".join(f"{name}: {problem}" for name, problem in wrong.items())
    yield Warning_(f"bundle {stored.id[:12]} is damaged and is replaced: {said}")
    return None


def _build(job: Job, folder: Path, *, force: bool, fresh: bool) -> Service[_Build]:
    """Olive's files for `job`, made now or found whole. The caller holds the job's lock."""
    if not fresh and (kept := (yield from _kept(folder))):
        yield Step(f"build {job.name}", skipped=True)
        return kept
    with fresh_folder(folder) as work:
        needs = host_needs(job.model.shape, job.recipe, job.provider)
        yield from check_host(needs, job.name, folder.parent, force=force)
        yield from _refuse_changed(job)
        yield Step(f"build {job.name}")
        keep_with(job, job.model.folder)
        yield from run_workflow(job.workflow(work), work, kv_cache=job.kv_cache())
        job.view.refuse_changed()
        job.view.finish(work / "output")
        _finish(work / "output")
        with in_words(folder):
            put_folder(work / "output", folder, over_content=True)
    return _Build(folder, _recorded(folder), folder)


def _refuse_changed(job: Job) -> Service[None]:
    """Read a model whose hashes were remembered again, before hours are spent on what may not be it any more."""
    if job.model_remembered and (yield from hash_model(job.model, reread=True)) != job.model_sha256:
        raise BuildError(
            f"{shown(job.model.folder)}: a file's content changed, but not its size and its time",
            "its hashes are corrected: the same command builds it as it is now; else get the model again",
        )


def _finish(output: Path) -> None:
    """Keep the files that a device needs, and record them."""
    for name in _OLIVE_RECORDS:
        (output / name).unlink(missing_ok=True)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    artifacts = [describe_file(path, path.relative_to(output).as_posix()) for path in files]
    for path in files:
        path.chmod(READ_ONLY)
    (output / _RECORD).write_text(json.dumps([artifact.model_dump() for artifact in artifacts]), encoding="utf-8")


def _recorded(folder: Path) -> tuple[Artifact, ...]:
    try:
        return tuple(Artifact.model_validate(entry) for entry in read_json_file(folder / _RECORD))
    except (OSError, ValueError, TypeError):
        return ()


def _kept(folder: Path) -> Service[_Build | None]:
    """A build whose files are whole, beside its record or in a bundle of the store; None without one."""
    artifacts = _recorded(folder)
    config = next((artifact for artifact in artifacts if artifact.path == _GENAI_CONFIG), None)
    if config is None or (yield from find_problem(folder, config)):
        return None
    rest = [artifact for artifact in artifacts if artifact is not config]
    for source in (folder, *sorted(store_dir().glob("[0-9a-f]*"))):
        if all(_has_size(source, artifact) for artifact in rest) and (yield from _holds(source, rest)):
            return _Build(folder, artifacts, source)
    return None


def _has_size(folder: Path, artifact: Artifact) -> bool:
    path = folder / artifact.path
    return path.is_file() and path.stat().st_size == artifact.size_bytes


def _holds(folder: Path, artifacts: list[Artifact]) -> Service[bool]:
    done, total = 0, sum(artifact.size_bytes for artifact in artifacts)
    for artifact in artifacts:
        if (yield from find_problem(folder, artifact, done, total)):
            return False
        done += artifact.size_bytes
    return True


def _store(job: Job, build: _Build, check: Check | None) -> Service[Bundle]:
    """Assemble the bundle for the job's context, check it, and move it into the store, over a damaged one."""
    with fresh_folder(store_dir() / job.key()) as fresh:
        config = _genai_config(build.folder, job)
        manifest = _manifest(job, build.artifacts, config)
        # A stored bundle that was evaluated since has the same files under another id.
        stored = find_identity(manifest.identity)
        bundle = _assemble(build, config, stored.manifest if stored else manifest, fresh, stored)
        final = store_dir() / bundle.id
        if stored and not (yield from find_problems(stored)):
            yield Step(f"bundle {stored.id[:12]}", skipped=True)
            return stored
        if check is not None:
            yield from check(bundle)
        with in_words(final):
            put_folder(fresh, final, over_content=True)
        yield Step(f"bundle {bundle.id[:12]} ({size_text(bundle.manifest.size_bytes)})")
        return Bundle(final, bundle.manifest, bundle.id)


def _assemble(build: _Build, config: bytes, manifest: Manifest, folder: Path, stored: Bundle | None) -> Bundle:
    """Put the bundle's files into `folder`; those of a whole bundle of another context are copied."""
    names = [artifact.path for artifact in build.artifacts if artifact.path != _GENAI_CONFIG]
    goes = build.source == build.folder or (stored is not None and build.source == stored.path)
    with in_words(folder):
        (link_files if goes else copy_files)(build.source, names, folder)
        (folder / _GENAI_CONFIG).write_bytes(config)
        if stored is not None and (signatures := signature_files(stored.path)):
            copy_files(stored.path, [f"{SIGNATURES}/{file.name}" for file in signatures], folder)
        return write_bundle(folder, manifest)


def _manifest(job: Job, built: tuple[Artifact, ...], config: bytes) -> Manifest:
    entry = Artifact(path=_GENAI_CONFIG, size_bytes=len(config), sha256=hashlib.sha256(config).hexdigest())
    artifacts = [entry, *(artifact for artifact in built if artifact.path != _GENAI_CONFIG)]
    model = job.model
    return Manifest(
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


def _genai_config(build: Path, job: Job) -> bytes:
    """The runtime's configuration with the planned context: the builder's has the model's whole context, whose memory
    is taken at the first token.
    """
    config = json.loads((build / _GENAI_CONFIG).read_bytes())
    config["search"]["max_length"] = job.fit.context_tokens
    return (json.dumps(config, indent=4) + "\n").encode()


def _drop_files(folder: Path) -> None:
    """Remove from a build's folder the files that the stored bundle has; its record stays."""
    for artifact in _recorded(folder):
        if artifact.path != _GENAI_CONFIG:
            with in_words(folder / artifact.path):
                (folder / artifact.path).unlink(missing_ok=True)


def drop_second_names(folder: Path) -> None:
    """Remove from the folder of an earlier edgephi's build the names of files that bundles of the store have too. The
    caller holds the build's lock."""
    for artifact in _recorded(folder):
        path = folder / artifact.path
        others = (bundle / artifact.path for bundle in store_dir().glob("[0-9a-f]*"))
        if path.is_file() and any(other.is_file() and other.samefile(path) for other in others):
            path.unlink()


def _own_files(bundle: Bundle) -> None:
    """Give a bundle that an earlier edgephi stored files that no other folder shares."""
    for artifact in bundle.manifest.artifacts:
        if (bundle.path / artifact.path).stat().st_nlink > 1:
            _put_anew(bundle.path / artifact.path, bundle, artifact.path)


def _put_anew(source: Path, bundle: Bundle, name: str) -> None:
    """Put a copy of `source` into a bundle's folder as its file `name`, whatever is there."""
    path = bundle.path / name
    with in_words(path), fresh_folder(bundle.path) as room:
        copy_file(source, room / path.name)
        (room / path.name).chmod(READ_ONLY)
        (room / path.name).replace(path)


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


def _put(bundle: Bundle, out: Path) -> Service[Bundle]:
    """Put a copy of a stored bundle into `out`; damaged files of a copy that is there are copied again."""
    if out.exists() and any(out.iterdir()):
        there = open_bundle(out)
        if there.id != bundle.id:
            raise _occupied(out)
        yield from _mend(there, bundle)
        return there
    yield Step(f"copy it to {shown(out)}")
    with in_words(out), replaced_folder(out) as fresh:
        copy_files(bundle.path, [artifact.path for artifact in bundle.manifest.artifacts], fresh)
        put = write_bundle(fresh, bundle.manifest)
    return Bundle(out, put.manifest, put.id)


def _mend(there: Bundle, whole: Bundle) -> Service[None]:
    for name, problem in (yield from find_problems(there)).items():
        path = there.path / name
        if problem == NOT_LISTED or path.is_dir() or path.is_symlink():
            raise ConfigError(f"{shown(path)}: {problem}", "move it away, or name a new folder")
        yield Warning_(f"{shown(path)}: {problem}; it is copied again")
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_anew(whole.path / name, there, name)
