"""Run one build in a process of its own: `python -m toolkit.optimize.child CONFIG`.

CONFIG is JSON: Olive's `workflow`, and in `kv_cache` the arguments of `quantize_kv_cache` after it, or null.

`import olive` takes seconds, prints to stdout and may end in an out-of-memory kill; none of it may happen to
edgephi itself. The process lives as long as its stdin is open, so that it can't outlive its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

NO_OUTPUT = 3


def main(config: Path) -> int:
    """Run a build; returns 0 when the workflow left a model in its output folder, else NO_OUTPUT. Olive itself also
    ends well when a pass failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    build = json.loads(config.read_text(encoding="utf-8"))
    output = Path(build["workflow"]["output_dir"])

    from olive.workflows import run

    from toolkit.optimize.streaming import export_streaming

    export_streaming()
    run(build["workflow"])
    if not (output / "genai_config.json").is_file():
        return NO_OUTPUT
    if build["kv_cache"] is not None:
        from toolkit.optimize.kv_cache import quantize_kv_cache

        print("Running pass kv_cache:int8", flush=True)
        quantize_kv_cache(output, **build["kv_cache"] | {"calibration": Path(build["kv_cache"]["calibration"])})
    return 0


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held while the interpreter shuts down.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
