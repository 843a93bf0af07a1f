"""Trust in host keys: those of a target and of the jump hosts on the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.catalog.public_key import fingerprint
from toolkit.device.ssh.config import SshOptions, SshTarget, resolve
from toolkit.device.ssh.hops import check, machines
from toolkit.device.ssh.known_hosts import append_known_host, hashed, host_names
from toolkit.device.ssh.link import (
    Link,
    connected,
    host_key_changed,
    known_key_types,
    known_keys,
    refuse_revoked,
    verify_host_key,
)
from toolkit.errors import ConfigError, HostKeyChanged, HostKeyUnknown

_HOST_KEY_TYPES = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("ssh-rsa",),
)


@dataclass(frozen=True)
class OfferedKey:
    """A host key that a machine offers. `where` names the machine: `pi5: jump host gate (10.0.0.1:22)`."""

    where: str
    key_type: str
    blob: bytes
    options: SshOptions

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)

    def trust(self) -> Path:
        """Append the key to the first known_hosts file, and return that. Raises ConfigError when there is none."""
        if not self.options.known_hosts:
            hint = "set known_hosts in the target's file, or UserKnownHostsFile in the SSH configuration"
            raise ConfigError(f"{self.where}: no known_hosts file", hint)
        file = self.options.known_hosts[0]
        name = host_names(self.options.hostname, self.options.port, self.options.host_key_alias)[0]
        append_known_host(file, hashed(name) if self.options.hash_known_hosts else name, self.key_type, self.blob)
        return file


def unknown_keys(target: SshTarget) -> Iterator[OfferedKey]:
    """Give the unknown key of each machine on the way to a target, the nearest jump host first.

    The next machine is only reached after the key has been trusted. Raises HostKeyChanged for a key that is another
    one than before or revoked, HostUnreachable.
    """
    for machine, options in machines(target, resolve(target)):
        with connected(machine, options, known_key_types(options)) as link:
            offered = _offered(link)
            is_known = _verified(link, target.name)
            link.close()
        if not is_known:
            yield offered


def _verified(link: Link, name: str) -> bool:
    try:
        verify_host_key(link, name)
    except HostKeyUnknown:
        return False
    return True


def trust_host_key(target: SshTarget, fingerprint_: str) -> Path:
    """Append the key with this `SHA256:…` fingerprint, of the target or of a jump host on the way, to known_hosts.

    It connects for the keys alone and doesn't log in there; to get beyond a jump host, ssh logs in to that. Returns the
    file that has the key. Raises HostKeyChanged when no machine has the fingerprint, or when the file has another key
    of that type or a revoked one; HostUnreachable.
    """
    wanted = "SHA256:" + fingerprint_.strip().removeprefix("SHA256:").rstrip("=")
    offered: list[str] = []
    for machine, options in machines(target, resolve(target)):
        found = _key_with(wanted, machine, options, offered)
        if found is not None:
            return _known(found, target.name) or found.trust()
        if machine is not target and not _is_known(machine, options, target.name):
            break  # nothing can be seen beyond it
    where, _, last = offered[-1].partition(": offers ")
    others = "".join(f"; {other}" for other in offered[:-1])
    raise HostKeyChanged(
        f"{where}: no host key with fingerprint {wanted}; the server offers {last}{others}",
        "compare with what 'ssh-keygen -lf' prints on the device itself",
    )


def _key_with(wanted: str, machine: SshTarget, options: SshOptions, offered: list[str]) -> OfferedKey | None:
    """The machine's key with that fingerprint; None adds to `offered` a text about the keys that it has."""
    keys: list[str] = []
    where = machine.name
    for key_types in _HOST_KEY_TYPES:
        with connected(machine, options, key_types) as link:
            key = _offered(link)
            link.close()
        if key.fingerprint == wanted:
            return key
        where = key.where
        keys.append(f"{key.key_type} {key.fingerprint}")
    offered.append(f"{where}: offers {', '.join(dict.fromkeys(keys))}")
    return None


def _offered(link: Link) -> OfferedKey:
    key = link.transport.get_remote_server_key()
    return OfferedKey(link.where, key.get_name(), key.asbytes(), link.options)


def _known(offered: OfferedKey, name: str) -> Path | None:
    """The file that has the key. Raises HostKeyChanged when one has another key of its type, or says it is revoked."""
    refuse_revoked(offered.where, offered.options, offered.blob)
    for entry in known_keys(offered.options)[0]:
        if entry.marker:
            continue
        if entry.key_type == offered.key_type and entry.blob != offered.blob:
            raise host_key_changed(offered.where, offered.options, name, entry, offered.blob)
        if entry.blob == offered.blob:
            return entry.file
    return None


def _is_known(machine: SshTarget, options: SshOptions, name: str) -> bool:
    try:
        check(machine, options, name)
    except (HostKeyUnknown, HostKeyChanged):
        return False
    return True
