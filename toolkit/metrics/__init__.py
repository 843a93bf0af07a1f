"""Figures, predicted and measured: reports and their statistics, quality, footprints, fit plans, speed.

It computes from numbers that it is given or that lie in reports. It never measures anything by itself.
"""
