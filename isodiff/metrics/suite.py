"""What `isodiff evaluate` measures: families of metrics by name, and all of them for one model, in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from isodiff.diffusion import NoiseLevel, autoencoder_of, open_model
from isodiff.files import check_seed, resolve_device
from isodiff.geometry import lerp, slerp
from isodiff.metrics.edits import direction_effects, inversion_error
from isodiff.metrics.evaluation import Evaluation, sizes_of
from isodiff.metrics.fidelity import fid, fid_curve, kid
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.interpolation import CLOSED_FORM, interpolation_quality, path_smoothness
from isodiff.metrics.jacobians import (
    encoder_map,
    map_anisotropy,
    map_variance,
    mean_condition_number,
    noisy_images,
    sampler_map,
)
from isodiff.metrics.measure import Measurement, cached, over_units
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_length import Distance, epsilon_sweep, path_lengths
from isodiff.metrics.record import Record, git_revision, versions
from isodiff.metrics.separability import linear_separability
from isodiff.metrics.tangents import encoder_alignment, tangent_alignment
from isodiff.metrics.trajectory import relative_trajectory_length
from isodiff.metrics.truth import path_truth

if TYPE_CHECKING:
    from accelerate import PartialState
    from diffusers import DiffusionPipeline, SchedulerMixin

Measurements = dict[str, Measurement]


@dataclasses.dataclass(frozen=True)
class Family:
    """Some metrics that are measured together."""

    measure: Callable[[Evaluation, Generator | None], Measurements]  # with a sampler where there are steps
    steps: str | None = None  # name of the size that counts its DDIM steps
    obstacle: Callable[[Evaluation], str] = lambda run: ""  # why a model cannot be measured so, if it cannot


def _fid(run: Evaluation, generate: Generator) -> Measurements:
    real, generated = run.features(generate)
    protocol = {"num_steps": generate.num_steps, "dataset": run.dataset}
    measured = fid(real, generated, seed=run.seed, protocol=protocol)
    return {"fid": dataclasses.replace(measured, details={"curve": fid_curve(real, generated, seed=run.seed)})}


def _kid(run: Evaluation, generate: Generator) -> Measurements:
    protocol = {"num_steps": generate.num_steps, "dataset": run.dataset}
    return {"kid": kid(*run.features(generate), seed=run.seed, protocol=protocol)}


def _ppl(run: Evaluation, generate: Generator) -> Measurements:
    sizes = run.sizes
    distances = {net: perceptual_distance(net, device=run.device) for net in sizes.ppl_networks}
    shared = {"batch_size": sizes.batch_size // 2, "seed": run.seed}
    measured = {}
    for mode in sizes.ppl_modes:
        options = shared | {"num_pairs": sizes.num_ppl_pairs, "epsilon": sizes.ppl_epsilon, "mode": mode}
        found = path_lengths(generate, generate.shape, distances, **options)
        measured |= {f"ppl_{net}_{mode}": m for net, m in found.items()}
    if sizes.num_sweep_pairs and "full" in sizes.ppl_modes:
        count = sizes.num_sweep_pairs
        swept = epsilon_sweep(generate, generate.shape, distances, sizes.sweep_epsilons, num_pairs=count, **shared)
        for net in distances:
            measured[f"ppl_{net}_full"].details["epsilon_sweep"] = swept[net]
    return measured


def _mrtl(run: Evaluation, generate: Generator) -> Measurements:
    options = {"num_pairs": run.sizes.num_rtl_pairs, "num_points": run.sizes.rtl_points}
    batch = {"batch_size": run.sizes.batch_size, "seed": run.seed}
    return {"mrtl": relative_trajectory_length(generate, **options, **batch)}


def _spectra(run: Evaluation, name: str, measure: Callable, *, count: int, **options: object) -> Measurements:
    """Measure X_t → H at every step of the sizes, as ``<name>_t<step>``."""
    images, measured = run.real_latents(count), {}
    for t in run.sizes.spectrum_times:
        x_t = noisy_images(run.scheduler, images, t, seed=run.seed).to(run.device)
        key = {"map": "encoder", "t": t, "dataset": run.dataset}
        measured[f"{name}_t{t}"] = measure(encoder_map(run.unet, t), x_t, key=key, seed=run.seed, **options)
    return measured


def _mcn(run: Evaluation, generate: None) -> Measurements:
    return _spectra(run, "mcn", mean_condition_number, count=run.sizes.num_spectra, k=run.sizes.spectrum_k)


def _vor(run: Evaluation, generate: None) -> Measurements:
    forms = {"vor": "sigma", "vor_squared": "sigma_squared", "vor_affine": "affine-invariant"}
    options = {"count": run.sizes.num_spectra, "k": run.sizes.spectrum_k}
    found = [_spectra(run, name, map_variance, form=form, **options) for name, form in forms.items()]
    return {name: measured for each in found for name, measured in each.items()}


def _map(run: Evaluation, generate: Generator) -> Measurements:
    x_T = draw_latents(generate.shape, 0, run.sizes.num_maps, seed=run.seed, stream="map").to(run.device)
    f, shared = sampler_map(generate), {"seed": run.seed, "batch_size": 4}  # a point's graph takes 0.3 GB
    return {
        "map_anisotropy": map_anisotropy(f, x_T, **shared),
        "map_condition": mean_condition_number(f, x_T, k=run.sizes.map_k, **shared),
        "map_vor": map_variance(f, x_T, k=run.sizes.map_k, **shared),
    }


def _separability(run: Evaluation, generate: Generator) -> Measurements:
    count, classifier = run.sizes.num_separable, run.attributes
    images = run.samples(generate, count)

    def label(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"p": classifier.probabilities(torch.from_numpy(images[start:stop]).float() / 127.5 - 1)}

    key = {"classifier": classifier.digest, "seed": run.seed}
    p = over_units(label, count, size=run.sizes.batch_size, what="attributes", **key)["p"]
    latents = draw_latents(generate.shape, 0, count, seed=run.seed, stream="samples").flatten(1).numpy()
    facts = {"classifier": f"{type(classifier).__name__} {classifier.digest[:12]}", "num_steps": generate.num_steps}
    options = {"names": classifier.names, "num_kept": run.sizes.num_kept, "on_single_class": "skip", "seed": run.seed}
    ways = [(kernel, way) for kernel in ("linear", "rbf") for way in ("training", "cross-validated", "shuffled")]
    return {
        f"ls_{kernel}_{way}": linear_separability(latents, p, kernel=kernel, protocol=way, facts=facts, **options)
        for kernel, way in ways
    }


def _path_truth(run: Evaluation, generate: Generator, along: Callable = slerp) -> Measurements:
    """Measure the factors along slerp, with their floor, or along lerp between the same pairs, as ``<what>_lerp``."""
    sizes, protocol = run.sizes, {"num_steps": generate.num_steps}
    options = {"num_points": sizes.truth_points, "interpolate": along, "batch_size": sizes.batch_size, "seed": run.seed}
    floor, suffix = along is slerp and sizes.truth_floor, "" if along is slerp else "_lerp"
    options |= {"num_pairs": sizes.num_truth_pairs, "protocol": protocol, "floor": floor}
    return {f"{name}{suffix}": m for name, m in path_truth(generate, generate.shape, **options).items()}


def _alignment(run: Evaluation, generate: None) -> Measurements:
    middle = run.sizes.spectrum_times[len(run.sizes.spectrum_times) // 2]
    options = {"num_latents": run.sizes.num_alignment, "num_steps": run.sizes.map_steps, "seed": run.seed}
    return tangent_alignment(run.unet, run.scheduler, t=middle, **options)


def _smoothness(run: Evaluation, generate: Generator) -> Measurements:
    """Measure how evenly images change along lerp and slerp, as ``step_<what>_<path>``."""
    counts = {"num_pairs": run.sizes.num_truth_pairs, "num_points": run.sizes.walk_points}
    batch, distance = {"batch_size": run.sizes.batch_size, "seed": run.seed}, _lpips(run)
    return {
        f"{name}_{path.__name__}": dataclasses.replace(m, protocol={**m.protocol, "num_steps": generate.num_steps})
        for path in (lerp, slerp)
        for name, m in path_smoothness(generate, generate.shape, distance, path=path, **counts, **batch).items()
    }


def _directions(run: Evaluation, generate: Generator) -> Measurements:
    """Measure what moves along the leading directions of the bottleneck change in faces."""
    sizes = run.sizes
    gammas = [*(-gamma for gamma in sizes.edit_gammas), 0, *sizes.edit_gammas]
    options = {"k": sizes.num_directions, "gammas": gammas, "num_latents": sizes.num_edited}
    return direction_effects(generate, run.unet, batch_size=sizes.batch_size, seed=run.seed, **options)


def _inversion(run: Evaluation, generate: None) -> Measurements:
    """Measure DDIM inversion without and, of a scheduler that clips, with clipping, as ``<what>_s…_r…[_clipped]``."""
    images, batch = run.real_images(run.sizes.num_inverted), min(16, run.sizes.batch_size)
    shared = {"distances": {"lpips": _lpips(run)}, "batch_size": batch, "seed": run.seed}
    schedulers, measured = {"": _unclipped(run)}, {}
    if run.scheduler.config.get("clip_sample"):
        schedulers["_clipped"] = run.scheduler
    for (suffix, scheduler), steps, r in product(schedulers.items(), run.sizes.inversion_steps, run.sizes.refinements):
        found = inversion_error(run.unet, scheduler, images, steps, refinements=r, **shared)
        measured |= {f"{name}_s{steps}_r{r}{suffix}": m for name, m in found.items()}
    return measured


def _interpolation(run: Evaluation, generate: None) -> Measurements:
    """Compare methods of interpolation on the same pairs of real images, as ``path_<what>_<method>``."""
    closed, solved = run.sizes.num_interpolated, run.sizes.num_geodesics
    counts = {method: closed if method in CLOSED_FORM else solved for method in run.sizes.path_methods}
    return _paths(run, run.sizes.path_share, counts, "")


def _noise_levels(run: Evaluation, generate: None) -> Measurements:
    """Compare some of them at other noise levels τ, as ``path_<what>_<method>_tau<percent>``.

    Of faces, also what the tangent filter I − Ĵ of the model takes for tangents there, as ``filter_alignment_tau…``.
    """
    sizes, measured = run.sizes, {}
    for share in sizes.swept_shares:
        counts = dict.fromkeys(sizes.swept_methods, sizes.num_swept)
        measured |= _paths(run, share, counts, f"_tau{round(100 * share)}")
    if run.dataset == "faces":
        for share in sorted({*sizes.swept_shares, sizes.path_share}):
            level = _level(run, share)
            where = level.filtered, level.scheduler, level.t, run.unet.config.sample_size
            options = {"num_faces": sizes.num_alignment, "seed": run.seed, "device": run.device}
            found = encoder_alignment(*where, protocol={"map": "tangent filter"}, **options)
            measured[f"filter_alignment_tau{round(100 * share)}"] = found
    return measured


def _lpips(run: Evaluation) -> Distance:
    return perceptual_distance(device=run.device)


def _unclipped(run: Evaluation) -> SchedulerMixin:
    return type(run.scheduler).from_config(run.scheduler.config, clip_sample=False)


def _level(run: Evaluation, share: float) -> NoiseLevel:
    return NoiseLevel(run.unet, _unclipped(run), share=share, num_steps=run.sizes.fid_steps)


def _paths(run: Evaluation, share: float, counts: Mapping[str, int], suffix: str) -> Measurements:
    """Measure each method on as many pairs as counted."""
    images, level, distance = run.real_images(2 * max(counts.values())), _level(run, share), _lpips(run)
    shared = {"num_segments": run.sizes.path_segments, "faces": run.dataset == "faces", "seed": run.seed}
    measured = {}
    for method, count in counts.items():
        found = interpolation_quality(level, images[: 2 * count], method, distance=distance, **shared)
        measured |= {f"path_{name}_{method}{suffix}": m for name, m in found.items()}
    return measured


def _lacks_attributes(run: Evaluation) -> str:
    return "" if run.attributes_source else "nothing labels its images; name a classifier as attributes"


def _lacks_truth(run: Evaluation) -> str:
    return "" if run.dataset == "faces" else f"the truth is known of 'faces' only, not of {run.dataset!r}"


def _has_latents(run: Evaluation) -> str:
    return "" if run.autoencoder is None else "it is defined for models of pixels, and this one has latents"


def _unseen(run: Evaluation) -> str:
    channels = run.image_shape[0]
    return "" if channels in (1, 3) else f"its images have {channels} channels, and the networks see 1 or 3"


# `--metrics` names families: "ppl" gives ppl_alex_full and others, "mcn" one mcn_t600 for each step, and so on.
SUITE: dict[str, Family] = {
    "fid": Family(_fid, "fid_steps", _unseen),
    "kid": Family(_kid, "fid_steps", _unseen),
    "ppl": Family(_ppl, "ppl_steps", _unseen),
    "mrtl": Family(_mrtl, "rtl_steps"),
    "mcn": Family(_mcn),
    "vor": Family(_vor),
    "anisotropy": Family(lambda run, _: _spectra(run, "anisotropy", map_anisotropy, count=run.sizes.num_anisotropy)),
    "map": Family(_map, "map_steps"),
    "separability": Family(_separability, "fid_steps", _lacks_attributes),
    "truth": Family(_path_truth, "fid_steps", _lacks_truth),
    "alignment": Family(_alignment, None, lambda run: _lacks_truth(run) or _has_latents(run)),
    "smoothness": Family(_smoothness, "fid_steps", _unseen),
    "lerp": Family(partial(_path_truth, along=lerp), "fid_steps", _lacks_truth),
    "directions": Family(_directions, "edit_steps", _lacks_truth),
    "inversion": Family(_inversion, None, lambda run: _unseen(run) or _has_latents(run)),
    "interpolation": Family(_interpolation, None, lambda run: _unseen(run) or _has_latents(run)),
    "levels": Family(_noise_levels, None, lambda run: _unseen(run) or _has_latents(run)),
}


def evaluate(
    model: str | Path | DiffusionPipeline,
    metrics: Iterable[str] | None = None,
    *,
    dataset: str = "faces",
    prompt: str | None = None,
    attributes: str | None = "auto",
    profile: str = "cpu",
    seed: int = 0,
    device: str = "auto",
    sizes: Mapping[str, object] | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
    processes: PartialState | None = None,
) -> Record:
    """Measure one model, what `load_pipeline` takes or a pipeline; the record says what does not apply to it.

    `metrics` are names in `SUITE`, by default all that apply; `dataset` is where the real images come from, `"faces"`,
    `"digits"`, `"folder:PATH"` or `"hub:NAME"`; `prompt` that of a Stable Diffusion model, held fixed; `attributes`
    what labels generated images, `"faces"`, a folder that `isodiff train-attributes` wrote, or None (`"auto"`: the
    faces' own factors where the data set is faces). `profile` names the sizes, and `sizes` replaces single ones;
    records of one `seed` compare in pairs. `cache` is a folder that keeps finished work; `processes` share it there,
    see `cached`, and all return the same record.
    """
    chosen_sizes, place = sizes_of(profile, sizes), resolve_device(device)
    chosen = list(SUITE) if metrics is None else list(dict.fromkeys(metrics))
    if unknown := [name for name in chosen if name not in SUITE]:
        raise ValueError(f"no metric is called {', '.join(unknown)}; there are {', '.join(SUITE)}")
    check_seed(seed)
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    pipeline = open_model(model, prompt) if isinstance(model, str | Path) else model
    for part in (pipeline.unet, autoencoder_of(pipeline)):
        if part is not None:
            part.to(place).eval().requires_grad_(False)
    with cached(cache, progress=progress, processes=processes):
        run = Evaluation(pipeline, chosen_sizes, dataset, attributes, seed, place)
        left_out = {metric: reason for metric in chosen if (reason := SUITE[metric].obstacle(run))}
        if metrics is not None and left_out:
            raise ValueError("; ".join(f"{metric} cannot be measured: {reason}" for metric, reason in left_out.items()))
        if "separability" in chosen and "separability" not in left_out:
            run.attributes  # noqa: B018 - if there are none, say so before hours of sampling
        measurements: dict[str, Measurement] = {}
        bar = tqdm([metric for metric in chosen if metric not in left_out], disable=not progress)
        for metric in bar:
            bar.set_description(f"{Path(name).name}: {metric}")
            family = SUITE[metric]
            generate = Generator(pipeline, getattr(chosen_sizes, family.steps)) if family.steps else None
            # what is kept is that of the model, or of its sampler with so many steps
            with cached(model=generate.digest if generate else run.digest):
                measurements |= family.measure(run, generate)
    settings = dataclasses.asdict(run.sizes) | ({} if prompt is None else {"prompt": prompt})
    facts = {"model": name, "digest": run.digest, "dataset": dataset, "profile": profile, "seed": seed}
    where = {"device": place.type, "settings": settings, "versions": versions(), "revision": git_revision()}
    return Record(**facts, **where, measurements=measurements, left_out=left_out)
