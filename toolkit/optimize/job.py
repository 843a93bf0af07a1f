"""The way from a request to a job: the model at hand, planned for its device, and all that decides the bundle's bytes.

A model is opened once and planned once; a hub id is planned before its weights are fetched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.bundle import canonical_json
from toolkit.catalog import Recipe
from toolkit.catalog.model import SourceModel, hash_model
from toolkit.catalog.recipe import calibration_file
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.events import Service, Step, Warning_
from toolkit.metrics import FitPlan, plan
from toolkit.optimize.calibration import token_ids
from toolkit.optimize.extra import tool_versions
from toolkit.optimize.hub import local_model, resolve_model, resolve_shape
from toolkit.optimize.remote_code import without_tokenizer_code
from toolkit.optimize.request import BuildRequest, bundle_name
from toolkit.optimize.workflow import render_workflow
from toolkit.units import memory_text, size_text
from toolkit.untrusted import read_json


@dataclass(frozen=True)
class Job:
    """All that decides a bundle's bytes."""

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
        """The Olive configuration of the build in the folder `work`, which also gets a view of a remote-code model."""
        folder = self.model.folder.resolve()
        if self.model.remote_code:
            folder = without_tokenizer_code(folder, work / "model")
        return self._render(folder, self.calibration, work / "output", work / "cache")

    def _render(self, model: Path | str, text: Path | None, output: Path, cache: Path) -> dict[str, Any]:
        trusted = self.model.remote_code
        return render_workflow(self.recipe, model, self.provider, text, output, cache, trust_remote_code=trusted)

    def workflow_sha256(self) -> str:
        """Hash of the workflow with placeholders for the paths, which differ from machine to machine."""
        text = self.calibration and Path("CALIBRATION").with_suffix(self.calibration.suffix)
        workflow = self._render("MODEL", text, Path("OUTPUT"), Path("CACHE"))
        return _sha256(canonical_json([workflow, self.recipe.kv_cache_bits]))

    def kv_cache(self) -> dict[str, Any] | None:
        """The argument `kv_cache` of `run_workflow`, the step after the workflow; None without that step."""
        settings = self.recipe.calibration
        if self.recipe.kv_cache_bits is None or settings is None:
            return None
        return {
            "calibration": str(self.calibration),
            "samples": settings.samples,
            "sequence_tokens": settings.sequence_tokens,
        }

    def key(self) -> str:
        """The job's key: two jobs with the same key give the same files, except for the context."""
        parts = [self.model_sha256, self.workflow_sha256(), self.calibration_sha256, self.tools]
        return _sha256(canonical_json(parts))


def with_local_model(request: BuildRequest) -> BuildRequest:
    """The request with its model opened if that is a folder or a shipped model; a hub id stays one.

    Raises ConfigError when no model has that name, or it isn't usable.
    """
    if isinstance(request.model, SourceModel):
        return request
    found = local_model(request.model, trust_remote_code=request.options.trust_remote_code)
    return request if found is None else replace(request, model=found)


def make_job(request: BuildRequest) -> Service[Job]:
    """Plan the requested build, refuse it if the plan rules it out, and get the model here.

    Raises ConfigError, MissingExtra and BuildError.
    """
    request = with_local_model(request)
    _check_words(request)
    shape = request.model.shape if isinstance(request.model, SourceModel) else (yield from resolve_shape(request.model))
    fit = plan(shape, request.recipe, request.profile, request.options.context_tokens)
    yield from _say_fit(request, fit)
    model = yield from _fetched(request)
    if model.shape != shape:
        # The hub's config.json may differ from the preset's, or have changed since it was read.
        fit = plan(model.shape, request.recipe, request.profile, request.options.context_tokens)
    provider = request.provider
    if provider != request.profile.runtime.provider:
        yield Warning_(
            f"no bundle can be built for provider '{request.profile.runtime.provider}'; "
            "this one runs on the device's CPU"
        )
    file = _calibration(request, model)
    return Job(
        model=model,
        model_sha256=(yield from hash_model(model)),
        recipe=request.recipe,
        provider=provider,
        calibration=file,
        calibration_sha256=hashlib.sha256(file.read_bytes()).hexdigest() if file else None,
        fit=fit,
        tools=tool_versions() | {"edgephi": __version__},
    )


def _check_words(request: BuildRequest) -> None:
    """Refuse, before the work, words of which no bundle's reader would take a manifest."""
    try:
        read_json(canonical_json([request.bundle_name, request.recipe.table()]).encode())
    except ValueError as exc:
        message = f"{request.bundle_name}: no bundle can be read again with these words of its recipe: {exc}"
        raise ConfigError(message, f"change them in {shown(request.recipe.path)}") from exc


def _fetched(request: BuildRequest) -> Service[SourceModel]:
    model = request.model
    if not isinstance(model, SourceModel):
        model = yield from resolve_model(model, trust_remote_code=request.options.trust_remote_code)
    if model.remote_code:
        yield Warning_(f"{model.id}: Python files that come with this model run while it is built, as you said")
    return model


def _calibration(request: BuildRequest, model: SourceModel) -> Path | None:
    """The file of the text to calibrate with, checked to be long enough; None without calibration."""
    file = calibration_file(request.recipe, request.options.calibration)
    if file is not None and request.recipe.calibration is not None:
        token_ids(file, model.folder, request.recipe.calibration.tokens)
    return file


def _say_fit(request: BuildRequest, fit: FitPlan) -> Service[None]:
    name = request.bundle_name
    if fit.fits:
        yield Step(
            f"plan {name}: {size_text(fit.bundle_bytes)} on disk, {memory_text(fit.needed_bytes)} of "
            f"{memory_text(fit.available_bytes)} of memory with a context of {fit.context_tokens} tokens"
        )
        return
    message = (
        f"{name} needs {memory_text(fit.needed_bytes)} of memory with a context of "
        f"{fit.context_tokens} tokens; '{request.profile.name}' has {memory_text(fit.available_bytes)} for it"
    )
    if not request.options.force:
        raise ConfigError(message, _smaller(fit))
    yield Warning_(message)


def _smaller(fit: FitPlan) -> str:
    if fit.largest_context_tokens:
        return f"--context {fit.largest_context_tokens} is the most that fits; --force builds it anyway"
    return "take a smaller model or recipe (int4-rtn-b128-int2 is the smallest); --force builds it anyway"


def workflow_for(request: BuildRequest) -> dict[str, Any]:
    """The Olive configuration that a build would run, with its output beside the working folder's files.

    A hub id stays as it is: nothing is downloaded.
    """
    request = with_local_model(request)
    model = request.model
    if isinstance(model, SourceModel):
        source: Path | str = model.folder.resolve()
        remote_code = model.remote_code
    else:
        source, remote_code = model.partition("@")[0], request.options.trust_remote_code
    file = calibration_file(request.recipe, request.options.calibration)
    output, cache = Path("olive-output"), Path("olive-cache")
    return render_workflow(request.recipe, source, request.provider, file, output, cache, trust_remote_code=remote_code)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
