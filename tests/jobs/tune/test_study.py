"""The trials of a search, kept in a real Optuna journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPO
from tests.support.studies import DEFAULT, SPACE
from toolkit.errors import ConfigError
from toolkit.jobs.tune.proposal import Point
from toolkit.jobs.tune.study import open_study


def test_a_settled_trial_is_there_when_the_study_is_opened_again(tmp_path: Path) -> None:
    with open_study(tmp_path, SPACE, maximize=True) as study:
        asked = study.ask(DEFAULT)
        assert asked.point == DEFAULT
        study.settle(asked, "measured", {"report": "r.json"}, 3.0)
        study.settle(study.ask(Point("b", DEFAULT.settings)), "failed", {"reason": "no"})
        study.remember("quality of a", {"ppl": 31.0})
    with open_study(tmp_path, SPACE, maximize=True) as study:
        assert [(trial.point, trial.state) for trial in study.trials] == [
            (DEFAULT, "measured"),
            (Point("b", DEFAULT.settings), "failed"),
        ]
        assert study.trials[0].facts == {"report": "r.json"}
        assert study.recall("quality of a") == {"ppl": 31.0}
        assert study.recall("quality of b") is None


def test_suggestions_never_repeat_and_end(tmp_path: Path) -> None:
    with open_study(tmp_path, SPACE, maximize=True) as study:
        study.settle(study.ask(DEFAULT), "measured", {}, 1.0)
        while asked := study.suggest("a"):
            study.settle(asked, "measured", {}, float(asked.point.settings.threads or 0))
        points = [trial.point for trial in study.trials]
    assert len(points) == len(set(points)) == len(SPACE.points("a")) == 8
    assert set(points) == set(SPACE.points("a"))


def test_an_interrupted_trial_is_given_back_once(tmp_path: Path) -> None:
    with open_study(tmp_path, SPACE, maximize=True) as study:
        study.ask(DEFAULT)
    with open_study(tmp_path, SPACE, maximize=True) as study:
        assert study.trials == []
        assert study.give_up_interrupted() == [DEFAULT]
        assert study.give_up_interrupted() == []


def test_a_process_killed_while_it_writes_leaves_a_usable_study(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, os.getcwd())\n"
        "from tests.support.studies import DEFAULT, SPACE; from toolkit.jobs.tune.study import open_study\n"
        "with open_study(Path(sys.argv[1]), SPACE, maximize=True) as study:\n"
        "    study.settle(study.ask(DEFAULT), 'measured', {'n': 1}, 1.0); study.ask(DEFAULT)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    repo = REPO
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=repo, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # As if a kill had cut the last line and left the lock of a write.
    with (tmp_path / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code": 4, "wor')
    (tmp_path / "study.journal.lock").touch()
    with open_study(tmp_path, SPACE, maximize=True) as study:
        assert study.give_up_interrupted() == [DEFAULT]
        study.settle(study.ask(DEFAULT), "measured", {"n": 2}, 1.0)
    with open_study(tmp_path, SPACE, maximize=True) as study:
        assert [trial.facts for trial in study.trials] == [{"n": 1}, {"n": 2}]


def test_two_processes_cannot_search_the_same(tmp_path: Path) -> None:
    with (
        open_study(tmp_path, SPACE, maximize=True),
        pytest.raises(ConfigError) as caught,
        open_study(tmp_path, SPACE, maximize=True),
    ):
        pass
    assert caught.value.message == "this process runs the same search"


def test_fresh_forgets(tmp_path: Path) -> None:
    with open_study(tmp_path, SPACE, maximize=True) as study:
        study.settle(study.ask(DEFAULT), "measured", {}, 1.0)
    with open_study(tmp_path, SPACE, maximize=True, fresh=True) as study:
        assert study.trials == []


def test_a_damaged_journal_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("no json\nnor here\n")
    with pytest.raises(ConfigError) as caught, open_study(tmp_path, SPACE, maximize=True):
        pass
    assert "study.journal: not a study" in caught.value.message
    assert caught.value.hint == "--fresh starts the search anew"


def test_optuna_is_imported_only_when_a_study_is_opened() -> None:
    code = "import sys, toolkit.jobs.tune.study, toolkit.jobs.tune.search; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
