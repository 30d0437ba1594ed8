"""How much of a model is measured, and on what: sizes by profile, and the images that several metrics share.

All draws are functions of the seed and the number of a unit, so that models measured alike compare in pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from isodiff.datasets import check_images, open_dataset
from isodiff.diffusion import autoencoder_of, image_shape, images_to_latents
from isodiff.metrics.attributes import AttributeClassifier, open_attributes
from isodiff.metrics.fidelity import extract_features
from isodiff.metrics.generator import Generator, draw_latents, model_digest, to_uint8
from isodiff.metrics.measure import Arrays, cached, over_units
from isodiff.metrics.networks import Net, inception_features
from isodiff.metrics.path_length import Mode

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Real images come from another part of an endless data set than the images a model was trained on.
_REAL_SEED = 2**20

Count = Annotated[int, Field(ge=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Numbers = Annotated[tuple[float, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Networks = Annotated[tuple[Net, ...], Field(min_length=1)]
Modes = Annotated[tuple[Mode, ...], Field(min_length=1)]


@pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class Sizes:
    """How much of each metric is measured; steps are DDIM's. The defaults are the profile "cpu"."""

    num_fid_images: Count = 320  # generated images, and as many real ones, behind FID and KID
    fid_steps: Count = 20  # of these images; the paper takes 20
    num_ppl_pairs: Count = 64  # pairs of latents of the perceptual path length
    ppl_steps: Count = 20  # of its images; the paper takes 100
    ppl_epsilon: float = 1e-4  # distance of its two positions, as a share of the path
    ppl_networks: Networks = ("alex", "vgg")  # inside LPIPS; the paper takes the first
    ppl_modes: Modes = ("full", "end")  # where on the path; the paper takes the first
    num_sweep_pairs: Count = 16  # pairs at each epsilon of the sweep; 0 for no sweep
    sweep_epsilons: Numbers = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    num_rtl_pairs: Count = 24  # pairs of latents of the relative trajectory length
    rtl_points: Count = 9  # points of each path, both ends included
    rtl_steps: Count = 20  # at each of which the ratio is measured; the paper takes 20
    spectrum_times: Counts = (200, 600, 800)  # t at which the encoder's Jacobian is measured
    num_spectra: Count = 6  # images whose leading singular values are computed at each
    spectrum_k: Count = 50  # how many singular values
    num_anisotropy: Count = 40  # images on which anisotropy is estimated at each
    num_maps: Count = 3  # latents at which the Jacobian of the whole sampler is measured
    map_k: Count = 10  # its singular values
    map_steps: Count = 10  # its steps
    num_separable: Count = 320  # generated images behind linear separability, FID's first ones; the paper takes 2,000
    num_kept: Count = 160  # the most confident of them, for each attribute; the paper keeps 1,000
    num_truth_pairs: Count = 16  # pairs of latents whose paths are compared with the true factors
    truth_points: Count = 9  # points of each such path, both ends included
    truth_floor: bool = True  # whether the floor of that measurement is measured too, at twice the cost
    num_alignment: Count = 2  # images, and latents, at which tangent spaces are compared
    walk_points: Count = 9  # frames of the paths on which adjacent ones are compared, both ends included
    num_edited: Count = 4  # latents moved along leading directions of the bottleneck
    num_directions: Count = 3  # directions at each
    edit_gammas: Numbers = (1.0, 2.0, 3.0, 4.0)  # lengths of these moves, to both sides, in units of the latents
    edit_steps: Count = 10  # of the moved images
    num_inverted: Count = 8  # real images inverted
    inversion_steps: Counts = (10, 20)  # of inversion and reconstruction, one measurement each
    refinements: Counts = (0, 5)  # fixed-point refinements of a step of the inversion, one measurement each
    path_methods: Names = ("lerp", "slerp", "norm_aware", "noise_diffusion", "density", "tangential")  # interpolations
    num_interpolated: Count = 4  # pairs of real images, for methods in closed form
    num_geodesics: Count = 2  # the first of them, for methods that solve for their path
    path_share: float = 0.6  # noise level of the paths, as a share of the T steps; the papers take 0.6
    path_segments: Count = 8  # of each path; a power of 2, for the density path
    swept_shares: Numbers = (0.4,)  # further noise levels
    swept_methods: Names = ("lerp", "slerp", "tangential")  # methods compared at these
    num_swept: Count = 2  # pairs at each of these
    batch_size: Count = 64  # images at a time


# fmt: off
_RECORD: dict[str, Any] = {
    "num_fid_images": 2_000, "num_ppl_pairs": 200, "ppl_steps": 100, "num_sweep_pairs": 40, "num_rtl_pairs": 100,
    "rtl_points": 17, "num_spectra": 24, "num_anisotropy": 256, "num_maps": 40, "map_steps": 20,
    "num_separable": 2_000, "num_kept": 1_000, "num_truth_pairs": 100, "num_alignment": 16, "walk_points": 13,
    "num_edited": 64, "num_inverted": 32, "inversion_steps": [10, 20, 50, 100], "num_interpolated": 100,
    "num_geodesics": 32, "path_segments": 16, "swept_shares": [0.2, 0.4, 0.8], "num_swept": 16,
}
_GPU: dict[str, Any] = _RECORD | {
    "num_fid_images": 10_000, "num_ppl_pairs": 50_000, "num_sweep_pairs": 1_000, "num_rtl_pairs": 1_000,
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
    changes = dict(changes or {})
    names = Sizes.__dataclass_fields__
    if unknown := sorted(changes.keys() - names.keys()):
        raise ValueError(f"evaluation has no parameter called {', '.join(unknown)}; it accepts {', '.join(names)}")
    try:  # as JSON, which has lists for tuples and whole numbers for floats, and nothing else is converted
        return TypeAdapter(Sizes).validate_json(json.dumps(PROFILES[profile] | changes))
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in problem["loc"])
        raise ValueError(f"{place} is {problem['input']!r}: {problem['msg'].lower()}") from None


class Evaluation:
    """One model already on its device, what it is compared with, and the images that several metrics share."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        sizes: Sizes,
        dataset: str,
        attributes: str | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.pipeline, self.sizes, self.dataset, self.seed, self.device = pipeline, sizes, dataset, seed, device
        self.unet, self.scheduler = pipeline.unet, pipeline.scheduler
        self.autoencoder, self.image_shape = autoencoder_of(pipeline), image_shape(pipeline)
        self.attributes_source = ("faces" if dataset == "faces" else None) if attributes == "auto" else attributes
        self.digest = model_digest(pipeline)

    def samples(self, generate: Generator, count: int) -> np.ndarray:
        """Return the images of the first latents of the stream "samples", uint8 (count, C, H, W)."""

        def compute(start: int, stop: int) -> Arrays:
            latents = draw_latents(generate.shape, start, stop, seed=self.seed, stream="samples")
            with torch.no_grad():
                images = check_images(generate(latents), stop - start)
            return {"images": to_uint8(images).cpu().numpy()}

        return over_units(compute, count, size=self.sizes.batch_size, what="samples", seed=self.seed)["images"]

    def features(self, generate: Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the Inception features of real and of generated images, (n, 2048) each."""
        count, extractor = self.sizes.num_fid_images, inception_features(device=self.device)
        both = to_uint8(self.real_images(count)).numpy(), self.samples(generate, count)
        with cached(model=None):  # the pixels decide, whatever model they are compared with
            real, generated = (extract_features(images, extractor) for images in both)
        return real, generated

    def real_images(self, count: int) -> torch.Tensor:
        """Return the first of this evaluation's real images."""
        return real_images(self.dataset, self.image_shape[1], count, seed=self.seed)

    @torch.no_grad()
    def real_latents(self, count: int) -> torch.Tensor:
        """Return what the model denoises of the same images: themselves, or their latents."""
        images = self.real_images(count).split(self.sizes.batch_size)
        return torch.cat([images_to_latents(self.autoencoder, part).cpu() for part in images])

    @cached_property
    def attributes(self) -> AttributeClassifier:
        """What labels the generated images."""
        return open_attributes(self.attributes_source)


def real_images(dataset: str, resolution: int, count: int, *, seed: int = 0) -> torch.Tensor:
    """Return the real images that an evaluation compares with, (count, C, R, R) in [−1, 1].

    It is a fixed random choice, of which a smaller one is a part; of a stream, which is shuffled by itself, the first.
    """
    real = open_dataset(dataset, resolution, seed=_REAL_SEED + seed)
    if count > len(real):
        raise ValueError(f"{dataset} has {len(real):,} images and {count:,} are asked for; ask for fewer")
    chosen = list(range(count))
    if not getattr(real, "sequential", False):
        chosen = np.random.default_rng([_REAL_SEED, seed]).permutation(len(real))[:count].tolist()
    return torch.stack(list(real.__getitems__(chosen)))
