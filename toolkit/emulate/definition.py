"""Kinds of boards as data, and the files in /proc and /sys by which programs on a board know it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from toolkit.catalog import Profile, load_profile
from toolkit.catalog.record import Record
from toolkit.catalog.toml import find_toml, parse_table, read_toml, unknown_name
from toolkit.catalog.trust import admit

# The file in which a board says that it is emulated, and by what: the agent's probe reads it.
MARKER = "run/edgephi/emulated"
# The share of its memory that a board has available just after its start.
_AVAILABLE_SHARE = 0.92


class CpuInfo(Record):
    """The fields of a core in /proc/cpuinfo, as text."""

    features: str
    implementer: str
    variant: str
    part: str
    revision: int
    bogomips: str


class Board(Record):
    """A kind of board. `name` is the file's stem; `profiles` are the device classes that it comes in."""

    name: str = Field(exclude=True)
    path: Path = Field(exclude=True)
    description: str
    profiles: tuple[str, ...] = Field(min_length=1)
    model: str
    compatible: tuple[str, ...]
    memory_share: float = Field(gt=0, le=1)
    cores: int = Field(ge=1)
    qemu_cpu: str
    cpuinfo: CpuInfo


def list_boards() -> list[Board]:
    """Every kind of board, by name. Raises ConfigError for a file that can't be used."""
    return [_load(name, path) for name, path in find_toml("boards").items()]


def find_board(word: str) -> tuple[Board, Profile]:
    """The board that a word means, and its profile: a board's own name stands for its first profile.

    Raises ConfigError that names the boards there are.
    """
    boards = {board.name: board for board in list_boards()}
    known = {name: board for board in boards.values() for name in board.profiles} | boards
    if word not in known:
        raise unknown_name("board", word, known, f"boards that can be emulated: {', '.join(known)}")
    board = known[word]
    admit("boards", board.path, {})
    return board, load_profile(board.profiles[0] if word in boards else word)


def system_files(board: Board, ram_bytes: int, available_bytes: int | None, emulator: str) -> dict[str, str]:
    """The texts of the files by which programs know the board, by path.

    `available_bytes` is the memory that this machine has left: the board mustn't promise more.
    """
    cpus = "0" if board.cores == 1 else f"0-{board.cores - 1}"
    tree = "sys/firmware/devicetree/base"
    cpu_lists = {f"sys/devices/system/cpu/{name}": f"{cpus}\n" for name in ("possible", "present", "online")}
    return {
        "proc/cpuinfo": cpuinfo(board),
        "proc/meminfo": meminfo(round(ram_bytes * board.memory_share), available_bytes),
        **cpu_lists,
        f"{tree}/model": f"{board.model}\0",
        f"{tree}/compatible": "".join(f"{name}\0" for name in board.compatible),
        MARKER: f"{emulator}\n",
    }


def cpuinfo(board: Board) -> str:
    """/proc/cpuinfo of all cores and, as arm64 boards have it, the model after them."""
    cpu = board.cpuinfo
    cores = [
        f"processor\t: {number}\n"
        f"BogoMIPS\t: {cpu.bogomips}\n"
        f"Features\t: {cpu.features}\n"
        f"CPU implementer\t: {cpu.implementer}\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: {cpu.variant}\n"
        f"CPU part\t: {cpu.part}\n"
        f"CPU revision\t: {cpu.revision}\n\n"
        for number in range(board.cores)
    ]
    return "".join(cores) + f"Model\t\t: {board.model}\n"


def meminfo(total_bytes: int, available_bytes: int | None) -> str:
    """/proc/meminfo of a board that does nothing; it doesn't change while the board runs."""
    available = round(total_bytes * _AVAILABLE_SHARE)
    if available_bytes is not None:
        available = min(available, available_bytes)
    fields = {"MemTotal": total_bytes, "MemFree": available, "MemAvailable": available, "SwapTotal": 0, "SwapFree": 0}
    return "".join(f"{name + ':':<16}{size // 1024:>8} kB\n" for name, size in fields.items())


def _load(name: str, path: Path) -> Board:
    return parse_table(Board, read_toml(path), path, given={"name": name, "path": path})
