"""Conversations with the reference model in the real runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builds import bundle as build, follow
from tests.support.chat_templates import PHI3_MEDIUM, RAISES, put_template
from tests.support.devices import target_at, target_over
from tests.support.profiles import write
from tests.support.servers import needs_sshd
from toolkit.deploy import deploy
from toolkit.deploy.releases import activate
from toolkit.device import Device, connect
from toolkit.emulate import PrivateSshd
from toolkit.errors import AgentError
from toolkit.events import Event, Token, Warning_, drain
from toolkit.jobs import Conversation, converse

QUESTION = "And it came to pass in those days, that there went out a decree."


@pytest.fixture
def device(root: Path) -> Iterator[Device]:
    with connect(target_at(root)) as device:
        follow(deploy(build("fp32"), device))
        yield device


def answers(conversation: Conversation, *questions: str, max_new_tokens: int = 12) -> list[str]:
    follow(conversation.wait_until_loaded())
    return [follow(conversation.say(text, max_new_tokens=max_new_tokens)).text for text in questions]


def test_tokens_arrive_one_by_one_and_make_the_answer(device: Device) -> None:
    with converse(device) as conversation:
        assert follow(conversation.wait_until_loaded()) > 0
        events: list[Event] = []
        turn = follow(conversation.say(QUESTION, max_new_tokens=12), events)
    pieces = [event.text for event in events if isinstance(event, Token)]
    assert len(pieces) > 3
    assert "".join(pieces) == turn.text
    assert turn.ttft_ms is not None and turn.ttft_ms > 0
    assert turn.generated_tokens <= 12


def test_the_kept_cache_changes_no_answer(device: Device) -> None:
    """A second turn that reuses the first turn's KV cache gives the same answer as one that reads everything again."""
    with converse(device) as conversation:
        first, second = answers(conversation, QUESTION, "And Moses said,")
    with converse(device) as conversation:
        assert answers(conversation, QUESTION) == [first]
    with converse(device) as conversation:
        assert answers(conversation, QUESTION, "And Moses said,") == [first, second]
    with converse(device) as conversation:
        assert answers(conversation, "And Moses said,") != [second]


def test_sampling_with_a_seed_is_repeatable_and_not_greedy(device: Device) -> None:
    sampling: dict[str, float | bool] = {"do_sample": True, "temperature": 1.5, "random_seed": 7}
    texts = []
    for chosen in (sampling, sampling, None):
        with converse(device, chosen) as conversation:
            texts += answers(conversation, QUESTION, max_new_tokens=24)
    assert texts[0] == texts[1] != texts[2]


def test_a_conversation_longer_than_the_context_forgets_its_oldest_turns(device: Device) -> None:
    long_question = " ".join([QUESTION] * 20)
    events: list[Event] = []
    with converse(device) as conversation:
        follow(conversation.wait_until_loaded())
        for _ in range(4):
            follow(conversation.say(long_question, max_new_tokens=4), events)
    assert any(isinstance(event, Warning_) and "forgotten" in event.text for event in events)


def test_a_stopped_answer_is_kept_so_far_and_the_conversation_goes_on(device: Device) -> None:
    sampling: dict[str, float | bool] = {"do_sample": True, "temperature": 5.0, "random_seed": 7}
    with converse(device, sampling) as conversation:
        follow(conversation.wait_until_loaded())
        events: list[Event] = []

        def stop_at_the_third(event: Event) -> None:
            events.append(event)
            if len(events) == 3:
                conversation.stop()

        turn = drain(conversation.say(QUESTION, max_new_tokens=900), stop_at_the_third)
        assert turn.interrupted and not turn.stopped
        assert 3 <= turn.generated_tokens < 300
        assert turn.text == "".join(event.text for event in events if isinstance(event, Token))
        after = follow(conversation.say("And Moses said,", max_new_tokens=12))
    assert after.generated_tokens == 12 and not after.interrupted
    assert after.prompt_tokens > turn.prompt_tokens + turn.generated_tokens


def test_a_stop_that_comes_too_late_stops_no_other_answer(device: Device) -> None:
    with converse(device) as conversation:
        first = answers(conversation, QUESTION)
        conversation.stop()
        second = follow(conversation.say("And Moses said,", max_new_tokens=12))
        assert not second.interrupted
    with converse(device) as conversation:
        assert answers(conversation, QUESTION, "And Moses said,") == [*first, second.text]


@pytest.mark.parametrize("template", [PHI3_MEDIUM, RAISES])
def test_a_system_message_without_a_role_reaches_the_model_and_that_is_said(
    device: Device, root: Path, template: str
) -> None:
    put_template(root / "releases" / build("fp32").id, template)
    events: list[Event] = []
    with converse(device) as conversation:
        follow(conversation.wait_until_loaded())
        turn = follow(conversation.say(QUESTION, max_new_tokens=12, system="Speak of Moses."), events)
        follow(conversation.say("And then?", max_new_tokens=4), events)
    assert [event.text for event in events if isinstance(event, Warning_)] == [
        "this model's chat template has no system role: the system message stands before the first user turn"
    ]
    with converse(device) as conversation:
        assert answers(conversation, f"Speak of Moses.\n\n{QUESTION}") == [turn.text]


def test_a_system_message_is_not_forgotten_with_the_oldest_turns(device: Device, root: Path) -> None:
    put_template(root / "releases" / build("fp32").id, PHI3_MEDIUM)
    events: list[Event] = []
    lengths = []
    with converse(device) as conversation:
        follow(conversation.wait_until_loaded())
        for system in ("Speak of Moses.", None, None):  # the context has room for one such question
            said = conversation.say(" ".join([QUESTION] * 30), max_new_tokens=4, system=system)
            lengths.append(follow(said, events).prompt_tokens)
    assert sum("forgotten" in event.text for event in events if isinstance(event, Warning_)) == 2
    with converse(device) as conversation:
        follow(conversation.wait_until_loaded())
        without = follow(conversation.say(" ".join([QUESTION] * 30), max_new_tokens=4)).prompt_tokens
    assert lengths[0] == lengths[1] == lengths[2] > without + 3


@pytest.mark.parametrize("text", ["And\0God", "And\ud800God"])
def test_text_that_no_tokenizer_takes_is_refused_on_the_device_too(device: Device, text: str) -> None:
    with converse(device) as conversation, pytest.raises(AgentError, match="given to the model: line 1, column 4 is"):
        answers(conversation, text)


def test_a_prompt_longer_than_the_context_is_refused(device: Device) -> None:
    with (
        converse(device) as conversation,
        pytest.raises(AgentError, match="the planned context leaves room for"),
    ):
        answers(conversation, " ".join([QUESTION] * 200))


def test_nothing_active_is_an_error(root: Path) -> None:
    with (
        connect(target_at(root)) as device,
        converse(device) as conversation,
        pytest.raises(AgentError) as error,
    ):
        answers(conversation, "hello")
    assert error.value.message == "here: nothing is active here"


@needs_sshd
def test_leaving_ends_the_process_on_the_device(root: Path, tmp_path: Path) -> None:
    import subprocess
    import time

    with PrivateSshd(tmp_path) as server, connect(target_over(server, root)) as device:
        follow(deploy(build("fp32"), device))
        with converse(device) as conversation:
            answers(conversation, QUESTION)
        deadline = time.monotonic() + 10
        while subprocess.run(["pgrep", "-f", f"{root}/agent"], capture_output=True).returncode == 0:
            assert time.monotonic() < deadline, "the agent is still running"
            time.sleep(0.1)


def test_settings_of_the_profile_change_speed_and_no_answer(device: Device, root: Path) -> None:
    with converse(device) as conversation:
        plain = answers(conversation, QUESTION, "And Moses said,", max_new_tokens=24)
    settings = {"threads": 1, "chunk_size": 16, "ngram_size": 2, "max_draft_tokens": 4}
    write("drafting", {"schema_version": 1, "extends": "local", "runtime": settings})
    with connect(target_at(root).model_copy(update={"profile": "profiles/drafting.toml"})) as other:
        follow(activate(other, build("fp32").id))
        with converse(other) as conversation:
            assert answers(conversation, QUESTION, "And Moses said,", max_new_tokens=24) == plain
