"""The conversation with one device's agent, which is put there, started for each request, and replaced when damaged."""

from __future__ import annotations

import contextlib
import getpass
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.agent import PROTOCOL, agent_archive, agent_sha256
from toolkit.agent.answers import Missing, parse
from toolkit.agent.archive import agent_file, start_argv
from toolkit.agent.messages import (
    Authorize,
    Event,
    Failure,
    Held,
    Holder,
    ProgressMade,
    Result,
    Waiting,
    Warned,
    decode,
    parse_event,
    without_noise,
)
from toolkit.agent.requests import A, Request, Settle, TakeHold, WantedFile
from toolkit.agent.start import FOLDERS_ALONE
from toolkit.catalog import Target
from toolkit.catalog.remote_path import from_login_folder, python_argv
from toolkit.device.account import check_account
from toolkit.device.patience import Patience, Progressing, no_progress, wait_for_end
from toolkit.device.starter import find_starter
from toolkit.device.transport import Process, Transport
from toolkit.errors import (
    AgentDied,
    AgentError,
    CorruptBundle,
    DeviceError,
    DeviceFull,
    ExposedRoot,
    NoIndex,
    NoPython,
    RegistryError,
    RemoteCommandFailed,
)
from toolkit.events import Progress, Service, Step, Warning_


class _DamagedAgent(AgentError):
    """The agent's file there is damaged: the agent refuses to work, or can't even be started."""


_ERRORS: dict[str, type[CorruptBundle] | type[RegistryError] | type[DeviceError]] = {
    "device_full": DeviceFull,
    "corrupt": CorruptBundle,
    "registry": RegistryError,
    "damaged_agent": _DamagedAgent,
    "exposed_root": ExposedRoot,
    "no_index": NoIndex,
    "old_python": NoPython,
}
# Operations that hold a lock for more than a moment.
_HOLDING = {
    "hold": "a push",
    "pull": "files are pulled from a registry",
    "install": "a release is verified and installed",
    "provision": "a runtime is installed",
    "verify": "the releases are verified",
    "prune": "old releases are removed",
}
_LONGEST_MESSAGE = 2000
_SENT_AFRESH = "run the command again: its file there was damaged and has been sent afresh"
# The exit codes of POSIX shells and of cmd.exe.
_NO_SUCH_COMMAND = (127, 9009)
_NO_WINDOWS_PYTHON = (
    "install one there for all users (winget install --scope machine Python.Python.3.12), or set `python` in the "
    "target's file to its path, like 'C:/Python312/python.exe'"
)

# Turns a question that an agent asks while it works into the answer.
Reply = Callable[[Authorize], dict[str, Any]]


@dataclass
class Hold:
    """The right to push files to a device; it ends with `release`, and with the connection.

    `found` is the agent's answer to `missing`, made when nobody else could push any more.
    """

    process: Process
    found: Missing

    def release(self) -> None:
        self.process.close_stdin()
        with contextlib.suppress(DeviceError):
            wait_for_end(self.process)


def _who() -> str:
    """Our name, which others see while they wait for us."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as containers have
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


class Agent:
    """The agent on a device: a process there for each request, over one connection that stays open."""

    def __init__(self, target: Target, transport: Transport) -> None:
        self._target = target
        self._transport = transport
        self._folder = f"{from_login_folder(target.install_root)}/agent"
        # The Python used in place of the target's default, which is missing or doesn't suit.
        self._python: str | None = None
        # The path of this version of the agent there, once it is there.
        self._path: str | None = None
        self._waited_for: Holder | None = None

    @property
    def python(self) -> str:
        """The Python there, in the form that a target's file has. Raises NoPython on a Windows that has none.

        Windows has no python3: where the target names no Python, one is looked for.
        """
        if self._python is None and self._transport.windows and not self._target.names_python:
            self._python = find_starter(self._transport)
            if self._python is None:
                raise NoPython(f"{self._target.name}: no Python 3 is there", _NO_WINDOWS_PYTHON)
        return self._python or self._target.python

    def use_python(self, path: str) -> None:
        """Run the agent with another Python of the device from now on."""
        self._python = path

    def ensure(self) -> str:
        """Put this version of the agent on the target if it is missing there; return its path."""
        if self._path is None:
            path = self._file("pyz")
            try:
                is_there = self._transport.size(path) == len(agent_archive())
            except RemoteCommandFailed:
                self._check_account()
                raise
            if not is_there:
                self._check_account()
                self._put()
            self._path = path
        return self._path

    def _check_account(self) -> None:
        if self._target.transport != "local":
            check_account(self._transport, self._target.name, from_login_folder(self._target.install_root))

    def _file(self, ending: str) -> str:
        return f"{self._folder}/agent-{agent_sha256()[:16]}.{ending}"

    def _put(self) -> bool:
        """Send the agent under a temporary name and have it settle there: SFTP can't flush a file to every disk.

        True when the file that stood there was whole.
        """
        arrival = self._file(f"{secrets.token_hex(8)}.tmp")
        self._look(arrival)
        self._transport.make_dirs(self._folder)
        with agent_file() as source:
            for _ in self._transport.put(source, arrival):
                pass
        request = Settle()
        return request.read(self._answer(self._start(arrival, request), request), self._target.name).was_whole

    def _look(self, path: str) -> None:
        """Raise ExposedRoot if others could exchange what lies in the agent's folder there, or have put it there."""
        self._answer(self._run(path, FOLDERS_ALONE), Settle())

    def _answer(self, process: Process, request: Request[Any]) -> dict[str, Any]:
        process.close_stdin()
        try:
            result = next(said for said in self.messages(process, request) if isinstance(said, Result))
        except BaseException:
            process.kill()
            raise
        wait_for_end(process)
        return result.payload

    def _repair(self) -> bool:
        """Send the agent again; True when its file there was damaged and is whole now."""
        path, self._path = self._path, None
        if path is None:  # the file sent just now doesn't work: sending it again won't help
            return False
        try:
            return not self._put()
        except DeviceError:
            return False
        finally:
            self._path = path

    def start(self, request: Request[Any]) -> Process:
        """Start the agent with one request; its stdin stays open."""
        return self._start(self.ensure(), request)

    def _run(self, agent: str, sha256: str) -> Process:
        """Start the agent's file there, which is looked at from outside before anything of it runs."""
        try:
            return self._transport.start([*python_argv(self.python), *start_argv(), agent, sha256])
        except RemoteCommandFailed as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                raise NoPython(exc.message, no_python_hint(self.python)) from exc
            raise

    def _start(self, agent: str, request: Request[Any]) -> Process:
        process = self._run(agent, agent_sha256())
        process.send(json.dumps(request.message(_who()), separators=(",", ":")).encode() + b"\n")
        return process

    def messages(self, process: Process, request: Request[Any]) -> Iterator[Event | Result]:
        """Give its events, and at last its result. Raises the error that it reports, AgentError for a bad line, and
        NoProgress when it brings nothing nearer for longer than the request allows.
        """
        silent = True
        with Patience(request.longest_silence_s, process.kill) as patience:
            progressing = Progressing(patience)
            for line in self._patiently(process, patience):
                silent = False
                kind, payload = self._decode(line, process)
                if kind == "result":
                    yield Result(payload)
                    return
                if kind == "error":
                    raise self._failure(payload)
                event = parse_event(payload, self._target.name)
                if event is not None:
                    progressing.heard(event)
                    yield event
        self._explain_end(process, silent=silent)

    def _patiently(self, process: Process, patience: Patience) -> Iterator[bytes]:
        lines, heard = without_noise(process.lines()), False
        while True:
            with patience.waiting():
                line = next(lines, None)
            if patience.is_over:
                raise no_progress(self._target.name, heard=heard)
            if line is None:
                return
            heard = True
            yield line

    def call(self, request: Request[A], reply: Reply | None = None) -> Service[A]:
        """Run one operation, pass on its progress, return its answer.

        `reply` answers each question of an operation that asks for credentials while it works. Where the default
        `python3` is missing or too old for the agent, another Python there is taken. Raises AgentError, DeviceFull,
        CorruptBundle, RegistryError, HostUnreachable, AgentDied, RemoteCommandFailed.
        """
        try:
            payload = yield from self._call_once(request, reply)
        except _DamagedAgent:
            # The agent has been sent afresh, and the damaged one hadn't begun to work.
            payload = yield from self._call_once(request, reply)
        except NoPython as exc:
            starter = None if self._target.names_python or self._python else find_starter(self._transport)
            if starter is None:
                raise
            yield Step(f"{exc.message}; '{starter}' is taken instead")
            self.use_python(starter)
            payload = yield from self._call_once(request, reply)
        return request.read(payload, self._target.name)

    def _call_once(self, request: Request[Any], reply: Reply | None) -> Service[dict[str, Any]]:
        process = self.start(request)
        result: Result | None = None
        try:
            if reply is None:
                process.close_stdin()
            for said in self.messages(process, request):
                match said:
                    case Result():
                        result = said
                    case ProgressMade():
                        yield Progress(said.label, said.done, said.total, said.unit)
                    case Waiting():
                        yield from self._say_waiting(said.holder)
                    case Warned():
                        yield Warning_(f"{self._target.name}: {said.text}")
                    case Authorize() if reply is not None:
                        process.send(json.dumps(reply(said)).encode() + b"\n")
        finally:
            if result is None:
                process.kill()
            else:
                wait_for_end(process)
        assert result is not None, "messages end with a result or an error"
        return result.payload

    def hold(self, artifacts: Sequence[WantedFile], chunk_bytes: int) -> Service[Hold]:
        """Become the only process that pushes files there, after waiting for any other; release the hold in the end."""
        request = TakeHold(artifacts=artifacts, chunk_bytes=chunk_bytes)
        process = self.start(request)
        try:
            for said in self.messages(process, request):
                if isinstance(said, Held):
                    return Hold(process, said.found)
                if isinstance(said, Waiting):
                    yield from self._say_waiting(said.holder)
        except BaseException:
            process.kill()
            raise
        raise AgentError(f"{self._target.name}: the agent ended instead of holding the lock", "run it again")

    def _say_waiting(self, holder: Holder | None) -> Service[None]:
        """Say who has the lock, once for each holder."""
        if holder is None or holder == self._waited_for:
            return
        self._waited_for = holder
        since = time.strftime("%H:%M:%S", time.localtime(holder.since_unix_s))
        what = _HOLDING.get(holder.op, f"an operation of the store ({holder.op})")
        yield Step(f"{self._target.name}: wait for {holder.by}: {what} since {since}")

    def _decode(self, line: bytes, process: Process) -> tuple[str, dict[str, Any]]:
        try:
            return decode(line, PROTOCOL)
        except ValueError as exc:
            process.kill()
            raise AgentError(
                f"{self._target.name}: the agent said something that isn't its protocol: {line[:200]!r} ({exc})",
                "does the login shell on the device print something by itself? It must not when it isn't interactive",
            ) from exc

    def _failure(self, payload: dict[str, Any]) -> CorruptBundle | RegistryError | DeviceError:
        told = parse(Failure, payload, self._target.name, "with an error")
        error = _ERRORS.get(told.code, AgentError)
        message = f"{self._target.name}: {told.message[:_LONGEST_MESSAGE]}"
        if error is _DamagedAgent:
            if self._repair():
                return _DamagedAgent(message, _SENT_AFRESH)
            return AgentError(message, "its disk may be failing: look there, or set install_root to another one")
        return error(message, told.hint)

    def _explain_end(self, process: Process, *, silent: bool) -> None:
        status, stderr = wait_for_end(process), process.stderr_tail().strip()
        if silent:
            self._check_account()
        last = stderr.splitlines()[-1] if stderr else "it said nothing"
        message = f"{self._target.name}: the agent ended with exit code {status}: {last}"
        if status in _NO_SUCH_COMMAND or "not found" in last:
            raise NoPython(message, no_python_hint(self.python))
        if silent and self._repair():
            raise _DamagedAgent(f"{self._target.name}: the agent can't be started there: {last}", _SENT_AFRESH)
        raise AgentDied(message)


def no_python_hint(python: str) -> str:
    return f"is there a Python at '{python}'? Set `python` in the target's file, or install python3 on the device"
