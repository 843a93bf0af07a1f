"""Tools for edgephi's maintainers: they make the repository's generated and locked files. No wheel carries them."""
