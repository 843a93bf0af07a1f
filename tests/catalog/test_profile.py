from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.profiles import BOARD, board, write
from toolkit.catalog import Profile, load_profile
from toolkit.catalog.profile import BrokenProfile, list_profiles, profile_json_schema, profile_table
from toolkit.catalog.trust import trust_folder
from toolkit.config import config_dir, shipped_dir
from toolkit.errors import ConfigError

SHIPPED = [
    "jetson-agx-orin-64gb",
    "jetson-orin-nano-8gb",
    "laptop-cpu-x86",
    "laptop-npu-amd",
    "laptop-npu-intel",
    "laptop-npu-qualcomm",
    "local",
    "raspberry-pi-4-4gb",
    "raspberry-pi-4-8gb",
    "raspberry-pi-5-4gb",
    "raspberry-pi-5-8gb",
    "raspberry-pi-5-16gb",
]


def refusal(name: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_profile(name)
    assert caught.value.exit_code == 3
    return caught.value


def test_units_and_names_of_attributes() -> None:
    write("board", board(runtime__threads=3, limits={"max_memory": "3 GB", "min_token_match": 0.9}))
    trust_folder()
    profile = load_profile("board")
    assert (profile.name, profile.path, profile.description) == (
        "board",
        Path.cwd() / "profiles/board.toml",
        "a board",
    )
    assert profile.status == "untested"
    assert profile.hardware.ram_bytes == 8 * 2**30
    assert profile.hardware.ram_reserved_bytes == 768 * 2**20
    assert profile.hardware.memory_bandwidth_bytes_per_s == 17e9
    assert (profile.hardware.arch, profile.hardware.os, profile.hardware.cores) == ("aarch64", "linux", 4)
    assert profile.runtime.packages == ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0")
    assert profile.runtime.threads == 3
    assert (profile.defaults.recipe, profile.defaults.context_tokens) == ("int4-rtn-b32", 2048)
    assert profile.limits.max_memory_bytes == 3_000_000_000
    assert profile.limits.min_token_match == 0.9
    assert profile.limits.min_decode_tps is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hardware__ram_reserved": "8 GiB"},
            "hardware.ram_reserved: 8 GiB leaves nothing of the 8 GiB of ram",
        ),
        (
            {"hardware__ram_reserved": "9 GiB"},
            "hardware.ram_reserved: 9 GiB leaves nothing of the 8 GiB of ram",
        ),
        ({"hardware__ram": "128 MiB"}, "hardware.ram: '128 MiB' is outside 256 MiB … 4 TiB"),
        ({"hardware__ram": "5 TiB"}, "hardware.ram: '5 TiB' is outside 256 MiB … 4 TiB"),
        ({"hardware__ram": 8}, "hardware.ram: a size is text with a unit like '8 GiB', not 8"),
        ({"hardware__ram": "8 Gb"}, "hardware.ram: '8 Gb' counts bits; bytes have a capital B, like '8 GiB'"),
        ({"hardware__ram": "auto"}, "hardware.ram: 'auto' means this machine"),
        ({"hardware__cores": "auto"}, "hardware.cores: 'auto' means this machine"),
        ({"runtime__platform_tags": "auto"}, "runtime.platform_tags: 'auto' means this machine"),
        ({"hardware__ram": None}, "hardware.ram: missing"),
        ({"hardware__cores": 0}, "hardware.cores: must be greater than or equal to 1, not 0"),
        ({"hardware__cores": True}, "hardware.cores: must be a valid integer, not true"),
        ({"hardware__cores": "4"}, "hardware.cores: must be a valid integer, not '4'"),
        (
            {"hardware__memory_bandwidth": "17 GB"},
            "hardware.memory_bandwidth: '17 GB' is a size; a rate is written like '17 GB/s'",
        ),
        ({"hardware__memory_bandwidth": "0 GB/s"}, "hardware.memory_bandwidth: must be above 0"),
        (
            {"hardware__memory_bandwidth": 17},
            "hardware.memory_bandwidth: a rate is text with a unit like '17 GB/s', not 17",
        ),
        (
            {"hardware__arch": "arm64"},
            "hardware.arch: must be 'aarch64' or 'x86_64', not 'arm64' (did you mean 'aarch64'?)",
        ),
        (
            {"hardware__os": "linus"},
            "hardware.os: must be 'linux', 'windows' or 'darwin', not 'linus' (did you mean 'linux'?)",
        ),
        ({"hardware__recognized_by": []}, "hardware.recognized_by: must not be empty"),
        ({"hardware__recognized_by": "bcm2712"}, "hardware.recognized_by: must be a valid list, not 'bcm2712'"),
        ({"hardware__rams": "8 GiB"}, "hardware.rams: unknown key (did you mean 'ram'?)"),
        ({"hardware__ram_bytes": 8}, "hardware.ram_bytes: unknown key"),
        ({"runtime__thread": 4}, "runtime.thread: unknown key (did you mean 'threads'?)"),
        ({"runtime__threads": 5}, "runtime.threads: 5 is more than hardware.cores (4)"),
        (
            {"runtime__chunk_size": 4096},
            "runtime.chunk_size: 4096 is more than defaults.context (2048); 0 reads the whole prompt at once",
        ),
        ({"runtime__max_draft_tokens": 8}, "runtime.max_draft_tokens: nothing is drafted without ngram_size"),
        ({"runtime__ngram_size": 1}, "runtime.ngram_size: 1 would match nearly everything; it is 0 or 2 to 16"),
        ({"runtime__ngram_size": 17}, "runtime.ngram_size: must be less than or equal to 16, not 17"),
        ({"runtime__chunksize": 64}, "runtime.chunksize: unknown key (did you mean 'chunk_size'?)"),
        (
            {"runtime__provider": "quda"},
            "runtime.provider: must be 'cpu', 'cuda', 'openvino', 'qnn' or 'vitisai', not 'quda' "
            "(did you mean 'cuda'?)",
        ),
        ({"runtime__packages": []}, "runtime.packages: must not be empty"),
        (
            {"runtime__packages": "onnxruntime==1.32.0"},
            "runtime.packages: must be a valid list, not 'onnxruntime==1.32.0'",
        ),
        (
            {"runtime__packages": ["onnxruntime>=1.32"]},
            "runtime.packages: 'onnxruntime>=1.32' is not exactly pinned; write it like 'onnxruntime==1.32.0'",
        ),
        (
            {"runtime__packages": ["onnxruntime==1.*"]},
            "runtime.packages: 'onnxruntime==1.*' is not exactly pinned; write it like 'onnxruntime==1.32.0'",
        ),
        ({"runtime__packages": ["a-b==1", "A_b==2"]}, "runtime.packages: 'a-b' is listed twice"),
        (
            {"runtime__platform_tags": ["manylinux_2_28_x86_64"]},
            "runtime.platform_tags: 'manylinux_2_28_x86_64' contradicts hardware.arch 'aarch64'",
        ),
        (
            {"runtime__platform_tags": ["win_arm64"]},
            "runtime.platform_tags: 'win_arm64' contradicts hardware.os 'linux'",
        ),
        (
            {"runtime__platform_tags": ["raspbian"]},
            "runtime.platform_tags: 'raspbian' is not a wheel platform tag; one looks like 'manylinux_2_28_aarch64'",
        ),
        (
            {"runtime__python": "3.11+"},
            "runtime.python: '3.11+' is not a version specifier; write it like '>=3.11,<3.15'",
        ),
        ({"defaults__context": 0}, "defaults.context: must be greater than or equal to 1, not 0"),
        ({"defaults__context_tokens": 1}, "defaults.context_tokens: unknown key (did you mean 'context'?)"),
        (
            {"limits__min_token_match": 1.5},
            "limits.min_token_match: must be less than or equal to 1, not 1.5",
        ),
        (
            {"limits__min_token_match": float("nan")},
            "limits.min_token_match: must be a finite number, not nan",
        ),
        ({"limits__min_decode_tps": 0}, "limits.min_decode_tps: must be greater than 0, not 0"),
        (
            {"limits__max_perplexity_increase_percent": -1},
            "limits.max_perplexity_increase_percent: must be greater than or equal to 0, not -1",
        ),
        ({"limits__max_memory": "9 GiB"}, "limits.max_memory: 9 GiB is more than hardware.ram (8 GiB)"),
        ({"status": "works"}, "status: must be 'hardware', 'emulated' or 'untested', not 'works'"),
        ({"hardware": 3}, "hardware: must be a table, not 3"),
        ({"limits": []}, "limits: must be a table, not a list"),
        ({"description": {}}, "description: must be a valid string, not a table"),
        ({"name": "x"}, "name: unknown key"),
        ({"desciption": "x"}, "desciption: unknown key (did you mean 'description'?)"),
        ({"schema_version": None}, "schema_version: missing"),
        ({"schema_version": 2}, "schema_version: this edgephi reads version 1, not 2"),
        ({"extends": 3}, "extends: must be the name of a profile, not 3"),
    ],
)
def test_impossible_values(change: dict[str, Any], message: str) -> None:
    write("board", board(**change))
    assert refusal("board").message == f"profiles/board.toml: {message}"


def test_all_that_is_wrong_is_said_at_once() -> None:
    write("board", board(hardware__cores=0, runtime__thread=1))
    assert refusal("board").message.splitlines() == [
        "profiles/board.toml: hardware.cores: must be greater than or equal to 1, not 0",
        "profiles/board.toml: runtime.thread: unknown key (did you mean 'threads'?)",
    ]


def test_universal_wheels_suit_both_macs() -> None:
    tags = ["macosx_14_0_arm64", "macosx_14_0_universal2"]
    write("mac", board(hardware__os="darwin", runtime__platform_tags=tags))
    trust_folder()
    assert load_profile("mac").runtime.platform_tags == tuple(tags)


def test_unknown_name() -> None:
    error = refusal("raspbery-pi-5-8gb")
    assert error.message == "unknown profile 'raspbery-pi-5-8gb' (did you mean 'raspberry-pi-5-8gb'?)"
    assert error.hint == "edgephi profiles list shows them"


def test_paths() -> None:
    path = write("mine", BOARD, Path("elsewhere"))
    assert load_profile("elsewhere/mine.toml").name == "mine"
    assert load_profile(str(path.absolute())).name == "mine"
    assert refusal("nowhere.toml").message == "nowhere.toml: cannot be read: No such file or directory"
    Path("broken.toml").write_text("[hardware\n", encoding="utf-8")
    assert refusal("broken.toml").message.startswith("broken.toml: not valid TOML: ")


def test_the_strongest_folder_wins() -> None:
    write("local", board(description="configured"), config_dir() / "profiles")
    assert load_profile("local").description == "configured"
    write("local", board(description="of this project"))
    trust_folder()
    assert load_profile("local").description == "of this project"


def test_extends_merges_deeply_and_keeps_the_status_at_home() -> None:
    write("base", board(status="hardware", limits={"min_decode_tps": 2}))
    write("small", {"schema_version": 1, "extends": "base", "hardware": {"ram": "4 GiB"}})
    trust_folder()
    small = load_profile("small")
    assert small.hardware.ram_bytes == 4 * 2**30
    assert small.hardware.cores == 4
    assert small.limits.min_decode_tps == 2
    assert small.extends == "base"
    assert small.status == "untested"


def test_extends_the_shipped_one_that_it_hides() -> None:
    write(
        "raspberry-pi-5-8gb",
        {"schema_version": 1, "extends": "raspberry-pi-5-8gb", "defaults": {"context": 512}},
    )
    profile = load_profile("raspberry-pi-5-8gb")
    assert profile.defaults.context_tokens == 512
    assert profile.hardware.cores == 4


def test_a_shipped_profile_extends_its_neighbour_not_the_users() -> None:
    write("raspberry-pi-5-8gb", board(hardware__cores=1))
    assert load_profile("raspberry-pi-5-16gb").hardware.cores == 4


def test_circles_are_refused_with_the_chain() -> None:
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a"), ("own", "own")):
        write(name, {"schema_version": 1, "extends": parent})
    assert refusal("a").message == "profiles/a.toml: extends: goes in a circle: a → b → c → a"
    assert refusal("own").message == "profiles/own.toml: extends: goes in a circle: own → own"


def test_unknown_parent() -> None:
    write("mine", {"schema_version": 1, "extends": "raspberry-pi-5"})
    assert refusal("mine").message.startswith("profiles/mine.toml: extends: unknown profile 'raspberry-pi-5' (did you")


def test_errors_name_the_file_that_has_the_key() -> None:
    write("base", board(hardware__cores=0))
    write("child", {"schema_version": 1, "extends": "base", "defaults": {"contex": 1}})
    assert refusal("child").message.splitlines() == [
        "profiles/base.toml: hardware.cores: must be greater than or equal to 1, not 0",
        "profiles/child.toml: defaults.contex: unknown key (did you mean 'context'?)",
    ]


def test_the_parent_has_to_be_of_a_known_version_too() -> None:
    write("base", board(schema_version=2))
    write("child", {"schema_version": 1, "extends": "base"})
    assert refusal("child").message == "profiles/base.toml: schema_version: this edgephi reads version 1, not 2"


def test_local_is_this_machine() -> None:
    local = load_profile("local")
    assert local.hardware.os == platform.system().lower()
    assert local.hardware.cores >= 1
    if hasattr(os, "sysconf"):
        assert local.hardware.ram_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("machine", "system", "arch", "tag"),
    [
        ("AMD64", "Windows", "x86_64", "win_amd64"),
        ("ARM64", "Windows", "aarch64", "win_arm64"),
        ("arm64", "Darwin", "aarch64", "macosx_15_0_arm64"),
        ("aarch64", "Linux", "aarch64", "manylinux_2_28_aarch64"),
    ],
)
def test_local_elsewhere(machine: str, system: str, arch: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: system)
    local = load_profile("local")
    assert (local.hardware.arch, local.hardware.os) == (arch, system.lower())
    assert local.runtime.platform_tags[0] == tag


def test_local_on_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "hardware.arch: must be 'aarch64' or 'x86_64', not 'riscv64'" in refusal("local").message


def test_auto_is_inherited_from_local() -> None:
    write("desk", {"schema_version": 1, "extends": "local", "limits": {"min_decode_tps": 1.0}})
    trust_folder()
    assert load_profile("desk").hardware == load_profile("local").hardware


def test_a_broken_file_hides_only_itself() -> None:
    write("broken", board(hardware__cores=0))
    (Path("profiles") / "folder.toml").mkdir()
    found = {profile.name: profile for profile in list_profiles()}
    assert sorted(found) == sorted([*SHIPPED, "broken", "folder"])
    broken = found["broken"]
    assert isinstance(broken, BrokenProfile)
    assert broken.error.message == "profiles/broken.toml: hardware.cores: must be greater than or equal to 1, not 0"
    assert isinstance(found["folder"], BrokenProfile)
    assert sum(isinstance(profile, BrokenProfile) for profile in found.values()) == 2


def test_shipped_profiles_in_the_order_of_their_sizes() -> None:
    assert [profile.name for profile in list_profiles()] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles(name: str) -> None:
    profile = load_profile(name)
    tried = {"local": "hardware", "raspberry-pi-5-8gb": "emulated"}
    assert profile.status == tried.get(name, "untested")
    gigabytes = re.search(r"-([0-9]+)gb$", name)
    if gigabytes:
        assert profile.hardware.ram_bytes == int(gigabytes[1]) * 2**30
    # A cache of Phi-3-mini's size has to fit beside the weights: 0.75 MiB a token in fp32, 2.8 GB of weights.
    small = profile.defaults.recipe == "int4-rtn-b128"
    weights_bytes = 2.1e9 if small else 2.8e9
    free_bytes = profile.hardware.ram_bytes - profile.hardware.ram_reserved_bytes
    if name != "local":
        assert weights_bytes + profile.defaults.context_tokens * 0.75 * 2**20 < free_bytes


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_complete_by_themselves(name: str) -> None:
    """Every file begins with the schema for editors, and a resolved profile is a valid profile again."""
    text = (shipped_dir("profiles") / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("#:schema ../docs/schema/profile.schema.json\n")
    profile = load_profile(name)
    write("again", profile_table(profile))
    trust_folder()
    again = load_profile("again")
    assert again.model_dump() == profile.model_dump() | {"extends": None}


def test_profiles_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_profile("local").description = "x"  # type: ignore[misc]


def test_the_schema_file_is_in_step() -> None:
    path = shipped_dir("profiles").parent / "docs/schema/profile.schema.json"
    if not path.parent.is_dir():
        pytest.skip("docs/ is in the repository only")
    assert json.loads(path.read_text(encoding="utf-8")) == profile_json_schema(), (
        "run: edgephi profiles schema > docs/schema/profile.schema.json"
    )


def test_the_schema_speaks_of_toml_keys() -> None:
    schema = profile_json_schema()
    assert set(schema["$defs"]["Hardware"]["properties"]) >= {"ram", "ram_reserved", "memory_bandwidth"}
    assert set(schema["properties"]) == set(Profile.model_fields) - {"name", "path"}
    assert schema["required"] == ["schema_version"]
    assert schema["then"]["properties"]["runtime"]["required"] == [
        "provider",
        "packages",
        "platform_tags",
        "python",
    ]
    assert "null" not in json.dumps(schema)
