"""lm-eval's tasks on a real bundle; the harness itself is an optional extra."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.devices import target_at
from toolkit.agent.messages import Completed, Scored
from toolkit.agent.requests import ScoreTasks
from toolkit.bench import run_tasks
from toolkit.bench.lm_eval_tasks import Ask, answers, task_name
from toolkit.deploy import prepare
from toolkit.deploy.install import install
from toolkit.device import Device, connect
from toolkit.errors import AgentError, ConfigError

CHOICES = """\
task: nano_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DOCUMENTS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list:
  - metric: acc
"""


@pytest.fixture
def device(root: Path) -> Iterator[Device]:
    with connect(target_at(root)) as device:
        follow(install(build("int4-rtn-b32"), device))
        yield device


@pytest.fixture
def ask(device: Device) -> Iterator[Ask]:
    runtime = follow(prepare(device)).runtime
    with answers(device, ScoreTasks(release=build("int4-rtn-b32").id, runtime=runtime.lock)) as ask:
        yield ask


def score(ask: Ask, context: str, continuation: str) -> Scored:
    found = ask({"kind": "score", "context": context, "continuation": continuation})
    assert isinstance(found, Scored)
    return found


def text(ask: Ask, **question: Any) -> str:
    found = ask({"kind": "generate", **question})
    assert isinstance(found, Completed)
    return found.text


def test_likelihoods_add_up_and_tell_sense_from_nonsense(ask: Ask) -> None:
    context = "In the beginning God created the heaven and the"
    good, bad = score(ask, context, " earth"), score(ask, context, " banana")
    assert bad.log_likelihood < good.log_likelihood < 0
    assert good.greedy and not bad.greedy
    # Blanks between context and continuation count for the continuation, in whichever text they stand.
    assert score(ask, context + " ", "earth") == good
    both, second = score(ask, context, " earth. And"), score(ask, context + " earth", ". And")
    assert both.log_likelihood == pytest.approx(good.log_likelihood + second.log_likelihood, abs=0.05)


def test_a_text_beyond_the_context_is_read_in_windows(ask: Ask) -> None:
    verse = "And God said, Let there be light: and there was light. "
    short, long = score(ask, "", verse * 4), score(ask, "", verse * 400)
    assert math.isfinite(long.log_likelihood)
    assert long.log_likelihood < short.log_likelihood
    assert score(ask, verse * 400, "And God").log_likelihood < 0


def test_generation_ends_at_a_stop_text_or_a_length(ask: Ask) -> None:
    context = "And God said,"
    free = text(ask, context=context, max_tokens=12, until=[])
    assert free
    stop = free[len(free) // 2]
    assert text(ask, context=context, max_tokens=12, until=[stop]) == free[: free.index(stop)]
    assert len(text(ask, context=context, max_tokens=1, until=[])) < len(free)


def test_an_empty_text_has_its_answers_too(ask: Ask) -> None:
    """Given an empty text the runtime's tokenizer would end the process (SIGFPE)."""
    assert score(ask, "", "") == Scored(log_likelihood=0.0, greedy=True)
    assert text(ask, context="", max_tokens=4, until=[])
    assert score(ask, "", "And God said").log_likelihood < 0


def test_a_text_that_a_model_would_read_in_part_is_refused(ask: Ask) -> None:
    for question in (
        {"kind": "score", "context": "And", "continuation": " God\0 said"},
        {"kind": "generate", "context": "And God\ud800", "max_tokens": 4, "until": []},
    ):
        with pytest.raises(ConfigError, match=r"that no model can read .*: line 1, column"):
            ask(question)
    assert score(ask, "And", " God").log_likelihood < 0


def test_what_is_no_question_ends_the_conversation_with_its_reason(ask: Ask) -> None:
    with pytest.raises(AgentError, match="KeyError"):
        ask({"kind": "score"})


def test_a_task_file_names_its_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CHOICES)
    assert task_name(path) == "nano_choice"
    path.write_text("dataset_path: json\n")
    with pytest.raises(ConfigError, match="names no task"):
        task_name(path)
    with pytest.raises(ConfigError, match="cannot be read as a task"):
        task_name(tmp_path / "absent.yaml")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    documents = tmp_path / "documents.jsonl"
    pairs = [("In the beginning God created the heaven and the", "earth"), ("And God said, Let there be", "light")]
    lines = [json.dumps({"q": q, "choices": [answer, "banana"], "gold": 0}) for q, answer in pairs]
    documents.write_text("\n".join(lines))
    path = tmp_path / "nano_choice.yaml"
    path.write_text(CHOICES.replace("DOCUMENTS", str(documents)))
    return path


def test_a_task_of_the_users_own_runs_without_a_network(device: Device, task: Path) -> None:
    found = follow(run_tasks(device, build("int4-rtn-b32").id, [str(task)], None))
    assert [(score.task, score.metric, score.value) for score in found.scores] == [("nano_choice", "acc", 1.0)]
    assert json.loads(json.dumps(found.as_json()))["bundle_name"] == "phi3-nano-int4-rtn-b32"


def test_a_task_whose_documents_are_out_of_reach_is_told(
    device: Device, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.write_text(task.read_text().replace("documents.jsonl", "absent.jsonl"))
    with pytest.raises(ConfigError) as error:
        follow(run_tasks(device, build("int4-rtn-b32").id, [str(task)], None))
    assert "can't be loaded" in error.value.message
    assert "is there a network?" in (error.value.hint or "")


def test_a_task_whose_document_has_a_nul_is_refused_with_its_place(device: Device, task: Path) -> None:
    documents = task.parent / "documents.jsonl"
    documents.write_text(documents.read_text().replace("God created", r"God\u0000created"))
    with pytest.raises(ConfigError) as error:
        follow(run_tasks(device, build("int4-rtn-b32").id, [str(task)], None))
    assert error.value.message == (
        "the tasks' documents have a context that no model can read "
        "('In the beginning God\\x00created the heaven '…): line 1, column 21 is a NUL character, and "
        "a model would read nothing behind it"
    )
