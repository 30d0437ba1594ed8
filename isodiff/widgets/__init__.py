"""Explorers for JupyterLab and Notebook 7, the last line of a cell; `figure()` draws the same without a kernel."""

from isodiff.widgets.film import DirectionExplorer, LatentTraversal
from isodiff.widgets.sphere import SphereExplorer

__all__ = ["DirectionExplorer", "LatentTraversal", "SphereExplorer"]
