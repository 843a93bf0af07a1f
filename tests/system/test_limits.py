"""Limits that a device sets on our processes, and disks that take no runtime: found before anything is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.builds import bundle as build, follow
from tests.support.bundles import make
from tests.support.devices import target_at
from tests.support.groups import group
from tests.support.pythons import HEED_VARIABLES, script
from tests.support.servers import needs_root
from toolkit.bench import bench
from toolkit.catalog import Workload
from toolkit.deploy.install import install
from toolkit.device import connect
from toolkit.metrics.report import remarks

TINY = Workload(name="tiny", description="", prompt_tokens=32, generate_tokens=8, warmup=1, repetitions=2, runs=1)


def edgephi(*args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "toolkit", *args], capture_output=True, text=True, timeout=240)
    assert "Traceback" not in done.stderr
    return done


def write_target(tmp_path: Path, root: Path, **changes: object) -> None:
    folder = tmp_path / "config" / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"transport": "local", "profile": "local", "install_root": str(root), **changes}
    (folder / "board.toml").write_text("".join(f"{key} = {value!r}\n" for key, value in facts.items()))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def sent(root: Path) -> list[str]:
    """The files below an install root, without the agent's own and the locks."""
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return [str(path) for path in files if path.parts[0] != "agent" and not path.name.endswith("lock")]


@needs_root
def test_a_disk_that_is_mounted_noexec(tmp_path: Path) -> None:
    with mounted(tmp_path / "home-pi", "size=300m,noexec") as disk:
        write_target(tmp_path, disk / "edgephi")
        make(tmp_path / "bundle")
        doctor, deploy = edgephi("doctor", "board"), edgephi("deploy", str(tmp_path / "bundle"), "board")
        assert sent(disk / "edgephi") == []
    seen = f"{disk}/edgephi lets no program be loaded: {disk} is mounted noexec"
    hint = f"on the device: sudo mount -o remount,exec {disk}, and in /etc/fstab; or set install_root in the target's"
    assert doctor.returncode == 7
    assert f"failed   install root    {seen}" in doctor.stdout
    assert hint in doctor.stdout
    assert deploy.returncode == 7
    assert f"error: board: {seen}" in deploy.stderr
    assert hint in deploy.stderr


@needs_root
def test_a_disk_without_inodes(tmp_path: Path) -> None:
    with mounted(tmp_path / "card", "size=900m,nr_inodes=1000") as disk:
        write_target(tmp_path, disk / "edgephi")
        make(tmp_path / "bundle")
        doctor, deploy = edgephi("doctor", "board"), edgephi("deploy", str(tmp_path / "bundle"), "board")
        assert sent(disk / "edgephi") == []
    assert (doctor.returncode, deploy.returncode) == (7, 7)
    for text in (doctor.stdout, deploy.stderr):
        assert " more files can be made there (free inodes), and 5000 are needed" in text
        assert f"df -i {disk} shows them" in text


def test_a_python_of_32_bits(tmp_path: Path) -> None:
    """The captured answers of Debian's Python for i386, from a module that is read first; the agent is the real one."""
    lie = tmp_path / "lie"
    lie.mkdir()
    words = "import struct, sys, sysconfig\nreal = struct.calcsize\n"
    words += "def calcsize(form):\n"
    words += "    return 4 if 'edgephi_agent' in sys._getframe(1).f_globals['__name__'] else real(form)\n"
    words += "struct.calcsize = calcsize\n"
    words += "sysconfig.get_config_vars()['MULTIARCH'] = 'i386-linux-gnu'\n"
    (lie / "sitecustomize.py").write_text(words)
    python = script(tmp_path / "python", f"export PYTHONPATH={lie}", HEED_VARIABLES, f'exec {sys.executable} "$@"')
    write_target(tmp_path, tmp_path / "device", python=str(python))
    make(tmp_path / "bundle")
    doctor, deploy = edgephi("doctor", "board"), edgephi("deploy", str(tmp_path / "bundle"), "board")
    seen = f"its Python is a program of 32 bits (i386-linux-gnu) on a kernel of 64 bits ({os.uname().machine}); "
    seen += "the runtime's wheels are for 64 bits"
    assert (doctor.returncode, deploy.returncode) == (7, 3)
    assert f"failed   platform        {seen}" in doctor.stdout
    assert f"error: board: {seen}" in deploy.stderr
    assert sent(tmp_path / "device") == []


def test_a_row_says_that_a_quota_holds(root: Path, tmp_path: Path) -> None:
    with group("cpu", 0.5) as enter:
        python = script(tmp_path / "half-python", enter, 'exec python3 "$@"')
        target = target_at(root).model_copy(update={"python": str(python)})
        with connect(target) as device:
            bundle = build("int4-rtn-b32")
            follow(install(bundle, device))
            report = follow(bench(device, bundle.id, TINY))
    assert report.settings.threads == 1
    assert "held to 0.5 processors by a quota" in remarks(report)


def test_a_bundle_that_a_limit_leaves_no_room_for(root: Path, tmp_path: Path) -> None:
    root.chmod(0o700)
    with group("memory", 30 << 20) as enter:
        # The limit holds for the agent alone: nothing of the model is loaded.
        python = script(tmp_path / "small-python", enter, 'exec python3 "$@"')
        write_target(tmp_path, root, python=str(python))
        deploy = edgephi("deploy", str(build("int4-rtn-b32").path), "board")
        doctor = edgephi("doctor", "board")
    assert deploy.returncode == 3, deploy.stderr
    assert "; the device has a limit of 30 MiB on the memory of this user's processes" in deploy.stderr
    assert "warn     memory          a limit of 30 MiB on this user's processes, " in doctor.stdout
    assert 'memory_limit = "30 MiB"' in doctor.stdout
