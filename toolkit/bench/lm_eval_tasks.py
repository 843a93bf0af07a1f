"""lm-eval's tasks on a bundle, here or on a device: the harness asks, the bundle's own runtime answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from toolkit.agent.messages import Completed, Event, Result, Scored
from toolkit.agent.requests import ScoreTasks
from toolkit.bench.run import installed
from toolkit.config import shown
from toolkit.deploy import Prepared, prepare
from toolkit.device import Device
from toolkit.device.patience import wait_for_end
from toolkit.errors import AgentError, ConfigError, MissingExtra, ToolkitError
from toolkit.events import Progress, Service, Step
from toolkit.untrusted import read_text_file, reason, text_problem

Ask = Callable[[dict[str, Any]], Scored | Completed]
S = TypeVar("S", Scored, Completed)

MAX_NEW_TOKENS = 256
_POLL_S = 0.2


@dataclass(frozen=True)
class Score:
    """One metric of one task; `error` is the harness's standard error, None where it has none."""

    task: str
    metric: str
    value: float
    error: float | None


@dataclass(frozen=True)
class TaskResults:
    """The scores of a release. `limit` is the number of documents of each task, None for all."""

    bundle_id: str
    bundle_name: str
    target: str
    limit: int | None
    scores: tuple[Score, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def require_harness() -> None:
    """Raise MissingExtra unless lm-eval is installed."""
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval tasks need the 'lm-eval' extra", "pip install 'edgephi[lm-eval]'")


def run_tasks(
    device: Device,
    bundle_id: str | None,
    tasks: Sequence[str],
    limit: int | None,
    prepared: Prepared | None = None,
) -> Service[TaskResults]:
    """Run tasks by name, or by the path of their YAML file, on an installed release; the active one by default.

    Documents come from the Hugging Face hub unless a task reads files. Raises ConfigError for tasks that can't be
    loaded, MissingExtra without the harness, AgentError when the runtime fails.
    """
    require_harness()
    prepared = prepared or (yield from prepare(device))
    manifest, release = installed(device, bundle_id)
    yield Step(f"load the tasks {', '.join(tasks)}")
    loaded = _load_tasks(tasks)
    yield Step(f"{device.target.name}: ask {manifest.name}")
    asked: SimpleQueue[None] = SimpleQueue()
    request = ScoreTasks(release=release, runtime=prepared.runtime.lock)
    with answers(device, request) as answer, ThreadPoolExecutor(1) as pool:

        def ask(question: dict[str, Any]) -> Scored | Completed:
            asked.put(None)
            return answer(question)

        # The harness runs in a thread, because it calls back while this service has events to yield.
        running = pool.submit(_evaluate, ask, loaded, limit)
        count = 0
        while not running.done():
            try:
                asked.get(timeout=_POLL_S)
            except Empty:
                continue
            count += 1
            yield Progress("questions", count, None)
        results = running.result()
    return TaskResults(release, manifest.name, device.target.name, limit, tuple(_scores(results)))


def _load_tasks(tasks: Sequence[str]) -> Any:
    from lm_eval.tasks import TaskManager

    files = {task: Path(task) for task in tasks if task.endswith((".yaml", ".yml"))}
    names = [task_name(files[task]) if task in files else task for task in tasks]
    folders = sorted({str(file.parent.resolve()) for file in files.values()})
    try:
        return TaskManager(include_path=folders or None).load(names)
    # The hub, the file system and the harness raise all kinds of errors for a missing task: the words are theirs.
    except Exception as exc:
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ConfigError(
            f"the tasks {', '.join(tasks)} can't be loaded: {reason}",
            "documents come from the Hugging Face hub: is there a network? A task's YAML file may name local files",
        ) from exc


def task_name(path: Path) -> str:
    """The name of the task that a YAML file defines. Raises ConfigError."""
    try:
        text = read_text_file(path)
    except (OSError, ValueError) as exc:
        message = f"{shown(path)}: cannot be read as a task: {reason(exc)}"
        raise ConfigError(message, "name a task, or a YAML file of one") from exc
    found = re.search(r"^task:\s*[\"']?([\w./-]+)", text, re.MULTILINE)
    if found is None:
        raise ConfigError(f"{path}: names no task", "an lm-eval task's file has a line like `task: my_task`")
    return found[1]


@contextmanager
def answers(device: Device, request: ScoreTasks) -> Iterator[Ask]:
    """A conversation with the agent about a release: one question, one answer."""
    process = device.agent.start(request)
    messages = device.agent.messages(process, request)

    def ask(question: dict[str, Any]) -> Scored | Completed:
        _refuse_broken(question)
        process.send(json.dumps(question).encode() + b"\n")
        return _next_answer(device, messages)

    try:
        yield ask
    finally:
        process.kill()
        wait_for_end(process)


def _refuse_broken(question: dict[str, Any]) -> None:
    """Raise ConfigError for a question with a text that no tokenizer takes."""
    for name in ("context", "continuation"):
        text = question.get(name, "")
        if problem := text_problem(text):
            raise ConfigError(
                f"the tasks' documents have a {name} that no model can read ({text[:40]!r}…): {problem}",
                "take that character out of the documents",
            )


def _next_answer(device: Device, messages: Iterator[Event | Result]) -> Scored | Completed:
    for said in messages:
        if isinstance(said, Scored | Completed):
            return said
    raise AgentError(f"{device.target.name}: the agent stopped answering", "run it again")


def _evaluate(ask: Ask, loaded: Any, limit: int | None) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    try:
        found = evaluate(lm=language_model(ask), task_dict=loaded, limit=limit, log_samples=False)
    except (ToolkitError, KeyboardInterrupt):
        raise
    except Exception as exc:
        raise ConfigError(
            f"lm-eval ended with {type(exc).__name__}: {exc}", "does the task suit a text model?"
        ) from exc
    results: dict[str, Any] = found["results"]
    return results


def language_model(ask: Ask) -> Any:
    """A bundle as the harness's LM: every request becomes a question to the bundle's runtime."""
    from lm_eval.api.model import LM

    class BundleLM(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
            return [self._score(*request.args) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
            return [self._score("", request.args[0])[0] for request in requests]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
            return [self._generate(*request.args) for request in requests]

        def _score(self, context: str, continuation: str) -> tuple[float, bool]:
            found = _of_kind(Scored, ask({"kind": "score", "context": context, "continuation": continuation}))
            return found.log_likelihood, found.greedy

        def _generate(self, context: str, options: dict[str, Any]) -> str:
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            count = options.get("max_gen_toks", MAX_NEW_TOKENS)
            question = {"kind": "generate", "context": context, "until": stops, "max_tokens": count}
            return _of_kind(Completed, ask(question)).text

    return BundleLM()


def _of_kind(kind: type[S], found: Scored | Completed) -> S:
    if not isinstance(found, kind):
        raise AgentError("the agent answered another question than it was asked", "run it again")
    return found


def _scores(results: dict[str, Any]) -> Iterator[Score]:
    """The scores in the harness's `{task: {"acc,none": …, "acc_stderr,none": …}}`; only numbers are scores."""
    for task, values in results.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if "_stderr" in metric or not isinstance(value, int | float) or not filtered:
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            yield Score(task, name, float(value), float(error) if isinstance(error, int | float) else None)
