"""The choice of a device's Python for its runtime, and the command that installs one when none suits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# The versions of Python that runtimes are made with, as far as their profiles allow.
MINORS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# The version whose syntax the agent keeps to.
OLDEST = (3, 9)
# The versions to propose for installing: the one that most systems have packages of comes first.
_PROPOSED = ("3.12", "3.13", "3.11", "3.14", "3.10")
_UV = "curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv python install {version}"
_APT = "sudo apt-get install -y python3 python3-venv"
_DEADSNAKES = "sudo add-apt-repository -y ppa:deadsnakes/ppa && sudo apt-get install -y python{version}-venv"
# The Python of a system's own packages.
_OWN = {
    "Debian GNU/Linux 12": "3.11",
    "Debian GNU/Linux 13": "3.13",
    "Ubuntu 22.04": "3.10",
    "Ubuntu 24.04": "3.12",
    "Ubuntu 26.04": "3.14",
}
_FAMILIES = (
    (r"Windows", "winget install Python.Python.{version}"),
    (r"Ubuntu|Linux Mint|Pop!_OS", _DEADSNAKES),
    (r"Debian|Raspbian", f"upgrade to Debian 13 (or Raspberry Pi OS 13), or: {_UV}"),
    (r"Fedora|Red Hat|CentOS|Rocky|AlmaLinux|Oracle|Amazon", "sudo dnf install -y python{version}"),
    (r"openSUSE|SUSE", "sudo zypper install -y python{digits}"),
    (r"macOS|Darwin", "brew install python@{version}"),
)


@dataclass(frozen=True)
class Interpreter:
    """A CPython that was found on a device, by its path there."""

    path: str
    version: str
    has_ensurepip: bool


def suits(version: str, wanted: str) -> bool:
    """Tell if a specifier like `>=3.11,<3.15` admits a version of Python; it admits no preview."""
    from packaging.specifiers import SpecifierSet

    # A Python built from a checkout calls itself 3.11.2+.
    return version.rstrip("+") in SpecifierSet(wanted)


def best(found: Iterable[Interpreter], wanted: str) -> Interpreter | None:
    """The newest of those that suit; an interpreter that can make environments with pip comes before one that can't."""
    fitting = [interpreter for interpreter in found if suits(interpreter.version, wanted)]
    return max(fitting, key=lambda one: (one.has_ensurepip, _numbers(one.version)), default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def how_to_install(os_name: str | None, wanted: str) -> str:
    """The hint for getting a Python that suits; `os_name` is the system's name in os-release, or Windows' own."""
    name = os_name or ""
    for system, version in _OWN.items():
        if name.startswith(system) and suits(f"{version}.0", wanted):
            return f"on the device: {_APT}"
    proposed = next((version for version in _PROPOSED if suits(f"{version}.0", wanted)), None)
    if proposed is None:
        return f"no Python that edgephi knows is {wanted}: correct `python` of [runtime] in the profile"
    command = next((command for pattern, command in _FAMILIES if re.search(pattern, name)), _UV)
    return f"on the device: {command.format(version=proposed, digits=proposed.replace('.', ''))}"
