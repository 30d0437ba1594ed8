"""What `isodiff evaluate` measures: each entry one family of metrics, with what it needs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from isodiff.metrics import suite_editing
from isodiff.metrics.fidelity import fid, fid_curve, kid
from isodiff.metrics.generator import draw_latents
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_length import epsilon_sweep, path_lengths
from isodiff.metrics.separability import linear_separability
from isodiff.metrics.spectrum import (
    encoder_map,
    map_isotropy,
    mean_condition_number,
    metric_variance,
    noisy_images,
    sampler_map,
)
from isodiff.metrics.trajectory import relative_trajectory_length
from isodiff.metrics.truth import path_truth, tangent_alignment

if TYPE_CHECKING:
    from isodiff.metrics.evaluation import Evaluation
    from isodiff.metrics.measurement import Measurement

Measurements = dict[str, "Measurement"]


@dataclasses.dataclass(frozen=True)
class Family:
    """Some metrics that are measured together.

    Attributes:
        measure: Returns the measurements by name.
        obstacle: Returns why a model cannot be measured so, or an empty string.
    """

    measure: Callable[[Evaluation], Measurements]
    obstacle: Callable[[Evaluation], str] = lambda run: ""


def _fid(run: Evaluation) -> Measurements:
    real, generated = run.features
    count = run.settings.num_fid_images
    sizes = sorted({max(2, count // parts) for parts in (8, 4, 2, 1)})
    measured = fid(real, generated, seed=run.seed, protocol=_fidelity_protocol(run))
    curve = fid_curve(real, generated, sizes, repeats=2, seed=run.seed)
    return {"fid": dataclasses.replace(measured, details={**measured.details, "curve": curve})}


def _kid(run: Evaluation) -> Measurements:
    return {"kid": kid(*run.features, seed=run.seed, protocol=_fidelity_protocol(run))}


def _fidelity_protocol(run: Evaluation) -> dict:
    return {"num_steps": run.settings.fid_steps, "dataset": run.dataset}


def _ppl(run: Evaluation) -> Measurements:
    sizes = run.settings
    distances = {net: perceptual_distance(net, device=sizes.device) for net in sizes.ppl_networks}
    generate = run.generator(sizes.ppl_steps)
    shared = {"batch_size": sizes.batch_size // 2, "seed": run.seed, "store": run.store_of(generate)}
    measured = {
        f"ppl_{net}_{mode}": measurement
        for mode in sizes.ppl_modes
        for net, measurement in path_lengths(
            generate,
            generate.shape,
            distances,
            num_pairs=sizes.num_ppl_pairs,
            epsilon=sizes.ppl_epsilon,
            mode=mode,
            **shared,
        ).items()
    }
    if not (sizes.num_sweep_pairs and "full" in sizes.ppl_modes):
        return measured
    sweep = epsilon_sweep(
        generate, generate.shape, distances, sizes.sweep_epsilons, num_pairs=sizes.num_sweep_pairs, **shared
    )
    for net in distances:
        name = f"ppl_{net}_full"
        details = {**measured[name].details, "epsilon_sweep": sweep[net]}
        measured[name] = dataclasses.replace(measured[name], details=details)
    return measured


def _mrtl(run: Evaluation) -> Measurements:
    sizes = run.settings
    generate = run.generator(sizes.rtl_steps)
    measured = relative_trajectory_length(
        generate,
        num_pairs=sizes.num_rtl_pairs,
        num_points=sizes.rtl_points,
        batch_size=sizes.batch_size,
        seed=run.seed,
        store=run.store_of(generate),
    )
    return {"mrtl": measured}


def _spectra(run: Evaluation, measure: Callable[..., Measurement], count: int, **options: object) -> Measurements:
    """Measure X_t → H at every step of the settings, keyed by the step."""
    images = run.real_latents(count)
    measured = {}
    for t in run.settings.spectrum_times:
        x_t = noisy_images(run.scheduler, images, t, seed=run.seed).to(run.settings.device)
        key = {"map": "encoder", "t": t, "dataset": run.dataset}
        f = encoder_map(run.unet, t)
        measured[f"t{t}"] = measure(f, x_t, key=key, seed=run.seed, store=run.store, **options)
    return measured


def _mcn(run: Evaluation) -> Measurements:
    found = _spectra(run, mean_condition_number, run.settings.num_spectra, k=run.settings.spectrum_k)
    return {f"mcn_{step}": measurement for step, measurement in found.items()}


def _vor(run: Evaluation) -> Measurements:
    forms = {"vor": "sigma", "vor_squared": "sigma_squared", "vor_affine": "affine-invariant"}
    return {
        f"{name}_{step}": measurement
        for name, form in forms.items()
        for step, measurement in _spectra(
            run, metric_variance, run.settings.num_spectra, k=run.settings.spectrum_k, form=form
        ).items()
    }


def _isotropy(run: Evaluation) -> Measurements:
    found = _spectra(run, map_isotropy, run.settings.num_isotropy)
    return {f"isotropy_{step}": measurement for step, measurement in found.items()}


def _map(run: Evaluation) -> Measurements:
    sizes = run.settings
    generate = run.generator(sizes.map_steps)
    x_T = draw_latents(generate.shape, 0, sizes.num_maps, seed=run.seed, stream="map").to(sizes.device)
    key = {"map": "sampler", "num_steps": sizes.map_steps}
    shared = {"key": key, "seed": run.seed, "batch_size": 4, "store": run.store}  # a point's graph takes 0.3 GB
    f = sampler_map(generate)
    return {
        "map_isotropy": map_isotropy(f, x_T, **shared),
        "map_condition": mean_condition_number(f, x_T, k=sizes.map_k, **shared),
        "map_vor": metric_variance(f, x_T, k=sizes.map_k, **shared),
    }


def _separability(run: Evaluation) -> Measurements:
    sizes = run.settings
    count, generate = sizes.num_separable, run.generator(sizes.fid_steps)
    images = run.samples(count, sizes.fid_steps)
    classifier = run.attributes

    def label(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"p": classifier.probabilities(torch.from_numpy(images[start:stop]).float() / 127.5 - 1)}

    key = {"classifier": classifier.digest, "num_steps": sizes.fid_steps, "seed": run.seed, "version": 1}
    p = run.store.chunks(label, count, size=sizes.batch_size, what="attributes", **key)["p"]
    latents = draw_latents(generate.shape, 0, count, seed=run.seed, stream="samples").flatten(1).numpy()
    return {
        f"ls_{kernel}_{protocol}": linear_separability(
            latents,
            p,
            names=classifier.names,
            num_kept=sizes.num_kept,
            kernel=kernel,
            protocol=protocol,
            on_single_class="skip",
            seed=run.seed,
            facts={"classifier": f"{type(classifier).__name__} {classifier.digest[:12]}", "num_steps": sizes.fid_steps},
            store=run.store,
        )
        for kernel in ("linear", "rbf")
        for protocol in ("training", "cross-validated", "shuffled")
    }


def _truth(run: Evaluation) -> Measurements:
    sizes = run.settings
    generate = run.generator(sizes.fid_steps)
    return path_truth(
        generate,
        generate.shape,
        num_pairs=sizes.num_truth_pairs,
        num_points=sizes.truth_points,
        floor=sizes.truth_floor,
        protocol={"num_steps": sizes.fid_steps},
        batch_size=sizes.batch_size,
        seed=run.seed,
        store=run.store_of(generate),
    )


def _alignment(run: Evaluation) -> Measurements:
    sizes = run.settings
    return tangent_alignment(
        run.unet,
        run.scheduler,
        num_latents=sizes.num_alignment,
        t=sizes.spectrum_times[len(sizes.spectrum_times) // 2],
        num_steps=sizes.map_steps,
        seed=run.seed,
        store=run.store,
    )


def _lacks_attributes(run: Evaluation) -> str:
    return "" if run.attributes_source else "nothing labels its images; name a classifier as attributes"


def _lacks_truth(run: Evaluation) -> str:
    return "" if run.dataset == "faces" else f"the truth is known of 'faces' only, not of {run.dataset!r}"


def _latent(run: Evaluation) -> str:
    return "" if run.autoencoder is None else "it is defined for models of pixels, and this one has latents"


def _wrong_channels(run: Evaluation) -> str:
    channels = run.image_shape[0]
    return "" if channels in (1, 3) else f"its images have {channels} channels, and the networks see 1 or 3"


SUITE: dict[str, Family] = {
    "fid": Family(_fid, _wrong_channels),
    "kid": Family(_kid, _wrong_channels),
    "ppl": Family(_ppl, _wrong_channels),
    "mrtl": Family(_mrtl),
    "mcn": Family(_mcn),
    "vor": Family(_vor),
    "isotropy": Family(_isotropy),
    "map": Family(_map),
    "separability": Family(_separability, _lacks_attributes),
    "truth": Family(_truth, _lacks_truth),
    "alignment": Family(_alignment, lambda run: _lacks_truth(run) or _latent(run)),
    "smoothness": Family(suite_editing.smoothness, _wrong_channels),
    "lerp": Family(suite_editing.straight_walks, _lacks_truth),
    "directions": Family(suite_editing.directions, _lacks_truth),
    "inversion": Family(suite_editing.inversion, lambda run: _wrong_channels(run) or _latent(run)),
    "interpolation": Family(suite_editing.interpolation, lambda run: _wrong_channels(run) or _latent(run)),
    "levels": Family(suite_editing.noise_levels, lambda run: _wrong_channels(run) or _latent(run)),
}
"""The metrics of `isodiff evaluate`, by the name to ask for them; several may come of one name."""
