"""The quality of a bundle compared with the model it came from, by the kernels of this machine or the device itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from toolkit import localhost
from toolkit.agent.answers import Evaluated
from toolkit.agent.requests import Evaluate, SentWindow
from toolkit.bench.reference import (
    EvalText,
    Reference,
    check_comparable,
    ensure_reference,
    find_reference,
    reference_files,
    sample_for,
)
from toolkit.bench.run import installed
from toolkit.bundle import Bundle, Manifest
from toolkit.bundle.store import record_quality, signature_files
from toolkit.catalog.model import SourceModel
from toolkit.deploy import Prepared, prepare
from toolkit.deploy.push import discard, push
from toolkit.device import Device, connect
from toolkit.errors import AgentError
from toolkit.events import Service, Step, Warning_
from toolkit.metrics import HELD_OUT, Quality
from toolkit.metrics.stats import mean_and_error, percentile, perplexity
from toolkit.optimize import AS_PLANNED, BuildOptions


class Evaluation(Quality):
    """Quality figures and their subject: a bundle on a target, with a text, compared with a reference."""

    bundle_id: str
    bundle_name: str
    reference_name: str
    target: str
    text: str

    @property
    def quality(self) -> Quality:
        return Quality.model_validate(self.model_dump())

    def as_json(self) -> dict[str, Any]:
        return self.model_dump() | {"ppl_increase": self.ppl_increase, "match_comparable": self.match_comparable}


@dataclass(frozen=True)
class Subject:
    """The bundle to evaluate, and the request for it, in which the runtime and the texts are still missing."""

    manifest: Manifest
    id: str
    asked: Evaluate


def evaluate(bundle: Bundle, reference: Bundle | None, sample: EvalText) -> Service[Evaluation]:
    """Compare `bundle` with `reference`, its fp32 twin by default, on this machine in the runtime of target `local`.

    Raises ConfigError for a text or a reference that doesn't fit; AgentError when a model can't be evaluated.
    """
    asked = Evaluate(model_folder=str(bundle.path.resolve()), windows=(), continuations=())
    subject = Subject(bundle.manifest, bundle.id, asked)
    with connect("local") as device:
        return (yield from _evaluate(device, subject, reference or find_reference(bundle.manifest), sample))


def evaluate_on(
    device: Device,
    bundle_id: str | None,
    reference: Bundle | None,
    sample: EvalText,
    prepared: Prepared | None = None,
) -> Service[Evaluation]:
    """Compare a release on its device, the active one by default, with a reference that needn't fit there.

    The reference is computed on this machine; its log-probabilities are pushed, and removed afterwards. Raises what
    `evaluate` raises, DeviceFull, and ConfigError when there is no such release.
    """
    manifest, release = installed(device, bundle_id)
    subject = Subject(manifest, release, Evaluate(release=release, windows=(), continuations=()))
    return (yield from _evaluate(device, subject, reference or find_reference(manifest), sample, prepared))


def record(bundle: Bundle, evaluation: Evaluation) -> Service[Bundle]:
    """Record figures that were taken on this machine in the bundle's manifest; returns the bundle under its new id.

    Figures that the manifest has stay if they are on more tokens of the same text.
    """
    known = bundle.manifest.quality.get(evaluation.text)
    if known is not None and _says_more(known, evaluation):
        yield Step(f"{bundle.manifest.name} has figures on {known.tokens} tokens of {evaluation.text}: they stay")
        return bundle
    signed = bool(signature_files(bundle.path))
    recorded = record_quality(bundle, evaluation.text, evaluation.quality)
    change = f"{bundle.id[:12]} → {recorded.id[:12]}"
    yield Step(f"record the figures of {bundle.manifest.name}: {change}", skipped=recorded.id == bundle.id)
    if signed and recorded.id != bundle.id:
        again = f"sign it again: edgephi bundle sign {recorded.id[:12]}"
        yield Warning_(f"{bundle.manifest.name} was signed without these figures: {again}")
    return recorded


def _says_more(known: Quality, found: Quality) -> bool:
    same_text = known.text_sha256 == found.text_sha256 and known.reference_identity == found.reference_identity
    lacks_match = known.token_match is None and found.token_match is not None
    return same_text and known.tokens > found.tokens and not lacks_match


def with_figures(bundle: Bundle, model: str | SourceModel, options: BuildOptions = AS_PLANNED) -> Service[Bundle]:
    """Give a built bundle figures on the shipped text in its manifest, measured now unless it has them.

    Its reference is built from `model` with `options` when there is none. A bundle for another provider than the CPU
    stays as it is, with a warning.
    """
    manifest = bundle.manifest
    if HELD_OUT in manifest.quality:
        yield Step(f"evaluate {manifest.name}", skipped=True)
        return bundle
    if manifest.provider != "cpu":
        yield Warning_(f"built for {manifest.provider}: edgephi eval {bundle.id[:12]} --on TARGET evaluates it there")
        return bundle
    reference = yield from ensure_reference(model, manifest, options)
    found = yield from evaluate(bundle, reference, sample_for(manifest, reference.manifest))
    return (yield from record(bundle, found))


def _evaluate(
    device: Device, subject: Subject, reference: Bundle, sample: EvalText, prepared: Prepared | None = None
) -> Service[Evaluation]:
    check_comparable(subject.manifest, reference.manifest, sample)
    if prepared is None and device.target.name == "local":
        # The reference is computed over the same connection.
        prepared = yield from prepare(device)
    # One after the other: the reference's process has ended before the bundle is loaded.
    wanted = yield from reference_files(reference, sample, device, prepared)
    prepared = prepared or (yield from prepare(device))
    name = subject.manifest.name
    request = replace(subject.asked, runtime=prepared.runtime.lock, continuations=_that_fit(wanted, subject.manifest))
    yield Step(f"{device.target.name}: compare {name} with {reference.manifest.name} on {sample.name}")
    compared = yield from _compare(device, wanted, request)
    if compared.stepwise:
        yield Warning_(f"{name} computes the last token's logits only: it was read token by token")
    return Evaluation(
        bundle_id=subject.id,
        bundle_name=name,
        reference_identity=reference.manifest.identity,
        reference_name=reference.manifest.name,
        reference_arch=localhost.arch(),
        target=device.target.name,
        arch=prepared.probe.arch,
        text=sample.name,
        text_sha256=sample.sha256,
        window_tokens=sample.window_tokens,
        match_tokens=len(wanted.continuations[0]["tokens"]) if compared.matches else 0,
        **_figures(compared),
    )


def _that_fit(reference: Reference, manifest: Manifest) -> list[dict[str, list[int]]]:
    return [
        entry
        for entry in reference.continuations
        if len(entry["prompt"]) + len(entry["tokens"]) <= manifest.context_tokens
    ]


def _compare(device: Device, reference: Reference, request: Evaluate) -> Service[Evaluated]:
    files = reference.files
    if device.target.transport == "local":
        return (yield from _call(device, reference, request, lambda index: str(files[index].source)))
    try:
        yield from push(device, files)
        return (yield from _call(device, reference, request, lambda index: f"incoming/{files[index].sha256}.part"))
    finally:
        # Nothing else needs these files there. When the link is broken they stay, and the next push goes on from them.
        discard(device, files)


def _call(device: Device, reference: Reference, request: Evaluate, place: Callable[[int], str]) -> Service[Evaluated]:
    windows: list[SentWindow] = [
        {"tokens": tokens, "file": place(index), "sha256": reference.files[index].sha256}
        for index, tokens in enumerate(reference.windows)
    ]
    found = yield from device.call(replace(request, windows=windows))
    counts = [len(window) - 1 for window in reference.windows]
    if [len(window.kld) for window in found.windows] != counts or len(found.matches) != len(request.continuations):
        raise AgentError(f"{device.target.name}: the agent evaluated another text than it was given", "run it again")
    return found


def _figures(found: Evaluated) -> dict[str, Any]:
    windows, matches = found.windows, found.matches
    counts = [len(window.kld) for window in windows]
    ppl, ppl_error = perplexity([window.nll for window in windows], counts)
    reference_ppl, _ = perplexity([window.reference_nll for window in windows], counts)
    kld, kld_error = mean_and_error([sum(w.kld) / n for w, n in zip(windows, counts, strict=True)])
    top1, top1_error = mean_and_error([w.same_top / n for w, n in zip(windows, counts, strict=True)])
    match, match_error = mean_and_error(matches) if matches else (None, None)
    return {
        "tokens": sum(counts),
        "stepwise": found.stepwise,
        "ppl": ppl,
        "ppl_error": _known(ppl_error),
        "reference_ppl": reference_ppl,
        "kld_mean": kld,
        "kld_mean_error": _known(kld_error),
        "kld_p99": percentile([value for window in windows for value in window.kld], 99),
        "top1": top1,
        "top1_error": _known(top1_error),
        "token_match": match,
        "token_match_error": _known(match_error),
        "match_prompts": len(matches),
    }


def _known(error: float | None) -> float | None:
    """The error; None for that of a single window or prompt, which has none."""
    return None if error is None or math.isnan(error) else error
