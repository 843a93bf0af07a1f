"""Reading data from others: JSON that hides nothing, file names that mean one file on every system, addresses, and
answers that keep coming. Host and device check manifests and servers by the same rules.

The agent brings this file along, so it is Python 3.9 and the standard library alone.
"""

from __future__ import annotations

import io
import json
import re
import time
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import socket

LARGEST_MANIFEST_BYTES, MOST_ARTIFACTS, MOST_BYTES = 4 << 20, 10_000, 1 << 40
LARGEST_SIGNATURE_BYTES, MOST_SIGNATURES = 64 << 10, 32
# The names in a bundle's folder that aren't artifacts.
MANIFEST_NAME, SIGNATURES = "manifest.json", "signatures"
# A server that sends less isn't worth waiting for; in its first minute it may say nothing at all.
SLOWEST_BYTES_PER_S, SLOW_S = 1000, 60.0
# The most that a server may send before the body of its answer.
LARGEST_HEAD_BYTES = 256 << 10
_DEEPEST = 32
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
# Control characters move a terminal's cursor; lone surrogates can't be written anywhere.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_ON_WINDOWS = re.compile(r'[\\:<>"|?*]')
_SIGNATURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.sig")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def read_json(raw: bytes, *, controls: bool = False) -> Any:
    """Parse UTF-8 JSON. With `controls` its texts may have control characters, which the caller cleans away.

    Raises ValueError with the reason for text that isn't JSON by RFC 8259, and for JSON that two readers may understand
    differently or that a terminal obeys: a key that stands twice, nesting beyond 32, control characters and lone
    surrogates in texts.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
        _distrust(value, _DEEPEST, controls)
    except UnicodeDecodeError as exc:
        raise ValueError(f"not UTF-8 text (byte {exc.start})") from exc
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} stands twice")
        found[key] = value
    return found


def _distrust(value: Any, levels: int, controls: bool) -> None:
    if isinstance(value, str) and not controls and _UNPRINTABLE.search(value):
        raise ValueError(f"control characters in {value[:80]!r}")
    if not isinstance(value, (list, dict)):
        return
    if not levels:
        raise ValueError("nested too deep")
    for item in value:
        _distrust(item, levels - 1, controls)
    for item in value.values() if isinstance(value, dict) else ():
        _distrust(item, levels - 1, controls)


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
        folded = _folded(path)
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


def _folded(path: str) -> str:
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
        self._sock.settimeout(min(self._longest_s, left_s))
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
