"""The targets as other tools want to read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.catalog.target import ALL, Target
from toolkit.errors import ConfigError

_NOT_IN_A_GROUP_NAME = re.compile(r"[^A-Za-z0-9_]")
# Ansible's own groups: every host is in the first, and every host that no other group has is in the second.
_RESERVED = (ALL, "ungrouped")


def ansible_inventory(targets: Sequence[Target]) -> dict[str, Any]:
    """The output of a dynamic inventory for `--list`: a group for each tag and, as `profile_…`, for each profile.

    Raises ConfigError when two tags have the same name in Ansible's letters.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    meant: dict[str, str] = {}
    for target in targets:
        for group, source in _groups(target):
            if meant.setdefault(group, source) != source:
                message = f"{meant[group]} and {source} are both group '{group}' in Ansible"
                raise ConfigError(message, "letters, digits and _ are all that it has: rename one of them")
            groups.setdefault(group, {"hosts": []})["hosts"].append(target.name)
    return {
        "_meta": {"hostvars": {target.name: ansible_host(target) for target in targets}},
        ALL: {"children": sorted(groups)},
        **dict(sorted(groups.items())),
    }


def _groups(target: Target) -> Iterator[tuple[str, str]]:
    for tag in target.tags:
        group = _NOT_IN_A_GROUP_NAME.sub("_", tag)
        # Ansible takes no group that begins with a digit.
        group = f"_{group}" if group[0].isdigit() or group in _RESERVED else group
        yield group, f"tag '{tag}'"
    yield f"profile_{_NOT_IN_A_GROUP_NAME.sub('_', target.profile)}", f"profile '{target.profile}'"


def ansible_host(target: Target) -> dict[str, Any]:
    """The output of a dynamic inventory for `--host`; absent settings are left to ~/.ssh/config, there as here."""
    known, python = target.known_hosts, target.python if target.names_python else None
    variables = {
        "ansible_connection": "local" if target.transport == "local" else None,
        "ansible_host": target.host,
        "ansible_port": target.port,
        "ansible_user": target.user,
        # The name of the key file alone: its content isn't copied.
        "ansible_ssh_private_key_file": str(target.identity_file) if target.identity_file else None,
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={shlex.quote(str(known))}" if known else None,
        "ansible_python_interpreter": python,
        "edgephi_profile": target.profile,
        "edgephi_install_root": target.install_root,
        "edgephi_python": python,
    }
    return {name: value for name, value in variables.items() if value is not None}
