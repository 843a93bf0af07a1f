"""Pulling: the device itself gets files from a registry or a mirror, into the place that a push fills."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from toolkit.untrusted import MOST_BYTES, SLOW_S, SLOWEST_BYTES_PER_S

from .layout import BLOBS, INCOMING, ROOT
from .locks import held
from .protocol import CHUNK, HEX64, AgentFailure, emit, progress
from .reuse import checked_blocks, reuse
from .sources import Broken, Refused, Source, pause

# Tries in a row that bring nothing before a source is given up.
TRIES = 6
# The room that the store and the release may need on top of the pulled files.
SPARE_BYTES = 64 << 20
SHOWN_S = 0.2
# A try that brings less brings nothing: else a source that sends a byte a time would never be given up.
LEAST_BYTES = 1 << 16
# A gap of so many bytes arrives sooner than another request for the bytes behind it would be answered.
LEAST_GAP = 1 << 20


def op_pull(request: dict[str, Any]) -> dict[str, Any]:
    """Get those of `artifacts` that have no blob here from the first of `sources` that has them, each with its hash.

    A source is the URL of a repository: `https://host/v2/name`. A file that has arrived in part is gone on with. An
    artifact's `blocks` are its parts: those that other files here have are copied, and the file is hashed as a whole
    only when it is installed. The rate is at most `limit_bytes_per_s`, unless that is null. When a source asks for
    credentials, an event `authorize` tells its number; the host's next line on stdin has the `authorization` to send,
    or null and the `reason`.
    """
    sources = [Source(number, url, ask_host) for number, url in enumerate(request["sources"])]
    artifacts = {artifact["sha256"]: artifact for artifact in request["artifacts"]}
    wanted = [Wanted(artifact) for artifact in artifacts.values()]
    with held("push.lock", request):
        INCOMING.mkdir(mode=0o700, parents=True, exist_ok=True)
        missing = [file for file in wanted if not file.is_here()]
        reused = reuse([(file.sha256, file.size, file.parts) for file in missing if file.parts])
        for file in missing:
            file.look()
        pulling = Pulling(missing, request.get("limit_bytes_per_s"))
        for file in missing:
            pull_one(file, sources, pulling)
    return {"files": len(missing), "pulled_bytes": pulling.come, "reused_bytes": reused}


class Wanted:
    """A file on its way, and the stretches of it that are lacking, each as its begin and its end."""

    def __init__(self, artifact: dict[str, Any]) -> None:
        self.sha256, self.size = artifact["sha256"], artifact["size_bytes"]
        if not HEX64.match(self.sha256) or not 0 <= self.size < MOST_BYTES:
            raise AgentFailure("bad_request", f"not an artifact: {self.sha256!r}")
        self.parts = checked_blocks(artifact["blocks"], self.size) if "blocks" in artifact else []
        self.arrival = INCOMING / f"{self.sha256}.part"
        self.stretches = [[0, self.size]]
        # True when its bytes don't all pass here in their order, so that their hash isn't known.
        self.patched = False

    def is_here(self) -> bool:
        blob = BLOBS / self.sha256
        return blob.is_file() and bool(blob.stat().st_size == self.size)

    def look(self) -> None:
        """Find the stretches that the arrived file lacks, and drop a file that can't be gone on with."""
        if not self.arrival.is_file():
            return
        state = self.arrival.stat()
        if self.parts:
            self.patched, self.stretches = True, list(self.wrong())
        else:
            self.stretches = [[state.st_size, self.size]]
        # A push on this machine may have left a link to the bundle's own file, which isn't ours to write to.
        if state.st_size > self.size or (state.st_nlink > 1 and self.lacking):
            self.begin_again()

    def begin_again(self) -> None:
        self.arrival.unlink()
        self.patched, self.stretches = False, [[0, self.size]]

    def wrong(self) -> Iterator[list[int]]:
        """The stretches whose parts haven't their hash, joined over gaps that aren't worth a request."""
        stretch, position = None, 0
        with self.arrival.open("rb") as file:
            for length, sha256 in self.parts:
                right = hashlib.sha256(file.read(length)).hexdigest() == sha256
                if not right and stretch is not None and position - stretch[1] <= LEAST_GAP:
                    stretch[1] = position + length
                elif not right:
                    if stretch is not None:
                        yield stretch
                    stretch = [position, position + length]
                position += length
                progress("compare", position, self.size, "bytes")
        if stretch is not None:
            yield stretch

    @property
    def lacking(self) -> int:
        return sum(end - start for start, end in self.stretches)


def ask_host(number: int) -> str:
    """The credentials that the host lets us give to a source. Raises Refused when it has none."""
    emit("event", {"type": "authorize", "source": number})
    line = sys.stdin.readline()
    if not line:
        raise AgentFailure("bad_request", "the host has gone")
    answer = json.loads(line)
    if answer["authorization"] is None:
        raise Refused(answer.get("reason") or "wants a password or a token, and there is none for it")
    return str(answer["authorization"])


class Pulling:
    """The progress of all files: it makes sure that they fit beforehand, reports to the host, and keeps to a limit."""

    def __init__(self, missing: list[Wanted], limit_bytes_per_s: float | None) -> None:
        self.total = sum(file.lacking for file in missing)
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
            # Bytes that had to be thrown away come twice.
            progress("pull", min(self.come, self.total), self.total, "bytes")
        if self.limit is not None:
            time.sleep(max(0.0, self.began + self.come / self.limit - time.monotonic()))


def pull_one(wanted: Wanted, sources: list[Source], pulling: Pulling) -> None:
    problems = []
    for source in sources:
        if source.gone is None:
            try:
                return pull_from(source, wanted, pulling)
            except Refused as exc:
                if exc.for_good:
                    source.gone = str(exc)
                    emit("event", {"type": "warning", "text": f"{source.host} isn't asked any more: {exc}"})
                problems.append(f"{source.host}: {exc}")
        else:
            problems.append(f"{source.host}: {source.gone}")
    size = f"{wanted.size / 1e6:,.1f} MB"
    raise AgentFailure("registry", f"file {wanted.sha256[:12]} ({size}) can't be pulled there: " + "; ".join(problems))


def pull_from(source: Source, wanted: Wanted, pulling: Pulling) -> None:
    """Get a file whole from one source. Raises Refused when that source doesn't give it."""
    while True:
        resumed = wanted.stretches[:1] != [[0, wanted.size]]
        if download(source, wanted, pulling) in (wanted.sha256, None):
            return
        wanted.begin_again()
        if not resumed:
            raise Refused("sends other content than the hash says", for_good=True)
        # The bytes that were there came from elsewhere, or have holes of a push: this source may still be right.


def download(source: Source, wanted: Wanted, pulling: Pulling) -> str | None:
    """Fill a file's stretches; returns the SHA-256 of the whole file, None for a patched one."""
    digest = hashlib.sha256()
    with wanted.arrival.open("r+b" if wanted.arrival.exists() else "w+b") as file:
        while not wanted.patched and (chunk := file.read(CHUNK)):
            digest.update(chunk)
        while wanted.stretches:
            stretch = wanted.stretches[0]
            if not source.ranged:
                # This source sends the whole file each time: one stretch to its end is read, so that it does so once.
                del wanted.stretches[1:]
                stretch[1] = wanted.size
            file.seek(stretch[0])
            for block in fetch(source, wanted, stretch, pulling):
                file.write(block)
                digest.update(block)
                stretch[0] += len(block)
            del wanted.stretches[0]
    return None if wanted.patched else digest.hexdigest()


def fetch(source: Source, wanted: Wanted, stretch: list[int], pulling: Pulling) -> Iterator[bytes]:
    """Give a stretch of a file as it arrives, over breaks of the link; the caller moves its start. Raises Refused."""
    tries, end = 0, stretch[1]
    while stretch[0] < end:
        before, since, after_s = stretch[0], time.monotonic(), 0.0
        try:
            for block in source.blocks(wanted.sha256, stretch[0], end, wanted.size):
                yield block
                pulling.heard(len(block))
                if pulling.limit is None and too_slow(stretch[0] - before, time.monotonic() - since):
                    raise Refused(f"sends less than {SLOWEST_BYTES_PER_S} bytes a second", for_good=True)
            reason = f"ends after {stretch[0]} of {wanted.size} bytes"
        except Broken as exc:
            reason, after_s = str(exc), exc.after_s
        tries = 1 if stretch[0] - before >= LEAST_BYTES else tries + 1
        if stretch[0] < end:
            if tries == TRIES or not source.answered:
                raise Refused(reason, for_good=True)
            pause(tries, after_s)


def too_slow(count: int, seconds: float) -> bool:
    return seconds > SLOW_S and count < SLOWEST_BYTES_PER_S * seconds
