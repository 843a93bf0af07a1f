"""What is known before any work: profiles, targets, recipes, workloads, models and their presets, as typed values.

It reads files of the user and of edgephi, and says what is wrong in them. It never talks to a device and never builds.
"""
