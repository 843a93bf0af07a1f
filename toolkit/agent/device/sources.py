"""Registries and mirrors over HTTP: blobs by their hash, from any byte on."""

from __future__ import annotations

import http.client
import random
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from toolkit.untrusted import answer_class, is_this_machine

from .protocol import CHUNK, AgentFailure

TIMEOUT_S = 30.0
REDIRECTS = 5
PAUSE_S, LONGEST_PAUSE_S = 0.3, 60.0
BUSY = (408, 429, 500, 502, 503, 504)
LENGTH = re.compile(r"[0-9]{1,15}")


class Broken(Exception):
    """The link broke, or the source is busy: another try may help, after `after_s` seconds."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Refused(Exception):
    """This source doesn't give this file; with `for_good` it gives none at all."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


_Answer = answer_class()


class _Plain(http.client.HTTPConnection):
    response_class = _Answer


class _Tls(http.client.HTTPSConnection):
    response_class = _Answer


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, req)


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self) -> None:
        # Certificates come from the system or SSL_CERT_FILE.
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Tls, req, context=self._tls)


class Source:
    """One repository of one registry. `gone` is the reason for which it isn't asked any more, None while it is."""

    def __init__(self, number: int, url: str, authorize: Callable[[int], str]) -> None:
        parts = split(url)
        if parts is None:
            raise AgentFailure("bad_request", f"not a repository: {url!r}")
        self.url, self.host = url, parts.netloc
        self._inward = is_this_machine(parts.hostname or "")
        self.gone: str | None = None
        self.answered = False
        # False for a source that sends the whole file, whatever part of it is asked for.
        self.ranged = True
        self._ask: Callable[[], str] = lambda: authorize(number)
        self._authorization: str | None = None
        # Proxies come from the environment; none knows the way to this device itself.
        self._opener = opener(urllib.request.ProxyHandler())
        self._inward_opener = opener()

    def blocks(self, sha256: str, start: int, end: int, size: int) -> Iterator[bytes]:
        """Give the bytes of a blob (of `size` bytes) from `start` to `end`, as they arrive, and none beyond.

        Raises Broken, and Refused when the source hasn't the blob, or sends something else than it was asked for.
        """
        part = f"bytes={start}-{end - 1 if end < size else ''}" if start or end < size else None
        with self._open(f"{self.url}/blobs/sha256:{sha256}", part) as response:
            whole = response.status == 200
            self.ranged = self.ranged and not (whole and part)
            skip = start if whole else 0
            left = end - start + skip
            length, most = response.headers.get("Content-Length", ""), size if whole else left
            if not whole and part and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise Refused("sends another part than it was asked for", for_good=True)
            if LENGTH.fullmatch(length) and int(length) > most:
                raise Refused(f"would send {length} bytes instead of {most}", for_good=True)
            while left:
                block = read(response, min(left, CHUNK))
                if not block:
                    return
                left -= len(block)
                if skip < len(block):
                    yield block[skip:]
                skip = max(0, skip - len(block))

    def _open(self, url: str, part: str | None) -> Any:
        """The answer to a request for a blob, after redirects and after the source has our credentials."""
        asked = False
        for _ in range(REDIRECTS + 2):
            status, response = self._exchange(url, part)
            if status in (200, 206):
                return response
            ours = origin(url) == origin(self.url)
            if status == 401 and ours and not asked:
                asked, self._authorization = True, self._ask()
                continue
            target, after = response.headers.get("Location"), response.headers.get("Retry-After", "")
            response.close()
            if status in BUSY:
                raise Broken(f"is busy ({status})", float(after) if after.isdecimal() else 0.0)
            if status not in (301, 302, 303, 307, 308) or not target:
                raise Refused(f"answers {status} {http.client.responses.get(status, '')}".strip())
            url = self._redirected(url, target)
        raise Refused("redirects in circles", for_good=True)

    def _redirected(self, url: str, target: str) -> str:
        """The address that an answer redirects to. Raises Refused for one that a source may not send us to."""
        try:
            url = urljoin(url, target)
        except ValueError:
            url = target
        parts = split(url)
        if parts is None:
            raise Refused("redirects to what is no address of http or https", for_good=True)
        if parts.scheme != "https" and self.url.startswith("https:"):
            raise Refused("redirects to an address without TLS", for_good=True)
        if is_this_machine(parts.hostname or "") and not self._inward:
            raise Refused("redirects to this device itself", for_good=True)
        return url

    def _exchange(self, url: str, part: str | None) -> tuple[int, Any]:
        request = urllib.request.Request(url, headers={"User-Agent": "edgephi-agent"})
        if part:
            request.add_header("Range", part)
        if self._authorization is not None and origin(url) == origin(self.url):
            request.add_header("Authorization", self._authorization)
        try:
            inward = is_this_machine(urlsplit(url).hostname or "")
            response = (self._inward_opener if inward else self._opener).open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as exc:
            self.answered = True
            return exc.code, exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            if isinstance(reason, ssl.SSLCertVerificationError):
                message = f"its certificate isn't trusted here: {reason.verify_message}"
                raise Refused(message, for_good=True) from exc
            raise Broken(f"no answer: {getattr(reason, 'strerror', None) or reason}") from exc
        self.answered = True
        return response.status, response


def opener(*handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """An opener for http and https alone. Redirects are left to `Source`, which takes no credentials elsewhere."""
    made = urllib.request.OpenerDirector()
    for handler in (*handlers, _PlainHandler(), _TlsHandler()):
        made.add_handler(handler)
    made.add_handler(urllib.request.HTTPDefaultErrorHandler())
    made.add_handler(urllib.request.HTTPErrorProcessor())
    return made


def split(url: str) -> SplitResult | None:
    """The parts of an http or https URL; None for what is none, or has a login in it."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return None
    return parts if good and "@" not in parts.netloc else None


def origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def read(response: Any, count: int) -> bytes:
    try:
        block: bytes = response.read1(count)
        return block
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise Broken(f"the link broke: {exc}") from exc


def pause(tries: int, at_least_s: float) -> None:
    """Wait before another try. The time is spread: a thousand devices may have lost one registry at one moment."""
    time.sleep(min(LONGEST_PAUSE_S, max(at_least_s, PAUSE_S * 2 ** (tries - 1)) * random.uniform(1.0, 2.0)))
