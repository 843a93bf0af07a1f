"""A request for a build, from the command line or a job: it is made once, and handed on as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.catalog import Profile, Recipe
from toolkit.catalog.model import SourceModel
from toolkit.catalog.recipe import PROVIDERS


@dataclass(frozen=True)
class BuildOptions:
    """The part of a request that holds for every recipe and device.

    `context_tokens` defaults to the profile's; `calibration` is text that takes the place of a recipe's own. `force`
    builds even what isn't expected to fit. `trust_remote_code` lets Python files of the model's folder run where its
    architecture needs them; they are part of its hash.
    """

    context_tokens: int | None = None
    calibration: Path | None = None
    force: bool = False
    trust_remote_code: bool = False

    def suiting(self, recipe: Recipe) -> BuildOptions:
        """These options for one recipe of several: without the calibration text if it reads none."""
        return self if recipe.calibrated else replace(self, calibration=None)


AS_PLANNED = BuildOptions()


@dataclass(frozen=True)
class BuildRequest:
    """A model by a recipe for a class of device.

    `model` is a folder, a shipped model's name or a hub id; or a model that was opened already, which isn't looked at
    again.
    """

    model: str | SourceModel
    recipe: Recipe
    profile: Profile
    options: BuildOptions = AS_PLANNED

    @property
    def provider(self) -> str:
        return build_provider(self.profile)

    @property
    def bundle_name(self) -> str:
        name = self.model.name if isinstance(self.model, SourceModel) else self.model.partition("@")[0]
        return bundle_name(name, self.recipe, self.provider)


def bundle_name(model: str, recipe: Recipe, provider: str) -> str:
    """The name of a bundle: the model's short name, the recipe, and the provider unless it is the CPU's."""
    suffix = "" if provider == "cpu" else f"-{provider}"
    return f"{model.rpartition('/')[2]}-{recipe.name}{suffix}"


def build_provider(profile: Profile) -> str:
    """The provider that a bundle for `profile` is built for: the CPU's if none can be built for the device's own."""
    provider: str = profile.runtime.provider
    return provider if provider in PROVIDERS else "cpu"
