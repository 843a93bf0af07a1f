"""Reading data from others: JSON that hides nothing, and file names that mean one file on every system. Host and
device check manifests by the same rules.

The agent brings this file along, so it is Python 3.9 and the standard library alone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NoReturn

LARGEST_MANIFEST_BYTES, MOST_ARTIFACTS, MOST_BYTES = 4 << 20, 10_000, 1 << 40
LARGEST_SIGNATURE_BYTES, MOST_SIGNATURES = 64 << 10, 32
# The names in a bundle's folder that aren't artifacts.
MANIFEST_NAME, SIGNATURES = "manifest.json", "signatures"
_DEEPEST = 32
_LONGEST_NAME_BYTES, _LONGEST_PATH_BYTES = 255, 1024
# Control characters move a terminal's cursor; lone surrogates can't be written anywhere.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_ON_WINDOWS = re.compile(r'[\\:<>"|?*]')
_SIGNATURE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.sig")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def read_json(raw: bytes) -> Any:
    """Parse UTF-8 JSON.

    Raises ValueError with the reason for text that isn't JSON by RFC 8259, and for JSON that two readers may understand
    differently or that a terminal obeys: a key that stands twice, nesting beyond 32, control characters and lone
    surrogates in texts.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
        _distrust(value, _DEEPEST)
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


def _distrust(value: Any, levels: int) -> None:
    if isinstance(value, str) and _UNPRINTABLE.search(value):
        raise ValueError(f"control characters in {value[:80]!r}")
    if not isinstance(value, (list, dict)):
        return
    if not levels:
        raise ValueError("nested too deep")
    for item in value:
        _distrust(item, levels - 1)
    for item in value.values() if isinstance(value, dict) else ():
        _distrust(item, levels - 1)


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
