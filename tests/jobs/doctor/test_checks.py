"""Judgements on probes: of recorded boards, and of the same boards with faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.boards import pi5_facts, probe_of
from toolkit.catalog import ProbeFacts, Profile, Target, load_profile
from toolkit.catalog.profile import list_profiles
from toolkit.jobs.doctor import checks

PI5 = Target(name="pi5", host="pi5.local", profile="raspberry-pi-5-8gb")


def pi5() -> Profile:
    return load_profile("raspberry-pi-5-8gb")


def judge(probe: ProbeFacts, profile: Profile | None = None, target: Target = PI5) -> dict[str, checks.Check]:
    """Every judgement on a probe, by name."""
    profile = profile or pi5()
    profiles = [found for found in list_profiles() if isinstance(found, Profile)]
    found = [
        checks.install_root(probe),
        checks.platform(probe),
        checks.processors(probe),
        checks.pip(target, probe),
        checks.glibc(profile, probe),
        checks.memory(profile, probe),
        checks.disk(probe),
        checks.governor(probe),
        checks.power_mode(probe),
        checks.temperature(probe),
        checks.throttling(probe),
        checks.profile_fits(target, profile, probe, profiles),
    ]
    return {check.name: check for check in found}


def test_a_board_in_good_health() -> None:
    found = judge(pi5_facts())
    assert {check.state for check in found.values()} == {"ok", "skipped"}
    assert not [check for check in found.values() if check.hint]
    assert found["disk"].seen == "20 GB free (SD card, mmcblk0, ext4)"
    assert found["glibc"].seen == "2.36, the wheels need 2.28"
    assert found["profile"].seen == "raspberry-pi-5-8gb fits Raspberry Pi 5 Model B Rev 1.0"


@pytest.mark.parametrize(
    ("changes", "name", "state", "seen", "hint"),
    [
        (
            {"root_error": "Permission denied"},
            "install root",
            "failed",
            "/home/pi/.edgephi can't be written to: Permission denied",
            "on the device: sudo chown -R $USER /home/pi/.edgephi, chmod 700 /home/pi/.edgephi; "
            "if the disk is read-only, dmesg says why",
        ),
        (
            {"root_mode": "0775"},
            "install root",
            "failed",
            "/home/pi/.edgephi (mode 0775) can be written to by others",
            "on the device: chmod 700 /home/pi/.edgephi",
        ),
        (
            {"root_mode": "0755"},
            "install root",
            "warn",
            "/home/pi/.edgephi (mode 0755) can be read by others",
            "on the device: chmod 700 /home/pi/.edgephi",
        ),
        (
            {"root_owned": False},
            "install root",
            "failed",
            "/home/pi/.edgephi (mode 0700) belongs to somebody else",
            "on the device: sudo chown $USER /home/pi/.edgephi",
        ),
        (
            {"has_ensurepip": False},
            "pip",
            "warn",
            "'python3' can't make virtual environments with pip (no ensurepip)",
            "wheels are pushed from here then; on the device: sudo apt-get install python3-venv",
        ),
        (
            {"glibc": "2.24"},
            "glibc",
            "failed",
            "2.24 is older than 2.28, which the wheels need",
            "install a newer system there (Debian 12, Ubuntu 24.04), or build wheels for glibc 2.24",
        ),
        (
            {"glibc": None, "libc": "musl"},
            "glibc",
            "failed",
            "none found (musl)",
            "the runtime's wheels need a system with glibc; Alpine and the like have musl",
        ),
        (
            {"mem_available_bytes": 5 * 2**30},
            "memory",
            "warn",
            "5 GiB of 7.88 GiB available, the profile counts on 7.13 GiB",
            "on the device: end what else runs (ps aux --sort=-rss | head), or raise ram_reserved in the profile",
        ),
        (
            {"memory_limit_bytes": 4 * 2**30, "mem_available_bytes": 3 * 2**30},
            "memory",
            "warn",
            "a limit of 4 GiB on this user's processes, 3 GiB of it left; the profile counts on 7.25 GiB",
            "raise the limit (docker's --memory, systemd's MemoryMax, ulimit -v), "
            'or write it into the profile: memory_limit = "4 GiB"',
        ),
        (
            {"python_bits": 32, "python_platform": "arm-linux-gnueabihf", "arch": "armv8l"},
            "platform",
            "failed",
            "its Python is a program of 32 bits (arm-linux-gnueabihf) on a kernel of 64 bits (aarch64); the runtime's "
            "wheels are for 64 bits",
            "install Raspberry Pi OS (64-bit) there; or set `python` in the target's file to a Python of 64 bits",
        ),
        (
            {"python_bits": 32, "python_platform": "i386-linux-gnu", "kernel_arch": "i686", "board": "an old PC"},
            "platform",
            "failed",
            "its Python is a program of 32 bits (i386-linux-gnu); the runtime's wheels are for 64 bits",
            "install its system for 64 bits, or set `python` in the target's file to a Python of 64 bits there",
        ),
        (
            {"cpu_quota": 1.5, "cores": 1},
            "processors",
            "warn",
            "a quota allows 1.5 of them at once; inference uses 1 thread unless the profile says otherwise",
            "raise it (docker's --cpus, systemd's CPUQuota), or read the figures as those of so much of a device",
        ),
        (
            {
                "root_exec_error": "Operation not permitted",
                "mount_point": "/home",
                "mount_options": "rw,nosuid,noexec",
            },
            "install root",
            "failed",
            "/home/pi/.edgephi lets no program be loaded: /home is mounted noexec",
            "on the device: sudo mount -o remount,exec /home, and in /etc/fstab; or set install_root in the target's "
            "file to a folder on another disk",
        ),
        (
            {"root_exec_error": "Permission denied"},
            "install root",
            "failed",
            "/home/pi/.edgephi lets no program be loaded: Permission denied",
            "set install_root in the target's file to a folder on another disk",
        ),
        (
            {"free_files": 812},
            "disk",
            "failed",
            "/home/pi/.edgephi: only 812 more files can be made there (free inodes), and 5000 are needed",
            "on the device: df -i / shows them; remove small files, or set install_root in the target's file to a "
            "folder on another disk",
        ),
        (
            {"root_room_error": "Disk quota exceeded"},
            "disk",
            "failed",
            "/home/pi/.edgephi: its disk has 20 GB free, and doesn't give this user 500 MB of it: Disk quota exceeded",
            "on the device: quota -s shows what this user may have; or set install_root in the target's file to a "
            "folder on another disk",
        ),
        (
            {"free_disk_bytes": 3_000_000_000},
            "disk",
            "warn",
            "3 GB free (SD card, mmcblk0, ext4); the runtime and a bundle of Phi-3-mini take 3 GB",
            "free some space there, or set install_root in the target's file to a folder on a larger disk",
        ),
        (
            {"free_disk_bytes": 90_000_000, "storage": None, "storage_device": None, "file_system": None},
            "disk",
            "failed",
            "90 MB free: not even the runtime fits",
            "free some space there, or set install_root in the target's file to a folder on a larger disk",
        ),
        (
            {"governor": "powersave"},
            "governor",
            "warn",
            "powersave: the cores stay at their lowest frequency",
            "on the device: echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        ),
        (
            {"power_mode": "15W", "power_modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2}},
            "power mode",
            "warn",
            "15W: MAXN_SUPER is faster",
            "on the device: sudo nvpmodel -m 2 (fast), sudo nvpmodel -m 0 (back)",
        ),
        (
            {"power_mode": "low-power"},
            "power mode",
            "warn",
            "low-power: measurements will be slow",
            "on the device: powerprofilesctl set performance",
        ),
        (
            {"temp_c": 78.4},
            "temperature",
            "warn",
            "78 °C before any work",
            "wait until it has cooled down, and give it a fan: it soon becomes slower",
        ),
        (
            {"throttled": {"under_voltage_since_boot": True, "throttled_now": True, "soft_temp_limit_now": False}},
            "throttling",
            "warn",
            "under voltage since boot, throttled now",
            "it needs a power supply that is strong enough (5 V 3 A for a Pi 4, 5 V 5 A for a Pi 5); "
            "sudo reboot clears what has been",
        ),
        (
            {"throttled": {"soft_temp_limit_now": True}},
            "throttling",
            "warn",
            "soft temp limit now",
            "it needs a fan or a heat sink; sudo reboot clears what has been",
        ),
        (
            {"ram_bytes": 4 * 2**30},
            "profile",
            "failed",
            "the device has 4 GiB of memory, the profile says 8 GiB",
            "the target's file",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    changes: dict[str, Any], name: str, state: str, seen: str, hint: str
) -> None:
    check = judge(pi5_facts(**changes))[name]
    assert (check.state, check.seen) == (state, seen)
    if name == "profile":
        assert check.hint is not None and check.hint.startswith(f'in {hint}: profile = "raspberry-pi-5-4gb" (')
    else:
        assert check.hint == hint


@pytest.mark.parametrize("name", ["memory", "temperature", "throttling", "governor"])
def test_what_the_device_does_not_tell_is_skipped(name: str) -> None:
    silent = dict.fromkeys(("ram_bytes", "mem_available_bytes", "temp_c", "throttled", "governor"))
    found = judge(pi5_facts(**silent, board="a board"))
    assert found[name] == checks.Check(name, "skipped", "the device doesn't tell")


def test_a_pi_whose_firmware_may_not_be_asked() -> None:
    check = judge(pi5_facts(throttled=None))["throttling"]
    assert (check.state, check.hint) == ("skipped", "on the device: sudo usermod -aG video $USER")


@pytest.mark.parametrize(
    ("tags", "needed"),
    [
        (("linux_aarch64", "manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64"), (2, 34)),
        (("manylinux2014_x86_64",), (2, 17)),
        (("manylinux_2_9_x86_64", "manylinux_2_12_x86_64"), (2, 12)),
        (("manylinux2010_x86_64", "manylinux1_x86_64"), (2, 12)),
        (("win_amd64",), None),
        (("musllinux_1_2_x86_64", "linux_x86_64"), None),
    ],
)
def test_needed_glibc(tags: tuple[str, ...], needed: tuple[int, int] | None) -> None:
    assert checks.needed_glibc(tags) == needed


@pytest.mark.parametrize(
    ("skew_s", "state", "seen"),
    [
        (0.3, "ok", "0 s apart"),
        (-60, "ok", "60 s apart"),
        (61, "warn", "61 s ahead of this machine"),
        (-3600.4, "warn", "3600 s behind this machine"),
    ],
)
def test_clock(skew_s: float, state: str, seen: str) -> None:
    check = checks.clock(skew_s)
    assert (check.state, check.seen) == (state, seen)
    assert check.hint == (None if state == "ok" else "on the device: sudo timedatectl set-ntp true")


def test_powersave_that_adapts_is_no_fault(tmp_path: Path) -> None:
    for board in ("laptop-intel-linux", "laptop-amd-linux"):
        assert checks.governor(probe_of(board, tmp_path / board)).state == "ok"


@pytest.mark.parametrize(
    ("board", "profile", "expected"),
    [
        ("raspberry-pi-4-4gb", "raspberry-pi-4-4gb", {"throttling": "warn"}),
        ("raspberry-pi-5-8gb", "raspberry-pi-5-8gb", {}),
        ("jetson-orin-nano-jetpack5", "jetson-orin-nano-8gb", {"glibc": "failed", "power mode": "ok"}),
        ("jetson-orin-nano-jetpack6", "jetson-orin-nano-8gb", {"glibc": "ok", "power mode": "warn"}),
        ("jetson-orin-nano-jetpack7", "jetson-orin-nano-8gb", {"glibc": "ok", "power mode": "ok"}),
        ("jetson-agx-orin-jetpack5", "jetson-agx-orin-64gb", {"glibc": "failed", "power mode": "warn"}),
        ("jetson-agx-orin-jetpack6", "jetson-agx-orin-64gb", {"glibc": "ok", "power mode": "ok"}),
        ("jetson-agx-orin-jetpack7", "jetson-agx-orin-64gb", {"power mode": "warn"}),
        ("laptop-intel-linux", "laptop-npu-intel", {"governor": "ok", "power mode": "ok"}),
        ("laptop-amd-linux", "laptop-cpu-x86", {"power mode": "warn"}),
        ("laptop-amd-windows", "laptop-npu-amd", {"glibc": "skipped", "governor": "skipped"}),
        ("laptop-qualcomm-windows", "laptop-npu-qualcomm", {"glibc": "skipped"}),
    ],
)
def test_a_board_with_its_profile(board: str, profile: str, expected: dict[str, str], tmp_path: Path) -> None:
    found = judge(probe_of(board, tmp_path / "board"), load_profile(profile))
    assert found["profile"].state == "ok", found["profile"]
    assert found["install root"].state == "ok"
    assert {name: found[name].state for name in expected} == expected
    # The free disk space is that of the machine that runs the test.
    failed = {name for name, check in found.items() if check.state == "failed"} - {"disk"}
    assert failed == {name for name, state in expected.items() if state == "failed"}


def test_a_jetson_without_its_list_of_power_modes() -> None:
    assert checks.power_mode(pi5_facts(power_mode="15W")).state == "ok"


def test_a_profile_that_is_meant_for_another_board(tmp_path: Path) -> None:
    file = tmp_path / "targets" / "pi5.toml"
    target = PI5.model_copy(update={"path": file})
    check = judge(pi5_facts(), load_profile("raspberry-pi-4-8gb"), target)["profile"]
    assert (check.state, check.seen) == (
        "warn",
        "raspberry-pi-4-8gb is for bcm2711 or Raspberry Pi 4, the device is Raspberry Pi 5 Model B Rev 1.0",
    )
    assert check.hint == (
        f'in {file}: profile = "raspberry-pi-5-8gb" '
        "(recognized by 'bcm2712'; 7.88 GiB of memory, the profile counts on 8 GiB)"
    )


def test_a_device_that_no_profile_fits_says_how_to_write_one() -> None:
    check = judge(pi5_facts(arch="riscv64"))["profile"]
    assert check.state == "failed"
    assert check.hint is not None and check.hint.startswith("name one with --profile, or start your own: ")
