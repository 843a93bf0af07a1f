"""Rollouts of real bundles to several devices, some of which fail."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.support.asked import operations, record_requests
from tests.support.builds import bundle as build, follow
from tests.support.bundles import make
from tests.support.devices import pointer
from tests.support.fleets import (
    device_root,
    here,
    over,
    processes_naming,
    root_below_a_file,
    root_that_tires,
    switched_off,
)
from tests.support.keys import count_keygen, make_key, write_signers
from tests.support.pythons import script
from tests.support.servers import needs_root, needs_sshd, small_disk
from toolkit.agent.requests import Deactivate, Request
from toolkit.bundle import Bundle, open_bundle
from toolkit.bundle.signatures import sign
from toolkit.catalog import Target
from toolkit.deploy import deploy
from toolkit.device import connect
from toolkit.emulate import EmbeddedServer, PrivateSshd, start_loopback
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import DeviceEvent, Ended, Event, Progress, Step, Warning_, drain
from toolkit.jobs.rollout import Rollout, RolloutOptions, roll_out
from toolkit.jobs.rollout.record import claim, find_rollout, new_rollout, plan_waves

INT4 = "int4-rtn-b32"


@pytest.fixture
def int4() -> Bundle:
    return build(INT4)


@pytest.fixture
def unsent(tmp_path: Path) -> Bundle:
    """A bundle of three small files, for rollouts that send no file."""
    return make(tmp_path / "unsent")


@pytest.fixture(autouse=True)
def _no_user_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text("IdentityFile none\n")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("EDGEPHI_SSH_CONFIG", str(config))


def states(rollout: Rollout) -> dict[str, str]:
    return {device.target: device.state for device in rollout.devices}


def said_by(target: str, events: list[Event]) -> list[str]:
    """The steps of one device; a step that was already done begins with `=`."""
    found = [event.event for event in events if isinstance(event, DeviceEvent) and event.target == target]
    return [("= " if event.skipped else "") + event.text for event in found if isinstance(event, Step)]


def in_waves(events: list[Event]) -> Iterator[tuple[set[str], set[str]]]:
    """For each wave, the devices with events and the devices that ended in it."""
    heard: set[str] = set()
    ended: set[str] = set()
    for event in events:
        if isinstance(event, Step) and event.text.startswith("wave ") and heard:
            yield heard, ended
            heard, ended = set(), set()
        elif isinstance(event, DeviceEvent):
            assert event.target not in ended
            heard.add(event.target)
            ended |= {event.target} if isinstance(event.event, Ended) else set()
    yield heard, ended


def test_a_device_is_probed_and_provisioned_once(
    int4: Bundle, tmp_path: Path, runtimes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = tmp_path / "config" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "easy.toml").write_text('schema_version = 1\nextends = "local"\n[limits]\nmin_decode_tps = 0.001\n')
    target = here("d1", device_root(tmp_path / "d1", runtimes)).model_copy(update={"profile": "easy"})
    sent = record_requests(monkeypatch)
    assert states(follow(roll_out(int4, [target], RolloutOptions(gate=True)))) == {"d1": "done"}
    assert operations(sent) == [
        *("settle", "releases", "probe", "provision", "missing", "hold", "install"),
        *("releases", "measure", "bench", "missing", "releases", "verify", "check", "activate"),
        "check",
    ]


def test_eight_devices_of_which_two_fail_and_the_same_again(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    options = RolloutOptions(parallel=3, canary="1", max_failures=2)
    roots = {f"d{index}": tmp_path / f"d{index}" for index in range(1, 9)}
    for name in sorted({*roots} - {"d6"}):
        device_root(roots[name], runtimes)
    root_that_tires(roots["d6"], runtimes, loads=1)
    with start_loopback(tmp_path) as server:
        targets = [
            over(server, name, root) if name in ("d1", "d6", "d7") else here(name, root) for name, root in roots.items()
        ]
        targets[2] = switched_off("d3")
        events: list[Event] = []
        rollout = follow(roll_out(int4, targets, options), events)

        assert states(rollout) == {name: "failed" if name in ("d3", "d6") else "done" for name in roots}
        assert [(sorted(heard), heard == ended) for heard, ended in in_waves(events)] == [
            (list(wave.targets), True) for wave in plan_waves(list(roots), options)
        ]
        off, tired = rollout.devices[2], rollout.devices[5]
        assert off.error is not None and off.error.startswith("d3 (127.0.0.1:") and "connection refused" in off.error
        assert (off.exit_code, off.restored, off.sent_bytes) == (7, None, 0)
        assert tired.error == "d6: the runtime's process ended with SIGKILL"
        assert tired.hint is not None and "out-of-memory" in tired.hint
        assert (tired.exit_code, tired.restored, tired.active) == (7, "deactivated", None)
        assert pointer(roots["d6"])["release"] is None
        for device in rollout.devices:
            if device.state == "done":
                assert pointer(roots[device.target])["release"] == int4.id == device.active
                assert device.sent_bytes > int4.manifest.size_bytes and device.seconds > 0
        assert find_rollout(rollout.id) == rollout

        targets[2] = here("d3", roots["d3"])
        shutil.rmtree(roots["d6"] / "runtimes")
        (roots["d6"] / "runtimes").symlink_to(runtimes)
        events.clear()
        again = follow(roll_out(int4, targets, options), events)
    assert set(states(again).values()) == {"done"}
    assert again.id == rollout.id and again.created_utc == rollout.created_utc
    assert said_by("d1", events) == [f"= d1: {int4.manifest.name} is active"]
    assert again.devices[0] == rollout.devices[0]
    # The files that d6 has aren't sent again; d3 gets all of them.
    assert again.devices[5].sent_bytes == 0 < again.devices[2].sent_bytes
    assert pointer(roots["d3"])["release"] == pointer(roots["d6"])["release"] == int4.id


@pytest.mark.slow
@needs_sshd
def test_thirty_devices_of_which_three_fail(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    roots = {f"d{index:02}": tmp_path / f"d{index:02}" for index in range(1, 31)}
    for name, root in roots.items():
        if name == "d13":
            root_that_tires(root, runtimes, loads=1)
        elif name != "d21":
            device_root(root, runtimes)
    options = RolloutOptions(parallel=8, canary="10%", max_failures=3)
    with PrivateSshd(tmp_path) as server:
        targets = {name: over(server, name, root) for name, root in roots.items()}
        targets["d07"] = switched_off("d07")
        targets["d21"] = over(server, "d21", root_below_a_file(roots["d21"]))
        events: list[Event] = []
        rollout = follow(roll_out(int4, list(targets.values()), options), events)
    failed = {device.target: device for device in rollout.in_state("failed")}
    assert set(failed) == {"d07", "d13", "d21"} and len(rollout.in_state("done")) == 27
    assert [len(heard) for heard, _ in in_waves(events)] == [3, 8, 8, 8, 3]
    assert all(heard == ended for heard, ended in in_waves(events))
    assert "connection refused" in (failed["d07"].error or "")
    assert (failed["d13"].restored, pointer(roots["d13"])["release"]) == ("deactivated", None)
    assert {pointer(roots[device.target])["release"] for device in rollout.in_state("done")} == {int4.id}


def test_a_canary_that_fails_stops_it(unsent: Bundle, tmp_path: Path) -> None:
    blocked = root_below_a_file(tmp_path / "blocked")
    targets = [here("d1", blocked), *(here(f"d{n}", tmp_path / f"d{n}") for n in (2, 3))]
    events: list[Event] = []
    rollout = follow(roll_out(unsent, targets, RolloutOptions(max_failures=9)), events)
    assert states(rollout) == {"d1": "failed", "d2": "pending", "d3": "pending"}
    assert rollout.stopped == "canary failed: d1"
    assert Warning_("stopped after wave 1 of 2: canary failed: d1") in events
    assert rollout.devices[0].error is not None and "cannot create" in rollout.devices[0].error
    assert "Not a directory" in rollout.devices[0].error
    assert not (tmp_path / "d2").exists() and not (tmp_path / "d3").exists()


@pytest.mark.parametrize(("allowed", "tried"), [(1, 2), (2, 4), (4, 5)])
def test_more_failures_than_allowed_stop_it(allowed: int, tried: int, unsent: Bundle) -> None:
    targets = [switched_off(f"d{number}") for number in range(5)]
    options = RolloutOptions(parallel=2, canary="0", max_failures=allowed)
    rollout = follow(roll_out(unsent, targets, options))
    assert list(states(rollout).values()) == ["failed"] * tried + ["pending"] * (5 - tried)
    assert rollout.stopped == (f"failed devices: {tried}, allowed: {allowed}" if tried < 5 else None)
    # The next attempt counts its failures from zero.
    again = follow(roll_out(unsent, targets, options))
    assert states(again) == states(rollout)


def test_a_device_that_fails_goes_back_to_what_was_active(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    fp32 = build("fp32")
    root = root_that_tires(tmp_path / "d1", runtimes, loads=2)
    with connect(here("d1", root)) as device:
        follow(deploy(fp32, device))
    events: list[Event] = []
    (record,) = follow(roll_out(int4, [here("d1", root)], RolloutOptions()), events).devices
    assert (record.state, record.restored, record.active) == ("failed", "rolled back", fp32.id)
    assert pointer(root)["release"] == fp32.id
    assert said_by("d1", events)[-3:] == [
        f"d1: {int4.manifest.name} activated",
        "d1: load what is active and generate 4 tokens",
        f"d1: rolled back to {fp32.id[:12]}",
    ]


def test_what_cannot_be_loaded_is_not_activated(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    root = root_that_tires(tmp_path / "d1", runtimes, loads=0)
    (record,) = follow(roll_out(int4, [here("d1", root)], RolloutOptions())).devices
    assert (record.state, record.restored, record.active) == ("failed", "unchanged", None)
    assert not (root / "current.json").exists()


def test_what_was_active_and_does_not_work_any_more_is_withdrawn(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    root = device_root(tmp_path / "d1", runtimes)
    with connect(here("d1", root)) as device:
        follow(deploy(int4, device))
    (root / "releases" / int4.id / "genai_config.json").unlink()
    (record,) = follow(roll_out(int4, [here("d1", root)], RolloutOptions())).devices
    assert record.error is not None and "the runtime can't load this bundle" in record.error
    assert (record.restored, record.active) == ("deactivated", None)
    assert pointer(root)["release"] is None


def test_signers_are_asked_about_once_and_looked_at_before_each_device(
    unsent: Bundle, tmp_path: Path, runtimes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "me")
    follow(sign(unsent, key))
    signers = write_signers(tmp_path / "signers", me=key)
    targets = [
        here(name, device_root(tmp_path / name, runtimes)).model_copy(update={"allowed_signers": signers})
        for name in ("d1", "d2")
    ]
    asked = count_keygen(tmp_path, monkeypatch)
    options = RolloutOptions(parallel=1, canary="0", max_failures=2)
    rollout = follow(roll_out(unsent, targets, options))
    assert [device.exit_code for device in rollout.devices] == [7, 7], "installed, and no model to load"
    assert asked() == ["check-novalidate", "find-principals", "verify"]

    def remove_signer(event: Event) -> None:
        if isinstance(event, DeviceEvent) and isinstance(event.event, Ended):
            signers.write_text("")

    rollout = drain(roll_out(unsent, targets, options, fresh=True), remove_signer)
    assert [device.exit_code for device in rollout.devices] == [7, 9]


def test_a_gate_without_limits_ends_it_before_any_device(unsent: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile 'local' has no limits to check"):
        follow(roll_out(unsent, [here("d1", tmp_path / "d1")], RolloutOptions(gate=True)))
    assert not (tmp_path / "d1").exists()


def test_a_corrupt_bundle_ends_it_before_any_device(int4: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(int4.path, folder)
    (folder / "genai_config.json").chmod(0o644)
    (folder / "genai_config.json").write_text("{}")
    with pytest.raises(CorruptBundle):
        follow(roll_out(open_bundle(folder), [here("d1", tmp_path / "d1")], RolloutOptions()))
    assert not (tmp_path / "d1").exists()


def test_a_device_that_goes_away_in_mid_push_is_not_known_any_more(tmp_path: Path, runtimes: Path) -> None:
    fp32 = build("fp32")
    root = device_root(tmp_path / "d1", runtimes)
    events: list[Event] = []
    with EmbeddedServer(tmp_path) as server:
        service = roll_out(fp32, [over(server, "d1", root)], RolloutOptions())
        for event in service:
            events.append(event)
            if isinstance(event, DeviceEvent) and isinstance(event.event, Step) and "push" in event.event.text:
                server.kill()
    (record,) = find_rollout("").devices
    assert (record.state, record.exit_code, record.restored) == ("failed", 7, "unknown")
    assert record.error is not None and "connection was lost" in record.error
    warnings = [e.event.text for e in events if isinstance(e, DeviceEvent) and isinstance(e.event, Warning_)]
    assert warnings[0].startswith("d1: nobody knows what is active there now: d1 (127.0.0.1:")


def test_ended_while_devices_do_not_answer_it_does_not_wait_for_them(
    unsent: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device's address accepts connections and then sends nothing."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = int(silent.getsockname()[1])
        target = Target(name="d1", host="127.0.0.1", port=port, profile="local")
        service = roll_out(unsent, [target], RolloutOptions())
        Thread(target=silent.accept, daemon=True).start()
        for event in service:
            if isinstance(event, Step) and event.text.startswith("wave 1"):
                break
        began = time.monotonic()
        service.close()
        assert time.monotonic() - began < 1
    assert states(find_rollout("")) == {"d1": "pending"}


def test_a_device_that_never_ends_keeps_nobody_waiting(
    int4: Bundle, tmp_path: Path, runtimes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device of a wave logs in and says nothing, one counts for ever: both fail, and the others are done."""
    monkeypatch.setattr(Request, "longest_silence_s", 6.0)
    counting = '{"protocol": 1, "event": {"type": "progress", "label": "x", "done": 1, "total": 2, "unit": "steps"}}'
    mute = script(tmp_path / "mute", "exec sleep 300")
    endless = script(tmp_path / "endless", f"while :; do echo '{counting}'; sleep 0.1; done")
    targets = [here(name, device_root(tmp_path / name, runtimes)) for name in ("d1", "d2", "d3", "d4")]
    targets[1] = targets[1].model_copy(update={"python": str(mute)})
    targets[2] = targets[2].model_copy(update={"python": str(endless)})
    rollout = follow(roll_out(int4, targets, RolloutOptions(max_failures=2)))
    assert states(rollout) == {"d1": "done", "d2": "failed", "d3": "failed", "d4": "done"}
    assert [device.error for device in rollout.devices][1:3] == [
        "d2: no progress: its agent said nothing",
        "d3: no progress: its agent said things, but nothing came nearer to an end",
    ]


def test_one_rollout_at_a_time(unsent: Bundle, tmp_path: Path) -> None:
    target = switched_off("d1")
    with claim(new_rollout(unsent, ["d1"], RolloutOptions())), pytest.raises(ConfigError) as error:
        follow(roll_out(unsent, [target], RolloutOptions()))
    assert error.value.message == "this process runs the same rollout"


def test_a_record_is_written_after_each_device(unsent: Bundle, tmp_path: Path) -> None:
    targets = [switched_off(name) for name in ("d1", "d2")]
    seen = []
    for event in roll_out(unsent, targets, RolloutOptions(canary="0", parallel=1, max_failures=2)):
        if isinstance(event, DeviceEvent) and isinstance(event.event, Ended):
            (path,) = (tmp_path / "data" / "rollouts").glob("*.json")
            seen.append([device["state"] for device in json.loads(path.read_text())["devices"]])
    assert seen == [["failed", "pending"], ["failed", "failed"]]


def test_what_a_device_has_is_looked_at_and_not_believed(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    root = device_root(tmp_path / "d1", runtimes)
    target, events = here("d1", root), list[Event]()
    follow(roll_out(int4, [target], RolloutOptions()), events)
    assert any(isinstance(e, DeviceEvent) and isinstance(e.event, Progress) and e.event.label == "push" for e in events)
    # The bundle is verified here once, and not for each device.
    assert next(event for event in events if isinstance(event, Step)) == Step(f"verify {int4.manifest.name} here")
    assert not [text for text in said_by("d1", events) if text.endswith(" here")]

    with connect(target) as device:
        device.ask(Deactivate())
    events.clear()
    follow(roll_out(int4, [target], RolloutOptions()), events)
    assert pointer(root)["release"] == int4.id
    assert f"= d1: {int4.manifest.name} is installed" in said_by("d1", events)

    events.clear()
    follow(roll_out(int4, [target], RolloutOptions(), fresh=True), events)
    assert said_by("d1", events)[-2:] == [
        f"= d1: {int4.manifest.name} is active",
        "d1: load what is active and generate 4 tokens",
    ]


@needs_root
def test_a_device_without_room(int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    with small_disk(tmp_path / "d1", "40m") as disk:
        (disk / "runtimes").symlink_to(runtimes)
        (full,) = follow(roll_out(int4, [here("d1", disk)], RolloutOptions())).devices
    assert full.error is not None and "to send" in full.error and "free under" in full.error
    assert (full.state, full.exit_code, full.restored) == ("failed", 7, "unchanged")


@pytest.mark.parametrize("kind", ["loopback", "local"])
def test_ended_in_the_middle_it_leaves_nothing_running(kind: str, int4: Bundle, tmp_path: Path, runtimes: Path) -> None:
    roots = [device_root(tmp_path / name, runtimes) for name in ("d1", "d2")]
    with start_loopback(tmp_path) as server:
        targets = [here(root.name, root) if kind == "local" else over(server, root.name, root) for root in roots]
        service = roll_out(int4, [switched_off("d0"), *targets], RolloutOptions(canary="0", parallel=3))
        loading = set()
        for event in service:
            if isinstance(event, DeviceEvent) and isinstance(event.event, Step) and "load it" in event.event.text:
                loading.add(event.target)
            if loading == {"d1", "d2"}:
                break
        began = time.monotonic()
        service.close()
        assert time.monotonic() - began < 5
        deadline = time.monotonic() + 10
        while processes_naming(tmp_path):
            assert time.monotonic() < deadline, "an agent is still running"
            time.sleep(0.1)
    assert states(find_rollout("")) == {"d0": "failed", "d1": "pending", "d2": "pending"}
