"""Profiles, targets, recipes, workloads, models and their presets: the facts known before any work, as typed values.
The package reads files of the user and of edgephi, and reports the mistakes in them. It never talks to a device, and
never builds.
"""
