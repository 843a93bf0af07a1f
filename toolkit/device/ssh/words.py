"""The words that OpenSSH's programs print, read for their cause: pure functions over a few KiB of text."""

from __future__ import annotations

import re

from toolkit.errors import DeviceError, HostKeyChanged, HostKeyUnknown

# The messages of an outer hop, which follow an inner hop's message with the cause.
_CONSEQUENCES = re.compile(
    r"Connection closed by UNKNOWN|kex_exchange_identification: |ssh_dispatch_run_fatal: .* Broken pipe|"
    r"Connection to .* closed\.|banner exchange: |channel \d+: open failed|stdio forwarding failed"
)
_REVOKED = re.compile(r"Host key .* revoked by file .*|Error checking host key .* in revoked keys file .*")
_CHANGED = re.compile(r"Host key for .* has changed and you have requested strict checking\.")
_UNKNOWN = re.compile(r"No .* host key is known for .*|.*Host key verification failed\.")
_FRAME = re.compile(r"@+|@ .* @|\*\* WARNING: .*|\*\* .*")
_MOST_LINES = 8


def causes(said: str) -> list[str]:
    """The lines that tell a cause, in order and at most eight; the last line if none seems to."""
    lines = list(dict.fromkeys(line.strip() for line in said.splitlines() if line.strip()))
    told = [line for line in lines if not _CONSEQUENCES.match(line) and not _FRAME.fullmatch(line)]
    return (told or lines[-1:])[-_MOST_LINES:]


def host_key_refusal(where: str, said: str) -> DeviceError | None:
    """The error for a host key that an ssh has refused, in that ssh's words; None when it has refused none."""
    for pattern, error in ((_REVOKED, HostKeyChanged), (_CHANGED, HostKeyChanged), (_UNKNOWN, HostKeyUnknown)):
        found = next((line for line in causes(said) if pattern.fullmatch(line)), None)
        if found is not None:
            return error(f"{where}: ssh refuses the host key: {found}", _hint(error))
    return None


def is_revoked(said: str) -> bool:
    """Tell if an ssh has found a host key revoked, or can't read the list of revoked ones."""
    return any(_REVOKED.fullmatch(line) for line in causes(said))


def _hint(error: type[DeviceError]) -> str:
    if error is HostKeyUnknown:
        return "connect once with ssh in a terminal: it shows the key and asks"
    return "find out why before you go on; a device that is still yours gets a new key with 'ssh-keygen -A'"
