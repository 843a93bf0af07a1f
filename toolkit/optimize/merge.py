"""Merge a LoRA adapter with its base: a new model folder, like any other.

The base's files are copied, and the matrices that the adapter changes are rewritten in place, one at a time: memory
stays flat at any size. The values are added in float32 and rounded to the base's type.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, Any

from toolkit.catalog.adapter import WEIGHTS, Adapter, Update, read_adapter
from toolkit.catalog.hash_memo import chunks
from toolkit.catalog.model import TOKENIZER_FILES, SourceModel, model_files, open_model, tokenizer_names
from toolkit.catalog.weights import StoredTensor, read_header, weight_names
from toolkit.config import shown
from toolkit.errors import ConfigError, HostDiskFull
from toolkit.events import Progress, Service, Step
from toolkit.files import in_words, replaced_folder
from toolkit.optimize.hub import resolve_model
from toolkit.units import size_text


def merge(adapter_folder: Path, out: Path, *, base: str | None = None) -> Service[SourceModel]:
    """Write the adapter's base with the adapter merged into the new folder `out`, and return that model.

    `base` is a folder, a shipped model or a hub id; by default the one that the adapter names. Raises ConfigError when
    the two don't fit or the adapter isn't plain LoRA, HostDiskFull, and what `resolve_model` raises.
    """
    adapter = read_adapter(adapter_folder)
    ref = base or adapter.base
    if ref is None:
        raise ConfigError(f"{shown(adapter_folder)}: names no base model", "name it: --base MODEL")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{shown(out)}: already exists and isn't an empty folder", "name a new folder")
    yield Step(f"base: {ref}")
    model = yield from resolve_model(ref)
    places = _places(model)
    _check_fit(adapter, model, places)
    _check_room(model, out)
    with replaced_folder(out) as fresh:
        with in_words(out):
            yield from _copy(model, adapter, fresh)
            yield from _apply(adapter, places, fresh)
        open_model(fresh, id=out.name)
    return open_model(out)


def _places(model: SourceModel) -> dict[str, StoredTensor]:
    return {key: tensor for name in weight_names(model.folder) for key, tensor in read_header(model.folder / name)}


def _check_fit(adapter: Adapter, model: SourceModel, places: dict[str, StoredTensor]) -> None:
    where = f"{shown(adapter.folder)}: not an adapter for {model.id}"
    hint = "name the model that it was trained on: --base MODEL"
    wanted: dict[str, tuple[int, ...]] = {
        name: (update.up.shape[0], update.down.shape[1]) for name, update in adapter.updates.items()
    }
    wanted |= {name: tensor.shape for name, tensor in adapter.replacements.items()}
    if not wanted:
        raise ConfigError(f"{shown(adapter.folder)}: an adapter without weights", f"{WEIGHTS} is empty")
    for name, shape in wanted.items():
        if name not in places:
            raise ConfigError(f"{where}: it changes {name[:120]}, which that model hasn't", hint)
        if places[name].shape != shape:
            sizes = (" × ".join(map(str, numbers)) for numbers in (shape, places[name].shape))
            raise ConfigError(f"{where}: {name[:120]} is {next(sizes)} there and {next(sizes)} in the model", hint)


def _check_room(model: SourceModel, out: Path) -> None:
    needed = sum(path.stat().st_size for path in model_files(model))
    with in_words(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.absolute().parent).free
    if free < needed:
        raise HostDiskFull(
            f"the merged model takes {size_text(needed)} and {shown(out.absolute().parent)} has {size_text(free)} free",
            "free some space, or choose another disk",
        )


def _copy(model: SourceModel, adapter: Adapter, fresh: Path) -> Service[None]:
    """Copy the base's files; the adapter's tokenizer, with its chat template, takes the place of the base's."""
    files = {path.name: path for path in model_files(model)}
    if all((adapter.folder / name).is_file() for name in TOKENIZER_FILES):
        files = {name: path for name, path in files.items() if name not in tokenizer_names(model.folder)}
        files |= {name: adapter.folder / name for name in tokenizer_names(adapter.folder)}
    done, total = 0, sum(path.stat().st_size for path in files.values())
    for name, path in files.items():
        with (fresh / name).open("wb") as target:
            for chunk in chunks(path):
                target.write(chunk)
                done += len(chunk)
                yield Progress("copy the base", done, total, "bytes")


def _apply(adapter: Adapter, places: dict[str, StoredTensor], fresh: Path) -> Service[None]:
    with (adapter.folder / WEIGHTS).open("rb") as source:
        changes: dict[str, Update | StoredTensor] = {**adapter.updates, **adapter.replacements}
        for done, (name, values) in enumerate(changes.items(), 1):
            place = places[name]
            with (fresh / place.file).open("r+b") as file:
                if isinstance(values, Update):
                    product = _read(source, values.up) @ _read(source, values.down)
                    merged = _read(file, place) + values.scale * product
                else:
                    merged = _read(source, values)
                file.seek(place.start)
                file.write(_encoded(merged, place.dtype))
            yield Progress("merge", done, len(changes))


def _read(file: IO[bytes], tensor: StoredTensor) -> Any:
    """A tensor's values as float32."""
    import numpy

    file.seek(tensor.start)
    raw = file.read(tensor.size_bytes)
    if tensor.dtype == "BF16":
        # bfloat16 is the upper half of float32.
        bits = numpy.frombuffer(raw, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(tensor.shape)
    return numpy.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[tensor.dtype]).astype("<f4").reshape(tensor.shape)


def _encoded(values: Any, dtype: str) -> bytes:
    """Float32 values rounded to a type, to the nearest and ties to even."""
    import numpy

    if dtype != "BF16":
        return bytes(values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes())
    bits = numpy.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bytes(rounded.astype("<u2").tobytes())
