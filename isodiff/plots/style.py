"""One look for every figure of the course: a colour per method, quiet axes, a caption with n and seeds.

The colours are those of Okabe and Ito (2008) and of Tol's muted scheme, told apart under the common forms of
colour blindness; theory is always dashed black.
"""

from __future__ import annotations

import textwrap
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

COLOURS = MappingProxyType(
    {
        "base": "#7f7f7f",
        "control": "#0072b2",
        "isometric": "#d55e00",
        "euclidean": "#e69f00",
        "chart_identity": "#aa4499",
        "stereographic": "#009e73",
        "lerp": "#56b4e9",
        "slerp": "#332288",
        "tangential": "#aa3344",
        "density": "#999933",
        "norm_aware": "#99ddcc",
        "noise_diffusion": "#eecc66",
        "theory": "#000000",
    }
)

# drawn by every line that shows a theoretical value: ax.plot(x, y, **THEORY)
THEORY = MappingProxyType({"color": COLOURS["theory"], "linestyle": "--", "linewidth": 1.3})


def use_style() -> None:
    """Set matplotlib's defaults for the course; call it once at the top of a notebook."""
    mpl.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.07,  # inches; captions keep clear of labels
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "axes.edgecolor": "#555555",
            "axes.linewidth": 0.8,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "xtick.labelcolor": "#222222",
            "ytick.labelcolor": "#222222",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
            "font.family": "DejaVu Sans",  # ships with matplotlib, so figures look alike on every machine
            "mathtext.fontset": "cm",
            "axes.prop_cycle": mpl.cycler(color=[c for name, c in COLOURS.items() if name != "theory"]),
        }
    )


def caption(fig: Figure, text: str) -> Text:
    """Write a caption under a figure: what is drawn, with n and seeds.

    Args:
        fig: Figure with a constrained layout, which keeps the axes clear of the caption.
        text: One or two sentences; wrapped to the figure's width.

    Returns:
        The caption's text artist.

    Raises:
        ValueError: If the text is empty.
    """
    if not text.strip():
        raise ValueError(f"caption got {text!r}; say what is drawn, with n and seeds")
    # about 14.5 characters of 9-point DejaVu Sans to the inch
    lines = textwrap.fill(" ".join(text.split()), max(20, int(14.5 * fig.get_figwidth())))
    return fig.supxlabel(lines, x=0.01, ha="left", fontsize=9, color="#555555")
