"""The pointer: the current release, and the way back."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .files import fsync_path, move
from .layout import LOCK_NAME, POINTER, RELEASES, RUNTIMES, write_durably
from .locks import held
from .manifests import read_manifest
from .protocol import HEX64, AgentFailure
from .reading import read_text

HISTORY_LENGTH = 10


def read_pointer() -> dict[str, Any]:
    """current.json, or an empty pointer when nothing was ever activated."""
    try:
        pointer: dict[str, Any] = json.loads(POINTER.read_text(encoding="utf-8"))
        return pointer
    except FileNotFoundError:
        return {"pointer_version": 1, "release": None, "runtime": None, "previous": []}
    except ValueError as exc:
        raise AgentFailure("corrupt", f"{POINTER} isn't JSON: {exc}", "activate a release again") from exc


def set_pointer(release: str | None, runtime: str | None, previous: list[dict[str, Any]]) -> None:
    pointer = {
        "pointer_version": 1,
        "release": release,
        "runtime": runtime,
        "previous": previous,
        "activated_unix_s": time.time(),
    }
    write_durably(POINTER, json.dumps(pointer, indent=1))


def release_folder(release: str | None) -> Path:
    folder = RELEASES / release if release and HEX64.match(release) else None
    if folder is None or not (folder / "manifest.json").is_file():
        raise AgentFailure("no_release", f"no release {str(release)[:12]} here", "`edgephi releases TARGET` lists them")
    return folder


def runtime_python(runtime: str | None) -> Path:
    if not runtime or not LOCK_NAME.match(runtime):
        raise AgentFailure("bad_request", f"not a runtime: {runtime!r}")
    folder = RUNTIMES / runtime
    if not (folder / "ready.json").is_file():
        raise AgentFailure(
            "no_runtime", f"the runtime {runtime} isn't installed here", "deploy again: it gets installed"
        )
    return folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def op_activate(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at a release and the runtime that executes it; the old pair becomes the way back."""
    release, runtime = request["release"], request["runtime"]
    release_folder(release)
    runtime_python(runtime)
    with held("lock", request):
        pointer = read_pointer()
        if (pointer["release"], pointer["runtime"]) == (release, runtime):
            return {"release": release, "activated": False}
        previous = pointer["previous"]
        if pointer["release"]:
            active = {"release": pointer["release"], "runtime": pointer["runtime"]}
            previous = [active, *previous][:HISTORY_LENGTH]
        set_pointer(release, runtime, previous)
    return {"release": release, "activated": True}


def op_rollback(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at the release that was active before. Raises AgentFailure when none of those is left."""
    with held("lock", request):
        pointer = read_pointer()
        previous = [entry for entry in pointer["previous"] if (RELEASES / entry["release"]).is_dir()]
        if not previous:
            raise AgentFailure(
                "no_release",
                "there is no release to go back to",
                "`edgephi releases TARGET` lists what is installed",
            )
        set_pointer(previous[0]["release"], previous[0]["runtime"], previous[1:])
        return {"release": previous[0]["release"], "from": pointer["release"]}


def op_deactivate(request: dict[str, Any]) -> dict[str, Any]:
    """Point `current` at nothing: for a release that must not stay active and has none before it."""
    with held("lock", request):
        pointer = read_pointer()
        write_durably(POINTER, json.dumps(dict(pointer, release=None, runtime=None, activated_unix_s=time.time())))
    return {"release": None, "from": pointer["release"]}


def op_releases(_request: dict[str, Any]) -> dict[str, Any]:
    """The installed releases, newest first, and the pointer."""
    pointer = read_pointer()
    releases = []
    for folder in RELEASES.glob("*") if RELEASES.is_dir() else []:
        if HEX64.match(folder.name):
            manifest = folder / "manifest.json"
            text = manifest.read_bytes()
            if hashlib.sha256(text).hexdigest() != folder.name:
                hint = "`edgephi verify TARGET --repair` removes that release"
                raise AgentFailure("corrupt", f"the manifest of release {folder.name[:12]} is damaged", hint)
            releases.append(
                {
                    "release": folder.name,
                    "manifest": json.loads(text),
                    "installed_unix_s": manifest.stat().st_mtime,
                    "active": folder.name == pointer["release"],
                }
            )
    releases.sort(key=lambda entry: -entry["installed_unix_s"])
    return {"releases": releases, "pointer": pointer}


def op_manifest(request: dict[str, Any]) -> dict[str, Any]:
    """A release's manifest as it stands here, whose hash is the release's name, and the signatures beside it."""
    folder = release_folder(request["release"])
    signatures = {path.name: read_text(path) for path in sorted((folder / "signatures").glob("*.sig"))}
    return {"release": folder.name, "manifest": manifest_text(folder), "signatures": signatures}


def manifest_text(folder: Path) -> str:
    # It isn't read as text, because the hash counts its line ends.
    return (folder / "manifest.json").read_bytes().decode("utf-8")


def release_folders() -> list[Path]:
    folders = RELEASES.glob("*") if RELEASES.is_dir() else []
    return sorted(folder for folder in folders if HEX64.match(folder.name))


def release_artifacts(folder: Path) -> list[dict[str, Any]] | None:
    """The artifacts of an installed release; None when its manifest can't be read or hasn't the hash of its name."""
    try:
        return read_manifest(manifest_text(folder), folder.name)
    except (OSError, ValueError, AgentFailure):
        return None


def leave(pointer: dict[str, Any], releases: list[str]) -> dict[str, Any]:
    """Move `current`, and the way back, off some releases before they are removed; returns the new pointer."""
    previous = [entry for entry in pointer["previous"] if entry["release"] not in releases]
    active = {"release": pointer["release"], "runtime": pointer["runtime"]}
    if active["release"] in releases:
        there = [entry for entry in previous if (RELEASES / entry["release"]).is_dir()]
        active, previous = (there[0], there[1:]) if there else ({"release": None, "runtime": None}, [])
    elif previous == pointer["previous"]:
        return pointer
    set_pointer(active["release"], active["runtime"], previous)
    return read_pointer()


def remove_releases(releases: list[str]) -> None:
    """Remove releases. Each loses its name at once, so that a power cut leaves a folder that nothing trusts."""
    for release in releases:
        gone = RELEASES / f".gone-{release[:16]}"
        shutil.rmtree(gone, ignore_errors=True)
        move(RELEASES / release, gone)
    fsync_path(RELEASES)
    for release in releases:
        shutil.rmtree(RELEASES / f".gone-{release[:16]}", ignore_errors=True)
