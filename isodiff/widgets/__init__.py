"""Explorers for JupyterLab: drag a slider, see the picture change.

| explorer | what moves |
|---|---|
| `LatentTraversal` | the position on a path between two latents, for each model |
| `DirectionExplorer` | the arc length γ along one direction at a latent, for each model |
| `SphereExplorer` | a point of S² and its image in the stereographic chart |

Each is an ipywidget, so the last line of a cell displays it. Controls are labelled and move by keyboard, *Reset*
restores the beginning, `figure()` draws the same without a kernel, and `move_to(name=value)` moves a control from
code. Needs ipywidgets, from the extra ``notebooks``.
"""

from isodiff.widgets.directions import DirectionExplorer
from isodiff.widgets.sphere import SphereExplorer
from isodiff.widgets.traversal import LatentTraversal

__all__ = ["DirectionExplorer", "LatentTraversal", "SphereExplorer"]
