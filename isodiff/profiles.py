"""Sizes of every notebook at every profile, as data.

A notebook names itself and receives one frozen object: its seed, its device, and how large everything is.
``cpu`` is the committed default (minutes on two cores), ``gpu`` the scale of the papers. No cell branches on
the profile: sizes live here, and ``overrides`` replaces single ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import torch

from isodiff.parameters import check_seed, check_sizes, listing, parse_overrides, resolve_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every notebook is told; each notebook's own class adds its sizes as fields.

    Attributes:
        profile: Name of the profile the sizes come from.
        seed: Seed of every generator in the notebook, 0 ≤ seed < 2³².
        device: Where tensors live.
    """

    profile: str = "cpu"
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SphereSettings(Settings):
    """Sizes of ``02_noise_lives_on_a_sphere``.

    Attributes:
        num_noise: Noise vectors at each dimension.
        num_pairs: Pairs of noise vectors to interpolate between.
        num_images: Images x_0 of each data set; there are 1,797 digits.
        face_resolution: Side of the faces in pixels.
        numbers_at_once: Numbers of noise to hold in memory at a time.
    """

    num_noise: int
    num_pairs: int
    num_images: int
    face_resolution: int
    numbers_at_once: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """Sizes of ``01_s2_toy_autoencoder``.

    Attributes:
        num_seeds: Networks trained with each method.
        sweep_seeds: Other networks, on which the weight of the isometry loss is chosen.
        lambdas: Weights to choose from, ascending.
        max_reconstruction: Largest mean squared reconstruction error of the weight chosen; points have norm 1.
        opening: Angle from the pole to the rim of the cap left out, degrees.
        num_steps: Training steps of each network.
        batch_size: Points of each step.
        width: Hidden units of each layer.
        record_every: Steps between two records of the losses.
        num_repeats: Trainings with estimated traces that differ in their probes only.
        num_pairs: Pairs of points whose distances are compared.
    """

    num_seeds: int
    sweep_seeds: int
    lambdas: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    max_reconstruction: float = 0.01
    opening: float = 60.0
    num_steps: int
    batch_size: int
    width: int = 64
    record_every: int
    num_repeats: int = 5
    num_pairs: int = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceSettings(Settings):
    """Sizes of ``03_trace_without_the_matrix``.

    Attributes:
        matrix_size: Side n of the random matrix whose trace is estimated; the paper's is 256.
        num_doublings: Probe counts are 1, 2, 4, ..., 2 to this power.
        num_repeats: Independent estimates at each probe count.
        ratio_doublings: Rows or probes of the isometry loss are 1, 2, 4, ..., 2 to this power.
        ratio_repeats: Independent losses at each of these.
        resolutions: Sides of the images, multiples of 8, ascending, at which encoder products are timed.
        largest_dense: Side up to which the dense Jacobian is computed as well.
        num_timings: Timed runs of each product; the median counts.
        rows_at_once: Rows of the dense Jacobian that one reverse pass computes.
        oracle_resolution: Side of the images at which the dense Jacobian serves as the truth.
        num_probes: Probes spent on the encoder there.
    """

    matrix_size: int = 256
    num_doublings: int = 10
    num_repeats: int
    ratio_doublings: int = 5
    ratio_repeats: int
    resolutions: tuple[int, ...]
    largest_dense: int
    num_timings: int
    rows_at_once: int
    oracle_resolution: int
    num_probes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningSettings(Settings):
    """Sizes of ``04_isometric_finetuning``.

    Attributes:
        dataset: "faces", "digits", "folder:PATH" or "hub:NAME".
        num_base_steps: Training steps of the base, where none is shipped for the dataset.
        num_live_steps: Steps of each live fine-tuning run.
        batch_size: Images a step.
        lambda_iso: Weight of the isotropy L_iso · rank.
        p: Share of the diffusion steps that is not regularised.
        num_images: Held-out images on which the denoising loss is measured.
        num_jacobian_images: The first of them, on which isotropy is measured.
        num_batches: Batches these are split into, over which intervals are taken.
        num_times: Diffusion steps at which isotropy is measured.
        num_spectra: Images whose Jacobian is computed in full.
        num_samples: Images sampled from each model, at least 25.
        num_ddim_steps: Steps of the sampler.
    """

    dataset: str = "faces"
    num_base_steps: int
    num_live_steps: int
    batch_size: int
    lambda_iso: float = 3e-4
    p: float = 0.5
    num_images: int
    num_jacobian_images: int
    num_batches: int = 8
    num_times: int = 6
    num_spectra: int
    num_samples: int
    num_ddim_steps: int = 50


# notebook name → profile name → sizes
PROFILES: dict[str, dict[str, Settings]] = {
    "02_noise_lives_on_a_sphere": {
        "cpu": SphereSettings(
            num_noise=2_000, num_pairs=100, num_images=1_000, face_resolution=32, numbers_at_once=2**23
        ),
        "gpu": SphereSettings(
            num_noise=20_000, num_pairs=1_000, num_images=1_797, face_resolution=256, numbers_at_once=2**28
        ),
    },
    "01_s2_toy_autoencoder": {
        "cpu": ToySettings(num_seeds=10, sweep_seeds=2, num_steps=1000, batch_size=128, record_every=50),
        "gpu": ToySettings(num_seeds=50, sweep_seeds=10, num_steps=10_000, batch_size=512, record_every=200),
    },
    "03_trace_without_the_matrix": {
        "cpu": TraceSettings(
            num_repeats=300,
            ratio_repeats=4_000,
            resolutions=(16, 24, 32, 40, 64, 128, 256),
            largest_dense=40,
            num_timings=3,
            rows_at_once=64,
            oracle_resolution=16,
            num_probes=512,
        ),
        "gpu": TraceSettings(
            num_repeats=5_000,
            ratio_repeats=50_000,
            resolutions=(16, 24, 32, 48, 64, 128, 256),
            largest_dense=64,
            num_timings=20,
            rows_at_once=256,
            oracle_resolution=32,
            num_probes=4_096,
        ),
    },
    "04_isometric_finetuning": {
        "cpu": FinetuningSettings(
            num_base_steps=600,
            num_live_steps=100,
            batch_size=16,
            num_images=512,
            num_jacobian_images=64,
            num_spectra=2,
            num_samples=64,
        ),
        "gpu": FinetuningSettings(
            num_base_steps=50_000,
            num_live_steps=2_000,
            batch_size=32,
            num_images=4_096,
            num_jacobian_images=1_024,
            num_spectra=16,
            num_samples=1_024,
        ),
    },
}


def settings(
    notebook: str,
    *,
    profile: str = "cpu",
    seed: int = 0,
    device: str = "auto",
    overrides: str = "{}",
    **choices: Any,  # noqa: ANN401 - each is checked against the annotation of the field it replaces
) -> Any:  # noqa: ANN401 - the notebook's own subclass of Settings, whose fields the caller knows
    """Return the frozen settings of one notebook, refusing every value it does not know.

    Args:
        notebook: File name of the notebook without its ending, such as ``"04_isometric_finetuning"``.
        profile: ``"cpu"`` or ``"gpu"``.
        seed: Whole number, 0 ≤ seed < 2³².
        device: ``"auto"`` (CUDA where there is one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        overrides: JSON object that replaces single sizes, such as ``'{"num_steps": 50}'``.
        **choices: Sizes that the notebook offers as parameters of their own.

    Returns:
        An instance of the notebook's own settings class.

    Raises:
        ValueError: For an unknown notebook, profile, device or size, and for a value of the wrong type.
    """
    chosen = _sizes_at(notebook, profile)
    replacing = parse_overrides(overrides)
    if both := sorted(replacing.keys() & choices.keys()):
        raise ValueError(f"{listing(both)}: a parameter of {notebook} itself; set it there, not in overrides")
    return dataclasses.replace(
        chosen,
        profile=profile,
        seed=check_seed(seed),
        device=resolve_device(device),
        **check_sizes(replacing | choices, size_hints(notebook, profile), notebook),
    )


def size_hints(notebook: str, profile: str = "cpu") -> dict[str, Any]:
    """Return the sizes a notebook's settings add to what every notebook is told, each with its annotation."""
    cls = type(_sizes_at(notebook, profile))
    common = {field.name for field in dataclasses.fields(Settings)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name not in common}


def _sizes_at(notebook: str, profile: str) -> Settings:
    by_profile = PROFILES.get(notebook)
    if by_profile is None:
        raise ValueError(f"no notebook is called {notebook!r}; there are {listing(PROFILES)}")
    if profile not in by_profile:
        raise ValueError(f"profile is {profile!r}; {notebook} accepts {listing(by_profile)}")
    return by_profile[profile]
