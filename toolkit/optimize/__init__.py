"""The way from a model and a recipe to a bundle, through Olive, in a process of its own. The package never talks to a
device, and nothing outside it imports Olive, torch or transformers.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.optimize.build import optimize as optimize
    from toolkit.optimize.extra import require_extra as require_extra, tool_versions as tool_versions
    from toolkit.optimize.hub import resolve_model as resolve_model, resolve_shape as resolve_shape
    from toolkit.optimize.request import (
        AS_PLANNED as AS_PLANNED,
        BuildOptions as BuildOptions,
        BuildRequest as BuildRequest,
        build_provider as build_provider,
    )

__getattr__ = lazily(
    __name__,
    request="AS_PLANNED BuildOptions BuildRequest build_provider",
    build="optimize",
    hub="resolve_model resolve_shape",
    extra="require_extra tool_versions",
)
