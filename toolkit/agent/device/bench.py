"""A run: one fresh process that loads, warms up and measures, watched from outside."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .children import in_runtime
from .condition import memory_available_bytes, own_memory_limit, temperature_c, throttle_flags
from .inference import draft_facts, load_model, new_generator, prompt_ids, settings_of
from .likelihood import negative_log_likelihood
from .parsers import parse_status_kib
from .protocol import progress
from .reading import read_text
from .releases import read_pointer, release_folder


class Sampler(threading.Thread):
    """Watches the device while a run goes on: the least available memory and the highest temperature."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        # Groups are asked only where one sets a limit: that costs a small board ten times as much as the rest.
        self.limited = own_memory_limit() is not None
        self.mem_available_start = self.mem_available_min = memory_available_bytes(limited=self.limited)
        self.temp_c_start = self.temp_c_max = temperature_c()

    def run(self) -> None:
        while not self.done.wait(0.1):
            available, temp = memory_available_bytes(limited=self.limited), temperature_c()
            if available is not None and self.mem_available_min is not None:
                self.mem_available_min = min(self.mem_available_min, available)
            if temp is not None and self.temp_c_max is not None:
                self.temp_c_max = max(self.temp_c_max, temp)

    def facts(self) -> dict[str, float | None]:
        return {
            "mem_available_start_bytes": self.mem_available_start,
            "mem_available_min_bytes": self.mem_available_min,
            "temp_c_start": self.temp_c_start,
            "temp_c_max": self.temp_c_max,
        }


def op_bench(request: dict[str, Any]) -> Any:
    """One run: a fresh process loads, warms up and measures, while the device is watched from outside."""
    release = release_folder(request.get("release") or read_pointer()["release"])
    cold = bool(request.get("cold")) and drop_page_cache(release)
    throttled_before = throttle_flags()
    sampler = Sampler()
    sampler.start()
    try:
        run = in_runtime(request)
    finally:
        sampler.done.set()
    throttled = [flags for flags in (throttled_before, throttle_flags()) if flags]
    run.update(sampler.facts(), cold=cold)
    now = [value for flags in throttled for key, value in flags.items() if key.endswith("_now")]
    run["throttled"] = any(now) if throttled else None
    return run


def drop_page_cache(folder: Path) -> bool:
    """Ask the kernel to forget a release's pages so that loading reads the disk. True if it was asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return True


def child_bench(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, measure. Returns raw stamps: nothing is averaged here."""
    og, model, tokenizer, load_ns = load_model(request)
    workload = request["workload"]
    load_peak = memory_facts()["rss_peak_bytes"]
    ids = prompt_ids(tokenizer, request["prompt"], workload["prompt_tokens"])
    rounds = workload["warmup"] + workload["repetitions"]
    samples = []
    for index in range(rounds):
        sample = measure(og, model, ids, workload["generate_tokens"], settings_of(request))
        if index >= workload["warmup"]:
            samples.append(sample)
        progress("measure", index + 1, rounds)
    # Memory is read before quality is measured: the logits of whole windows are no cost of the workload.
    result = {"load_ns": load_ns, "load_peak_bytes": load_peak, "samples": samples, **memory_facts()}
    if request.get("quality_text"):
        result["nll"] = negative_log_likelihood(og, model, tokenizer, request["quality_text"], workload)
    return result


def measure(og: Any, model: Any, ids: list[int], generate_tokens: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Stamps in nanoseconds of one generation: `submit`, then one for every token that came out."""
    length = len(ids) + generate_tokens
    generator = new_generator(og, model, settings, max_length=length, min_length=length)
    submit = time.perf_counter_ns()
    generator.append_tokens(ids)
    stamps = []
    while not generator.is_done():
        generator.generate_next_token()
        stamps.append(time.perf_counter_ns() - submit)
    tokens = [int(token) for token in generator.get_sequence(0)][len(ids) :]
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    drafts = draft_facts(generator) if settings.get("ngram_size") else {}
    return {"prompt_tokens": len(ids), "token_ns": stamps, "tokens_sha256": digest, **drafts}


def memory_facts() -> dict[str, int | None]:
    """Peak resident and current proportional memory of this process in bytes, None where it isn't known."""
    if sys.platform == "win32":
        return {"rss_peak_bytes": windows_peak_working_set(), "pss_bytes": None}
    peak = parse_status_kib(read_text("/proc/self/status"), "VmHWM")
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pss = parse_status_kib(read_text("/proc/self/smaps_rollup"), "Pss")
    return {"rss_peak_bytes": peak, "pss_bytes": pss}


def windows_peak_working_set() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [
            ("cb", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            ("rest", ctypes.c_size_t * 7),
        ]

    counters = Counters(cb=ctypes.sizeof(Counters))
    handle = ctypes.windll.kernel32.GetCurrentProcess()
    ok = ctypes.windll.psapi.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.cb)
    return int(counters.peak) if ok else None
