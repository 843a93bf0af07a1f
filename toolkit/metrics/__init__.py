"""Figures, predicted and measured: reports and their statistics, quality, footprints, fit plans, speed. The package
computes from numbers that it is given or that lie in files; it never measures anything by itself.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.metrics.fit import FitPlan as FitPlan, plan as plan
    from toolkit.metrics.footprint import Footprint as Footprint
    from toolkit.metrics.quality import HELD_OUT as HELD_OUT, Quality as Quality
    from toolkit.metrics.report import Predicted as Predicted, Report as Report, metrics as metrics
    from toolkit.metrics.stats import Summary as Summary

__getattr__ = lazily(
    __name__,
    report="Predicted Report metrics",
    quality="HELD_OUT Quality",
    fit="FitPlan plan",
    footprint="Footprint",
    stats="Summary",
)
