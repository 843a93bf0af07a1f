"""Workloads, the tasks that a benchmark gives a model: `benchmarks/workloads/*.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from toolkit.catalog.record import Record
from toolkit.catalog.toml import find_file, find_toml, parse_table, read_toml
from toolkit.catalog.trust import admit

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Workload(Record):
    """Prompt and generation lengths in tokens, and the numbers of repetitions.

    `runs` fresh processes load the model; in each, `warmup` generations are thrown away and `repetitions` are
    kept. Perplexity is measured on `quality_tokens` of held-out text in windows of `quality_window_tokens`; 0
    leaves it out.
    """

    schema_version: Literal[1] = 1
    name: str
    description: str
    prompt_tokens: Count
    generate_tokens: Annotated[int, Field(ge=2, le=1_000_000)]
    warmup: Annotated[int, Field(ge=0, le=100)] = 1
    repetitions: Annotated[int, Field(ge=1, le=1000)] = 3
    runs: Annotated[int, Field(ge=1, le=100)] = 3
    quality_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    quality_window_tokens: Annotated[int, Field(ge=16, le=4096)] = 512

    @property
    def tokens(self) -> int:
        """The context that one generation needs."""
        return self.prompt_tokens + self.generate_tokens


def load_workload(name: str) -> Workload:
    """A workload by name, or by path when the name ends in `.toml`.

    Raises ConfigError.
    """
    if name.endswith(".toml"):
        path = Path(name)
    else:
        path = find_file("workloads", name, f"there are: {', '.join(find_toml('workloads'))}")
    table = read_toml(path)
    workload = parse_table(Workload, {"name": path.stem, **table}, path)
    if not name.endswith(".toml"):
        admit("workloads", path, table)
    return workload
