"""Quality figures of a bundle beside the model it came from. They stand in manifests and in reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from toolkit.catalog.record import OpenRecord

# The key of the figures on the text that ships with edgephi; those on a text of the user's go by its name.
HELD_OUT = "held-out"

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Quality(OpenRecord):
    """One evaluation. An error is a standard error, None where there was only one window or prompt.

    `kld_*` is KL(reference || bundle) in nats a token; `top1` is the share of tokens whose likeliest successor is the
    same under both; `token_match` is the mean share of greedily generated tokens before the first that differs.
    """

    text_sha256: str
    tokens: int
    window_tokens: int
    # The identity of the reference's manifest: the reference's id changes when it is evaluated itself.
    reference_identity: str
    # Kernels differ between architectures, and figures with them.
    reference_arch: str
    arch: str
    # A bundle that computes the last token's logits only is read token by token.
    stepwise: bool = False
    ppl: Finite
    ppl_error: Finite | None
    reference_ppl: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    kld_mean: Finite
    kld_mean_error: Finite | None
    kld_p99: Finite
    top1: Finite
    top1_error: Finite | None
    token_match: Finite | None = None
    token_match_error: Finite | None = None
    match_prompts: int = 0
    match_tokens: int = 0

    @property
    def ppl_increase(self) -> float:
        """The increase relative to the reference: 0.02 is 2 % worse."""
        return self.ppl / self.reference_ppl - 1

    @property
    def match_comparable(self) -> bool:
        """True when the greedy tokens of bundle and reference came from kernels of the same architecture."""
        return self.arch == self.reference_arch


def headline(quality: Mapping[str, Quality]) -> Quality | None:
    """The figures to show where there is room for one: those on the shipped text, else the first by name."""
    if HELD_OUT in quality:
        return quality[HELD_OUT]
    return quality[min(quality)] if quality else None
