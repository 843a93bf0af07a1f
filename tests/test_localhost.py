"""toolkit.localhost: this machine, its memory, and the variables that other programs don't get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit import localhost
from toolkit.optimize.runner import child_environment


def test_this_machine() -> None:
    assert localhost.arch() == os.uname().machine
    assert localhost.system() == "linux"
    assert localhost.ram_bytes() > 2**28
    assert localhost.cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("system", "cpu", "first"),
    [
        ("Linux", "aarch64", "manylinux_2_28_aarch64"),
        ("Windows", "ARM64", "win_arm64"),
        ("Windows", "AMD64", "win_amd64"),
        ("Darwin", "arm64", "macosx_15_0_arm64"),
    ],
)
def test_platform_tags(monkeypatch: pytest.MonkeyPatch, system: str, cpu: str, first: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: cpu)
    assert localhost.platform_tags()[0] == first


MEMINFO = """\
MemTotal:       24641448 kB
MemFree:          512000 kB
MemAvailable:   16000000 kB
SwapTotal:       2000000 kB
SwapFree:        1000000 kB
HugePages_Total:       0
"""
UNLIMITED = "9223372036854771712\n"


def test_meminfo() -> None:
    found = localhost.parse_meminfo(MEMINFO)
    assert found["MemAvailable"] == 16_000_000 * 1024 and found["SwapFree"] == 1_000_000 * 1024
    assert "HugePages_Total" not in found


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("0::/user.slice/session-1.scope\n", (None, "/user.slice/session-1.scope")),
        ("9:name=systemd:/\n4:memory:/docker/abc\n0::/\n", ("/docker/abc", "/")),
        ("6:cpu,memory:/a\n", ("/a", None)),
        ("", (None, None)),
    ],
)
def test_cgroup_of_a_process(text: str, paths: tuple[str | None, str | None]) -> None:
    assert localhost.parse_cgroup(text) == paths


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), (UNLIMITED, None), ("8589934592\n", 8 << 30), ("", None), ("nonsense", None)]
)
def test_limits(text: str, limit: int | None) -> None:
    assert localhost.parse_limit(text) == limit


@pytest.mark.parametrize(
    ("text", "reclaimable"),
    [
        ("anon 5\nfile 900\ninactive_file 300\nactive_file 20\n", 320),
        # Version 1 counts a group's own pages and, as total_…, those of all groups below it too.
        ("inactive_file 3\nactive_file 2\ntotal_inactive_file 300\ntotal_active_file 20\n", 320),
        ("anon 5\n", 0),
    ],
)
def test_page_cache_can_be_reclaimed(text: str, reclaimable: int) -> None:
    assert localhost.parse_reclaimable(text) == reclaimable


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__"
    write(tmp_path, proc__self__cgroup="0::/a/b\n")
    write(tmp_path, **{f"{group}a__b__memory_dot_max": "max\n", f"{group}a__b__memory_dot_current": "1000\n"})
    assert localhost.cgroup_left_bytes(tmp_path) is None
    write(tmp_path, **{f"{group}a__memory_dot_max": "9000\n", f"{group}a__memory_dot_current": "5000\n"})
    write(tmp_path, **{f"{group}a__memory_dot_stat": "inactive_file 2000\n"})
    assert localhost.cgroup_left_bytes(tmp_path) == 9000 - (5000 - 2000)
    write(tmp_path, **{f"{group}a__b__memory_dot_max": "1500\n"})
    assert localhost.cgroup_left_bytes(tmp_path) == 500


def test_version_one_and_a_container_that_sees_its_own_group_only(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory__"
    write(tmp_path, proc__self__cgroup="4:memory:/docker/abc\n0::/\n")
    limits = {f"{group}memory_dot_limit_in_bytes": "8000\n", f"{group}memory_dot_usage_in_bytes": "3000\n"}
    write(tmp_path, **limits)
    assert localhost.cgroup_left_bytes(tmp_path) == 5000


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert localhost.cgroup_left_bytes(tmp_path) is None


def test_memory_is_the_least_of_what_is_free_and_what_a_limit_leaves() -> None:
    free = localhost.Memory(available_bytes=6, swap_free_bytes=2, limit_left_bytes=None)
    tight = localhost.Memory(available_bytes=6, swap_free_bytes=2, limit_left_bytes=5)
    assert (free.total_bytes, free.limited) == (8, False)
    assert (tight.total_bytes, tight.limited) == (5, True)
    here = localhost.available_memory()
    assert here is not None and here.total_bytes > 0


SECRET = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "Db_Password",
    "CI_JOB_TOKEN_V2",
]
PLAIN = ["PATH", "PWD", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYBOARD", "PIP_INDEX_URL", "SECRETARY"]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which some variables are secrets, and some only look like secrets."""
    for name in (*SECRET, *PLAIN):
        monkeypatch.setenv(name, "value")


def test_secrets_stay_here(secrets: None) -> None:
    found = localhost.without_secrets()
    assert not [name for name in SECRET if name in found]
    assert not [name for name in PLAIN if name not in found]


def test_olive_gets_no_secrets(secrets: None, tmp_path: Path) -> None:
    assert not set(SECRET) & set(child_environment(tmp_path))
