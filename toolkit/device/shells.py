"""Command lines: from a list of words to a line that a server's shell takes apart into the same words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Literal

from toolkit.device.transport import Process, finish
from toolkit.errors import ConfigError

Shell = Literal["posix", "cmd", "powershell"]

# Each shell prints this line differently: cmd.exe fills in the first variable, PowerShell the second, others neither.
WHICH = "echo edgephi-shell:%OS%:$PSHOME"
NOT_FOUND = 127

_NAMES: dict[Shell | None, str] = {"posix": "a POSIX shell", "cmd": "cmd.exe", "powershell": "PowerShell", None: "?"}
_PLAIN = re.compile(r"[A-Za-z0-9._/\\:=,+@-]+")
_CMD_SPECIAL = re.compile(r'[()%!^"<>&|]')
# PowerShell takes typographic quotes for straight ones.
_PS_QUOTES = re.compile("['\u2018\u2019\u201a\u201b]")


def shell_of(answer: str) -> Shell:
    """The shell that answered WHICH; other lines may stand before and after."""
    found = re.search(r"^edgephi-shell:(.*?):(.*)$", answer, re.MULTILINE)
    system, home = (part.strip() for part in found.groups()) if found else ("", "")
    if system == "Windows_NT":
        return "cmd"
    return "powershell" if home not in ("", "$PSHOME") else "posix"


class ServerShell:
    """The shell of one server; `execute` starts a line in it.

    Windows has several shells: there, before the first command, a line asks the shell which one it is.
    """

    def __init__(self, execute: Callable[[str], Process], *, windows: bool) -> None:
        self._execute = execute
        self._shell: Shell | None = None if windows else "posix"

    @property
    def name(self) -> str:
        """The shell's name for people; "?" for a shell that hasn't been asked yet."""
        return _NAMES[self._shell]

    def line(self, argv: Sequence[str]) -> str:
        """The line that the shell reads as `argv`. Raises ConfigError for words that can't be given to it."""
        if self._shell is None:
            self._shell = self._ask()
        return command_line(self._shell, argv)

    def _ask(self) -> Shell:
        answer, _ = finish(self._execute(WHICH))
        return shell_of("\n".join(answer))


def command_line(shell: Shell, argv: Sequence[str]) -> str:
    """The line that `shell` reads as `argv`. Raises ConfigError for words that can't be given to it."""
    return _LINES[shell](argv)


def quoted_argument(word: str) -> str:
    """A word in quotes for CommandLineToArgvW and Microsoft's C library: backslashes escape before quotes only."""
    body = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", body) + '"'


def _cmd_line(argv: Sequence[str]) -> str:
    """The line for cmd.exe, which fills in %NAME%, takes carets away and hands the program the rest as it stands."""
    program, *words = argv
    return " ".join([_cmd_program(program), *map(_cmd_word, words)])


def _cmd_program(program: str) -> str:
    # A slash would begin an option. Quotes hide all but per cent signs, and a caret before a quote ends the name.
    path = program.replace("/", "\\")
    if re.search(r'["%\r\n\0]', path):
        raise _impossible(program, "cmd.exe")
    return path if _PLAIN.fullmatch(path) else f'"{path}"'


def _cmd_word(word: str) -> str:
    if re.search(r"[\r\n\0]", word):
        raise _impossible(word, "cmd.exe")
    if _PLAIN.fullmatch(word):
        return word
    quoted = quoted_argument(word)
    # cmd.exe fills in variables inside quotes too. After a caret a quote doesn't begin or end a quotation, and in
    # ^%NAME^% the variable that cmd.exe looks for is `NAME^`.
    return _CMD_SPECIAL.sub(r"^\g<0>", quoted) if re.search(r'["%]', word) else quoted


def _powershell_line(argv: Sequence[str]) -> str:
    """The line for PowerShell, which passes on a program's exit status only when told to.

    A program that PowerShell can't find sets no status: the line then exits with NOT_FOUND.
    """
    program, *words = argv
    line = " ".join(["&", _powershell_word(program.replace("/", "\\")), *map(_powershell_word, words)])
    return f"{line}; if ($null -eq $LASTEXITCODE) {{ exit {NOT_FOUND} }}; exit $LASTEXITCODE"


def _powershell_word(word: str) -> str:
    # PowerShell's versions differ in passing quotes, an empty word, or a backslash before the quote that they add.
    if word == "" or re.search(r'["\r\n\0]', word) or (word.endswith("\\") and re.search(r"\s", word)):
        raise _impossible(word, "PowerShell")
    return "'" + _PS_QUOTES.sub(r"\g<0>\g<0>", word) + "'"


def _impossible(word: str, shell: str) -> ConfigError:
    return ConfigError(
        f"{word!r} can't be given to {shell} on the device without it reading something else",
        "use another folder or another name there; letters, digits, blanks and most signs are fine",
    )


_LINES: dict[Shell, Callable[[Sequence[str]], str]] = {
    "posix": shlex.join,
    "cmd": _cmd_line,
    "powershell": _powershell_line,
}
