"""Checks of this machine and of a target, step by step, each with what to type next. They change nothing."""
