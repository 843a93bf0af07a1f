"""toolkit.optimize.job: from a request to everything that a build needs, each part determined once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import MODEL, follow, profile
from toolkit.catalog import load_recipe
from toolkit.catalog.model import open_model, shipped_model
from toolkit.errors import ConfigError
from toolkit.events import Event, Step
from toolkit.optimize import BuildOptions, BuildRequest, hub, job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = shipped_model(MODEL)
    assert model is not None
    return Path(shutil.copytree(model.folder, tmp_path / "mine"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of `plan` and `open_model`, by name and in order."""
    made: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            made.append(name)
            return function(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(job, "plan")
    count(hub, "open_model")
    return made


def request(model: str) -> BuildRequest:
    return BuildRequest(model, load_recipe("int4-rtn-b32"), profile())


def test_a_model_is_opened_once_and_planned_once(folder: Path, calls: list[str]) -> None:
    events: list[Event] = []
    made = follow(job.make_job(request(str(folder))), events)
    assert calls == ["open_model", "plan"]
    assert made.name == "mine-int4-rtn-b32"
    assert [event.text.split()[:2] for event in events if isinstance(event, Step)] == [["plan", "mine-int4-rtn-b32:"]]


def test_a_model_that_is_open_is_not_opened_again(folder: Path, calls: list[str]) -> None:
    opened = replace(request(str(folder)), model=open_model(folder))
    made = follow(job.make_job(opened))
    job.workflow_for(opened)
    assert calls == ["plan"]
    assert made == follow(job.make_job(request(str(folder))))


def test_what_does_not_fit_is_refused_before_the_weights_are_hashed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "hash_model", None)
    small = profile().model_copy(
        update={"hardware": profile().hardware.model_copy(update={"ram_bytes": 100_000_000, "ram_reserved_bytes": 0})}
    )
    with pytest.raises(ConfigError, match=r"mine-int4-rtn-b32 needs 1\d\d MiB of memory"):
        follow(job.make_job(replace(request(str(folder)), profile=small)))


def test_a_hub_model_that_is_not_what_was_planned_is_planned_again(
    folder: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made before the download; the manifest has to describe the downloaded model."""

    def resolve_model(ref: str, *, trust_remote_code: bool) -> Any:
        yield Step(f"fetch {ref}")
        return open_model(folder, id=ref)

    monkeypatch.setattr(job, "resolve_model", resolve_model)
    mini = replace(request("microsoft/Phi-3-mini-4k-instruct"), options=BuildOptions(context_tokens=512, force=True))
    made = follow(job.make_job(mini))
    assert calls == ["plan", "plan"]
    model = open_model(folder)
    assert made.fit == job.plan(model.shape, mini.recipe, mini.profile, 512)


def test_workflow_for_a_hub_id_downloads_nothing() -> None:
    workflow = job.workflow_for(request("microsoft/Phi-3-mini-4k-instruct"))
    assert workflow["input_model"]["model_path"] == "microsoft/Phi-3-mini-4k-instruct"
