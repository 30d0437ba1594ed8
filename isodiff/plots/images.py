"""Images as figures: a grid of samples, a strip along a path.

Images are (N, C, H, W) tensors in [−1, 1] with one channel (grey) or three (RGB). Values beyond the range are
clipped for display, as noise has no bounds; ``span`` widens the range where the noise itself is the subject.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor


def image_grid(
    images: Tensor, ax: Axes, *, columns: int | None = None, title: str | None = None, span: float = 1.0
) -> Axes:
    """Show images side by side, row by row, each pixel a square.

    Args:
        images: (N, C, H, W), C of 1 or 3.
        ax: Where to draw.
        columns: Images in a row; by default the grid is as close to a square as N allows.
        title: What the images are.
        span: Values in [−span, span] become black to white.

    Returns:
        ``ax``.

    Raises:
        ValueError: If the images are not such a tensor, or ``columns`` or ``span`` is not positive.
    """
    if columns is None:
        columns = int(np.ceil(np.sqrt(len(images)))) or 1
    mosaic, _ = _mosaic(images, columns, span)
    ax.imshow(mosaic, interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
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
    """Show images in one row, each with a label underneath: a path, a trajectory, a sweep.

    Args:
        images: (N, C, H, W), C of 1 or 3.
        ax: Where to draw.
        labels: One text per image.
        title: What the strip shows.
        ylabel: Name of the row, to the left.
        span: Values in [−span, span] become black to white.

    Returns:
        ``ax``.

    Raises:
        ValueError: If the images are not such a tensor, the labels are not one per image, or ``span`` is not
            positive.
    """
    mosaic, centres = _mosaic(images, max(1, len(images)), span)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"labels must be one per image, {len(images)}; got {len(labels)}")
    ax.imshow(mosaic, interpolation="nearest")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_yticks([])
    ax.set_xticks(centres if labels is not None else [], labels)
    ax.tick_params(length=0)
    if title is not None:
        ax.set_title(title)
    if ylabel is not None:
        ax.set_ylabel(ylabel, rotation=0, ha="right", va="center")
    return ax


def _mosaic(images: Tensor, columns: int, span: float) -> tuple[np.ndarray, np.ndarray]:
    """Return one RGBA array, transparent between the images, and the centres of the columns in pixels."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be of shape (N, 1 or 3, H, W), N ≥ 1; got {tuple(images.shape)}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if not span > 0:
        raise ValueError(f"span must be positive, got {span}")
    pixels = images.detach().float().cpu().numpy()
    if not np.isfinite(pixels).all():
        raise ValueError(f"images must be finite, got {(~np.isfinite(pixels)).sum()} NaN or infinite values")
    pixels = np.clip((pixels / span + 1) / 2, 0, 1).transpose(0, 2, 3, 1)
    number, height, width, _ = pixels.shape
    gap = max(1, round(width / 16))
    rows = -(-number // columns)
    mosaic = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), dtype=np.float32)
    for index, image in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        mosaic[top : top + height, left : left + width, :3] = image
        mosaic[top : top + height, left : left + width, 3] = 1
    return mosaic, np.arange(columns) * (width + gap) + (width - 1) / 2
