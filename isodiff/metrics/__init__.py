"""Measurements: each a pure function on arrays, with a driver that samples.

Import the submodule you need; this package imports nothing itself.
"""
