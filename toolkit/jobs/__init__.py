"""Whole jobs, each a command: the loop from model to table, the demo, chat, the gate, rollouts, tuning, the doctor. The
package puts services of other packages together; work that one of those can do alone never stands here.
"""
