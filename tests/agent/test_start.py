"""The look at an agent's folders and file before anything of it runs."""

from __future__ import annotations

import io
import os
import pwd
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import edgephi
from tests.support.servers import needs_root, needs_sshd
from tests.support.targets import write_target
from toolkit.agent import agent_archive, agent_sha256
from toolkit.emulate import PrivateSshd

NOBODY = pwd.getpwnam("nobody").pw_uid
LOOK = "on the device: look at what lies there, "
OTHER = "; or set install_root to a folder of your own"


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that a planted agent would leave."""
    return tmp_path / "ran"


def plant(agent: Path, ran: Path) -> None:
    """Put a program of somebody's in the agent's place, of the same size."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("__main__.py", f"open({str(ran)!r}, 'w')\n")
        archive.writestr("edgephi_agent/main.py", f"open({str(ran)!r}, 'w')\ndef main(): pass\n")
        archive.writestr("edgephi_agent/__init__.py", "")
        archive.comment = b"x" * 100
    content = raw.getvalue()
    # Zip is read from its end: what stands before it is no matter.
    agent.write_bytes(bytes(len(agent_archive()) - len(content)) + content)


def install_root(tmp_path: Path) -> Path:
    """An install root in a folder like /tmp, with an agent's file that has the right size."""
    above = tmp_path / "open"
    above.mkdir()
    above.chmod(0o1777)
    root = above / "edgephi"
    (root / "agent").mkdir(parents=True, mode=0o755)
    root.chmod(0o755)
    return root


def agent_of(root: Path) -> Path:
    return root / "agent" / f"agent-{agent_sha256()[:16]}.pyz"


def give_away(*paths: Path) -> None:
    for path in paths:
        os.chown(path, NOBODY, -1)


def move_behind_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


SPOILS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "the root is nobody's": (
        lambda root: give_away(root, root / "agent", agent_of(root)),
        "{root} belongs to somebody else",
        f"{LOOK}and have its owner remove it{OTHER}",
    ),
    "the agent's folder is nobody's": (
        lambda root: give_away(root / "agent"),
        "{root}/agent belongs to somebody else",
        f"{LOOK}and have its owner remove it{OTHER}",
    ),
    "the file is nobody's": (
        lambda root: give_away(agent_of(root)),
        "{agent} belongs to somebody else",
        f"{LOOK}and have its owner remove it{OTHER}",
    ),
    "others can write to the root": (
        lambda root: root.chmod(0o775),
        "{root} can be written to by others (mode 0775)",
        f"{LOOK}then chmod 700 {{root}}{OTHER}",
    ),
    "others can write to the agent's folder": (
        lambda root: (root / "agent").chmod(0o757),
        "{root}/agent can be written to by others (mode 0757)",
        f"{LOOK}then chmod 700 {{root}}/agent{OTHER}",
    ),
    "others can write to the file": (
        lambda root: agent_of(root).chmod(0o666),
        "{agent} can be written to by others (mode 0666)",
        f"{LOOK}then chmod 600 {{agent}}{OTHER}",
    ),
    "the root is a link": (
        move_behind_link,
        "{root} is a link",
        f"{LOOK}and remove it; or set install_root to {{elsewhere}}",
    ),
    "the agent's folder is a link": (
        lambda root: move_behind_link(root / "agent"),
        "{root}/agent is a link",
        f"{LOOK}and remove it",
    ),
    "the file is a link": (
        lambda root: move_behind_link(agent_of(root)),
        "{agent} is a link",
        f"{LOOK}and remove it",
    ),
    "everybody can exchange the root": (
        lambda root: root.parent.chmod(0o777),
        "{above}, above {root}, can be written to by everybody (mode 0777)",
        "on the device: chmod o-w {above}; or set install_root to a folder elsewhere",
    ),
    "the owner of the folder above can exchange the root": (
        lambda root: give_away(root.parent),
        "{above}, above {root}, can be written to by everybody (mode 1777)",
        "on the device: chmod o-w {above}; or set install_root to a folder elsewhere",
    ),
}


@needs_root
@pytest.mark.parametrize("spoil", SPOILS)
def test_nothing_runs_where_others_could_have_put_it(tmp_path: Path, ran: Path, spoil: str) -> None:
    root = install_root(tmp_path)
    plant(agent_of(root), ran)
    change, message, hint = SPOILS[spoil]
    change(root)
    config = Path(os.environ["EDGEPHI_CONFIG_DIR"], "targets")
    config.mkdir(parents=True)
    (config / "here.toml").write_text(f'transport = "local"\nprofile = "local"\ninstall_root = "{root}"\n')
    done = edgephi("releases", "here")
    names = {
        "root": root,
        "above": root.parent,
        "agent": agent_of(root),
        "elsewhere": root.with_name("elsewhere"),
    }
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == f"error: here: {message.format(**names)}\n hint: {hint.format(**names)}\n"
    assert not ran.exists()


@needs_root
@needs_sshd
@pytest.mark.parametrize("client", ["paramiko", "openssh"])
def test_nothing_runs_in_a_root_that_nobody_has_made(tmp_path: Path, ran: Path, sshd: PrivateSshd, client: str) -> None:
    root = install_root(tmp_path)
    plant(agent_of(root), ran)
    give_away(root, root / "agent", agent_of(root))
    write_target(tmp_path, sshd, install_root=str(root), transport=client)
    done = edgephi("releases", "pi5")
    assert done.returncode == 7
    assert f"error: pi5: {root} belongs to somebody else\n" in done.stderr
    assert not ran.exists()


def test_a_file_of_the_right_size_and_another_content_is_replaced(tmp_path: Path, ran: Path, local: Path) -> None:
    (local / "agent").mkdir(mode=0o700)
    plant(agent_of(local), ran)
    done = edgephi("releases", "local")
    assert done.returncode == 0, done.stderr
    assert not ran.exists()
    assert agent_of(local).read_bytes() == agent_archive()


@needs_root
def test_nothing_is_sent_into_a_folder_of_somebody_else(tmp_path: Path, local: Path) -> None:
    (local / "agent").mkdir(mode=0o700)
    give_away(local / "agent")
    done = edgephi("releases", "local")
    assert done.returncode == 7
    assert f"error: local: {local}/agent belongs to somebody else\n" in done.stderr
    assert list((local / "agent").iterdir()) == []


def test_the_users_modules_and_variables_are_not_heard(
    tmp_path: Path, ran: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base64", "zlib", "json", "hashlib"):
        (Path.home() / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(f"open({str(ran)!r}, 'w')\n")
    from toolkit.agent.requests import ListReleases
    from toolkit.catalog import load_target
    from toolkit.device import connect

    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "own" / "sitecustomize.py"))
    with connect(load_target("local")) as device:
        assert device.ask(ListReleases()).releases == ()
    assert not ran.exists()
