"""Profiles, targets, recipes, workloads, models and their presets: the facts known before any work, as typed values.
The package reads files of the user and of edgephi, and reports the mistakes in them. It never talks to a device, and
never builds.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.catalog.facts import ProbeFacts as ProbeFacts
    from toolkit.catalog.profile import Profile as Profile, load_profile as load_profile
    from toolkit.catalog.recipe import Recipe as Recipe, load_recipe as load_recipe
    from toolkit.catalog.shape import ModelShape as ModelShape
    from toolkit.catalog.target import Target as Target, list_targets as list_targets, load_target as load_target
    from toolkit.catalog.workload import Workload as Workload

__getattr__ = lazily(
    __name__,
    profile="Profile load_profile",
    target="Target list_targets load_target",
    recipe="Recipe load_recipe",
    facts="ProbeFacts",
    shape="ModelShape",
    workload="Workload",
)
