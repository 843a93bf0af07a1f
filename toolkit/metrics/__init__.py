"""Figures, predicted and measured: reports and their statistics, quality, footprints, fit plans, speed. The package
computes from numbers that it is given or that lie in files; it never measures anything by itself.
"""
