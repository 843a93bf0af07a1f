"""The ONNX model of one quantized matrix product, to measure how fast a device multiplies.

It lies in `toolkit/data`, because the package that writes ONNX belongs to the `optimize` extra;
`maintenance/matmul_int4.py` makes it.
"""

from __future__ import annotations

from toolkit.config import data_path

MODEL = "matmul_int4.onnx"
# The sizes of the product and the block of its matrix are the model's: it has to be made again when they change.
ROWS, INNER, OUTER = 256, 3072, 4096
BLOCK = 32
# Multiplications and additions of one run.
OPERATIONS = 2 * ROWS * INNER * OUTER


def matrix_product() -> bytes:
    """x (ROWS, INNER) float32 times an int4 matrix in blocks of BLOCK, as a serialized ONNX model: x → y."""
    return data_path(MODEL).read_bytes()
