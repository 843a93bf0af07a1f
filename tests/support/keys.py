"""SSH keys for tests, made by ssh-keygen, and an agent that holds some."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def keygen(*args: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *args], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Make a key pair; returns the private key's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keygen("-t", kind, "-N", passphrase, "-C", path.name, "-f", path)
    return path


def public_text(key: Path) -> str:
    """The public key, `ssh-ed25519 AAAA…`, of a private key's file."""
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


def write_signers(path: Path, **signers: Path | str) -> Path:
    """Write an allowed_signers file from names, each with a key's file or with the rest of its line."""
    lines = [f"{name} {rest if isinstance(rest, str) else public_text(rest)}\n" for name, rest in signers.items()]
    path.write_text("".join(lines))
    return path


def count_keygen(folder: Path, monkeypatch: pytest.MonkeyPatch, also: str = "") -> Callable[[], list[str]]:
    """Put an ssh-keygen first in PATH that logs its operations before the real one runs.

    Returns a function that reads the log. `also` is a line of shell that runs each time.
    """
    real, log = shutil.which("ssh-keygen"), folder / "asked.log"
    script = folder / "counting" / "ssh-keygen"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho \"$2\" >> '{log}'\n{also}\nexec '{real}' \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().split() if log.exists() else []


@contextmanager
def ssh_agent(*keys: Path) -> Iterator[str]:
    """Run an agent that holds keys without passphrases; gives its socket."""
    said = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    values = dict(line.split(";")[0].split("=", 1) for line in said.splitlines() if "=" in line)
    try:
        environment = os.environ | {"SSH_AUTH_SOCK": values["SSH_AUTH_SOCK"]}
        subprocess.run(["ssh-add", "-q", *keys], check=True, env=environment)
        yield values["SSH_AUTH_SOCK"]
    finally:
        os.kill(int(values["SSH_AGENT_PID"]), signal.SIGTERM)
