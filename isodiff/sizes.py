"""What each notebook can be told: one frozen dataclass each, every size explained.

The values at each profile are in `isodiff.profiles`; what an evaluation can be told is in `isodiff.sizes_evaluation`.
"""

from __future__ import annotations

import dataclasses

import torch


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsSettings(Settings):
    """Sizes of ``05_metrics``: of what runs live, beside the records that come with the course.

    Attributes:
        num_images: Images in each of the three sets that FID compares.
        num_repeats: Random subsets at each smaller size.
        num_path_pairs: Pairs of latents of the perceptual path length.
        epsilons: Its steps, descending.
        num_rtl_pairs: Pairs of latents of the relative trajectory length.
        rtl_points: Points of each path, both ends included.
        num_ddim_steps: Steps of the sampler.
        num_spectra: Images at which leading singular values are computed.
        spectrum_k: How many of them.
        num_separable: Latents given to support vector machines.
        path_frames: Frames of the path that is shown with its factors.
        num_experiments: Repeated experiments behind the coverage of an interval.
        num_checked: Pairs that are measured again and compared with the record.
    """

    num_images: int
    num_repeats: int = 4
    num_path_pairs: int
    epsilons: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    num_rtl_pairs: int
    rtl_points: int = 9
    num_ddim_steps: int = 20
    num_spectra: int
    spectrum_k: int = 20
    num_separable: int = 200
    path_frames: int
    num_experiments: int
    num_checked: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraversalSettings(Settings):
    """Sizes of ``06_traversal``: of what runs live, beside the records that come with the course.

    Attributes:
        num_ddim_steps: Steps of the sampler; the records of paths have 20.
        num_frames: Frames of each path, both ends included; the records of adjacent distances have 13.
        num_pairs: Pairs of latents whose paths are decoded live, by every model.
        num_radii: Latents whose length is shrunk and stretched.
        radii: Those lengths, as shares of the expected radius, ascending, 1 among them.
        num_ends: Pairs of the record whose ends are decoded, at least 2.
        num_checked: Pairs that are measured again and compared with the record, at least 2.
        film_frames: Frames of each film in the explorer.
    """

    num_ddim_steps: int = 20
    num_frames: int = 13
    num_pairs: int
    num_radii: int
    radii: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
    num_ends: int
    num_checked: int
    film_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditingSettings(Settings):
    """Sizes of ``07_editing_and_inversion``: of what runs live, beside the records that come with the course.

    Attributes:
        num_ddim_steps: Steps of the sampler of moved latents; the record of directions has 10.
        num_directions: Leading directions at each latent; the record has 3.
        gammas: Lengths of moves to both sides, ascending, in units of the latents; the record has 1, 2, 3, 4.
        num_latents: Latents whose moves are decoded live, by every model, at least 2.
        num_inverted: Faces inverted live, at least 2.
        inversion_steps: Steps of DDIM, down and up, one inversion each.
        refinements: Fixed-point refinements of each step of the inversion.
        num_injected: Receivers, and donors, of content injection.
        injection_steps: Steps of its sampler.
        t_edit: Step at which the injection of InjectFusion ends.
        film_frames: Frames of each film in the explorer.
    """

    num_ddim_steps: int = 10
    num_directions: int = 3
    gammas: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    num_latents: int
    num_inverted: int
    inversion_steps: tuple[int, ...]
    refinements: int = 5
    num_injected: int
    injection_steps: int
    t_edit: int = 500
    film_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TangentialSettings(Settings):
    """Sizes of ``08_tangential_geodesics``.

    Attributes:
        num_points: Noisy points of each toy at which the score's Jacobian is taken.
        num_faces: Faces at which that of the model is taken, at least 2.
        face_times: Diffusion steps t of the noisy faces, ascending.
        num_values: Leading singular values of I − Ĵ at each, more than the ten factors of a face.
        num_segments: Segments of the geodesics that are compared.
        trap_segments: Segments of those across the gap of the C-shape, of which some are meant to fail.
        quadrature_segments: Numbers of segments at which the quadratures are compared, ascending.
        num_samples: Noisy samples that a graph path walks over.
        num_pairs: Pairs of points on each manifold, at least 2.
    """

    num_points: int
    num_faces: int
    face_times: tuple[int, ...]
    num_values: int = 24
    num_segments: int
    trap_segments: int
    quadrature_segments: tuple[int, ...] = (5, 10, 20, 40, 80)
    num_samples: int
    num_pairs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeodesicSettings(Settings):
    """Sizes of ``09_geodesics_of_images``: of what runs live, beside the records that come with the course.

    Attributes:
        num_pairs: Pairs of images connected live, at least 2.
        share: Noise level of the paths, as a share of the T steps; that of the records.
        num_ddim_steps: Steps of DDIM from T to 0; 20 in the records.
        num_segments: Segments of each path, a power of 2; 16 in the records.
        stride: Every how many nodes an image is sampled.
        refinements: Fixed-point refinements of each step of the inversion.
    """

    num_pairs: int
    share: float = 0.6
    num_ddim_steps: int = 20
    num_segments: int = 16
    stride: int = 2
    refinements: int = 5
