"""Train the tokenizer of phi3-nano and write its files in the layout of a Phi-3 checkpoint.

The pipeline is the published Phi-3-mini one: BPE with byte fallback, a normalizer that prepends ``▁`` and
turns spaces into ``▁``, no pre-tokenizer, the llama decoder sequence, no BOS. A newline isn't in the alphabet
and so becomes the byte token ``<0x0A>``, as in Phi-3.

``python tokenizer.py TRAIN_JSONL OUT``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCAB_SIZE = 3072
CONTEXT_LENGTH = 1024
WORD = r"▁?\p{L}+|▁?\p{N}|▁?[^\p{L}\p{N}▁]+"
CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
# At the end of the vocabulary, as in Phi-3, and in Phi-3's order.
CHAT_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

# Verbatim from microsoft/Phi-3-mini-4k-instruct.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def train_bpe(texts: Iterator[str]) -> Tokenizer:
    """``VOCAB_SIZE - len(CHAT_TOKENS)`` pieces: control tokens, 256 bytes, letters, then merges."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # Only while training, as sentencepiece does: no merge crosses a space, a newline or the edge of a word.
    # onnxruntime-genai splits at punctuation whatever the merges say, and would disagree with transformers.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Metaspace("▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(WORD), "isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CHAT_TOKENS),
        special_tokens=[*CONTROL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _added_token(number: int, content: str) -> dict[str, Any]:
    # Phi-3 strips the white space after </s> and after the chat tokens, but not after <|endoftext|>.
    rstrip = content == "</s>" or (content in CHAT_TOKENS and content != "<|endoftext|>")
    flags = {"single_word": False, "lstrip": False, "rstrip": rstrip, "normalized": False}
    return {"id": number, "content": content, **flags, "special": content != "</s>"}


def tokenizer_files(trained: Tokenizer) -> dict[str, Any]:
    """File name → JSON content (or text, for the chat template)."""
    model = json.loads(trained.to_str())["model"]
    first_chat_id = len(model["vocab"])
    added = [_added_token(number, content) for number, content in enumerate(CONTROL_TOKENS)]
    added += [_added_token(first_chat_id + index, content) for index, content in enumerate(CHAT_TOKENS)]
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    shell = Tokenizer(models.BPE())
    shell.normalizer, shell.decoder = normalizer, decoder
    pipeline = json.loads(shell.to_str()) | {"added_tokens": added, "model": model}
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        # Phi-3 says LlamaTokenizer. transformers 5 rebuilds that class with its own pipeline, which leaves
        # out the space that the file's (and the runtime's) pipeline puts in front of text after a chat token.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    special = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    return {
        "tokenizer.json": pipeline,
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
        "chat_template.jinja": CHAT_TEMPLATE,
    }


def write_tokenizer(files: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (out / name).write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="train.jsonl of corpus.py")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    texts = (json.loads(line)["text"] for line in args.train.read_text("utf-8").splitlines())
    write_tokenizer(tokenizer_files(train_bpe(texts)), args.out)


if __name__ == "__main__":
    main()
