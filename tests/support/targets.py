"""Target files of loopback servers."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.emulate import PrivateSshd


def write_target(tmp_path: Path, server: PrivateSshd, **changes: object) -> Path:
    """Write the target `pi5` into the user's configuration; None leaves a field out. Returns its install root."""
    root = tmp_path / "device"
    facts: dict[str, object] = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "profile": "local",
        "identity_file": str(server.identity_file),
        "known_hosts": str(server.known_hosts),
        "install_root": str(root),
    }
    folder = Path(os.environ["EDGEPHI_CONFIG_DIR"]) / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in (facts | changes).items() if value is not None}
    lines = [f"{key} = {value if isinstance(value, int) else repr(value)}" for key, value in given.items()]
    (folder / "pi5.toml").write_text("\n".join(lines) + "\n")
    return root
