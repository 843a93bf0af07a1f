"""Logging in: with the target's own key, the agent's keys, the configured keys, then the user's answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm

from toolkit.device.ssh.banners import PERSON_S, Banners, printable, with_words
from toolkit.device.ssh.certificates import SUFFIX, certified_key, public_part, read_blob
from toolkit.device.ssh.config import SshOptions, public_file
from toolkit.device.ssh.internals import SocketAgent
from toolkit.device.ssh.link import Link
from toolkit.device.transport import PromptSecret
from toolkit.errors import AuthFailed, HostUnreachable

# A key may wait in a security token to be touched; nothing else takes so long, but for people.
_LOGIN_TIMEOUT_S = 60.0
_POLL_S = 0.2
# A server that asks more questions doesn't want a login.
_MOST_QUESTIONS = 16
_UNUSABLE_KEY = (paramiko.SSHException, paramiko.UnknownKeyType, UnsupportedAlgorithm, ValueError, OSError)


@dataclass
class _Login:
    link: Link
    banners: Banners
    # Of the attempt that runs: the server's questions, and at last the outcome.
    news: SimpleQueue[_Question | list[str] | Exception] = field(default_factory=SimpleQueue)
    # The methods that the server takes next; None until it has named them.
    methods: set[str] | None = None
    tried: list[str] = field(default_factory=list)
    locked: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    wrong_answer: str = ""

    def takes(self, method: str) -> bool:
        allowed = method != "publickey" or self.link.options.public_keys
        return allowed and (self.methods is None or method in self.methods)


def log_in(link: Link, prompt_secret: PromptSecret | None) -> None:
    """Authenticate. `prompt_secret` is called once at most for each secret, and its answers aren't kept.

    A server's banners are announced as they come. Raises AuthFailed with the keys and methods tried and a hint,
    HostUnreachable when the link breaks.
    """
    login = _Login(link, Banners(link.where, shown=link.options.shows_banner))
    link.transport.auth_timeout = 2 * PERSON_S  # paramiko's own limit can't be moved once it runs
    link.transport.packetizer.hear_banner = login.banners.hear
    try:
        _log_in(login, prompt_secret)
    finally:
        login.banners.show()
        link.transport.packetizer.hear_banner = None


def _log_in(login: _Login, prompt_secret: PromptSecret | None) -> None:
    transport = login.link.transport
    if _attempt(login, None, lambda user: transport.auth_none(user)):
        return
    for label, key in _keys(login) if login.takes("publickey") else ():
        if login.takes("publickey") and _offer(login, label, key):
            return
    if prompt_secret is not None and (_unlock(login, prompt_secret) or _answer(login, prompt_secret)):
        return
    raise _refused(login)


def _offer(login: _Login, label: str, key: Any) -> bool:
    return _attempt(login, label, lambda user: login.link.transport.auth_publickey(user, key))


def _attempt(login: _Login, label: str | None, authenticate: Callable[[str], list[str]]) -> bool:
    transport = login.link.transport
    if label is not None:
        login.tried.append(label)
    try:
        # A server with two factors logs nobody in after the first: then the methods that it wants next are returned.
        if wanted := _waited_for(login, authenticate):
            login.methods = set(wanted)
    except paramiko.BadAuthenticationType as exc:
        login.methods = set(exc.allowed_types)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        if not transport.is_active():
            raise _dropped(login) from exc
    return bool(transport.is_authenticated())


def _waited_for(login: _Login, authenticate: Callable[[str], list[str]]) -> list[str]:
    """Call it in a thread, and meanwhile show banners and have questions answered: in this thread Ctrl-C is heard, and
    the terminal is put right again. Raises what it raises, HostUnreachable when it takes too long."""
    news: SimpleQueue[_Question | list[str] | Exception] = SimpleQueue()
    login.news = news

    def call() -> None:
        try:
            news.put(authenticate(login.link.options.user))
        except Exception as exc:
            news.put(exc)

    since = time.monotonic()
    Thread(target=call, name="edgephi-login", daemon=True).start()
    while True:
        login.banners.show()
        limit_s = login.banners.limit_s(_LOGIN_TIMEOUT_S)
        if time.monotonic() - since > limit_s:
            login.link.transport.close()
            message = f"{login.link.where}: no answer to the login within {limit_s:.0f} s"
            raise HostUnreachable(with_words(message, login.banners.said), "try again")
        with suppress(Empty):  # a wait without an end can't be interrupted on Windows
            told = news.get(timeout=_POLL_S)
            if isinstance(told, Exception):
                raise told
            if not isinstance(told, _Question):
                return told
            login.banners.show()
            told.ask(login.link)
            since = time.monotonic()


# --- keys and certificates ---


def _keys(login: _Login) -> Iterator[tuple[str, Any]]:
    options = login.link.options
    first, others = options.identity_files[:1], options.identity_files[1:]
    yield from _file_keys(login, first)
    yield from _agent_keys(options)
    yield from _file_keys(login, others)


def _file_keys(login: _Login, paths: tuple[Path, ...]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        if path.suffix == ".pub" or not path.is_file():
            continue  # the agent has its private part
        try:
            key = paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):
            # TypeError is cryptography's word for an encrypted key without a passphrase.
            login.locked.append(path)
        except _UNUSABLE_KEY as exc:
            login.unreadable.append(f"{path}: {exc}")
        else:
            yield from _with_certificates(str(path), key, login.link.options)


def _with_certificates(label: str, key: Any, options: SshOptions) -> Iterator[tuple[str, Any]]:
    """Give the key with each certificate that is about it, then without one."""
    for path in (*options.certificate_files, *(_certificate_beside(file) for file in options.identity_files)):
        blob = read_blob(path)
        if blob is not None and certified_key(blob) == key.asbytes():
            key.public_blob = paramiko.PublicBlob.from_message(paramiko.Message(blob))
            yield f"{label} with {path.name}", key
    key.public_blob = None
    yield label, key


def _certificate_beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".pub") + "-cert.pub")


def _agent_keys(options: SshOptions) -> Iterator[tuple[str, Any]]:
    """Give the agent's keys; under IdentitiesOnly only those of the identity files and certificate files."""
    allowed = {_public_part(path) for path in options.identity_files} | set(map(read_blob, options.certificate_files))
    try:
        agent = _agent(options.agent)
    except (paramiko.SSHException, OSError):
        return
    try:
        for key in agent.get_keys():
            certified = certified_key(key.blob) if key.name.endswith(SUFFIX) else None
            if options.identities_only and not allowed & {key.blob, certified or key.blob}:
                continue
            label = f"agent: {key.comment or key.name}"
            if certified is None:
                yield from _with_certificates(label, key, options)
            else:
                # The agent signs for the entry that it lists, and it may list the certificate alone.
                key.inner_key = None
                yield label, key
    finally:
        agent.close()


def _agent(path: str | None) -> Any:
    return paramiko.Agent() if path is None or (path and sys.platform == "win32") else SocketAgent(path)


def _public_part(path: Path) -> bytes | None:
    found = read_blob(public_file(path))
    if found is None:
        with suppress(OSError, ValueError):
            return public_part(path.read_text(encoding="utf-8"))
    return found


# --- questions that only the user can answer ---


def _unlock(login: _Login, prompt_secret: PromptSecret) -> bool:
    """Try the keys with a passphrase; True after a login. An empty answer leaves a key out, as it does with ssh."""
    for path in list(login.locked):
        if not login.takes("publickey"):
            break
        secret = prompt_secret(f"passphrase for {path}: ")
        if not secret:
            continue
        try:
            key = paramiko.PKey.from_path(path, secret.encode())
        except _UNUSABLE_KEY as exc:
            raise AuthFailed(f"{login.link.where}: the passphrase doesn't open {path}") from exc
        login.locked.remove(path)
        for label, variant in _with_certificates(str(path), key, login.link.options):
            if _offer(login, label, variant):
                return True
    return False


def _answer(login: _Login, prompt_secret: PromptSecret) -> bool:
    """Answer the server's questions and give the password; True after a login.

    A server with two factors may want both. A wrong answer ends the attempt.
    """
    transport, options = login.link.transport, login.link.options
    left = ["keyboard-interactive", "password"]
    while method := next((m for m in left if m in options.interactive and m in (login.methods or ())), None):
        left.remove(method)
        before, asked = login.methods, True
        if method == "password":
            secret = prompt_secret(f"password of {options.user} on {login.link.where}: ")
            done = _attempt(login, method, lambda user: transport.auth_password(user, secret, fallback=False))  # noqa: B023
        else:
            dialog = _Dialog(login, prompt_secret)
            done = _attempt(login, method, dialog.run)
            asked = dialog.asked > 0
            method = "password" if dialog.asks_password else method
        if not done and asked and login.methods == before:
            login.wrong_answer = f"the {'password' if method == 'password' else 'answer'} is wrong"
        if done or login.wrong_answer:
            return done
    return False


class _Question:
    """A question of the server, asked by the thread that reads the link and answered in another one."""

    def __init__(self, text: str, prompt_secret: PromptSecret) -> None:
        self._text = text
        self._prompt_secret = prompt_secret
        self._answers: SimpleQueue[str] = SimpleQueue()

    def ask(self, link: Link) -> None:
        try:
            self._answers.put(self._prompt_secret(self._text))
        except BaseException:
            link.transport.close()
            self._answers.put("")
            raise

    def answer(self) -> str:
        return self._answers.get()


class _Dialog:
    """keyboard-interactive: the server's own questions, one after the other."""

    def __init__(self, login: _Login, prompt_secret: PromptSecret) -> None:
        self.asked = 0
        self.asks_password = False
        self._login = login
        self._prompt_secret = prompt_secret

    def run(self, user: str) -> list[str]:
        """Log in; return the methods that the server wants next. Raises what paramiko raises."""
        wanted: list[str] = self._login.link.transport.auth_interactive(user, self._reply)
        return wanted

    def _reply(self, title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
        answers = []
        if not prompts:  # RFC 4256: words without a question are to be shown
            self._login.banners.hear(f"{title}\n{instructions}")
        for text, _echo in prompts:
            self.asked += 1
            self.asks_password |= "password" in text.lower()
            if self.asked > _MOST_QUESTIONS:
                raise paramiko.SSHException("the server asks without an end")
            words = (f"{self._login.link.where}:", title, instructions, text)
            question = _Question(" ".join(filter(None, map(printable, words))) + " ", self._prompt_secret)
            self._login.news.put(question)
            answers.append(question.answer())
        return answers


def _refused(login: _Login) -> AuthFailed:
    options = login.link.options
    problems = [f"tried {', '.join(login.tried)}" if login.tried else "no key to try"]
    problems += [f"{path} needs a passphrase" for path in login.locked] + login.unreadable
    wrong = login.wrong_answer and f"{login.wrong_answer}; "
    message = f"{login.link.where}: login as '{options.user}' refused: {wrong}{'; '.join(problems)}"
    message = with_words(message, login.banners.said)
    if login.wrong_answer:
        hint = "try again; if it is right, the account may be locked, or a key may be needed instead"
        return AuthFailed(message, hint)
    if login.methods is not None and "publickey" not in login.methods:
        wanted = ", ".join(sorted(login.methods)) or "nothing that edgephi has"
        return AuthFailed(message, f"the server takes {wanted}: start it in a terminal, where you can be asked")
    if login.locked:
        return AuthFailed(message, f"give it to the agent first: ssh-add {login.locked[0]}")
    copy = f"ssh-copy-id -p {options.port} {options.user}@{options.hostname}"
    if not login.tried:
        return AuthFailed(message, f"make a key with 'ssh-keygen -t ed25519' and install it with '{copy}'")
    hint = f"install a key there with '{copy}', or set user and identity_file"
    return AuthFailed(message, f"{hint}; a locked account refuses every key (on the device: passwd -S {options.user})")


def _dropped(login: _Login) -> AuthFailed | HostUnreachable:
    where, said = login.link.where, login.banners.said
    if len(login.tried) > 1:
        return AuthFailed(
            with_words(f"{where}: the server hung up after {len(login.tried)} keys: {', '.join(login.tried)}", said),
            "name the right one: set identity_file of the target",
        )
    message = with_words(f"{where}: the connection was lost during the login", said)
    return HostUnreachable(message, "ask its administrator what the account may do" if said else "try again")
