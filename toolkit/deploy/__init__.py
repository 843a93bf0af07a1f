"""What changes on a device: files pushed or pulled, runtimes provisioned, releases installed, activated, removed.

Also the kit, from which another engine does the same. It never measures.
"""
