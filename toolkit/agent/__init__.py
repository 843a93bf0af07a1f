"""The program that runs on a device, and the protocol of host and device: archive, requests, answers, messages.
`agent.device` holds the program's parts; the host packs them into one file and never imports them.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.agent.archive import PROTOCOL as PROTOCOL, agent_archive as agent_archive, agent_sha256 as agent_sha256

__getattr__ = lazily(__name__, archive="PROTOCOL agent_archive agent_sha256")
