"""inventory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.catalog import Target


@click.command()
@click.option("--ansible", is_flag=True, help="Print the JSON that Ansible reads from an inventory program.")
@click.option("--list", "list_", is_flag=True, help="With --ansible: every host and group. The default.")
@click.option(
    "--host", metavar="NAME", shell_complete=options.names("targets"), help="With --ansible: the variables of one host."
)
@options.trust_folder
@options.as_json
def inventory(ansible: bool, list_: bool, host: str | None, as_json: bool) -> None:
    """Print the targets by tag, or as Ansible's inventory.

    Without --ansible it prints the targets that each `@tag` means. With --ansible it prints a group for each tag and
    each profile, and variables from the target files. As Ansible's inventory, use an executable file with this text:

    \b
    #!/bin/sh
    exec edgephi inventory --ansible "$@"
    """
    from toolkit.catalog import load_target
    from toolkit.catalog.inventory import ansible_host, ansible_inventory
    from toolkit.catalog.target import MARK, target_groups
    from toolkit.cli import render

    if (list_ or host) and not ansible:
        raise click.UsageError("--list and --host go with --ansible")
    if list_ and host:
        raise click.UsageError("--list or --host, not both")
    if host is not None:
        render.print_json(ansible_host(load_target(host)))
        return
    targets = _readable()
    groups = target_groups(targets)
    if ansible:
        # This machine isn't in the inventory, as it isn't in @all: Ansible has a localhost of its own.
        written = {name for names in groups.values() for name in names}
        render.print_json(ansible_inventory([target for target in targets if target.name in written]))
        return
    if as_json:
        render.print_json({"groups": groups})
        return
    render.table(["tag", "targets"], [[MARK + tag, " ".join(names)] for tag, names in groups.items()])


def _readable() -> list[Target]:
    """List the targets whose files can be read, and warn of the others."""
    from toolkit.catalog import Target, list_targets
    from toolkit.catalog.target import refuse_strange_members
    from toolkit.cli import render

    found = list_targets()
    for target in found:
        if not isinstance(target, Target):
            render.warn_of(target.error)
    readable = [target for target in found if isinstance(target, Target)]
    refuse_strange_members(readable)
    return readable
