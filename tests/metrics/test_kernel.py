from __future__ import annotations

import numpy
import onnx
import onnxruntime

from toolkit.metrics.kernel import BLOCK, INNER, OUTER, ROWS, matrix_product


def test_onnx_reads_it_and_finds_the_sizes_that_figures_are_computed_with() -> None:
    model = onnx.load_model_from_string(matrix_product())
    product = model.graph.node[-1]
    numbers = {attribute.name: attribute.i for attribute in product.attribute}
    assert (product.op_type, product.domain) == ("MatMulNBits", "com.microsoft")
    assert numbers == {"K": INNER, "N": OUTER, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 21, "com.microsoft": 1}


def test_it_runs_and_is_small_to_send() -> None:
    text = matrix_product()
    assert len(text) < 1000
    session = onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": numpy.full((ROWS, INNER), 0.5, dtype=numpy.float32)})
    assert result.shape == (ROWS, OUTER) and numpy.isfinite(result).all()
