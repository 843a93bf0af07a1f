"""The program that runs on a device, and what host and device say to each other: archive, requests, answers, messages.
`agent.device` holds the program's parts; the host packs them into one file and never imports them.
"""
