"""Signatures of bundles, made and verified by OpenSSH's ssh-keygen.

A signature is made of the manifest, which has the hash of every file. It is a file of the folder `signatures` beside
the manifest, and no artifact: a bundle keeps its id, and several people may sign it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import canonical_json
from toolkit.bundle.store import READ_ONLY, Bundle, signature_files, verify_bundle
from toolkit.catalog import Target
from toolkit.catalog.signer import NAMESPACE
from toolkit.config import shown
from toolkit.errors import ConfigError, CorruptBundle, SignatureError
from toolkit.events import Service, Step
from toolkit.files import write_whole
from toolkit.untrusted import LARGEST_SIGNATURE_BYTES, MANIFEST_NAME, MOST_SIGNATURES, SIGNATURES, signature_name

_TIMEOUT_S = 60
_KEYS = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")
_GOOD = re.compile(r"\bwith (\S+) key (SHA256:\S+)$", re.MULTILINE)
# Lines of signers that count at some times only: a key's own limits, and certificates, which have theirs.
_CLOCK = re.compile(rb"valid-(?:after|before)|cert-authority", re.IGNORECASE)
# The lines that ssh-keygen prints while all goes well.
_ROUTINE = ("Signing file ", "Write signature to ")


@dataclass(frozen=True)
class Signature:
    """One signature of a bundle, by the name of its file.

    `key` is the type and the fingerprint of the key that made it, None when it isn't right for this manifest; `signer`
    is the owner of that key, where signers were given; `refused` is the reason why the signature doesn't count.
    """

    name: str
    key: str | None = None
    signer: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Grounds:
    """All that ssh-keygen is shown when it is asked whether a signer has signed a bundle."""

    manifest_sha256: str
    signatures_sha256: str
    signers: Path
    signers_sha256: str


@dataclass(frozen=True)
class Approval:
    """A signature of a bundle that counts for every target with these signers, as long as its grounds stand.

    One that isn't `lasting` counts for the moment alone: the clock has a say in it, or its grounds changed while
    ssh-keygen was asked.
    """

    signature: Signature
    grounds: Grounds
    lasting: bool


def sign(bundle: Bundle, key: Path | None = None) -> Service[Signature]:
    """Sign a bundle, after holding its files against its manifest.

    `key` is the file of a private key, or of a public key whose private part ssh-agent has; by default the first of the
    usual ones in ~/.ssh. ssh-keygen itself asks for a passphrase, on the terminal. Raises ConfigError, CorruptBundle,
    SignatureError.
    """
    key = _key_file(key)
    yield from verify_bundle(bundle)
    yield Step(f"sign {bundle.manifest.name} with {shown(key)}")
    with _scratch(MANIFEST_NAME, bundle.manifest_bytes) as file:
        yield from _run_sign(key, file)
        text = file.with_name(f"{MANIFEST_NAME}.sig").read_text(encoding="ascii")
    made = examine(bundle.manifest_bytes, {"made": text})[0]
    if made.key is None:
        raise SignatureError(f"{shown(key)}: the signature that ssh-keygen made isn't right: {made.refused}")
    return Signature(_keep(bundle, made.key, text), made.key)


def _run_sign(key: Path, file: Path) -> Service[None]:
    # ssh-keygen's stdin stays the terminal, where it asks for a passphrase: through a pipe it would ask nobody.
    argv = [_program(), "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(file)]
    said: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment()) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                text = line.decode("utf-8", "replace").strip()
                if text and not text.startswith(_ROUTINE):
                    said.append(text)
                    # For example, ssh-keygen asks for a touch of the security token.
                    yield Step(text)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _not_signed(key, said[-1] if said else f"exit code {process.returncode}")


def _key_file(key: Path | None) -> Path:
    if key is not None:
        found = key.expanduser().absolute()
        if not found.is_file():
            raise ConfigError(f"{shown(found)}: no such key file", "ssh-keygen -t ed25519 makes one")
        return found
    folder = Path.home() / ".ssh"
    usual = [folder / f"{name}{suffix}" for name in _KEYS for suffix in ("", ".pub")]
    for file in usual:
        if file.is_file():
            return file
    raise ConfigError(f"no key to sign with in {shown(folder)}", "--key names one; ssh-keygen -t ed25519 makes one")


def _not_signed(key: Path, reason: str) -> SignatureError:
    if "incorrect passphrase" in reason:
        # Without a terminal ssh-keygen takes an empty answer for the passphrase.
        return SignatureError(
            f"{shown(key)}: the passphrase is wrong, or there is no terminal to ask for it",
            f"give the key to ssh-agent first: ssh-add {shown(key)}",
        )
    if "No private key found" in reason:
        return SignatureError(f"{shown(key)}: ssh-agent hasn't its private part", "ssh-add KEY gives it one")
    return SignatureError(f"{shown(key)}: signing failed: {reason}")


def _keep(bundle: Bundle, key: str, text: str) -> str:
    """Put a signature into the bundle's folder, one for each key; returns the file's name."""
    digest = base64.b64decode(key.rpartition("SHA256:")[2] + "=")
    path = bundle.path / SIGNATURES / f"{digest.hex()[:16]}.sig"
    write_whole(path, text, mode=READ_ONLY)
    return path.name


def read_signatures(bundle: Bundle) -> dict[str, str]:
    """A bundle's signatures by the names of their files. Raises CorruptBundle for a file that can't be one."""
    found = {}
    for file in signature_files(bundle.path):
        # Links are refused, and pipes too: reading one could wait for ever.
        plain = signature_name(file.name) and file.is_file() and not file.is_symlink()
        if not plain or file.stat().st_size > LARGEST_SIGNATURE_BYTES:
            raise CorruptBundle(f"{shown(file)}: not a signature", "delete it")
        found[file.name] = file.read_text(encoding="utf-8", errors="replace")
    if len(found) > MOST_SIGNATURES:
        message = f"{shown(bundle.path)}: more than {MOST_SIGNATURES} signatures"
        raise CorruptBundle(message, f"delete some in {SIGNATURES}/")
    return found


def check_signed(bundle: Bundle, target: Target) -> Signature | None:
    """Hold a bundle's signatures against a target's signers; returns the one that counts, None when none is demanded.

    Raises SignatureError, which says what is missing and what to type, and CorruptBundle.
    """
    approval = approve(bundle, target)
    return None if approval is None else approval.signature


def approve_all(bundle: Bundle, targets: Iterable[Target], known: tuple[Approval, ...] = ()) -> tuple[Approval, ...]:
    """`known` and what `approve` adds to it; ssh-keygen is asked once for all targets with the same file of signers.

    Raises what `check_signed` does for the first target that wouldn't take the bundle.
    """
    for target in targets:
        approval = approve(bundle, target, known)
        if approval is not None and approval not in known:
            known = (*known, approval)
    return known


def approve(bundle: Bundle, target: Target, known: Iterable[Approval] = ()) -> Approval | None:
    """`check_signed`, which asks ssh-keygen unless one of the approvals that are `known` still stands.

    It does when the manifest, the signatures and the target's signers are to the byte what they were, which is read
    anew at each call. An answer that depends on the clock is never taken twice.
    """
    signers = target.signers_file
    if signers is None:
        return None
    manifest, signatures = bundle.manifest_bytes, read_signatures(bundle)
    content = _read_signers(target, signers)
    grounds = _grounds(manifest, signatures, signers, content)
    for approval in known:
        if approval.lasting and approval.grounds == grounds and grounds.manifest_sha256 == bundle.id:
            return approval
    signature = check_signatures(target, bundle.manifest.name, bundle.id, manifest, signatures)
    assert signature is not None
    same = _grounds(manifest, signatures, signers, _read_signers(target, signers)) == grounds
    return Approval(signature, grounds, lasting=same and not _CLOCK.search(content))


def _grounds(manifest: bytes, signatures: Mapping[str, str], signers: Path, content: bytes) -> Grounds:
    return Grounds(
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        signatures_sha256=hashlib.sha256(canonical_json(dict(signatures)).encode()).hexdigest(),
        signers=signers.absolute(),
        signers_sha256=hashlib.sha256(content).hexdigest(),
    )


def _read_signers(target: Target, signers: Path) -> bytes:
    try:
        return signers.read_bytes()
    except OSError as exc:
        hint = f"put it there again; edgephi targets signers add {target.name} NAME KEY.pub begins a new one"
        raise SignatureError(f"{target.name}: {shown(signers)} can't be read: {exc.strerror}", hint) from exc


def check_signatures(
    target: Target, name: str, release: str, manifest: bytes, signatures: Mapping[str, str]
) -> Signature | None:
    """Do as `check_signed`, for a manifest and signatures from anywhere; `name` and `release` go into messages."""
    signers = target.signers_file
    if signers is None:
        return None
    what = f"{target.name}: {name} ({release[:12]})"
    if hashlib.sha256(manifest).hexdigest() != release:
        raise CorruptBundle(f"{what}: the manifest has another hash", "build or copy the bundle again")
    _read_signers(target, signers)
    if not signatures:
        raise SignatureError(
            f"{what} isn't signed, and the target takes only what a signer in {shown(signers)} has signed",
            f"edgephi bundle sign {release[:12]}; then deploy it again",
        )
    found = examine(manifest, signatures, signers)
    for signature in found:
        if signature.refused is None:
            return signature
    reasons = "; ".join(f"{signature.name}: {signature.refused}" for signature in found)
    raise SignatureError(
        f"{what} has no signature by a signer in {shown(signers)}: {reasons}",
        f"edgephi targets signers list {target.name} shows who may sign: edgephi bundle sign {release[:12]}",
    )


def refuse_wrong(bundle: Bundle, signatures: Sequence[Signature]) -> None:
    """Raise SignatureError when one of a bundle's signatures isn't right, no matter who made it."""
    wrong = [f"{signature.name}: {signature.refused}" for signature in signatures if signature.refused]
    if wrong:
        hint = f"delete it in {shown(bundle.path / SIGNATURES)}, and have the bundle signed again"
        raise SignatureError(f"{bundle.manifest.name} ({bundle.id[:12]}): {'; '.join(wrong)}", hint)


def examine(manifest: bytes, signatures: Mapping[str, str], signers: Path | None = None) -> list[Signature]:
    """Judge each signature: it has to be right for the manifest and, with `signers`, made by one of them.

    Raises SignatureError where there is no ssh-keygen.
    """
    found = []
    for name, text in signatures.items():
        with _scratch("signature", text.encode()) as file:
            found.append(_judge(name, manifest, file, signers))
    return found


def _judge(name: str, manifest: bytes, file: Path, signers: Path | None) -> Signature:
    signature = ["-n", NAMESPACE, "-s", str(file)]
    right, said = _ask("check-novalidate", *signature, data=manifest)
    made = _GOOD.search(said)
    if not right or made is None:
        return Signature(name, refused=_why_wrong(said))
    key = f"{made[1]} {made[2]}"
    if signers is None:
        return Signature(name, key)
    known, said = _ask("find-principals", "-s", str(file), "-f", str(signers))
    for identity in said.splitlines() if known else []:
        counts, said = _ask("verify", *signature, "-f", str(signers), "-I", identity, data=manifest)
        if counts:
            return Signature(name, key, identity)
    return Signature(name, key, refused=_why_unknown(key, said))


def _why_wrong(said: str) -> str:
    if "namespace does not match" in said:
        return "made for something else than bundles (another namespace)"
    if "incorrect signature" in said:
        return "made for another manifest, or the manifest was changed afterwards"
    return f"not a signature ({said.strip().splitlines()[0] if said.strip() else 'ssh-keygen said nothing'})"


def _why_unknown(key: str, said: str) -> str:
    details = [line for line in said.splitlines() if line != "No principal matched."]
    return f"{key} doesn't count: {details[0]}" if details else f"{key} is no signer's"


def _ask(operation: str, *args: str, data: bytes = b"") -> tuple[bool, str]:
    """Ask ssh-keygen: true when it agrees, and its output, from stdout if it agrees, else from stderr."""
    try:
        done = subprocess.run(
            [_program(), "-Y", operation, *args],
            input=data,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SignatureError(f"ssh-keygen can't be asked: {exc}") from exc
    agrees = done.returncode == 0
    return agrees, (done.stdout if agrees else done.stderr).decode("utf-8", "replace")


def _program() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        hint = "install OpenSSH's client, 8.2 or newer (sudo apt-get install openssh-client)"
        raise SignatureError("signatures need ssh-keygen, which isn't on this machine", hint)
    return found


def _environment() -> dict[str, str]:
    # The code looks for ssh-keygen's English words.
    return os.environ | {"LC_ALL": "C"}


@contextmanager
def _scratch(name: str, content: bytes) -> Iterator[Path]:
    """A file of that content, alone in a private folder that is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="edgephi-sign-") as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        yield file
