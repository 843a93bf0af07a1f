"""Data from others: files of bounded size, JSON that hides nothing, text that steers no terminal, and file names that
mean one file on every system; addresses, and answers that keep coming. Host and device judge by the same rules.

The agent brings this file along, so it is Python 3.9 and the standard library alone.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import http.client
    import socket

LARGEST_MANIFEST_BYTES, MOST_ARTIFACTS, MOST_BYTES = 4 << 20, 10_000, 1 << 40
LARGEST_SIGNATURE_BYTES, MOST_SIGNATURES = 64 << 10, 32
# The names in a bundle's folder that aren't artifacts.
MANIFEST_NAME, SIGNATURES = "manifest.json", "signatures"
# Files that people write by hand, with much room; models of 128k tokens have tokenizers of some 20 MB.
LARGEST_TEXT_BYTES, LARGEST_JSON_BYTES = 4 << 20, 64 << 20
# A server that sends less isn't worth waiting for; in its first minute it may say nothing at all.
SLOWEST_BYTES_PER_S, SLOW_S = 1000, 60.0
# The most that a server may send before the body of its answer.
LARGEST_HEAD_BYTES = 256 << 10
_DEEPEST = 32
# Tokenizers have numbers of 31 digits ("no limit"); no float holds one of more than 308.
_MOST_DIGITS = 40
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
# Control characters move a terminal's cursor; lone surrogates can't be written anywhere.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NO_TOKENIZER_TAKES = re.compile(r"[\x00\ud800-\udfff]")
_NOT_ON_WINDOWS = re.compile(r'[\\:<>"|?*]')
_SIGNATURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.sig")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)

# Characters that steer a terminal, turn the direction of text around, end a line, or are invisible. Those that join
# letters and emoji (U+200C, U+200D) and choose their forms (U+FE0F) aren't among them: many languages need them.
_STEERING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
_IN_WORDS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, keep: str = "") -> str:
    """The text with every character that steers a terminal, reorders text or hides in it written as an escape.

    The escapes are Python's: `\\x1b`, `\\n`, `\\u202e`, `\\ud800`. Characters in `keep` stay as they are.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def visible_json(text: str) -> str:
    """JSON, or TOML of basic strings, that means the same, with the characters that `visible` replaces escaped.

    Line ends stay: between values they are layout, and within them no JSON has any.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in "\n\r\t" else _json_escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if character in _IN_WORDS:
        return _IN_WORDS[character]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def read_file(path: "os.PathLike[str] | str", most_bytes: int) -> bytes:
    """The content of a regular file of at most `most_bytes`.

    Raises OSError, whose `strerror` says why, for everything else: a folder, a pipe or a device, of which no byte is
    read, a longer file, and a name that no file can have.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have that name", os.fspath(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"
            raise OSError(errno.EINVAL, what, os.fspath(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(raw) > most_bytes:
        raise OSError(errno.EFBIG, f"longer than {most_bytes:,} bytes", os.fspath(path))
    return raw


def read_text_file(path: "os.PathLike[str] | str", most_bytes: int = LARGEST_TEXT_BYTES) -> str:
    """The UTF-8 text of a file, its line ends as `\\n`. Raises OSError as `read_file`, ValueError for other text."""
    return _utf8(read_file(path, most_bytes)).replace("\r\n", "\n").replace("\r", "\n")


def read_json_file(
    path: "os.PathLike[str] | str", most_bytes: int = LARGEST_JSON_BYTES, *, controls: bool = False
) -> Any:
    """The JSON in a file. Raises OSError as `read_file` and ValueError as `read_json`; `reason` words both."""
    return read_json(read_file(path, most_bytes), controls=controls)


def reason(exc: Exception) -> str:
    """The words of an error that a function of this module raised, without the file's path."""
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def read_json(raw: bytes, *, controls: bool = False) -> Any:
    """Parse UTF-8 JSON.

    Raises ValueError with the reason for text that isn't JSON by RFC 8259, and for JSON that two readers may understand
    differently, that no float holds, or that a terminal obeys: a key that stands twice, nesting beyond 32, numbers
    beyond a float's or of more than 40 digits, lone surrogates, and control characters in texts. `controls` lets
    the latter pass, for tokenizers, templates and conversations have them.
    """
    try:
        value = json.loads(
            _utf8(raw), parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
        )
        _distrust(value, _DEEPEST, _SURROGATE if controls else _UNPRINTABLE)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"not UTF-8 text (byte {exc.start})") from exc


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is larger than any number here")
    return value


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"{text[:_MOST_DIGITS]}… has {len(text)} digits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} stands twice")
        found[key] = value
    return found


def _distrust(value: Any, levels: int, refused: "re.Pattern[str]") -> None:
    if isinstance(value, str) and refused.search(value):
        raise ValueError(f"control characters in {value[:80]!r}")
    if not isinstance(value, (list, dict)):
        return
    if not levels:
        raise ValueError("nested too deep")
    for item in value:
        _distrust(item, levels - 1, refused)
    for item in value.values() if isinstance(value, dict) else ():
        _distrust(item, levels - 1, refused)


def name_problem(name: str) -> str | None:
    """The reason why what is written under a name couldn't be read or told apart again; None when it can be.

    Writers hold names to it that manifests, reports and records will have; `read_json` refuses a part of them.
    """
    shown = visible(name)
    if shown != name:
        return f"characters that steer a terminal or hide: {shown[:80]}"
    if not name.strip():
        return "it is empty"
    return "it is too long" if len(name.encode()) > _LONGEST_NAME_BYTES else None


def text_problem(text: str) -> str | None:
    """The place of the first character that no tokenizer takes, and its name; None for text that is read whole.

    Tokenizers are libraries in C, for which text ends at a NUL, and half a surrogate pair is none. Python makes such a
    half of each byte that isn't UTF-8 in arguments of commands. Lines and columns count from 1.
    """
    found = _NO_TOKENIZER_TAKES.search(text)
    if found is None:
        return None
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    code = ord(found[0])
    if not code:
        name = "a NUL character, and a model would read nothing behind it"
    elif 0xDC80 <= code <= 0xDCFF:
        name = f"the byte 0x{code - 0xDC00:02x}, which isn't UTF-8 text"
    else:
        name = f"half a character, {visible(found[0])}"
    return f"line {line}, column {column} is {name}"


def path_problem(path: str) -> str | None:
    """The reason why a relative POSIX path may leave its folder or mean something else somewhere; None without one."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it isn't plainly below its folder"
    if _NOT_ON_WINDOWS.search(path) or not path.isprintable():
        return "characters that not every system takes"
    if any(part.endswith((".", " ")) for part in parts):
        return "a dot or a blank at the end of a name, which Windows drops"
    if any(map(is_windows_device, parts)):
        return "the name of a device on Windows"
    long_name = any(len(part.encode()) > _LONGEST_NAME_BYTES for part in parts)
    if long_name or len(path.encode()) > _LONGEST_PATH_BYTES or len(parts) > _DEEPEST:
        return "too long"
    return None


def is_windows_device(name: str) -> bool:
    """Tell if Windows takes a name, with any extension, for a device."""
    return _WINDOWS_DEVICE.fullmatch(name) is not None


def artifact_problem(path: str) -> str | None:
    """The reason why no artifact may have that path; None when one may."""
    if path.split("/")[0].casefold() in (MANIFEST_NAME, SIGNATURES):
        return "it stands for what is no artifact"
    return path_problem(path)


def path_clash(paths: Iterable[str]) -> str | None:
    """Two paths that can't be in one folder on every system, in words; None without such a pair.

    Paths that differ by case, or by the encoding of an accent, are one file on Windows and macOS.
    """
    known: dict[str, str] = {}
    for path in paths:
        folded = folded_name(path)
        if folded in known:
            return f"listed twice: {known[folded]!r}, {path!r}"
        known[folded] = path
    for folded, path in known.items():
        parts = folded.split("/")
        for length in range(1, len(parts)):
            file = known.get("/".join(parts[:length]))
            if file is not None:
                return f"a file and a folder: {file!r}, {path!r}"
    return None


def signature_name(name: str) -> bool:
    """Tell if a file of that name may be a signature."""
    return bool(_SIGNATURE_NAME.fullmatch(name)) and path_problem(name) is None


def folded_name(path: str) -> str:
    """The text that all names share which are one file on Windows or macOS: no case, one way to write an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def is_this_machine(host: str) -> bool:
    """Tell if a URL's host is the machine that reads it, or one that no other machine can reach, in any spelling that a
    resolver takes: `localhost.`, `127.1`, `0x7f000001`, `::ffff:127.0.0.1`, `169.254.0.1`.
    """
    import ipaddress
    import socket

    name = unicodedata.normalize("NFKC", host).rstrip(".").lower().partition("%")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified or address.is_link_local


class Answering(io.RawIOBase):
    """The bytes of a server's answer from a socket's file, as long as they come at `SLOWEST_BYTES_PER_S`.

    Only the time that passes while we wait for the server counts. `head_bytes_left` bounds what may still come before
    the body; None is no bound. Raises TimeoutError for a server that is too slow, OSError for too long a head.
    """

    def __init__(self, file: io.RawIOBase, sock: socket.socket) -> None:
        self._file, self._sock, self._longest_s = file, sock, sock.gettimeout() or SLOW_S
        self._waited_s, self._heard = 0.0, 0
        self.head_bytes_left: int | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = SLOW_S + self._heard / SLOWEST_BYTES_PER_S - self._waited_s
        if left_s <= 0:
            raise TimeoutError(f"sends less than {SLOWEST_BYTES_PER_S} bytes a second")
        if self.head_bytes_left is not None and self.head_bytes_left <= 0:
            raise OSError(f"its answer's head has more than {LARGEST_HEAD_BYTES} bytes")
        timeout_s = min(self._longest_s, left_s)
        if timeout_s != self._sock.gettimeout():
            self._sock.settimeout(timeout_s)
        began = time.monotonic()
        try:
            count: int | None = self._file.readinto(buffer)
        finally:
            self._waited_s += time.monotonic() - began
        self._heard += count or 0
        if self.head_bytes_left is not None:
            self.head_bytes_left -= count or 0
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def answer_class() -> type[http.client.HTTPResponse]:
    """The class of HTTP answers that keep coming, with a head of bounded length."""
    # Imported here: every start of the agent reads this file, and few speak HTTP.
    from http.client import HTTPResponse

    class Answer(HTTPResponse):
        def __init__(self, sock: Any, *args: Any, **named: Any) -> None:
            super().__init__(sock, *args, **named)
            self._coming = Answering(self.fp.detach(), sock)
            self.fp = io.BufferedReader(self._coming)

        def begin(self) -> None:
            self._coming.head_bytes_left = LARGEST_HEAD_BYTES
            super().begin()
            self._coming.head_bytes_left = None

    return Answer
