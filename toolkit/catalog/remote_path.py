"""Paths on a target as people write them in its file, and as SFTP and commands there take them. Pure.

A path counts from the login folder (`~/.edgephi`) or is absolute: `/opt/edgephi`, or on Windows `C:\\edgephi`, which is
kept as `C:/edgephi`.
"""

from __future__ import annotations

import re

from toolkit.untrusted import is_windows_device

# Characters that every shell takes as they are, so that such paths never need quotes.
_PLAIN = re.compile(r"[A-Za-z0-9._/~:-]+")
_DRIVE = re.compile(r"[A-Za-z]:(/|\Z)")
_LAUNCHER = re.compile(r"py(\.exe)?( -3(\.\d{1,2})?(-(32|64|arm64))?)?")
# Characters that Windows allows in no name, and %, which cmd.exe expands even in quotes.
_NOT_IN_NAMES = re.compile(r'[<>:"|?*%\x00-\x1f]')


def remote_path(text: str) -> str:
    """A path with slashes. Raises ValueError for one that a shell, or either system, could read as something else."""
    path = text.replace("\\", "/") if re.match(r"([A-Za-z]:|~)\\", text) else text
    if _DRIVE.match(path):
        return _windows_path(text, path)
    if not _PLAIN.fullmatch(path):
        raise ValueError(f"'{text}' may only have letters, digits and . _ / ~ : - in it")
    if from_login_folder(path).startswith("-"):
        raise ValueError(f"'{text}' would be read as an option")
    if ".." in path.split("/"):
        raise ValueError(f"'{text}' may not go up with '..'")
    if "~" in path and (not path.startswith("~/") or "~" in path[1:]):
        raise ValueError(f"'{text}' may have ~ only as a leading '~/', the login folder")
    return path


def _windows_path(text: str, path: str) -> str:
    drive, *names = path.split("/")
    for name in filter(None, names):
        if name == "..":
            raise ValueError(f"'{text}' may not go up with '..'")
        if _NOT_IN_NAMES.search(name):
            raise ValueError(f"'{text}' may not have < > : \" | ? * % in its names")
        if is_windows_device(name) or name != name.rstrip(" ."):
            raise ValueError(f"'{text}': Windows can't have a folder or file called '{name}'")
    return "/".join((drive.upper(), *names))


def own_folder(text: str) -> str:
    """A folder of edgephi's own. Raises ValueError also for the login folder and the root of a disk."""
    path = remote_path(text)
    parts = [part for part in path.split("/") if part not in ("", ".", "~")]
    if not parts or (len(parts) == 1 and parts[0].endswith(":")):
        raise ValueError(f"'{text}' is no folder of edgephi's own; write one like '~/.edgephi'")
    return path.rstrip("/")


def python_command(text: str) -> str:
    """A Python on the target: a name, a path, or Windows' launcher with a version, `py -3.12`."""
    return text if _LAUNCHER.fullmatch(text) else remote_path(text)


def python_argv(command: str) -> list[str]:
    """The words of a command that `python_command` let through; a path is one word, blanks or not."""
    if _LAUNCHER.fullmatch(command):
        return command.split(" ")
    found = from_login_folder(command)
    # A bare name is looked for in the PATH, wherever the command is started.
    return [f"./{found}" if command.startswith("~/") and "/" not in found else found]


def from_login_folder(path: str) -> str:
    """The path without `~/`: commands and SFTP start in the login folder, and no shell expands a quoted tilde."""
    return path.removeprefix("~/")


def sftp_path(path: str) -> str:
    """The path as an SFTP server takes it: Windows' drives are folders of its root, /C:/Users/me."""
    inside = from_login_folder(path).rstrip("/") or path
    return f"/{inside}" if _DRIVE.match(inside) else inside
