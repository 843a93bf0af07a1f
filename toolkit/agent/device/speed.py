"""The speed of this device without any bundle: reading memory, and multiplying."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .children import in_runtime
from .condition import Others, usable_cores
from .inference import settings_of
from .layout import ROOT, RUNTIMES
from .protocol import AgentFailure

# More bytes than caches hold, and enough of them that the best of several passes is stable.
MEASURED_BYTES = 256 << 20
MEASURED_S = 0.5


def op_measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure for a second how fast this device reads memory and, where `runtime` is installed, runs `kernel`.

    `others_share` is the share of all processors' time that other programs took meanwhile.
    """
    others = Others()
    found = {"read_bytes_per_s": read_rate(usable_cores()), "kernels_per_s": None}
    if (RUNTIMES / request["runtime"] / "ready.json").is_file():
        try:
            found.update(in_runtime(dict(request, model_folder=str(ROOT))))
        except AgentFailure as exc:
            # A runtime that can't do this product may do its models all the same.
            sys.stderr.write(f"no kernel was measured: {exc.message}\n")
    return dict(found, others_share=others.share())


def read_rate(threads: int) -> float:
    """Bytes a second of several threads, which search more memory than caches hold for a byte that isn't there."""
    import ctypes

    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    search = library.memchr  # ctypes lets go of the interpreter's lock meanwhile
    search.argtypes, search.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    buffers = [bytearray(MEASURED_BYTES // threads) for _ in range(threads)]
    views = [(ctypes.c_char * len(buffer)).from_buffer(buffer) for buffer in buffers]

    def read_all() -> None:
        jobs = [threading.Thread(target=search, args=(ctypes.addressof(view), 255, len(view))) for view in views]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    return sum(map(len, buffers)) / best_time_s(read_all)


def best_time_s(action: Callable[[], Any]) -> float:
    """The shortest of the passes in MEASURED_S, three at least: a disturbance only makes a pass longer."""
    best, started, rounds = float("inf"), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < MEASURED_S:
        begun = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begun)
        rounds += 1
    return best


def child_measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run an ONNX model (`kernel`, base64) for MEASURED_S, with an input of the shape `input`."""
    import base64

    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings_of(request).get("threads") or usable_cores()
    session = onnxruntime.InferenceSession(
        base64.b64decode(request["kernel"]), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": numpy.full(request["input"], 0.5, dtype=numpy.float32)}
    return {"kernels_per_s": 1 / best_time_s(lambda: session.run(None, feed))}
