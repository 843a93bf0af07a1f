"""phi3-nano is a real, trained Phi-3 that fits into the package."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.support.paths import REPO

DATA = REPO / "toolkit" / "data"
NANO = DATA / "phi3-nano"
TEXTS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune",
    '"You & I," said he, "are -- well! -- not (quite) of one mind; are we?"',
    "two\nlines\n\nand  two  spaces ",
    "café £20, 你好 \N{GRINNING FACE}\ttab",
    "<|system|>\nBe brief.<|end|>\n<|user|>\nWho is she?<|end|>\n<|assistant|>\n",
    "one<|endoftext|>two",
)


def read_json(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((NANO / name).read_text("utf-8"))
    return content


def test_fits_into_the_package() -> None:
    assert (NANO / "model.safetensors").stat().st_size <= 10_000_000
    assert sum(file.stat().st_size for file in NANO.iterdir()) <= 10_500_000


def test_is_a_phi3_that_every_block_size_divides() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["Phi3ForCausalLM"]
    assert config["sliding_window"] is None
    assert config["max_position_embeddings"] == config["original_max_position_embeddings"] == 1024
    for width in ("hidden_size", "intermediate_size", "vocab_size"):
        assert config[width] % 128 == 0, width


def test_weights_are_bfloat16_and_named_like_phi3() -> None:
    with (NANO / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert header["lm_head.weight"]["shape"] == header["model.embed_tokens.weight"]["shape"] == [3072, 256]
    assert "model.layers.3.self_attn.qkv_proj.weight" in header
    assert "model.layers.4.self_attn.qkv_proj.weight" not in header


def test_ends_generation_the_phi3_way() -> None:
    tokens = {token["content"]: token["id"] for token in read_json("tokenizer.json")["added_tokens"]}
    assert read_json("generation_config.json")["eos_token_id"] == [tokens["<|endoftext|>"], tokens["<|end|>"]]
    assert read_json("config.json")["pad_token_id"] == tokens["<|endoftext|>"]


def test_held_out_text_is_long_enough_to_measure_with() -> None:
    text = (DATA / "heldout.txt").read_text("utf-8")
    assert 100_000 < len(text) < 200_000
    assert not any(line != line.strip() for line in text.splitlines())


def test_chat_template_is_phi3s() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    chat = [{"role": "user", "content": "Who is she?"}, {"role": "assistant", "content": "A lady."}]
    expected = "<|user|>\nWho is she?<|end|>\n<|assistant|>\nA lady.<|end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected + "<|endoftext|>"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>\nWho is she?<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_round_trip(text: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer(text)["input_ids"]
    assert 0 not in ids, "byte fallback leaves nothing unknown"
    # Phi-3's chat tokens swallow the white space behind them, and text after any of them begins with a space.
    assert tokenizer.decode(ids).replace("|> ", "|>") == text.replace("|>\n", "|>")


@pytest.fixture(scope="module")
def runtime_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as the device's runtime reads it from a built model folder."""
    runtime = pytest.importorskip("onnxruntime_genai")
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    folder = tmp_path_factory.mktemp("nano")
    builder.create_model("", str(NANO), str(folder / "onnx"), "int4", "cpu", str(folder / "cache"))
    return runtime.Tokenizer(runtime.Model(str(folder / "onnx")))


@pytest.mark.parametrize("text", TEXTS)
def test_runtime_encodes_as_transformers_does(runtime_tokenizer: Any, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer(text)["input_ids"]
    assert [int(number) for number in runtime_tokenizer.encode(text)] == ids
    # The two texts differ only in the spaces that the normalizer puts in front of text.
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert runtime_tokenizer.decode(ids).replace(" ", "") == decoded.replace(" ", "")


def test_runtime_encodes_the_held_out_text_as_transformers_does(runtime_tokenizer: Any) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO, model_max_length=1 << 20)
    text = (DATA / "heldout.txt").read_text("utf-8")
    ids = [int(number) for number in runtime_tokenizer.encode(text)]
    assert ids == tokenizer(text)["input_ids"]
    assert runtime_tokenizer.decode(ids).lstrip(" ") == tokenizer.decode(ids) == text


def test_recorded_perplexity_is_reproduced() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO, model_max_length=1 << 20)
    model = transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    recorded = read_json("training.json")["heldout_perplexity"]
    window = recorded["window_tokens"]

    ids = torch.tensor(tokenizer((DATA / "heldout.txt").read_text("utf-8"))["input_ids"])
    windows = ids[: len(ids) // window * window].view(-1, window)
    with torch.no_grad():
        losses = [model(input_ids=rows, labels=rows).loss.item() * len(rows) for rows in windows.split(4)]
    assert math.exp(sum(losses) / len(windows)) == pytest.approx(recorded["ppl"], rel=0.02)


def test_has_learned_something() -> None:
    assert read_json("training.json")["heldout_perplexity"]["ppl"] < 35, "an untrained model is at 3,072"
