"""Options that several commands share, and the values that commands take them as."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from toolkit.deploy import Delivery
    from toolkit.optimize import BuildOptions

F = TypeVar("F", bound=Callable[..., Any])

_GRANTED = "edgephi.granted"


def gathered(**groups: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gather options into values: each keyword names a parameter of the command and the function that makes its value.

    The function gets the options, and the values of earlier keywords, that its own parameters are named after; its
    other parameters keep their defaults. The decorator stands below the options that it gathers.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*args: Any, **given: Any) -> Any:
            used: set[str] = set()
            for name, make in groups.items():
                taken = inspect.signature(make).parameters.keys() & given.keys()
                given[name] = make(**{key: given[key] for key in taken})
                used |= taken
            return command(*args, **{key: value for key, value in given.items() if key not in used})

        return call

    return decorate


def build_options(
    *,
    context: int | None = None,
    calibration: Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> BuildOptions:
    """The build's options, from --context, --calibration, --force and --trust-remote-code."""
    from toolkit.optimize import BuildOptions

    return BuildOptions(context, calibration, force, trust_remote_code)


def delivery(*, offline: bool | None = None, wheels: Path | None = None, force: bool = False) -> Delivery:
    """The delivery's options, from --offline, --wheels and --force."""
    from toolkit.deploy import Delivery

    return Delivery(offline, wheels, force)


@dataclass(frozen=True)
class Link:
    """The connection to a target: the most that it may send, and the client that carries it."""

    limit_bytes_per_s: float | None
    client: str | None


@dataclass(frozen=True)
class Pull:
    """The options that say from where devices pull a bundle's files."""

    pull_from: str | None
    mirrors: tuple[str, ...]
    plain_http: bool


@dataclass(frozen=True)
class Printed:
    """The form that reports are printed in, and the file they go to."""

    as_json: bool
    markdown: bool
    output: Path | None


def typed(*names: str) -> list[str]:
    """The options with these parameter names that stand in the command as typed: `--top-p`, `--no-record`."""
    ctx = click.get_current_context()
    found = []
    for param in ctx.command.params:
        if param.name in names and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
            spellings = param.opts if ctx.params[param.name] is not False else param.secondary_opts
            found.append(max(spellings, key=len))
    return found


def say_idle(names: Sequence[str], why: str) -> None:
    """Warn of those options with these parameter names that were typed, and have no effect for the reason `why`."""
    found = typed(*names)
    if found:
        from toolkit.cli import render

        render.warn(f"{' and '.join(found)} {'have' if len(found) > 1 else 'has'} no effect {why}")


def names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Shell completion by the names of `kind` files: profiles, targets, recipes, workloads."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        from toolkit.catalog.toml import find_toml

        return [name for name in find_toml(kind) if name.startswith(incomplete)]

    return complete


def parsed(name: str) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """A callback that reads an option with a parser of toolkit.units."""

    def parse(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
        from toolkit import units

        if text is None:
            return None
        try:
            return float(getattr(units, name)(text))
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc

    return parse


def several_targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Shell completion by the names of targets and their `@tags`."""
    from toolkit.catalog import Target, list_targets
    from toolkit.catalog.target import MARK, target_groups

    # bash ends a word at every @ and hands over `@` and `lab` for `@lab`; it replaces both.
    given = ctx.params.get(param.name or "") or ()
    word = MARK + incomplete if tuple(given)[-1:] == (MARK,) else incomplete
    targets = list_targets()
    groups = target_groups(target for target in targets if isinstance(target, Target))
    words = [*(target.name for target in targets), *(MARK + tag for tag in groups)]
    return [known for known in words if known.startswith(word)]


def as_json(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def report(command: F) -> F:
    """Add the options that `Printed` gathers."""
    command = click.option(
        "--output",
        "-o",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write to a file (.json or .md) instead.",
    )(command)
    command = click.option("--markdown", is_flag=True, help="Print the table as Markdown.")(command)
    return as_json(command)


def offline(command: F) -> F:
    """Add the options for bringing a runtime to a target."""
    command = unlocked_packages(command)
    command = click.option(
        "--offline/--online",
        default=None,
        help="Push the runtime's wheels from here, or let the device get them from its package index.  [default: from "
        "here when the device reaches no index]",
    )(command)
    return click.option(
        "--wheels",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of wheels to prefer over the index; implies --offline.",
    )(command)


def limit_rate(command: F) -> F:
    """Add the option that limits the rate of pushes."""
    return click.option(
        "--limit-rate",
        "limit_bytes_per_s",
        callback=parsed("parse_rate"),
        metavar="RATE",
        help="Send at most this much: 500 kB/s, 2 MB/s.",
    )(command)


def trust_folder(command: F) -> F:
    """Add the option that trusts the working folder's files before the command reads any."""

    def trust(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            from toolkit.catalog.trust import trust_folder as remember
            from toolkit.cli import render

            if names := remember():
                render.note(f"trusted in this folder, as they are now: {', '.join(names)}")

    return click.option(
        "--trust-folder",
        is_flag=True,
        expose_value=False,
        callback=trust,
        is_eager=True,
        help="Trust the profiles, targets and other files of this folder, as `edgephi trust` does.",
    )(command)


def unlocked_packages(command: F) -> F:
    """Add the option that consents to packages of which no hash is locked."""
    return click.option(
        "--unlocked-packages",
        is_flag=True,
        expose_value=False,
        callback=_grant,
        help="Install packages whose hashes aren't locked, as those of a profile of your own, without asking.",
    )(command)


def _grant(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta.setdefault(_GRANTED, set()).add(param.opts[0])


def is_granted(option: str) -> bool:
    """Tell if this command was given an option that answers a question beforehand."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and option in ctx.meta.get(_GRANTED, ())


def transport(command: F) -> F:
    """Add the option that chooses the SSH client."""
    return click.option(
        "--transport",
        "client",
        type=click.Choice(["auto", "paramiko", "openssh"]),
        help="SSH client: the built-in one (paramiko), this machine's ssh (openssh), or the built-in one and ssh for "
        "further connections of a push (auto). Default: the target's.",
    )(command)


def plain_http(command: F) -> F:
    """Add the option to speak to a registry without TLS."""
    return click.option(
        "--plain-http", is_flag=True, help="Speak to the registry without TLS, as always to one on this machine."
    )(command)


def source(command: F) -> F:
    """Add the options that `Pull` gathers."""
    command = click.option(
        "--from",
        "pull_from",
        metavar="oci://HOST/REPOSITORY",
        help="Repository from which the devices pull the bundle's files; push the bundle there first.",
    )(command)
    command = click.option(
        "--mirror",
        "mirrors",
        multiple=True,
        metavar="URL",
        help="Mirror of the registry, asked before it: https://HOST[:PORT][/NAMESPACE]. Repeatable, in order.",
    )(command)
    return plain_http(command)


def rollout(command: F) -> F:
    """Add the options of a rollout to several devices."""

    def canaries(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        from toolkit.jobs.rollout.record import canary_count

        try:
            canary_count(value, 0)
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc
        return value

    decorators = (
        click.option("--parallel", type=click.IntRange(1), default=8, show_default=True, help="Devices at once."),
        click.option(
            "--canary",
            default="1",
            show_default=True,
            metavar="N|N%",
            callback=canaries,
            help="Devices to begin with, the first ones named; if one of them fails, no later wave starts.",
        ),
        click.option(
            "--max-failures",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Largest number of failed devices with which a next wave starts.",
        ),
        click.option("--dry-run", is_flag=True, help="Show the waves; no device is contacted."),
        click.option("--fresh", is_flag=True, help="Start the rollout anew instead of resuming it."),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def trust_remote_code(command: F) -> F:
    """Add the one option that lets a model's own code run."""
    return click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Let Python files that come with the model run here, for architectures that need them (Phi-3-small).",
    )(command)


def calibration(command: F) -> F:
    """Add the option for the user's own calibration text."""
    return click.option(
        "--calibration",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Text for the recipes that calibrate: .jsonl with a 'text' in each line, or .txt. Default: a shipped one.",
    )(command)


def evaluate(command: F) -> F:
    """Add the option to measure a built bundle's quality."""
    text = "Compare the bundle with its fp32 original, built if need be, and keep the quality figures in the bundle."
    return click.option("--eval", "evaluate", is_flag=True, help=text)(command)


def workload(command: F) -> F:
    return click.option(
        "--workload",
        "-w",
        default="default",
        show_default=True,
        shell_complete=names("workloads"),
        help="Workload name, or the path of a TOML file.",
    )(command)
