"""The cost of quantization: a reference's probabilities, and a bundle's beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .inference import load_model
from .layout import ROOT, sha256_file
from .likelihood import (
    chosen_nll,
    common_prefix,
    greedy,
    last_logits_only,
    log_probabilities,
    normalize,
    row_blocks,
    text_windows,
)
from .protocol import AgentFailure, progress
from .texts import encode


def child_reference(request: dict[str, Any]) -> dict[str, Any]:
    """Write a reference for bundles to be compared with: log-probabilities of each window of text, and greedy tokens.

    At most one window is in memory. A window's file that an attempt which was cut off left in `folder` is kept.
    """
    og, model, tokenizer, _ = load_model(request)
    ids = encode(tokenizer, request["text"])[: request["tokens"]]
    windows = text_windows(ids, request["window_tokens"])
    stepwise = last_logits_only(og, model)
    for index, tokens in enumerate(windows):
        path = Path(request["folder"]) / f"{index:05}.npz"
        if not path.is_file():
            write_window(path, log_probabilities(og, model, tokens, stepwise), tokens)
        progress("reference", index + 1, len(windows))
    continuations = []
    for prompt in cut_prompts(ids, request["prompts"], request["prompt_tokens"]):
        continuations.append({"prompt": prompt, "tokens": greedy(og, model, prompt, request["match_tokens"])})
        progress("reference, greedy", len(continuations), request["prompts"])
    return {"text_tokens": len(ids), "windows": windows, "continuations": continuations}


def write_window(path: Path, log_probs: Any, tokens: list[int]) -> None:
    """Write log-probabilities in half precision and, exactly, the likeliest tokens and the text's own likelihood."""
    import numpy

    top, nll = log_probs.argmax(axis=-1), chosen_nll(log_probs, tokens)
    beside = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    numpy.savez(beside, log_probs=log_probs.astype(numpy.float16), top=top, nll=nll)
    beside.replace(path)


def cut_prompts(ids: list[int], count: int, length: int) -> list[list[int]]:
    """`count` prompts spread evenly over a text; fewer when it is too short for them not to overlap."""
    count = min(count, len(ids) // length)
    return [ids[index * len(ids) // count :][:length] for index in range(count)]


def child_evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """Compare a bundle with a reference's files. Returns raw values, one entry a window and one a prompt.

    KLD is KL(reference || bundle) in nats for every predicted token (Kullback and Leibler 1951).
    """
    og, model, _, _ = load_model(request)
    stepwise = last_logits_only(og, model)
    results, matches = [], []
    for index, window in enumerate(request["windows"]):
        tokens = window["tokens"]
        reference = read_window(window)
        results.append(compare(log_probabilities(og, model, tokens, stepwise), reference, tokens))
        progress("evaluate", index + 1, len(request["windows"]))
    for index, wanted in enumerate(request["continuations"]):
        found = greedy(og, model, wanted["prompt"], len(wanted["tokens"]))
        matches.append(common_prefix(found, wanted["tokens"]) / len(found))
        progress("greedy tokens", index + 1, len(request["continuations"]))
    return {"windows": results, "matches": matches, "stepwise": stepwise}


def read_window(window: dict[str, Any]) -> Any:
    """The arrays of a window's file, which has arrived whole."""
    import numpy

    path = ROOT / window["file"]
    if not path.is_file() or sha256_file(path) != window["sha256"]:
        message = "the reference's log-probabilities haven't arrived whole"
        raise AgentFailure("corrupt", message, "evaluate again: what is missing is sent afresh")
    with numpy.load(path) as file:
        return {name: file[name] for name in file.files}


def compare(found: Any, reference: Any, tokens: list[int]) -> dict[str, Any]:
    import numpy

    wanted = reference["log_probs"]
    if wanted.shape != found.shape:
        sizes = f"the reference knows {wanted.shape[1]} tokens, this bundle {found.shape[1]}"
        raise AgentFailure("bad_request", f"{sizes}: they aren't of one model")
    kld: list[float] = []
    for half, ours in zip(row_blocks(wanted), row_blocks(found)):  # noqa: B905  (Python 3.9 has no zip(strict=))
        rows = half.astype(numpy.float32)
        # Rounded probabilities don't add up to one. After normalizing, rounding adds to KLD in second order only.
        normalize(rows)
        kld += (numpy.exp(rows) * (rows - ours)).sum(axis=-1).tolist()
    return {
        "nll": chosen_nll(found, tokens),
        "reference_nll": float(reference["nll"]),
        "kld": [round(value, 7) for value in kld],
        "same_top": int((found.argmax(axis=-1) == reference["top"]).sum()),
    }
