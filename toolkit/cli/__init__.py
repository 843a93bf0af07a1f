"""The command line: a command translates words into calls of services and draws what they yield; the one error boundary
stands here. The package never does the work of a service, and no other package imports click or rich.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from toolkit import __version__
from toolkit.errors import ToolkitError

BUG, INTERRUPTED = 70, 130

# name -> (module:attribute, the one line that `--help` shows). The line stands here so that help imports
# nothing; a test holds it equal to the command's own.
COMMANDS = {
    "run": ("toolkit.cli.run:run", "Plan, optimize, deploy and bench a model on one or more targets."),
    "plan": ("toolkit.cli.plan:plan", "Predict size, memory and speed before anything is downloaded or built."),
    "optimize": ("toolkit.cli.optimize:optimize", "Quantize a model with Olive into a bundle."),
    "deploy": ("toolkit.cli.deploy:deploy", "Push a bundle to targets, verify it there and activate it."),
    "bench": ("toolkit.cli.bench:bench", "Measure latency, throughput and memory on a target."),
    "tune": ("toolkit.cli.tune:tune", "Search recipes and runtime settings by measuring them on a target."),
    "eval": ("toolkit.cli.evaluate:evaluate", "Compare a bundle's quality with the model it came from."),
    "chat": ("toolkit.cli.chat:chat", "Talk to the active release of a target."),
    "releases": ("toolkit.cli.releases:releases", "List the releases that are installed on a target."),
    "activate": ("toolkit.cli.releases:activate", "Make an installed release the active one."),
    "rollback": ("toolkit.cli.releases:rollback", "Go back to the release that was active before."),
    "verify": ("toolkit.cli.releases:verify", "Hash every file of every release on a target again."),
    "prune": (
        "toolkit.cli.releases:prune",
        "Remove old releases from a target, with the files and runtimes that only they needed.",
    ),
    "rollouts": ("toolkit.cli.rollouts:rollouts", "List and show the results of deploying to several targets."),
    "bundle": ("toolkit.cli.bundle:bundle", "List, show, sign, verify, push and pull built bundles."),
    "models": (
        "toolkit.cli.models:models",
        "Show what works: architecture × provider × recipe; look at models, or synthesize one.",
    ),
    "profiles": ("toolkit.cli.profiles:profiles", "List, show and validate device profiles."),
    "recipes": ("toolkit.cli.recipes:recipes", "List and show the ways to quantize."),
    "targets": ("toolkit.cli.targets:targets", "Manage the machines that bundles are pushed to."),
    "doctor": ("toolkit.cli.doctor:doctor", "Check this machine, or a target from its file to its active release."),
    "emulate": (
        "toolkit.cli.emulate:emulate",
        "Start emulated boards, to try a bundle for correctness without the hardware.",
    ),
    "inventory": ("toolkit.cli.inventory:inventory", "Print the targets by tag, or as Ansible's inventory."),
    "demo": ("toolkit.cli.demo:demo", "Run the whole loop on the reference model and a loopback device."),
    "completion": ("toolkit.cli.completion:completion", "Print the shell completion script."),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported only when one of them is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from toolkit.config import suggestion

            ctx.fail(f"no such command '{args[0]}'{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgephi")
def cli() -> None:
    """Quantize Phi-3 for an edge device, push it there, and measure its speed and quality there.

    \b
    edgephi run phi3-nano local              the whole loop on this machine, on the shipped model
    edgephi run microsoft/Phi-3-mini-4k-instruct pi5    the same on your board
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that `toolkit.errors` documents."""
    # Where stdout takes no Unicode, a dash in a table is an escape, as it is on stderr, and no failure.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    raise SystemExit(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="edgephi", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ToolkitError as exc:
        _complain(exc.message, exc.hint)
        return exc.exit_code
    except click.ClickException as exc:
        from toolkit.cli import render

        render.complain_of_usage(exc)
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", None)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has left (`| head`): nothing is wrong, and the exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        _complain(
            "this is a bug in edgephi",
            f"the traceback is in {_write_bug_log()}; please report it with that file",
        )
        return BUG


def _complain(message: str, hint: str | None) -> None:
    from toolkit.cli import render

    render.complain(message, hint)


def _write_bug_log() -> Path:
    import traceback

    from toolkit.config import data_dir

    path = data_dir() / "logs" / f"bug-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"edgephi {__version__}, Python {sys.version}\n\n{traceback.format_exc()}", encoding="utf-8")
    return path
