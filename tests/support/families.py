"""Small random models of every architecture: made, built, and compared with transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import follow, profile, session_cache
from tests.support.paths import DATA
from tests.support.warm_olive import warm_olive
from toolkit.bundle import Bundle
from toolkit.catalog import Recipe, load_recipe
from toolkit.catalog.preset import PRESETS, STAND_INS, Preset
from toolkit.optimize import BuildOptions, BuildRequest, optimize, tool_versions
from toolkit.optimize.matrix import Matrix, needs_remote_code
from toolkit.optimize.synth import synthesize

HERE = Path(__file__).parent
PHI3_SMALL_CODE = DATA / "phi3_small"

# Matrices of 0.08 rather than 0.02: at a width of 256 that keeps activations, and logits, at about 1.
_SCALE = 4.0
# Norms and biases aren't just ones and zeros, so that a forgotten one shows.
_SPREAD = 0.1
# Phi-3-small divides its logits by this.
_MUP_WIDTH = 8.0
_TOKENIZER_CODE = "tokenization_phi3_small.Phi3SmallTokenizer"
# Ordinary words of every tiny vocabulary.
_FIRST_TOKEN, _LAST_TOKEN = 5, 3000


@dataclass(frozen=True)
class Case:
    """Tokens to read: the first `at_once` of them at once, the rest one by one."""

    tokens: list[int]
    at_once: int
    generate: int = 0


@dataclass(frozen=True)
class Answer:
    """Logits (rows, vocabulary), the rows' positions, and the tokens that were generated after them."""

    logits: Any
    positions: list[int]
    generated: list[int]


def tokens(count: int) -> list[int]:
    """The same tokens on each call; a longer list begins with the shorter one."""
    import numpy

    return [int(token) for token in numpy.random.default_rng(7).integers(_FIRST_TOKEN, _LAST_TOKEN, count)]


def cases(architecture: str) -> list[Case]:
    """Texts that reach an architecture's own features: both sides of a LongRoPE switch, a window, sparse blocks."""
    stand_in = PRESETS[STAND_INS[architecture]]
    lengths = {200, 300}
    if stand_in.architecture == "Phi3SmallForCausalLM":
        lengths = {1200}  # its sparse pattern begins behind 16 blocks of 64
    return [Case(tokens(length), length - 10) for length in sorted(lengths)]


def write_model(preset: Preset, folder: Path) -> Path:
    """Write a random model with logits of about 1, and with its code where the architecture needs some."""
    follow(synthesize(preset, folder, layers=None))
    small = preset.architecture == "Phi3SmallForCausalLM"
    for file in folder.glob("*.safetensors"):
        _rescale(file, head=_MUP_WIDTH if small else 1.0)
    if small:
        for source in PHI3_SMALL_CODE.glob("*.py"):
            shutil.copy(source, folder)
        _name_code(
            folder / "config.json",
            AutoConfig="configuration_phi3_small.Phi3SmallConfig",
            AutoModelForCausalLM="modeling_phi3_small.Phi3SmallForCausalLM",
            AutoTokenizer=_TOKENIZER_CODE,
        )
        _name_code(folder / "tokenizer_config.json", AutoTokenizer=[_TOKENIZER_CODE, None])
    return folder


def _name_code(file: Path, **mapped: object) -> None:
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"auto_map": mapped}, indent=1), "utf-8")


def _rescale(file: Path, *, head: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, weight in load_file(file).items():
        noise = _SPREAD * torch.randn(weight.shape, generator=generator) if weight.ndim == 1 else 0
        value = weight.float() * (_SCALE if weight.ndim == 2 else 1) + noise
        if name.startswith("model.final_layernorm"):
            value = value * head
        weights[name] = value.bfloat16()
    save_file(weights, file, metadata={"format": "pt"})


def versions() -> Matrix:
    """A matrix with the versions of tools and runtime here, but no proofs; `2.13.0+cpu` is 2.13.0."""
    tools = {name: version.partition("+")[0] for name, version in tool_versions().items()}
    return Matrix(tools, tuple(sorted(profile().runtime.packages)), ())


def same_versions(one: Matrix, other: Matrix) -> bool:
    return (one.tools, one.runtime) == (other.tools, other.runtime)


@cache
def model_folder(architecture: str) -> Path:
    """This session's stand-in for an architecture. Don't change its files."""
    folder = session_cache(f"model {architecture}") / STAND_INS[architecture]
    return write_model(PRESETS[STAND_INS[architecture]], folder)


@cache
def bundle(architecture: str, recipe: str) -> Bundle:
    """The stand-in built by `recipe` for this machine. Don't change its files."""
    root = session_cache(f"{architecture} {recipe}")
    return build(model_folder(architecture), load_recipe(recipe), root, trust=needs_remote_code(architecture))


def build(folder: Path, recipe: Recipe, root: Path, *, trust: bool = False) -> Bundle:
    # Transformers keeps a model's own code in a folder that it chooses when it is imported.
    with nullcontext() if trust else warm_olive(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPHI_CACHE_DIR", str(root))
        patch.setenv("EDGEPHI_DATA_DIR", str(root / "data"))
        request = BuildRequest(str(folder), recipe, profile(), BuildOptions(trust_remote_code=trust))
        return follow(optimize(request))


def reference_logits(folder: Path, token_ids: Sequence[int], *, trust: bool = False) -> Any:
    """The logits that transformers computes in fp32 for every position: (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return _transformers_model(folder, trust=trust)(input_ids=torch.tensor([list(token_ids)])).logits[0].numpy()


@cache
def _transformers_model(folder: Path, *, trust: bool) -> Any:
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float32, trust_remote_code=trust).eval()


def runtime_python(runtimes: Path) -> Path:
    (python,) = (folder / "venv" / "bin" / "python" for folder in runtimes.iterdir() if folder.is_dir())
    return python


def device_logits(runtimes: Path, folder: Path, asked: Sequence[Case]) -> list[Answer]:
    """The answers that the pinned runtime computes for a bundle, in a process of the runtime's own Python."""
    import numpy

    with tempfile.TemporaryDirectory() as work:
        request, out = Path(work) / "request.json", Path(work) / "out.npz"
        content = {"folder": str(folder), "cases": [vars(case) for case in asked]}
        request.write_text(json.dumps(content), "utf-8")
        command = [str(runtime_python(runtimes)), str(HERE / "runtime_logits.py"), str(request), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with numpy.load(out) as arrays:
            return [
                Answer(
                    arrays[f"logits{number}"],
                    [int(position) for position in arrays[f"positions{number}"]],
                    [int(token) for token in arrays[f"generated{number}"]],
                )
                for number in range(len(asked))
            ]


def kl_divergence(wanted: Any, found: Any) -> float:
    """Mean KL(wanted || found) in nats over the rows of two tables of logits."""
    import numpy

    def log_probabilities(logits: Any) -> Any:
        shifted = logits.astype(numpy.float64) - logits.max(axis=-1, keepdims=True)
        return shifted - numpy.log(numpy.exp(shifted).sum(axis=-1, keepdims=True))

    p, q = log_probabilities(wanted), log_probabilities(found)
    return float((numpy.exp(p) * (p - q)).sum(axis=-1).mean())
