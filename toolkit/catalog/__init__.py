"""Profiles, targets, recipes, workloads, models and their presets: what is known before any work, as typed values. The
package reads files of the user and of edgephi, and says what is wrong in them. It never talks to a device, and never
builds.
"""
