"""The part of `isodiff evaluate` that moves: paths between latents, steps along directions, inversion."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from isodiff.geometry import lerp, slerp
from isodiff.metrics.editing import direction_effects
from isodiff.metrics.inversion import inversion_error
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.smoothness import path_smoothness
from isodiff.metrics.truth import path_truth

if TYPE_CHECKING:
    from isodiff.metrics.evaluation import Evaluation
    from isodiff.metrics.measurement import Measurement


def smoothness(run: Evaluation) -> dict[str, Measurement]:
    """Measure how evenly images change along lerp and slerp, as ``step_<what>_<path>``."""
    sizes, generate = run.settings, run.generator(run.settings.fid_steps)
    distance = perceptual_distance("alex", device=sizes.device)
    return {
        f"{name}_{path.__name__}": _sampled(measured, sizes.fid_steps)
        for path in (lerp, slerp)
        for name, measured in path_smoothness(
            generate,
            generate.shape,
            distance,
            num_pairs=sizes.num_truth_pairs,
            num_points=sizes.walk_points,
            path=path,
            batch_size=sizes.batch_size,
            seed=run.seed,
            store=run.store_of(generate),
        ).items()
    }


def straight_walks(run: Evaluation) -> dict[str, Measurement]:
    """Measure the factors along lerp, as ``<what>_lerp``; the family ``truth`` has those along slerp, same pairs."""
    sizes, generate = run.settings, run.generator(run.settings.fid_steps)
    found = path_truth(
        generate,
        generate.shape,
        num_pairs=sizes.num_truth_pairs,
        num_points=sizes.truth_points,
        interpolate=lerp,
        floor=False,
        protocol={"num_steps": sizes.fid_steps},
        batch_size=sizes.batch_size,
        seed=run.seed,
        store=run.store_of(generate),
    )
    return {f"{name}_lerp": measured for name, measured in found.items()}


def directions(run: Evaluation) -> dict[str, Measurement]:
    """Measure what moves along the leading directions of the bottleneck change in faces."""
    sizes, generate = run.settings, run.generator(run.settings.edit_steps)
    return direction_effects(
        generate,
        run.unet,
        k=sizes.num_directions,
        gammas=[*(-gamma for gamma in sizes.edit_gammas), 0, *sizes.edit_gammas],
        num_latents=sizes.num_edited,
        batch_size=sizes.batch_size,
        seed=run.seed,
        store=run.store_of(generate),
    )


def inversion(run: Evaluation) -> dict[str, Measurement]:
    """Measure DDIM inversion over steps, refinements and clipping, as ``<what>_s<steps>_r<refinements>[_clipped]``.

    A scheduler that does not clip is measured as it is, without the last part.
    """
    sizes = run.settings
    images = run.real_images(sizes.num_inverted)
    distances = {"lpips": perceptual_distance("alex", device=sizes.device)}
    schedulers = {"": type(run.scheduler).from_config(run.scheduler.config, clip_sample=False)}
    if run.scheduler.config.get("clip_sample", False):
        schedulers["_clipped"] = run.scheduler
    return {
        f"{name}_s{num_steps}_r{refinements}{suffix}": measured
        for suffix, scheduler in schedulers.items()
        for num_steps in sizes.inversion_steps
        for refinements in sizes.refinements
        for name, measured in inversion_error(
            run.unet,
            scheduler,
            images,
            num_steps,
            distances=distances,
            refinements=refinements,
            batch_size=min(16, sizes.batch_size),
            seed=run.seed,
            store=run.store,
        ).items()
    }


def _sampled(measured: Measurement, num_steps: int) -> Measurement:
    return dataclasses.replace(measured, protocol={**measured.protocol, "num_steps": num_steps})
