"""The environment in which pip and other Pythons run for edgephi: a user's settings of either are left out, except the
ones that tell where packages come from and the way there.

Host and device install by the same rules. Standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Mapping, Sequence

# The settings that a user's own pip keeps: its sources, and the proxy and the certificates on the way to them.
KEPT = ("index-url", "extra-index-url", "no-index", "find-links", "trusted-host", "proxy", "cert", "client-cert")
# Later sections outrank earlier ones, as pip has it; `download` is read by none but itself.
_SECTIONS = ("global", "install", ":env:")


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that change how Python starts or what pip does.

    PYTHONPATH, PYTHONHOME and the like may put other packages before those of a runtime.
    """
    kept = {name: value for name, value in environment.items() if not name.upper().startswith("PYTHON")}
    return dict(own_pip(kept), PYTHONNOUSERSITE="1")


def own_pip(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables without pip's settings, and pip's files of settings switched off.

    They may send an installation elsewhere (`user`, `target`, `prefix`), forbid it (`require-virtualenv`), or choose
    other files (`constraint`, `no-binary`).
    """
    kept = {name: value for name, value in environment.items() if not name.upper().startswith("PIP_")}
    return dict(kept, PIP_CONFIG_FILE=os.devnull)


def parse_settings(text: str) -> dict[str, str]:
    """`pip config list` to those of KEPT that an installation would use, e.g. `global.index-url='https://…'`."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in text.splitlines():
        match = re.match(r"(:env:|[^.=]+)\.([a-z-]+)=(.*)", line)
        if not match or match[1] not in found or match[2] not in KEPT:
            continue
        try:
            value = ast.literal_eval(match[3])
        except (ValueError, SyntaxError):
            continue
        if isinstance(value, str) and "\0" not in value:
            found[match[1]][match[2]] = value
    return {name: value for section in _SECTIONS for name, value in found[section].items()}


def index_settings(pip: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that have pip use the index of the user with that `environment`, as `pip`, the words that start it,
    tells it.

    Variables carry them: other users of a machine can read a command's arguments, in which a password might stand.
    """
    words = [*pip, "config", "list"]
    quiet = subprocess.DEVNULL
    done = subprocess.run(words, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=dict(environment), check=False)
    kept = parse_settings(done.stdout.decode("utf-8", "replace"))
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in kept.items()}
