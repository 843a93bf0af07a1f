"""The words of a server before a login, which people must see at once: they may say what to do to be let in."""

from __future__ import annotations

import threading

from toolkit.events import Step, announce

# A check in a browser takes a person some minutes; a server that only talks gets no more time than that.
PERSON_S = 300.0
_MOST_LINES = 64
_MOST_SIGNS = 500


class Banners:
    """The banners of one login. One thread hears them, another one shows them; `where` begins each line."""

    def __init__(self, where: str, *, shown: bool = True) -> None:
        self._where = where
        self._shown = shown
        self._lines: list[str] = []
        self._shown_count = 0
        self._lock = threading.Lock()

    def hear(self, text: str) -> None:
        """Take one banner, or more lines of it; the first 64 lines are kept."""
        with self._lock:
            room = _MOST_LINES - len(self._lines)
            lines = (printable(line[:_MOST_SIGNS]) for line in text[: room * _MOST_SIGNS].splitlines())
            self._lines += [line for line in lines if line][:room]

    def show(self) -> None:
        """Show the lines that are new."""
        with self._lock:
            new, self._shown_count = self._lines[self._shown_count :], len(self._lines)
        for line in new if self._shown else ():
            announce(Step(f"{self._where} says: {line}"))

    @property
    def said(self) -> str:
        """Everything that was heard, on one line."""
        with self._lock:
            return " ".join(self._lines)

    def limit_s(self, usual_s: float) -> float:
        """The time that an answer may take: longer when the server has said something, for a person may be at work."""
        return max(usual_s, PERSON_S) if self.said else usual_s


def printable(text: str) -> str:
    """A server's words without the characters that could move the cursor or change the terminal's text."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def with_words(message: str, said: str) -> str:
    """A message with what the server said before, if it said anything."""
    return f"{message}; the server said: {said}" if said else message
