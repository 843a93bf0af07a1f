"""The settings of pip that a user keeps, of those that real pips tell, and the environment without the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from toolkit.localhost import pip

PIP = [sys.executable, "-m", "pip"]


def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}


def settings(tmp_path: Path, text: str, **variables: str) -> dict[str, str]:
    """The settings kept of a user's file, which a real pip reads, and of variables."""
    file = tmp_path / "pip.conf"
    file.write_text(text)
    kept = pip.index_settings(PIP, {**plain(), "PIP_CONFIG_FILE": str(file), **variables})
    system = pip.index_settings(PIP, plain())
    return {name: value for name, value in kept.items() if system.get(name) != value}


def test_the_index_is_kept_and_nothing_else(tmp_path: Path) -> None:
    text = """
[global]
index-url = https://ci:secret@pypi.example/simple
extra-index-url =
    https://one.example/simple
    https://two.example/simple
proxy = http://proxy.example:3128
cert = /etc/ssl/own.pem
user = true
target = /tmp/elsewhere
prefix = /opt
require-virtualenv = true
no-binary = :all:
constraint = /etc/constraints.txt
"""
    kept = settings(tmp_path, text)
    assert kept.pop("PIP_EXTRA_INDEX_URL").split() == ["https://one.example/simple", "https://two.example/simple"]
    assert kept == {
        "PIP_INDEX_URL": "https://ci:secret@pypi.example/simple",
        "PIP_PROXY": "http://proxy.example:3128",
        "PIP_CERT": "/etc/ssl/own.pem",
    }


def test_a_variable_outranks_the_install_section_and_that_the_global_one(tmp_path: Path) -> None:
    text = "[global]\nindex-url = https://a.example\nproxy = http://a\n[install]\nproxy = http://b\n"
    text += "[download]\nproxy = http://c\n"
    found = settings(tmp_path, text, PIP_INDEX_URL="https://env.example", PIP_TARGET="/x", PIP_USER="1")
    assert found == {"PIP_INDEX_URL": "https://env.example", "PIP_PROXY": "http://b"}


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "global.user='true'", "global.index-url=https://no.quotes", "global.index-url=7", "[x]\n.=''"],
)
def test_what_is_no_index_is_passed_over(text: str) -> None:
    assert pip.parse_settings(text) == {}


def test_a_broken_file_of_settings_gives_none(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global\nindex-url")
    assert pip.index_settings(PIP, {**plain(), "PIP_CONFIG_FILE": str(file)}) == {}


def test_the_environment_of_a_runtime() -> None:
    told = {"PATH": "/bin", "PYTHONPATH": "/x", "PythonHome": "/y", "PIP_USER": "1", "pip_target": "/z", "PYENV": "1"}
    assert pip.own_environment(told) == {
        "PATH": "/bin",
        "PYENV": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONNOUSERSITE": "1",
    }
    assert pip.own_pip({"PYTHONPATH": "/x", "PIP_USER": "1"}) == {"PYTHONPATH": "/x", "PIP_CONFIG_FILE": os.devnull}
