"""A simulated Windows with OpenSSH's server: its shells' rules, its paths, the file operations that it refuses.

The SSH connection, the agent, its Python and the runtime are real; only the system isn't Windows.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from tests.support.windows_files import WindowsFiles
from tests.support.windows_shells import Echo, cmd, powershell
from toolkit.emulate import EmbeddedServer
from toolkit.emulate.embedded import Session
from toolkit.emulate.embedded_exec import run_command

Kind = Literal["cmd", "powershell"]
HOME = "/C:/Users/Jörg Müller"
ENVIRONMENT = {"OS": "Windows_NT", "USERNAME": "Jörg Müller", "PATH": r"C:\Windows\system32;C:\Windows"}
PYTHONS = Path(__file__).parent / "windows_python"
# The `python` that Windows has where no Python is installed.
SHOP = "import sys; sys.exit('Python was not found; run without arguments to install from the Microsoft Store')"


class WindowsSession(Session):
    """A session whose commands go through the simulated default shell."""

    shell: Kind = "cmd"
    home = HOME
    pythons: ClassVar[Mapping[str, list[str]]] = {}
    extra: ClassVar[Mapping[str, str]] = {}
    motd: ClassVar[str] = ""

    def run(self, channel: Any, command: bytes) -> None:
        line = command.decode("utf-8")
        read = cmd(line, ENVIRONMENT) if self.shell == "cmd" else powershell(line, {"PSHOME": r"C:\Windows\PS"})
        if isinstance(read, Echo):
            self._run(channel, ["printf", "%s\\r\\n", read.text])
            return
        program, *words = read.argv
        words = [str(self.real(word)) for word in words]
        found = self.pythons.get(program.lower().removesuffix(".exe"))
        file = self.real(program)
        if found is not None:
            self._run(channel, [*found, *(word for word in words if not re.fullmatch(r"-3(\.\d+)?", word))])
        elif isinstance(file, Path) and file.exists():
            self._run(channel, [str(file), *words])
        else:
            missing = f"'{program}' is not recognized as an internal or external command"
            self._run(channel, ["sh", "-c", 'echo "$1" >&2; exit "$2"', "sh", missing, str(read.not_found)])

    def real(self, word: str) -> Path | str:
        """The file behind a path with a drive letter; other words are returned unchanged."""
        if not re.match(r"[A-Za-z]:[\\/]", word):
            return word.replace("\\", "/") if re.match(r"\.?[\w-]+\\", word) else word
        return self.root / word[0].upper() / word[3:].replace("\\", "/")

    def _run(self, channel: Any, argv: list[str]) -> None:
        if self.motd:
            channel.sendall(self.motd.encode())
        folder = self.root / HOME[1] / HOME[4:]
        environment = {"PYTHONPATH": str(PYTHONS), "PATH": f"{self.root}/tools:{os.environ['PATH']}", **self.extra}
        # A variable makes this Python a Windows' one, and the agent is started without the user's variables.
        run_command(channel, [word for word in argv if word != "-E"], folder, environment)


class WindowsServer(EmbeddedServer):
    """A server of the folder C of `root` as a disk; the folder `tools` beside it is in the PATH."""

    files = WindowsFiles
    kind = "simulated Windows"
    greeting = "SSH-2.0-OpenSSH_for_Windows_9.5"

    def __init__(self, root: Path, shell: Kind, motd: str = "") -> None:
        super().__init__(root)
        self.shell = shell
        self.home = self.root / HOME[1] / HOME[4:]
        self.home.mkdir(parents=True, exist_ok=True)
        shop = {name: [sys.executable, "-c", SHOP] for name in ("python", "python3")}
        members = {"shell": shell, "motd": motd, "pythons": shop | {"py": [sys.executable]}}
        self.session = type("SessionOfOne", (WindowsSession,), members)
