"""Both SSH clients behind one interface: paramiko in this process, and the system's OpenSSH.

Besides this package only the embedded server of `toolkit.emulate` imports paramiko, and only `internals` names
paramiko's private parts.
"""
