"""One look for every figure: colours of Okabe and Ito (2008) and Tol's muted scheme, quiet axes, a caption."""

import base64
import io
import textwrap

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

COLOURS = {
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
# for what is no method, such as data or factors, by its place in the figure
OTHERS = ("#009e73", "#e69f00", "#aa4499", "#56b4e9", "#332288", "#117733", "#882255", "#999933")
# drawn by every line that shows a theoretical value: ax.plot(x, y, **THEORY)
THEORY = {"color": COLOURS["theory"], "linestyle": "--", "linewidth": 1.3}


def use_style() -> None:
    """Set matplotlib's defaults for the course; call it once at the top of a notebook."""
    mpl.rc("figure", dpi=100, facecolor="white")
    mpl.rc("figure.constrained_layout", use=True, h_pad=0.07)  # inches; captions keep clear of labels
    mpl.rc("savefig", dpi=100, bbox="tight")
    mpl.rc("axes", facecolor="white", edgecolor="#555555", linewidth=0.8, grid=True, axisbelow=True, labelsize=10)
    mpl.rc("axes", titlesize=11, titlelocation="left", titleweight="bold")
    mpl.rc("axes", prop_cycle=mpl.cycler(color=[c for name, c in COLOURS.items() if name != "theory"]))
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", color="#e6e6e6", linewidth=0.7)
    mpl.rc(("xtick", "ytick"), labelsize=9, color="#555555", labelcolor="#222222")
    mpl.rc("legend", frameon=False, fontsize=9)
    mpl.rc("lines", linewidth=1.8)
    mpl.rc("font", family="DejaVu Sans")  # ships with matplotlib, so figures look alike on every machine
    mpl.rc("mathtext", fontset="cm")


def colour_of(name: str, index: int) -> str:
    """Return the colour of the method that a name begins with, or else, by its place in the figure, another."""
    return COLOURS.get(name.partition(" ")[0], OTHERS[index % len(OTHERS)])


def caption(fig: Figure, text: str) -> Text:
    """Write what is drawn, with n and seeds, under a figure with a constrained layout, wrapped to its width."""
    # about 14.5 characters of 9-point DejaVu Sans to the inch
    lines = textwrap.fill(" ".join(text.split()), max(20, int(14.5 * fig.get_figwidth())))
    return fig.supxlabel(lines, x=0.01, ha="left", fontsize=9, color="#555555")


def show(*figures: Figure, milliseconds: int = 150) -> None:
    """Show a finished figure under the cell, with its caption as the alternative text, and close it.

    Several of one size are the frames of a film, an animated PNG that plays in a loop wherever pictures are shown.
    """
    text = " ".join(figures[0].get_supxlabel().split()) or "figure"
    png = base64.b64encode(palette_png(*figures, milliseconds=milliseconds)).decode()
    display({"image/png": png, "text/plain": text}, raw=True)
    for fig in figures:
        plt.close(fig)


def palette_png(*figures: Figure, milliseconds: int = 150) -> bytes:
    """Return figures, the frames of a film, as a PNG with one palette: a third of the bytes look the same."""
    pictures, compact = [], io.BytesIO()
    for fig in figures:
        canvas = io.BytesIO()
        fig.savefig(canvas, format="png", facecolor="white")
        pictures.append(Image.open(canvas).convert("RGB"))
    if len({picture.size for picture in pictures}) != 1:
        raise ValueError(f"frames must have one size in pixels; got {[picture.size for picture in pictures]}")
    every = np.concatenate([np.asarray(picture) for picture in pictures])
    stack, (width, height) = Image.fromarray(every).quantize(256, dither=Image.Dither.NONE), pictures[0].size
    first, *others = [stack.crop((0, height * i, width, height * (i + 1))) for i in range(len(pictures))]
    film = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0} if others else {}
    first.save(compact, "png", optimize=True, **film)
    return compact.getvalue()
