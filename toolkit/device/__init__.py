"""One device, reached and talked to: ways to start a command and put a file there, and a session with its agent.

`device.ssh` holds paramiko and OpenSSH. What a device is asked to do is the business of `deploy`, `bench` and `jobs`.
"""
