"""One device, reached and talked to: ways to start a command and put a file there, and a session with its agent;
`device.ssh` holds paramiko and OpenSSH. The package never decides what a device is asked to do: `deploy`, `bench` and
`jobs` do.
"""
