"""Quality of a bundle beside the model it came from: perplexity, KL divergence, top-1 agreement."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.bench import held_out_text
from toolkit.bundle import Bundle, list_bundles
from toolkit.deploy import prepare
from toolkit.device import connect
from toolkit.errors import ConfigError
from toolkit.events import Service, Step
from toolkit.stats import mean_and_error, percentile, perplexity


@dataclass(frozen=True)
class Evaluation:
    """Quality figures with their standard errors over windows of text.

    `kld` is KL(reference || bundle) in nats a token, `top1` the share of tokens whose likeliest successor is the same
    under both. `text` says what it was measured on.
    """

    bundle_id: str
    bundle_name: str
    reference_id: str
    reference_name: str
    text: str
    tokens: int
    window_tokens: int
    ppl: float
    ppl_error: float
    reference_ppl: float
    kld_mean: float
    kld_mean_error: float
    kld_p99: float
    top1: float
    top1_error: float

    @property
    def ppl_increase(self) -> float:
        """Relative to the reference: 0.02 is 2 % worse."""
        return self.ppl / self.reference_ppl - 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ppl_increase": self.ppl_increase}


def find_reference(bundle: Bundle) -> Bundle:
    """The unquantized bundle of the same weights among those built here.

    Raises ConfigError with the command that makes one.
    """
    for other in list_bundles():
        same_weights = other.manifest.model.weights_sha256 == bundle.manifest.model.weights_sha256
        if same_weights and other.manifest.recipe["algorithm"] == "none":
            return other
    raise ConfigError(
        f"no fp32 bundle of {bundle.manifest.model.id} is built here to compare {bundle.manifest.name} with",
        f"edgephi optimize {bundle.manifest.model.id} --recipe fp32 --profile local, or name one with --reference",
    )


def read_text(path: Path | None) -> tuple[str, str]:
    """The text to evaluate on and its name; the shipped held-out text without a path. Raises ConfigError."""
    if path is None:
        return held_out_text(), "held-out text of phi3-nano"
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {exc}") from exc


def evaluate(
    bundle: Bundle, reference: Bundle, text_file: Path | None, *, tokens: int, window_tokens: int
) -> Service[Evaluation]:
    """Compare `bundle` with `reference` on this machine, in the pinned runtime of target `local`.

    Memory holds both models and one window of logits of each. Raises ConfigError for a text shorter than a window or
    a window beyond the planned context; AgentError when a model can't be evaluated.
    """
    context = min(bundle.manifest.context_tokens, reference.manifest.context_tokens)
    if window_tokens > context - 1:
        raise ConfigError(
            f"windows of {window_tokens} tokens don't fit the planned context of {context}",
            f"give --window {context - 1} or less, or optimize again with a larger --context",
        )
    text, name = read_text(text_file)
    with connect("local") as device:
        _, runtime = yield from prepare(device)
        yield Step(f"compare {bundle.manifest.name} with {reference.manifest.name} on {name}")
        answer = yield from device.call(
            "evaluate",
            runtime=runtime.lock,
            model_folder=str(bundle.path.resolve()),
            reference_folder=str(reference.path.resolve()),
            text=text,
            tokens=tokens,
            window_tokens=window_tokens,
        )
    return _summary(bundle, reference, name, window_tokens, answer["windows"])


def _summary(
    bundle: Bundle, reference: Bundle, text: str, window_tokens: int, windows: list[dict[str, Any]]
) -> Evaluation:
    counts = [len(window["kld"]) for window in windows]
    ppl, ppl_error = perplexity([window["nll"] for window in windows], counts)
    reference_ppl, _ = perplexity([window["reference_nll"] for window in windows], counts)
    kld, kld_error = mean_and_error([sum(w["kld"]) / n for w, n in zip(windows, counts, strict=True)])
    top1, top1_error = mean_and_error([w["same_top"] / n for w, n in zip(windows, counts, strict=True)])
    return Evaluation(
        bundle_id=bundle.id,
        bundle_name=bundle.manifest.name,
        reference_id=reference.id,
        reference_name=reference.manifest.name,
        text=text,
        tokens=sum(counts),
        window_tokens=window_tokens,
        ppl=ppl,
        ppl_error=ppl_error,
        reference_ppl=reference_ppl,
        kld_mean=kld,
        kld_mean_error=kld_error,
        kld_p99=percentile([value for window in windows for value in window["kld"]], 99),
        top1=top1,
        top1_error=top1_error,
    )
