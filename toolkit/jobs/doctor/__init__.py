"""Checks of this machine and of a target, step by step, with hints. They change nothing but the agent on the target."""

from typing import TYPE_CHECKING

from toolkit import lazily

if TYPE_CHECKING:
    from toolkit.jobs.doctor.checks import Check as Check
    from toolkit.jobs.doctor.host import examine_host as examine_host
    from toolkit.jobs.doctor.target import examine_target as examine_target, exit_code as exit_code

__getattr__ = lazily(__name__, checks="Check", host="examine_host", target="examine_target exit_code")
