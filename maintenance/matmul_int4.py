"""Writes `toolkit/data/matmul_int4.onnx`, by which a device's speed of multiplying is measured: `make kernel`.

Its weights are constants that the device expands to their shapes: whatever the size of the matrix, a few hundred bytes
are sent.
"""

from __future__ import annotations

from typing import Any

import numpy
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from toolkit.config import data_path
from toolkit.metrics.kernel import BLOCK, INNER, MODEL, OUTER, ROWS

_BLOCKS = INNER // BLOCK
# The int4 matrix's values, the scale of each block, and the zero points; two values of four bits share a byte.
_CONSTANTS: dict[str, tuple[list[int], NDArray[Any]]] = {
    "q": ([OUTER, _BLOCKS, BLOCK // 2], numpy.array([0x97], numpy.uint8)),
    "s": ([OUTER, _BLOCKS], numpy.array([0.001], numpy.float32)),
    "z": ([OUTER, _BLOCKS // 2], numpy.array([0x88], numpy.uint8)),
}


def make_model() -> ModelProto:
    """x (ROWS, INNER) float32 times an int4 matrix in blocks of BLOCK, to y (ROWS, OUTER)."""
    numbers = {"K": INNER, "N": OUTER, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    # make_node would order the attributes by name; without it the bytes are those that have always been sent.
    product = NodeProto(op_type="MatMulNBits", domain="com.microsoft", input=["x", *_CONSTANTS], output=["y"])
    product.attribute.extend(helper.make_attribute(name, value) for name, value in numbers.items())
    fills = [
        helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=numpy_helper.from_array(value))
        for name, (_, value) in _CONSTANTS.items()
    ]
    graph = helper.make_graph(
        [*fills, product],
        "kernel",
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, INNER])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, OUTER])],
        initializer=[
            numpy_helper.from_array(numpy.array(shape, numpy.int64), f"{name}_shape")
            for name, (shape, _) in _CONSTANTS.items()
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return ModelProto(ir_version=10, graph=graph, opset_import=opsets)


if __name__ == "__main__":
    data_path(MODEL).write_bytes(make_model().SerializeToString(deterministic=True))
