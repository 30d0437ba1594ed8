"""Grids and strips of images (N, 1 or 3, H, W), clipped to [−1, 1], or to [−span, span] where noise is the subject."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor


def image_grid(images: Tensor, ax: Axes, *, columns: int, title: str) -> Axes:
    """Show images side by side, row by row, each pixel a square."""
    ax.imshow(_mosaic(images, columns)[0], interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def image_strip(
    images: Tensor,
    ax: Axes,
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ylabel: str | None = None,
    span: float = 1.0,
) -> Axes:
    """Show images in one row, with one label under each and the row's name to the left: a path, a sweep."""
    mosaic, centres = _mosaic(images, len(images), span)
    ax.imshow(mosaic, interpolation="nearest")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.set_xticks(centres if labels is not None else [], labels)
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.set_ylabel(ylabel, rotation=0, ha="right", va="center")
    return ax


def _mosaic(images: Tensor, columns: int, span: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return one RGBA array, transparent between the images, and the centres of the columns in pixels."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be of shape (N, 1 or 3, H, W), N ≥ 1; got {tuple(images.shape)}")
    pixels = images.detach().float().cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError(f"images must be finite, got {(~np.isfinite(pixels)).sum()} NaN or infinite values")
    pixels = np.clip((pixels / span + 1) / 2, 0, 1).transpose(0, 2, 3, 1)
    number, height, width, _ = pixels.shape
    gap, rows = max(1, round(width / 16)), -(-number // columns)
    tiles = np.zeros((rows * columns, height + gap, width + gap, 4), dtype=np.float32)
    tiles[:number, :height, :width, :3] = pixels  # grey goes into each channel
    tiles[:number, :height, :width, 3] = 1
    mosaic = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2).reshape(rows * (height + gap), -1, 4)
    return mosaic[:-gap, :-gap], np.arange(columns) * (width + gap) + (width - 1) / 2
