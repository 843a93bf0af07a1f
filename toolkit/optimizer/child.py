"""Run one Olive workflow in a process of its own: `python -m toolkit.optimizer.child CONFIG`.

`import olive` takes seconds, prints to stdout and may end in an out-of-memory kill; none of it may happen to
edgephi itself. The process lives as long as its stdin is open, so that it can't outlive who started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

NO_OUTPUT = 3


def main(config: Path) -> int:
    """0 when the workflow left a model in its output folder; Olive itself also ends well when a pass
    failed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    workflow = json.loads(config.read_text(encoding="utf-8"))
    # Olive empties the dictionary it is given.
    model_made = Path(workflow["output_dir"]) / "genai_config.json"

    from olive.workflows import run

    run(workflow)
    return 0 if model_made.is_file() else NO_OUTPUT


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held while the interpreter shuts down.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
