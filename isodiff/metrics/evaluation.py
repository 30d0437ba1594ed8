"""What `isodiff evaluate` measures of one model: how much, on what, which families of metrics, all in one record."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from tqdm import tqdm

from isodiff.datasets import FACTORS, check_images, open_dataset
from isodiff.diffusion import NoiseLevel, NoiseSchedule, autoencoder_of, image_shape, images_to_latents, open_model
from isodiff.files import check_seed, resolve_device
from isodiff.geometry import lerp, slerp
from isodiff.metrics import jacobians
from isodiff.metrics.attributes import open_attributes
from isodiff.metrics.edits import direction_effects, inversion_error
from isodiff.metrics.fidelity import extract_features, fid, fid_curve, kid, precision_recall
from isodiff.metrics.generator import Generator, draw_latents, model_digest, to_uint8
from isodiff.metrics.interpolation import CLOSED_FORM, interpolation_quality, path_smoothness
from isodiff.metrics.measure import Arrays, Measurement, Record, cached, git_revision, over_units, versions
from isodiff.metrics.networks import Net, inception_features, perceptual_distance
from isodiff.metrics.path_length import Mode, path_lengths
from isodiff.metrics.separability import linear_separability
from isodiff.metrics.trajectory import relative_trajectory_length
from isodiff.metrics.truth import diversity, encoder_alignment, path_truth, tangent_alignment

# Real images come from another part of an endless data set than the images a model was trained on.
_REAL_SEED = 2**20

Count = Annotated[int, Field(ge=0)]
Item = TypeVar("Item")
Some = Annotated[tuple[Item, ...], Field(min_length=1)]


@pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Sizes:
    """How much of each metric is measured; steps are DDIM's. The defaults are the profile "cpu"."""

    num_fid_images: Count = 320  # generated images, and as many real ones, behind FID and KID
    fid_steps: Count = 20  # of these images; the paper takes 20
    num_ppl_pairs: Count = 64  # pairs of latents of the perceptual path length
    ppl_steps: Count = 20  # of its images; the paper takes 100
    ppl_epsilon: float = 1e-4  # distance of its two positions, as a share of the path
    ppl_networks: Some[Net] = ("alex", "vgg")  # inside LPIPS; the paper takes the first
    ppl_modes: Some[Mode] = ("full", "end")  # where on the path; the paper takes the first
    num_rtl_pairs: Count = 24  # pairs of latents of the relative trajectory length
    rtl_points: Count = 9  # points of each path, both ends included
    rtl_steps: Count = 20  # at each of which the ratio is measured; the paper takes 20
    spectrum_times: Some[Count] = (200, 600, 800)  # for the encoder's Jacobian, t of T = 1000, else in proportion
    num_spectra: Count = 6  # images whose leading singular values are computed at each
    spectrum_k: Count = 50  # how many singular values
    condition_ks: tuple[Count, ...] = ()  # k of the condition number σ₁/σ_k, one measurement each; by default that
    num_anisotropy: Count = 40  # images on which anisotropy is estimated at each
    num_maps: Count = 3  # latents at which the Jacobian of the whole sampler is measured
    num_latents: Count = 8  # latents at which it is compared with an isometry of the rank that the data allow
    map_k: Count = 10  # its singular values
    map_steps: Count = 10  # its steps
    num_separable: Count = 320  # generated images behind linear separability, FID's first ones; the paper takes 2,000
    num_kept: Count = 160  # the most confident of them, for each attribute; the paper keeps 1,000
    num_truth_pairs: Count = 16  # pairs of latents whose paths are compared with the true factors
    num_spread: Count = 64  # generated faces, FID's first ones, over which factors spread
    truth_points: Count = 9  # points of each such path, both ends included
    truth_floor: bool = True  # whether the floor of that measurement is measured too, at twice the cost
    num_alignment: Count = 2  # images, and latents, at which tangent spaces are compared
    walk_points: Count = 9  # frames of the paths on which adjacent ones are compared, both ends included
    num_edited: Count = 4  # latents moved along leading directions of the bottleneck
    num_directions: Count = 3  # directions at each
    edit_gammas: Some[float] = (1.0, 2.0, 3.0, 4.0)  # lengths of these moves, to both sides, in units of the latents
    edit_steps: Count = 10  # of the moved images
    num_inverted: Count = 8  # real images inverted
    inversion_steps: Some[Count] = (10, 20)  # of inversion and reconstruction, one measurement each
    refinements: Some[Count] = (0, 5)  # fixed-point refinements of a step of the inversion, one measurement each
    path_methods: Some[str] = ("lerp", "slerp", "norm_aware", "noise_diffusion", "density", "tangential")
    num_interpolated: Count = 4  # pairs of real images between which they interpolate, for methods in closed form
    num_geodesics: Count = 2  # the first of them, for methods that solve for their path
    path_share: float = 0.6  # noise level of the paths, as a share of the T steps; the papers take 0.6
    path_segments: Count = 8  # of each path; a power of 2, for the density path
    swept_shares: Some[float] = (0.4,)  # further noise levels
    swept_methods: Some[str] = ("lerp", "slerp", "tangential")  # methods compared at these
    num_swept: Count = 2  # pairs at each of these
    batch_size: Count = 64  # images at a time


# fmt: off
_RECORD: dict[str, Any] = {
    "num_fid_images": 2_000, "num_ppl_pairs": 200, "ppl_steps": 100, "num_rtl_pairs": 100,
    "rtl_points": 17, "num_spectra": 24, "num_anisotropy": 256, "num_maps": 40, "map_steps": 20,
    "num_latents": 64, "num_spread": 1_000,
    "num_separable": 2_000, "num_kept": 1_000, "num_truth_pairs": 100, "num_alignment": 16, "walk_points": 13,
    "num_edited": 64, "num_inverted": 32, "inversion_steps": [10, 20, 50, 100], "num_interpolated": 100,
    "num_geodesics": 32, "path_segments": 16, "swept_shares": [0.2, 0.4, 0.8], "num_swept": 16,
}
_GPU: dict[str, Any] = _RECORD | {
    "num_fid_images": 10_000, "num_ppl_pairs": 50_000, "num_rtl_pairs": 1_000,
    "rtl_points": 33, "num_spectra": 256, "num_anisotropy": 4_096, "num_maps": 64, "num_truth_pairs": 1_000,
    "truth_points": 33, "num_alignment": 128, "walk_points": 33, "num_edited": 256, "num_inverted": 256,
    "inversion_steps": [10, 20, 50, 100, 200], "num_interpolated": 1_000, "num_geodesics": 256, "num_swept": 256,
    "batch_size": 128,
}
# fmt: on
PROFILES = {"cpu": {}, "record": _RECORD, "gpu": _GPU}  # quick; what data/results/ holds; the scale of the paper


def sizes_of(profile: str, changes: Mapping[str, object] | None = None) -> Sizes:
    """Return the sizes of a profile with single ones replaced, refusing what is unknown or of another type by name."""
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; evaluation accepts {', '.join(PROFILES)}")
    changes, names = dict(changes or {}), Sizes.__dataclass_fields__
    if unknown := sorted(changes.keys() - names.keys()):
        raise ValueError(f"evaluation has no parameter called {', '.join(unknown)}; it accepts {', '.join(names)}")
    try:  # as JSON, which has lists for tuples and whole numbers for floats, and nothing else is converted
        return TypeAdapter(Sizes).validate_json(json.dumps(PROFILES[profile] | changes))
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in problem["loc"])
        raise ValueError(f"{place} is {problem['input']!r}: {problem['msg'].lower()}") from None


@dataclasses.dataclass(eq=False)
class Evaluation:
    """One model already on its device, what it is compared with, and the images that several metrics share."""

    pipeline: DiffusionPipeline
    sizes: Sizes
    dataset: str
    labels: str | None  # what names the attributes of generated images
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        self.unet, self.scheduler = self.pipeline.unet, self.pipeline.scheduler
        self.autoencoder, self.image_shape = autoencoder_of(self.pipeline), image_shape(self.pipeline)
        schedule = NoiseSchedule.of(self.scheduler)
        self.unclipped = dataclasses.replace(schedule, clip=None)
        self.times = [t * schedule.horizon // 1000 for t in self.sizes.spectrum_times]

    def samples(self, generate: Generator, count: int) -> np.ndarray:
        """Return the images of the first latents of the stream "samples", uint8 (count, C, H, W)."""

        def compute(start: int, stop: int) -> Arrays:
            latents = draw_latents(generate.shape, start, stop, seed=self.seed, stream="samples")
            with torch.no_grad():
                images = check_images(generate(latents), stop - start)
            return {"images": to_uint8(images).cpu().numpy()}

        return over_units(compute, count, size=self.sizes.batch_size, what="samples", seed=self.seed)["images"]

    def real_images(self, count: int) -> torch.Tensor:
        """Return the first of this evaluation's real images."""
        return real_images(self.dataset, self.image_shape, count, seed=self.seed)

    def obstacle(self, needs: Iterable[str]) -> str:
        """Return why a model cannot be measured that lacks one of the needs, "" if it can."""
        channels = self.image_shape[0]
        lacks = {
            "attributes": not self.labels and "nothing labels its images; name a classifier as attributes",
            "truth": self.dataset != "faces" and f"the truth is known of 'faces' only, not of {self.dataset!r}",
            "colours": channels not in (1, 3) and f"its images have {channels} channels, and the networks see 1 or 3",
            "pixels": self.autoencoder is not None and "it is defined for models of pixels, and this one has latents",
        }
        return next((lacks[need] for need in needs if lacks[need]), "")


def real_images(dataset: str, shape: int | tuple[int, int, int], count: int, *, seed: int = 0) -> torch.Tensor:
    """Return an evaluation's real images, (count, C, H, W) in [−1, 1]: a fixed random choice, of a stream the first."""
    real = open_dataset(dataset, shape, seed=_REAL_SEED + seed)
    if count > len(real):
        raise ValueError(f"{dataset} has {len(real):,} images and {count:,} are asked for; ask for fewer")
    chosen = list(range(count))
    if not getattr(real, "sequential", False):
        chosen = np.random.default_rng([_REAL_SEED, seed]).permutation(len(real))[:count].tolist()
    return torch.stack(list(real.__getitems__(chosen)))


Measurements = dict[str, Measurement]


@dataclasses.dataclass(frozen=True)
class Family:
    """Some metrics that are measured together."""

    measure: Callable[[Evaluation, Generator | None], Measurements]  # with a sampler where there are steps
    steps: str | None = None  # name of the size that counts its DDIM steps
    needs: tuple[str, ...] = ()  # what a model must have: see `Evaluation.obstacle`


def _distance(run: Evaluation, generate: Generator, metric: Callable = fid) -> Measurements:
    count, extractor = run.sizes.num_fid_images, inception_features(device=run.device)
    both = to_uint8(run.real_images(count)).numpy(), run.samples(generate, count)
    with cached(model=None):  # the pixels decide, whatever model they are compared with
        features = [extract_features(images, extractor) for images in both]
    protocol = {"num_steps": generate.num_steps, "dataset": run.dataset}
    if metric is precision_recall:
        return metric(*features, seed=run.seed, protocol=protocol)
    measured = metric(*features, seed=run.seed, protocol=protocol)
    details = {"curve": fid_curve(*features, seed=run.seed)} if metric is fid else {}
    return {metric.__name__: dataclasses.replace(measured, details=details)}


def _ppl(run: Evaluation, generate: Generator) -> Measurements:
    sizes, measured = run.sizes, {}
    distances = {net: perceptual_distance(net, device=run.device) for net in sizes.ppl_networks}
    what, shared = (generate, generate.shape, distances), {"batch_size": sizes.batch_size // 2, "seed": run.seed}
    for mode in sizes.ppl_modes:
        found = path_lengths(*what, num_pairs=sizes.num_ppl_pairs, epsilon=sizes.ppl_epsilon, mode=mode, **shared)
        measured |= {f"{m.name}_{net.removeprefix('log_')}_{mode}": m for net, m in found.items()}
    return measured


def _mrtl(run: Evaluation, generate: Generator) -> Measurements:
    options = {"num_points": run.sizes.rtl_points, "batch_size": run.sizes.batch_size, "seed": run.seed}
    return {"mrtl": relative_trajectory_length(generate, num_pairs=run.sizes.num_rtl_pairs, **options)}


def _spectra(run: Evaluation, name: str, measure: Callable, *, count: int, **options: object) -> Measurements:
    """Measure X_t → H at every step of the sizes, as ``<name>_t<step>``."""
    images, measured = run.real_images(count).split(run.sizes.batch_size), {}
    with torch.no_grad():
        x_0 = torch.cat([images_to_latents(run.autoencoder, part).cpu() for part in images])
    for t in run.times:
        x_t = jacobians.noisy_images(run.scheduler, x_0, t, seed=run.seed).to(run.device)
        f = jacobians.encoder_map(run.unet, t, dataset=run.dataset)
        measured[f"{name}_t{t}"] = measure(f, x_t, seed=run.seed, **options)
    return measured


def _mcn(run: Evaluation, generate: None) -> Measurements:
    """Measure the condition number σ₁/σ_k, at the first k as ``mcn_t…``, at others as ``mcn_k…_t…``."""
    first, *others = run.sizes.condition_ks or (run.sizes.spectrum_k,)
    measure, count = jacobians.mean_condition_number, run.sizes.num_spectra
    names = {"mcn": first} | {f"mcn_k{k}": k for k in others}
    return {n: m for name, k in names.items() for n, m in _spectra(run, name, measure, count=count, k=k).items()}


def _vor(run: Evaluation, generate: None) -> Measurements:
    forms, measured = {"vor": "sigma", "vor_squared": "sigma_squared", "vor_affine": "affine-invariant"}, {}
    for name, form in forms.items():
        measure = partial(jacobians.map_variance, form=form, k=run.sizes.spectrum_k)
        measured |= _spectra(run, name, measure, count=run.sizes.num_spectra)
    return measured


def _anisotropy(run: Evaluation, generate: None) -> Measurements:
    return _spectra(run, "anisotropy", jacobians.map_anisotropy, count=run.sizes.num_anisotropy)


def _map(run: Evaluation, generate: Generator) -> Measurements:
    x_T = draw_latents(generate.shape, 0, run.sizes.num_maps, seed=run.seed, stream="map").to(run.device)
    f, shared = jacobians.sampler_map(generate), {"seed": run.seed, "batch_size": 4}  # a point's graph takes 0.3 GB
    return {
        "map_anisotropy": jacobians.map_anisotropy(f, x_T, **shared),
        "map_condition": jacobians.mean_condition_number(f, x_T, k=run.sizes.map_k, **shared),
        "map_vor": jacobians.map_variance(f, x_T, k=run.sizes.map_k, **shared),
    }


def _rank(run: Evaluation, generate: Generator) -> Measurements:
    """Measure, latent by latent, how far the whole sampler of faces is from an isometry of rank 10."""
    x_T = draw_latents(generate.shape, 0, run.sizes.num_latents, seed=run.seed, stream="map").to(run.device)
    f = jacobians.sampler_map(generate)
    return {"map_log_anisotropy": jacobians.log_anisotropy(f, x_T, rank=len(FACTORS), seed=run.seed)}


def _spread(run: Evaluation, generate: Generator) -> Measurements:
    return {"factor_spread": diversity(run.samples(generate, run.sizes.num_spread), seed=run.seed)}


def _separability(run: Evaluation, generate: Generator) -> Measurements:
    count, classifier = run.sizes.num_separable, open_attributes(run.labels)
    images = run.samples(generate, count)

    def label(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"p": classifier.probabilities(torch.from_numpy(images[start:stop]).float() / 127.5 - 1)}

    key = {"classifier": classifier.digest, "seed": run.seed}
    p = over_units(label, count, size=run.sizes.batch_size, what="attributes", **key)["p"]
    latents = draw_latents(generate.shape, 0, count, seed=run.seed, stream="samples").flatten(1).numpy()
    facts = {"classifier": f"{type(classifier).__name__} {classifier.digest[:12]}", "num_steps": generate.num_steps}
    options = {"names": classifier.names, "num_kept": run.sizes.num_kept, "seed": run.seed, "facts": facts}
    return {
        f"ls_{kernel}_{way}": linear_separability(latents, p, kernel=kernel, protocol=way, **options)
        for kernel, way in product(("linear", "rbf"), ("training", "cross-validated", "shuffled"))
    }


def _path_truth(run: Evaluation, generate: Generator, along: Callable = slerp) -> Measurements:
    """Measure the factors along slerp, with their floor, or along lerp between the same pairs, as ``<what>_lerp``."""
    sizes, suffix = run.sizes, "" if along is slerp else "_lerp"
    options = {"num_points": sizes.truth_points, "interpolate": along, "floor": along is slerp and sizes.truth_floor}
    options |= {"num_pairs": sizes.num_truth_pairs, "batch_size": sizes.batch_size, "seed": run.seed}
    found = path_truth(generate, generate.shape, protocol={"num_steps": generate.num_steps}, **options)
    return {f"{name}{suffix}": m for name, m in found.items()}


def _alignment(run: Evaluation, generate: None) -> Measurements:
    options = {"num_latents": run.sizes.num_alignment, "num_steps": run.sizes.map_steps, "seed": run.seed}
    return tangent_alignment(run.unet, run.scheduler, t=run.times[len(run.times) // 2], **options)


def _smoothness(run: Evaluation, generate: Generator) -> Measurements:
    """Measure how evenly images change along lerp and slerp, as ``step_<what>_<path>``."""
    sizes, distance = run.sizes, perceptual_distance(device=run.device)
    options = {"num_pairs": sizes.num_truth_pairs, "num_points": sizes.walk_points, "batch_size": sizes.batch_size}
    return {
        f"{name}_{path.__name__}": dataclasses.replace(m, protocol={**m.protocol, "num_steps": generate.num_steps})
        for path in (lerp, slerp)
        for name, m in path_smoothness(generate, generate.shape, distance, path=path, seed=run.seed, **options).items()
    }


def _directions(run: Evaluation, generate: Generator) -> Measurements:
    sizes = run.sizes
    gammas = [*(-gamma for gamma in sizes.edit_gammas), 0, *sizes.edit_gammas]
    options = {"num_latents": sizes.num_edited, "batch_size": sizes.batch_size, "seed": run.seed}
    return direction_effects(generate, run.unet, k=sizes.num_directions, gammas=gammas, **options)


def _inversion(run: Evaluation, generate: None) -> Measurements:
    """Measure DDIM inversion without and, of a scheduler that clips, with clipping, as ``<what>_s…_r…[_clipped]``."""
    images, batch = run.real_images(run.sizes.num_inverted), min(16, run.sizes.batch_size)
    shared = {"distances": {"lpips": perceptual_distance(device=run.device)}, "batch_size": batch, "seed": run.seed}
    clips, measured = NoiseSchedule.of(run.scheduler).clip is not None, {}
    schedulers = {"": run.unclipped, "_clipped": run.scheduler} if clips else {"": run.unclipped}
    for (suffix, scheduler), steps, r in product(schedulers.items(), run.sizes.inversion_steps, run.sizes.refinements):
        found = inversion_error(run.unet, scheduler, images, steps, refinements=r, **shared)
        measured |= {f"{name}_s{steps}_r{r}{suffix}": m for name, m in found.items()}
    return measured


def _interpolation(run: Evaluation, generate: None) -> Measurements:
    """Compare methods of interpolation on the same pairs of real images, as ``path_<what>_<method>``."""
    closed, solved = run.sizes.num_interpolated, run.sizes.num_geodesics
    counts = {method: closed if method in CLOSED_FORM else solved for method in run.sizes.path_methods}
    return _paths(run, run.sizes.path_share, counts)


def _noise_levels(run: Evaluation, generate: None) -> Measurements:
    """Compare methods at other noise levels τ, and of faces the tangent filter I − Ĵ with their tangents."""
    sizes, measured = run.sizes, {}
    for share in sizes.swept_shares:
        counts = dict.fromkeys(sizes.swept_methods, sizes.num_swept)
        measured |= _paths(run, share, counts, f"_tau{round(100 * share)}")
    if run.dataset == "faces":
        for share in sorted({*sizes.swept_shares, sizes.path_share}):
            level = NoiseLevel(run.unet, run.unclipped, share=share, num_steps=run.sizes.fid_steps)
            options = {"num_faces": sizes.num_alignment, "seed": run.seed, "device": run.device}
            options |= {"protocol": {"map": "tangent filter"}}
            found = encoder_alignment(level.filtered, level.schedule, level.t, run.image_shape[-1], **options)
            measured[f"filter_alignment_tau{round(100 * share)}"] = found
    return measured


def _paths(run: Evaluation, share: float, counts: Mapping[str, int], suffix: str = "") -> Measurements:
    """Measure each method on as many pairs as counted."""
    images = run.real_images(2 * max(counts.values()))
    level = NoiseLevel(run.unet, run.unclipped, share=share, num_steps=run.sizes.fid_steps)
    shared = {"distance": perceptual_distance(device=run.device), "num_segments": run.sizes.path_segments}
    shared |= {"faces": run.dataset == "faces", "seed": run.seed}
    measured = {}
    for method, count in counts.items():
        found = interpolation_quality(level, images[: 2 * count], method, **shared)
        measured |= {f"path_{name}_{method}{suffix}": m for name, m in found.items()}
    return measured


# `--metrics` names families: "ppl" gives ppl_alex_full and others, "mcn" one mcn_t600 for each step, and so on.
SUITE: dict[str, Family] = {
    "fid": Family(_distance, "fid_steps", ("colours",)),
    "kid": Family(partial(_distance, metric=kid), "fid_steps", ("colours",)),
    "recall": Family(partial(_distance, metric=precision_recall), "fid_steps", ("colours",)),
    "ppl": Family(_ppl, "ppl_steps", ("colours",)),
    "mrtl": Family(_mrtl, "rtl_steps"),
    "mcn": Family(_mcn),
    "vor": Family(_vor),
    "anisotropy": Family(_anisotropy),
    "map": Family(_map, "map_steps"),
    "rank": Family(_rank, "map_steps", ("truth",)),
    "spread": Family(_spread, "fid_steps", ("truth",)),
    "separability": Family(_separability, "fid_steps", ("attributes",)),
    "truth": Family(_path_truth, "fid_steps", ("truth",)),
    "alignment": Family(_alignment, None, ("truth", "pixels")),
    "smoothness": Family(_smoothness, "fid_steps", ("colours",)),
    "lerp": Family(partial(_path_truth, along=lerp), "fid_steps", ("truth",)),
    "directions": Family(_directions, "edit_steps", ("truth",)),
    "inversion": Family(_inversion, None, ("colours", "pixels")),
    "interpolation": Family(_interpolation, None, ("colours", "pixels")),
    "levels": Family(_noise_levels, None, ("colours", "pixels")),
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

    `metrics` are names in `SUITE`, by default all that apply; `dataset` is where real images come from, as in
    `open_dataset`; `prompt` that of a Stable Diffusion model, held fixed; `attributes` as in `open_attributes`, or None
    (`"auto"`: the faces' own factors where the data set is faces). `profile` names the sizes, and `sizes` replaces
    single ones; records of one `seed` compare in pairs. `cache` and `processes` are those of `cached`.
    """
    chosen_sizes, place = sizes_of(profile, sizes), resolve_device(device)
    chosen = list(SUITE) if metrics is None else list(dict.fromkeys(metrics))
    if unknown := [name for name in chosen if name not in SUITE]:
        raise ValueError(f"no metric is called {', '.join(unknown)}; there are {', '.join(SUITE)}")
    check_seed(seed)
    given = isinstance(model, str | Path)
    name, pipeline = (str(model), open_model(model, prompt)) if given else (type(model).__name__, model)
    for part in (pipeline.unet, autoencoder_of(pipeline)):
        if part is not None:
            part.to(place).eval().requires_grad_(False)
    labels = ("faces" if dataset == "faces" else None) if attributes == "auto" else attributes
    run, digest = Evaluation(pipeline, chosen_sizes, dataset, labels, seed, place), model_digest(pipeline)
    left_out = {metric: reason for metric in chosen if (reason := run.obstacle(SUITE[metric].needs))}
    if metrics is not None and left_out:
        raise ValueError("; ".join(f"{metric} cannot be measured: {reason}" for metric, reason in left_out.items()))
    if "separability" in chosen and "separability" not in left_out:
        open_attributes(labels)  # if there are none, say so before hours of sampling
    measurements: dict[str, Measurement] = {}
    with cached(cache, progress=progress, processes=processes):
        bar = tqdm([metric for metric in chosen if metric not in left_out], disable=not progress)
        for metric in bar:
            bar.set_description(f"{Path(name).name}: {metric}")
            family = SUITE[metric]
            generate = Generator(pipeline, getattr(chosen_sizes, family.steps)) if family.steps else None
            # what is kept is that of the model, or of its sampler with so many steps
            with cached(model=generate.digest if generate else digest):
                measurements |= family.measure(run, generate)
    settings = dataclasses.asdict(chosen_sizes) | ({} if prompt is None else {"prompt": prompt})
    facts = {"model": name, "digest": digest, "dataset": dataset, "profile": profile, "seed": seed}
    where = {"device": place.type, "settings": settings, "versions": versions(), "revision": git_revision()}
    return Record(**facts, **where, measurements=measurements, left_out=left_out)
