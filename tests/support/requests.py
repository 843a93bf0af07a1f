"""Requests to the agent's file without the host's code."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = "0123456789abcdef"


def ask(root: Path, op: str, *, python: str | Path = sys.executable, **params: Any) -> dict[str, Any]:
    """The last message of one request: {'result': …} or {'error': …}."""
    request = json.dumps({"protocol": 1, "op": op, **params})
    done = subprocess.run(
        [str(python), "-u", str(root / "agent" / "agent.pyz")],
        input=request + "\n",
        capture_output=True,
        text=True,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages and all(message["protocol"] == 1 for message in messages), done.stderr
    assert (done.returncode == 0) == ("result" in messages[-1])
    return messages[-1]


def deliver(root: Path, files: dict[str, bytes]) -> tuple[str, str]:
    """Put files into the folder where a push puts them; returns the manifest's text and its hash."""
    incoming = root / "incoming"
    incoming.mkdir(exist_ok=True)
    artifacts = []
    for path, content in files.items():
        sha256 = hashlib.sha256(content).hexdigest()
        (incoming / f"{sha256}.part").write_bytes(content)
        artifacts.append({"path": path, "size_bytes": len(content), "sha256": sha256})
    text = json.dumps({"name": "test", "artifacts": artifacts})
    return text, hashlib.sha256(text.encode()).hexdigest()


def install(root: Path, files: dict[str, bytes]) -> str:
    text, release = deliver(root, files)
    assert ask(root, "install", release=release, manifest=text)["result"]["installed"]
    return release


def fake_runtime(root: Path) -> None:
    """Mark a runtime as ready, which is all that activation checks; no test here executes one."""
    folder = root / "runtimes" / LOCK
    folder.mkdir(parents=True)
    (folder / "ready.json").write_text("{}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(*parts: bytes) -> list[list[Any]]:
    return [[len(part), sha256(part)] for part in parts]


def install_parts(root: Path, *parts: bytes, blocks: list[list[Any]] | None = None) -> str:
    """Install a release with one file of these parts; returns the file's hash."""
    whole = b"".join(parts)
    text, release = deliver(root, {"weights": whole})
    lists = {sha256(whole): listed(*parts) if blocks is None else blocks}
    assert ask(root, "install", release=release, manifest=text, blocks=lists)["result"]["installed"]
    return sha256(whole)
