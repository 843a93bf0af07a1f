"""This machine: its memory and the limits on it, and the variables that other programs don't get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit import localhost
from toolkit.localhost import groups
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
        ("0::/user.slice/session-1.scope\n", {"": "/user.slice/session-1.scope"}),
        ("9:name=systemd:/\n4:memory:/docker/abc\n0::/\n", {"name=systemd": "/", "memory": "/docker/abc", "": "/"}),
        ("6:cpu,memory:/a:b\n", {"cpu": "/a:b", "memory": "/a:b"}),
        ("", {}),
    ],
)
def test_groups_of_a_process(text: str, paths: dict[str, str]) -> None:
    assert groups.parse_cgroup(text) == paths


@pytest.mark.parametrize(
    ("quota", "period", "processors"),
    [
        ("50000", "100000\n", 0.5),
        ("150000", "100000", 1.5),
        ("-1\n", "100000\n", None),
        ("max", "100000", None),
        ("5", "0", None),
        ("", "", None),
    ],
)
def test_quotas(quota: str, period: str, processors: float | None) -> None:
    assert groups.parse_quota(quota, period) == processors


@pytest.mark.parametrize(("affinity", "quota", "threads"), [(4, None, 4), (4, 0.5, 1), (4, 2.9, 2), (2, 8.0, 2)])
def test_whole_processors(affinity: int, quota: float | None, threads: int) -> None:
    assert groups.whole_processors(affinity, quota) == threads


@pytest.mark.parametrize(
    ("text", "limit"), [("max\n", None), (UNLIMITED, None), ("8589934592\n", 8 << 30), ("", None), ("nonsense", None)]
)
def test_limits(text: str, limit: int | None) -> None:
    assert groups.parse_limit(text) == limit


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
    assert groups.parse_reclaimable(text) == reclaimable


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


UNIFIED = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
DIVIDED = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def lay(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write the files of /proc and, below /sys/fs/cgroup, those of groups; returns `root`."""
    known = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    for name, text in {**known, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    own = {"a/b/memory.max": "max", "a/b/memory.current": "1000"}
    assert groups.memory_limit(lay(tmp_path, "0::/a/b", UNIFIED, own)) is None
    outer = {"a/memory.max": "9000", "a/memory.current": "5000", "a/memory.stat": "inactive_file 2000"}
    assert groups.memory_limit(lay(tmp_path, "0::/a/b", UNIFIED, outer)) == (9000, 9000 - (5000 - 2000))
    tight = {"a/b/memory.max": "1500"}
    assert groups.memory_limit(lay(tmp_path, "0::/a/b", UNIFIED, tight)) == (1500, 500)


def test_the_limit_at_which_a_process_is_held_up_counts_too(tmp_path: Path) -> None:
    files = {"a/memory.max": "9000", "a/memory.high": "6000", "a/memory.current": "1000"}
    assert groups.memory_limit(lay(tmp_path, "0::/a", UNIFIED, files)) == (6000, 5000)


def test_version_one(tmp_path: Path) -> None:
    files = {
        "memory/a/memory.limit_in_bytes": UNLIMITED.strip(),
        "memory/memory.limit_in_bytes": "8000",
        "memory/memory.usage_in_bytes": "3000",
        "cpu,cpuacct/b/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/b/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/b/c/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/b/c/cpu.cfs_period_us": "100000",
    }
    lay(tmp_path, "4:memory:/a\n1:cpu,cpuacct:/b/c\n0::/", DIVIDED, files)
    assert groups.memory_limit(tmp_path) == (8000, 5000)
    assert groups.processor_quota(tmp_path) == 0.5


@pytest.mark.parametrize(
    ("path", "root"),
    [
        # The path is the host's, and the container's own group is mounted at the top.
        ("/docker/abc", "/docker/abc"),
        # The group of another container, as in a pod whose processes share a name space.
        ("/../abc", "/"),
        ("/docker/abc", "/"),
        # With a name space of its own.
        ("/", "/"),
    ],
)
def test_a_container_that_sees_its_own_group_only(path: str, root: str, tmp_path: Path) -> None:
    mounts = f"35 31 0:32 {root} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    mounts += f"36 31 0:32 {root} /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu"
    files = {
        "memory/memory.limit_in_bytes": "8000",
        "memory/memory.usage_in_bytes": "3000",
        "cpu/cpu.cfs_quota_us": "250000",
        "cpu/cpu.cfs_period_us": "100000",
    }
    lay(tmp_path, f"4:memory:{path}\n1:cpu:{path}", mounts, files)
    assert groups.memory_limit(tmp_path) == (8000, 5000)
    assert groups.processor_quota(tmp_path) == 2.5


def test_a_place_of_its_own(tmp_path: Path) -> None:
    mounts = UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040groups")
    files = {"my groups/a/cpu.max": "200000 100000", "my groups/a/b/cpu.max": "max 100000"}
    assert groups.processor_quota(lay(tmp_path, "0::/a/b", mounts, files)) == 2.0


def test_no_groups_no_limit(tmp_path: Path) -> None:
    assert groups.memory_limit(tmp_path) is None
    assert groups.processor_quota(tmp_path) is None
    assert groups.memory_limit(lay(tmp_path, "nonsense", "cut off - ", {})) is None


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
