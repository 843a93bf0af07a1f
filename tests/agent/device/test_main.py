"""The agent as the host meets it: a file under an install root, one JSON request in, JSON lines out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.requests import LOCK, ask, deliver, fake_runtime, install
from toolkit.agent.device import inference, likelihood, parsers, protocol, quality, store


def test_probe_tells_this_machine(root: Path) -> None:
    facts = ask(root, "probe")["result"]
    assert facts["arch"] == os.uname().machine
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["ram_bytes"] > 2**28
    assert facts["python"] == sys.version.split()[0].rstrip("+")
    assert facts["install_root"] == str(root)


@pytest.mark.parametrize(
    "line", ["", "not json", '{"protocol": 2, "op": "probe"}', '{"protocol": 1, "op": "shell"}', "[]"]
)
def test_what_is_not_a_request_is_refused(root: Path, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-u", str(root / "agent" / "agent.pyz")],
        input=line + "\n",
        capture_output=True,
        text=True,
    )
    message = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert message["error"]["code"] == "bad_request"


def test_install_verifies_links_and_keeps_blobs_read_only(root: Path) -> None:
    weights = b"weights" * (1 << 20)
    release = install(root, {"model.onnx": weights, "sub/tokenizer.json": b"{}"})
    folder = root / "releases" / release
    assert (folder / "model.onnx").read_bytes() == weights
    small = folder / "sub" / "tokenizer.json"
    assert small.read_bytes() == b"{}"
    blob = root / "blobs" / "sha256" / hashlib.sha256(weights).hexdigest()
    assert blob.stat().st_ino == (folder / "model.onnx").stat().st_ino
    assert blob.stat().st_mode & 0o777 == small.stat().st_mode & 0o777 == 0o444
    assert small.stat().st_nlink == 1, "what releases share and is small isn't lost for all of them at once"
    assert not list((root / "incoming").iterdir())


def test_missing_names_only_what_is_not_here_and_how_much_has_arrived(root: Path) -> None:
    install(root, {"a": b"first"})
    half = hashlib.sha256(b"second").hexdigest()
    (root / "incoming" / f"{half}.part").write_bytes(b"sec")
    artifacts = [
        {"sha256": hashlib.sha256(b"first").hexdigest(), "size_bytes": 5},
        {"sha256": half, "size_bytes": 6},
    ]
    answer = ask(root, "missing", artifacts=artifacts, chunk_bytes=1 << 20)["result"]
    assert answer["missing"] == [{"sha256": half, "chunks": [hashlib.sha256(b"sec").hexdigest()]}]
    assert answer["free_bytes"] > 0


def test_what_has_arrived_is_hashed_in_chunks(root: Path) -> None:
    content = os.urandom((1 << 20) + 5)
    wanted = [hashlib.sha256(content[: 1 << 20]).hexdigest(), hashlib.sha256(content[1 << 20 :]).hexdigest()]
    path = root / "file"
    for length, hashes in ((0, []), (1 << 20, wanted[:1]), (len(content), wanted)):
        path.write_bytes(content[:length])
        assert store.chunk_hashes(path, 1 << 20) == hashes
    with pytest.raises(protocol.AgentFailure, match="chunks of 1 bytes"):
        store.chunk_hashes(path, 1)


def test_a_flipped_bit_is_found_and_the_file_is_sent_afresh_next_time(root: Path) -> None:
    text, release = deliver(root, {"model.onnx": b"weights"})
    part = next((root / "incoming").iterdir())
    part.write_bytes(b"weighty")
    error = ask(root, "install", release=release, manifest=text)["error"]
    assert error["code"] == "corrupt"
    assert error["message"] == "model.onnx doesn't have its SHA-256 on the device"
    assert not part.exists()
    assert not (root / "releases" / release).exists()


def test_activate_and_rollback_move_one_pointer(root: Path) -> None:
    fake_runtime(root)
    first, second = install(root, {"a": b"1"}), install(root, {"a": b"2"})
    assert ask(root, "activate", release=first, runtime=LOCK)["result"]["activated"]
    assert ask(root, "activate", release=second, runtime=LOCK)["result"]["activated"]
    assert not ask(root, "activate", release=second, runtime=LOCK)["result"]["activated"]
    assert ask(root, "rollback")["result"] == {"release": first, "from": second}
    assert ask(root, "rollback")["error"]["message"] == "there is no release to go back to"
    listed = ask(root, "releases")["result"]
    assert {entry["release"]: entry["active"] for entry in listed["releases"]} == {first: True, second: False}


def test_deactivate_points_at_nothing_and_keeps_the_way_back(root: Path) -> None:
    fake_runtime(root)
    first, second = install(root, {"a": b"1"}), install(root, {"a": b"2"})
    ask(root, "activate", release=first, runtime=LOCK)
    ask(root, "activate", release=second, runtime=LOCK)
    assert ask(root, "deactivate")["result"] == {"release": None, "from": second}
    assert not any(entry["active"] for entry in ask(root, "releases")["result"]["releases"])
    assert ask(root, "rollback")["result"] == {"release": first, "from": None}
    ask(root, "deactivate")
    assert ask(root, "activate", release=second, runtime=LOCK)["result"]["activated"]


def test_discard_removes_what_arrived_and_nothing_else(root: Path) -> None:
    release = install(root, {"a": b"1"})
    deliver(root, {"b": b"2"})
    sha256 = hashlib.sha256(b"2").hexdigest()
    assert ask(root, "discard", sha256=[sha256, "f" * 64])["result"] == {}
    assert not list((root / "incoming").iterdir())
    assert (root / "releases" / release / "a").exists()
    assert ask(root, "discard", sha256=["../../current"])["error"]["code"] == "bad_request"


def test_prompts_are_spread_over_a_text_without_overlap() -> None:
    ids = list(range(100))
    assert quality.cut_prompts(ids, 3, 10) == [ids[0:10], ids[33:43], ids[66:76]]
    assert len(quality.cut_prompts(ids, 16, 32)) == 3
    assert quality.cut_prompts(ids, 0, 32) == quality.cut_prompts(ids[:5], 4, 32) == []


def test_windows_are_whole() -> None:
    assert likelihood.text_windows([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]
    assert likelihood.text_windows([1], 2) == []


def test_common_prefix() -> None:
    assert likelihood.common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert likelihood.common_prefix([1, 2], [1, 2]) == 2
    assert likelihood.common_prefix([5], [1]) == 0


def test_comparing_a_table_with_itself_and_with_another() -> None:
    numpy = pytest.importorskip("numpy")
    # More rows than the agent normalizes at once.
    logits = numpy.random.default_rng(0).normal(size=(150, 7)).astype(numpy.float32)
    likelihood.normalize(logits)
    tokens = [index % 7 for index in range(151)]
    reference = {
        "log_probs": logits.astype(numpy.float16),
        "top": logits.argmax(axis=-1),
        "nll": likelihood.chosen_nll(logits, tokens),
    }
    same = quality.compare(logits, reference, tokens)
    assert len(same["kld"]) == 150 and max(map(abs, same["kld"])) < 1e-6
    assert same["same_top"] == 150 and same["nll"] == same["reference_nll"]
    uniform = numpy.full_like(logits, -numpy.log(7))
    other = quality.compare(uniform, reference, tokens)
    entropy = -(numpy.exp(logits) * logits).sum(axis=-1)
    assert other["kld"] == pytest.approx((numpy.log(7) - entropy).tolist(), abs=2e-3)
    with pytest.raises(protocol.AgentFailure, match="the reference knows 7 tokens, this bundle 6"):
        quality.compare(logits[:, :6], reference, tokens)


def test_activating_what_is_not_installed_changes_nothing(root: Path) -> None:
    fake_runtime(root)
    release = install(root, {"a": b"1"})
    ask(root, "activate", release=release, runtime=LOCK)
    before = (root / "current.json").read_bytes()
    assert ask(root, "activate", release="f" * 64, runtime=LOCK)["error"]["code"] == "no_release"
    assert ask(root, "activate", release=release, runtime="f" * 16)["error"]["code"] == "no_runtime"
    assert (root / "current.json").read_bytes() == before


def test_a_half_made_release_is_made_again(root: Path) -> None:
    text, release = deliver(root, {"a": b"1"})
    leftover = root / "releases" / f".new-{release[:16]}"
    leftover.mkdir(parents=True)
    (leftover / "a").write_bytes(b"torn")
    assert ask(root, "install", release=release, manifest=text)["result"]["installed"]
    assert (root / "releases" / release / "a").read_bytes() == b"1"
    assert not leftover.exists()


def test_a_damaged_pointer_is_named(root: Path) -> None:
    (root / "current.json").write_text("{")
    assert "isn't JSON" in ask(root, "releases")["error"]["message"]


def test_wheel_names_cannot_leave_their_folder(root: Path) -> None:
    wheels = [{"name": "../../evil.whl", "sha256": "0" * 64}]
    error = ask(root, "provision", lock=LOCK, packages=[], wheels=wheels)["error"]
    assert error["message"] == "not a wheel: '../../evil.whl'"


def test_parse_meminfo() -> None:
    text = "MemTotal:        8062844 kB\nMemAvailable:    7421536 kB\nHugePages_Total:       0\n"
    assert parsers.parse_meminfo(text) == {
        "MemTotal": 8062844 * 1024,
        "MemAvailable": 7421536 * 1024,
        "HugePages_Total": 0,
    }


def test_parse_cpuinfo_of_arm_and_x86() -> None:
    arm = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes asimddp\nCPU part\t: 0xd0b\n"
    assert parsers.parse_cpuinfo(arm) == {"name": None, "features": ["asimd", "asimddp"]}
    x86 = "model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_vnni\n"
    assert parsers.parse_cpuinfo(x86) == {"name": "AMD EPYC", "features": ["avx2", "avx512_vnni"]}


def test_parse_throttled() -> None:
    flags = parsers.parse_throttled("throttled=0x50005\n")
    assert flags["under_voltage_now"] and flags["throttled_now"] and flags["throttled_since_boot"]
    assert not flags["frequency_capped_now"]
    assert not any(parsers.parse_throttled("throttled=0x0").values())
    assert parsers.parse_throttled("VCHI initialization failed") is None


def test_parse_os_release_and_status() -> None:
    text = 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    assert parsers.parse_os_release(text) == "Debian GNU/Linux 12 (bookworm)"
    assert parsers.parse_status_kib("VmPeak:\t 10 kB\nVmHWM:\t  2048 kB\n", "VmHWM") == 2 * 2**20
    assert parsers.parse_status_kib("", "VmHWM") is None


def test_a_runtime_without_speculation_says_what_to_change() -> None:
    with pytest.raises(protocol.AgentFailure) as caught:
        inference.speculate(object(), {"ngram_size": 3, "max_draft_tokens": None})
    assert caught.value.code == "unsupported"
    assert "this runtime can't do n-gram speculation with {'ngram_size': 3}" in caught.value.message
    assert caught.value.hint == "take ngram_size out of the profile's [runtime]"


@pytest.mark.parametrize(
    ("rotary", "planned", "chunked"),
    [("default", 8192, True), ("longrope", 4096, True), ("longrope", 4097, False), ("su", 8192, False)],
)
def test_prompt_that_crosses_the_original_context_is_read_whole(
    tmp_path: Path, rotary: str, planned: int, chunked: bool
) -> None:
    config = {"original_max_position_embeddings": 4096, "rope_scaling": {"type": rotary}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "genai_config.json").write_text(json.dumps({"search": {"max_length": planned}}))
    request = {"model_folder": str(tmp_path), "settings": {"chunk_size": 512, "threads": 2}}
    assert inference.settings_of(request) == {"threads": 2} | ({"chunk_size": 512} if chunked else {})


def test_settings_without_a_model_stay_as_they_are() -> None:
    assert inference.settings_of({"settings": {"chunk_size": 512}}) == {"chunk_size": 512}
    assert inference.settings_of({}) == {}
