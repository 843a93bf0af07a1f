"""toolkit.bundle.signatures: real keys, real ssh-keygen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.builds import follow
from tests.support.bundles import FILES, make
from tests.support.figures import figures
from tests.support.keys import count_keygen, keygen, make_key, public_text, ssh_agent, write_signers
from tests.support.paths import REPO
from toolkit.bundle import Bundle, open_bundle, verify_bundle
from toolkit.bundle.signatures import (
    Signature,
    approve,
    approve_all,
    check_signatures,
    check_signed,
    examine,
    read_signatures,
    refuse_wrong,
    sign,
)
from toolkit.bundle.store import record_quality
from toolkit.catalog import Target
from toolkit.catalog.public_key import public_key
from toolkit.catalog.signer import NAMESPACE
from toolkit.errors import ConfigError, CorruptBundle, SignatureError
from toolkit.metrics import HELD_OUT
from toolkit.untrusted import MANIFEST_NAME, SIGNATURES


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_AUTH_SOCK", "DISPLAY", "SSH_ASKPASS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    # The path has a blank, a leading dash and a quote: paths are arguments, never the text of a command.
    return make_key(tmp_path / "keys of alice" / "-it's $(alice)")


@pytest.fixture
def bob(tmp_path: Path) -> Path:
    return make_key(tmp_path / "bob")


def demanding(signers: Path) -> Target:
    return Target(name="pi5", transport="local", profile="local", allowed_signers=signers)


def refusal(bundle: Bundle, signers: Path) -> str:
    with pytest.raises(SignatureError) as caught:
        check_signed(bundle, demanding(signers))
    assert caught.value.exit_code == 9
    assert caught.value.hint
    return caught.value.message


def test_a_signer_is_named(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    made = follow(sign(bundle, alice))
    signers = write_signers(tmp_path / "signers", alice=alice)
    found = check_signed(bundle, demanding(signers))
    assert found == Signature(made.name, made.key, "alice")
    key = public_key(*public_text(alice).split())
    assert key is not None and made.key == f"ED25519 {key.fingerprint}"


def test_a_signature_leaves_the_bundle_as_it_is(bundle: Bundle, alice: Path) -> None:
    follow(sign(bundle, alice))
    assert open_bundle(bundle.path) == bundle
    follow(verify_bundle(bundle))


def test_ssh_keygen_alone_agrees(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    made = follow(sign(bundle, alice))
    signers = write_signers(tmp_path / "signers", alice=alice)
    argv = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "alice", "-n", NAMESPACE]
    argv += ["-s", bundle.path / SIGNATURES / made.name]
    done = subprocess.run(argv, input=bundle.manifest_bytes, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_target_without_signers_takes_everything(bundle: Bundle) -> None:
    assert check_signed(bundle, Target(name="pi5", transport="local", profile="local")) is None


def test_an_unsigned_bundle_is_refused(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    said = refusal(bundle, write_signers(tmp_path / "signers", alice=alice))
    assert said.startswith(
        f"pi5: nano-int4 ({bundle.id[:12]}) isn't signed, and the target takes only what a signer in"
    )


def test_somebody_else_is_no_signer(bundle: Bundle, alice: Path, bob: Path, tmp_path: Path) -> None:
    follow(sign(bundle, bob))
    said = refusal(bundle, write_signers(tmp_path / "signers", alice=alice))
    assert "has no signature by a signer in" in said and "is no signer's" in said


def test_one_of_several_signatures_is_enough(bundle: Bundle, alice: Path, bob: Path, tmp_path: Path) -> None:
    for key in (bob, alice, bob):
        follow(sign(bundle, key))
    assert len(read_signatures(bundle)) == 2
    for name, key in (("alice", alice), ("bob", bob)):
        found = check_signed(bundle, demanding(write_signers(tmp_path / name, **{name: key})))
        assert found is not None and found.signer == name


def test_nobody_may_sign(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    refusal(bundle, write_signers(tmp_path / "signers"))


def test_a_signers_file_that_is_gone_lets_nothing_through(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    assert "can't be read: No such file or directory" in refusal(bundle, tmp_path / "gone")


def test_a_changed_manifest_is_refused(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    path = bundle.path / MANIFEST_NAME
    path.chmod(0o644)
    path.write_text(path.read_text().replace("nano-int4", "nano-int8"))
    changed = open_bundle(bundle.path)
    assert "made for another manifest, or the manifest was changed afterwards" in refusal(
        changed, write_signers(tmp_path / "signers", alice=alice)
    )


def test_a_manifest_that_changed_after_it_was_read_is_refused(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    other = make(tmp_path / "other", name="nano-int8")
    shutil.copy(other.path / MANIFEST_NAME, bundle.path / MANIFEST_NAME)
    with pytest.raises(CorruptBundle, match="another hash"):
        check_signed(bundle, demanding(write_signers(tmp_path / "signers", alice=alice)))


def test_the_signature_of_another_bundle_is_refused(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", name="nano-int8")
    follow(sign(other, alice))
    shutil.copytree(other.path / SIGNATURES, bundle.path / SIGNATURES)
    assert "made for another manifest" in refusal(bundle, write_signers(tmp_path / "signers", alice=alice))


def test_a_signature_for_something_else_is_refused(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    keygen("-Y", "sign", "-n", "git", "-f", alice, bundle.path / MANIFEST_NAME)
    (bundle.path / SIGNATURES).mkdir()
    (bundle.path / f"{MANIFEST_NAME}.sig").rename(bundle.path / SIGNATURES / "git.sig")
    assert "another namespace" in refusal(bundle, write_signers(tmp_path / "signers", alice=alice))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('valid-before="20200101"', "key has expired"),
        ('valid-after="29990101"', "key is not yet valid"),
        ('namespaces="git,file"', "not permitted for use in signature namespace"),
    ],
)
def test_what_a_signer_may_is_held_to(bundle: Bundle, alice: Path, tmp_path: Path, options: str, said: str) -> None:
    follow(sign(bundle, alice))
    assert said in refusal(bundle, write_signers(tmp_path / "signers", alice=f"{options} {public_text(alice)}"))


@pytest.mark.parametrize(
    "identity",
    ["-n", "--", "alice,bob", "*@acme.example", '"two words"', "al\u00efce", "$(id)", "'", "x" * 500, "%s%n"],
)
def test_hostile_and_odd_identities_are_only_names(bundle: Bundle, alice: Path, tmp_path: Path, identity: str) -> None:
    follow(sign(bundle, alice))
    found = check_signed(bundle, demanding(write_signers(tmp_path / "signers", **{identity: alice})))
    assert found is not None and found.signer in (identity.strip('"'), "alice")


def test_lines_that_are_no_signers_do_no_harm(bundle: Bundle, alice: Path, bob: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    signers = tmp_path / "signers"
    signers.write_text(f"# alice {public_text(alice)}\n\nalice\nalice ssh-ed25519 AAAA\n\0\nbob {public_text(bob)}\n")
    refusal(bundle, signers)


def test_a_certificate_of_an_authority_signs(bundle: Bundle, alice: Path, bob: Path, tmp_path: Path) -> None:
    authority = make_key(tmp_path / "authority")
    keygen("-s", authority, "-I", "alice", "-n", "alice@acme.example", f"{alice}.pub")
    made = follow(sign(bundle, alice.with_name(f"{alice.name}-cert.pub")))
    signers = write_signers(
        tmp_path / "signers", **{"*@acme.example": f"cert-authority {public_text(authority)}", "bob": bob}
    )
    found = check_signed(bundle, demanding(signers))
    assert found is not None and (found.name, found.signer) == (made.name, "alice@acme.example")


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_other_kinds_of_keys(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / kind, kind=kind)
    made = follow(sign(bundle, key))
    assert made.key is not None and made.key.startswith(kind.upper())
    assert check_signed(bundle, demanding(write_signers(tmp_path / "signers", me=key))) is not None


def test_the_agent_signs_for_a_public_key(bundle: Bundle, alice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = alice.with_name(f"{alice.name}.pub")
    with ssh_agent(alice) as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        alice.unlink()
        assert follow(sign(bundle, public)).refused is None
    with pytest.raises(SignatureError, match="ssh-agent hasn't its private part"):
        follow(sign(bundle, public))


def test_the_usual_key_is_taken(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="no key to sign with") as caught:
        follow(sign(bundle))
    assert "--key" in (caught.value.hint or "")
    make_key(Path.home() / ".ssh" / "id_ed25519")
    follow(sign(bundle))


@pytest.mark.parametrize("key", ["absent", "garbage"])
def test_a_key_that_is_none(bundle: Bundle, tmp_path: Path, key: str) -> None:
    (tmp_path / "garbage").write_text("garbage\n")
    (tmp_path / "garbage").chmod(0o600)
    with pytest.raises((ConfigError, SignatureError), match=key):
        follow(sign(bundle, tmp_path / key))
    assert not (bundle.path / SIGNATURES).exists()


def test_a_passphrase_without_a_terminal(bundle: Bundle, tmp_path: Path) -> None:
    locked = make_key(tmp_path / "locked", passphrase="correct horse")
    script = (
        "import sys; from pathlib import Path; from toolkit.bundle.store import open_bundle\n"
        "from toolkit.errors import SignatureError; from toolkit.events import drain\n"
        "from toolkit.bundle.signatures import sign\n"
        "try: drain(sign(open_bundle(Path(sys.argv[1])), Path(sys.argv[2])))\n"
        "except SignatureError as exc: print(exc.message); print(exc.hint)\n"
    )
    repository = REPO
    done = subprocess.run(
        ["setsid", "--wait", os.sys.executable, "-c", script, bundle.path, locked],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=repository,
        timeout=60,
    )
    said = done.stdout.splitlines()
    assert said == [
        f"{locked}: the passphrase is wrong, or there is no terminal to ask for it",
        f"give the key to ssh-agent first: ssh-add {locked}",
    ], done.stderr


def test_a_damaged_bundle_is_not_signed(bundle: Bundle, alice: Path) -> None:
    (bundle.path / next(iter(FILES))).unlink()
    with pytest.raises(CorruptBundle, match="missing"):
        follow(sign(bundle, alice))
    assert not (bundle.path / SIGNATURES).exists()


def test_a_folder_that_cannot_be_written_to(bundle: Bundle, alice: Path) -> None:
    (bundle.path / SIGNATURES).write_text("in the way")
    with pytest.raises((ConfigError, CorruptBundle), match=SIGNATURES):
        follow(sign(bundle, alice))


def test_without_ssh_keygen(bundle: Bundle, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(sign(bundle, alice))
    signers = write_signers(tmp_path / "signers", alice=alice)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "need ssh-keygen, which isn't on this machine" in refusal(bundle, signers)
    with pytest.raises(SignatureError, match="need ssh-keygen"):
        follow(sign(bundle, alice))


@pytest.mark.parametrize("text", ["", "\0" * 100, "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"])
def test_garbage_is_no_signature(bundle: Bundle, text: str) -> None:
    found = examine(bundle.manifest_bytes, {"garbage.sig": text})
    assert found[0].key is None and (found[0].refused or "").startswith("not a signature (")
    with pytest.raises(SignatureError, match=r"garbage\.sig: not a signature"):
        refuse_wrong(bundle, found)


def test_what_cannot_be_a_signature_is_not_even_read(bundle: Bundle) -> None:
    folder = bundle.path / SIGNATURES
    folder.mkdir()
    os.mkfifo(folder / "pipe.sig")
    with pytest.raises(CorruptBundle, match=r"pipe\.sig: not a signature"):
        read_signatures(bundle)
    (folder / "pipe.sig").unlink()
    (folder / "link.sig").symlink_to("/etc/passwd")
    with pytest.raises(CorruptBundle, match=r"link\.sig: not a signature"):
        read_signatures(bundle)
    (folder / "link.sig").unlink()
    (folder / "large.sig").write_bytes(b"x" * 100_000)
    with pytest.raises(CorruptBundle, match=r"large\.sig: not a signature"):
        read_signatures(bundle)
    (folder / "large.sig").unlink()
    for number in range(33):
        (folder / f"{number}.sig").touch()
    with pytest.raises(CorruptBundle, match="more than 32 signatures"):
        read_signatures(bundle)


def test_a_manifest_from_elsewhere_has_to_be_the_release(bundle: Bundle, alice: Path, tmp_path: Path) -> None:
    follow(sign(bundle, alice))
    target = demanding(write_signers(tmp_path / "signers", alice=alice))
    signatures = read_signatures(bundle)
    assert check_signatures(target, "nano", bundle.id, bundle.manifest_bytes, signatures) is not None
    with pytest.raises(CorruptBundle, match="another hash"):
        check_signatures(target, "nano", "f" * 64, bundle.manifest_bytes, signatures)


def test_figures_end_a_signature(bundle: Bundle, alice: Path) -> None:
    follow(sign(bundle, alice))
    evaluated = record_quality(bundle, HELD_OUT, figures())
    assert read_signatures(evaluated) == {}
    follow(sign(evaluated, alice))
    assert read_signatures(record_quality(evaluated, HELD_OUT, figures())), "the same figures change nothing"


ONCE = ["check-novalidate", "find-principals", "verify"]


@pytest.fixture
def signers(bundle: Bundle, alice: Path, tmp_path: Path) -> Path:
    """A file of signers, one of whom has signed the bundle."""
    follow(sign(bundle, alice))
    return write_signers(tmp_path / "signers", alice=alice)


def test_targets_with_the_same_signers_are_asked_for_once(
    bundle: Bundle, signers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_keygen(tmp_path, monkeypatch)
    targets = [demanding(signers).model_copy(update={"name": name}) for name in ("one", "two", "three")]
    known = approve_all(bundle, [*targets, Target(name="free", transport="local", profile="local")])
    assert len(known) == 1 and known[0].signature.signer == "alice"
    assert asked() == ONCE
    assert approve(bundle, targets[1], known) is known[0]
    assert asked() == ONCE
    copied = demanding(Path(shutil.copy(signers, tmp_path / "others")))
    assert approve(bundle, copied, known) != known[0]
    assert asked() == ONCE + ONCE, "an answer counts for the file of signers that was asked about"


def test_an_approval_ends_with_its_signer(bundle: Bundle, bob: Path, signers: Path, tmp_path: Path) -> None:
    known = approve_all(bundle, [demanding(signers)])
    write_signers(signers, bob=bob)
    with pytest.raises(SignatureError, match="is no signer's"):
        approve(bundle, demanding(signers), known)
    signers.unlink()
    with pytest.raises(SignatureError, match="can't be read"):
        approve(bundle, demanding(signers), known)


def test_an_approval_ends_with_its_signature(bundle: Bundle, signers: Path) -> None:
    known = approve_all(bundle, [demanding(signers)])
    (file,) = (bundle.path / SIGNATURES).iterdir()
    file.chmod(0o644)
    file.write_text("nothing\n")
    with pytest.raises(SignatureError, match="not a signature"):
        approve(bundle, demanding(signers), known)
    file.unlink()
    with pytest.raises(SignatureError, match="isn't signed"):
        approve(bundle, demanding(signers), known)


def test_an_approval_is_for_one_manifest(bundle: Bundle, signers: Path, tmp_path: Path) -> None:
    known = approve_all(bundle, [demanding(signers)])
    other = make(tmp_path / "other", name="nano-int8")
    shutil.copytree(bundle.path / SIGNATURES, other.path / SIGNATURES)
    with pytest.raises(SignatureError, match="made for another manifest"):
        approve(other, demanding(signers), known)
    # The right manifest replaces the one that the bundle was opened with.
    shutil.copy(bundle.path / MANIFEST_NAME, other.path / MANIFEST_NAME)
    with pytest.raises(CorruptBundle, match="another hash"):
        approve(other, demanding(signers), known)
    shutil.copy(make(tmp_path / "third", name="nano-int2").path / MANIFEST_NAME, bundle.path / MANIFEST_NAME)
    with pytest.raises(CorruptBundle, match="another hash"):
        approve(bundle, demanding(signers), known)


@pytest.mark.parametrize("options", ['valid-before="29990101"', 'VALID-after="20200101"'])
def test_what_the_clock_has_a_say_in_is_asked_each_time(
    bundle: Bundle, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    follow(sign(bundle, alice))
    target = demanding(write_signers(tmp_path / "signers", alice=f"{options} {public_text(alice)}"))
    asked = count_keygen(tmp_path, monkeypatch)
    approve_all(bundle, [target], approve_all(bundle, [target]))
    assert asked() == ONCE + ONCE


def test_a_certificate_is_asked_about_each_time(
    bundle: Bundle, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_key(tmp_path / "authority")
    keygen("-s", authority, "-I", "alice", "-n", "alice@acme.example", "-V", "-1d:+1d", f"{alice}.pub")
    follow(sign(bundle, alice.with_name(f"{alice.name}-cert.pub")))
    target = demanding(
        write_signers(tmp_path / "signers", **{"*@acme.example": f"cert-authority {public_text(authority)}"})
    )
    asked = count_keygen(tmp_path, monkeypatch)
    approve_all(bundle, [target], approve_all(bundle, [target]))
    assert asked() == ONCE + ONCE


def test_signers_that_change_while_they_are_asked_about_are_asked_about_again(
    bundle: Bundle, signers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_keygen(tmp_path, monkeypatch, also=f"[ $2 = verify ] && echo '# a line' >> '{signers}'")
    known = approve_all(bundle, [demanding(signers)])
    signers.write_text(signers.read_text().removesuffix("# a line\n"))
    approve(bundle, demanding(signers), known)
    assert asked() == ONCE + ONCE
