"""Stand-ins for devices: SSH servers on loopback, and emulated boards. They show whether a bundle works without
hardware; they never say how fast a device is.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.emulate.boards import State as State, list_states as list_states
    from toolkit.emulate.definition import find_board as find_board, list_boards as list_boards
    from toolkit.emulate.embedded import EmbeddedServer as EmbeddedServer
    from toolkit.emulate.loopback import start_loopback as start_loopback
    from toolkit.emulate.sshd import PrivateSshd as PrivateSshd

__getattr__ = lazily(
    __name__,
    boards="State list_states",
    definition="find_board list_boards",
    embedded="EmbeddedServer",
    sshd="PrivateSshd",
    loopback="start_loopback",
)
