"""The program that runs on a device, and what host and device say to each other: archive, answers, messages.

`agent.device` holds the program's parts, which the host packs and never imports.
"""
