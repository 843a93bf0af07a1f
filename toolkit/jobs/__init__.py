"""Whole jobs, each a command: the loop from model to table, the demo, chat, the gate, rollouts, tuning, the doctor.

They put services of other packages together; what one of them alone can do stands there.
"""
