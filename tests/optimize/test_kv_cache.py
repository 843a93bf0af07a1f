"""toolkit.optimize.kv_cache: the int8 cache's graph, and that it costs next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import builds
from toolkit.errors import BuildError
from toolkit.optimize.kv_cache import rewrite


def test_graph_and_config_of_an_int8_cache() -> None:
    import onnx

    bundle = builds.bundle("int4-rtn-b128-kv8")
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    scales = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name.endswith(".scale")}
    assert len(scales) == 2 * len(attentions) > 0
    for node in attentions:
        values = onnx.numpy_helper.to_array(scales[node.input[12]])
        assert values.shape == (256,) and (values > 0).all()
        assert {"k_quant_type", "v_quant_type", "kv_cache_bit_width"} <= {a.name for a in node.attribute}
    cached = [value for value in model.graph.input if value.name.startswith("past_key_values.")]
    assert {value.type.tensor_type.elem_type for value in cached} == {onnx.TensorProto.INT8}
    config = json.loads((bundle.path / "genai_config.json").read_bytes())
    assert config["search"]["past_present_share_buffer"] is False


def test_weights_are_those_of_the_recipe_without_it() -> None:
    def data(recipe: str) -> str:
        return next(a.sha256 for a in builds.bundle(recipe).manifest.artifacts if a.path == "model.onnx.data")

    assert data("int4-rtn-b128-kv8") == data("int4-rtn-b128")


def test_attention_of_another_kind_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:])), path)
    with pytest.raises(BuildError, match="int8 KV cache"):
        rewrite(path, {})
