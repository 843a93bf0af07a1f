"""Accounts that can log in, but not do everything: the error names the cause, and nothing is left on the device."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.servers import needs_root, needs_sshd
from tests.support.targets import write_target
from toolkit.cli import main, render
from toolkit.emulate import PrivateSshd, sshd as sshd_module
from toolkit.emulate.sshd import find_sshd

pytestmark = [needs_sshd, pytest.mark.usefixtures("config")]
CLIENTS = pytest.mark.parametrize("client", ["ssh", "openssh"])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    told = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((told.out + told.err).split())


@contextmanager
def pam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, account: str, password: str = "open sesame") -> Iterator[None]:
    """Have the server follow these rules of PAM for accounts."""
    tmp_path.mkdir(exist_ok=True)
    check = tmp_path / "check"
    check.write_text(f"#!/bin/sh\ntr -d '\\0' | grep -qx '{password}'\n")
    check.chmod(0o755)
    name = f"edgephi-account-{os.getpid()}"
    rules = Path("/etc/pam.d") / name
    rules.write_text(
        f"auth required pam_exec.so expose_authtok quiet {check}\n{account}\nsession required pam_permit.so\n"
    )
    program = tmp_path / name
    program.symlink_to(find_sshd() or "sshd")
    monkeypatch.setattr(sshd_module, "find_sshd", lambda: program)
    try:
        yield
    finally:
        rules.unlink()


@needs_root
@CLIENTS
def test_an_expired_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: str
) -> None:
    expired = "account required pam_debug.so acct=new_authtok_reqd"
    with (
        pam(monkeypatch, tmp_path, expired),
        PrivateSshd(tmp_path / "server", extra_config="UsePAM yes\nPermitRootLogin yes") as server,
    ):
        write_target(tmp_path, server, transport=client)
        code, said = run(capsys, "targets", "probe", "pi5")
        assert code == 7
        assert (
            "the account's password has expired, and nothing runs before it is changed: WARNING: Your password" in said
        )
        assert "log in with ssh in a terminal and change it" in said
        assert "openssh-sftp-server" not in said
        code, said = run(capsys, "doctor", "pi5")
        assert "the account's password has expired" in said and "openssh-sftp-server" not in said


@needs_root
def test_an_account_that_pam_closes_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words").write_text("Closed until Monday.\n")
    closed = f"account required pam_echo.so file={tmp_path}/words\naccount required pam_debug.so acct=acct_expired"
    with (
        pam(monkeypatch, tmp_path, closed),
        PrivateSshd(tmp_path / "server", extra_config="UsePAM yes\nPermitRootLogin yes") as server,
    ):
        write_target(tmp_path, server)
        code, said = run(capsys, "targets", "probe", "pi5")
        assert code == 7
        assert "the connection was lost during the login; the server said: Closed until Monday." in said


@needs_root
def test_a_wrong_password_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "prompt_secret", lambda: lambda _: "wrong")
    for methods in ("password", "keyboard-interactive"):
        extra = (
            "UsePAM yes\nPermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication yes\n"
            f"AuthenticationMethods {methods}"
        )
        with (
            pam(monkeypatch, tmp_path / methods, "account required pam_permit.so"),
            PrivateSshd(tmp_path / methods / "server", extra_config=extra) as server,
        ):
            write_target(tmp_path, server)
            code, said = run(capsys, "targets", "probe", "pi5")
        assert code == 7
        assert f"login as '{server.user}' refused: the password is wrong; tried " in said
        assert "ssh-copy-id" not in said


@CLIENTS
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/usr/sbin/nologin", "the account may not run commands: This account is currently not available."),
        ("/bin/false", "the account may not run commands: each ends with exit code 1, without a word"),
        ("echo Menu: 1 backup, 2 restore", "the server doesn't run the command that it is asked for; it said: Menu: 1"),
        ("internal-sftp", "the account may not run commands: This service allows sftp connections only."),
    ],
)
def test_an_account_without_commands_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str, command: str, words: str
) -> None:
    with PrivateSshd(tmp_path / "server", extra_config=f"ForceCommand {command}") as server:
        root = write_target(tmp_path, server, transport=client)
        code, said = run(capsys, "targets", "probe", "pi5")
        assert (code, root.exists()) == (7, False)
        assert words in said
        assert "openssh-sftp-server" not in said
        assert words in run(capsys, "doctor", "pi5")[1]


@pytest.fixture
def homeless() -> Iterator[str]:
    """A user without a home folder."""
    name = f"edgephi{os.getpid()}"
    home = f"/nonexistent/{name}"
    subprocess.run(["useradd", "-M", "-d", home, "-s", "/bin/sh", "-p", "*", name], check=True)
    yield name
    subprocess.run(["userdel", name], check=True, capture_output=True)


@needs_root
@CLIENTS
def test_an_account_without_a_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], homeless: str, client: str
) -> None:
    with PrivateSshd(tmp_path / "server", extra_config="AuthorizedKeysFile /tmp/%u.keys") as server:
        keys = Path(f"/tmp/{homeless}.keys")
        public = subprocess.check_output(["ssh-keygen", "-y", "-f", server.identity_file], text=True)
        keys.write_text(public)
        try:
            write_target(tmp_path, server, transport=client, user=homeless, install_root="~/.edgephi")
            code, said = run(capsys, "targets", "probe", "pi5")
        finally:
            keys.unlink()
    assert code == 7
    assert f"the account has no home folder: Could not chdir to home directory /nonexistent/{homeless}" in said


@CLIENTS
def test_sftp_that_begins_in_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str) -> None:
    share = tmp_path / "share"
    share.mkdir()
    extra = f"Subsystem sftp internal-sftp -d {share}\nSetEnv HOME={tmp_path}"
    with PrivateSshd(tmp_path / "server", extra_config=extra) as server:
        write_target(tmp_path, server, transport=client, install_root="edgephi-nas/root")
        code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert "error: pi5: commands and SFTP see different folders: SFTP doesn't find ./.edgephi-look-" in said
    assert "set install_root to a folder that has the same path by both" in said
    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert list(share.iterdir()) == [] and not (home / "edgephi-nas").exists()
    assert not (home / said.partition("find ./")[2].partition(",")[0]).exists()


@needs_root
@CLIENTS
def test_sftp_with_other_files_under_the_same_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], client: str
) -> None:
    device = tmp_path / "nas"
    device.mkdir()
    shim = tmp_path / "sftp"
    shim.write_text(
        f"#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none {device} && exec /usr/lib/openssh/sftp-server'\n"
    )
    shim.chmod(0o755)
    with PrivateSshd(tmp_path / "server", extra_config=f"Subsystem sftp {shim}") as server:
        write_target(tmp_path, server, transport=client, install_root=f"{device}/edgephi")
        code, said = run(capsys, "targets", "probe", "pi5")
    assert code == 7
    assert f"SFTP doesn't find {device}/.edgephi-look-" in said
    assert list(device.iterdir()) == []
