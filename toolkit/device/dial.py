"""Connections to a target: the first, and further ones, by the client that its file names."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from toolkit.device.transport import PromptSecret, Transport
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.catalog import Target


def remembered(prompt_secret: PromptSecret) -> PromptSecret:
    """Wrap a prompt so that it asks for each secret once for all connections; only this process's memory keeps them."""
    answers: dict[str, str] = {}
    asking = threading.Lock()

    def prompt(text: str) -> str:
        with asking:
            if text not in answers:
                answers[text] = prompt_secret(text)
            return answers[text]

    return prompt


def open_transport(target: Target, prompt_secret: PromptSecret | None = None) -> Transport:
    """Connect to a target by its `transport` field.

    Where that leaves the choice, the client in this process is taken, unless the user's configuration of SSH has
    settings that only OpenSSH's client heeds.

    `prompt_secret` asks the user for a passphrase or a password, once at most for each; without it nobody is asked.
    """
    if target.transport == "local":
        from toolkit.device.local import LocalTransport

        return LocalTransport()
    from toolkit.device.ssh.openssh import OpenSshTransport, ssh_is_here

    if target.transport == "openssh":
        return OpenSshTransport(target)
    from toolkit.device.ssh.client import SshTransport
    from toolkit.device.ssh.config import OpenSshNeeded

    try:
        return SshTransport(target, prompt_secret)
    except OpenSshNeeded:
        if target.transport == "paramiko" or not ssh_is_here():
            raise
    return OpenSshTransport(target)


def open_another(target: Target, prompt_secret: PromptSecret | None = None) -> Transport:
    """Open one more connection to a target that has one already.

    Where the target's `transport` leaves the choice, OpenSSH's client carries it if it can: the first connection
    encrypts in this process, whose Python uses one processor for all its work.
    """
    if target.transport == "ssh":
        from toolkit.device.ssh.openssh import OpenSshTransport, ssh_is_here

        with suppress(ToolkitError):
            if ssh_is_here():
                return OpenSshTransport(target)
    return open_transport(target, prompt_secret)
