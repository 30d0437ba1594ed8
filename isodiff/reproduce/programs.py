"""Experiments without a diffusion model of their own: each a function of seed and options to named numbers."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from isodiff import datasets, diffusion, geometry, metrics, toy
from isodiff.reproduce.instruments import controls, image_controls

Values = dict[str, float]


def sphere(seed: int, *, num_steps: int, batch_size: int) -> Values:
    """Train autoencoders of the two-sphere but for a cap of 60°, with estimated and with exact traces (Fig. 2).

    ``stress_<method>`` is Kruskal's, over 2,000 pairs, and ``anisotropy_<traces>`` 2 · L_iso after training.
    """
    ways = {
        ("reconstruction", "estimated"): (None, 0.0),
        ("chart_identity", "estimated"): ("chart_identity", 1.0),  # the paper's G = I
        ("stereographic", "estimated"): ("stereographic", 0.1),
        ("stereographic", "exact"): ("stereographic", 0.1),
    }
    points = toy.sample_sphere((2, 2_000), 60.0, torch.Generator().manual_seed(10_000 + seed))
    values = {}
    for (method, traces), (metric, weight) in ways.items():
        networks, told = toy.Autoencoders([seed]), {"num_steps": num_steps, "record_every": num_steps}
        told |= {"batch_size": batch_size, "opening": 60.0, "data_seed": 2 * seed, "probe_seed": 2 * seed + 1}
        history = toy.train(networks, metric=metric, lambda_iso=weight, traces=traces, **told)
        if method == "stereographic":
            values[f"anisotropy_{traces}"] = 2 * history.isometry[-1].item()
        if traces == "estimated":
            with torch.no_grad():
                a, b = (networks.encode(ends[None])[0] for ends in points)
            stress = toy.distance_stress((a - b).norm(dim=-1), toy.great_circle_distance(*points))
            values[f"stress_{method}"] = stress.item()
    return values


def trace(seed: int, *, num_repeats: int, size: int = 256) -> Values:
    """Estimate a trace with N = 1, 2 … 256 probes (App. A.1, Fig. I): `slope` of log error over log N is −1/2."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    counts, errors = [2**k for k in range(9)], []
    for count in counts:
        probes = torch.randn(num_repeats, count, size, generator=generator, dtype=torch.float64)
        estimates = torch.einsum("rni,ij,rnj->rn", probes, matrix, probes).mean(1)
        errors.append((estimates - matrix.trace()).square().mean().sqrt().item())
    slope = float(np.polyfit(np.log(counts), np.log(errors), 1)[0])
    return {"slope": slope, "error_1": errors[0], "error_256": errors[-1]}


def shell(seed: int, *, num_images: int, resolution: int) -> Values:
    """Measure where noisy faces lie at t = 500 against the sphere of noise: norm and its variation (Sec. 3.1)."""
    from diffusers import DDPMScheduler

    images = datasets.open_dataset("faces", resolution, seed=seed)
    shell_of = metrics.measure_shell(images, DDPMScheduler(), num_images=num_images, times=(500,), seed=seed)
    (found,) = shell_of.points
    return {"radius_excess": found.ratio - 1, "thickness_excess": found.variation / found.noise_variation - 1}


def cost(seed: int, *, resolution: int, batch_size: int, repeats: int) -> Values:
    """Time the losses of a training step, forward and backward: medians of processor time over interleaved repeats.

    Each ``…_ratio`` is of a step with the term at p = 1/2 over a plain one: ``step``; ``row``, the term on a quarter of
    the rows; ``released``, by the route of the authors' code, products with J twice and with Jᵀ once, each on a fresh
    pass of the whole U-Net.
    """
    pipeline = diffusion.build_pipeline("faces32", resolution=resolution, seed=seed)
    unet, scheduler = pipeline.unet.requires_grad_(True), pipeline.scheduler
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch_size, 3, resolution, resolution, generator=generator)
    t = torch.full((batch_size,), 800)

    def term(rows: int) -> torch.Tensor:
        return geometry.isometry_loss(lambda x: diffusion.encode(unet, x, t[:rows]), x_t[:rows], generator=generator)

    def released() -> torch.Tensor:
        def bottleneck(x: torch.Tensor) -> torch.Tensor:
            kept: list[torch.Tensor] = []
            with diffusion.bottleneck_hook(unet, kept.append):
                unet(x, t)
            return kept[0]

        v = geometry.project_to_tangent(torch.randn(x_t.shape, generator=generator), x_t)
        (_, one), (_, other) = (geometry.jvp(bottleneck, x_t, v) for _ in range(2))
        pulled = geometry.project_to_tangent(geometry.vjp(bottleneck, x_t, other)[1], x_t)
        squares = [part.flatten(1).square().sum(1).mean() for part in (one, pulled)]
        return squares[1] / squares[0].square()

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "dsm": lambda: diffusion.dsm_loss(unet, scheduler, x_t, t, torch.randn(x_t.shape, generator=generator)),
        "step": lambda: term(batch_size),
        "row": lambda: term(max(1, batch_size // 4)),
        "released": released,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first is for warm-up
        for name, loss in ways.items():
            unet.zero_grad()
            started = time.process_time()
            loss().backward()
            if repeat:
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = medians.pop("dsm")
    return {"dsm_seconds": plain} | {f"{name}_ratio": 1 + value / plain / 2 for name, value in medians.items()}


PROGRAMS: dict[str, Callable[..., Values]] = {
    "sphere": sphere,
    "trace": trace,
    "shell": shell,
    "cost": cost,
    "controls": controls,
    "image_controls": image_controls,
}
