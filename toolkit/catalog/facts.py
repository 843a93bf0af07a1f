"""The facts of a device, as its agent tells them: typed and bounded, and the same JSON again in reports."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue, StrictBool

from toolkit.catalog.record import OpenRecord

# The bounds of what a device is believed, in a fact or in any other answer.
Text = Annotated[str, Field(strict=True, max_length=4096)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**40)]
Bytes = Annotated[int, Field(strict=True, ge=0, lt=2**60)]
# The years 1970 to 2242: the time of a clock must be one that can be written as a date.
UnixTime = Annotated[float, Field(strict=True, ge=0, lt=2**33)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Jetson(OpenRecord):
    """Versions of NVIDIA's system on a Jetson."""

    model_config = ConfigDict(extra="allow")
    l4t: Text
    jetpack: Text | None


class ProbeFacts(OpenRecord):
    """The facts that something depends on; others are kept as they came and travel along, into reports.

    A fact that the device doesn't tell is None, or empty. The order is the agent's.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    board: Text
    soc: Text | None
    # The programs' architecture, which isn't the kernel's (`kernel_arch`) where 32-bit programs run on 64 bits. Agents
    # of earlier versions told the kernel's, and none of the other facts that have a default here.
    arch: Text
    kernel_arch: Text | None = None
    os: Text
    os_name: Text | None
    kernel: Text
    libc: Text | None
    glibc: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}$")] | None
    cpu: Text | None
    isa: tuple[Text, ...]
    # Whole processors that a process may use, by its affinity and its `cpu_quota` (in processors, like 0.5).
    cores: Annotated[int, Field(strict=True, ge=1, le=2**16)]
    cpu_quota: Annotated[float, Field(strict=True, gt=0, lt=2**16)] | None = None
    ram_bytes: Bytes | None
    # The most memory that processes there may have, by control groups or `ulimit -v`; None where all of it is.
    memory_limit_bytes: Bytes | None = None
    mem_available_bytes: Bytes | None
    free_disk_bytes: Bytes
    free_files: Annotated[int, Field(strict=True, ge=0, lt=2**64)] | None = None
    storage: Text | None
    storage_device: Text | None
    file_system: Text | None
    mount_point: Text | None = None
    mount_options: Text | None = None
    python: Annotated[str, Field(pattern=r"^\d{1,4}\.\d{1,4}(\.\d{1,4})?((a|b|rc)\d{1,4})?\+?$")]
    python_bits: Annotated[int, Field(strict=True, ge=16, le=128)] | None = None
    python_platform: Text | None = None
    has_ensurepip: StrictBool
    jetson: Jetson | None
    cuda: Text | None
    accelerators: tuple[Text, ...]
    governor: Text | None
    governor_driver: Text | None
    power_mode: Text | None
    power_modes: dict[Text, Count]
    rails_mw: dict[Text, Count]
    temp_c: Annotated[float, Field(strict=True, gt=-300, lt=1000)] | None
    throttled: dict[Text, StrictBool] | None
    load_average: tuple[Number, ...] | None
    clock_unix_s: UnixTime
    # The emulator's name; reports mark figures by it. Agents older than emulated boards don't tell it.
    emulated: Text | None = None
    install_root: Text
    root_error: Text | None
    root_exec_error: Text | None = None
    root_room_error: Text | None = None
    root_mode: Annotated[str, Field(pattern=r"^[0-7]{3,6}$")] | None
    root_owned: StrictBool | None

    def room_bytes(self, reserved_bytes: int) -> int | None:
        """The memory for a model: what the system leaves of the device's, or a limit where that is less; None where
        the device doesn't tell.
        """
        rests = [self.ram_bytes and max(0, self.ram_bytes - reserved_bytes), self.memory_limit_bytes]
        return min((rest for rest in rests if rest is not None), default=None)

    def as_json(self) -> dict[str, JsonValue]:
        """The facts as the device told them, unknown ones and all: for reports, `--json` and files."""
        return self.model_dump(mode="json", exclude_unset=True)
