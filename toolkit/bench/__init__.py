"""Measurements of a release on a device: its speed, its memory, and its quality beside the model it came from. The
package keeps reports; it never installs anything but what a measurement needs.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.bench.evaluate import Evaluation as Evaluation, record as record, with_figures as with_figures
    from toolkit.bench.lm_eval_tasks import run_tasks as run_tasks
    from toolkit.bench.reference import (
        EvalText as EvalText,
        find_reference as find_reference,
        read_eval_text as read_eval_text,
    )
    from toolkit.bench.run import bench as bench, target_key as target_key

__getattr__ = lazily(
    __name__,
    run="bench target_key",
    evaluate="Evaluation record with_figures",
    reference="EvalText find_reference read_eval_text",
    lm_eval_tasks="run_tasks",
)
