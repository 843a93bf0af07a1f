"""The runtime in a process of its own: load a bundle, generate with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from .condition import usable_cores
from .protocol import AgentFailure
from .reading import read_text
from .texts import encode


def load_model(request: dict[str, Any]) -> tuple[Any, Any, Any, int]:
    """The runtime's module, model and tokenizer, with the time that loading took."""
    import onnxruntime_genai as og

    if hasattr(og, "disable_telemetry_events"):
        og.disable_telemetry_events()
    started = time.perf_counter_ns()
    try:
        config = og.Config(request["model_folder"])
        # Left alone, the runtime takes one thread on some virtual machines and boards, at half the speed or less.
        options = {"intra_op_num_threads": settings_of(request).get("threads") or usable_cores()}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = og.Model(config)
        tokenizer = og.Tokenizer(model)
    except Exception as exc:
        raise AgentFailure("load_failed", f"the runtime can't load this bundle: {first_line(exc)}") from exc
    return og, model, tokenizer, time.perf_counter_ns() - started


def first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


def settings_of(request: dict[str, Any]) -> dict[str, Any]:
    """The profile's settings in a request: threads, chunk_size, ngram_size, max_draft_tokens; None for one not set.

    chunk_size is left out when a prompt may cross a LongRoPE model's original context. Chunks would get one set of
    rotary frequencies before the crossing and another one after it, and the answer would be wrong without a word.
    """
    settings = dict(request.get("settings") or {})
    if settings.get("chunk_size") and crosses_original_context(request):
        del settings["chunk_size"]
    return settings


def crosses_original_context(request: dict[str, Any]) -> bool:
    """Tell if the planned context is longer than the context that a LongRoPE model's short frequencies serve."""
    folder = request.get("model_folder")
    text = read_text(Path(folder) / "config.json") if folder else ""
    config = json.loads(text) if text else {}
    rotary = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    original = config.get("original_max_position_embeddings")
    return kind != "default" and original is not None and planned_context(request) > original


def new_generator(og: Any, model: Any, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    """A greedy generator unless `options` say otherwise.

    Quality is measured without `settings`: a prompt read in chunks leaves the last chunk's logits only.
    """
    params = og.GeneratorParams(model)
    search = {"batch_size": 1, "do_sample": False, **options}
    if settings and settings.get("chunk_size"):
        search["chunk_size"] = settings["chunk_size"]
    params.set_search_options(**search)
    if settings and settings.get("ngram_size"):
        speculate(params, settings)
    return og.Generator(model, params)


def speculate(params: Any, settings: dict[str, Any]) -> None:
    chosen = {name: settings[name] for name in ("ngram_size", "max_draft_tokens") if settings.get(name)}
    try:
        params.set_speculative_options(**chosen)
    except (AttributeError, RuntimeError) as exc:
        message = f"this runtime can't do n-gram speculation with {chosen}: {first_line(exc)}"
        raise AgentFailure("unsupported", message, "take ngram_size out of the profile's [runtime]") from exc


def draft_facts(generator: Any) -> dict[str, int]:
    """Count the tokens that speculation drafted and the model checked, and those of them that it accepted."""
    stats = generator.get_speculative_stats()
    return {"drafted_tokens": stats["draft_tokens_evaluated"], "accepted_tokens": stats["draft_tokens_accepted"]}


def planned_context(request: dict[str, Any]) -> int:
    text = (Path(request["model_folder"]) / "genai_config.json").read_text(encoding="utf-8")
    length: int = json.loads(text)["search"]["max_length"]
    return length


def prompt_ids(tokenizer: Any, text: str, length: int) -> list[int]:
    """Exactly `length` token ids of `text`, repeated as often as needed."""
    ids = encode(tokenizer, text)
    if not ids:
        raise AgentFailure("bad_request", "the workload's prompt has no tokens")
    return (ids * (length // len(ids) + 1))[:length]


def child_check(request: dict[str, Any]) -> dict[str, Any]:
    """Load and generate a few tokens: the proof that a bundle works in this runtime on this device."""
    og, model, tokenizer, load_ns = load_model(request)
    ids = prompt_ids(tokenizer, request["prompt"], 8)
    count = min(request["tokens"], planned_context(request) - len(ids))
    length = len(ids) + count
    generator = new_generator(og, model, settings_of(request), max_length=length, min_length=length)
    generator.append_tokens(ids)
    if not all_finite(generator):
        hint = "the weights or the quantization are broken"
        raise AgentFailure("bad_logits", "the model's logits aren't finite numbers", hint)
    while not generator.is_done():
        generator.generate_next_token()
    generated = [int(token) for token in generator.get_sequence(0)][len(ids) :]
    return {"load_ns": load_ns, "generated_tokens": len(generated), "text": tokenizer.decode(generated)}


def all_finite(generator: Any) -> bool:
    import numpy

    return bool(numpy.isfinite(numpy.asarray(generator.get_logits())).all())
