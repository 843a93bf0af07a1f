"""One repository of a registry: its blobs, looked for, pushed and pulled, and the manifests that name them.

The protocol is the OCI distribution specification 1.1.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from toolkit.bundle.registry.auth import authorize, parse_challenges
from toolkit.bundle.registry.credentials import find_credential
from toolkit.bundle.registry.http import Response, Unreachable, Web, joined, origin, parse_url, refuse_inward
from toolkit.bundle.registry.layout import IMAGE_MANIFEST, Layer, Repository
from toolkit.errors import CorruptBundle, RegistryError
from toolkit.untrusted import LARGEST_MANIFEST_BYTES, read_json

# The largest step that every registry takes: GitHub's has this limit, Azure's one of 20 MB, others none.
CHUNK_BYTES = 4 * 2**20
# Tries in a row that bring nothing before a request is given up, and the pause before the second of them; each next
# pause is twice as long.
_TRIES = 6
_PAUSE_S = 0.3
_LONGEST_PAUSE_S = 60.0
# A try that brings less brings nothing: else a registry that sends a byte a time would never be given up.
_LEAST_BYTES = 64 * 1024
_LARGEST_ERROR_BYTES = 64 * 1024
_BUSY = (429, 500, 502, 503, 504)
_READ_BYTES = 1 << 20


class Registry:
    """A client of one repository, with the credentials that this machine has for it. Use it in `with`.

    Every method raises RegistryError with the registry's answer; a failure that may pass is tried again first.
    """

    def __init__(self, repository: Repository, *, write: bool = False) -> None:
        self.repository = repository
        self._actions = "pull,push" if write else "pull"
        self._web = Web()
        self._authorization: str | None = None
        self._answered = False

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._web.close()

    def has_blob(self, layer: Layer) -> bool:
        """Tell if the repository has a layer's content already."""
        answer = self._ask("HEAD", self._blob_url(layer), known=(200, 404))
        answer.done()
        return answer.status == HTTPStatus.OK and answer.headers.get("Content-Length", "") == str(layer.size)

    def authorization(self, layer: Layer) -> str | None:
        """A fresh `Authorization` for a device that is to pull a layer; None where the registry asks for none."""
        self._authorization = None
        self._ask("HEAD", self._blob_url(layer), known=(200, 404)).done()
        return self._authorization

    def manifest(self, name: str) -> bytes:
        """The OCI manifest of a tag or digest, held against its digest. It needn't be that of a bundle."""
        where = f"{self.repository}:{name}" if ":" not in name else f"{self.repository}@{name}"
        answer = self._ask("GET", self._manifest_url(name), {"Accept": IMAGE_MANIFEST}, known=(200, 404))
        if answer.status == HTTPStatus.NOT_FOUND:
            code = _error_of(answer)[0]
            missing = "repository" if code == "NAME_UNKNOWN" else "repository or tag"
            raise RegistryError(f"{where}: no such {missing}", "is it spelt right? edgephi bundle push makes one")
        raw = answer.read(LARGEST_MANIFEST_BYTES)
        digest = _digest(raw)
        stated = name if ":" in name else answer.headers.get("Docker-Content-Digest", digest)
        if stated != digest:
            raise RegistryError(f"{where}: the registry sends another manifest than {stated[:19]!a}", _BROKEN)
        return raw

    def has_manifest(self, tag: str, digest: str) -> bool:
        """Tell if a tag names that manifest already."""
        answer = self._ask("HEAD", self._manifest_url(tag), {"Accept": IMAGE_MANIFEST}, known=(200, 404))
        answer.done()
        return answer.status == HTTPStatus.OK and answer.headers.get("Docker-Content-Digest") == digest

    def put_manifest(self, tag: str, raw: bytes) -> str:
        """Let a tag name a manifest whose layers the registry has; returns its digest."""
        url, headers = self._manifest_url(tag), {"Content-Type": IMAGE_MANIFEST}
        self._ask("PUT", url, headers, raw, known=(200, 201)).done()
        return _digest(raw)

    def small_blob(self, layer: Layer, largest_bytes: int) -> bytes:
        """A blob of at most `largest_bytes`, held against its digest."""
        if layer.size > largest_bytes:
            raise RegistryError(f"{self.repository}: {layer.title} has {layer.size} bytes, at most {largest_bytes} fit")
        answer = self._ask("GET", self._blob_url(layer), known=(200, 404))
        if answer.status == HTTPStatus.NOT_FOUND:
            raise self._lacks(layer)
        raw = answer.read(layer.size)
        if _digest(raw) != layer.digest:
            raise RegistryError(f"{self.repository}: {layer.title} isn't what its digest says", _BROKEN)
        return raw

    def download(self, layer: Layer, part: Path) -> Iterator[int]:
        """Fill a file with a layer's content, from where an earlier try ended; yields the count of bytes there.

        Every byte is hashed as it passes. When they don't match the digest, the file is deleted and RegistryError
        raised.
        """
        with part.open("a+b") as file:
            digest = hashlib.sha256()
            file.seek(0)
            while block := file.read(_READ_BYTES):
                digest.update(block)
            resumed = file.tell() > 0
            yield from self._download(layer, file, digest)
            if digest.hexdigest() != layer.sha256 and resumed:
                # The bytes of an earlier try may be wrong: from another registry, or damaged by a power cut.
                file.truncate(0)
                digest = hashlib.sha256()
                yield from self._download(layer, file, digest)
        if digest.hexdigest() != layer.sha256:
            part.unlink()
            raise RegistryError(f"{self.repository}: {layer.title} isn't what its digest says", _BROKEN)

    def _download(self, layer: Layer, file: IO[bytes], digest: Any) -> Iterator[int]:
        file.seek(0, 2)
        tries = 0
        if file.tell() > layer.size:
            file.truncate(0)
            # So long a file can't have the right hash; the caller begins anew.
            return
        while file.tell() < layer.size:
            before = file.tell()
            try:
                for block in self._rest_of(layer, before):
                    file.write(block)
                    digest.update(block)
                    yield file.tell()
            except Unreachable as exc:
                tries = 1 if file.tell() - before >= _LEAST_BYTES else tries + 1
                if tries == _TRIES or not exc.again:
                    raise
                _pause(tries, exc.after_s)
                continue
            tries = 0 if file.tell() - before >= _LEAST_BYTES else tries + 1
            if tries == _TRIES and file.tell() < layer.size:
                raise RegistryError(f"{self.repository}: {layer.title} ends after {before} of {layer.size} bytes")

    def _rest_of(self, layer: Layer, offset: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._ask("GET", self._blob_url(layer), headers, known=(200, 206, 404))
        if answer.status == HTTPStatus.NOT_FOUND:
            raise self._lacks(layer)
        left = layer.size - offset
        if answer.status == HTTPStatus.OK and offset:
            yield from _skipped(answer.blocks(layer.size), offset)
        elif offset and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise RegistryError(
                f"{self.repository}: sends another part of {layer.title} than it was asked for", _BROKEN
            )
        else:
            yield from answer.blocks(left)
        # An answer may go on beyond the bytes that were asked for.
        answer.done()

    def upload(self, layer: Layer, source: IO[bytes]) -> Iterator[int]:
        """Push a layer's content, in steps; yields the count of bytes that the registry has, less after a restart.

        After a break it goes on where the registry says. Registries built on `distribution` forget an upload that broke
        off within a step; then it begins anew. Raises CorruptBundle when the file doesn't match the digest.
        """
        location, position, tries, furthest = self._begin_upload(), 0, 0, 0
        while True:
            before = position
            try:
                if position == layer.size or (position == 0 and layer.size <= CHUNK_BYTES):
                    self._end_upload(layer, location, source, position)
                    yield layer.size
                    return
                location, position = self._send_step(layer, location, source, position)
                problem = None if position - before >= _LEAST_BYTES or position == layer.size else self._stuck(layer)
            except Unreachable as exc:
                problem = exc
            if problem is not None:
                tries += 1
                if tries == _TRIES or not problem.again:
                    raise problem
                _pause(tries, problem.after_s)
                # The registry may have got everything, and only its answer was lost.
                if self.has_blob(layer):
                    yield layer.size
                    return
                location, position = self._resume_upload(layer, location)
            if position >= furthest + _LEAST_BYTES or position == layer.size > furthest:
                # Without this an upload that always breaks at the same place would go on for ever.
                tries, furthest = 0, position
            yield position

    def _stuck(self, layer: Layer) -> Unreachable:
        return Unreachable(f"{self.repository}: takes none of the bytes of {layer.title}", "is its disk full?")

    def _begin_upload(self) -> str:
        answer = self._ask("POST", f"{self.repository.url}/blobs/uploads/", body=b"", known=(202,))
        answer.done()
        return self._location(answer)

    def _send_step(self, layer: Layer, location: str, source: IO[bytes], position: int) -> tuple[str, int]:
        """Send the next step; returns the URL for the one after it, and the number of bytes that the registry has."""
        step = self._read_step(layer, source, position)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{position}-{position + len(step) - 1}",
        }
        answer = self._ask("PATCH", location, headers, step, known=(202, 404, 416), again=False)
        answer.done()
        if answer.status == HTTPStatus.ACCEPTED:
            return self._location(answer), position + len(step)
        # The registry counts other bytes of this upload, or has forgotten it.
        return self._resume_upload(layer, location)

    def _read_step(self, layer: Layer, source: IO[bytes], position: int) -> bytes:
        source.seek(position)
        step = source.read(min(CHUNK_BYTES, layer.size - position))
        if not step and layer.size:
            raise CorruptBundle(f"{layer.title}: ends after {position} bytes", "the bundle changed while it was pushed")
        return step

    def _resume_upload(self, layer: Layer, location: str) -> tuple[str, int]:
        answer = self._ask("GET", location, known=(200, 202, 204, 404))
        answer.done()
        arrived = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", answer.headers.get("Range", ""))
        # Registries answer 0-0 both for no byte and for one.
        if answer.status == HTTPStatus.NOT_FOUND or arrived is None or not 0 < int(arrived[1]) < layer.size:
            return self._begin_upload(), 0
        return self._location(answer, location), int(arrived[1]) + 1

    def _end_upload(self, layer: Layer, location: str, source: IO[bytes], position: int) -> None:
        """End an upload, with the rest of the file if one is left; the registry holds the whole against its digest."""
        last = self._read_step(layer, source, position) if position < layer.size else b""
        joint = "&" if urlsplit(location).query else "?"
        headers = {"Content-Type": "application/octet-stream"}
        url = f"{location}{joint}digest={layer.digest}"
        answer = self._ask("PUT", url, headers, last, known=(201, 204, 400, 404, 416), again=False)
        if answer.status in (HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
            answer.done()
            return
        code, text = _error_of(answer)
        if code == "DIGEST_INVALID":
            hint = "build the bundle again, or copy it again from where it is whole"
            raise CorruptBundle(f"{layer.title}: content changed (another SHA-256)", hint)
        raise RegistryError(f"{self.repository}: didn't take {layer.title}: {text}")

    def _location(self, answer: Response, default: str | None = None) -> str:
        location = answer.headers.get("Location", default)
        if location is None:
            raise RegistryError(f"{self.repository}: doesn't say where to upload to", _BROKEN)
        url = parse_url(joined(answer.url, location))
        ours = parse_url(self.repository.origin)
        refuse_inward(urlunsplit(url), ours)
        if url.netloc == ours.netloc:
            # A registry behind a proxy that ends TLS gives addresses without TLS.
            url = url._replace(scheme=ours.scheme)
        elif url.scheme != "https":
            raise RegistryError(f"{self.repository}: would have uploads go to {url.netloc}, without TLS")
        return urlunsplit(url)

    def _blob_url(self, layer: Layer) -> str:
        return f"{self.repository.url}/blobs/{layer.digest}"

    def _manifest_url(self, name: str) -> str:
        return f"{self.repository.url}/manifests/{name}"

    def _lacks(self, layer: Layer) -> RegistryError:
        return RegistryError(f"{self.repository}: hasn't {layer.title} ({layer.digest[:19]})", "push the bundle again")

    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        known: tuple[int, ...],
        again: bool = True,
    ) -> Response:
        """Send a request, with the authorization that the registry asks for. Raises RegistryError for other statuses.

        `known` are the statuses that the caller handles. With `again` a request is repeated after a broken link or the
        answer of a busy registry; a caller that sends parts of a file asks first which of them have arrived.
        """
        tries = 0
        while True:
            try:
                answer = self._authorized(method, url, headers or {}, body)
                self._answered = True
                if answer.status not in _BUSY or answer.status in known:
                    break
                problem = self._refusal(answer, method)
            except Unreachable as exc:
                problem = exc
            tries += 1
            # A registry that has never answered isn't there, and not worth waiting for.
            if not (again and problem.again and self._answered) or tries == _TRIES:
                raise problem
            _pause(tries, problem.after_s)
        if answer.status not in known:
            raise self._refusal(answer, method)
        return answer

    def _authorized(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        def ask() -> Response:
            mine = self._authorization is not None and origin(url) == origin(self.repository.origin)
            secret = {"Authorization": self._authorization or ""} if mine else {}
            return self._web.request(method, url, {**headers, **secret}, body)

        answer = ask()
        if answer.status == HTTPStatus.UNAUTHORIZED and origin(answer.url) == origin(self.repository.origin):
            challenges = parse_challenges(answer.headers.get("WWW-Authenticate", ""))
            credential = find_credential(self.repository.host, self.repository.path)
            # Also without a credential: everybody gets tokens for public repositories.
            given = authorize(self._web, self.repository, self._actions, challenges, credential)
            if given is not None and (given != self._authorization or given.startswith("Bearer")):
                answer.done()
                self._authorization = given
                answer = ask()
        return answer

    def _refusal(self, answer: Response, method: str) -> Unreachable:
        status, text = answer.status, _error_of(answer)[1]
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            host = self.repository.host
            what = "push to" if self._actions != "pull" else "pull from"
            credential = find_credential(host, self.repository.path)
            whose = "nobody without a password" if credential is None else f"'{credential.user}'"
            message = f"{self.repository}: {whose} may {what} it ({status}: {text})"
            return Unreachable(message, f"`docker login {host}`, or podman's or oras', keeps credentials", again=False)
        message = f"{self.repository}: {method} was answered with {status}: {text}"
        if status not in _BUSY:
            return Unreachable(message, again=False)
        after = answer.headers.get("Retry-After", "")
        seconds = float(after) if after.isdecimal() else 0.0
        return Unreachable(message, "it is busy or broken; try again later", after_s=seconds)


_BROKEN = "is something between here and the registry that changes what passes?"


def _digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def _pause(tries: int, at_least_s: float = 0.0) -> None:
    # The pauses are spread: clients that one failure stopped shouldn't all come back at once.
    time.sleep(min(_LONGEST_PAUSE_S, max(at_least_s, _PAUSE_S * 2 ** (tries - 1)) * random.uniform(1.0, 2.0)))


def _skipped(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Give the bytes after the first `count`, for servers that only send whole files."""
    for block in blocks:
        if count < len(block):
            yield block[count:]
        count = max(0, count - len(block))


def _error_of(answer: Response) -> tuple[str, str]:
    """A registry's own code for an error, '' when it gives none, and its message."""
    raw = b""
    with suppress(RegistryError):
        raw = answer.read(_LARGEST_ERROR_BYTES)
    try:
        first = read_json(raw, controls=True)["errors"][0]
        code, text = str(first["code"]), str(first.get("message") or first["code"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        code, text = "", HTTPStatus(answer.status).phrase if answer.status in HTTPStatus._value2member_map_ else "?"
    return code, "".join(character for character in text if character.isprintable())[:200]
