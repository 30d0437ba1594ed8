"""Experiments without a diffusion model of their own: each a function of seed and options to named numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

Values = dict[str, float]


def sphere(seed: int, *, num_steps: int, batch_size: int, opening: float = 60.0, num_pairs: int = 2_000) -> Values:
    """Train autoencoders of the two-sphere with and without the term, with estimated and with exact traces (Fig. 2).

    Args:
        seed: Of weights, points and probes; all networks of one seed share them.
        num_steps: Of training.
        batch_size: Points a step.
        opening: Angle of the cap left out, degrees.
        num_pairs: Pairs of points whose distances are compared.

    Returns:
        ``stress_<method>``, how far latent distances are from proportional to geodesic ones, for reconstruction only,
        ``chart_identity`` (the paper's G = I) and ``stereographic``; and ``isotropy_<traces>``, 2 · L_iso after
        training with estimated and with exact traces. Weights are those of the rule in notebook 01.
    """
    from isodiff import toy

    weights = {
        "reconstruction": (None, 0.0),
        "chart_identity": ("chart_identity", 1.0),
        "stereographic": (_STEREO, 0.1),
    }
    points = toy.sample_sphere((2, num_pairs), opening, torch.Generator().manual_seed(10_000 + seed))
    geodesic = toy.great_circle_distance(*points)
    values = {}
    for traces in ("estimated", "exact"):
        for method, (metric, weight) in weights.items():
            if traces == "exact" and method != _STEREO:
                continue
            networks = toy.Autoencoders([seed])
            history = toy.train(
                networks,
                metric=metric,
                lambda_iso=weight,
                opening=opening,
                num_steps=num_steps,
                batch_size=batch_size,
                traces=traces,
                data_seed=2 * seed,
                probe_seed=2 * seed + 1,
                record_every=num_steps,
            )
            if method == _STEREO:
                values[f"isotropy_{traces}"] = 2 * history.isometry[-1].item()
            if traces == "estimated":
                with torch.no_grad():
                    a, b = (networks.encode(ends[None])[0] for ends in points)
                values[f"stress_{method}"] = toy.distance_stress((a - b).norm(dim=-1), geodesic).item()
    return values


_STEREO = "stereographic"


def trace(seed: int, *, num_repeats: int, size: int = 256, doublings: int = 8) -> Values:
    """Estimate the trace of a Gaussian matrix with 1, 2, 4 … probes (App. A.1, Fig. I).

    Args:
        seed: Of matrix and probes.
        num_repeats: Estimates at each number of probes.
        size: Side of the matrix.
        doublings: The largest number is 2 to this power.

    Returns:
        ``slope`` of log root-mean-square error over log N, −1/2 by theory, and ``error_<N>`` at the ends.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    counts, errors = [2**k for k in range(doublings + 1)], []
    for count in counts:
        probes = torch.randn(num_repeats, count, size, generator=generator, dtype=torch.float64)
        estimates = torch.einsum("rni,ij,rnj->rn", probes, matrix, probes).mean(1)
        errors.append((estimates - matrix.trace()).square().mean().sqrt().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    return {"slope": float(slope), "error_1": errors[0], f"error_{counts[-1]}": errors[-1]}


def shell(seed: int, *, num_images: int, resolution: int, dataset: str = "faces") -> Values:
    """Measure where noisy images lie at t = 500, against the sphere of noise (Sec. 3.1).

    Args:
        seed: Of images and noise.
        num_images: How many.
        resolution: Of the images.
        dataset: As for `isodiff evaluate`.

    Returns:
        ``radius_excess``, mean norm over √(1−ᾱ_t) E‖ε‖, minus 1; ``thickness_excess``, the coefficient of variation of
        the norm over that of pure noise, minus 1.
    """
    from diffusers import DDPMScheduler

    from isodiff.datasets import open_dataset
    from isodiff.metrics.shell import measure_shell

    images = open_dataset(dataset, resolution, seed=seed)
    found = measure_shell(
        images, DDPMScheduler(), num_images=num_images, times=(500,), seed=seed, dataset=dataset
    ).points[0]
    return {"radius_excess": found.ratio - 1, "thickness_excess": found.variation / found.noise_variation - 1}


def cost(seed: int, *, resolution: int, batch_size: int, repeats: int) -> Values:
    """Time the loss of a training step without and with the isometry term, forward and backward.

    Args:
        seed: Of weights, images and probes.
        resolution: Of the images.
        batch_size: Rows.
        repeats: Interleaved runs of each; the median of processor time counts.

    Returns:
        ``dsm_seconds`` and ``term_seconds``, processor time of either alone; ``step_ratio``, a step with the term on
        half of the steps (p = 1/2) over a plain one; and ``row_ratio``, the same with a quarter of the rows.
    """
    from isodiff.diffusion.hspace import encode
    from isodiff.diffusion.pretrained import build_pipeline
    from isodiff.diffusion.process import dsm_loss
    from isodiff.geometry.isometry import isometry_loss

    pipeline = build_pipeline("faces32", resolution=resolution, seed=seed)
    unet, scheduler = pipeline.unet.requires_grad_(True), pipeline.scheduler
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch_size, 3, resolution, resolution, generator=generator)
    t = torch.full((batch_size,), 800)
    quarter = max(1, batch_size // 4)

    def term(rows: int) -> torch.Tensor:
        return isometry_loss(lambda x: encode(unet, x, t[:rows]), x_t[:rows], generator=generator)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "dsm": lambda: dsm_loss(unet, scheduler, x_t, t, torch.randn(x_t.shape, generator=generator)),
        "term": lambda: term(batch_size),
        "quarter": lambda: term(quarter),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first is for warm-up
        for name, loss in ways.items():
            unet.zero_grad()
            started = time.process_time()
            loss().backward()
            if repeat:
                seconds[name].append(time.process_time() - started)
    dsm, whole, part = (statistics.median(seconds[name]) for name in ways)
    return {
        "dsm_seconds": dsm,
        "term_seconds": whole,
        "step_ratio": 1 + whole / dsm / 2,
        "row_ratio": 1 + part / dsm / 2,
    }


PROGRAMS: dict[str, Callable[..., Values]] = {"sphere": sphere, "trace": trace, "shell": shell, "cost": cost}
