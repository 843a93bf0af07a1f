"""Profiles: a class of device with its hardware, its runtime and the recipe that suits it. One TOML file each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from toolkit import localhost
from toolkit.catalog.inheritance import Chain, read_chain
from toolkit.catalog.record import Record
from toolkit.catalog.settings import NAMES as SETTING_NAMES, RuntimeSettings
from toolkit.catalog.toml import file_schema, find_file, find_toml, is_path, parse_table
from toolkit.catalog.trust import admit
from toolkit.config import shown
from toolkit.errors import ConfigError
from toolkit.localhost import ARCH_NAMES
from toolkit.units import bandwidth_text, bytes_text, compute_text, parse_bandwidth, parse_bytes, parse_compute

AUTO = "auto"

_RAM_MIN, _RAM_MAX = 256 * 2**20, 4 * 2**40
_TAG = {
    "linux": re.compile(r"(?:linux|(?:many|musl)linux[0-9_]+)_(aarch64|x86_64)"),
    "windows": re.compile(r"win_(amd64|arm64)"),
    "darwin": re.compile(r"macosx_[0-9]+_[0-9]+_(arm64|x86_64|universal2)"),
}
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==[0-9][A-Za-z0-9.!+]*")
_PYTHON_CLAUSE = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*[0-9]+(\.[0-9]+)*(\.\*)?\s*")


def _size(value: object) -> int:
    if not isinstance(value, str):
        raise ValueError(f"a size is text with a unit like '8 GiB', not {value!r}")
    return parse_bytes(value)


def _ram(value: object) -> int:
    if value == AUTO:
        return localhost.ram_bytes()
    n_bytes = _size(value)
    if not _RAM_MIN <= n_bytes <= _RAM_MAX:
        raise ValueError(f"'{value}' is outside 256 MiB … 4 TiB")
    return n_bytes


def _rate(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError(f"a rate is text with a unit like '17 GB/s', not {value!r}")
    bytes_per_s = parse_bandwidth(value)
    if bytes_per_s <= 0:
        raise ValueError("must be above 0")
    return bytes_per_s


def _compute(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError(f"a rate is text with a unit like '614 GOP/s', not {value!r}")
    ops_per_s = parse_compute(value)
    if ops_per_s <= 0:
        raise ValueError("must be above 0")
    return ops_per_s


def _pins(packages: tuple[str, ...]) -> tuple[str, ...]:
    names: set[str] = set()
    for package in packages:
        match = _PIN.fullmatch(package)
        if match is None:
            raise ValueError(f"'{package}' is not exactly pinned; write it like 'onnxruntime==1.32.0'")
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        if name in names:
            raise ValueError(f"'{name}' is listed twice")
        names.add(name)
    return packages


def _platform_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    for tag in tags:
        if not any(pattern.fullmatch(tag) for pattern in _TAG.values()):
            raise ValueError(f"'{tag}' is not a wheel platform tag; one looks like 'manylinux_2_28_aarch64'")
    return tags


def _python_specifier(text: str) -> str:
    for clause in text.split(","):
        if _PYTHON_CLAUSE.fullmatch(clause) is None:
            raise ValueError(f"'{text}' is not a version specifier; write it like '>=3.11,<3.15'")
    return text


def _or_auto(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^(auto|{pattern})$", "examples": [example, AUTO]})


_SIZE_PATTERN = r"[0-9]+(\.[0-9]+)?\s*([kKMGT]i?)?B"
_SIZE_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_SIZE_PATTERN}$", "examples": ["768 MiB"]})
_RATE_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_SIZE_PATTERN}/s$", "examples": ["17 GB/s"]})
_COMPUTE_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*[GT]OP/s$", "examples": ["614 GOP/s"]}
)

Size = Annotated[int, BeforeValidator(_size), _SIZE_SCHEMA]
Ram = Annotated[int, BeforeValidator(_ram), _or_auto(_SIZE_PATTERN, "8 GiB")]
Rate = Annotated[float, BeforeValidator(_rate), _RATE_SCHEMA]
Compute = Annotated[float, BeforeValidator(_compute), _COMPUTE_SCHEMA]
Count = Annotated[int, Field(strict=True, ge=1)]
Bound = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Hardware(Record):
    """The device's hardware. `auto` means this machine and is read while parsing."""

    arch: Annotated[
        Literal["aarch64", "x86_64"],
        BeforeValidator(lambda value: localhost.arch() if value == AUTO else value),
        WithJsonSchema({"enum": ["aarch64", "x86_64", AUTO]}),
    ] = Field(description="instruction set")
    os: Annotated[
        Literal["linux", "windows", "darwin"],
        BeforeValidator(lambda value: localhost.system() if value == AUTO else value),
        WithJsonSchema({"enum": ["linux", "windows", "darwin", AUTO]}),
    ] = Field(description="operating system")
    ram_bytes: Ram = Field(alias="ram", description="installed memory")
    ram_reserved_bytes: Size = Field(alias="ram_reserved", description="what the system and other programs keep of it")
    memory_limit_bytes: Annotated[
        int | None,
        BeforeValidator(lambda value: localhost.memory_limit_bytes() if value == AUTO else _size(value)),
        _or_auto(_SIZE_PATTERN, "4 GiB"),
    ] = Field(
        None,
        alias="memory_limit",
        description="the most memory that a process may have there, in a container or under systemd; all when absent",
    )
    cores: Annotated[
        Count,
        BeforeValidator(lambda value: localhost.cores() if value == AUTO else value),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]}),
    ] = Field(description="processor cores that inference may use")
    memory_bandwidth_bytes_per_s: Rate | None = Field(
        None, alias="memory_bandwidth", description="peak rate of the memory, from the data sheet"
    )
    compute_ops_per_s: Compute | None = Field(
        None,
        alias="compute",
        description="peak rate of matrix products, a multiplication and an addition counted as two operations: in int8 "
        "on a CPU (in fp32 where it has no int8 dot product), in 16-bit floats on a GPU",
    )
    recognized_by: tuple[Annotated[str, Field(min_length=3)], ...] | None = Field(
        None,
        min_length=1,
        description="texts of which one stands in what the probe of such a device says of its board, SoC, CPU or "
        "accelerators; case doesn't count. Without any the profile suits every device of its arch and os",
    )

    @property
    def room_bytes(self) -> int:
        """The memory for a model: what the system leaves, or the limit on a process where that is less."""
        return min(self.ram_bytes - self.ram_reserved_bytes, self.memory_limit_bytes or self.ram_bytes)

    @field_validator("ram_reserved_bytes")
    @classmethod
    def _leaves_room(cls, reserved: int, info: ValidationInfo) -> int:
        ram = info.data.get("ram_bytes")
        if ram is not None and reserved >= ram:
            raise ValueError(f"{bytes_text(reserved)} leaves nothing of the {bytes_text(ram)} of ram")
        return reserved


class RuntimeTable(RuntimeSettings):
    """The runtime that executes a bundle there, and its settings."""

    provider: Literal["cpu", "cuda", "openvino", "qnn", "vitisai"] = Field(
        description="execution provider of ONNX Runtime"
    )
    packages: Annotated[tuple[str, ...], AfterValidator(_pins)] = Field(
        min_length=1, description="Python packages, exactly pinned"
    )
    platform_tags: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda value: localhost.platform_tags() if value == AUTO else value),
        AfterValidator(_platform_tags),
        WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"const": AUTO}]}),
    ] = Field(min_length=1, description="platforms of wheels that the device accepts, best first")
    python: Annotated[str, AfterValidator(_python_specifier)] = Field(
        description="versions of Python that the packages have wheels for"
    )
    wheel_index_note: str | None = Field(None, description="where packages come from that the index lacks")

    @property
    def settings(self) -> RuntimeSettings:
        return RuntimeSettings(**{name: getattr(self, name) for name in SETTING_NAMES})


class Defaults(Record):
    """The recipe and the context that a build for the device takes, unless the user names others."""

    recipe: str = Field(description="name of a recipe")
    context_tokens: Annotated[int, Field(strict=True, ge=1, le=131072)] = Field(
        alias="context", description="prompt and answer together, in tokens"
    )


class Limits(Record):
    """Gates: a bundle that doesn't hold them doesn't stay active."""

    max_memory_bytes: Size | None = Field(None, alias="max_memory", description="peak memory of the process")
    max_perplexity_increase_percent: Annotated[Bound, Field(ge=0, le=1000)] | None = Field(
        None, description="against the unquantized model"
    )
    min_decode_tps: Annotated[Bound, Field(gt=0, le=100_000)] | None = Field(
        None, description="tokens per second after the first"
    )
    min_token_match: Annotated[Bound, Field(ge=0, le=1)] | None = Field(
        None, description="share of greedy tokens equal to the unquantized model's"
    )


class Profile(Record):
    """A class of device. `name` is the file's stem; sizes are bytes, whatever unit the file uses."""

    name: str = Field(exclude=True)
    path: Path = Field(exclude=True)
    schema_version: Literal[1]
    description: str
    status: Literal["hardware", "emulated", "untested"] = Field(
        "untested", description="what the profile was tried on; never inherited"
    )
    extends: str | None = Field(None, description="name of the profile that this one changes")
    hardware: Hardware
    runtime: RuntimeTable
    defaults: Defaults
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Profile:
        hardware, runtime = self.hardware, self.runtime
        if runtime.threads is not None and runtime.threads > hardware.cores:
            raise ValueError(f"runtime.threads: {runtime.threads} is more than hardware.cores ({hardware.cores})")
        if runtime.chunk_size is not None and runtime.chunk_size > self.defaults.context_tokens:
            raise ValueError(
                f"runtime.chunk_size: {runtime.chunk_size} is more than defaults.context "
                f"({self.defaults.context_tokens}); 0 reads the whole prompt at once"
            )
        for tag in runtime.platform_tags:
            _check_tag(tag, hardware)
        max_memory = self.limits.max_memory_bytes
        if max_memory is not None and max_memory > hardware.ram_bytes:
            raise ValueError(
                f"limits.max_memory: {bytes_text(max_memory)} is more than "
                f"hardware.ram ({bytes_text(hardware.ram_bytes)})"
            )
        return self


def _check_tag(tag: str, hardware: Hardware) -> None:
    match = _TAG[hardware.os].fullmatch(tag)
    if match is None:
        raise ValueError(f"runtime.platform_tags: '{tag}' contradicts hardware.os '{hardware.os}'")
    if match[1] != "universal2" and ARCH_NAMES[match[1]] != hardware.arch:
        raise ValueError(f"runtime.platform_tags: '{tag}' contradicts hardware.arch '{hardware.arch}'")


@dataclass(frozen=True)
class BrokenProfile:
    """A profile file that can't be used, and why: one bad file must not hide the others."""

    name: str
    path: Path
    error: ConfigError


def load_profile(name_or_path: str) -> Profile:
    """A profile by name, or by path when it ends in `.toml` or holds a slash.

    Raises ConfigError naming file, key path and reason; UntrustedFile for a key that needs trust in the working folder,
    in any file that the profile extends. A path is a word of the user's own about that one file.
    """
    if is_path(name_or_path):
        return _load(Path(name_or_path).expanduser(), chosen=True)
    return _load(find_file("profiles", name_or_path, "edgephi profiles list shows them"))


def list_profiles() -> list[Profile | BrokenProfile]:
    """Every profile that a name reaches, sorted by name, with the numbers in names by value: 8gb before 16gb."""
    found = sorted(find_toml("profiles").items(), key=lambda item: _natural(item[0]))
    return [_load_or_report(name, path) for name, path in found]


_OTHER_SIZES = (("hardware", "ram_reserved"), ("hardware", "memory_limit"), ("limits", "max_memory"))


def profile_table(profile: Profile) -> dict[str, Any]:
    """The profile as a TOML table with everything inherited and automatic filled in."""
    table = profile.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"extends"})
    for section, key in (("hardware", "ram"), *_OTHER_SIZES):
        if key in table[section]:
            table[section][key] = bytes_text(table[section][key])
    if "memory_bandwidth" in table["hardware"]:
        table["hardware"]["memory_bandwidth"] = bandwidth_text(table["hardware"]["memory_bandwidth"])
    if "compute" in table["hardware"]:
        table["hardware"]["compute"] = compute_text(table["hardware"]["compute"])
    return table


def profile_json_schema() -> dict[str, Any]:
    """JSON Schema of a profile file, for editors.

    Only a file that extends nothing has to be complete.
    """
    schema = file_schema(Profile, "edgephi profile")
    del schema["properties"]["limits"]["default"]
    required = {f"#/$defs/{kind}": table.pop("required", []) for kind, table in schema["$defs"].items()}
    tables = {name: required.get(field.get("$ref"), []) for name, field in schema["properties"].items()}
    complete = {
        "required": ["description", "hardware", "runtime", "defaults"],
        "properties": {name: {"required": keys} for name, keys in tables.items() if keys},
    }
    return schema | {
        "required": ["schema_version"],
        "if": {"not": {"required": ["extends"]}},
        "then": complete,
    }


def _natural(name: str) -> list[str]:
    return [part.zfill(8) if part.isdigit() else part for part in re.split("([0-9]+)", name)]


def _load_or_report(name: str, path: Path) -> Profile | BrokenProfile:
    try:
        return _load(path)
    except ConfigError as exc:
        return BrokenProfile(name, path, exc)


def _load(path: Path, *, chosen: bool = False) -> Profile:
    chain = read_chain(path)
    if all(file.stem != "local" for file, _ in chain.links):
        _refuse_auto(chain)
    profile = parse_table(Profile, chain.merged(), chain.origin, given={"name": path.stem, "path": path})
    for file, table in chain.links[1:] if chosen else chain.links:
        admit("profiles", file, table)
    return profile


def _refuse_auto(chain: Chain) -> None:
    for path, table in chain.links:
        for section in ("hardware", "runtime"):
            for key, value in _as_dict(table.get(section)).items():
                if value == AUTO:
                    message = f"{shown(path)}: {section}.{key}: 'auto' means this machine"
                    raise ConfigError(message, "write the device's value, or extend the profile 'local'")


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
