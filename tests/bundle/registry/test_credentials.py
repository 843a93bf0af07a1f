"""The sources of credentials: files of docker and podman, and helpers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.bundle.registry.credentials import Credential, find_credential
from toolkit.errors import ConfigError, RegistryError


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def login(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def write(path: Path, **config: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Install a credential helper called `test`, which keeps its arguments and its input."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker-credential-test"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/argv\ncat > {tmp_path}/asked\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_files_nobody_is_known() -> None:
    assert find_credential("ghcr.io", "a/b") is None


def test_the_more_special_name_wins(tmp_path: Path) -> None:
    auths = {"ghcr.io": login("all:1"), "ghcr.io/team": login("team:2:3"), "https://quay.io": login("q:4")}
    write(tmp_path / "docker/config.json", auths=auths)
    assert find_credential("ghcr.io", "other/x") == Credential("all", "1")
    assert find_credential("ghcr.io", "team/x") == Credential("team", "2:3")
    assert find_credential("quay.io", "x") == Credential("q", "4")
    assert find_credential("ghcr.io:5000", "team/x") is None


def test_podmans_file_comes_first_and_dockers_home_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "docker/config.json", auths={"a": login("docker:1"), "b": login("docker:2")})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(tmp_path / "auth.json", auths={"a": login("podman:3")})))
    assert find_credential("a", "x") == Credential("podman", "3")
    assert find_credential("b", "x") == Credential("docker", "2")
    monkeypatch.delenv("DOCKER_CONFIG")
    write(Path.home() / ".docker/config.json", auths={"b": login("home:4")})
    assert find_credential("b", "x") == Credential("home", "4")


def test_docker_hub_under_its_old_name(tmp_path: Path) -> None:
    write(tmp_path / "docker/config.json", auths={"https://index.docker.io/v1/": login("hub:1")})
    assert find_credential("docker.io", "a/b") == Credential("hub", "1")


def test_identity_tokens(tmp_path: Path) -> None:
    write(tmp_path / "docker/config.json", auths={"azurecr.io": login("0:") | {"identitytoken": "tok"}})
    assert find_credential("azurecr.io", "x") == Credential("<token>", "tok", is_token=True)


def test_a_helper_is_asked_and_told_nothing_in_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, """echo '{"ServerURL": "x", "Username": "anna", "Secret": "s"}'""")
    write(tmp_path / "docker/config.json", credHelpers={"ghcr.io": "test"}, auths={"quay.io": {}}, credsStore="test")
    assert find_credential("ghcr.io", "a/b") == Credential("anna", "s")
    assert ((tmp_path / "argv").read_text(), (tmp_path / "asked").read_text()) == ("get\n", "ghcr.io")
    assert find_credential("quay.io", "x") == Credential("anna", "s")
    assert find_credential("never.logged.in", "x") is None


def test_helpers_that_know_nothing_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "docker/config.json", credHelpers={"a": "test", "b": "missing", "c": "../evil"})
    helper(tmp_path, monkeypatch, "echo 'credentials not found in native keychain'; exit 1")
    assert find_credential("a", "x") is None
    with pytest.raises(RegistryError, match="docker-credential-missing: FileNotFoundError"):
        find_credential("b", "x")
    with pytest.raises(ConfigError, match=r"'\.\./evil' is no credential helper"):
        find_credential("c", "x")
    (tmp_path / "bin/docker-credential-test").write_text("#!/bin/sh\necho locked >&2; exit 2\n")
    with pytest.raises(RegistryError, match="docker-credential-test: exit code 2: locked"):
        find_credential("a", "x")
    (tmp_path / "bin/docker-credential-test").write_text("#!/bin/sh\necho '{}'\n")
    with pytest.raises(RegistryError, match="its answer isn't a credential"):
        find_credential("a", "x")


@pytest.mark.parametrize("text", ["{", '{"auths": {"a": {"auth": "c2VjcmV0"}}}', '{"auths": {"a": {"auth": "?"}}}'])
def test_damaged_files_are_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "docker/config.json")
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        find_credential("a", "x")
    assert str(path) in error.value.message and "secret" not in error.value.message
    assert "docker login" in str(error.value.hint)


@pytest.mark.parametrize("text", ["[]", '{"auths": []}', '{"auths": {"a": {}}}', '{"auths": {"a": {"auth": ""}}}'])
def test_files_without_anybody(tmp_path: Path, text: str) -> None:
    write(tmp_path / "docker/config.json").write_text(text)
    assert find_credential("a", "x") is None


def test_a_secret_isnt_printed() -> None:
    assert "s3cret" not in repr(Credential("anna", "s3cret"))
