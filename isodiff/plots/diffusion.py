"""Figures of training runs and of the encoder's geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isodiff.plots.style import COLOURS, THEORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes


def training_curves(
    curves: Mapping[str, Mapping[str, Sequence[float | None]]], quantity: str, ax: Axes, *, smooth: int = 1
) -> Axes:
    """Draw one quantity of several runs against the optimiser step.

    Args:
        curves: for each method, lists "step" and `quantity`, None where there is no value.
        quantity: "dsm" or "isotropy".
        ax: where to draw.
        smooth: width of the running mean, in points; the points themselves stay visible behind it.

    Returns:
        The axes.

    Raises:
        ValueError: another quantity.
    """
    labels = {
        "dsm": r"$L_{\mathrm{dsm}}$ (mean squared error of the noise)",
        "isotropy": r"isotropy $L_{\mathrm{iso}}\cdot$rank",
    }
    if quantity not in labels:
        raise ValueError(f"quantity must be one of {', '.join(labels)}; got {quantity!r}")
    for method, curve in curves.items():
        pairs = [(s, v) for s, v in zip(curve["step"], curve[quantity], strict=True) if v is not None]
        if not pairs:
            continue
        step, value = np.array(pairs, dtype=float).T
        width = min(smooth, len(value))
        ax.plot(
            step,
            value,
            color=COLOURS[method],
            alpha=0.25 if width > 1 else 1,
            lw=1,
            label=None if width > 1 else method,
        )
        if width > 1:
            mean = np.convolve(value, np.ones(width) / width, mode="valid")
            ax.plot(step[width - 1 :], mean, color=COLOURS[method], label=method)
    if quantity == "isotropy":
        ax.axhline(1, **THEORY, label="scaled isometry")
    ax.set_yscale("log")
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(labels[quantity])
    ax.legend()
    return ax


def isotropy_by_step(
    steps: Sequence[int],
    values: Mapping[str, np.ndarray],
    intervals: Mapping[str, np.ndarray],
    ax: Axes,
    *,
    regularised_from: float | None = None,
) -> Axes:
    """Draw the isotropy of X_t → H against t for several models.

    Args:
        steps: diffusion steps t.
        values: for each model, (len(steps),) isotropies.
        intervals: for each model, (len(steps), 2) interval ends.
        ax: where to draw.
        regularised_from: first regularised step, pT; the range from there on is shaded.

    Returns:
        The axes.
    """
    for model, isotropy in values.items():
        low, high = np.asarray(intervals[model]).T
        ax.fill_between(steps, low, high, color=COLOURS[model], alpha=0.2, lw=0)
        ax.plot(steps, isotropy, "o-", color=COLOURS[model], ms=4, label=model)
    if regularised_from is not None:
        ax.axvspan(regularised_from, max(steps), color="0.5", alpha=0.1, lw=0, label="regularised steps")
    ax.axhline(1, **THEORY, label="scaled isometry")
    ax.set_yscale("log")
    ax.set_xlabel("diffusion step $t$")
    ax.set_ylabel(r"isotropy $L_{\mathrm{iso}}\cdot$rank")
    ax.legend()
    return ax


def singular_spectrum(spectra: Mapping[str, np.ndarray], ax: Axes) -> Axes:
    """Draw the singular values of the encoder's Jacobian on the tangent space, divided by their root mean square.

    Args:
        spectra: for each model, (rows, k) singular values in descending order; every row is drawn.
        ax: where to draw.

    Returns:
        The axes; a scaled isometry is the horizontal line at 1.
    """
    for order, (model, rows) in enumerate(spectra.items()):
        for index, sigma in enumerate(np.atleast_2d(rows)):
            relative = sigma / np.sqrt(np.mean(np.square(sigma)))
            ax.plot(
                np.arange(1, len(sigma) + 1),
                relative,
                color=COLOURS[model],
                lw=1.3 if order else 3.5,  # models close to the first are drawn over it and would hide it
                label=model if index == 0 else None,
            )
    ax.axhline(1, **THEORY, label="scaled isometry")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("index $i$ of the singular value")
    ax.set_ylabel(r"$\sigma_i\,/\,\sqrt{\mathrm{mean}\;\sigma^2}$")
    ax.legend()
    return ax
