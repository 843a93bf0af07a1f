"""Stand-ins for devices: SSH servers on loopback, and emulated boards. They show whether a bundle works without
hardware; they never say how fast a device is.
"""
