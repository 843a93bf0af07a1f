"""The probe on boards that weren't at hand, and each of its parsers on texts that it mustn't misread."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.boards import BOARDS, payload_of
from toolkit.agent.device import parsers, reading

ORIN = {"arch": "aarch64", "soc": "tegra234", "os": "linux", "governor": "schedutil"}
EXPECTED: dict[str, dict[str, Any]] = {
    "raspberry-pi-4-4gb": {
        "board": "Raspberry Pi 4 Model B Rev 1.2",
        "soc": "bcm2711",
        "arch": "aarch64",
        "glibc": "2.36",
        "ram_bytes": 3885396 * 1024,
        "storage": "SD card",
        "storage_device": "mmcblk0",
        "file_system": "ext4",
        "governor": "ondemand",
        "power_mode": None,
        "jetson": None,
        "accelerators": [],
        "temp_c": 63.29,
    },
    "raspberry-pi-5-8gb": {
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "soc": "bcm2712",
        "storage": "NVMe",
        "storage_device": "nvme0n1",
        "isa": ["asimd", "asimddp", "asimdhp", "fphp"],
    },
    "jetson-orin-nano-jetpack5": ORIN
    | {
        "glibc": "2.31",
        "storage": "SD card",
        "jetson": {"l4t": "35.4.1", "jetpack": "5.1.2"},
        "cuda": "11.4.19",
        "power_mode": "15W",
        "power_modes": {"15W": 0, "7W": 1},
        "rails_mw": {"VDD_IN": 4418, "VDD_CPU_GPU_CV": 618, "VDD_SOC": 1370},
        "accelerators": ["jetson: L4T 35.4.1, JetPack 5.1.2"],
        "temp_c": 44.406,
    },
    "jetson-orin-nano-jetpack6": ORIN
    | {
        "storage": "NVMe",
        "jetson": {"l4t": "36.4.4", "jetpack": "6.2.1"},
        "cuda": "12.6.11",
        "power_mode": "25W",
        "power_modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3},
        "accelerators": ["jetson: L4T 36.4.4, JetPack 6.2.1", "cuda: Orin (nvgpu) (driver 540.4.0)"],
    },
    "jetson-orin-nano-jetpack7": ORIN
    | {"jetson": {"l4t": "39.2.0", "jetpack": "7.2"}, "power_mode": "MAXN_SUPER", "glibc": "2.39"},
    "jetson-agx-orin-jetpack5": ORIN
    | {
        "board": "Jetson AGX Orin",
        "storage": "eMMC",
        "jetson": {"l4t": "35.3.1", "jetpack": "5.1.1"},
        "power_mode": "MODE_30W",
        "rails_mw": {"VDD_GPU_SOC": 1988, "VDD_CPU_CV": 398, "VIN_SYS_5V0": 3625, "VDDQ_VDD2_1V8AO": 403},
    },
    # Without the package nvidia-jetpack, only the first number is known.
    "jetson-agx-orin-jetpack6": ORIN | {"jetson": {"l4t": "36.3.0", "jetpack": "6"}, "power_mode": "MAXN"},
    "jetson-agx-orin-jetpack7": ORIN | {"jetson": {"l4t": "39.2.0", "jetpack": "7.2"}, "power_mode": "MODE_50W"},
    "laptop-intel-linux": {
        "board": "XPS 13 9350",
        "soc": None,
        "arch": "x86_64",
        "cpu": "Intel(R) Core(TM) Ultra 7 258V",
        "storage": "NVMe",
        "storage_device": "nvme0n1",
        "governor": "powersave",
        "governor_driver": "intel_pstate",
        "power_mode": "balanced",
        "accelerators": ["npu: Intel NPU (intel_vpu, 8086:643e)"],
    },
    "laptop-amd-linux": {
        "storage": "NVMe",
        "file_system": "btrfs",
        "power_mode": "low-power",
        "accelerators": ["npu: AMD NPU (amdxdna, 1022:17f0)"],
    },
    "laptop-qualcomm-linux": {
        "soc": "x1e80100",
        "storage": "NVMe",
        "accelerators": ["npu: Qualcomm Hexagon NPU (fastrpc-cdsp)"],
    },
    "laptop-intel-windows": {
        "arch": "x86_64",
        "os": "windows",
        "board": "LENOVO 21NS000AGE",
        "os_name": "Microsoft Windows 11 Pro 10.0.26100",
        "cpu": "Intel(R) Core(TM) Ultra 7 258V",
        "ram_bytes": 33797074944,
        "mem_available_bytes": 21054372 * 1024,
        "storage": "NVMe",
        "accelerators": ["npu: Intel(R) AI Boost"],
    },
    "laptop-amd-windows": {
        "cpu": "AMD Ryzen AI 9 HX 370 w/ Radeon 890M",
        "accelerators": ["npu: AMD NPU Compute Accelerator Device"],
    },
    "laptop-qualcomm-windows": {
        "arch": "aarch64",
        "accelerators": ["npu: Snapdragon(R) X Elite - X1E80100 - Qualcomm(R) Hexagon(TM) NPU"],
    },
}


def test_every_board_is_expected() -> None:
    assert EXPECTED.keys() == {folder.name for folder in BOARDS.iterdir() if folder.is_dir()}


@pytest.mark.parametrize("board", EXPECTED)
def test_a_board(board: str, tmp_path: Path) -> None:
    facts = payload_of(board, tmp_path / "board")
    assert {name: facts[name] for name in EXPECTED[board]} == EXPECTED[board]
    assert (facts["root_error"], facts["root_mode"], facts["root_owned"]) == (None, "0700", True)


def test_a_pi_that_is_short_of_power(tmp_path: Path) -> None:
    throttled = payload_of("raspberry-pi-4-4gb", tmp_path / "board")["throttled"]
    assert sorted(name for name, on in throttled.items() if on) == [
        "throttled_now",
        "throttled_since_boot",
        "under_voltage_now",
        "under_voltage_since_boot",
    ]


@pytest.mark.parametrize(
    ("text", "soc"),
    [
        ("brcm,bcm2712\0", "bcm2712"),
        ("vendor,board\0nvidia,tegra234", "tegra234"),
        ("linux-dummy-virt", None),
        ("", None),
    ],
)
def test_parse_compatible(text: str, soc: str | None) -> None:
    assert parsers.parse_compatible(text) == soc


@pytest.mark.parametrize(("text", "version"), [("glibc 2.36", "2.36"), ("musl 1.2.5", None), ("", None)])
def test_parse_glibc(text: str, version: str | None) -> None:
    assert parsers.parse_glibc(text) == version


def test_parse_versions_of_a_jetson() -> None:
    assert parsers.parse_tegra_release("# R38 (release), REVISION: 4.0, GCID: 1") == "38.4.0"
    assert parsers.parse_tegra_release("") is None
    assert parsers.parse_jetpack("7.1-b50\n", "38.4.0") == "7.1"
    assert parsers.parse_jetpack("", "38.4.0") == "7"
    assert parsers.parse_jetpack("", "99.1") is None


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("ImportError: /lib/libc.so.6: version `GLIBC_2.34' not found (required by /x/y.so)", "glibc 2.34"),
        ("ImportError: /lib/x: version `GLIBCXX_3.4.29' not found (required by y)", "a libstdc++ with GLIBCXX_3.4.29"),
        ("ImportError: libcudart.so.12: cannot open shared object file", None),
    ],
)
def test_parse_missing_library(text: str, missing: str | None) -> None:
    assert parsers.parse_missing_library(text) == missing


def test_parse_py_launcher() -> None:
    new = (
        " -V:3.13 *        C:\\Python313\\python.exe\r\n -V:3.11          C:\\Program Files\\Python311\\python.exe\r\n"
    )
    old = "Installed Pythons found by py Launcher for Windows\n -3.11-64 *\tC:\\Python311\\python.exe\n"
    assert parsers.parse_py_launcher(new) == ["C:\\Python313\\python.exe", "C:\\Program Files\\Python311\\python.exe"]
    assert parsers.parse_py_launcher(old) == ["C:\\Python311\\python.exe"]
    assert parsers.parse_py_launcher("No installed Pythons found!\n") == []


def test_parse_nvpmodel() -> None:
    assert parsers.parse_nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_15W\n2\n") == "MODE_15W"
    assert parsers.parse_nvpmodel("NVPM ERROR: no such file\n") is None
    assert parsers.parse_nvpmodel_conf("# POWER_MODEL ID=9 NAME=NO\n< POWER_MODEL ID=0 NAME=MAXN >\n") == {"MAXN": 0}


def test_parse_tegrastats_leaves_out_what_is_off() -> None:
    line = "RAM 2345/7620MB (lfb 1x4MB) CV0@-256C CPU@48.5C tj@49C NC 0mW/0mW VDD_IN 4800mW/4790mW"
    assert parsers.parse_tegrastats(line) == {
        "temp_c": {"CPU": 48.5, "tj": 49.0},
        "rails_mw": {"VDD_IN": 4800},
    }
    assert parsers.parse_tegrastats("") == {"temp_c": {}, "rails_mw": {}}


def test_parse_nvidia_smi() -> None:
    text = "NVIDIA GeForce RTX 4070 Laptop GPU, 550.120, 8188 MiB\nOrin (nvgpu), 540.4.0, [N/A]\n"
    assert parsers.parse_nvidia_smi(text) == [
        "NVIDIA GeForce RTX 4070 Laptop GPU (driver 550.120, 8188 MiB)",
        "Orin (nvgpu) (driver 540.4.0)",
    ]
    assert parsers.parse_nvidia_smi("") == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "CUDA Version 10.2.300", '{"cuda": 1}'])
def test_parse_cuda_version_of_something_else(text: str) -> None:
    assert parsers.parse_cuda_version(text) is None


def test_parse_accel_uevent() -> None:
    assert parsers.parse_accel_uevent("DRIVER=ethosu\nOF_NAME=npu\n") == "NPU (ethosu)"
    assert parsers.parse_accel_uevent("DRIVER=rocket\nPCI_ID=1234:0001\n") == "NPU (rocket, 1234:0001)"
    assert parsers.parse_accel_uevent("PCI_ID=8086:643E\n") is None


MOUNTS = r"""22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 8:1 / /mnt/a\040disk rw - vfat /dev/sda1 rw
24 22 0:40 / /srv rw shared:3 master:1 - nfs4 10.0.0.2:/volume1 rw,vers=4.2
25 24 259:1 / /srv rw - ext4 /dev/nvme0n1p1 rw
cut off
"""


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/home/pi", "/dev/root"),
        ("/mnt/a disk/x", "/dev/sda1"),
        ("/mnt/a diskette", "/dev/root"),
        # Of two mounts at one place the later one is seen.
        ("/srv/edgephi", "/dev/nvme0n1p1"),
    ],
)
def test_the_mount_that_a_path_lies_on(path: str, source: str) -> None:
    mounts = parsers.parse_mountinfo(MOUNTS)
    assert len(mounts) == 4
    assert parsers.mount_of(mounts, path)["source"] == source


def test_no_mounts() -> None:
    assert parsers.mount_of(parsers.parse_mountinfo(""), "/home") is None


@pytest.mark.parametrize(
    ("disk", "path", "card", "kind"),
    [
        ("mmcblk0", "/sys/devices/mmc0/mmcblk0", "SD", "SD card"),
        ("mmcblk0", "/sys/devices/mmc0/mmcblk0", "MMC", "eMMC"),
        ("nvme0n1", "/sys/devices/pci0000:00/nvme/nvme0/nvme0n1", "", "NVMe"),
        ("sda", "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/host0/sda", "", "USB"),
        ("sda", "/sys/devices/pci0000:00/0000:00:17.0/ata1/host0/sda", "", "SATA"),
        ("sda", "/sys/devices/platform/soc@0/1d84000.ufshc/host0/sda", "", "UFS"),
        ("vda", "/sys/devices/platform/a003e00.virtio_mmio/virtio1/block/vda", "", "virtual"),
        ("loop0", "/sys/devices/virtual/block/loop0", "", "virtual"),
        ("sda", "/sys/devices/pci0000:00/host2/target2:0:0/sda", "", "other"),
    ],
)
def test_storage_kind(disk: str, path: str, card: str, kind: str) -> None:
    assert parsers.storage_kind(disk, path, card) == kind


@pytest.mark.parametrize("text", ["", "Access denied", "{}", "[]", '{"npus": null}'])
def test_parse_windows_of_something_else(text: str) -> None:
    assert parsers.parse_windows(text) == {}


def test_parse_windows_with_what_was_not_told() -> None:
    text = (
        '\ufeff{"manufacturer":"","model":"","ram":null,"available_kib":null,"system":"","version":"","cpu":"",'
        '"npus":[{"name":"Intel(R) AI Boost","id":"PCI\\\\VEN_8086","status":"Error"}],"bus":"","disk":""}\r\n'
    )
    facts = parsers.parse_windows(text)
    assert facts.pop("npus") == []
    assert set(facts.values()) == {None}


def test_parse_powercfg() -> None:
    text = (BOARDS / "laptop-intel-windows" / "powercfg.txt").read_text()
    assert parsers.parse_powercfg(text) == "Balanced"
    assert parsers.parse_powercfg("GUID des Energieschemas: 8c5e7fda  (Höchstleistung)\r\n") == "Höchstleistung"
    assert parsers.parse_powercfg("") is None


def test_a_tool_that_goes_on_for_ever_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("endless", "echo first; exec sleep 60"), ("silent", "exec sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    started = time.monotonic()
    assert reading.first_output_line("endless") == "first\n"
    assert reading.first_output_line("silent", timeout_s=0.2) == ""
    assert reading.first_output_line("missing") == ""
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("machine", "platform", "bits", "arch"),
    [
        ("aarch64", "linux-aarch64", 64, "aarch64"),
        ("x86_64", "linux-x86_64", 64, "x86_64"),
        # Of a real Python of 32 bits on a kernel of 64, whose `sysconfig` repeats the kernel's word.
        ("x86_64", "linux-x86_64", 32, "i686"),
        ("aarch64", "linux-aarch64", 32, "armv8l"),
        ("armv7l", "linux-armv7l", 32, "armv7l"),
        ("AMD64", "win-amd64", 64, "x86_64"),
        ("AMD64", "win32", 32, "i686"),
        # An ARM Windows translates programs for x86.
        ("ARM64", "win-amd64", 64, "x86_64"),
        ("ARM64", "win-arm64", 64, "aarch64"),
        ("arm64", "macosx-11.0-arm64", 64, "aarch64"),
    ],
)
def test_the_architecture_of_programs(machine: str, platform: str, bits: int, arch: str) -> None:
    assert parsers.program_arch(machine, platform, bits) == arch


@pytest.mark.parametrize(
    ("text", "ticks"),
    [
        ("cpu  100 5 20 9000 300 1 2 7 50 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n", 135),
        ("cpu  100 5 20 9000\n", None),
        ("", None),
    ],
)
def test_parse_busy_ticks(text: str, ticks: int | None) -> None:
    assert parsers.parse_busy_ticks(text) == ticks
