"""Inputs that nobody sensible writes, for property-based tests of everything that reads data from others.

Importing this module loads the profile of Hypothesis that EDGEPHI_FUZZ names: `short` (by default, a part of every
run of the tests) or `long` (`make test-fuzz`). Both are the same each time they run, and leave no file behind.
"""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, configuration, settings, strategies as st

from tests.support.builds import BUILDS_DIR
from toolkit.errors import ToolkitError

_COMMON: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "print_blob": False,
    # The folders that a test gets are the same for all its examples, and that's meant.
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
# Its tables of characters go where the session's other files go, not into the working folder.
configuration.set_hypothesis_home_dir(Path(os.environ[BUILDS_DIR]) / "hypothesis")
settings.register_profile("short", max_examples=15, **_COMMON)
settings.register_profile("long", max_examples=300, **_COMMON)
settings.load_profile(os.environ.get("EDGEPHI_FUZZ", "short"))

# The time that reading one small input may take on a busy machine, and the memory by which all of them may grow.
_MOST_CPU_S, _MOST_GROWTH_BYTES = 10.0, 512 * 2**20

# Values that break what takes a parsed document for sensible.
AWKWARD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 64,
    10**39,
    -(10**39),
    1e308,
    -0.0,
    5e-324,
    1.5,
    "",
    " ",
    "..",
    "/",
    "-rf",
    "\x00",
    "a\x00b",
    "\x1b]0;title\x07\x1b[31m",
    "\x9b31m",
    "\u202egnp.exe",
    "two\nlines",
    "\ud800",
    "9" * 400,
    "x" * 70_000,
    "NaN",
    "1e999",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"\x1b": {"\x00": []}},
]

# Texts that are no JSON, or JSON that no two readers understand alike, by what is wrong with them.
AWKWARD_RAW: dict[str, bytes] = {
    "nothing": b"",
    "a NUL": b"\x00",
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "deep lists": b"[" * 60_000,
    "deep lists that end": b"[" * 5_000 + b"]" * 5_000,
    "deep objects": b'{"a":' * 60_000,
    "an endless number": b"9" * 60_000,
    "an endless number inside": b'{"a": ' + b"9" * 60_000 + b"}",
    "a number that no float holds": b'{"a": 1e999}',
    "not a number": b"[NaN, Infinity, -Infinity]",
    "a lone surrogate": b'{"\\ud800": "\\udfff"}',
    "a key that stands twice": b'{"a": 1, "a": 2}',
    "a string without an end": b'{"a": "',
    "null": b"null",
    "a number": b"1",
    "a text": b'"text"',
    "an empty list": b"[]",
    "an empty object": b"{}",
}

# What may stand where a file is expected, by what it is; each function makes it at the path that it is given.
AWKWARD_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe that nobody writes to": os.mkfifo,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a huge file": lambda path: (path.touch(), os.truncate(path, 10 << 30)),
    "a file that is no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**45), max_value=10**45)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(AWKWARD).map(copy.deepcopy)
)


def values() -> st.SearchStrategy[Any]:
    """Any JSON value, awkward ones among them."""
    keys = st.text(st.characters(), max_size=8)
    return st.recursive(
        _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


def mutated(document: Any) -> st.SearchStrategy[Any]:
    """The document with one to three of its nodes replaced, removed, wrapped, doubled or nested deep."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        changed = copy.deepcopy(document)
        for _ in range(draw(st.integers(1, 3))):
            places = list(_places(changed))
            if not places:
                return draw(values())
            holder, key = draw(st.sampled_from(places))
            change = draw(st.sampled_from(["replace", "replace", "awkward", "remove", "wrap", "double", "deep"]))
            _change(holder, key, change, draw)
        return changed

    return build()


def raw(document: Any = None) -> st.SearchStrategy[bytes]:
    """Any bytes: random, awkward, JSON of any values, and the JSON of `document`, if given, mutated or cut short."""
    texts = values().map(encoded) | st.sampled_from([*AWKWARD_RAW.values()]) | st.binary(max_size=200)
    if document is None:
        return texts
    whole = encoded(document)
    cut = st.integers(0, len(whole)).map(lambda length: whole[:length])
    flipped = st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=3)).map(
        lambda change: whole[: change[0]] + change[1] + whole[change[0] + len(change[1]) :]
    )
    return mutated(document).map(encoded) | mutated(document).map(encoded) | texts | cut | flipped


def lines(line: bytes | str) -> st.SearchStrategy[bytes]:
    """Any bytes, among them variations of a line of words: words replaced, left out, doubled, separated otherwise."""
    words = (line if isinstance(line, bytes) else line.encode()).split()
    odd = st.binary(max_size=12) | st.sampled_from([b"", b"\x00", b"\x1b[31m", b"\xff", b"#", b'"', b"9" * 5000, b"*"])
    word = st.sampled_from(words) | odd
    varied = st.lists(word, max_size=len(words) + 2).map(b" ".join)
    several = st.lists(varied, max_size=3).map(b"\n".join)
    return st.one_of(st.binary(max_size=200), varied, several, several.map(lambda text: text + b"\r\n"))


def encoded(value: Any) -> bytes:
    """The value as JSON in UTF-8; lone surrogates and control characters are escaped, as senders write them."""
    return json.dumps(value).encode()


def held(read: Callable[[], Any], *allowed: type[BaseException]) -> Any:
    """Call a reader; return its result, or the error in words that it raised.

    Any other exception than a ToolkitError or one `allowed` passes through, and fails the test; so do too much time and
    memory.
    """
    started, before = time.process_time(), _peak_bytes()
    result: Any
    try:
        result = read()
    except (ToolkitError, *allowed) as exc:
        result = exc
        hint = exc.hint if isinstance(exc, ToolkitError) else None
        assert str(exc), "an error without words"
        assert len(str(exc)) + len(hint or "") < 20_000, "an error as long as its input"
    assert time.process_time() - started < _MOST_CPU_S
    assert _peak_bytes() - before < _MOST_GROWTH_BYTES
    return result


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every node below a value, as its holder and its key or index."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _change(holder: Any, key: Any, change: str, draw: st.DrawFn) -> None:
    old = holder[key]
    match change:
        case "replace":
            holder[key] = draw(_like(old))
        case "awkward":
            holder[key] = draw(values())
        case "remove":
            del holder[key]
        case "wrap":
            holder[key] = draw(st.sampled_from([[old], {"a": old}, [old, old]]))
        case "double" if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(old))
        case "double":
            holder[draw(st.text(max_size=5))] = copy.deepcopy(old)
        case _:
            for _ in range(40):
                old = [old]
            holder[key] = old


def _like(old: Any) -> st.SearchStrategy[Any]:
    """Values of the same kind as the old one: these come furthest."""
    if isinstance(old, bool):
        return st.sampled_from([not old, 0, 1, "true"])
    if isinstance(old, int | float):
        near = [old + 1, -old, old * 1000, float(old), str(old), 0, 1, 2**31, 2**63, 10**39, 1e308, True]
        return st.sampled_from([number for number in near if not isinstance(number, float) or math.isfinite(number)])
    if isinstance(old, str):
        texts: Sequence[Any] = [text for text in AWKWARD if isinstance(text, str)]
        return st.sampled_from([*texts, old + "\n", old.upper(), old + "\x00", old * 1000]) | st.text(max_size=20)
    return st.sampled_from(AWKWARD).map(copy.deepcopy)
