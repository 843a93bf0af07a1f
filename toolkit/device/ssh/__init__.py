"""Both SSH clients behind one interface: paramiko in this process, and the system's OpenSSH.

Nothing outside this package imports paramiko, and only `internals` names its private parts.
"""
