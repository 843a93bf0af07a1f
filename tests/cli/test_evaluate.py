from __future__ import annotations

import json
from pathlib import Path

from tests.builds import seed_cache
from tests.cli.test_loop import edgephi


def test_eval_prints_a_row_for_each_bundle(local: Path, tmp_path: Path) -> None:
    for recipe in ("fp32", "int4-rtn-b32"):
        seed_cache(tmp_path / "cache", recipe)
    done = edgephi("eval", "phi3-nano-fp32", "phi3-nano-int4-rtn-b32", "--tokens", "2048")
    assert done.returncode == 0, done.stderr
    assert "phi3-nano-int4-rtn-b32" in done.stdout
    assert "+0.00%" in done.stdout
    (found,) = json.loads(edgephi("eval", "phi3-nano-int4-rtn-b32", "--tokens", "512", "--json").stdout)
    assert found["ppl_increase"] > 0
    assert found["kld_mean_error"] is None
