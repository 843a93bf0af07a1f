"""Emulated boards: a place to try a bundle without hardware. They are for correctness, never for speed."""
