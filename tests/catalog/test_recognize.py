from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.boards import pi5_facts, probe_of
from toolkit.catalog import Profile
from toolkit.catalog.profile import list_profiles
from toolkit.catalog.recognize import Match, misfit, propose_profile, recognized
from toolkit.errors import ConfigError


def profiles() -> list[Profile]:
    return [profile for profile in list_profiles() if isinstance(profile, Profile)]


def propose(**changes: Any) -> Match:
    return propose_profile(pi5_facts(**changes), profiles(), "board")


def refusal(**changes: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        propose(**changes)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize(
    ("board", "profile"),
    [
        ("raspberry-pi-4-4gb", "raspberry-pi-4-4gb"),
        ("raspberry-pi-5-8gb", "raspberry-pi-5-8gb"),
        ("jetson-orin-nano-jetpack5", "jetson-orin-nano-8gb"),
        ("jetson-orin-nano-jetpack6", "jetson-orin-nano-8gb"),
        ("jetson-orin-nano-jetpack7", "jetson-orin-nano-8gb"),
        ("jetson-agx-orin-jetpack5", "jetson-agx-orin-64gb"),
        ("jetson-agx-orin-jetpack6", "jetson-agx-orin-64gb"),
        ("jetson-agx-orin-jetpack7", "jetson-agx-orin-64gb"),
        ("laptop-intel-linux", "laptop-npu-intel"),
        ("laptop-amd-linux", "laptop-cpu-x86"),
        ("laptop-amd-windows", "laptop-npu-amd"),
        ("laptop-qualcomm-windows", "laptop-npu-qualcomm"),
    ],
)
def test_a_board_gets_its_profile(board: str, profile: str, tmp_path: Path) -> None:
    probe = probe_of(board, tmp_path / "board")
    assert propose_profile(probe, profiles(), board).profile.name == profile


@pytest.mark.parametrize(
    ("ram_gib", "profile"),
    [
        (3.9, "raspberry-pi-5-4gb"),
        (6.3, "raspberry-pi-5-4gb"),
        (7.9, "raspberry-pi-5-8gb"),
        (15.8, "raspberry-pi-5-16gb"),
    ],
)
def test_the_memory_decides_between_a_boards_sizes(ram_gib: float, profile: str) -> None:
    assert propose(ram_bytes=int(ram_gib * 2**30)).profile.name == profile


def test_it_says_why() -> None:
    assert propose().reasons == ("recognized by 'bcm2712'", "7.88 GiB of memory, the profile counts on 8 GiB")


def test_what_a_plain_profile_leaves_unused_is_said(tmp_path: Path) -> None:
    match = propose_profile(probe_of("laptop-amd-linux", tmp_path / "board"), profiles(), "amd")
    assert match.reasons == (
        "for any x86_64 device with linux",
        "30.4 GiB of memory, the profile counts on 16 GiB",
        "a profile of your own could count on all of the memory",
        "what it doesn't use: npu: AMD NPU (amdxdna, 1022:17f0)",
        "not laptop-npu-amd: the device runs linux, the profile says windows",
    )


def test_a_board_with_less_memory_than_any_of_its_profiles() -> None:
    error = refusal(ram_bytes=2 * 2**30)
    assert error.message == (
        "board: no profile fits Raspberry Pi 5 Model B Rev 1.0 (aarch64, linux, 2 GiB)\n"
        "  raspberry-pi-5-4gb: the device has 2 GiB of memory, the profile says 4 GiB\n"
        "  raspberry-pi-5-8gb: the device has 2 GiB of memory, the profile says 8 GiB\n"
        "  raspberry-pi-5-16gb: the device has 2 GiB of memory, the profile says 16 GiB"
    )
    assert error.hint == (
        "name one with --profile, or start your own: "
        "edgephi profiles show raspberry-pi-5-4gb --toml > profiles/NAME.toml"
    )


def test_a_board_that_no_profile_knows() -> None:
    error = refusal(board="NVIDIA Jetson Orin NX Engineering Reference Developer Kit", soc="tegra234")
    assert error.message.startswith("board: no profile fits NVIDIA Jetson Orin NX")
    assert "  jetson-orin-nano-8gb: nothing there is called 'Orin Nano'" in error.message
    assert "  raspberry-pi-5-8gb: nothing there is called 'bcm2712' or 'Raspberry Pi 5'" in error.message
    assert "laptop" not in error.message


@pytest.mark.parametrize("board", ["laptop-intel-windows", "laptop-qualcomm-linux"])
def test_an_npu_under_the_other_system_names_its_profile(board: str, tmp_path: Path) -> None:
    probe = probe_of(board, tmp_path / "board")
    with pytest.raises(ConfigError, match=rf"  laptop-npu-{board.split('-')[1]}: the device runs {probe.os}, "):
        propose_profile(probe, profiles(), "laptop")


def test_a_system_without_any_profile_names_them_all() -> None:
    message = refusal(board="Mac16,1", soc=None, os="darwin").message
    assert message.count("\n") == len(profiles()) - 1
    assert "  local: " not in message


def test_this_machines_profile_is_never_proposed() -> None:
    (local,) = [profile for profile in profiles() if profile.name == "local"]
    own = {"arch": local.hardware.arch, "os": local.hardware.os, "ram_bytes": local.hardware.ram_bytes}
    with pytest.raises(ConfigError, match="no profile fits"):
        propose_profile(pi5_facts(**own), [local], "here")


def test_a_variant_comes_after_what_it_changes_and_ones_own_board_counts() -> None:
    Path("profiles").mkdir()
    head = 'schema_version = 1\nextends = "raspberry-pi-5-8gb"\n'
    Path("profiles/a-tuned.toml").write_text(head + "[runtime]\nthreads = 3\n")
    assert propose().profile.name == "raspberry-pi-5-8gb"
    Path("profiles/carrier.toml").write_text(head + '[hardware]\nram = "8.5 GiB"\nrecognized_by = ["Carrier 7"]\n')
    assert propose().profile.name == "raspberry-pi-5-8gb"
    assert propose(board="Our CARRIER 7").profile.name == "carrier"


def test_a_device_that_cannot_tell_its_memory() -> None:
    match = propose(ram_bytes=None)
    assert match.profile.name == "raspberry-pi-5-4gb"
    assert match.reasons == ("recognized by 'bcm2712'",)


def test_misfit_and_recognized_of_a_device_that_does_not_tell_its_soc() -> None:
    (pi,) = [profile for profile in profiles() if profile.name == "raspberry-pi-5-8gb"]
    silent = pi5_facts(soc=None)
    assert misfit(pi, silent) is None
    assert recognized(pi, silent) == "Raspberry Pi 5 Model B Rev 1.0"
    assert (
        misfit(pi, silent.model_copy(update={"arch": "x86_64", "kernel_arch": "x86_64"}))
        == "the device is x86_64, the profile says aarch64"
    )


def test_a_device_whose_programs_are_not_its_kernels() -> None:
    (pi,) = [profile for profile in profiles() if profile.name == "raspberry-pi-5-8gb"]
    translated = pi5_facts(arch="x86_64", python_platform="win-amd64", kernel_arch="ARM64")
    assert misfit(pi, translated) == "its Python is for x86_64 (win-amd64), the profile says aarch64"
    narrow = pi5_facts(arch="armv8l", python_bits=32, python_platform="arm-linux-gnueabihf")
    seen = (
        "its Python is a program of 32 bits (arm-linux-gnueabihf) on a kernel of 64 bits (aarch64); "
        "the runtime's wheels are for 64 bits"
    )
    assert misfit(pi, narrow) == seen
    with pytest.raises(ConfigError) as error:
        propose_profile(narrow, profiles(), "pi5")
    assert error.value.message == f"pi5: {seen}"
    assert error.value.hint is not None and error.value.hint.startswith("install Raspberry Pi OS (64-bit) there")
