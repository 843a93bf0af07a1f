"""trust: the user's trust in the files of the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.catalog.trust import FolderFile


@click.command()
@click.option("--show", is_flag=True, help="Show the files and what they decide; trust nothing.")
@click.option("--forget", is_flag=True, help="Take the trust in this folder back.")
@options.as_json
def trust(show: bool, forget: bool, as_json: bool) -> None:
    """Trust the profiles, targets and other files of the working folder.

    Such a file may have come with a repository that somebody else wrote. Without trust it may not decide what is
    installed, which machine of yours a tag means, or whose keys and signatures count; docs/security.md has the table.
    Trust holds for this folder as it is now: after a change you are asked again, and told what has changed.
    """
    from toolkit.catalog.trust import examine, forget_folder, is_trusted, trust_folder
    from toolkit.cli import render

    if show and forget:
        raise click.UsageError("--show or --forget, not both")
    found = examine()
    if not (show or forget) and found:
        trust_folder()
    had = forget and forget_folder()
    if as_json:
        answer = {"folder": str(Path.cwd()), "trusted": is_trusted(), "files": list(map(_as_json, found))}
        render.print_json(answer)
        return
    if found and not forget:
        render.table(("file", "read instead of", "decides", "before" if not show else "state"), map(_row, found))
    if forget:
        render.note(f"{Path.cwd()}: " + ("not trusted any more" if had else "wasn't trusted"))
    elif not found:
        render.note(f"{Path.cwd()}: no profiles, targets or other files that need trust")
    elif not show:
        render.note(f"{Path.cwd()}: trusted as it is now; edgephi trust --forget takes that back")


def _row(file: FolderFile) -> list[str]:
    from toolkit.config import shown

    return [shown(file.path), shown(file.hides) if file.hides else "", ", ".join(file.keys), file.state]


def _as_json(file: FolderFile) -> dict[str, Any]:
    hides = str(file.hides) if file.hides else None
    return {"path": str(file.path), "hides": hides, "keys": list(file.keys), "state": file.state}
