"""emulate start, stop, list, remove: boards without the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.emulate import State


@click.group(invoke_without_command=True)
@click.pass_context
def emulate(ctx: click.Context) -> None:
    """Start emulated boards, to try a bundle for correctness without the hardware.

    \b
    edgephi emulate start raspberry-pi-5
    edgephi run phi3-nano emulated-raspberry-pi-5 --offline
    edgephi emulate stop emulated-raspberry-pi-5

    A board is Debian for arm64 with the CPU and the memory that its programs expect to see, reached over real SSH. Its
    measurements are those of the emulator: their rows are marked, and say nothing about the hardware.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


def _complete_boards(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from toolkit.emulate import list_boards

    words = [word for board in list_boards() for word in (board.name, *board.profiles)]
    return [word for word in words if word.startswith(incomplete)]


def _complete_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from toolkit.emulate import list_states

    return [state.name for state in list_states() if state.name.startswith(incomplete)]


@emulate.command()
@click.argument("board", shell_complete=_complete_boards)
@click.option("--name", help="Name of the board and of its target.  [default: emulated-BOARD]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of its sshd on 127.0.0.1.  [default: a free one]")
@options.as_json
def start(board: str, name: str | None, port: int | None, as_json: bool) -> None:
    """Start an emulated board and write a target that reaches it.

    BOARD is raspberry-pi-5 or raspberry-pi-4, or the profile of one with another size of memory. The board runs on
    after this command has ended. A stop and a new start keep everything that is installed on it. The command needs root
    and Debian's packages mmdebstrap and qemu-user-static. The first start makes the board's Debian, in a minute.
    """
    from toolkit.cli import render
    from toolkit.emulate import find_board
    from toolkit.emulate.boards import start as start_service

    kind, profile = find_board(board)
    started = render.follow(start_service(kind, profile, name or f"emulated-{board}", port))
    if as_json:
        render.print_json(_as_json(started.state) | {"target": str(started.path)})
        return
    render.line(f"{started.state.name}: emulated, on 127.0.0.1:{started.state.port}; target {started.path}")
    render.note(f"edgephi run phi3-nano {started.state.name} --offline")


@emulate.command()
@click.argument("name", shell_complete=_complete_names)
@options.as_json
def stop(name: str, as_json: bool) -> None:
    """Stop an emulated board and everything that runs on it; its installed files stay."""
    from toolkit.cli import render
    from toolkit.emulate.boards import stop as stop_service

    stopped = stop_service(name)
    if as_json:
        render.print_json({"name": name, "running": False, "stopped": stopped})
    else:
        render.line(f"{name}: stopped" if stopped else f"{name}: wasn't running")


@emulate.command("list")
@options.as_json
def list_(as_json: bool = False) -> None:
    """List emulated boards, whether they run, and what they take on disk."""
    from toolkit.cli import render
    from toolkit.emulate import list_states
    from toolkit.emulate.boards import disk_bytes

    states = list_states()
    if as_json:
        render.print_json([_as_json(state) | {"disk_bytes": disk_bytes(state.name)} for state in states])
        return
    rows = [
        [
            state.name,
            state.board,
            state.profile,
            "running" if state.running else "stopped",
            f"127.0.0.1:{state.port}",
            render.size(disk_bytes(state.name)),
        ]
        for state in states
    ]
    render.table(("name", "board", "profile", "state", "address", "disk"), rows)
    if not rows:
        render.note("no emulated boards; edgephi emulate start raspberry-pi-5")


@emulate.command()
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=_complete_names)
@click.option("--all", "everything", is_flag=True, help="All boards, and the Debian that they share.")
@options.as_json
def remove(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Stop and delete emulated boards, with their files and their targets."""
    from toolkit.cli import render
    from toolkit.emulate import list_states
    from toolkit.emulate.boards import remove as remove_service
    from toolkit.emulate.rootfs import remove_root_file_systems

    if bool(names) == everything:
        raise click.UsageError("name the boards, or --all")
    removed = [state.name for state in list_states()] if everything else list(names)
    for name in removed:
        remove_service(name)
    if everything:
        remove_root_file_systems()
    if as_json:
        render.print_json({"removed": removed, "shared": everything})
    else:
        render.line(f"removed: {', '.join(removed) or 'no board'}{'; and their shared Debian' if everything else ''}")


def _as_json(state: State) -> dict[str, Any]:
    return state.model_dump(mode="json", exclude={"started_ticks"}) | {"running": state.running}
