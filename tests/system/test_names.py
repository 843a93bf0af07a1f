"""Names that edgephi's readers refuse are refused before the work that would write something under them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.bundles import manifest
from toolkit.bench import read_eval_text
from toolkit.bundle.store import write_bundle
from toolkit.catalog import load_profile, load_recipe
from toolkit.catalog.model import open_model, shipped_model
from toolkit.catalog.settings import RuntimeSettings
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.jobs.tune.output import write_files
from toolkit.untrusted import name_problem

NANO = shipped_model("phi3-nano")
ESCAPE = "evil\x1b]0;title\x07"
SHOWN = r"evil\x1b]0;title\x07"


def edgephi(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolkit", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "shown"),
    [(ESCAPE, SHOWN), ("two\nlines", r"two\nlines"), ("\u202egnp", r"\u202egnp"), (os.fsdecode(b"\xff"), r"\udcff")],
)
def test_a_model_folder_whose_name_no_manifest_may_have(name: str, shown: str, tmp_path: Path) -> None:
    assert NANO is not None
    folder = Path(shutil.copytree(NANO.folder, tmp_path / name))
    done = edgephi("optimize", str(folder), "--profile", "local")
    words = (
        f"no bundle can have that name: characters that steer a terminal or hide: {shown}\n hint: rename the folder\n"
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ") and done.stderr.endswith(words)
    assert not (tmp_path / "cache" / "builds").exists()


def test_a_model_folder_with_a_foreign_name_is_fine(tmp_path: Path) -> None:
    assert NANO is not None
    folder = Path(shutil.copytree(NANO.folder, tmp_path / "Ärger 日本 می‌خواهم 🏳️‍🌈"))
    assert open_model(folder).name == folder.name


@pytest.mark.parametrize("kind", ["recipes", "profiles", "targets", "workloads"])
def test_a_file_whose_name_is_none(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{ESCAPE}.toml"
    path.write_text("")
    commands = {
        "recipes": ("optimize", "phi3-nano", "--profile", "local", "--recipe", str(path)),
        "profiles": ("plan", "phi3-nano", "--profile", str(path)),
        "targets": ("targets", "probe", str(path)),
        "workloads": ("bench", "local", "--workload", str(path)),
    }
    done = edgephi(*commands[kind])
    assert done.returncode == 3, done.stderr
    assert SHOWN in done.stderr and "\x1b" not in done.stderr


def test_a_recipe_whose_words_no_manifest_may_have(tmp_path: Path) -> None:
    text = tmp_path / "evil\x1b.txt"
    text.write_text("Words. " * 20_000)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'description = "d"\nalgorithm = "gptq"\nbits = 4\nblock_size = 32\n[calibration]\nfile = "evil\\u001b.txt"\n'
    )
    done = edgephi("optimize", "phi3-nano", "--profile", "local", "--recipe", str(recipe))
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        "phi3-nano-mine: no bundle can be read again with these words of its recipe: control characters" in done.stderr
    )
    assert " hint: change them in " in done.stderr


def test_the_name_of_a_text_stands_in_a_manifest(tmp_path: Path) -> None:
    text = tmp_path / f"{ESCAPE}.txt"
    text.write_text("Words. " * 1000)
    with pytest.raises(ConfigError) as caught:
        read_eval_text(text, tokens=64, window_tokens=32)
    assert "no figures can have that name: characters that steer a terminal or hide" in caught.value.message


def test_a_synthesized_model_gets_a_name_that_can_be_built(tmp_path: Path) -> None:
    done = edgephi("models", "synth", "phi-3-tiny-gqa", "--output", str(tmp_path / ESCAPE))
    assert done.returncode == 3
    assert "no model can have that name" in done.stderr and not (tmp_path / ESCAPE).exists()


def test_a_manifest_that_nobody_could_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CorruptBundle, match="control characters"):
        write_bundle(tmp_path, manifest((), name=ESCAPE))
    assert not list(tmp_path.glob("manifest.json"))


def test_files_of_a_search_can_be_read_whatever_its_notes_say(tmp_path: Path) -> None:
    files = write_files(
        tmp_path,
        load_recipe("int4-rtn-b32"),
        load_profile("local"),
        RuntimeSettings(),
        context_tokens=None,
        notes=[f"{ESCAPE}\nbits = 2\r\u2028bits = 3\x85"],
    )
    for file in files:
        tomllib.loads(file.read_text())
        assert file.read_text().startswith(f"# {SHOWN}\n# bits = 2\\r\\u2028bits = 3\\x85\n")


@pytest.mark.parametrize(("name", "problem"), [("", "empty"), (" ", "empty"), ("x" * 256, "too long"), ("a", None)])
def test_names(name: str, problem: str | None) -> None:
    found = name_problem(name)
    assert found is None if problem is None else problem in (found or "")
