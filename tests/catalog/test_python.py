"""The choice of a device's Python, and the command to type where there is none."""

from __future__ import annotations

import pytest

from toolkit.catalog.python import Interpreter, best, how_to_install, suits

WANTED = ">=3.11,<3.15"


@pytest.mark.parametrize(
    ("version", "fits"),
    [("3.10.12", False), ("3.11.2", True), ("3.14.0", True), ("3.15.0", False), ("3.15.0a1", False), ("3.12.3+", True)],
)
def test_versions_that_suit(version: str, fits: bool) -> None:
    assert suits(version, WANTED) is fits


def found(*versions: str, has_ensurepip: bool = True) -> list[Interpreter]:
    return [Interpreter(f"/usr/bin/python-{version}", version, has_ensurepip) for version in versions]


def test_the_newest_that_suits_is_taken() -> None:
    choice = best(found("3.9.2", "3.11.9", "3.13.1", "3.12.4", "3.15.1"), WANTED)
    assert choice is not None and choice.version == "3.13.1"
    choice = best(found("3.11.9", "3.11.10"), WANTED)
    assert choice is not None and choice.version == "3.11.10"


def test_one_that_has_pip_comes_first() -> None:
    choice = best([*found("3.13.1", has_ensurepip=False), *found("3.11.2")], WANTED)
    assert choice is not None and choice.version == "3.11.2"
    choice = best(found("3.13.1", has_ensurepip=False), WANTED)
    assert choice is not None and choice.version == "3.13.1"


def test_none_suits() -> None:
    assert best(found("3.9.2", "3.10.1"), WANTED) is None


@pytest.mark.parametrize(
    ("system", "wanted", "command"),
    [
        ("Debian GNU/Linux 12 (bookworm)", WANTED, "sudo apt-get install -y python3 python3-venv"),
        ("Debian GNU/Linux 11 (bullseye)", WANTED, "upgrade to Debian 13"),
        ("Debian GNU/Linux 12 (bookworm)", ">=3.12,<3.13", "uv python install 3.12"),
        ("Raspbian GNU/Linux 11 (bullseye)", WANTED, "uv python install 3.12"),
        ("Ubuntu 24.04.1 LTS", WANTED, "sudo apt-get install -y python3 python3-venv"),
        # The system of JetPack 6.
        ("Ubuntu 22.04.4 LTS", ">=3.12,<3.13", "ppa:deadsnakes/ppa && sudo apt-get install -y python3.12-venv"),
        ("Ubuntu 20.04.6 LTS", ">=3.11,<3.12", "python3.11-venv"),
        ("Fedora Linux 40 (Server Edition)", WANTED, "sudo dnf install -y python3.12"),
        ("openSUSE Leap 15.6", WANTED, "sudo zypper install -y python312"),
        ("Microsoft Windows 11 Pro 10.0.22631", WANTED, "winget install Python.Python.3.12"),
        ("macOS-14.5-arm64-arm-64bit", WANTED, "brew install python@3.12"),
        ("Yocto", WANTED, "uv python install 3.12"),
        (None, ">=3.13", "uv python install 3.13"),
        ("Ubuntu 24.04", ">=3.99", "correct `python` of [runtime] in the profile"),
    ],
)
def test_what_to_type(system: str | None, wanted: str, command: str) -> None:
    assert command in how_to_install(system, wanted)
