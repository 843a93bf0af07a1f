"""The settings with which the runtime executes a release: they change speed and memory, and no bundle's bytes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from toolkit.catalog.record import Record

# The number of tokens that the runtime drafts when nobody names one.
DRAFT_TOKENS = 4
OFF = 0


class RuntimeSettings(Record):
    """Threads, chunked prefill, and n-gram (prompt-lookup) speculative decoding.

    An absent value is the device's own choice; 0 switches off a setting that an extended profile switched on. Bounds
    are onnxruntime-genai's. Speculation proposes the tokens that followed the last `ngram_size` ones where those stood
    before, and the model checks up to `max_draft_tokens` of them at once: it pays where an answer repeats its prompt.
    """

    threads: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="threads for inference; all usable cores when absent"
    )
    chunk_size: Annotated[int, Field(strict=True, ge=0, le=131072)] | None = Field(
        None, description="tokens of a prompt that are processed at once: less memory; 0 is the whole prompt"
    )
    ngram_size: Annotated[int, Field(strict=True, ge=0, le=16)] | None = Field(
        None, description="tokens that prompt-lookup speculation matches, 2 to 16; 0 is no speculation"
    )
    max_draft_tokens: Annotated[int, Field(strict=True, ge=1, le=16)] | None = Field(
        None, description=f"longest draft of prompt-lookup speculation; {DRAFT_TOKENS} when absent"
    )

    @field_validator("ngram_size")
    @classmethod
    def _matches_something(cls, size: int | None) -> int | None:
        if size == 1:
            raise ValueError("1 would match nearly everything; it is 0 or 2 to 16")
        return size

    @field_validator("max_draft_tokens")
    @classmethod
    def _is_drafted(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if tokens is not None and info.data.get("ngram_size", OFF) is None:
            raise ValueError("nothing is drafted without ngram_size")
        return tokens

    def resolved(self, cores: int) -> RuntimeSettings:
        """The settings with every choice made for a device of that many cores: equal values mean equal runs."""
        speculates = bool(self.ngram_size)
        return RuntimeSettings(
            threads=self.threads or cores,
            chunk_size=self.chunk_size or OFF,
            ngram_size=self.ngram_size or OFF,
            max_draft_tokens=(self.max_draft_tokens or DRAFT_TOKENS) if speculates else None,
        )

    @property
    def text(self) -> str:
        """`4 threads, chunks of 128, 3-gram drafts of 8`; settings that are absent or off are left out."""
        parts = []
        if self.threads:
            parts.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        if self.chunk_size:
            parts.append(f"chunks of {self.chunk_size}")
        if self.ngram_size:
            parts.append(f"{self.ngram_size}-gram drafts of {self.max_draft_tokens or DRAFT_TOKENS}")
        return ", ".join(parts)


NAMES = tuple(RuntimeSettings.model_fields)
