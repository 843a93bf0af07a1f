"""The way from a MODEL argument to a model on this machine; hub ids are downloaded at a pinned revision.

The download is a process of its own (`python -m toolkit.optimize.hub ID REVISION PATTERN…`): the hub library waits
for its threads, so that only killing a process can end a download in the middle.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from toolkit.catalog import ModelShape
from toolkit.catalog.model import (
    HUB_ID,
    SHIPPED,
    TOKENIZER_FILES,
    SourceModel,
    known_shape,
    missing_tokenizer,
    model_folder,
    open_model,
    refuse_remote_code,
    shipped_model,
)
from toolkit.catalog.preset import PRESETS
from toolkit.catalog.shape import REMOTE_CODE, read_shape
from toolkit.config import import_root, suggestion
from toolkit.errors import BuildError, ConfigError, ToolkitError
from toolkit.events import Progress, Service, Step, Warning_
from toolkit.optimize.extra import require_extra

# The files that a build reads; Python files only when the code that comes with a model is trusted.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
CODE_PATTERNS = ("*.py",)
_REVISION = re.compile(r"[0-9a-f]{40}")
_CONFIG = "config.json"
_POLL_S = 0.3
_BY_FOLDER = "download it on another machine and give the folder instead of the id"


def resolve_model(ref: str, *, trust_remote_code: bool = False) -> Service[SourceModel]:
    """The model that `ref` names: an existing folder, a shipped model, or `org/name` on the hub.

    A hub id may pin a branch, tag or commit: `org/name@revision`. Raises ConfigError when no model has that
    name, or it is gated, isn't usable or needs code that isn't trusted, and BuildError when the hub can't be
    reached and the model isn't cached.
    """
    local = local_model(ref, trust_remote_code=trust_remote_code)
    if local is not None:
        return local
    repo, _, revision = ref.partition("@")
    return (yield from _download(repo, revision or "main", trust_remote_code=trust_remote_code))


def resolve_shape(ref: str) -> Service[ModelShape]:
    """The shape of the model that `ref` names: a folder with a config.json, a shipped model, a preset, or a hub id. For
    a hub id only config.json is fetched, and nothing if it is a preset's.

    Raises ConfigError when no model has that name, MissingExtra, and BuildError when the hub can't be reached.
    """
    repo, _, revision = ref.partition("@")
    preset_ids = {preset.hub_id for preset in PRESETS.values()}
    if ref in preset_ids or not HUB_ID.fullmatch(ref) or model_folder(ref) is not None:
        return known_shape(ref)
    require_extra()
    yield Step(f"fetch {repo}: config.json")
    answer = yield from _follow_child(repo, revision or "main", (_CONFIG,))
    if "error" in answer:
        raise _worded(repo, revision or "main", answer["error"], answer["detail"])
    return read_shape(Path(answer["folder"]) / _CONFIG, repo)


def local_model(ref: str, *, trust_remote_code: bool = False) -> SourceModel | None:
    """The model that `ref` names if it is a folder or a shipped model, None for a hub id.

    Raises ConfigError when `ref` is neither, or the model isn't usable.
    """
    path = model_folder(ref)
    if path is not None:
        return open_model(path, trust_remote_code=trust_remote_code)
    shipped = shipped_model(ref)
    if shipped is None and not HUB_ID.fullmatch(ref):
        raise _unknown(ref)
    return shipped


def _unknown(ref: str) -> ConfigError:
    hub_ids = [preset.hub_id for preset in PRESETS.values() if preset.hub_id]
    known = suggestion(ref, [*SHIPPED, *hub_ids])
    if ref in PRESETS:
        return ConfigError(
            f"'{ref}' is a preset, not a model",
            f"edgephi models synth {ref} -o FOLDER makes one of that shape",
        )
    return ConfigError(
        f"no model '{ref}'{known}", f"give ./FOLDER, {' or '.join(SHIPPED)}, or a hub id like {hub_ids[0]}"
    )


def _download(repo: str, revision: str, *, trust_remote_code: bool) -> Service[SourceModel]:
    require_extra()
    known = {preset.hub_id: preset.architecture for preset in PRESETS.values()}
    if known.get(repo) in REMOTE_CODE and not trust_remote_code:
        raise refuse_remote_code(repo, known[repo])  # before gigabytes are fetched for nothing
    yield Step(f"fetch {repo}")
    patterns = PATTERNS + CODE_PATTERNS if trust_remote_code else PATTERNS
    answer = yield from _follow_child(repo, revision, patterns)
    if "error" in answer:
        raise _worded(repo, revision, answer["error"], answer["detail"])
    if answer["cached"]:
        yield Warning_(
            f"{repo}: the model hub can't be reached; using revision {answer['revision'][:12]} from its cache"
        )
    folder = Path(answer["folder"])
    return open_model(folder, id=repo, revision=answer["revision"], trust_remote_code=trust_remote_code)


def _follow_child(repo: str, revision: str, patterns: Sequence[str]) -> Service[dict[str, Any]]:
    """Run the download; yields its progress and returns its last message."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with _child([repo, revision, *patterns], output, errors) as process:
            while process.poll() is None:
                for message in _messages(output):
                    if "total" in message:
                        yield Progress(f"fetch {repo}", _size(Path(message["blobs"])), message["total"], "bytes")
                time.sleep(_POLL_S)
        messages = _messages(output)
        if messages and "total" not in messages[-1]:
            return messages[-1]
        errors.seek(0)
        return {"error": "failed", "detail": errors.read().decode("utf-8", "replace").strip()[-500:]}


@contextlib.contextmanager
def _child(arguments: Sequence[str], output: IO[bytes], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit.optimize.hub", *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=errors,
        env=os.environ
        | {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        },
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _messages(output: IO[bytes]) -> list[dict[str, Any]]:
    output.seek(0)
    lines = output.read().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def _size(blobs: Path) -> int:
    total = 0
    for path in blobs.glob("*"):
        # Downloads are renamed when they are complete.
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _worded(repo: str, revision: str, kind: str, detail: str) -> ToolkitError:
    if kind == "unreachable":
        return BuildError(f"{repo}: the model hub can't be reached ({detail})", _BY_FOLDER)
    if kind == "gated":
        return ConfigError(f"{repo}: the model is gated", "accept its terms on huggingface.co, then `hf auth login`")
    if kind == "missing":
        return ConfigError(
            f"{repo}: no such model on the hub, or it is private", "check the spelling, or `hf auth login`"
        )
    if kind == "tokenizer":
        return missing_tokenizer(repo, detail.split())
    if kind == "revision":
        return ConfigError(f"{repo}: no revision '{revision}'", "leave out @… for the newest")
    return BuildError(f"{repo}: the download failed: {detail}", _BY_FOLDER)


def _fetch(repo: str, revision: str, patterns: list[str]) -> dict[str, Any]:
    """In the child: download a model; returns the snapshot's folder, or the kind of the failure."""
    from huggingface_hub import errors

    try:
        return _from_hub(repo, revision, patterns)
    except errors.GatedRepoError as exc:
        return {"error": "gated", "detail": str(exc)}
    except errors.RepositoryNotFoundError as exc:
        return {"error": "missing", "detail": str(exc)}
    except errors.RevisionNotFoundError as exc:
        return {"error": "revision", "detail": str(exc)}
    except (errors.HfHubHTTPError, ConnectionError, errors.LocalEntryNotFoundError) as exc:
        return _from_cache(repo, revision, patterns, exc)
    except Exception as exc:
        # The HTTP library's own exceptions differ between hub versions; all of them mean: no answer.
        if type(exc).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            return _from_cache(repo, revision, patterns, exc)
        raise


def _from_hub(repo: str, revision: str, patterns: list[str]) -> dict[str, Any]:
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, constants, snapshot_download

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    wanted = [
        sibling
        for sibling in info.siblings or []
        if "/" not in sibling.rfilename and any(fnmatch(sibling.rfilename, pattern) for pattern in patterns)
    ]
    offered = {sibling.rfilename for sibling in info.siblings or []}
    # This is checked before gigabytes are fetched for nothing. A request for a shape alone needs no tokenizer.
    needed = [name for name in TOKENIZER_FILES if any(fnmatch(name, pattern) for pattern in patterns)]
    if missing := [name for name in needed if name not in offered]:
        return {"error": "tokenizer", "detail": " ".join(missing)}
    cached = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    _say({"total": sum(sibling.size or 0 for sibling in wanted), "blobs": str(cached / "blobs")})
    # The commit is fetched and not the branch, which may have moved since the files were listed.
    folder = snapshot_download(
        repo,
        revision=info.sha,
        allow_patterns=patterns,
        ignore_patterns=["*/*"],
        library_name="edgephi",
    )
    if info.sha and info.sha != revision:
        # The branch is noted in the hub library's own layout, so that it is found again without the hub.
        ref = cached / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(info.sha, encoding="utf-8")
    return {"folder": folder, "revision": info.sha, "cached": False}


def _from_cache(repo: str, revision: str, patterns: list[str], exc: Exception) -> dict[str, Any]:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        return {
            "error": "unreachable",
            "detail": str(exc).splitlines()[0] if str(exc) else type(exc).__name__,
        }
    commit = Path(folder).name
    return {"folder": folder, "revision": commit if _REVISION.fullmatch(commit) else revision, "cached": True}


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _say(_fetch(sys.argv[1], sys.argv[2], sys.argv[3:]))
