"""toolkit.optimize.hub: model references, and the real hub client against a hub of our own."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.builds import follow
from toolkit.catalog.model import shipped_model
from toolkit.errors import BuildError, ConfigError
from toolkit.events import Event, Warning_, listening
from toolkit.optimize import resolve_model, resolve_shape
from toolkit.optimize.hub import local_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "some-org/nano"


@dataclass
class Hub:
    """The answers of the fake hub, and the paths that it was asked for."""

    folder: Path
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                hub.asked.append(self.path)
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.refusal is not None:
            status, code = self.refusal
            return status, {"X-Error-Code": code, "X-Error-Message": "no"}, b"{}"
        if "/tree/" in path:
            return 200, {"Content-Type": "application/json"}, json.dumps(self._tree()).encode()
        if path.startswith("/api/"):
            info = {
                "id": REPO,
                "sha": COMMIT,
                "siblings": [{"rfilename": n, "size": 1} for n in self._names()],
            }
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        body = (self.folder / path.rsplit("/", 1)[-1]).read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, body

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "oid": "0" * 40, "size": (self.folder / name).stat().st_size}
            for name in self._names()
        ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    model = shipped_model("phi3-nano")
    assert model is not None
    folder = tmp_path / "hub"
    folder.mkdir()
    for path in model.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "modeling_phi3.py").write_text("raise SystemExit('remote code ran')")
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_a_folder_has_a_separator() -> None:
    model = shipped_model("phi3-nano")
    assert model is not None
    Path("phi3-nano").symlink_to(model.folder)
    found = local_model("./phi3-nano")
    assert found is not None and found.folder == Path("phi3-nano")
    assert local_model(str(model.folder)) == model
    with pytest.raises(ConfigError) as caught:
        local_model("phi3-nano")
    assert caught.value.message == "'phi3-nano' is a model that edgephi knows, and a folder here"
    assert caught.value.hint == f"write ./phi3-nano for the folder; write {model.folder} for the other one"


def test_a_folder_by_its_bare_name() -> None:
    Path("v-shard").mkdir()
    with pytest.raises(ConfigError) as caught:
        local_model("v-shard")
    assert (caught.value.message, caught.value.hint) == ("no model 'v-shard'", "the folder of that name is ./v-shard")


def test_a_folder_that_is_called_like_a_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    published = "microsoft/Phi-3-mini-4k-instruct"
    for name in (published, "acme/tuned"):
        (isolated / name).mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        local_model(published)
    assert caught.value.message == f"'{published}' is a model of the hub, and a folder here"
    assert caught.value.hint == f"write ./{published} for the folder, {published}@main for the hub's model"
    assert local_model(f"{published}@main") is None
    said: list[Event] = []
    with listening(said.append), pytest.raises(ConfigError, match=r"no config\.json"):
        local_model("acme/tuned")
    folder = isolated / "acme/tuned"
    assert said == [Warning_(f"acme/tuned is the folder {folder}; acme/tuned@main is the hub's model of that name")]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--acme--tuned").mkdir(parents=True)
    with pytest.raises(ConfigError, match="'acme/tuned' is a model of the hub, and a folder here"):
        local_model("acme/tuned")


def test_shipped_name() -> None:
    found = follow(resolve_model("phi3-nano"))
    assert found == shipped_model("phi3-nano")


@pytest.mark.parametrize("ref", ["microsoft/Phi-3-mini-4k-instruct", "org/name@main", "org/name@refs/pr/1"])
def test_hub_id_is_on_no_disk(ref: str) -> None:
    assert local_model(ref) is None


@pytest.mark.parametrize("ref", ["phi3-nan", "./absent", "../absent", "~/absent", "/absent", "a/b/c", "org/"])
def test_what_is_no_model_gets_a_hint(ref: str) -> None:
    with pytest.raises(ConfigError) as caught:
        follow(resolve_model(ref))
    assert f"no model '{ref}'" in caught.value.message
    assert caught.value.hint is not None and "phi3-nano" in caught.value.hint


def test_suggestion_for_a_misspelt_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'phi3-nano'"):
        local_model("phi-3-nano")


def test_preset_is_not_a_model() -> None:
    with pytest.raises(ConfigError) as caught:
        local_model("phi-3-mini-4k")
    assert caught.value.hint is not None and "models synth phi-3-mini-4k" in caught.value.hint


def test_download_is_pinned_and_brings_no_code(hub: Hub) -> None:
    found = follow(resolve_model(REPO))
    assert (found.id, found.name, found.revision) == (REPO, "nano", COMMIT)
    assert (found.folder / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    assert not list(found.folder.glob("*.py"))
    assert not any(path.endswith(".py") for path in hub.asked)


def test_trusted_code_is_downloaded_with_the_model(hub: Hub) -> None:
    found = follow(resolve_model(REPO, trust_remote_code=True))
    assert (found.folder / "modeling_phi3.py").is_file()
    assert not found.remote_code, "a Phi-3 mini needs none of it"


@pytest.mark.usefixtures("no_hub")
def test_remote_code_is_refused_before_the_download() -> None:
    with pytest.raises(ConfigError, match=r"microsoft/Phi-3-small-8k-instruct: .* needs remote code"):
        follow(resolve_model("microsoft/Phi-3-small-8k-instruct"))


def test_a_model_without_a_tokenizer_is_refused_before_the_download(hub: Hub) -> None:
    (hub.folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError) as caught:
        follow(resolve_model(REPO))
    assert caught.value.message == f"{REPO}: missing tokenizer files: tokenizer.json"
    assert "the page of its ONNX version" in (caught.value.hint or "")
    assert not any("/resolve/" in path for path in hub.asked)
    assert follow(resolve_shape(REPO)).layers == 4, "a plan needs none"


def test_revision_is_asked_for(hub: Hub) -> None:
    follow(resolve_model(f"{REPO}@v2"))
    assert any(path.startswith(f"/api/models/{REPO}/revision/v2") for path in hub.asked)


@pytest.mark.usefixtures("hub")
def test_cached_model_is_used_when_the_hub_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = follow(resolve_model(REPO))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    events: list[Event] = []
    assert follow(resolve_model(REPO), events) == first
    assert any(isinstance(event, Warning_) and "can't be reached" in event.text for event in events)


@pytest.mark.usefixtures("no_hub")
def test_unreachable_hub() -> None:
    with pytest.raises(BuildError) as caught:
        follow(resolve_model("microsoft/Phi-3-mini-4k-instruct"))
    assert "microsoft/Phi-3-mini-4k-instruct: the model hub can't be reached" in caught.value.message
    assert caught.value.hint is not None and "give the folder" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "is gated"),
        (401, "GatedRepo", "is gated"),
        (404, "RepoNotFound", "no such model on the hub"),
        (404, "RevisionNotFound", "no revision 'main'"),
    ],
)
def test_refusals_of_the_hub_are_worded(hub: Hub, status: int, code: str, message: str) -> None:
    hub.refusal = (status, code)
    with pytest.raises(ConfigError, match=message):
        follow(resolve_model(REPO))


def test_only_config_json_is_fetched_for_a_shape(hub: Hub) -> None:
    shape = follow(resolve_shape(REPO))
    model = shipped_model("phi3-nano")
    assert model is not None and shape == model.shape
    files = [path for path in hub.asked if "/resolve/" in path]
    assert files and all(path.endswith("/config.json") for path in files)


def test_a_preset_needs_no_hub(no_hub: None) -> None:
    assert follow(resolve_shape("microsoft/Phi-3-mini-4k-instruct")).layers == 32


@pytest.mark.usefixtures("no_hub")
def test_a_shape_that_only_the_hub_knows() -> None:
    with pytest.raises(BuildError) as caught:
        follow(resolve_shape("some-org/unheard-of"))
    assert "some-org/unheard-of: the model hub can't be reached" in caught.value.message


def test_a_repository_without_a_configuration(hub: Hub) -> None:
    (hub.folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        follow(resolve_shape(REPO))
