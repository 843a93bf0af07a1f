"""One device: transports, which start commands and put files there, and the session with its agent; `device.ssh` holds
the clients paramiko and OpenSSH. The package never decides what a device is asked to do: `deploy`, `bench` and `jobs`
do.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.device.dial import open_transport as open_transport
    from toolkit.device.session import (
        Device as Device,
        check_profile as check_profile,
        connect as connect,
        identify as identify,
    )
    from toolkit.device.transport import Process as Process, PromptSecret as PromptSecret, Transport as Transport

__getattr__ = lazily(
    __name__,
    session="Device check_profile connect identify",
    transport="Process PromptSecret Transport",
    dial="open_transport",
)
