"""The servers that are asked for tokens, and those that never learn a password."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.registries import Server, docker_login, reply
from toolkit.bundle.registry import Registry, auth
from toolkit.bundle.registry.auth import Challenge, authorize
from toolkit.bundle.registry.credentials import Credential
from toolkit.bundle.registry.http import Web
from toolkit.bundle.registry.layout import Layer, Repository, file_layer
from toolkit.bundle.registry.token_servers import check_realm, settings_file
from toolkit.errors import ConfigError, RegistryError

LAYER: Layer = file_layer("model.onnx", "a" * 64, 5)


def at(host: str, *, plain_http: bool = False) -> Repository:
    return Repository.of(host, "models/nano", plain_http=plain_http)


def settle(text: str) -> Path:
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("host", "realm"),
    [
        ("ghcr.io", "https://ghcr.io/token"),
        ("quay.io", "https://quay.io/v2/auth"),
        ("harbor.example.com", "https://harbor.example.com/service/token"),
        ("registry.example.com:5000", "HTTPS://Registry.Example.com/token?x=1"),
        ("gitlab.example:5050", "https://gitlab.example/jwt/auth"),
        ("docker.io", "https://auth.docker.io/token"),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("127.0.0.1:5000", "http://127.0.0.1:5001/token"),
        ("localhost:5000", "http://127.0.0.1:5000/token"),
    ],
)
def test_the_registrys_own_host_and_what_is_published(host: str, realm: str) -> None:
    check_realm(realm, at(host))


INWARD = "which is this machine itself"
OTHER = "which isn't its own host"
NONE = "names no server of tokens that can be asked"
PLAIN = "over http, for all to read"


@pytest.mark.parametrize(
    ("host", "realm", "says"),
    [
        ("registry.example.com", "http://127.0.0.1:8080/token", INWARD),
        ("registry.example.com", "https://localhost/token", INWARD),
        ("registry.example.com", "https://127.1/token", INWARD),
        ("registry.example.com", "https://0x7f000001/token", INWARD),
        ("registry.example.com", "https://[::ffff:127.0.0.1]/token", INWARD),
        ("registry.example.com", "https://169.254.169.254/latest", INWARD),
        ("registry.example.com", "https://0.0.0.0/token", INWARD),
        ("registry.example.com", "http://registry.example.com/token", PLAIN),
        ("registry.example.com", "https://auth.example.net/token", OTHER),
        ("registry.example.com", "https://10.0.0.5/token", OTHER),
        ("registry.example.com", "https://registry.example.com.evil.example/token", OTHER),
        ("registry.example.com", "https://auth.docker.io/token", OTHER),
        ("docker.io", "https://auth.docker.io:8443/token", OTHER),
        ("127.0.0.1:5000", "https://auth.example.net/token", OTHER),
        ("127.0.0.1:5000", "http://auth.example.net/token", PLAIN),
        ("registry.example.com", "https://registry.example.com@evil.example/token", NONE),
        ("registry.example.com", "https://user:pw@registry.example.com/token", NONE),
        ("registry.example.com", "https://registry.example.com:99999/token", NONE),
        ("registry.example.com", "http://[::1/", NONE),
        ("registry.example.com", "ftp://registry.example.com/token", NONE),
        ("registry.example.com", "/token", NONE),
        ("registry.example.com", "", NONE),
        ("registry.example.com", "https://registry.example.com/\x1b]0;x\x07", NONE),
    ],
)
@pytest.mark.parametrize("credential", [Credential("anna", "s3cret"), None], ids=["anna", "nobody"])
def test_servers_that_are_never_asked(host: str, realm: str, says: str, credential: Credential | None) -> None:
    class Unasked(Web):
        def request(self, *_: object, **__: object) -> None:  # type: ignore[override]
            pytest.fail("a request was sent")

    challenge = Challenge(bearer=True, realm=realm)
    with pytest.raises(RegistryError) as error:
        authorize(Unasked(), at(host), "pull", [challenge], credential)
    assert error.value.message.startswith(f"{host}: ") and says in error.value.message
    assert error.value.message.isprintable() and "pw" not in str(error.value) and "s3cret" not in str(error.value)
    assert error.value.exit_code == 8


def test_plain_http_is_for_the_registrys_own_host() -> None:
    check_realm("http://registry.example.com:81/token", at("registry.example.com", plain_http=True))
    with pytest.raises(RegistryError, match=OTHER):
        check_realm("http://auth.example.net/token", at("registry.example.com", plain_http=True))
    with pytest.raises(RegistryError, match=INWARD):
        check_realm("http://127.0.0.1/token", at("registry.example.com", plain_http=True))
    mirror = Repository("https://mirror.example.com", "mirror.example.com", "a", plain_http=True)
    with pytest.raises(RegistryError, match=PLAIN):
        check_realm("http://mirror.example.com/token", mirror)


def test_a_server_that_the_user_named() -> None:
    registry = at("registry.example.com:5000")
    with pytest.raises(RegistryError) as error:
        check_realm("https://auth.example.net:8443/token", registry)
    assert error.value.message == (
        "registry.example.com:5000: sends us to auth.example.net:8443 for a token, which isn't its own host"
    )
    assert error.value.hint == (
        f"if its password may go there, {settings_file()} says so: "
        '["registry.example.com:5000"] and, in the next line, token_server = "auth.example.net:8443"'
    )
    settle('["registry.example.com:5000"]\ntoken_server = "auth.example.net:8443"\n')
    check_realm("https://auth.example.net:8443/token", registry)
    for realm, host in (
        ("https://auth.example.net/token", "registry.example.com:5000"),
        ("https://auth.example.net:8443/token", "registry.example.com"),
        ("http://auth.example.net:8443/token", "registry.example.com:5000"),
    ):
        with pytest.raises(RegistryError):
            check_realm(realm, at(host))
    settle('["registry.example.com"]\ntoken_server = "127.0.0.1:8080"\n')
    with pytest.raises(RegistryError, match=INWARD):
        check_realm("https://127.0.0.1:8080/token", at("registry.example.com"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('["r.example"]\ntoken_serwer = "x"\n', "token_serwer: unknown key (did you mean 'token_server'?)"),
        ('["r.example"]\ntoken_server = "https://x/token"\n', "'https://x/token' is no host; write it like"),
        ('["r.example"]\ntoken_server = "x:99999"\n', "token_server: "),
        ('"r.example" = "x"\n', "r.example: must be a table"),
        ("[", "not valid TOML"),
    ],
)
def test_settings_with_a_mistake(text: str, says: str) -> None:
    path = settle(text)
    with pytest.raises(ConfigError) as error:
        check_realm("https://x.example/token", at("r.example"))
    assert str(path) in error.value.message and says in error.value.message


def test_a_file_of_the_working_folder_names_nobody() -> None:
    Path("registries.toml").write_text('["r.example"]\ntoken_server = "evil.example"\n')
    with pytest.raises(RegistryError, match=OTHER):
        check_realm("https://evil.example/token", at("r.example"))


def test_a_password_for_a_registry_elsewhere_never_comes_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real exchange: the registry has another name, and names a realm on this machine."""
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_login(tmp_path / "docker", "registry.test")))
    with Server(lambda handler: reply(handler, 200, b'{"token": "abc"}')) as thief:

        def refuse(handler: BaseHTTPRequestHandler) -> None:
            reply(handler, 401, WWW_Authenticate=f'Bearer realm="http://{thief.host}/token",service="r"')

        with Server(refuse) as proxy:
            monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
            repository = at("registry.test", plain_http=True)
            with Registry(repository) as registry, pytest.raises(RegistryError) as error:
                registry.has_blob(LAYER)
            assert [path for _, path, _ in proxy.asked] == [f"http://registry.test/v2/models/nano/blobs/{LAYER.digest}"]
        assert thief.asked == []
    assert error.value.message == (f"registry.test: sends us to {thief.host} for a token, which is this machine itself")


def test_what_goes_to_this_machine_passes_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        known = "Authorization" in handler.headers
        reply(handler, 200 if known else 401, b"", WWW_Authenticate='Basic realm="x"')

    with Server(answer) as there, Server(answer) as proxy:
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_login(tmp_path / "docker", there.host)))
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.delenv("no_proxy", raising=False)
        with Registry(at(there.host)) as registry:
            registry.has_blob(LAYER)
        assert proxy.asked == [] and len(there.authorizations()) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"token": 5}',
        b'{"token": ["a"]}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": ""}',
        b"[]",
        b"[" * 60_000,
        b'{"token": "' + b"a" * 40_000 + b'"}',
        b'{"token": NaN}',
        b"\x1f\x8b\x08gz",
    ],
    ids=lambda body: body[:16].decode("latin-1"),
)
def test_what_is_no_token(body: bytes) -> None:
    with Server(lambda handler: reply(handler, 200, body)) as there:
        challenge = Challenge(bearer=True, realm=f"http://{there.host}/token")
        with pytest.raises(RegistryError) as error:
            authorize(Web(), at(there.host), "pull", [challenge], None)
    assert error.value.message == f"{there.host}: {there.host} gives no token (status 200)"


@pytest.mark.parametrize("expires", ["3600", '"3600"', "9.5", "null", "[]"])
def test_when_a_token_expires_is_not_asked(expires: str) -> None:
    """The registry says so itself, with its next 401."""
    with Server(lambda handler: reply(handler, 200, f'{{"token": "abc", "expires_in": {expires}}}'.encode())) as there:
        challenge = Challenge(bearer=True, realm=f"http://{there.host}/token")
        assert authorize(Web(), at(there.host), "pull", [challenge], None) == "Bearer abc"
    assert auth.parse_challenges("Bearer " * 1000 + 'realm="x"')
