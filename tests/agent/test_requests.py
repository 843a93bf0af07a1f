"""Requests: host and agent know the same operations and fields; the JSON of requests."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from toolkit.agent import requests
from toolkit.agent.answers import Acknowledged, Answer
from toolkit.agent.device import main, protocol
from toolkit.agent.requests import (
    OMITTED,
    Bench,
    Chat,
    CheckLoad,
    FindMissing,
    Provision,
    Pull,
    Request,
    RollBack,
)
from toolkit.catalog import Workload
from toolkit.catalog.settings import RuntimeSettings
from toolkit.errors import AgentError
from toolkit.metrics.report import Run

ROLE = Path(__file__).parents[2] / "ansible" / "roles" / "edgephi_bundle" / "tasks"
REQUESTS: dict[str, type[Request[Any]]] = {
    found.op: found
    for found in vars(requests).values()
    if isinstance(found, type) and issubclass(found, Request) and hasattr(found, "op")
}


def test_every_operation_of_the_agent_has_one_request() -> None:
    assert set(REQUESTS) == set(main.OPS)
    named = [name for name, found in vars(requests).items() if found in REQUESTS.values()]
    assert len(named) == len(main.OPS)


@pytest.mark.parametrize("op", main.OPS)
def test_the_agent_reads_all_that_a_request_may_say_and_nothing_else(op: str) -> None:
    operation, said = main.OPS[op], fields(REQUESTS[op])
    assert {field.name for field in said if field.default is MISSING} == set(operation.needs)
    assert {field.name for field in said if field.default is OMITTED} == set(operation.takes)
    assert len(said) == len(operation.needs) + len(operation.takes)


def reads(op: str) -> set[str]:
    """The keys of a request that the functions of an operation's part read."""
    places = [main.OPS[op].place, main.CHILD_OPS.get(op, "")]
    texts = [(Path(main.__file__).parent / f"{place.partition('.')[0]}.py").read_text() for place in places if place]
    return set(re.findall(r'request(?:\[|\.get\()"(\w+)"', "".join(texts)))


@pytest.mark.parametrize("op", main.OPS)
def test_what_an_operation_lists_stands_in_its_part(op: str) -> None:
    """The keys in IN_RUNTIME are left out: shared parts read them, which start a process or load a model."""
    operation = main.OPS[op]
    assert {*operation.needs, *operation.takes} - set(main.IN_RUNTIME) <= reads(op)


def test_both_sides_speak_the_same_protocol() -> None:
    assert RollBack().message("me")["protocol"] == protocol.PROTOCOL


def test_every_answer_belongs_to_a_request() -> None:
    assert {found._answer for found in REQUESTS.values() if found is not Bench} == set(Answer.__subclasses__())
    assert Bench._answer is Run


def test_what_is_omitted_is_not_in_the_json_and_none_is() -> None:
    assert RollBack().message("anna@laptop") == {"protocol": 1, "op": "rollback", "by": "anna@laptop"}
    assert FindMissing(artifacts=[], release="a").message("me") == {
        "protocol": 1,
        "op": "missing",
        "by": "me",
        "artifacts": [],
        "release": "a",
    }
    assert "limit_bytes_per_s" not in Pull(artifacts=[], sources=[]).message("me")
    assert Pull(artifacts=[], sources=[], limit_bytes_per_s=None).message("me")["limit_bytes_per_s"] is None
    assert Chat(sampling=None).message("me")["sampling"] is None


def test_a_message_is_json_with_settings_and_workload_as_tables() -> None:
    workload = Workload(name="tiny", description="", prompt_tokens=8, generate_tokens=2)
    settings = RuntimeSettings(threads=2)
    request = Bench(workload=workload, settings=settings, prompt="In", cold=True, quality_text=None, runtime="0" * 16)
    told = json.loads(json.dumps(request.message("me")))
    assert told.pop("workload") == workload.model_dump()
    assert told.pop("settings") == settings.model_dump() and "chunk_size" in settings.model_dump()
    assert told == {
        "protocol": 1,
        "op": "bench",
        "by": "me",
        "runtime": "0" * 16,
        "prompt": "In",
        "cold": True,
        "quality_text": None,
    }
    packages = json.loads(json.dumps(Provision(lock="0", packages=("a==1",)).message("me")))["packages"]
    assert packages == ["a==1"]


def test_an_answer_is_read_as_what_its_request_names() -> None:
    found = CheckLoad(prompt="In", tokens=2).read({"load_ns": 5, "generated_tokens": 2, "text": "x"}, "here")
    assert (found.load_ns, found.generated_tokens) == (5, 2)
    with pytest.raises(AgentError, match=r"here: the agent's answer to 'check' can't be right: load_ns"):
        CheckLoad(prompt="In", tokens=2).read({"load_ns": "5", "generated_tokens": 2}, "here")


def test_what_nobody_reads_of_an_answer_may_be_anything() -> None:
    for op in ("install", "activate", "discard", "deactivate", "hold", "chat", "score"):
        assert REQUESTS[op](**dict.fromkeys(main.OPS[op].needs, "")).read({"later": 1}, "here") == Acknowledged()


def test_the_roles_own_request_is_the_one_of_this_module() -> None:
    """The role takes all its other requests from the kit."""
    texts = [path.read_text() for path in sorted(ROLE.glob("*.yml"))]
    asked = [json.loads(line) for text in texts for line in re.findall(r"stdin: '(\{.*\})'", text)]
    assert asked == [RollBack().message("Ansible")]
