"""toolkit.optimize.build: real builds by real Olive, and the kept files that a second run may trust or not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support import builds
from tests.support.builds import MODEL, follow
from tests.support.locks import held_elsewhere
from tests.support.paths import REPO
from tests.support.warm_olive import warm_olive
from toolkit.bundle import Bundle, list_bundles, open_bundle, verify_bundle
from toolkit.catalog import Profile, load_profile, load_recipe
from toolkit.catalog.model import shipped_model
from toolkit.catalog.recipe import impossible, list_recipes
from toolkit.config import shipped_dir
from toolkit.errors import BuildError, ConfigError
from toolkit.events import Event, Service, Step, Warning_
from toolkit.localhost import Memory
from toolkit.metrics import plan
from toolkit.optimize import AS_PLANNED, BuildOptions, BuildRequest, build

RTN = "int4-rtn-b32"
RECIPES = [recipe.name for recipe in list_recipes() if not impossible(recipe, "cpu")]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that has the build of the default recipe alone."""
    builds.seed_cache(tmp_path / "cache", RTN)
    return tmp_path / "cache"


@pytest.fixture
def warm() -> Iterator[None]:
    """Let builds find Olive imported: for tests of a build's result, not of its start."""
    with warm_olive():
        yield


def rtn(profile: Profile | None = None, options: BuildOptions = AS_PLANNED) -> BuildRequest:
    return BuildRequest(MODEL, load_recipe(RTN), profile or builds.profile(), options)


def optimize(
    events: list[Event] | None = None,
    profile: Profile | None = None,
    *,
    context: int | None = None,
    force: bool = False,
    out: Path | None = None,
    check: build.Check | None = None,
) -> Bundle:
    request = rtn(profile, BuildOptions(context_tokens=context, force=force))
    return follow(build.optimize(request, out=out, check=check), events)


def steps(events: list[Event]) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def with_ram(available_bytes: int) -> Profile:
    profile = builds.profile()
    hardware = profile.hardware.model_copy(update={"ram_bytes": available_bytes, "ram_reserved_bytes": 0})
    return profile.model_copy(update={"hardware": hardware})


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_makes_a_bundle_that_loads_and_generates(recipe: str) -> None:
    bundle = builds.bundle(recipe)
    follow(verify_bundle(bundle))
    tokens = builds.generate(bundle.path, 12)
    assert len(tokens) == 12
    assert len(set(tokens)) > 1  # a damaged model repeats one token


def test_quantized_bundles_are_smaller() -> None:
    size = {recipe: builds.bundle(recipe).manifest.size_bytes for recipe in RECIPES}
    assert size["int4-rtn-b128"] < size["int4-rtn-b32"] < size["fp32"] / 2.5


def test_manifest_says_what_it_was_made_from() -> None:
    manifest = builds.bundle("int4-gptq-b32").manifest
    assert manifest.name == "phi3-nano-int4-gptq-b32"
    assert manifest.model.id == "phi3-nano"
    assert manifest.recipe["algorithm"] == "gptq"
    assert len(manifest.recipe["calibration"]["sha256"]) == 64
    assert {"olive-ai", "onnxruntime-genai", "torch", "edgephi"} <= set(manifest.tools)


def test_context_is_planned_in_the_runtime_configuration() -> None:
    bundle = builds.bundle(RTN)
    config = json.loads((bundle.path / "genai_config.json").read_text())
    assert config["search"]["max_length"] == bundle.manifest.context_tokens


def test_second_call_builds_nothing(cache: Path) -> None:
    events: list[Event] = []
    began = time.monotonic()
    bundle = optimize(events)
    assert time.monotonic() - began < 2
    assert [step.skipped for step in steps(events)] == [False, True, True], "plan, build, bundle"
    assert bundle.id == builds.bundle(RTN).id
    assert bundle.path == cache / "bundles" / bundle.id


def test_other_context_needs_no_olive(cache: Path) -> None:
    events: list[Event] = []
    bundle = optimize(events, context=256)
    assert [step.skipped for step in steps(events)] == [False, True, False], "plan, build, bundle"
    assert bundle.manifest.context_tokens == 256
    assert bundle.id != builds.bundle(RTN).id
    data = "model.onnx.data"
    assert (bundle.path / data).samefile(cache / "bundles" / builds.bundle(RTN).id / data)
    assert len(builds.generate(bundle.path, 3)) == 3


def test_same_inputs_give_the_same_bundle(tmp_path: Path) -> None:
    """A build in a newly started child gives the same bundle as one in a forked child."""
    assert not (tmp_path / "cache").exists()
    assert optimize().id == builds.bundle(RTN).id


def test_nothing_is_stored_that_fails_its_check(cache: Path) -> None:
    shutil.rmtree(cache / "bundles")
    seen: list[Bundle] = []

    def check(bundle: Bundle) -> Service[None]:
        seen.append(bundle)
        yield Step("look")
        raise BuildError("it doesn't load")

    with pytest.raises(BuildError, match="doesn't load"):
        optimize(check=check)
    assert not seen[0].path.exists()
    assert list((cache / "bundles").iterdir()) == []


def test_check_sees_the_whole_bundle_before_it_is_stored(cache: Path) -> None:
    shutil.rmtree(cache / "bundles")

    def check(bundle: Bundle) -> Service[None]:
        assert list_bundles() == []
        yield from verify_bundle(bundle)

    bundle = optimize(check=check)
    assert list_bundles() == [bundle]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["model.onnx.data", "genai_config.json"])
def test_damaged_stored_bundle_is_assembled_again(name: str) -> None:
    bundle = optimize()
    (bundle.path / name).unlink()
    assert optimize().id == bundle.id
    follow(verify_bundle(bundle))


def test_unfinished_leftovers_are_not_trusted(cache: Path) -> None:
    (key,) = (path.name for path in (cache / "builds").iterdir() if len(path.name) == 64)
    leftover = cache / "builds" / f".{key[:32]}-0123abcd.part"
    leftover.mkdir()
    (leftover / "lock").touch()
    (cache / "builds" / key).rename(leftover / "new")
    with pytest.raises(ZeroDivisionError):
        _interrupt_at_first_olive_step()
    assert not leftover.exists()
    assert not (cache / "builds" / key).exists()


def _interrupt_at_first_olive_step() -> None:
    service = build.optimize(rtn())
    for event in service:
        if isinstance(event, Step) and event.text.startswith("build"):
            service.throw(ZeroDivisionError)


def test_output_folder_gets_the_bundle_without_a_copy_of_its_bytes(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    bundle = optimize(out=out)
    assert bundle.path == out
    assert open_bundle(out).id == builds.bundle(RTN).id
    follow(verify_bundle(bundle))
    assert (out / "model.onnx.data").samefile(cache / "bundles" / bundle.id / "model.onnx.data")
    assert optimize(out=out).id == bundle.id


@pytest.mark.usefixtures("cache")
def test_output_folder_may_exist_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert optimize(out=tmp_path / "out").path == tmp_path / "out"


@pytest.mark.usefixtures("cache")
def test_occupied_output_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else"):
        optimize(out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("cache")
def test_another_bundle_in_the_output_folder_is_left_alone(tmp_path: Path) -> None:
    first = optimize(out=tmp_path / "out")
    with pytest.raises(ConfigError, match="holds something else"):
        optimize(out=tmp_path / "out", context=100)
    assert open_bundle(tmp_path / "out").id == first.id


@pytest.mark.usefixtures("cache")
def test_what_does_not_fit_is_refused_with_numbers_and_built_by_force() -> None:
    small = with_ram(100_000_000)
    with pytest.raises(ConfigError, match=r"needs \d+\.?\d* MiB of memory.*'local' has [\d.]+ MiB"):
        optimize(profile=small)
    events: list[Event] = []
    optimize(events, profile=small, force=True)
    assert any(isinstance(event, Warning_) for event in events)


def test_a_hub_model_that_does_not_fit_is_refused_before_it_is_downloaded() -> None:
    service = build.optimize(replace(rtn(with_ram(2_000_000_000)), model="microsoft/Phi-3-mini-4k-instruct"))
    with pytest.raises(ConfigError, match=r"Phi-3-mini-4k-instruct-int4-rtn-b32 needs .* 'local' has 1\.86 GiB"):
        follow(service)


def test_a_host_without_the_memory_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.localhost.available_memory", lambda: Memory(100_000_000, 0, None))
    events: list[Event] = []
    with pytest.raises(ConfigError, match=r"building phi3-nano-int4-rtn-b32 needs about \d+ MiB of memory"):
        optimize(events)
    assert [step.text.split()[0] for step in steps(events)] == ["plan"]
    assert not [path for path in (tmp_path / "cache" / "builds").iterdir() if path.is_dir()]


@pytest.mark.usefixtures("cache")
def test_smaller_context_is_offered_when_it_would_fit() -> None:
    model = shipped_model(MODEL)
    assert model is not None
    needed = plan(model.shape, load_recipe(RTN), builds.profile(), 1000).needed_bytes
    with pytest.raises(ConfigError) as caught:
        optimize(profile=with_ram(needed), context=1024)
    assert caught.value.hint is not None and caught.value.hint.startswith("--context 1000 ")


@pytest.mark.usefixtures("cache")
def test_device_whose_provider_cannot_be_built_for_gets_a_cpu_bundle() -> None:
    events: list[Event] = []
    bundle = optimize(events, profile=load_profile("laptop-npu-qualcomm"))
    assert bundle.manifest.provider == "cpu"
    assert any(isinstance(event, Warning_) and "qnn" in event.text for event in events)


@pytest.mark.usefixtures("warm")
def test_a_jetson_gets_a_cuda_bundle_that_is_left_for_the_device_to_check(cache: Path) -> None:
    """The build needs no GPU; running the bundle would, and none is here."""
    from toolkit.deploy import check_here

    events: list[Event] = []
    bundle = optimize(events, profile=load_profile("jetson-orin-nano-8gb"), check=check_here)
    assert bundle.manifest.provider == "cuda"
    assert bundle.manifest.name.endswith("-cuda")
    config = json.loads((bundle.path / "genai_config.json").read_text())
    (options,) = config["model"]["decoder"]["session_options"]["provider_options"]
    assert "cuda" in options
    assert any(isinstance(event, Warning_) and "only be checked on the device" in event.text for event in events)


@pytest.mark.usefixtures("warm")
def test_fp16_graph_computes_what_fp32_does(cache: Path, tmp_path: Path) -> None:
    """Without CUDA in its settings the CPU executes the GPU's graph; the rest needs a GPU."""
    profile = load_profile("jetson-orin-nano-8gb")
    built = follow(build.optimize(BuildRequest(MODEL, load_recipe("fp16"), profile)))
    folder = tmp_path / "on-cpu"
    shutil.copytree(built.path, folder)
    config = json.loads((folder / "genai_config.json").read_bytes())
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    (folder / "genai_config.json").chmod(0o644)
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert builds.generate(folder, 8) == builds.generate(builds.bundle("fp32").path, 8)


def calibrated(text: Path) -> BuildRequest:
    return BuildRequest(MODEL, load_recipe("int4-gptq-b32"), builds.profile(), BuildOptions(calibration=text))


def test_too_little_calibration_text_is_refused_before_the_work() -> None:
    Path("tiny.txt").write_text("In the beginning.")
    events: list[Event] = []
    with pytest.raises(ConfigError, match=r"tiny\.txt: \d tokens of text; the recipe calibrates with 4096"):
        follow(build.optimize(calibrated(Path("tiny.txt"))), events)
    assert not any(step.text.startswith("build") for step in steps(events))


@pytest.mark.usefixtures("warm")
def test_calibration_with_plain_text(cache: Path) -> None:
    text = (shipped_dir("recipes").parent / "heldout.txt").read_text(encoding="utf-8")
    Path("mine.txt").write_text(text[:60_000])
    built = follow(build.optimize(calibrated(Path("mine.txt"))))
    assert built.manifest.recipe["calibration"]["sha256"] == hashlib.sha256(Path("mine.txt").read_bytes()).hexdigest()
    assert built.id != builds.bundle("int4-gptq-b32").id


def test_recipe_that_contradicts_the_profile() -> None:
    with pytest.raises(ConfigError, match="16-bit floats are for GPU providers"):
        follow(build.optimize(BuildRequest(MODEL, load_recipe("fp16"), builds.profile())))


def test_two_builders_of_the_same_take_turns(cache: Path) -> None:
    (key,) = (path.name for path in (cache / "builds").iterdir() if len(path.name) == 64)
    with held_elsewhere(cache / "builds" / f"{key}.lock") as other:
        service = build.optimize(rtn())
        planned, waiting = (next(event for event in service if isinstance(event, Step)) for _ in range(2))
        assert planned.text.startswith("plan")
        assert waiting.text == f"wait: another process ({other.pid}) builds the same"
        other.kill()
        assert follow(service).id == builds.bundle(RTN).id


def edgephi(*args: str) -> subprocess.Popen[str]:
    root = REPO
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit", *args],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=builds.hear_sigint,
    )


def olive_child(process: subprocess.Popen[str], log_folder: Path) -> psutil.Process:
    """The Olive process of a running edgephi, once it is in the middle of its work."""
    for _ in range(1200):
        logs = list(log_folder.glob("olive-*.log"))
        if logs and "Running pass" in logs[0].read_text():
            return psutil.Process(process.pid).children()[0]
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("Olive never began")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A real `edgephi optimize` with Olive at work, and the process of that Olive."""
    # GPTQ takes long enough to be caught in the middle.
    process = edgephi("optimize", MODEL, "-p", "local", "-r", "int4-gptq-b32", "--no-check")
    yield process, olive_child(process, tmp_path / "data" / "logs")
    process.kill()
    process.wait()


def gone(process: psutil.Process) -> bool:
    return not psutil.wait_procs([process], timeout=10)[1]


def test_ctrl_c_leaves_no_process_and_nothing_to_trust(
    running: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    process, olive = running
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert gone(olive)
    assert [path.suffix for path in (tmp_path / "cache" / "builds").iterdir()] == [".lock"]
    assert list_bundles() == []


def test_olive_ends_when_edgephi_is_killed(
    running: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    process, olive = running
    process.kill()
    assert gone(olive)
    finished = [path for path in (tmp_path / "cache" / "builds").iterdir() if len(path.name) == 64]
    assert finished == []
