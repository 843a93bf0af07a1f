"""Files that the device gets itself, from a registry or a mirror of one, into the place that a push fills."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from toolkit.distrust import MOST_BYTES

from .layout import BLOBS, INCOMING, ROOT
from .locks import held
from .protocol import CHUNK, HEX64, AgentFailure, emit, progress
from .sources import Broken, Refused, Source, pause

# Tries in a row that bring nothing before a source is given up.
TRIES = 6
# What the store and the release may need on top of what is pulled.
SPARE_BYTES = 64 << 20
SHOWN_S = 0.2
# Whoever is slower isn't worth waiting for.
SLOWEST_BYTES_PER_S, SLOW_S = 1000, 60.0


def op_pull(request: dict[str, Any]) -> dict[str, Any]:
    """Get those of `artifacts` that have no blob here from the first of `sources` that has them, each with its hash.

    A source is the URL of a repository: `https://host/v2/name`. What has arrived of a file earlier is gone on with. At
    most `limit_bytes_per_s`, if that isn't null. A source that wants to know who asks is an event `authorize` with its
    number; the host's next line on stdin has the `authorization` to send, or null and the `reason`.
    """
    sources = [Source(number, url, ask_host) for number, url in enumerate(request["sources"])]
    wanted = {artifact["sha256"]: artifact for artifact in request["artifacts"]}
    for sha256, artifact in wanted.items():
        if not HEX64.match(sha256) or not 0 <= artifact["size_bytes"] < MOST_BYTES:
            raise AgentFailure("bad_request", f"not an artifact: {sha256!r}")
    with held("push.lock", request):
        INCOMING.mkdir(mode=0o700, parents=True, exist_ok=True)
        missing = [artifact for artifact in wanted.values() if not has_blob(artifact)]
        pulling = Pulling(missing, request.get("limit_bytes_per_s"))
        for artifact in missing:
            pull_one(artifact, sources, pulling)
    return {"files": len(missing), "pulled_bytes": pulling.come}


def ask_host(number: int) -> str:
    """What the host has a source told about who we are. Raises Refused when it has nothing."""
    emit("event", {"type": "authorize", "source": number})
    line = sys.stdin.readline()
    if not line:
        raise AgentFailure("bad_request", "the host has gone")
    answer = json.loads(line)
    if answer["authorization"] is None:
        raise Refused(answer.get("reason") or "wants a password or a token, and there is none for it")
    return str(answer["authorization"])


def has_blob(artifact: dict[str, Any]) -> bool:
    blob = BLOBS / artifact["sha256"]
    return blob.is_file() and bool(blob.stat().st_size == artifact["size_bytes"])


def part_of(artifact: dict[str, Any]) -> Path:
    """The file that an artifact arrives in, with what of it can be gone on with."""
    part = INCOMING / f"{artifact['sha256']}.part"
    if part.is_file():
        state = part.stat()
        # A push on this machine may have left a link to the bundle's own file, which isn't ours to write to.
        if state.st_size > artifact["size_bytes"] or (state.st_nlink > 1 and state.st_size < artifact["size_bytes"]):
            part.unlink()
    return part


class Pulling:
    """What comes in all: told to the host, held to a limit, and made sure that it fits beforehand."""

    def __init__(self, missing: list[dict[str, Any]], limit_bytes_per_s: float | None) -> None:
        parts = [part_of(artifact) for artifact in missing]
        there = sum(part.stat().st_size for part in parts if part.is_file())
        self.total = sum(artifact["size_bytes"] for artifact in missing) - there
        self.come, self.limit, self.began, self.shown = 0, limit_bytes_per_s, time.monotonic(), 0.0
        free = shutil.disk_usage(ROOT).free
        if self.total and self.total + SPARE_BYTES > free:
            raise AgentFailure(
                "device_full",
                f"{self.total / 1e6:,.1f} MB to pull, {free / 1e6:,.1f} MB free under {ROOT}",
                "free some space there, or set `install_root` in the target's file to a larger disk",
            )

    def heard(self, count: int) -> None:
        self.come += count
        now = time.monotonic()
        if now - self.shown >= SHOWN_S:
            self.shown = now
            # What had to be thrown away comes twice.
            progress("pull", min(self.come, self.total), self.total, "bytes")
        if self.limit is not None:
            time.sleep(max(0.0, self.began + self.come / self.limit - time.monotonic()))


def pull_one(artifact: dict[str, Any], sources: list[Source], pulling: Pulling) -> None:
    name, problems = artifact["sha256"][:12], []
    for source in sources:
        if source.gone is None:
            try:
                return pull_from(source, artifact, pulling)
            except Refused as exc:
                if exc.for_good:
                    source.gone = str(exc)
                    emit("event", {"type": "warning", "text": f"{source.host} isn't asked any more: {exc}"})
                problems.append(f"{source.host}: {exc}")
        else:
            problems.append(f"{source.host}: {source.gone}")
    size = f"{artifact['size_bytes'] / 1e6:,.1f} MB"
    raise AgentFailure("registry", f"file {name} ({size}) can't be pulled there: " + "; ".join(problems))


def pull_from(source: Source, artifact: dict[str, Any], pulling: Pulling) -> None:
    """Have an artifact's file whole. Raises Refused when that source doesn't lead to it."""
    while True:
        part = part_of(artifact)
        resumed = part.is_file() and part.stat().st_size > 0
        if download(source, artifact, part, pulling) == artifact["sha256"]:
            return
        part.unlink()
        if not resumed:
            raise Refused("sends other content than the hash says", for_good=True)
        # What there was came from elsewhere, or has holes of a push: this source hasn't been heard yet.


def download(source: Source, artifact: dict[str, Any], part: Path, pulling: Pulling) -> str:
    """Fill the file up to its size; returns the SHA-256 of all of it."""
    size, tries, digest = artifact["size_bytes"], 0, hashlib.sha256()
    with part.open("a+b") as file:
        file.seek(0)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        position = file.tell()
        while position < size:
            before, since, after_s = position, time.monotonic(), 0.0
            try:
                for block in source.blocks(artifact["sha256"], position, size):
                    file.write(block)
                    digest.update(block)
                    position += len(block)
                    pulling.heard(len(block))
                    if pulling.limit is None and too_slow(position - before, time.monotonic() - since):
                        raise Refused(f"sends less than {SLOWEST_BYTES_PER_S} bytes a second", for_good=True)
                reason = f"ends after {position} of {size} bytes"
            except Broken as exc:
                reason, after_s = str(exc), exc.after_s
            tries = 1 if position > before else tries + 1
            if position < size:
                if tries == TRIES or not source.answered:
                    raise Refused(reason, for_good=True)
                pause(tries, after_s)
    return digest.hexdigest()


def too_slow(count: int, seconds: float) -> bool:
    return seconds > SLOW_S and count < SLOWEST_BYTES_PER_S * seconds
