"""deploy --gate, and from registries, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, seed_cache
from tests.support.commands import edgephi
from tests.support.fleets import switched_off, write_targets
from tests.support.registries import needs_registry, registry
from toolkit.emulate.sshd import free_port


@pytest.fixture
def limited(local: Path, tmp_path: Path) -> Path:
    """Target `local` with a profile whose limits a test writes."""
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    return folder / "local.toml"


def limits(path: Path, text: str) -> None:
    path.write_text(f'schema_version = 1\nextends = "local"\ndescription = "with limits"\n\n[limits]\n{text}\n')


def test_within_its_limits_it_becomes_active(limited: Path) -> None:
    limits(limited, 'max_memory = "4 GiB"\nmin_decode_tps = 0.01')
    done = edgephi("deploy", "phi3-nano-int4-rtn-b32", "local", "--gate")
    assert done.returncode == 0, done.stderr
    assert "≤ 4 GiB" in done.stdout and "≥ 0.01 tok/s" in done.stdout
    assert done.stdout.rstrip().endswith("is active")


def test_beyond_them_it_does_not_and_the_exit_code_is_ten(limited: Path) -> None:
    limits(limited, 'max_memory = "4 GiB"\nmin_decode_tps = 99999')
    assert edgephi("deploy", "phi3-nano-int4-rtn-b32", "local").returncode == 0
    done = edgephi("deploy", "phi3-nano-int4-rtn-b32", "local", "--gate")
    assert done.returncode == 10
    assert "FAILED" in done.stdout and "is active" not in done.stdout
    assert "doesn't hold the limits of its profile: min_decode_tps is 99999, measured" in done.stderr
    assert "local: deactivated; there is no earlier release" in done.stderr
    again = edgephi("deploy", "phi3-nano-int4-rtn-b32", "local", "--gate", "--json")
    assert again.returncode == 10
    answer = json.loads(again.stdout)
    assert (answer["passed"], answer["active"], answer["active_release"]) == (False, False, None)
    assert answer["release"] == build("int4-rtn-b32").id
    assert [(check["limit"], check["ok"]) for check in answer["checks"]] == [
        ("max_memory", True),
        ("min_decode_tps", False),
    ]


def test_without_limits_there_is_no_gate(limited: Path) -> None:
    done = edgephi("deploy", "phi3-nano-int4-rtn-b32", "local", "--gate")
    assert done.returncode == 3
    assert "error: profile 'local' has no limits to check" in done.stderr
    assert "[limits]" in done.stderr


@needs_registry
def test_a_bundle_in_a_registry_is_pulled_by_the_device(local: Path, tmp_path: Path) -> None:
    int4 = build("int4-rtn-b32")
    with registry(tmp_path / "registry") as there:
        done = edgephi("bundle", "push", str(int4.path), there.reference("models/nano:v1"))
        assert done.returncode == 0, done.stderr
        mirror = f"http://127.0.0.1:{free_port()}"
        done = edgephi("deploy", there.reference("models/nano:v1"), "local", "--mirror", mirror)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"local: {int4.manifest.name} ({int4.id[:12]}) is active\n"
        assert f"warning: local: {mirror[7:]} isn't asked any more: no answer: Connection refused" in done.stderr
        assert json.loads((local / "current.json").read_text())["release"] == int4.id
        again = edgephi("deploy", str(int4.path), "local", "--from", there.reference("models/nano"), "--json")
        assert json.loads(again.stdout)["active"] is True
        gone = edgephi("deploy", there.reference("models/nano:v9"), "local")
        assert gone.returncode == 8 and "no such repository or tag" in gone.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (
            ("oci://localhost:1/x", "local", "--from", "oci://localhost:1/x"),
            2,
            "--from is for a bundle on this machine",
        ),
        (("some-bundle", "local", "--mirror", "https://m"), 2, "go with a bundle in a registry, or with --from"),
        (("some-bundle", "local", "--plain-http"), 2, "go with a bundle in a registry, or with --from"),
        (("some-bundle", "local", "--from", "oci://localhost:1/x:v1"), 3, "is more than a repository"),
        (("some-bundle", "local", "--from", "oci://localhost:1/x", "--mirror", "m"), 3, "'m' is no mirror"),
        (("oci://localhost:1/x", "local"), 8, "no answer: Connection refused"),
    ],
)
def test_sources_that_make_no_sense(local: Path, args: tuple[str, ...], code: int, says: str) -> None:
    done = edgephi("deploy", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("deploy", "phi3-nano-int4-rtn-b32", "off"),
        ("deploy", "phi3-nano-int4-rtn-b32", "@lab"),
        ("run", "phi3-nano", "off"),
    ],
)
def test_the_client_that_is_asked_for_is_the_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    seed_cache(tmp_path / "cache", "int4-rtn-b32")
    folder = tmp_path / "config" / "targets"
    write_targets(folder, [switched_off("off")])
    monkeypatch.setenv("PATH", str(tmp_path))
    done = edgephi(*command, "--transport", "openssh")
    assert done.returncode == 3, done.stderr
    assert "target 'off': transport openssh: the OpenSSH client isn't installed on this machine" in done.stderr
    done = edgephi(*command, "--transport", "paramiko")
    assert done.returncode == 7, done.stderr
    assert "connection refused" in done.stderr
