"""Devices: connections to them, their facts, and the check and choice of their profile."""

from __future__ import annotations

import platform
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from tests.support.impostors import make_target
from toolkit.agent.requests import TakeProbe
from toolkit.config import config_dir, shipped_dir
from toolkit.device import Device, Transport, check_profile, connect, identify
from toolkit.device.watched import WatchedTransport
from toolkit.errors import ConfigError, HostUnreachable


def test_every_connection_of_a_device_is_wrapped(tmp_path: Path) -> None:
    links: list[WatchedTransport] = []

    def watched(transport: Transport) -> WatchedTransport:
        links.append(WatchedTransport(transport))
        return links[-1]

    with connect(make_target(tmp_path / "root"), wrap=watched) as device:
        assert device.transport is links[0]
        another = device.dial()
        assert another is links[1]
        device.ask(TakeProbe())
        assert links[0].sent_bytes > 0, "the agent went over it"
        links[0].cut()
        with pytest.raises(HostUnreachable):
            device.ask(TakeProbe())
        another.close()


@pytest.mark.parametrize("name", [field.name for field in fields(Device)])
def test_nothing_of_a_device_changes(tmp_path: Path, name: str) -> None:
    with connect(make_target(tmp_path / "root")) as device, pytest.raises(FrozenInstanceError):
        setattr(device, name, None)


def test_a_tilde_means_the_login_folder(tmp_path: Path) -> None:
    with connect(make_target(Path("~/.edgephi"))) as device:
        assert device.ask(TakeProbe()).install_root == str(tmp_path / "home" / ".edgephi")


def test_a_device_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with connect(make_target(tmp_path / "root", profile="raspberry-pi-5-8gb")) as device:
        probe = device.ask(TakeProbe()).model_copy(update={"arch": "x86_64"})
        with pytest.raises(ConfigError) as error:
            check_profile(device, probe)
    assert error.value.message == ("here (profile raspberry-pi-5-8gb): the device is x86_64, the profile says aarch64")


def test_a_device_with_another_system_is_refused(tmp_path: Path) -> None:
    with connect(make_target(tmp_path / "root", profile="raspberry-pi-5-8gb")) as device:
        probe = device.ask(TakeProbe()).model_copy(update={"arch": "aarch64", "os": "windows"})
        with pytest.raises(ConfigError) as error:
            check_profile(device, probe)
    assert error.value.message == "here (profile raspberry-pi-5-8gb): the device runs windows, the profile says linux"


def test_a_device_is_identified_whatever_profile_its_target_names(tmp_path: Path) -> None:
    folder = config_dir() / "profiles"
    folder.mkdir(parents=True)
    text = (shipped_dir("profiles") / "laptop-cpu-x86.toml").read_text().replace("x86_64", platform.machine())
    (folder / "small.toml").write_text(text.replace('"16 GiB"', '"1 GiB"').replace('"4 GiB"', '"1 MiB"'))
    match = identify(make_target(tmp_path / "root", profile="nowhere"))
    assert match.profile.hardware.arch == platform.machine()
    assert match.reasons[0] == f"for any {platform.machine()} device with linux"


def test_a_board_with_half_the_memory_of_its_profile_is_refused(tmp_path: Path) -> None:
    with connect(make_target(tmp_path / "root", profile="raspberry-pi-5-8gb")) as device:
        probe = device.ask(TakeProbe()).model_copy(update={"arch": "aarch64", "ram_bytes": 4 * 2**30})
        with pytest.raises(ConfigError, match=r"has 4 GiB of memory, the profile says 8 GiB"):
            check_profile(device, probe)
        # Memory that firmware and GPU keep doesn't count as missing.
        check_profile(device, probe.model_copy(update={"ram_bytes": int(7.6 * 2**30)}))
