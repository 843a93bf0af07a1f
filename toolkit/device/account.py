"""A look, before anything is sent, at what a login's account may do: run commands, and see one file by both ways."""

from __future__ import annotations

import posixpath
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress

from toolkit.device.patience import killed_after
from toolkit.device.transport import Process, Transport
from toolkit.errors import AuthFailed, DeviceError, HostUnreachable, RemoteCommandFailed

_MARK = "edgephi-account:"
# Write a file into the nearest folder that is there, say how many levels up that is, or `-` when it can't be written,
# and remove it at the end of stdin, however that comes. A name isn't printed: it may hold any sign.
_LOOK = (
    'd=$1; n=0; until [ -d "$d" ]; do d=$(dirname -- "$d"; echo x); d=${d%?x}; n=$((n+1)); done; '
    "f=$d/.edgephi-look-$2; umask 077; "
    f'echo look >"$f" 2>/dev/null || {{ f=; n=-; }}; echo "{_MARK}$n"; read x; test -z "$f" || rm -f "$f"'
)
# A forced command may wait for somebody who types.
_PATIENCE_S = 20.0
_MOST_SIGNS = 300
_EXPIRED = re.compile(r"password (has )?expired|password change required|(must|required to) change your password", re.I)
_NO_HOME = re.compile(r"Could not chdir to home directory [^\n]*")
_NO_SHELL = re.compile(r"account is (currently )?not available|sftp connections only", re.I)

Start = Callable[[Sequence[str]], Process]


def commands_refused(start: Start, where: str) -> DeviceError | None:
    """The error that says why this account runs no command that is asked for; None when it does."""
    token = secrets.token_hex(8)
    process = start(["echo", _MARK + token])
    process.close_stdin()
    lines, status = _ended(process)
    if any(line.endswith(_MARK + token) for line in lines):
        return None
    return _refusal(where, "\n".join([*lines, process.stderr_tail()]), status)


def check_account(transport: Transport, where: str, root: str) -> None:
    """Raise the DeviceError that tells why nothing can be installed at `root`, a path as commands there take it.

    The account may run other commands than those asked for, have no home folder, or see other folders by SFTP than by
    commands. A small file is written beside `root` to find out, and removed. Windows isn't looked at.
    """
    if transport.windows:
        return
    token = secrets.token_hex(8)
    process = transport.start(["sh", "-c", _LOOK, "sh", root, token])
    heard: list[str] = []
    seen, path, answer, status = True, "", None, -1
    try:
        with killed_after(process, _PATIENCE_S):
            for line in process.lines():
                heard.append(line.decode("utf-8", "replace"))
                if _MARK in heard[-1]:
                    answer = heard[-1].partition(_MARK)[2]
                    break
            if answer is not None and answer.isdecimal():
                path = f"{_ancestor(root, int(answer[:3]))}/.edgephi-look-{token}"
                seen = transport.size(path) is not None
    finally:
        process.close_stdin()
        with suppress(HostUnreachable):
            status = _ended(process)[1]
    said = process.stderr_tail()
    if answer is None:
        raise _refusal(where, "\n".join([*heard, said]), status)
    if not root.startswith("/") and (no_home := _NO_HOME.search(said)):
        raise RemoteCommandFailed(
            f"{where}: the account has no home folder: {no_home[0].strip()}",
            "make it on the device (sudo mkhomedir_helper USER), or set install_root to an absolute path",
        )
    if not seen:
        raise RemoteCommandFailed(
            f"{where}: commands and SFTP see different folders: SFTP doesn't find {path}, which a command has written",
            "a NAS does that, and ChrootDirectory in sshd_config: set install_root to a folder that has the same path "
            "by both, or take the account out of the chroot",
        )


def _ancestor(folder: str, levels: int) -> str:
    for _ in range(levels):
        folder = posixpath.dirname(folder.rstrip("/")) or ("/" if folder.startswith("/") else ".")
    return folder


def _ended(process: Process) -> tuple[list[str], int]:
    with killed_after(process, _PATIENCE_S):
        return [line.decode("utf-8", "replace") for line in process.lines()], process.wait()


def _refusal(where: str, said: str, status: int) -> DeviceError:
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in said).split())[:_MOST_SIGNS]
    if _EXPIRED.search(words):
        return AuthFailed(
            f"{where}: the account's password has expired, and nothing runs before it is changed: {words}",
            "log in with ssh in a terminal and change it; on the device: sudo chage -l USER",
        )
    if _NO_SHELL.search(words) or (status != 0 and not words):
        told = words or f"each ends with exit code {status}, without a word"
        return RemoteCommandFailed(
            f"{where}: the account may not run commands: {told}",
            "its login shell is nologin or false, or sshd_config allows it SFTP alone; edgephi needs both. "
            "On the device: sudo usermod -s /bin/sh USER",
        )
    return RemoteCommandFailed(
        f"{where}: the server doesn't run the command that it is asked for; it said: {words or 'nothing'}",
        "is there a ForceCommand in its sshd_config, or a command= before the key in its authorized_keys?",
    )
