"""Figures of the course, one module per topic; every plot function is ``(data, ax) -> ax``.

Import the submodule you need: this package imports nothing, so that matplotlib loads only
when something is drawn.
"""
