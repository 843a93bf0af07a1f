"""The ONNX model of one quantized matrix product, to measure how fast a device multiplies.

Written by hand in protobuf's wire format: the package that would write it belongs to the `optimize` extra. Weights are
a constant of a shape, so that the model is some hundred bytes to send and its matrix of any size there.
"""

from __future__ import annotations

import struct

ROWS, INNER, OUTER = 256, 3072, 4096
BLOCK = 32
# Multiplications and additions of one run.
OPERATIONS = 2 * ROWS * INNER * OUTER

_FLOAT, _UINT8, _INT64 = 1, 2, 7
_ATTRIBUTE_INT, _ATTRIBUTE_TENSOR = 2, 4
_IR_VERSION, _OPSET = 10, 21


def matrix_product(accuracy_level: int = 4) -> bytes:
    """x (ROWS, INNER) float32 times an int4 matrix in blocks of BLOCK, as a serialized ONNX model: x → y."""
    blocks = INNER // BLOCK
    constants = [
        _constant("q", [OUTER, blocks, BLOCK // 2], _tensor(_UINT8, b"\x97")),
        _constant("s", [OUTER, blocks], _tensor(_FLOAT, struct.pack("<f", 0.001))),
        _constant("z", [OUTER, blocks // 2], _tensor(_UINT8, b"\x88")),
    ]
    numbers = {"K": INNER, "N": OUTER, "bits": 4, "block_size": BLOCK, "accuracy_level": accuracy_level}
    product = b"".join(
        [
            *(_text(1, name) for name in ("x", "q", "s", "z")),
            _text(2, "y"),
            _text(4, "MatMulNBits"),
            *(_attribute(name, _ATTRIBUTE_INT, _number(3, value)) for name, value in numbers.items()),
            _text(7, "com.microsoft"),
        ]
    )
    shapes = [shape for _, shape in constants]
    nodes = [_bytes(1, node) for node in (*(node for node, _ in constants), product)]
    values = [_bytes(11, _value("x", [ROWS, INNER])), _bytes(12, _value("y", [ROWS, OUTER]))]
    graph = b"".join([*nodes, _text(2, "kernel"), *(_bytes(5, shape) for shape in shapes), *values])
    versions = {"": _OPSET, "com.microsoft": 1}
    opsets = [_bytes(8, _text(1, domain) + _number(2, version)) for domain, version in versions.items()]
    return b"".join([_number(1, _IR_VERSION), _bytes(7, graph), *opsets])


def _constant(name: str, shape: list[int], value: bytes) -> tuple[bytes, bytes]:
    """A node that fills `shape` with one value, and the initializer that holds the shape."""
    node = _text(1, f"{name}_shape") + _text(2, name) + _text(4, "ConstantOfShape")
    packed = struct.pack(f"<{len(shape)}q", *shape)
    initializer = _number(1, len(shape)) + _number(2, _INT64) + _text(8, f"{name}_shape") + _bytes(9, packed)
    return node + _attribute("value", _ATTRIBUTE_TENSOR, _bytes(5, value)), initializer


def _tensor(kind: int, raw: bytes) -> bytes:
    return _number(1, 1) + _number(2, kind) + _bytes(9, raw)


def _attribute(name: str, kind: int, value: bytes) -> bytes:
    return _bytes(5, _text(1, name) + value + _number(20, kind))


def _value(name: str, shape: list[int]) -> bytes:
    dimensions = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor = _number(1, _FLOAT) + _bytes(2, dimensions)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
