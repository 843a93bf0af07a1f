"""What a release does on a device: its speed, its memory, and its quality beside the model it came from.

It measures what is installed, and keeps reports. It never installs anything but what a measurement needs.
"""
