"""References to compare bundles with: the unquantized model's log-probabilities and greedy tokens, computed once."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from toolkit.agent import agent_sha256
from toolkit.agent.answers import ReferenceMade
from toolkit.agent.requests import MakeReference
from toolkit.bench.run import held_out_text
from toolkit.bundle import Artifact, Bundle, Manifest, canonical_json, describe_file, list_bundles
from toolkit.bundle.store import find_problem, keep_with
from toolkit.catalog import load_profile, load_recipe
from toolkit.catalog.model import SHIPPED, SourceModel
from toolkit.config import cache_dir, shown
from toolkit.deploy import Prepared, check_here, prepare
from toolkit.deploy.push import Upload
from toolkit.device import Device, connect
from toolkit.errors import ConfigError
from toolkit.events import Service, Step
from toolkit.files import in_turn, write_whole
from toolkit.metrics import HELD_OUT
from toolkit.optimize import AS_PLANNED, BuildOptions, BuildRequest, optimize
from toolkit.untrusted import name_problem, read_json_file, read_text_file, reason, text_problem

TOKENS = 8192
WINDOW_TOKENS = 512
PROMPTS = 16
MATCH_PROMPT_TOKENS = 32
MATCH_TOKENS = 64
_INDEX = "index.json"


@dataclass(frozen=True)
class EvalText:
    """A text, the number of its tokens that are read, the length of a window, and the number of prompts to continue."""

    name: str
    text: str
    tokens: int
    window_tokens: int
    prompts: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Reference:
    """A file of log-probabilities for each window of tokens, and each prompt with the tokens that followed it."""

    windows: list[list[int]]
    files: list[Upload]
    continuations: list[dict[str, list[int]]]


# Longer than any evaluation reads.
_LARGEST_TEXT_BYTES = 256 << 20


def read_eval_text(
    text_file: Path | None = None,
    *,
    tokens: int = TOKENS,
    window_tokens: int = WINDOW_TOKENS,
    prompts: int = PROMPTS,
) -> EvalText:
    """A sample of a file's text, or of the shipped held-out text. Raises ConfigError for a text that can't be read, an
    empty one, and fewer tokens than a window.
    """
    if tokens < window_tokens:
        message = f"{tokens} tokens are less than one window of {window_tokens}"
        raise ConfigError(message, f"give --window {tokens} or less, or more --tokens")
    if text_file is None:
        return EvalText(HELD_OUT, held_out_text(), tokens, window_tokens, prompts)
    try:
        text = read_text_file(text_file, _LARGEST_TEXT_BYTES)
    except (OSError, ValueError) as exc:
        message = f"{shown(text_file)}: cannot be read as UTF-8 text: {reason(exc)}"
        raise ConfigError(message, "give a file of UTF-8 text") from exc
    if not text.strip():
        raise ConfigError(f"{text_file}: the text is empty", "a few thousand words of prose give useful figures")
    if problem := text_problem(text):
        hint = "give a file of UTF-8 text without control characters"
        raise ConfigError(f"{shown(text_file)}: no model can read this text: {problem}", hint)
    if problem := name_problem(text_file.name):
        raise ConfigError(f"{shown(text_file)}: no figures can have that name: {problem}", "rename the file")
    return EvalText(text_file.name, text, tokens, window_tokens, prompts)


def sample_for(*manifests: Manifest) -> EvalText:
    """The shipped text, in windows that fit the planned contexts of all these bundles."""
    context = min(manifest.context_tokens for manifest in manifests)
    return read_eval_text(window_tokens=max(2, min(WINDOW_TOKENS, context - 1)))


def find_reference(manifest: Manifest) -> Bundle:
    """The unquantized bundle of the same weights that was built here; of several, that with the largest context.

    Raises ConfigError with the command that makes one.
    """
    found = [other for other in list_bundles() if is_reference(other.manifest, manifest)]
    if not found:
        model = manifest.model.id
        # A model that came from a folder has its name alone, which a command line doesn't take for the folder.
        word = model if "/" in model or model in SHIPPED else f"PATH/{model}"
        raise ConfigError(
            f"no fp32 bundle of {model} is built here to compare {manifest.name} with",
            f"edgephi optimize {word} --recipe fp32 --profile local, or name one with --reference",
        )
    return max(found, key=lambda bundle: bundle.manifest.context_tokens)


def ensure_reference(
    model: str | SourceModel, manifest: Manifest, options: BuildOptions = AS_PLANNED
) -> Service[Bundle]:
    """The bundle of `find_reference`, or else one that is built now for this machine from `model` with `options`.

    Its context is that of `manifest`, and it needs no calibration text, whatever `options` say.
    """
    try:
        return find_reference(manifest)
    except ConfigError:
        yield Step(f"build the fp32 original of {manifest.model.id} to compare with")
    options = replace(options, context_tokens=manifest.context_tokens, calibration=None)
    request = BuildRequest(model, load_recipe("fp32"), load_profile("local"), options)
    return (yield from optimize(request, check=check_here))


def is_reference(other: Manifest, manifest: Manifest) -> bool:
    """Tell if `other` is the unquantized original of `manifest`'s bundle, for the CPU."""
    unquantized = other.recipe["algorithm"] == "none" and other.recipe.get("bits", 32) == 32
    return unquantized and other.provider == "cpu" and other.model.weights_sha256 == manifest.model.weights_sha256


def reference_files(
    bundle: Bundle, sample: EvalText, beside: Device, prepared: Prepared | None = None
) -> Service[Reference]:
    """The files of `bundle` as a reference on `sample`, computed on this machine unless the cache has them.

    `beside` is the device of the bundle to compare; if it is this machine, its connection is used, and `prepared` too.
    Memory holds one model and one window; the disk takes 2 bytes times the tokens of the text times the vocabulary.
    Raises ConfigError for a text shorter than a window, AgentError for logits that aren't numbers.
    """
    is_here = beside.target.name == "local"
    with nullcontext(beside) if is_here else connect("local") as device:
        packages = list(device.profile.runtime.packages)
        parts = [bundle.manifest.identity, _lengths(bundle, sample), sample.sha256, agent_sha256(), packages]
        folder = cache_dir() / "reference" / hashlib.sha256(canonical_json(parts).encode()).hexdigest()
        with (yield from in_turn(folder / "lock", "computes the same log-probabilities")):
            if kept := (yield from _kept(folder)):
                yield Step(f"log-probabilities of {bundle.manifest.name} on {sample.name}", skipped=True)
                keep_with(kept, folder)
                return kept
            ready = prepared if is_here and prepared else (yield from prepare(device))
            yield Step(f"log-probabilities of {bundle.manifest.name} on {sample.name}")
            request = MakeReference(
                **_lengths(bundle, sample),
                runtime=ready.runtime.lock,
                model_folder=str(bundle.path.resolve()),
                text=sample.text,
                folder=str(folder),
            )
            return _keep(folder, sample, (yield from device.call(request)))


class _Lengths(TypedDict):
    """The measures of a reference: numbers of tokens, and the number of prompts."""

    tokens: int
    window_tokens: int
    prompts: int
    prompt_tokens: int
    match_tokens: int


def _lengths(bundle: Bundle, sample: EvalText) -> _Lengths:
    prompt_tokens = min(MATCH_PROMPT_TOKENS, sample.window_tokens)
    match_tokens = min(MATCH_TOKENS, bundle.manifest.context_tokens - prompt_tokens)
    return {
        "tokens": sample.tokens,
        "window_tokens": sample.window_tokens,
        "prompts": sample.prompts if match_tokens > 0 else 0,
        "prompt_tokens": prompt_tokens,
        "match_tokens": match_tokens,
    }


def _keep(folder: Path, sample: EvalText, made: ReferenceMade) -> Reference:
    if not made.windows:
        length = made.text_tokens
        raise ConfigError(
            f"{sample.name}: its {length} tokens are less than one window of {sample.window_tokens}",
            "take a longer text" + (f", or --window {length} or less" if length >= 16 else ""),
        )
    names = [f"{index:05}.npz" for index in range(len(made.windows))]
    files = [describe_file(folder / name, name).model_dump() for name in names]
    index = {"files": files, **made.model_dump(mode="json", include={"windows", "continuations"})}
    write_whole(folder / _INDEX, json.dumps(index))
    return _reference(folder, index)


def _kept(folder: Path) -> Service[Reference | None]:
    """The cached reference; None unless its files are whole."""
    try:
        index = read_json_file(folder / _INDEX)
        found, files = _reference(folder, index), [Artifact.model_validate(file) for file in index["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for file in files:
        if (yield from find_problem(folder, file)):
            return None
    return found


def _reference(folder: Path, index: dict[str, Any]) -> Reference:
    files = [Upload(folder / file["path"], file["sha256"], file["size_bytes"]) for file in index["files"]]
    return Reference(index["windows"], files, index["continuations"])


def check_comparable(manifest: Manifest, reference: Manifest, sample: EvalText) -> None:
    """Raise ConfigError for bundles that can't be compared: other weights, or a context that no window fits."""
    if manifest.model.weights_sha256 != reference.model.weights_sha256:
        raise ConfigError(
            f"{reference.name} is of another model than {manifest.name}: "
            f"{reference.model.id} ({reference.model.weights_sha256[:12]}), "
            f"not {manifest.model.id} ({manifest.model.weights_sha256[:12]})",
            "a reference has the same weights, unquantized",
        )
    context = min(manifest.context_tokens, reference.context_tokens)
    if sample.window_tokens > context - 1:
        raise ConfigError(
            f"windows of {sample.window_tokens} tokens don't fit the planned context of {context}",
            f"give --window {context - 1} or less, or optimize again with a larger --context",
        )
