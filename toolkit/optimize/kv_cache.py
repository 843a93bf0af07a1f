"""An int8 KV cache for an exported model: ranges seen on calibration text become scales in its graph.

ONNX Runtime's GroupQueryAttention takes cached keys and values as int8 with one fp32 scale a channel (inputs 12 and
13, attributes `k_quant_type`, `v_quant_type`, `kv_cache_bit_width`); Olive has no pass for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.errors import BuildError
from toolkit.optimize.calibration import token_ids

_QMAX = 127
_SCALE_INPUT = 12
_MODEL = "model.onnx"
_CONFIG = "genai_config.json"
_KINDS = {"key": "k", "value": "v"}


def quantize_kv_cache(folder: Path, calibration: Path, samples: int, sequence_tokens: int) -> None:
    """Rewrite the exported model in `folder` for an int8 KV cache; its weights file isn't touched.

    Raises BuildError for a model without GroupQueryAttention (Phi-3-small's is block-sparse).
    """
    config = json.loads((folder / _CONFIG).read_bytes())
    decoder = config["model"]["decoder"]
    ids = token_ids(calibration, folder, samples * sequence_tokens)
    largest = _largest(folder, decoder, ids, sequence_tokens)
    rewrite(folder / _MODEL, largest)
    # The CPU's int8 cache grows by copying; a shared buffer of the whole context exists for floats only.
    config["search"]["past_present_share_buffer"] = False
    (folder / _CONFIG).write_text(json.dumps(config, indent=4), encoding="utf-8")


def _largest(folder: Path, decoder: dict[str, Any], ids: list[int], sequence_tokens: int) -> dict[str, Any]:
    """Largest magnitude of every channel, float32 (kv_heads, head_dim), by the name of the graph's output."""
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / _MODEL), providers=["CPUExecutionProvider"])
    layers = range(decoder["num_hidden_layers"])
    outputs = [f"present.{layer}.{kind}" for layer in layers for kind in _KINDS]
    empty = numpy.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), numpy.float32)
    past = {name.replace("present", "past_key_values"): empty for name in outputs}
    largest: dict[str, Any] = {}
    for start in range(0, len(ids), sequence_tokens):
        tokens = numpy.array([ids[start : start + sequence_tokens]], dtype=numpy.int64)
        found = session.run(outputs, {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens), **past})
        for name, values in zip(outputs, found, strict=True):
            magnitudes = numpy.abs(values).max(axis=(0, 2))
            largest[name] = numpy.maximum(largest.get(name, magnitudes), magnitudes)
    return largest


def rewrite(path: Path, largest: dict[str, Any]) -> None:
    """Give every attention of a graph int8 inputs and outputs with scales for the `largest` magnitudes seen."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    if not attentions:
        raise BuildError("this model's attention can't have an int8 KV cache", "take a recipe without kv_cache_bits")
    for node in attentions:
        past = node.input[3].removesuffix(".key")
        node.input.extend([""] * (_SCALE_INPUT - len(node.input)))
        for kind, short in _KINDS.items():
            name = f"{past}.{kind}.scale"
            model.graph.initializer.append(
                _scales(name, largest[f"{past.replace('past_key_values', 'present')}.{kind}"])
            )
            node.input.append(name)
            node.attribute.append(onnx.helper.make_attribute(f"{short}_quant_type", "PER_CHANNEL"))
        node.attribute.append(onnx.helper.make_attribute("kv_cache_bit_width", 8))
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    onnx.save(model, path)


def _scales(name: str, magnitudes: Any) -> Any:
    import numpy
    from onnx import numpy_helper

    # The scale of a channel that was always zero mustn't be zero.
    scales = numpy.maximum(magnitudes.reshape(-1) / _QMAX, numpy.finfo(numpy.float32).tiny)
    return numpy_helper.from_array(scales.astype(numpy.float32), name)
