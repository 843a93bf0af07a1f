"""The host's side of a pull: a device gets a bundle's files itself, from a registry or its mirrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.agent.messages import Authorize
from toolkit.agent.requests import Pull, WantedFile
from toolkit.bundle import Artifact, Block
from toolkit.bundle.blocks import as_json
from toolkit.bundle.registry import BlobSource, Registry
from toolkit.bundle.registry.layout import Repository, file_layer, is_loopback
from toolkit.device import Device
from toolkit.errors import AgentError, RegistryError
from toolkit.events import Service, Step
from toolkit.units import size_text


def pull(
    device: Device,
    artifacts: Sequence[Artifact],
    source: BlobSource,
    blocks: Mapping[str, Sequence[Block]] | None = None,
) -> Service[int]:
    """Have a device pull the files whose content it hasn't yet; returns the number of bytes that it pulled.

    The device asks the places of `source` in their order, and holds every file against its hash, except those with
    `blocks` of which it had parts: they are hashed when they are installed. The host gets the tokens for the places,
    each for pulling from that repository alone; the device is told a password only for registries without tokens.
    Raises RegistryError when no place gives a file, DeviceFull, HostUnreachable.
    """
    places = source.repositories()
    yield Step(f"{device.target.name}: pull from {', '.join(place.host for place in places)}")
    try:
        request = Pull(
            artifacts=requested(artifacts, blocks or {}),
            sources=[place.url for place in places],
            limit_bytes_per_s=device.limit_bytes_per_s,
        )
        answer = yield from device.converse(request, _Tokens(device.target.name, places, artifacts).reply)
    except RegistryError as exc:
        raise RegistryError(exc.message, _hint(device, places)) from exc
    pulled = answer.pulled_bytes
    text = f"{device.target.name}: {answer.files} of {len(artifacts)} files came, {size_text(pulled)}"
    if answer.reused_bytes:
        text += f"; {size_text(answer.reused_bytes)} were there already, in other releases"
    yield Step(text, skipped=not pulled)
    return pulled


def requested(artifacts: Sequence[Artifact], blocks: Mapping[str, Sequence[Block]]) -> list[WantedFile]:
    """The files in the form of a request to the agent, with the blocks of those that have some."""
    wanted: list[WantedFile] = [{"sha256": a.sha256, "size_bytes": a.size_bytes} for a in artifacts]
    for file in wanted:
        if file["sha256"] in blocks:
            file["blocks"] = as_json(blocks[file["sha256"]])
    return wanted


def _hint(device: Device, places: Sequence[Repository]) -> str:
    local = [place.host for place in places if is_loopback(place.host)]
    if local and device.target.transport != "local":
        return f"{local[0]} is the device itself there: name the registry as the device knows it, or add a --mirror"
    return "push it from here instead: edgephi deploy without oci:// and --from; edgephi bundle pull gets it here first"


class _Tokens:
    """Answers a device that a registry asks for credentials: the host itself gets them from the registry.

    The device names only the source's number: it must not decide where our passwords go.
    """

    def __init__(self, target: str, places: Sequence[Repository], artifacts: Sequence[Artifact]) -> None:
        self._target, self._places, self._artifacts = target, places, artifacts

    def reply(self, asked: Authorize) -> dict[str, Any]:
        if asked.source >= len(self._places):
            raise AgentError(f"{self._target}: the agent asks for a source that it wasn't given: {asked.source}")
        any_file = self._artifacts[0]
        layer = file_layer(any_file.path, any_file.sha256, any_file.size_bytes)
        try:
            with Registry(self._places[asked.source]) as registry:
                return {"authorization": registry.authorization(layer)}
        except RegistryError as exc:
            # The device's own words are all that comes back: what to do next goes along in them.
            return {"authorization": None, "reason": exc.message + (f" ({exc.hint})" if exc.hint else "")}
