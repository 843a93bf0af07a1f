"""Whole jobs, each a command: the loop from model to table, the demo, chat, the gate, rollouts, tuning, the doctor. The
package puts services of other packages together; work that one of those can do alone never stands here.
"""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.jobs.chat import Conversation as Conversation, Turn as Turn, converse as converse
    from toolkit.jobs.gate import GateVerdict as GateVerdict, deploy_gated as deploy_gated
    from toolkit.jobs.run import LoopOptions as LoopOptions

__getattr__ = lazily(__name__, run="LoopOptions", chat="Conversation Turn converse", gate="GateVerdict deploy_gated")
