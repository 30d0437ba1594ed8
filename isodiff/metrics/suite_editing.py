"""The part of `isodiff evaluate` that moves: paths between latents and images, steps along directions, inversion."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from isodiff.diffusion.noise_level import NoiseLevel
from isodiff.geometry import lerp, slerp
from isodiff.metrics.editing import direction_effects
from isodiff.metrics.interpolation import interpolation_quality
from isodiff.metrics.inversion import inversion_error
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_methods import CLOSED_FORM
from isodiff.metrics.smoothness import path_smoothness
from isodiff.metrics.tangent import encoder_alignment
from isodiff.metrics.truth import path_truth

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def interpolation(run: Evaluation) -> dict[str, Measurement]:
    """Compare methods of interpolation on the same pairs of real images, as ``path_<what>_<method>``."""
    sizes = run.settings
    closed, solved = sizes.num_interpolated, sizes.num_geodesics
    counts = {method: closed if method in CLOSED_FORM else solved for method in sizes.path_methods}
    return _paths(run, sizes.path_share, counts, "")


def noise_levels(run: Evaluation) -> dict[str, Measurement]:
    """Compare some of them at other noise levels τ, as ``path_<what>_<method>_tau<percent>``.

    Of faces, also what the tangent filter I − Ĵ of the model takes for tangents there, as ``filter_alignment_tau…``.
    """
    sizes, measured = run.settings, {}
    for share in sizes.swept_shares:
        counts = dict.fromkeys(sizes.swept_methods, sizes.num_swept)
        measured |= _paths(run, share, counts, f"_tau{round(100 * share)}")
    if run.dataset == "faces":
        for share in sorted({*sizes.swept_shares, sizes.path_share}):
            level = _level(run, share)
            measured[f"filter_alignment_tau{round(100 * share)}"] = encoder_alignment(
                level.filtered,
                level.scheduler,
                level.t,
                run.unet.config.sample_size,
                num_faces=sizes.num_alignment,
                seed=run.seed,
                device=sizes.device,
                protocol={"map": "tangent filter"},
                store=run.store,
            )
    return measured


def _level(run: Evaluation, share: float) -> NoiseLevel:
    scheduler = type(run.scheduler).from_config(run.scheduler.config, clip_sample=False)
    return NoiseLevel(run.unet, scheduler, share=share, num_steps=run.settings.fid_steps)


def _paths(run: Evaluation, share: float, counts: Mapping[str, int], suffix: str) -> dict[str, Measurement]:
    """Measure each method on as many pairs as counted."""
    sizes = run.settings
    images = run.real_images(2 * max(counts.values()))
    level = _level(run, share)
    return {
        f"path_{name}_{method}{suffix}": measured
        for method, count in counts.items()
        for name, measured in interpolation_quality(
            level,
            images[: 2 * count],
            method,
            distance=perceptual_distance("alex", device=sizes.device),
            num_segments=sizes.path_segments,
            faces=run.dataset == "faces",
            seed=run.seed,
            store=run.store,
        ).items()
    }


def _sampled(measured: Measurement, num_steps: int) -> Measurement:
    return dataclasses.replace(measured, protocol={**measured.protocol, "num_steps": num_steps})
