"""Bundles to registries and back: this machine pushes one once, and every machine that needs it pulls it."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from toolkit.bundle.blocks import LARGEST_LISTS_BYTES, block_lists, bundle_blocks, keep_block_lists
from toolkit.bundle.manifest import Manifest, parse_manifest
from toolkit.bundle.registry import Registry
from toolkit.bundle.registry.copies import drop_others, find_damage, find_whole, is_copy
from toolkit.bundle.registry.layout import (
    EMPTY,
    Layer,
    Place,
    Repository,
    blocks_layer,
    bundle_layers,
    empty_layer,
    file_layer,
    find_blocks_layer,
    image_manifest,
    manifest_layer,
    read_image_manifest,
    signature_layers,
)
from toolkit.bundle.signatures import read_signatures
from toolkit.bundle.store import READ_ONLY, Bundle, in_use, link_files, open_bundle, signature_files, store_dir
from toolkit.config import cache_dir, shown
from toolkit.errors import ConfigError, CorruptBundle
from toolkit.events import Progress, Service, Step
from toolkit.files import in_words, locked, put_file, put_folder
from toolkit.units import size_text
from toolkit.untrusted import LARGEST_MANIFEST_BYTES, LARGEST_SIGNATURE_BYTES, MANIFEST_NAME, SIGNATURES

# Room beside the pulled files, for the file system's own needs.
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Published:
    """A bundle in a registry: `reference` has the digest of its OCI manifest; `sent_bytes` of files went there."""

    reference: Place
    sent_bytes: int


@dataclass(frozen=True)
class _Remote:
    """A bundle as a registry has it: its manifest, the small files (manifest and signatures) by name in `beside`, and
    the layer of the lists of its blocks.
    """

    manifest: Manifest
    id: str
    digest: str
    beside: dict[str, bytes]
    blocks: Layer | None

    def write_beside(self, folder: Path) -> None:
        """Write the signatures that aren't there, then the manifest, which makes a folder a bundle."""
        for name, raw in self.beside.items():
            path = folder / name
            # A signature that was made here may have the name of another one.
            if not path.is_file() or (name == MANIFEST_NAME and not is_copy(path, raw)):
                put_file(path, raw, mode=READ_ONLY)


def push_bundle(bundle: Bundle, reference: Place, *, plain_http: bool = False) -> Service[Published]:
    """Put a bundle into a registry under a tag; content that the repository has isn't sent again.

    Raises ConfigError for a reference by digest, CorruptBundle when a file isn't what the manifest says, RegistryError.
    """
    if reference.digest is not None:
        raise ConfigError(f"{reference}: what a digest is of is settled already", "push to a tag")
    lists = block_lists((yield from bundle_blocks(bundle)))
    layers = _local_layers(bundle)
    raw = image_manifest(bundle.manifest.name, [*layers, blocks_layer(lists)])
    if len(raw) > LARGEST_MANIFEST_BYTES:
        message = f"{bundle.manifest.name}: a list of files of {len(raw)} bytes; no registry takes it"
        raise ConfigError(message, f"{LARGEST_MANIFEST_BYTES} bytes are the most: shorter names, or fewer files")
    published = Place(reference.host, reference.repository, digest=_digest(raw))
    sent = 0
    with _registry(reference, plain_http=plain_http, write=True) as registry:
        if registry.has_manifest(reference.tag, str(published.digest)):
            yield Step(f"{reference} is {bundle.manifest.name}", skipped=True)
            return Published(published, 0)
        unique = {layer.digest: layer for layer in layers}
        lacking = [layer for layer in unique.values() if not registry.has_blob(layer)]
        total = sum(layer.size for layer in lacking)
        text = f"{reference}: push {len(lacking)} of {len(unique)} files, {size_text(total)}"
        yield Step(text, skipped=not lacking)
        for layer in lacking:
            with _opened(bundle.path / layer.title) as source:
                for position in registry.upload(layer, source):
                    yield Progress("push", sent + position, total, "bytes")
            sent += layer.size
        _push_small(registry, blocks_layer(lists), lists)
        _push_small(registry, empty_layer(), EMPTY)
        registry.put_manifest(reference.tag, raw)
    return Published(published, sent)


def _push_small(registry: Registry, layer: Layer, raw: bytes) -> None:
    if not registry.has_blob(layer):
        for _ in registry.upload(layer, io.BytesIO(raw)):
            pass


def _local_layers(bundle: Bundle) -> list[Layer]:
    signatures = []
    for name in read_signatures(bundle):
        raw = (bundle.path / SIGNATURES / name).read_bytes()
        signatures.append(file_layer(f"{SIGNATURES}/{name}", hashlib.sha256(raw).hexdigest(), len(raw)))
    manifest_bytes = (bundle.path / MANIFEST_NAME).stat().st_size
    return bundle_layers(bundle.manifest, bundle.id, manifest_bytes, signatures)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as exc:
        raise CorruptBundle(
            f"{shown(path)}: cannot be read: {exc.strerror}", "edgephi bundle verify tells more"
        ) from exc
    with file:
        yield file


def pull_bundle(reference: Place, *, into: Path | None = None, plain_http: bool = False) -> Service[Bundle]:
    """Get a bundle from a registry into the store, or into a folder that doesn't exist yet.

    It goes on with the files that an earlier try left, and replaces those of the store that have changed. Raises
    ConfigError when the folder is taken or another process pulls the same, CorruptBundle when the registry has
    something else there, RegistryError.
    """
    with _registry(reference, plain_http=plain_http) as registry:
        remote = _look_up(registry, reference)
        final = into if into is not None else store_dir() / remote.id
        stored = into is None and final.is_dir()
        if final.exists() and not stored:
            raise ConfigError(f"{shown(final)}: exists already", "--into takes a folder that doesn't")
        with in_words(final):
            if stored and not (yield from find_damage(final, remote.manifest, remote.beside[MANIFEST_NAME])):
                yield Step(f"{remote.manifest.name} ({remote.id[:12]}) is here", skipped=True)
                # The bundle may have been signed since.
                remote.write_beside(final)
                return in_use(open_bundle(final))
            beside = final.with_name(f".{final.name[:32]}-{remote.id[:12]}.pull")
            with locked(beside.with_suffix(".lock"), f"pulls {reference}", passing=True):
                if stored or not final.exists():
                    yield from _fill(registry, remote, beside, final if stored else None)
                    put_folder(beside, final, over_content=stored)
    return open_bundle(final) if into is not None else in_use(open_bundle(final))


def _fill(registry: Registry, remote: _Remote, folder: Path, damaged: Path | None) -> Service[None]:
    """Fetch the files of a bundle, each verified as it arrives, then write its signatures and its manifest.

    The files that an earlier try left stay if they are whole, and those of a `damaged` copy are taken over.
    """
    manifest = remote.manifest
    folder.mkdir(exist_ok=True)
    if damaged is not None:
        names = [path.relative_to(damaged).as_posix() for path in signature_files(damaged)]
        paths = [artifact.path for artifact in manifest.artifacts if (damaged / artifact.path).is_file()]
        link_files(damaged, [name for name in (*names, *paths) if not (folder / name).exists()], folder)
    whole = yield from find_whole(folder, manifest)
    lacking = [artifact for artifact in manifest.artifacts if artifact.path not in whole]
    total, done = sum(artifact.size_bytes for artifact in lacking), 0
    free = shutil.disk_usage(folder).free
    if total + _SPARE_BYTES > free:
        message = f"{shown(folder.parent)}: {size_text(total)} to pull, {size_text(free)} free"
        raise ConfigError(message, "free some space there, or pull --into another disk")
    yield Step(f"pull {manifest.name}: {len(lacking)} of {len(manifest.artifacts)} files, {size_text(total)}")
    for artifact in lacking:
        path = folder / artifact.path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_suffix(f".{artifact.sha256[:16]}.part")
        for position in registry.download(file_layer(artifact.path, artifact.sha256, artifact.size_bytes), part):
            yield Progress("pull", done + position, total, "bytes")
        part.chmod(READ_ONLY)
        part.replace(path)
        done += artifact.size_bytes
    remote.write_beside(folder)


def remote_bundle(reference: Place, *, plain_http: bool = False) -> Service[Bundle]:
    """Fetch a bundle's manifest, signatures and lists of blocks; the devices are to pull its files.

    A tag is looked up once: the result stays with the content that the tag had then.

    Raises CorruptBundle when the registry has something else there, RegistryError.
    """
    with _registry(reference, plain_http=plain_http) as registry:
        remote = _look_up(registry, reference)
        if remote.blocks is not None and remote.blocks.size <= LARGEST_LISTS_BYTES:
            keep_block_lists(registry.small_blob(remote.blocks, LARGEST_LISTS_BYTES), remote.manifest)
    folder = cache_dir() / "registry" / remote.digest.removeprefix("sha256:")
    with in_words(folder):
        yield from drop_others(folder, remote.beside)
        remote.write_beside(folder)
    yield Step(f"{reference} is {remote.manifest.name} ({remote.id[:12]})")
    return in_use(Bundle(folder, remote.manifest, remote.id))


def _look_up(registry: Registry, reference: Place) -> _Remote:
    raw = registry.manifest(reference.name)
    where = str(reference)
    layers = read_image_manifest(raw, where)
    named = manifest_layer(layers, where)
    text = registry.small_blob(named, LARGEST_MANIFEST_BYTES)
    manifest = parse_manifest(text, f"{where}: {MANIFEST_NAME}")
    signatures = signature_layers(layers, manifest, where)
    beside = {layer.title: registry.small_blob(layer, LARGEST_SIGNATURE_BYTES) for layer in signatures}
    return _Remote(manifest, named.sha256, _digest(raw), beside | {MANIFEST_NAME: text}, find_blocks_layer(layers))


def _registry(reference: Place, *, plain_http: bool, write: bool = False) -> Registry:
    return Registry(Repository.of(reference.host, reference.repository, plain_http=plain_http), write=write)


def _digest(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()
