"""The lines for cmd.exe and PowerShell, read back by parsers of their documented rules."""

from __future__ import annotations

import pytest

from tests.support.windows_shells import NotUnderstood, Run, cmd, powershell, split_arguments
from toolkit.device.shells import Shell, command_line, quoted_argument, shell_of
from toolkit.errors import ConfigError

ENVIRONMENT = {"PATH": r"C:\Windows", "USERNAME": "me", "OS": "Windows_NT"}
VARIABLES = {"HOME": "no", "PSHOME": r"C:\Windows\System32\WindowsPowerShell\v1.0"}
PROGRAM = r"C:\Program Files (x86)\Python & Co's 3.12\python.exe"
WORDS = [
    "plain-1.2_x+y=z,@",
    "two words",
    r"C:\Users\Jörg O'Neil\.edgephi\agent.py",
    "C:/Users/me/a b.py",
    "a&b|c<d>e(f)g",
    "^caret^",
    "100%",
    "%PATH%",
    "%USERNAME% %PATH%",
    "%PATH% & %OS%",
    "it's",
    "’tis ‘typographic’",
    "$HOME $env:PATH `n",
    "!PATH!",
    "semi;colon",
    r"back\slash\\es",
    "-option",
    "/c",
    "*?[x]{y}~",
    "日本語",
    "#",
    "tab\there",
]
FOR_CMD_ALONE = ['say "hi"', '"', '""', r"ends with \ ", "a b\\", r"\"", '%PATH%" & calc "%OS%', r"\\\"x y\\", ""]


@pytest.mark.parametrize("word", [*WORDS, *FOR_CMD_ALONE])
def test_a_program_under_cmd_gets_its_words(word: str) -> None:
    found = cmd(command_line("cmd", [PROGRAM, word, "end"]), ENVIRONMENT)
    assert found == Run([PROGRAM, word, "end"], not_found=1)


@pytest.mark.parametrize("word", WORDS)
def test_a_program_under_powershell_gets_its_words(word: str) -> None:
    found = powershell(command_line("powershell", [PROGRAM, word, "end"]), VARIABLES)
    assert found == Run([PROGRAM, word, "end"], not_found=127)


def test_words_together() -> None:
    argv = ["python", *WORDS, *FOR_CMD_ALONE]
    assert cmd(command_line("cmd", argv), ENVIRONMENT) == Run(argv, 1)
    assert powershell(command_line("powershell", ["python", *WORDS]), VARIABLES) == Run(["python", *WORDS], 127)


def test_a_slash_in_a_program_would_be_an_option() -> None:
    assert command_line("cmd", ["C:/Python312/python.exe", "-u", "a/b.py"]) == r"C:\Python312\python.exe -u a/b.py"
    assert command_line("powershell", ["C:/Py/python.exe"]).startswith(r"& 'C:\Py\python.exe';")


@pytest.mark.parametrize(
    ("shell", "argv"),
    [
        ("cmd", ["%OS%/python.exe"]),
        ("cmd", ['py"thon']),
        ("cmd", ["python", "two\nlines"]),
        ("cmd", ["python", "no\0ne"]),
        ("powershell", ["python", 'say "hi"']),
        ("powershell", ["python", ""]),
        ("powershell", ["python", "a b\\"]),
        ("powershell", ["python", "two\nlines"]),
    ],
)
def test_what_a_shell_cannot_be_given_is_refused(shell: Shell, argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"can't be given to (cmd\.exe|PowerShell)"):
        command_line(shell, argv)


@pytest.mark.parametrize(
    ("answer", "shell"),
    [
        ("edgephi-shell:Windows_NT:$PSHOME", "cmd"),
        ("Welcome!\nedgephi-shell:Windows_NT:$PSHOME\r\n", "cmd"),
        (r"edgephi-shell:%OS%:C:\Program Files\PowerShell\7", "powershell"),
        ("edgephi-shell:%OS%:", "posix"),
        ("edgephi-shell:%OS%:$PSHOME", "posix"),
        ("", "posix"),
    ],
)
def test_the_shell_is_known_by_its_answer(answer: str, shell: Shell) -> None:
    assert shell_of(answer) == shell


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        # The table in the document "Parsing C command-line arguments".
        ('x "a b c" d e', ["a b c", "d", "e"]),
        (r'x "ab\"c" "\\" d', ['ab"c', "\\", "d"]),
        (r"x a\\\b d\"e f\"g h", [r"a\\\b", 'd"e', 'f"g', "h"]),
        (r"x a\\\"b c d", [r"a\"b", "c", "d"]),
        (r'x a\\\\"b c" d e', [r"a\\b c", "d", "e"]),
        ('x a"b"" c d', ['ab" c d']),
        ('x ""', [""]),
    ],
)
def test_the_parser_itself(line: str, argv: list[str]) -> None:
    assert split_arguments(line)[1:] == argv


@pytest.mark.parametrize("line", ["python a & del b", "python a > b", 'python "a" | b', "python (a)"])
def test_the_parser_lets_nothing_through_that_is_more_than_a_command(line: str) -> None:
    with pytest.raises(NotUnderstood):
        cmd(line, ENVIRONMENT)


def test_the_parser_expands_variables_even_in_quotes() -> None:
    assert cmd('python "%OS%" %NONE%', ENVIRONMENT) == Run(["python", "Windows_NT", "%NONE%"], 1)


def test_quotes() -> None:
    assert quoted_argument('a "b" c\\') == r'"a \"b\" c\\"'
