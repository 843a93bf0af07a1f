"""A rollout of a bundle in waves, canaries first: a device that fails is rolled back, and a rollout can be resumed.

A thread with a connection of its own works on each device. The threads only send events, through one queue, to the
generator, which alone writes the record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import Empty, Queue

from toolkit.agent.requests import Deactivate, ListReleases
from toolkit.bundle import Bundle, verify_bundle
from toolkit.catalog import Target, load_profile
from toolkit.deploy import Delivery, deploy
from toolkit.deploy.install import check_active
from toolkit.device import Device, Transport, connect
from toolkit.device.watched import WatchedTransport
from toolkit.errors import ToolkitError
from toolkit.events import DeviceEvent, Ended, Event, Question, Service, Step, Warning_, drain, listening
from toolkit.jobs.gate import deploy_gated, with_gate_figures, withdraw
from toolkit.jobs.rollout.record import (
    DeviceRecord,
    Restored,
    Rollout,
    RolloutOptions,
    Wave,
    claim,
    new_rollout,
    plan_waves,
    recall,
    save_rollout,
    stop_reason,
)

# The time that an interrupted rollout waits for its threads; one that hasn't ended by then dies with the process.
_CUT_S = 3.0
# The largest wave whose devices are all named when it begins; of a larger one only the first and the last are.
_NAMED = 8
# Ctrl-C doesn't reach a Windows process that waits for a queue without an end.
_LISTEN_S = 0.5


class _Cut(Exception):
    """The rollout was ended from outside; a device that was being worked on counts as not tried."""


@dataclass(frozen=True)
class _Job:
    """The bundle that every device gets, and the way it gets there."""

    bundle: Bundle
    delivery: Delivery
    gate: bool
    limit_bytes_per_s: float | None
    unlocked_packages: bool


@dataclass(frozen=True)
class _End:
    """The last message of a worker: its device's record, or the exception that ended the worker."""

    target: str
    seconds: float
    result: DeviceRecord | BaseException


def roll_out(
    bundle: Bundle,
    targets: Sequence[Target],
    options: RolloutOptions,
    *,
    fresh: bool = False,
    limit_bytes_per_s: float | None = None,
    unlocked_packages: bool = False,
) -> Service[Rollout]:
    """Deploy a bundle to targets, wave by wave, and return the record.

    An error on a device goes into the record, and the device is left with the release that was active there before. A
    wave starts only while no canary has failed and not more than `max_failures` devices have. Called again, the same
    rollout goes on: devices that are done are asked if the bundle is still active there, the others are tried; with
    `fresh` all are. Nobody is asked for passphrases, nor for consent: `unlocked_packages` gives it to packages without
    a locked hash. `limit_bytes_per_s` holds for each device. Raises ConfigError for profiles that are unknown or, with
    `gate`, have no limits, and while another process works on the same rollout; CorruptBundle; SignatureError before
    the first device when one of them wouldn't take the bundle. Closed in the middle, the generator ends the commands
    that run on the devices and leaves the record as far as it has come.
    """
    profiles = {target.profile: load_profile(target.profile) for target in targets}
    if options.gate:
        # Here, and once: figures change the bundle's id, and the time they take here isn't a device's time.
        for profile in profiles.values():
            bundle = yield from with_gate_figures(bundle, profile)
    delivery = Delivery(options.offline, options.wheels, options.force, source=options.source)
    delivery = delivery.approved(bundle, *targets)
    rollout = new_rollout(bundle, [target.name for target in targets], options)
    with claim(rollout):
        if not fresh:
            rollout = recall(rollout)
        unfinished = len(rollout.in_state("done")) < len(rollout.devices)
        if unfinished and options.source is None:
            yield Step(f"verify {bundle.manifest.name} here")
            yield from verify_bundle(bundle)
        job = _Job(bundle, replace(delivery, verified=unfinished), options.gate, limit_bytes_per_s, unlocked_packages)
        return (yield from _Rolling(job, targets, rollout).run())


class _Rolling:
    """A rollout under way."""

    def __init__(self, job: _Job, targets: Sequence[Target], rollout: Rollout) -> None:
        self._job = job
        self._targets = {target.name: target for target in targets}
        self._rollout = rollout
        self._tried: list[DeviceRecord] = []

    def run(self) -> Service[Rollout]:
        self._keep(self._rollout.model_copy(update={"stopped": None}))
        options = self._rollout.options
        waves = plan_waves(list(self._targets), options)
        for wave in waves:
            yield Step(f"wave {wave.number} of {len(waves)}, {_words(wave)}")
            yield from self._work_on(wave)
            reason = stop_reason(self._tried, options.max_failures)
            if reason and wave is not waves[-1]:
                self._keep(self._rollout.model_copy(update={"stopped": reason}))
                yield Warning_(f"stopped after wave {wave.number} of {len(waves)}: {reason}")
                break
        return self._rollout

    def _work_on(self, wave: Wave) -> Service[None]:
        said: Queue[DeviceEvent | _End] = Queue()
        records = [device for device in self._rollout.devices if device.target in wave.targets]
        workers = [_Worker(self._job, self._targets[record.target], record, said) for record in records]
        try:
            for worker in workers:
                worker.start()
            left = len(workers)
            while left:
                event = _listen(said)
                if isinstance(event, _End):
                    left -= 1
                    yield DeviceEvent(event.target, self._settle(event))
                elif event is not None:
                    yield event
        finally:
            _cut([worker for worker in workers if worker.is_alive()])
            self._settle_rest(said)

    def _settle(self, end: _End) -> Ended:
        if isinstance(end.result, BaseException):
            raise end.result
        self._tried.append(end.result)
        self._keep(self._rollout.with_device(end.result))
        return Ended(end.seconds, end.result.error)

    def _settle_rest(self, said: Queue[DeviceEvent | _End]) -> None:
        """Keep the records of devices whose end nobody had heard of when the rollout was cut."""
        while not said.empty():
            event = said.get()
            if isinstance(event, _End) and isinstance(event.result, DeviceRecord):
                self._settle(event)

    def _keep(self, rollout: Rollout) -> None:
        self._rollout = save_rollout(rollout)


def _words(wave: Wave) -> str:
    one, several = ("canary", "canaries") if wave.canary else ("device", "devices")
    names, count = wave.targets, len(wave.targets)
    named = ", ".join(names) if count <= _NAMED else f"{names[0]} … {names[-1]}"
    return f"{count} {one if count == 1 else several}: {named}"


def _listen(said: Queue[DeviceEvent | _End]) -> DeviceEvent | _End | None:
    try:
        return said.get(timeout=_LISTEN_S)
    except Empty:
        return None


def _cut(workers: Sequence[_Worker]) -> None:
    """End workers, all at the same time: one connection that hangs must not keep the others alive."""
    cutters = [threading.Thread(target=worker.cut, daemon=True) for worker in workers]
    for cutter in cutters:
        cutter.start()
    deadline = time.monotonic() + _CUT_S
    for thread in (*cutters, *(worker for worker in workers if worker.reached)):
        thread.join(max(0.0, deadline - time.monotonic()))


class _Worker(threading.Thread):
    """The thread that works on one device of a wave."""

    def __init__(self, job: _Job, target: Target, record: DeviceRecord, said: Queue[DeviceEvent | _End]) -> None:
        # A daemon: an address that never answers must not hold up the end of the process.
        super().__init__(name=f"edgephi-{target.name}", daemon=True)
        self._job = job
        self._target = target
        self._record = record
        self._said = said
        self._is_cut = False
        self._links: list[WatchedTransport] = []

    @property
    def reached(self) -> bool:
        """Tell if there was a connection. Without one there is nothing to end: a later one is closed at once."""
        return bool(self._links)

    def cut(self) -> None:
        """End the command that runs on the device and close the connections to it."""
        self._is_cut = True
        for link in self._links:
            link.cut()

    def run(self) -> None:
        began = time.monotonic()
        result: DeviceRecord | BaseException
        try:
            with listening(self._say):
                result = drain(self._bring(), self._say)
        except BaseException as exc:
            # A thread's exception would be printed and forgotten.
            result = exc
        seconds = round(time.monotonic() - began, 3)
        if isinstance(result, DeviceRecord) and result is not self._record:
            sent = sum(link.sent_bytes for link in self._links)
            result = result.model_copy(update={"seconds": seconds, "sent_bytes": sent})
        self._said.put(_End(self._target.name, seconds, result))

    def _say(self, event: Event) -> None:
        self._go_on()
        assert not isinstance(event, DeviceEvent)
        if isinstance(event, Question):
            event.granted = self._job.unlocked_packages
            return
        self._said.put(DeviceEvent(self._target.name, event))

    def _go_on(self) -> None:
        if self._is_cut:
            raise _Cut

    @contextmanager
    def _reach(self) -> Iterator[Device]:
        limit = self._job.limit_bytes_per_s
        with connect(self._target, limit_bytes_per_s=limit, wrap=self._watched) as device:
            self._go_on()
            yield device

    def _watched(self, transport: Transport) -> WatchedTransport:
        link = WatchedTransport(transport)
        self._links.append(link)
        if self._is_cut:
            link.cut()  # `cut` may have been through the list already
        return link

    def _bring(self) -> Service[DeviceRecord]:
        """Bring the bundle, active and working, or else bring back the release before; the record tells which.

        A device that was done keeps its record if the bundle is still active there.
        """
        record = DeviceRecord(target=self._record.target, wave=self._record.wave, canary=self._record.canary)
        bundle, entered = self._job.bundle, False
        before: str | None = None
        try:
            with self._reach() as device:
                before = _active(device)
                entered = True
                if self._record.state == "done" and before == bundle.id:
                    yield Step(f"{device.target.name}: {bundle.manifest.name} is active", skipped=True)
                    return self._record
                yield from self._deploy(device)
            return record.model_copy(update={"state": "done", "active": bundle.id})
        except ToolkitError as exc:
            self._go_on()  # a connection that was cut is no failure of the device
            failed = {"state": "failed", "error": exc.message, "hint": exc.hint, "exit_code": exc.exit_code}
            if entered:
                failed["restored"], failed["active"] = yield from self._restore(before)
            return record.model_copy(update=failed)

    def _deploy(self, device: Device) -> Service[None]:
        bundle, delivery = self._job.bundle, self._job.delivery
        if self._job.gate:
            verdict = yield from deploy_gated(bundle, device, delivery)
            verdict.enforce()
        else:
            yield from deploy(bundle, device, delivery)
        yield from check_active(device)

    def _restore(self, before: str | None) -> Service[tuple[Restored, str | None]]:
        """Make sure that the bundle isn't active; return what that took, and the release that is active now.

        This takes a new connection, since the old one may have failed.
        """
        try:
            with self._reach() as device:
                found = active = _active(device)
                if found == self._job.bundle.id and before is None:
                    # Nothing was active when this rollout came, so older entries of the pointer's history don't count.
                    device.ask(Deactivate())
                    active = None
                elif found == self._job.bundle.id:
                    active = yield from withdraw(device, self._job.bundle)
        except ToolkitError as exc:
            self._go_on()
            yield Warning_(f"{self._target.name}: nobody knows what is active there now: {exc.message}")
            return "unknown", None
        if found == before == active:
            return "unchanged", active
        return "rolled back" if active else "deactivated", active


def _active(device: Device) -> str | None:
    return device.ask(ListReleases()).pointer.release
