"""Explorers for JupyterLab, to be the last line of a cell: drag a slider, see the picture change.

Controls are labelled and move by keyboard, *Reset* restores the beginning, `figure()` draws the same without a kernel.
"""

from isodiff.widgets.film import DirectionExplorer, LatentTraversal
from isodiff.widgets.sphere import SphereExplorer

__all__ = ["DirectionExplorer", "LatentTraversal", "SphereExplorer"]
