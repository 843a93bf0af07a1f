"""Tools for who maintains edgephi: they make what is generated or locked in the repository. No wheel carries them."""
