"""Everything that changes on a device: files pushed or pulled, runtimes provisioned, releases installed, activated,
removed; and the kit, from which another engine does the same. The package never measures.
"""
