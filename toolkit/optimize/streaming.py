"""Exports that don't hold the model in memory: onnxruntime-genai's Model Builder leaves out a step that isn't needed.

Its last step for int4 turns the finished graph with all weights into one protobuf message, looks for matrices to
quantize, and turns it back: two copies of the model in memory. After a pass that has quantized everything there is
nothing to look for, and the graph can be written tensor by tensor from the memory-mapped checkpoint.
"""

from __future__ import annotations

from typing import Any


def export_streaming() -> None:
    """Have Model Builder leave that step out where it would change nothing. For the child process alone."""
    from onnxruntime_genai.models.builders import base

    quantize_rest = base.Model.to_int4

    def to_int4(builder: Any) -> Any:
        kinds = set(builder.quant_attrs["int4"]["op_types_to_quantize"])
        constants = builder.model.graph.initializers
        left = any(node.op_type in kinds and _reads(node, constants) for node in builder.model.graph.all_nodes())
        return quantize_rest(builder) if left else builder.model

    base.Model.to_int4 = to_int4


def _reads(node: Any, constants: Any) -> bool:
    return any(value is not None and value.name in constants for value in node.inputs)
