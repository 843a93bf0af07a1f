"""Bundles as OCI artifacts: the place of one in a registry, and the OCI manifest that lists its files.

The layout is that of ORAS: one layer for each file, named by `org.opencontainers.image.title`. A layer's digest is the
SHA-256 that the bundle's own manifest has of the file; the digest of that manifest's layer is the bundle's id.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from toolkit.bundle.manifest import Manifest, Sha256, canonical_json
from toolkit.catalog.record import OpenRecord
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.untrusted import (
    LARGEST_MANIFEST_BYTES,
    LARGEST_SIGNATURE_BYTES,
    MANIFEST_NAME,
    MOST_ARTIFACTS,
    MOST_BYTES,
    MOST_SIGNATURES,
    SIGNATURES,
    read_json,
    signature_name,
)

SCHEME = "oci://"
ARTIFACT_TYPE = "application/vnd.edgephi.bundle.v1"
MANIFEST_LAYER = "application/vnd.edgephi.manifest.v1+json"
FILE_LAYER = "application/octet-stream"
# This layer has no title: it is no file of the bundle's, and others' tools pass over it.
BLOCKS_LAYER = "application/vnd.edgephi.blocks.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
# The empty JSON object, which stands where images have a configuration.
EMPTY = b"{}"
DEFAULT_TAG = "latest"
_WRITTEN_LIKE = "write it like oci://registry.example.com/models/phi3:v1"
_MIRROR_LIKE = "write it like https://mirror.example.com:5000, with /NAMESPACE where the mirror keeps copies below one"
_OFFER = "edgephi bundle push makes one"
# A bundle's files and signatures, its manifest, and the lists of its blocks.
_MOST_LAYERS = MOST_ARTIFACTS + MOST_SIGNATURES + 2
_LONGEST_KEY = 200

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """A place in a registry: `host` with its port if it has one, a repository, and a tag or a digest in it."""

    host: str
    repository: str
    tag: str = DEFAULT_TAG
    digest: str | None = None

    @property
    def name(self) -> str:
        """The name by which the registry is asked for it: the digest, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


@dataclass(frozen=True)
class BlobSource:
    """The servers that devices pull a bundle's files from: the mirrors in their order, then the registry itself.

    A mirror is an http or https URL; its path is a namespace that stands before the repository there. With
    `plain_http` the registry is spoken to without TLS; one on a loopback address always is.
    """

    host: str
    repository: str
    mirrors: tuple[str, ...] = ()
    plain_http: bool = False

    def repositories(self) -> tuple[Repository, ...]:
        """Every place to ask, in order."""
        mirrors = (replace(mirrored(mirror, self.repository), plain_http=self.plain_http) for mirror in self.mirrors)
        return (*mirrors, Repository.of(self.host, self.repository, plain_http=self.plain_http))


@dataclass(frozen=True)
class Repository:
    """A repository of a registry with its server's address: `origin` is scheme, host and port."""

    origin: str
    host: str
    path: str
    plain_http: bool = False

    @classmethod
    def of(cls, host: str, path: str, *, plain_http: bool) -> Repository:
        scheme = "http" if plain_http or is_loopback(host) else "https"
        # The one registry whose name isn't that of its server.
        server = "registry-1.docker.io" if host == "docker.io" else host
        return cls(f"{scheme}://{server}", host, path, plain_http)

    @property
    def url(self) -> str:
        return f"{self.origin}/v2/{self.path}"

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


def is_loopback(host: str) -> bool:
    """Tell if a host, with or without port, is this machine by its name alone."""
    name = re.sub(r":[0-9]+$", "", host).strip("[]").lower()
    return name in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", name) is not None


def is_place(text: str) -> bool:
    return text.startswith(SCHEME)


def parse_place(text: str) -> Place:
    """`oci://host[:port]/repository[:tag|@sha256:…]`; the tag is `latest` where there is neither.

    Raises ConfigError that says what is wrong with it.
    """
    host, slash, rest = text.removeprefix(SCHEME).partition("/")
    if not is_place(text) or not slash:
        raise ConfigError(f"'{text}' is no place in a registry", _WRITTEN_LIKE)
    if "@" in host:
        raise ConfigError("credentials don't belong into an address", f"`docker login` keeps them; {_WRITTEN_LIKE}")
    if not _HOST.fullmatch(host):
        raise ConfigError(f"'{text}': '{host}' is no host", _WRITTEN_LIKE)
    named, at, digest = rest.partition("@")
    repository, colon, tag = named.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(host) + len(repository) > 254:
        hint = f"lower-case letters, digits and . _ - / between them; {_WRITTEN_LIKE}"
        raise ConfigError(f"'{text}': '{repository}' is no repository", hint)
    if colon and not _TAG.fullmatch(tag):
        raise ConfigError(f"'{text}': '{tag}' is no tag", _WRITTEN_LIKE)
    if at and not _DIGEST.fullmatch(digest):
        raise ConfigError(f"'{text}': '{digest}' is no digest", "a digest is sha256: and 64 hexadecimal digits")
    return Place(host, repository, tag or DEFAULT_TAG, digest or None)


def parse_repository(text: str) -> Place:
    """`oci://host[:port]/repository`, without a tag or a digest. Raises ConfigError that says what is wrong with it."""
    found = parse_place(text)
    if text != f"{SCHEME}{found.host}/{found.repository}":
        raise ConfigError(
            f"'{text}' is more than a repository", "leave out the tag: the bundle says which files it has"
        )
    return found


def mirrored(mirror: str, repository: str) -> Repository:
    """The copy of a repository on a mirror. Raises ConfigError when `mirror` isn't the URL of one."""
    try:
        url = urlsplit(mirror)
    except ValueError as exc:
        raise ConfigError(f"'{mirror}' is no mirror: {exc}", _MIRROR_LIKE) from exc
    namespace = url.path.strip("/")
    if (
        url.scheme not in ("http", "https")
        or not _HOST.fullmatch(url.netloc)
        or (namespace and not _REPOSITORY.fullmatch(namespace))
        or url.query
        or url.fragment
    ):
        raise ConfigError(f"'{mirror.rpartition('@')[2]}' is no mirror", _MIRROR_LIKE)
    path = f"{namespace}/{repository}" if namespace else repository
    return Repository(f"{url.scheme}://{url.netloc}", url.netloc, path)


def with_mirrors(source: BlobSource, mirrors: Sequence[str]) -> BlobSource:
    """The same source with mirrors before it. Raises ConfigError for one that isn't a mirror's URL."""
    for mirror in mirrors:
        mirrored(mirror, source.repository)
    return replace(source, mirrors=tuple(mirrors))


class Layer(OpenRecord):
    """An OCI descriptor: a file, by the hash of its content."""

    mediaType: str = FILE_LAYER
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: int = Field(strict=True, ge=0, lt=MOST_BYTES)
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.annotations.get(TITLE, "")

    @property
    def sha256(self) -> Sha256:
        return self.digest.removeprefix("sha256:")


class _Image(OpenRecord):
    schemaVersion: int
    mediaType: str | None = None
    artifactType: str | None = None
    layers: tuple[Layer, ...]


def file_layer(path: str, sha256: str, size_bytes: int, media_type: str = FILE_LAYER) -> Layer:
    return Layer(mediaType=media_type, digest=f"sha256:{sha256}", size=size_bytes, annotations={TITLE: path})


def bundle_layers(manifest: Manifest, bundle_id: str, manifest_bytes: int, signatures: Sequence[Layer]) -> list[Layer]:
    """The layers of a bundle: its manifest, signatures of it, then every artifact."""
    files = [file_layer(artifact.path, artifact.sha256, artifact.size_bytes) for artifact in manifest.artifacts]
    return [file_layer(MANIFEST_NAME, bundle_id, manifest_bytes, MANIFEST_LAYER), *signatures, *files]


def empty_layer() -> Layer:
    return _untitled("application/vnd.oci.empty.v1+json", EMPTY)


def blocks_layer(lists: bytes) -> Layer:
    """The layer of the lists of a bundle's blocks."""
    return _untitled(BLOCKS_LAYER, lists)


def find_blocks_layer(layers: Sequence[Layer]) -> Layer | None:
    return next((layer for layer in layers if layer.mediaType == BLOCKS_LAYER), None)


def _untitled(media_type: str, raw: bytes) -> Layer:
    return Layer(mediaType=media_type, digest=f"sha256:{hashlib.sha256(raw).hexdigest()}", size=len(raw))


def image_manifest(name: str, layers: Sequence[Layer]) -> bytes:
    """The OCI 1.1 image manifest of a bundle. It has no time stamp, so that its digest is the same everywhere."""
    config = empty_layer().model_dump(exclude={"annotations"})
    value = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": config | {"data": "e30="},
        "layers": [layer.model_dump() for layer in layers],
        "annotations": {TITLE: name},
    }
    return canonical_json(value).encode()


def read_image_manifest(raw: bytes, where: str) -> tuple[Layer, ...]:
    """The layers of a bundle's OCI manifest.

    Raises CorruptBundle when `raw` is no OCI manifest, is that of something else, or has two layers of one title.
    """
    try:
        value = read_json(raw)
    except ValueError as exc:
        raise CorruptBundle(f"{where}: no manifest of an artifact: {exc}", _OFFER) from exc
    _refuse_other_kinds(value, where)
    try:
        image = _Image.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])[:_LONGEST_KEY]
        raise CorruptBundle(f"{where}: no manifest of an artifact: {key}: {first['msg']}", _OFFER) from exc
    if image.artifactType != ARTIFACT_TYPE:
        kind = (image.artifactType or image.mediaType or "an image without a kind")[:_LONGEST_KEY]
        raise CorruptBundle(f"{where}: no edgephi bundle, but {kind}", _OFFER)
    twice = [title for title, count in Counter(layer.title.casefold() for layer in image.layers).items() if count > 1]
    if twice:
        raise CorruptBundle(f"{where}: layers of one name: {min(twice)[:_LONGEST_KEY]!r}", _OFFER)
    return image.layers


def _refuse_other_kinds(value: Any, where: str) -> None:
    """Raise CorruptBundle for an index of manifests, and for more layers than a bundle may have."""
    if not isinstance(value, dict):
        return
    if "manifests" in value and "layers" not in value:
        raise CorruptBundle(f"{where}: no edgephi bundle, but an index of several manifests", _OFFER)
    layers = value.get("layers")
    if isinstance(layers, list) and len(layers) > _MOST_LAYERS:
        raise CorruptBundle(f"{where}: no edgephi bundle: {len(layers)} layers, at most {_MOST_LAYERS} fit", _OFFER)


def manifest_layer(layers: Sequence[Layer], where: str) -> Layer:
    """The layer that is the bundle's own manifest. Raises CorruptBundle when it isn't there, or is absurdly large."""
    found = next((layer for layer in layers if layer.title == MANIFEST_NAME), None)
    if found is None:
        raise CorruptBundle(f"{where}: no layer is a {MANIFEST_NAME}", _OFFER)
    if found.size > LARGEST_MANIFEST_BYTES:
        raise CorruptBundle(f"{where}: a {MANIFEST_NAME} of {found.size} bytes")
    return found


def signature_layers(layers: Sequence[Layer], manifest: Manifest, where: str) -> list[Layer]:
    """The layers of a bundle's signatures, after holding the layers of its artifacts against its manifest.

    Raises CorruptBundle when an artifact has no layer, or one of other content, for a layer that is neither an artifact
    nor a signature, and for signatures that are too large or too many.
    """
    by_title = {layer.title: layer for layer in layers if layer.mediaType != BLOCKS_LAYER}
    for artifact in manifest.artifacts:
        layer = by_title.pop(artifact.path, None)
        if layer is None:
            raise CorruptBundle(f"{where}: no layer is {artifact.path}, which the bundle's manifest lists")
        if (layer.sha256, layer.size) != (artifact.sha256, artifact.size_bytes):
            raise CorruptBundle(f"{where}: layer {artifact.path} isn't what the bundle's manifest lists")
    by_title.pop(MANIFEST_NAME, None)
    for title, layer in by_title.items():
        if not is_signature(title):
            raise CorruptBundle(f"{where}: layer {title[:_LONGEST_KEY]!r} isn't in the bundle's manifest")
        if layer.size > LARGEST_SIGNATURE_BYTES:
            raise CorruptBundle(f"{where}: {title} of {layer.size} bytes is no signature")
    if len(by_title) > MOST_SIGNATURES:
        raise CorruptBundle(f"{where}: more than {MOST_SIGNATURES} signatures")
    return list(by_title.values())


def is_signature(path: str) -> bool:
    """Tell if a path in a bundle's folder is that of a signature, which is no artifact but goes along."""
    folder, _, name = path.partition("/")
    return folder == SIGNATURES and signature_name(name)
