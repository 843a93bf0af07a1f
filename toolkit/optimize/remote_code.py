"""Models whose architecture comes as Python code: of all that code, only the model itself runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.catalog.shape import read_config

_CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# This class builds any tokenizer that tokenizer.json describes.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def without_tokenizer_code(model: Path, view: Path) -> Path:
    """Make the new folder `view` of links into the folder `model`, in which no tokenizer code is named; returns it.

    Phi-3-small's tokenizer is Python code around tiktoken, which a device has no use for: its runtime reads
    tokenizer.json. Files that name the code are rewritten, everything else is linked.
    """
    view.mkdir(parents=True)
    rewritten = {_CONFIG: _plain_config, _TOKENIZER_CONFIG: _plain_tokenizer_config}
    for source in model.iterdir():
        if source.name in rewritten:
            table = rewritten[source.name](read_config(source))
            (view / source.name).write_text(json.dumps(table, indent=1), encoding="utf-8")
        else:
            (view / source.name).symlink_to(source.resolve())
    return view


def _plain_config(table: dict[str, Any]) -> dict[str, Any]:
    mapped = {name: code for name, code in table["auto_map"].items() if name != "AutoTokenizer"}
    return table | {"auto_map": mapped}


def _plain_tokenizer_config(table: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in table.items() if name != "auto_map"}
    return kept | {"tokenizer_class": _TOKENIZER_CLASS} if "auto_map" in table else kept
