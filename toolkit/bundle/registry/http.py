"""HTTP as registries need it: connections that are kept, redirects without credentials, proxies, bounded answers."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import toolkit
from toolkit.errors import RegistryError

_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 20
# What is handed to the system at once: a timeout counts for each.
_SEND_BYTES = 64 * 1024
_REDIRECTS = 5
# What of an answer is worth reading to keep its connection.
_SMALL_BYTES = 64 * 1024


class Unreachable(RegistryError):
    """No answer: the link broke, there never was one, or the server is busy.

    `again` says whether trying again may help, `after_s` how long the server wants to be left alone before.
    """

    def __init__(self, message: str, hint: str | None = None, *, again: bool = True, after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.again, self.after_s = again, after_s


@dataclass(frozen=True)
class Response:
    """What a server answered; `url` is where that was after redirects."""

    status: int
    headers: http.client.HTTPMessage
    url: str
    _response: http.client.HTTPResponse
    _connection: http.client.HTTPConnection

    def read(self, limit: int) -> bytes:
        """The body. Raises RegistryError when it is longer than `limit`, Unreachable when the link breaks."""
        body = b"".join(self.blocks(limit + 1))
        if len(body) > limit:
            self.drop()
            raise RegistryError(f"{_place(self.url)}: an answer of more than {limit} bytes")
        self.done()
        return body

    def blocks(self, limit: int) -> Iterator[bytes]:
        """The body as it arrives, at most `limit` bytes of it."""
        try:
            while limit > 0 and (block := self._response.read1(min(limit, _BLOCK_BYTES))):
                limit -= len(block)
                yield block
        except (OSError, http.client.HTTPException) as exc:
            self.drop()
            raise _unreachable(self.url, exc) from exc

    def done(self) -> None:
        """Free the connection for the next request, or close it where a long body is left."""
        try:
            self._response.read(_SMALL_BYTES)
            if not self._response.isclosed():
                self.drop()
        except (OSError, http.client.HTTPException):
            self.drop()

    def drop(self) -> None:
        """Close the connection: nobody wants the rest."""
        self._response.close()
        self._connection.close()


class Web:
    """Requests over kept connections, one for each server; proxies and certificates as the environment says."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._tls: ssl.SSLContext | None = None

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """One request, and those that its redirects lead to; another server isn't told `Authorization`.

        Raises Unreachable, and RegistryError for a redirect that leads nowhere good.
        """
        for _ in range(_REDIRECTS + 1):
            answer = self._exchange(method, url, headers, body)
            target = answer.headers.get("Location")
            follow = answer.status in (307, 308) or (answer.status in (301, 302, 303) and method in ("GET", "HEAD"))
            if not (follow and target):
                return answer
            answer.done()
            url, before = urljoin(url, target), url
            if urlsplit(url).scheme != "https" and urlsplit(before).scheme != "http":
                raise RegistryError(f"{_place(before)}: redirects to {_place(url)}, which isn't https")
            if origin(url) != origin(before):
                if body:
                    raise RegistryError(f"{_place(before)}: would have what is sent go to {_place(url)}")
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise RegistryError(f"{_place(url)}: more than {_REDIRECTS} redirects")

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"{_place(url)}: neither http nor https")
        try:
            connection, path, more = self._connection(parts)
            sent = {"User-Agent": f"edgephi/{toolkit.__version__}", "Accept-Encoding": "identity"} | more | {**headers}
            if body is not None:
                sent["Content-Length"] = str(len(body))
            # A server that refuses may close before it has read everything; its answer says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, _steps(body), sent)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as exc:
            # The next request opens a connection of its own.
            self._connections.pop(origin(url), None)
            raise _unreachable(url, exc) from exc
        return Response(response.status, response.headers, url, response, connection)

    def _connection(self, url: SplitResult) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """A connection to a server or to the proxy before it, the path to ask for, and headers for that proxy."""
        assert url.hostname is not None
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        proxy, proxy_headers = _proxy(url)
        if proxy is not None and url.scheme == "http":
            path = f"http://{url.netloc}{path}"
        key = (url.scheme, url.netloc)
        if key not in self._connections:
            first = proxy or url
            assert first.hostname is not None
            port = first.port or (80 if proxy is not None else None)
            if url.scheme == "https":
                # OpenSSL's own defaults: the system's certificates, or those that SSL_CERT_FILE names.
                self._tls = self._tls or ssl.create_default_context()
                secure = http.client.HTTPSConnection(first.hostname, port, timeout=_TIMEOUT_S, context=self._tls)
                if proxy is not None:
                    secure.set_tunnel(url.hostname, url.port or 443, proxy_headers)
                self._connections[key] = secure
            else:
                self._connections[key] = http.client.HTTPConnection(first.hostname, port, timeout=_TIMEOUT_S)
        return self._connections[key], path, proxy_headers if url.scheme == "http" else {}


def origin(url: str) -> tuple[str, str]:
    """What two URLs have in common that lead to one server: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _steps(body: bytes | None) -> Iterator[memoryview] | None:
    if body is None:
        return None
    view = memoryview(body)
    return (view[start : start + _SEND_BYTES] for start in range(0, len(view), _SEND_BYTES))


def _proxy(url: SplitResult) -> tuple[SplitResult | None, dict[str, str]]:
    """The proxy that the environment has for a URL, and how it is told who asks."""
    assert url.hostname is not None
    named = urllib.request.getproxies().get(url.scheme)
    if not named or urllib.request.proxy_bypass(url.hostname):
        return None, {}
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise RegistryError(f"a proxy of the kind '{proxy.scheme}' isn't supported", f"see {url.scheme}_proxy")
    if proxy.username is None:
        return proxy, {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return proxy, {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _place(url: str) -> str:
    """A URL as messages name it: what follows the path may be somebody's right to it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _unreachable(url: str, exc: Exception) -> Unreachable:
    host = urlsplit(url).netloc
    if isinstance(exc, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE names a file with the certificates to trust, as of a company's own authority"
        return Unreachable(f"{host}: its certificate isn't trusted: {exc.verify_message}", hint, again=False)
    if isinstance(exc, ssl.SSLError):
        hint = "--plain-http is for a registry without TLS"
        return Unreachable(f"{host}: doesn't speak TLS: {exc.reason or exc}", hint, again=False)
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
    return Unreachable(f"{host}: no answer: {reason}", "is the name right, and can this machine reach it?")
