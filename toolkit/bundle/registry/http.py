"""HTTP as registries need it, over urllib3: redirects without credentials, proxies, bounded answers."""

from __future__ import annotations

import base64
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import toolkit
from toolkit.errors import RegistryError
from toolkit.untrusted import answer_class, is_this_machine, visible

if TYPE_CHECKING:
    import urllib3

_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 20
# The bytes that are handed to the system at once: the timeout counts for each such step.
_SEND_BYTES = 64 * 1024
_REDIRECTS = 5
# The most of an answer's rest that is worth reading to keep the connection.
_SMALL_BYTES = 64 * 1024
_LONGEST_SHOWN = 200


class Unreachable(RegistryError):
    """No answer: the link broke, there never was one, or the server is busy.

    `again` is true when another try may help; before it, the server wants to be left alone for `after_s`.
    """

    def __init__(self, message: str, hint: str | None = None, *, again: bool = True, after_s: float = 0.0) -> None:
        super().__init__(message, hint)
        self.again, self.after_s = again, after_s


@dataclass(frozen=True)
class Response:
    """A server's answer; `url` is the address that gave it, after redirects."""

    status: int
    headers: Mapping[str, str]
    url: str
    _answer: urllib3.BaseHTTPResponse

    def read(self, limit: int) -> bytes:
        """The body. Raises RegistryError when it is longer than `limit`, Unreachable when the link breaks."""
        body = b"".join(self.blocks(limit + 1))
        if len(body) > limit:
            self._answer.close()
            raise RegistryError(f"{_place(self.url)}: an answer of more than {limit} bytes")
        self.done()
        return body

    def blocks(self, limit: int) -> Iterator[bytes]:
        """The body as it arrives, at most `limit` bytes of it."""
        with _worded(self.url):
            while limit > 0 and (block := self._answer.read1(min(limit, _BLOCK_BYTES))):
                limit -= len(block)
                yield block

    def done(self) -> None:
        """Free the connection for the next request, or close it where a long body is left."""
        with suppress(Unreachable), _worded(self.url):
            self._answer.read(_SMALL_BYTES)
        # Closing does nothing to a body that was read to its end: the connection is urllib3's again.
        self._answer.close()


class Web:
    """Requests over kept connections; proxies and certificates as the environment says."""

    def __init__(self) -> None:
        self._managers: dict[tuple[str, str], urllib3.PoolManager] = {}

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Send a request and follow its redirects; another server doesn't get `Authorization`.

        Raises Unreachable, and RegistryError for a redirect that leaves TLS or takes a body to another server, and for
        more than five of them.
        """
        first = parse_url(url)
        for _ in range(_REDIRECTS + 1):
            answer = self._exchange(method, url, headers, body)
            target = answer.headers.get("Location")
            follow = answer.status in (307, 308) or (answer.status in (301, 302, 303) and method in ("GET", "HEAD"))
            if not (follow and target):
                return answer
            answer.done()
            url, before = joined(url, target), url
            if urlsplit(url).scheme != "https" and urlsplit(before).scheme != "http":
                raise RegistryError(f"{_place(before)}: redirects to {_place(url)}, which isn't https")
            refuse_inward(url, first)
            if origin(url) != origin(before):
                if body:
                    raise RegistryError(f"{_place(before)}: would have what is sent go to {_place(url)}")
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise RegistryError(f"{_place(url)}: more than {_REDIRECTS} redirects")

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        parts = parse_url(url)
        sent = {"User-Agent": f"edgephi/{toolkit.__version__}", "Accept-Encoding": "identity"} | {**headers}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        with _worded(url):
            # We repeat and redirect requests ourselves; urllib3 reads only the bytes we ask for, and decompresses none.
            answer = self._manager(parts).urlopen(
                method,
                url,
                redirect=False,
                body=_steps(body),
                headers=sent,
                retries=False,
                timeout=_TIMEOUT_S,
                preload_content=False,
                decode_content=False,
            )
        return Response(answer.status, answer.headers, url, answer)

    def _manager(self, url: SplitResult) -> urllib3.PoolManager:
        """The connections for a URL: to servers themselves, or to the proxy before them.

        urllib3 trusts the certificates that OpenSSL trusts: the system's, or those that SSL_CERT_FILE names.
        """
        import urllib3

        proxy, login = _proxy(url)
        if (proxy, login) not in self._managers:
            told = {"Proxy-Authorization": login} if login else {}
            made = urllib3.ProxyManager(proxy, proxy_headers=told) if proxy else urllib3.PoolManager()
            made.pool_classes_by_scheme = _pool_classes()
            self._managers[proxy, login] = made
        return self._managers[proxy, login]


@cache
def _pool_classes() -> dict[str, Any]:
    """The pools of urllib3 with connections whose answers keep coming, by scheme."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    answer = answer_class()

    class Plain(HTTPConnection):
        response_class = answer

    class Tls(HTTPSConnection):
        response_class = answer

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def parse_url(url: str) -> SplitResult:
    """The parts of an http or https URL, which may come from a server. Raises RegistryError when it is none, or has a
    login in it."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        good = False
    if not good:
        raise RegistryError(f"{_place(url)}: neither http nor https")
    if "@" in parts.netloc:
        raise RegistryError(f"{_place(url)}: an address with a login in it")
    return parts


def joined(url: str, target: str) -> str:
    """The URL to which an answer from `url` points. Raises RegistryError when it is none that `parse_url` takes."""
    try:
        joint = urljoin(url, target)
    except ValueError:
        joint = target
    parse_url(joint)
    return joint


def refuse_inward(url: str, first: SplitResult) -> None:
    """Raise RegistryError for a URL of this machine to which a server elsewhere (`first`) sends us."""
    inward = parse_url(url).hostname
    if is_this_machine(inward or "") and not is_this_machine(first.hostname or ""):
        raise RegistryError(f"{first.netloc}: sends us to {_place(url)}, which is this machine itself")


def origin(url: str) -> tuple[str, str, int]:
    """The scheme, the host and the port of a URL: two URLs that share them lead to one server."""
    parts = parse_url(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _steps(body: bytes | None) -> Iterator[memoryview] | None:
    if body is None:
        return None
    view = memoryview(body)
    return (view[start : start + _SEND_BYTES] for start in range(0, len(view), _SEND_BYTES))


def _proxy(url: SplitResult) -> tuple[str, str]:
    """The proxy that the environment names for a URL, and the login for it as a header; each "" where there is none."""
    assert url.hostname is not None
    named = urllib.request.getproxies().get(url.scheme)
    # A proxy's own loopback isn't ours; and what goes there without TLS would pass through the proxy's hands.
    if not named or is_this_machine(url.hostname) or urllib.request.proxy_bypass(url.hostname):
        return "", ""
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise RegistryError(f"a proxy of the kind '{proxy.scheme}' isn't supported", f"see {url.scheme}_proxy")
    place = f"http://{proxy.netloc.rpartition('@')[2]}"
    if proxy.username is None:
        return place, ""
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return place, "Basic " + base64.b64encode(login.encode()).decode()


def _place(url: str) -> str:
    """A URL as messages name it, without login and query, which may hold secrets."""
    shown = "".join(filter(str.isprintable, url))[:_LONGEST_SHOWN]
    try:
        parts = urlsplit(shown)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme:
        return repr(shown.partition("?")[0].rpartition("@")[2])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _worded(url: str) -> Iterator[None]:
    """Turn errors of urllib3, and of the libraries below it, into Unreachable. The connection is closed then."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    try:
        yield
    except (OSError, HTTPError, HTTPException, ValueError) as exc:
        raise _unreachable(url, _innermost(exc)) from exc


def _innermost(exc: BaseException) -> BaseException:
    """The system's own error: urllib3 wraps it once or twice, as an argument or as the cause."""
    while inner := next((found for found in (*exc.args, exc.__cause__) if isinstance(found, BaseException)), None):
        exc = inner
    return exc


def _unreachable(url: str, exc: BaseException) -> Unreachable:
    host = urlsplit(url).netloc
    if isinstance(exc, ssl.SSLCertVerificationError):
        hint = "SSL_CERT_FILE names a file with the certificates to trust, as of a company's own authority"
        return Unreachable(f"{host}: its certificate isn't trusted: {exc.verify_message}", hint, again=False)
    if isinstance(exc, ssl.SSLError):
        hint = "--plain-http is for a registry without TLS"
        return Unreachable(f"{host}: doesn't speak TLS: {exc.reason or exc}", hint, again=False)
    reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
    return Unreachable(
        f"{host}: no answer: {visible(reason)[:_LONGEST_SHOWN]}", "is the name right, and can this machine reach it?"
    )
