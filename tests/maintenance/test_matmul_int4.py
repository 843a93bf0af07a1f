"""maintenance.matmul_int4: the shipped model can be made again, byte for byte."""

from __future__ import annotations

import numpy
import onnx
import onnxruntime

from maintenance.matmul_int4 import make_model
from toolkit.metrics.kernel import INNER, ROWS, matrix_product


def test_the_shipped_model_is_what_is_made() -> None:
    assert make_model() == onnx.load_model_from_string(matrix_product())
    assert make_model().SerializeToString(deterministic=True) == matrix_product()


def test_the_made_model_is_a_valid_one_and_computes_what_the_shipped_one_does() -> None:
    model = make_model()
    onnx.checker.check_model(model)
    x = numpy.random.default_rng(0).standard_normal((ROWS, INNER), dtype=numpy.float32)
    made, shipped = (
        onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for text in (model.SerializeToString(), matrix_product())
    )
    # 7 and 9 are the matrix's values beside a zero point of 8: each pair of a block's weights is -0.001 and 0.001.
    expected = 0.001 * (x[:, 1::2] - x[:, ::2]).sum(axis=1)
    assert numpy.array_equal(made, shipped)
    assert numpy.allclose(made[:, 0], expected, atol=0.01)
