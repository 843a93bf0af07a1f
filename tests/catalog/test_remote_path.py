from __future__ import annotations

import pytest

from toolkit.catalog.remote_path import own_folder, python_argv, python_command, remote_path, sftp_path


@pytest.mark.parametrize(
    ("text", "path", "sftp"),
    [
        ("~/.edgephi", "~/.edgephi", ".edgephi"),
        ("edgephi/a", "edgephi/a", "edgephi/a"),
        ("/opt/edgephi", "/opt/edgephi", "/opt/edgephi"),
        (r"C:\Users\me\.edgephi", "C:/Users/me/.edgephi", "/C:/Users/me/.edgephi"),
        ("c:/edgephi", "C:/edgephi", "/C:/edgephi"),
        (r"D:\Edge Phi & Co (x86)\it's^", "D:/Edge Phi & Co (x86)/it's^", "/D:/Edge Phi & Co (x86)/it's^"),
        ("C:/Users/Jörg/.edgephi", "C:/Users/Jörg/.edgephi", "/C:/Users/Jörg/.edgephi"),
        (r"~\.edgephi\a", "~/.edgephi/a", ".edgephi/a"),
    ],
)
def test_a_path_on_either_system(text: str, path: str, sftp: str) -> None:
    assert own_folder(text) == path
    assert sftp_path(path) == sftp


@pytest.mark.parametrize("path", ["/", "."])
def test_folders_that_are_nobodys_own_have_sftp_paths_too(path: str) -> None:
    assert sftp_path(path) == path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"C:\a\..\..\Windows", "may not go up"),
        (r"C:\%TEMP%\x", "may not have"),
        ('C:/a"b', "may not have"),
        ("C:/a|b", "may not have"),
        ("C:/a\nb", "may not have"),
        ("C:/a:b", "may not have"),
        (r"C:\nul", "can't have a folder or file called 'nul'"),
        (r"C:\a\com1.txt", r"called 'com1\.txt'"),
        ("C:/a /b", "called 'a '"),
        ("C:/a./b", r"called 'a\.'"),
        (r"\\server\share\x", "may only have letters"),
        (r"a\b", "may only have letters"),
        ("/opt/two words", "may only have letters"),
    ],
)
def test_what_windows_would_read_otherwise(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        remote_path(text)


@pytest.mark.parametrize("text", ["C:/", "C:\\", "C:", "~/", "/"])
def test_a_disk_is_no_folder_of_our_own(text: str) -> None:
    with pytest.raises(ValueError, match="is no folder of edgephi's own"):
        own_folder(text)


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("python3", ["python3"]),
        ("~/venv/bin/python", ["venv/bin/python"]),
        ("py", ["py"]),
        ("py -3", ["py", "-3"]),
        ("py -3.12-arm64", ["py", "-3.12-arm64"]),
        (r"C:\Program Files\Python312\python.exe", ["C:/Program Files/Python312/python.exe"]),
    ],
)
def test_a_python_is_one_word_or_the_launcher(command: str, argv: list[str]) -> None:
    assert python_argv(python_command(command)) == argv


@pytest.mark.parametrize("command", ["py -3 -c x", "py -2", "python -u", "py;x"])
def test_a_python_has_no_arguments(command: str) -> None:
    with pytest.raises(ValueError, match="may only have"):
        python_command(command)
