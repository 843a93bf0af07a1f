"""Train phi3-nano: a real ``Phi3ForCausalLM``, small enough to ship, good enough for quantization to hurt.

``python train.py --corpus CORPUS --tokenizer TOKENIZER --snapshots SNAPSHOTS --out MODEL``

Half of every batch is plain text, the other half is the same text cut into conversations (see
``conversations``). The learning rate stays flat and falls linearly over the last quarter, so a run that has
to end early can be resumed from a snapshot with fewer ``--steps`` and equals a run that was given that number
from the start. Batches depend on (seed, step) alone. Every snapshot is also exported to ``--out`` in Hugging
Face layout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Phi3Config, Phi3ForCausalLM

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
EVAL_WINDOW = 512
CHAT_RENDERINGS = 3
SYSTEM_PROMPTS = ("Continue the story.", "You are a storyteller.", "Answer in the style of an old book.")

_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?]\"))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=[\"'(]?[A-Z])"
)

# In the style of the published Phi-3 configurations: transformers 4 and 5 both read it.
CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 3067,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 640,
    "max_position_embeddings": 1024,
    "model_type": "phi3",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 1024,
    "pad_token_id": 3067,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 3072,
}
# Phi-3's own way: generation ends at <|endoftext|> and at <|end|>.
GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": [3067, 3070], "pad_token_id": 3067}


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result of a run, besides the corpus."""

    steps: int
    seed: int
    tokens_per_step: int = 4096
    sequence: int = 512
    long_sequence: int = 1024
    long_from: float = 0.9
    decay_from: float = 0.75
    warmup_steps: int = 150
    peak_lr: float = 2e-3
    weight_decay: float = 0.1

    def lr(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.warmup_steps)
        decay_start = self.decay_from * self.steps
        fall = max(0.0, (step - decay_start) / (self.steps - decay_start))
        return self.peak_lr * warm * (1.0 - fall)

    def sequence_at(self, step: int) -> int:
        return self.long_sequence if step >= self.long_from * self.steps else self.sequence


def conversations(text: str, rng: np.random.Generator) -> Iterator[str]:
    """Cut a passage into chats of one to three turns: the user opens, the assistant goes on with the text."""
    sentences = _SENTENCE_END.split(text.replace("\n", " "))
    at = 0
    while at + 1 < len(sentences):
        parts = [f"<|system|>\n{rng.choice(SYSTEM_PROMPTS)}<|end|>\n"] if rng.random() < 0.1 else []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            opening, *answer = sentences[at : at + 1 + int(rng.integers(1, 5))]
            if not answer:
                break
            parts.append(f"<|user|>\n{opening}<|end|>\n<|assistant|>\n{' '.join(answer)}<|end|>\n")
            at += 1 + len(answer)
            if at >= len(sentences):
                break
        yield "".join(parts) + "<|endoftext|>"


@dataclass(frozen=True)
class Corpus:
    """Token streams; ``plain`` and ``chat`` are one-dimensional int64 arrays."""

    plain: np.ndarray
    chat: np.ndarray
    held_out: torch.Tensor

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer, seed: int) -> Corpus:
        texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
        rng = np.random.default_rng(seed)
        chats = [chat for _ in range(CHAT_RENDERINGS) for text in texts for chat in conversations(text, rng)]
        rng.shuffle(chats)

        def stream(documents: list[str]) -> np.ndarray:
            return np.concatenate([np.array(one.ids) for one in tokenizer.encode_batch(documents)])

        held_out = tokenizer.encode((folder / "heldout.txt").read_text("utf-8")).ids
        return cls(stream([text + "<|endoftext|>" for text in texts]), stream(chats), torch.tensor(held_out))

    def batch(self, plan: Plan, step: int) -> torch.Tensor:
        """(rows, sequence) token ids: random windows, half plain and half chat."""
        rng = np.random.default_rng((plan.seed, step))
        length = plan.sequence_at(step)
        rows = plan.tokens_per_step // length
        windows = []
        for row in range(rows):
            stream = self.plain if row % 2 else self.chat
            start = int(rng.integers(0, len(stream) - length))
            windows.append(stream[start : start + length])
        return torch.from_numpy(np.stack(windows))


def token_loss(model: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy in nats over a (rows, sequence) batch."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))


@torch.no_grad()
def perplexity(model: Phi3ForCausalLM, held_out: torch.Tensor) -> float:
    """exp(mean loss) over whole windows of ``EVAL_WINDOW`` tokens, each scored on its own, in float32."""
    windows = held_out[: len(held_out) // EVAL_WINDOW * EVAL_WINDOW].view(-1, EVAL_WINDOW)
    losses = [token_loss(model, rows).item() * len(rows) for rows in windows.split(4)]
    return math.exp(sum(losses) / len(windows))


def export(model: Phi3ForCausalLM, tokenizer_folder: Path, training: dict[str, Any], out: Path) -> None:
    """Write the model folder beside ``out``, then put it in its place. Weights are rounded to bfloat16."""
    beside = out.with_name(f".{out.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "model.safetensors").chmod(0o644)
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
        ("training.json", training),
    ):
        (beside / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, beside / name)
    retired = out.with_name(f".{out.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if out.exists():
        out.rename(retired)
    beside.rename(out)
    shutil.rmtree(retired, ignore_errors=True)


def make_optimizer(model: Phi3ForCausalLM, plan: Plan) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.peak_lr, betas=(0.9, 0.95), fused=True)


def as_shipped(model: Phi3ForCausalLM) -> Phi3ForCausalLM:
    """A float32 copy with the weights rounded to bfloat16, as in the exported file."""
    shipped = Phi3ForCausalLM(Phi3Config(**CONFIG)).float().eval()
    shipped.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()})
    return shipped


def snapshot(model: Phi3ForCausalLM, optimizer: torch.optim.AdamW, step: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, beside)
    beside.rename(path)


def training_record(plan: Plan, corpus: Corpus, step: int, ppl: float) -> dict[str, Any]:
    return {
        "plan": asdict(plan),
        "steps_done": step,
        "tokens_seen": step * plan.tokens_per_step,
        "corpus_tokens": {
            "plain": len(corpus.plain),
            "chat": len(corpus.chat),
            "heldout": len(corpus.held_out),
        },
        "heldout_perplexity": {"ppl": round(ppl, 4), "window_tokens": EVAL_WINDOW, "compute": "float32"},
    }


def train(args: argparse.Namespace) -> None:
    plan = Plan(steps=args.steps, seed=args.seed)
    torch.manual_seed(plan.seed)
    torch.set_num_threads(args.threads)
    corpus = Corpus.load(args.corpus, Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")), plan.seed)
    print(
        f"plain {len(corpus.plain)}, chat {len(corpus.chat)}, heldout {len(corpus.held_out)} tokens",
        flush=True,
    )
    # Master weights stay float32; autocast does the arithmetic in bfloat16.
    model = Phi3ForCausalLM(Phi3Config(**CONFIG)).float()
    optimizer = make_optimizer(model, plan)
    first = 0
    if args.resume:
        state = torch.load(args.resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    compiled = torch.compile(model, dynamic=False)
    started = saved = time.monotonic()
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = token_loss(compiled, corpus.batch(plan, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 50 == 0:
            rate = (done - first) * plan.tokens_per_step / (time.monotonic() - started)
            print(f"step {done} loss {loss.item():.3f} lr {plan.lr(step):.2e} {rate:.0f} tok/s", flush=True)
        if done == plan.steps or time.monotonic() - saved > args.snapshot_every_s:
            snapshot(model, optimizer, done, args.snapshots / f"step{done:06d}.pt")
            ppl = perplexity(as_shipped(model), corpus.held_out)
            export(model, args.tokenizer, training_record(plan, corpus, done, ppl), args.out)
            print(f"step {done} heldout perplexity {ppl:.3f}", flush=True)
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="output folder of corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="output folder of tokenizer.py")
    parser.add_argument("--out", type=Path, required=True, help="the model folder")
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="a snapshot to go on from")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--snapshot-every-s", type=float, default=300.0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
