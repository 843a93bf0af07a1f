"""toolkit.cli.options: options that a command gets as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from toolkit.catalog import Target
from toolkit.catalog.workload import load_workload
from toolkit.cli import options
from toolkit.cli.run import run
from toolkit.cli.tune import tune
from toolkit.deploy import Delivery
from toolkit.events import Service
from toolkit.jobs import LoopOptions
from toolkit.jobs.run import LoopRow
from toolkit.jobs.tune import Question, SearchOptions
from toolkit.optimize import BuildOptions

got: list[object] = []


def _both(*, build: BuildOptions, delivery: Delivery, also: str = "absent") -> tuple[BuildOptions, Delivery, str]:
    return build, delivery, also


@click.command()
@click.argument("name")
@click.option("--context", type=int)
@click.option("--force", is_flag=True)
@options.offline
@options.report
@options.gathered(build=options.build_options, delivery=options.delivery, both=_both, printed=options.Printed)
def command(name: str, both: tuple[BuildOptions, Delivery, str], printed: options.Printed) -> None:
    """Say what came."""
    got[:] = [name, *both, printed]


def test_options_come_as_values_and_what_a_command_has_not_got_by_default(tmp_path: Path) -> None:
    arguments = ["nano", "--context", "7", "--force", "--wheels", str(tmp_path), "--markdown"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert got == [
        "nano",
        BuildOptions(context_tokens=7, force=True),
        Delivery(wheels=tmp_path, force=True),
        "absent",
        options.Printed(as_json=False, markdown=True, output=None),
    ]


def test_a_command_keeps_its_help() -> None:
    said = CliRunner().invoke(command, ["--help"]).output
    assert "Say what came." in said
    assert said.index("--context") < said.index("--force") < said.index("--wheels") < said.index("--json")


def test_every_option_of_run_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, list[str], Sequence[str], LoopOptions]] = []

    def run_service(
        model: str, targets: list[Target], recipes: Sequence[str], loop: LoopOptions
    ) -> Service[list[LoopRow]]:
        given.append((model, [target.name for target in targets], recipes, loop))
        yield from ()
        return []

    monkeypatch.setattr("toolkit.jobs.run.run", run_service)
    words = "phi3-nano local -r fp32 --context 9 --calibration c.txt -w quick --offline --limit-rate 2MB/s"
    flags = "--force --trust-remote-code --fresh --eval"
    done = CliRunner().invoke(run, f"{words} {flags}".split())
    assert done.exit_code == 0, done.exception
    loop = LoopOptions(
        load_workload("quick"),
        BuildOptions(9, Path("c.txt"), force=True, trust_remote_code=True),
        Delivery(offline=True, force=True),
        fresh=True,
        evaluate=True,
        limit_bytes_per_s=2e6,
    )
    assert given == [("phi3-nano", ["local"], ("fp32",), loop)]


def test_every_option_of_tune_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def tune_service(*arguments: object) -> None:
        given.extend(arguments[2:])
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.jobs.tune.search.tune", tune_service)
    words = "phi3-nano local --objective ttft --max-ppl-increase 2% --budget 5m --trials 4 -r fp32 --block-size 16"
    more = "-w quick --context 9 --calibration c.txt --no-quality --online --trust-remote-code --fresh --out o"
    CliRunner().invoke(tune, f"{words} {more}".split())
    question = Question(load_workload("quick"), "ttft", ("fp32",), (16,), 0.02)
    build = BuildOptions(9, Path("c.txt"), trust_remote_code=True)
    assert given == [
        question,
        SearchOptions(
            budget_s=300,
            trials=4,
            quality=False,
            build=build,
            delivery=Delivery(offline=False),
            fresh=True,
            out=Path("o"),
        ),
    ]
