"""A search that survives its process: Optuna's ask and tell over a journal file. The only importer of optuna."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.catalog.settings import RuntimeSettings
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.files import locked
from toolkit.jobs.tune.proposal import Point, Space

SEED = 3821
# A sampler that proposes nothing new in so many tries isn't asked again: one of the points left is drawn instead.
_SAME_AGAIN = 6
_JOURNAL, _LOCK = "study.journal", "lock"

State = Literal["measured", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """A settled trial. `facts` are the search's notes about it: figures, report, reason."""

    number: int
    point: Point
    state: State
    facts: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A trial that was asked for and has to be settled."""

    point: Point
    handle: Any


class Study:
    """The trials of one search, kept in a file. Use `open_study`."""

    def __init__(self, study: Any, space: Space) -> None:
        self._study = study
        self._space = space

    @property
    def trials(self) -> list[Trial]:
        """All settled trials, in their order; interrupted and repeated ones aren't among them."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            facts = trial.user_attrs.get("facts")
            if facts is not None:
                found.append(Trial(trial.number, _read(trial.params), trial.user_attrs["state"], facts))
        return found

    def ask(self, point: Point) -> Asked:
        """Begin a trial of this point."""
        self._study.enqueue_trial(_params(point))
        return self._next()

    def suggest(self, recipe: str) -> Asked | None:
        """Begin a trial of settings not tried yet with a recipe; None when all were tried."""
        seen = {trial.point for trial in self.trials}
        left = [point for point in self._space.points(recipe) if point not in seen]
        if not left:
            return None
        for _ in range(_SAME_AGAIN):
            self._study.enqueue_trial({"recipe": recipe})
            asked = self._next()
            if asked.point not in seen:
                return asked
            self._study.tell(asked.handle, state=_trial_state("failed"))
        return self.ask(random.Random(SEED + len(seen)).choice(left))

    def settle(self, asked: Asked, state: State, facts: dict[str, Any], value: float | None = None) -> None:
        """Note the outcome of a trial; `value` is the objective's value, for measured trials."""
        asked.handle.set_user_attr("state", state)
        asked.handle.set_user_attr("facts", facts)
        if state == "measured":
            self._study.tell(asked.handle, value)
        else:
            self._study.tell(asked.handle, state=_trial_state(state))

    def recall(self, name: str) -> Any:
        """The value that `remember` kept under this name; None when there is none."""
        return self._study.user_attrs.get(name)

    def remember(self, name: str, value: Any) -> None:
        self._study.set_user_attr(name, value)

    def give_up_interrupted(self) -> list[Point]:
        """End the trials that a killed process left unsettled; return the points that it was at work on."""
        while self._with_state("waiting"):
            self._study.tell(self._study.ask(), state=_trial_state("failed"))
        running = self._with_state("running")
        for trial in running:
            self._study.tell(trial.number, state=_trial_state("failed"))
        return [_read(trial.params) for trial in running if "ngram_size" in trial.params]

    def _with_state(self, name: str) -> list[Any]:
        found: list[Any] = self._study.get_trials(deepcopy=False, states=(_trial_state(name),))
        return found

    def _next(self) -> Asked:
        handle, space = self._study.ask(), self._space
        recipe = handle.suggest_categorical("recipe", space.recipes)
        threads = handle.suggest_categorical("threads", space.threads)
        chunk = handle.suggest_categorical("chunk_size", space.chunk_sizes)
        ngram = handle.suggest_categorical("ngram_size", space.ngram_sizes)
        tokens = handle.suggest_categorical("max_draft_tokens", space.draft_tokens) if ngram else None
        return Asked(_point(recipe, threads, chunk, ngram, tokens), handle)


@contextmanager
def open_study(folder: Path, space: Space, *, maximize: bool, fresh: bool = False) -> Iterator[Study]:
    """Open the study that lies in a folder, or a new one; `fresh` deletes the one that lies there.

    Raises ConfigError when another process works on it, or when its file is damaged.
    """
    with locked(folder / _LOCK, "runs the same search"):
        journal = folder / _JOURNAL
        if fresh:
            journal.unlink(missing_ok=True)
        _drop_half_written_line(journal)
        yield Study(_load(journal, maximize=maximize), space)


def _load(journal: Path, *, maximize: bool) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # No other process is at work here, so a lock that lies there was left by a dead one.
    Path(f"{journal}.lock").unlink(missing_ok=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
        study = optuna.create_study(
            storage=storage,
            study_name="edgephi",
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
    # Optuna replays the journal, and stumbles over a line that isn't its own in as many ways as there are.
    except Exception as exc:
        message = f"{shown(journal)}: not a study: {type(exc).__name__}: {str(exc)[:200]}"
        raise ConfigError(message, "--fresh starts the search anew") from exc
    # A resumed sampler must not draw again what its seed drew before.
    study.sampler = optuna.samplers.TPESampler(seed=SEED + len(study.trials), n_startup_trials=5)
    return study


def _drop_half_written_line(journal: Path) -> None:
    """Drop the part of a line that a kill in the middle of writing leaves; the next line would be appended to it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        journal.write_bytes(whole)


def _trial_state(name: str) -> Any:
    from optuna.trial import TrialState

    return {
        "failed": TrialState.FAIL,
        "pruned": TrialState.PRUNED,
        "running": TrialState.RUNNING,
        "waiting": TrialState.WAITING,
    }[name]


def _params(point: Point) -> dict[str, Any]:
    params = {"recipe": point.recipe, **point.settings.model_dump()}
    return {name: value for name, value in params.items() if value is not None}


def _read(params: dict[str, Any]) -> Point:
    return _point(*(params.get(name) for name in ("recipe", "threads", "chunk_size", "ngram_size", "max_draft_tokens")))


def _point(recipe: Any, threads: Any, chunk: Any, ngram: Any, tokens: Any) -> Point:
    settings = RuntimeSettings(threads=threads, chunk_size=chunk, ngram_size=ngram, max_draft_tokens=tokens)
    return Point(recipe, settings)
