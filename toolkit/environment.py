"""What other programs get to know of this process's environment."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)(_|$)", re.IGNORECASE
)


def without_secrets() -> dict[str, str]:
    """The environment without the variables whose names say that they are secrets: HF_TOKEN, AWS_SECRET_ACCESS_KEY.

    For programs that have no use for them: what is given to a target or to code of a model can't be taken back.
    """
    return {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
