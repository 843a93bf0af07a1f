"""Measurements of a release on a device: its speed, its memory, and its quality beside the model it came from. The
package keeps reports; it never installs anything but what a measurement needs.
"""
