"""The README's figures, each from records, shipped models or the outputs that notebooks store."""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch
from matplotlib.figure import Figure
from PIL import Image

from isodiff.course_index import figures
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.files import write_whole
from isodiff.geometry import slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measurement import compare
from isodiff.metrics.record import Record
from isodiff.paths import data_directory
from isodiff.plots.images import image_strip
from isodiff.plots.inline import palette_png
from isodiff.plots.intervals import grouped_points
from isodiff.plots.reproduce import verdict_counts
from isodiff.plots.style import THEORY, caption, use_style
from isodiff.reproduce.report import decide

GALLERY = {"01": 0, "02": 0, "03": 0, "04": 4, "05": 4, "06": 0, "07": 3, "08": 4, "09": 0, "10": 4, "11": 0, "12": 0}
"""Notebook → which of its figures stands for it."""

_WIDTH = 480  # pixels of a figure in the table of the course


def write_figures(records: Path, notebooks: Path, output: Path) -> list[Path]:
    """Draw every figure of the README.

    Args:
        records: What `isodiff reproduce` wrote.
        notebooks: The folder of the course, with stored outputs.
        output: Where the PNG files go, at most 100 kB each.

    Returns:
        The files.

    Raises:
        ValueError: If a notebook has not as many figures, or a file would be larger.
    """
    use_style()
    pictures = {"headline": palette_png(headline()), "verdicts": palette_png(verdict_overview(records))}
    for number, index in GALLERY.items():
        (path,) = notebooks.glob(f"{number}_*.ipynb")
        pictures[f"notebook-{number}"] = _thumbnail(path, index)
    files = []
    for name, png in pictures.items():
        if len(png) > 100_000:
            raise ValueError(f"{name}.png has {len(png):,} bytes; at most 100,000 are accepted")
        files.append(output / f"{name}.png")
        write_whole(files[-1], png)
    return files


@torch.no_grad()
def headline(*, pair: int = 0, frames: int = 9) -> Figure:
    """Draw what isometric fine-tuning does to the shipped encoder, to the whole sampler, and to a walk between faces.

    Args:
        pair: Which latents of the stream "headline": 2 · pair and the next.
        frames: Pictures along the path.
    """
    names = ("control", "isometric")
    x_T = draw_latents((3, 32, 32), 2 * pair, 2 * pair + 2, seed=0, stream="headline")
    path = torch.cat([slerp(x_T[:1], x_T[1:], tau) for tau in torch.linspace(0, 1, frames).tolist()])
    records = {name: Record.load(data_directory() / "results" / f"faces32-{name}.json") for name in names}
    maps = {
        "encoder\nt = 600": "isotropy_t600",
        "encoder\nt = 800": "isotropy_t800",
        "noise →\npicture": "map_isotropy",
    }
    layout = [["maps", name] for name in names]
    fig, axes = plt.subplot_mosaic(layout, figsize=(11, 3.5), width_ratios=(1, 1.9))
    groups = {
        title: {name: (m.value, m.interval) for name, m in ((n, r.measurements[key]) for n, r in records.items())}
        for title, key in maps.items()
    }
    grouped_points(groups, axes["maps"], xlabel="map", ylabel="isotropy (1 is an isometry)")
    axes["maps"].set_yscale("log")
    axes["maps"].axhline(1, **THEORY)
    for name in names:
        image_strip(Generator(load_pipeline(f"faces32/{name}"), 20)(path), axes[name], ylabel=name)
    before, after = (records[name].measurements for name in names)
    times = [f"{before[key].value / after[key].value:.0f}" for key in list(maps.values())[:2]]
    apart = compare(after["map_isotropy"], before["map_isotropy"]).is_outside_noise
    caption(
        fig,
        f"Left: isometric fine-tuning makes the encoder of a small model of faces {times[0]} and {times[1]} "
        f"times more isotropic ({before['isotropy_t600'].n} images), the map that makes pictures "
        f"{'a little' if apart else 'not measurably'} ({before['map_isotropy'].n} latents; 95 % intervals, one training"
        f" of each). Right: a great circle of noise, decoded by both; pair {pair}, not chosen.",
    )
    return fig


def verdict_overview(records: Path) -> Figure:
    """Draw how many claims of each group had which verdict."""
    groups: dict[str, Counter[str]] = {}
    for decision in decide(records):
        groups.setdefault(decision.claim.group, Counter())[decision.verdict] += 1
    fig, ax = plt.subplots(figsize=(9, 3.9))
    verdict_counts(groups, ax)
    caption(
        fig, f"{sum(map(sum, (c.values() for c in groups.values())))} claims, by where they are made; from records."
    )
    return fig


def _thumbnail(notebook: Path, index: int) -> bytes:
    pictures = list(figures(nbformat.read(notebook, as_version=4)))
    if not 0 <= index < len(pictures):
        raise ValueError(f"{notebook.name} stores {len(pictures)} figures; there is no number {index}")
    image = Image.open(io.BytesIO(base64.b64decode(pictures[index].png))).convert("RGB")
    image.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.LANCZOS)
    compact = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(compact, "png", optimize=True)
    return compact.getvalue()
