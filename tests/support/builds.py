"""Real bundles for tests, each built once a session by real Olive from the shipped reference model."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.warm_olive import warm_olive
from toolkit.bundle import Bundle
from toolkit.catalog import Profile, load_profile, load_recipe
from toolkit.events import Event, Service, drain
from toolkit.optimize import BuildRequest, optimize

T = TypeVar("T")

MODEL = "phi3-nano"
BUILDS_DIR = "EDGEPHI_TEST_BUILDS_DIR"


def follow(service: Service[T], events: list[Event] | None = None) -> T:
    """Run a service to its end, and append its events to `events`."""
    return drain(service, None if events is None else events.append)


def session_cache(recipe: str) -> Path:
    """The cache folder of the session's build of `recipe`, the same for all its processes."""
    folder = Path(os.environ[BUILDS_DIR]) / recipe
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let the processes of the session work in `folder` one at a time."""
    with folder.with_name(f"{folder.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def profile() -> Profile:
    """The profile of this machine."""
    return load_profile("local")


@cache
def bundle(recipe: str) -> Bundle:
    """The reference model built by `recipe` for this machine. Don't change its files."""
    root = session_cache(recipe)
    with warm_olive(), _environment(EDGEPHI_CACHE_DIR=str(root), EDGEPHI_DATA_DIR=str(root / "data")):
        return follow(optimize(BuildRequest(MODEL, load_recipe(recipe), profile())))


def seed_cache(cache_dir: Path, recipe: str) -> Bundle:
    """Link the build of `recipe` into a test's own cache, as if it had been made there."""
    built = bundle(recipe)
    shutil.copytree(session_cache(recipe), cache_dir, copy_function=_link, dirs_exist_ok=True)
    return built


def _link(source: str, destination: str) -> None:
    if not Path(destination).exists():
        os.link(source, destination)


def hear_sigint() -> None:
    """Let a child react to SIGINT, which processes in a shell's background, and their children, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interruptible(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Run `edgephi` as a process that SIGINT reaches, with stderr in a pipe; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *args],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_sigint,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def generate(folder: Path, tokens: int) -> list[int]:
    """Load a bundle in onnxruntime-genai and continue a prompt greedily; returns the new token ids."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, min_length=64, max_length=64)
    generator = og.Generator(model, params)
    prompt = tokenizer.encode("In the beginning God created")
    generator.append_tokens(prompt)
    for _ in range(tokens):
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]
