"""Log-probabilities of a text's tokens, within one window's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .inference import new_generator
from .protocol import AgentFailure, progress
from .texts import encode

LOGIT_ROWS = 64


def negative_log_likelihood(
    og: Any, model: Any, tokenizer: Any, text: str, workload: dict[str, Any]
) -> list[dict[str, Any]]:
    """Negative log-likelihood in nats of held-out text, one entry a window: {sum, count}.

    Windows don't overlap, and every token but a window's first is predicted from those before it there.
    """
    results = []
    ids = encode(tokenizer, text)[: workload["quality_tokens"]]
    windows = text_windows(ids, workload["quality_window_tokens"])
    stepwise = last_logits_only(og, model)
    for index, tokens in enumerate(windows):
        log_probs = log_probabilities(og, model, tokens, stepwise)
        results.append({"sum": chosen_nll(log_probs, tokens), "count": len(tokens) - 1})
        progress("perplexity", index + 1, len(windows))
    return results


def text_windows(ids: list[int], window: int) -> list[list[int]]:
    """Cut token ids into whole windows; the rest that fills none is left out."""
    return [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]


def last_logits_only(og: Any, model: Any) -> bool:
    """Tell if this bundle's graph gives the logits of the last token alone (a pruned head)."""
    generator = new_generator(og, model, max_length=3)
    generator.append_tokens([0, 0])
    return int(generator.get_output("logits").shape[1]) == 1


def log_probabilities(og: Any, model: Any, tokens: list[int], stepwise: bool) -> Any:
    """Natural logarithms of the probabilities of every next token, float32 (len(tokens) - 1, vocabulary).

    At most one window's logits are in memory. `stepwise` reads one token at a time, as a pruned head needs it.
    """
    import numpy

    generator = new_generator(og, model, max_length=len(tokens) + 1)
    if stepwise:
        rows = []
        for token in tokens[:-1]:
            generator.append_tokens([token])
            rows.append(numpy.array(generator.get_output("logits")[0, -1], dtype=numpy.float32))
        logits = numpy.stack(rows)
    else:
        generator.append_tokens(tokens)
        logits = numpy.array(generator.get_output("logits")[0, :-1], dtype=numpy.float32)
    if not numpy.isfinite(logits).all():
        raise AgentFailure(
            "bad_logits", "the model's logits aren't finite numbers", "the weights or the quantization are broken"
        )
    for rows in row_blocks(logits):
        rows -= rows.max(axis=-1, keepdims=True)
        normalize(rows)
    return logits


def row_blocks(table: Any) -> Iterator[Any]:
    """Give views of some rows each, so that computing with them takes little memory beside a window's logits."""
    for start in range(0, len(table), LOGIT_ROWS):
        yield table[start : start + LOGIT_ROWS]


def normalize(rows: Any) -> None:
    """Shift each row, in place, so that its exponentials add up to one."""
    import numpy

    rows -= numpy.log(numpy.exp(rows).sum(axis=-1, keepdims=True))


def chosen_nll(log_probs: Any, tokens: list[int]) -> float:
    import numpy

    return float(-log_probs[numpy.arange(len(tokens) - 1), tokens[1:]].sum())


def greedy(og: Any, model: Any, prompt: list[int], count: int) -> list[int]:
    """Generate `count` tokens after a prompt, each the likeliest; an end of text doesn't stop it."""
    generator = new_generator(og, model, max_length=len(prompt) + count, min_length=len(prompt) + count)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


def common_prefix(found: list[int], wanted: list[int]) -> int:
    pairs = enumerate(zip(found, wanted))  # noqa: B905  (Python 3.9 has no zip(strict=))
    return next((index for index, (a, b) in pairs if a != b), min(len(found), len(wanted)))
