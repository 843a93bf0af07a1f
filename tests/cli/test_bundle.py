"""edgephi bundle list, show, verify, push, pull."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support import builds
from tests.support.figures import figures
from tests.support.fleets import write_targets
from tests.support.registries import needs_registry, registry
from toolkit.bundle import Bundle, find_bundle
from toolkit.bundle.store import record_quality
from toolkit.catalog import Target
from toolkit.cli import main
from toolkit.metrics import HELD_OUT


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run `edgephi bundle …`; returns exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["bundle", *args])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


@pytest.fixture
def stored(tmp_path: Path) -> Bundle:
    return builds.seed_cache(tmp_path / "cache", "int4-rtn-b32")


def test_nothing_built_yet(run) -> None:  # type: ignore[no-untyped-def]
    assert run("list")[:2] == (0, "")
    assert json.loads(run("list", "--json")[1]) == []


def test_list(run, stored: Bundle) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = run("list")
    assert code == 0
    assert stored.manifest.name in out and stored.id[:12] in out
    assert stored.id in {entry["id"] for entry in json.loads(run("list", "--json")[1])}


def test_show_by_prefix_and_name(run, stored: Bundle) -> None:  # type: ignore[no-untyped-def]
    _, by_prefix, _ = run("show", stored.id[:8], "--json")
    _, by_name, _ = run("show", stored.manifest.name, "--json")
    assert by_prefix == by_name
    assert json.loads(by_name)["manifest"] == stored.manifest.model_dump(mode="json")
    assert "model.onnx.data" in run("show", stored.id)[1]


def test_verify(run, stored: Bundle) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run("verify", stored.id[:6])
    assert (code, out) == (0, "")
    assert "files are whole" in err
    assert json.loads(run("verify", stored.id, "--json")[1])["verified"] is True


def test_verify_of_a_damaged_bundle_ends_with_6(run, stored: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    damaged = Path(shutil.copytree(stored.path, tmp_path / "damaged"))
    (damaged / "model.onnx").unlink()
    code, _, err = run("verify", str(damaged))
    assert code == 6
    assert "model.onnx: missing" in err


def test_unknown_bundle_ends_with_3(run) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("show", "abcdef")
    assert code == 3
    assert "unknown bundle 'abcdef'" in err


def test_show_tells_the_figures_of_an_evaluated_bundle(run, stored: Bundle) -> None:  # type: ignore[no-untyped-def]
    evaluated = record_quality(find_bundle(stored.manifest.name), HELD_OUT, figures())
    assert "quality, held-out" in (shown := run("show", evaluated.id)[1])
    assert "perplexity 20.40 (+2.00%), KLD 0.0100, top-1 90.0%, token match 50.0%; 4088 tokens on x86_64" in shown


@needs_registry
def test_push_and_pull(run, stored: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with registry(tmp_path / "registry") as there:
        code, out, err = run("push", stored.id[:8], there.reference("models/nano:v1"))
        assert code == 0, err
        assert re.fullmatch(rf"oci://{there.host}/models/nano@sha256:[0-9a-f]{{64}}\n", out)
        _, again, err = run("push", stored.id[:8], there.reference("models/nano:v1"), "--json")
        pushed = json.loads(again)
        assert (pushed["id"], pushed["sent_bytes"], pushed["digest"]) == (stored.id, 0, out.strip().rpartition("@")[2])
        code, out, err = run("pull", out.strip(), "--into", "pulled")
        assert code == 0, err
        assert out.split() == [stored.manifest.name, stored.id, "pulled"]
        assert run("verify", "./pulled")[0] == 0
        _, out, _ = run("pull", there.reference("models/nano:v1"), "--json")
        assert json.loads(out)["id"] == stored.id
        code, out, err = run("pull", there.reference("models/nano:v2"))
        assert (code, out) == (8, "")
        assert "models/nano:v2: no such repository or tag" in err and "hint: " in err


def test_references_that_are_none(run, stored: Bundle) -> None:  # type: ignore[no-untyped-def]
    for args in (("push", stored.id, "registry/x"), ("pull", "oci://registry")):
        code, _, err = run(*args)
        assert code == 3 and "write it like oci://registry.example.com/models/phi3:v1" in err


def test_export_for_targets_of_a_tag(run, stored: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pi = Target(name="pi1", host="pi1.local", profile="raspberry-pi-5-8gb", tags=("lab",))
    write_targets(tmp_path / "config" / "targets", [pi])
    code, _, err = run(
        "export", stored.id[:8], str(tmp_path / "kit"), "--for", "@lab", "-p", "local", "--python", "3.11"
    )
    assert code == 0
    assert err.endswith(f"({stored.id[:12]}) for local, raspberry-pi-5-8gb\n")
    profiles = json.loads((tmp_path / "kit" / "kit.json").read_text())["profiles"]
    assert {name: list(part["runtimes"]) for name, part in profiles.items()} == {
        "local": ["3.11"],
        "raspberry-pi-5-8gb": ["3.11"],
    }


def test_export_is_refused_where_a_target_would_refuse(run, stored: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config" / "targets").mkdir(parents=True)
    table = 'schema_version = 1\nhost = "pi"\nprofile = "local"\nallowed_signers = "nobody.signers"\n'
    (tmp_path / "config" / "targets" / "strict.toml").write_text(table)
    assert run("export", stored.id[:8], str(tmp_path / "kit"), "--for", "strict")[0] == 9
    assert not (tmp_path / "kit").exists()


def test_export_for_nobody(run, stored: Bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run("export", stored.id[:8], str(tmp_path / "kit"))
    assert (code, "--for @TAG" in err) == (2, True)
