"""toolkit.catalog.signer: OpenSSH's allowed_signers files, and the demand in a target's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.keys import make_key, public_text
from toolkit.catalog import Target, load_target
from toolkit.catalog.public_key import public_key
from toolkit.catalog.signer import add_signer, list_signers, parse_signers, remove_signer
from toolkit.errors import ConfigError


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    return make_key(tmp_path / "alice")


@pytest.fixture
def pub(alice: Path) -> Path:
    return alice.with_suffix(".pub")


@pytest.fixture
def board(isolated: Path) -> Path:
    """The file of target `pi5`."""
    folder = isolated / "targets"
    folder.mkdir()
    path = folder / "pi5.toml"
    path.write_text('# ours\nhost = "pi5.local"\nprofile = "local"')
    return path


def test_lines_of_all_kinds(alice: Path) -> None:
    key = public_text(alice)
    text = (
        f"# comment {key}\n\nalice {key}\n"
        f'"two words",bob namespaces="a b",valid-before="20300101" {key} alice at home\n'
        f"*@acme.example cert-authority {key}\n"
        f"alice ssh-rsa {key.split()[1]}\nalice\n{key}\nalice ssh-ed25519 not/base64!\n"
    )
    found = [(one.line, one.identities, one.options, one.comment) for one in parse_signers(text)]
    assert found == [
        (3, "alice", "", ""),
        (4, '"two words",bob'.strip('"'), 'namespaces="a b",valid-before="20300101"', "alice at home"),
        (5, "*@acme.example", "cert-authority", ""),
    ]


def test_the_first_signer_makes_the_demand(board: Path, pub: Path) -> None:
    assert load_target("pi5").signers_file is None
    file, signer = add_signer(load_target("pi5"), "alice@acme.example", pub)
    assert board.read_text() == '# ours\nhost = "pi5.local"\nprofile = "local"\nallowed_signers = "pi5.signers"\n'
    assert file == load_target("pi5").signers_file == board.with_name("pi5.signers")
    assert (
        file.read_text() == f'alice@acme.example namespaces="edgephi-bundle" {" ".join(pub.read_text().split()[:2])}\n'
    )
    assert list_signers(load_target("pi5")) == [signer]


def test_more_signers_and_fewer(board: Path, pub: Path, tmp_path: Path) -> None:
    add_signer(load_target("pi5"), "alice", pub)
    other = make_key(tmp_path / "other").with_suffix(".pub")
    add_signer(load_target("pi5"), "alice", other)
    add_signer(load_target("pi5"), "bob", other)
    file = board.with_name("pi5.signers")
    file.write_text("# who may\n" + file.read_text())
    _, left = remove_signer(load_target("pi5"), "alice")
    assert [one.identities for one in left] == ["bob"]
    _, left = remove_signer(load_target("pi5"), left[0].key.fingerprint)
    assert left == []
    assert file.read_text() == "# who may\n"
    assert load_target("pi5").signers_file == file, "nobody may sign, and signatures are still demanded"


def test_a_shared_file_stays_where_it_is(board: Path, pub: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.write_text("# ours")
    board.write_text(f'host = "pi5.local"\nprofile = "local"\nallowed_signers = "{shared}"\n')
    assert add_signer(load_target("pi5"), "alice", pub)[0] == shared
    assert shared.read_text().startswith("# ours\nalice ")
    shared.unlink()
    assert add_signer(load_target("pi5"), "alice", pub)[0] == shared, "a demand without its file gets one"


@pytest.mark.parametrize(
    "identity", ["", "-alice", "a b", "a\nb ssh-ed25519", 'a"b', "a,b", "*", "!alice", "#alice", "a\x1b[0m", "älice"]
)
def test_identities_that_would_be_something_else(board: Path, pub: Path, identity: str) -> None:
    with pytest.raises(ConfigError, match="can't name a signer"):
        add_signer(load_target("pi5"), identity, pub)
    assert load_target("pi5").signers_file is None


def test_keys_that_are_none(board: Path, alice: Path, tmp_path: Path) -> None:
    target = load_target("pi5")
    with pytest.raises(ConfigError, match="that is the private key") as caught:
        add_signer(target, "alice", alice)
    assert caught.value.hint == f"give the public one: {alice}.pub"
    for text, said in (
        ("", "not an SSH public key"),
        ("ssh-ed25519 AAAA", "not an SSH public key"),
        ("\xff", "not UTF-8"),
    ):
        (tmp_path / "none").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=said):
            add_signer(target, "alice", tmp_path / "none")
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    with pytest.raises(ConfigError, match="longer than 1,048,576 bytes"):
        add_signer(target, "alice", tmp_path / "large")
    with pytest.raises(ConfigError, match="No such file"):
        add_signer(target, "alice", tmp_path / "absent")
    assert load_target("pi5").signers_file is None


def test_what_is_there_already(board: Path, pub: Path) -> None:
    add_signer(load_target("pi5"), "alice", pub)
    with pytest.raises(ConfigError, match=r"pi5\.signers:1: alice may sign with that key already"):
        add_signer(load_target("pi5"), "alice", pub)


def test_signers_of_an_earlier_target_are_not_taken_over(board: Path, pub: Path) -> None:
    board.with_name("pi5.signers").write_text(f"mallory {public_text(pub.with_suffix(''))}\n")
    with pytest.raises(ConfigError, match="is there already, and the target doesn't name it"):
        add_signer(load_target("pi5"), "alice", pub)


def test_a_shipped_target_stays(pub: Path) -> None:
    with pytest.raises(ConfigError, match="came with edgephi"):
        add_signer(load_target("local"), "alice", pub)


def test_removing_nobody(board: Path, pub: Path) -> None:
    with pytest.raises(ConfigError, match="takes unsigned bundles"):
        remove_signer(load_target("pi5"), "alice")
    add_signer(load_target("pi5"), "alice", pub)
    with pytest.raises(ConfigError, match="no line is bob's") as caught:
        remove_signer(load_target("pi5"), "bob")
    assert (caught.value.hint or "").startswith("there: alice SHA256:")


def test_paths_count_from_the_targets_file(tmp_path: Path) -> None:
    def signers_file(allowed: str) -> Path | None:
        target = Target(name="a", path=tmp_path / "a.toml", transport="local", profile="local", allowed_signers=allowed)
        return target.signers_file

    assert signers_file("b.signers") == tmp_path / "b.signers"
    assert signers_file("/etc/signers") == Path("/etc/signers")
    assert signers_file("~/signers") == Path.home() / "signers"


def test_a_key_has_to_be_of_its_type(pub: Path) -> None:
    kind, text = pub.read_text().split()[:2]
    assert public_key(kind, text) is not None
    assert public_key("ssh-rsa", text) is None
    assert public_key(kind, text[:-1]) is None
    assert public_key(kind, "") is None
