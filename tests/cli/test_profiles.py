from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from toolkit.catalog.profile import profile_json_schema
from toolkit.cli import main
from toolkit.config import shipped_dir


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["profiles", *argv])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def broken(name: str = "broken") -> None:
    Path("profiles").mkdir(exist_ok=True)
    text = 'schema_version = 1\nextends = "raspberry-pi-5-8gb"\n[runtime]\nthread = 4\n'
    Path(f"profiles/{name}.toml").write_text(text, encoding="utf-8")


BROKEN = "profiles/broken.toml: runtime.thread: unknown key (did you mean 'threads'?)"


@pytest.mark.parametrize("argv", [(), ("list",)])
def test_list(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (row,) = [line for line in out.splitlines() if "raspberry-pi-5-8gb" in line]
    for cell in ("aarch64", "8 GiB", "cpu", "int4-rtn-b32", "2048", "untested on hardware", "shipped"):
        assert cell in row


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    broken()
    assert run("list", "--json") == 0
    out, err = capsys.readouterr()
    found = {profile["name"]: profile for profile in json.loads(out)}
    assert found["raspberry-pi-4-4gb"]["hardware"]["ram_bytes"] == 4 * 2**30
    assert found["raspberry-pi-4-4gb"]["source"] == "shipped"
    assert found["broken"] == {
        "name": "broken",
        "path": str(Path.cwd() / "profiles/broken.toml"),
        "source": "user",
        "error": BROKEN,
    }
    assert BROKEN in err


def test_list_shows_a_broken_file_and_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    broken()
    assert run("list") == 0
    out, err = capsys.readouterr()
    assert "broken" in out and "raspberry-pi-5-16gb" in out
    assert err == f"warning: {BROKEN}\n"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "raspberry-pi-5-16gb") == 0
    out = capsys.readouterr().out
    assert "hardware.ram " in out and "16 GiB" in out
    assert "untested on hardware" in out
    assert "onnxruntime-genai==0.18.0" in out


def test_show_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "jetson-agx-orin-64gb", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["hardware"]["memory_bandwidth_bytes_per_s"] == 204.8e9
    assert shown["runtime"]["provider"] == "cuda"
    assert shown["limits"]["min_decode_tps"] is None


def test_show_toml_is_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "raspberry-pi-5-16gb", "--toml") == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text)["hardware"]["ram"] == "16 GiB"
    Path("mine.toml").write_text(text, encoding="utf-8")
    assert run("validate", "mine.toml") == 0


def test_show_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "raspbery-pi-5-8gb") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: unknown profile 'raspbery-pi-5-8gb' (did you mean 'raspberry-pi-5-8gb'?)\n"
        " hint: edgephi profiles list shows them\n"
    )


def test_validate_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(list(shipped_dir("profiles").glob("*.toml")))
    assert all(line.endswith(": ok") for line in out.splitlines())
    assert err == ""


def test_validate_lists_every_error(capsys: pytest.CaptureFixture[str]) -> None:
    broken()
    broken("worse")
    assert run("validate", "profiles", "local", "nowhere.toml") == 3
    out, err = capsys.readouterr()
    assert out == "local: ok\n"
    assert err.splitlines() == [
        f"error: {BROKEN}",
        "       " + BROKEN.replace("broken", "worse"),
        "       nowhere.toml: cannot be read: No such file or directory",
    ]


def test_validate_reaches_files_that_another_hides(capsys: pytest.CaptureFixture[str]) -> None:
    broken("local")
    assert run("validate") == 3
    assert "local.toml: ok" in capsys.readouterr().out


def test_validate_json(capsys: pytest.CaptureFixture[str]) -> None:
    broken()
    assert run("validate", "profiles", "--json") == 3
    assert json.loads(capsys.readouterr().out) == [{"path": "profiles/broken.toml", "error": BROKEN}]


def test_validate_an_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert run("validate", "empty") == 3
    assert capsys.readouterr().err == "error: empty: no *.toml in this folder\n"


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == profile_json_schema()
