"""The parsing of sshd's commands by Windows, after its documentation; a command beyond that is refused.

`cmd /?`, learn.microsoft.com: "cmd", "Parsing C command-line arguments", "CommandLineToArgvW", "about_Parsing",
"about_Quoting_Rules", "about_PowerShell_exe"; OpenSSH for Windows: `cmd.exe /c "COMMAND"`, `powershell.exe -c COMMAND`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PS_QUOTES = "'\u2018\u2019\u201a\u201b"


class NotUnderstood(Exception):
    """A command uses syntax that these parsers lack: no test may depend on it."""


@dataclass(frozen=True)
class Echo:
    text: str


@dataclass(frozen=True)
class Run:
    """A program with its arguments; `not_found` is the exit status when the program is missing."""

    argv: list[str]
    not_found: int


def split_arguments(line: str) -> list[str]:
    """Split a command line as CommandLineToArgvW does."""
    program = re.match(r'[ \t]*(?:"([^"]*)"|([^ \t]*))', line)
    assert program is not None
    argv = [program[1] if program[1] is not None else program[2]]
    word, quoted, inside = "", False, False
    rest = line[program.end() :]
    position = 0
    while position < len(rest):
        sign = rest[position]
        if sign == "\\":
            run = re.match(r"\\+", rest[position:])
            assert run is not None
            count = len(run[0])
            position += count
            inside = True
            if rest[position : position + 1] == '"':
                word += "\\" * (count // 2)
                if count % 2:
                    word += '"'
                    position += 1
            else:
                word += "\\" * count
            continue
        if sign == '"':
            inside = True
            if quoted and rest[position + 1 : position + 2] == '"':
                word += '"'
                position += 1
            else:
                quoted = not quoted
        elif sign in " \t" and not quoted:
            if inside:
                argv.append(word)
            word, inside = "", False
        else:
            word, inside = word + sign, True
        position += 1
    return [*argv, word] if inside else argv


def cmd(command: str, environment: Mapping[str, str]) -> Echo | Run:
    """Parse a command as `cmd.exe /c "COMMAND"` does."""
    line = _unwrapped(f'"{command}"')
    line = _without_carets(_expanded(line, environment))
    if match := re.match(r"echo (.*)\Z", line, re.IGNORECASE):
        return Echo(match[1])
    # The program's name ends at a blank; without quotes also at a slash or at a sign that separates arguments.
    name = re.match(r'"[^"]*"|[^\s,;=/"]+', line)
    if name is None or line[name.end() : name.end() + 1] not in ("", " ", "/"):
        raise NotUnderstood(line)
    rest = line[name.end() :]
    return Run([name[0].strip('"'), *split_arguments(f"x {rest}")[1:]], not_found=1)


def _unwrapped(text: str) -> str:
    """Remove the outer quotes after /c, except around a program's name alone, as `cmd /?` says."""
    if text.count('"') == 2 and not re.search(r"[&<>()@^|]", text) and text.strip('"').endswith(".exe"):
        return text
    first, last = text.index('"'), text.rindex('"')
    return text[:first] + text[first + 1 : last] + text[last + 1 :]


def _expanded(line: str, environment: Mapping[str, str]) -> str:
    """Expand %NAME%, also in quotes; an unset name stays as it is, as on a command line (not in a batch file)."""
    known = {name.upper(): value for name, value in environment.items()}
    result, position = "", 0
    while match := re.compile("%([^%]+)%").search(line, position):
        value = known.get(match[1].upper())
        # After an unset name only the first % is passed; the second one may begin another name.
        end = match.end() if value is not None else match.start() + 1
        result += line[position : match.start()] + (value if value is not None else "%")
        position = end
    return result + line[position:]


def _without_carets(line: str) -> str:
    """Remove carets outside quotes, each of which makes the next sign literal. Refuse a sign that stays special."""
    result, quoted, signs = "", False, iter(line)
    for sign in signs:
        if sign == "^" and not quoted:
            result += next(signs, "")
        elif sign in "&|<>()\r\n" and not quoted:
            raise NotUnderstood(f"{sign!r} isn't hidden from cmd.exe: {line}")
        else:
            quoted ^= sign == '"'
            result += sign
    return result


def powershell(command: str, variables: Mapping[str, str]) -> Echo | Run:
    """Parse a command as `powershell.exe -c COMMAND` does: one program in quotes, or one echo of plain words."""
    if match := re.match(r"echo ([A-Za-z0-9:%$-]+)\Z", command):
        return Echo(re.sub(r"\$(\w+)", lambda name: variables.get(name[1].upper(), ""), match[1]))
    match = re.match(
        r"& (.*); if \(\$null -eq \$LASTEXITCODE\) \{ exit (\d+) \}; exit \$LASTEXITCODE\Z", command, re.DOTALL
    )
    if match is None:
        raise NotUnderstood(command)
    words, rest = [], match[1]
    while rest:
        word, rest = _ps_string(rest)
        words.append(word)
        if rest and not rest.startswith(" "):
            raise NotUnderstood(f"no blank before {rest}")
        rest = rest.lstrip(" ")
    # Up to version 7.2 PowerShell puts quotes around an argument with blanks, and changes nothing else.
    line = " ".join(f'"{word}"' if re.search(r"\s", word) else word for word in words[1:])
    return Run([words[0], *split_arguments(f"x {line}")[1:]], not_found=int(match[2]))


def _ps_string(text: str) -> tuple[str, str]:
    """The first string in single quotes (straight or typographic, doubled for a literal one), and the rest."""
    if text[:1] not in _PS_QUOTES or not text:
        raise NotUnderstood(f"not in single quotes: {text}")
    word, position = "", 1
    while position < len(text):
        if text[position] in _PS_QUOTES:
            if text[position + 1 : position + 2] == "" or text[position + 1] not in _PS_QUOTES:
                return word, text[position + 1 :]
            position += 1
        word += text[position]
        position += 1
    raise NotUnderstood("a string without an end")
