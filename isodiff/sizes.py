"""What each notebook and each evaluation can be told: one frozen dataclass each, every size explained.

The values at each profile are in `isodiff.profiles`.
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
class EvaluationSettings(Settings):
    """Sizes of ``isodiff evaluate``: how much of each metric is measured.

    Attributes:
        num_fid_images: Generated images, and as many real ones, behind FID and KID.
        fid_steps: DDIM steps of these images; the paper takes 20.
        num_ppl_pairs: Pairs of latents of the perceptual path length.
        ppl_steps: DDIM steps of its images; the paper takes 100.
        ppl_epsilon: Distance of its two positions on the path, as a share of the path.
        num_sweep_pairs: Pairs at each epsilon of the sweep.
        sweep_epsilons: Those epsilons, descending.
        num_rtl_pairs: Pairs of latents of the relative trajectory length.
        rtl_points: Points of each path, both ends included.
        rtl_steps: DDIM steps, at each of which the ratio is measured; the paper takes 20.
        spectrum_times: Diffusion steps t at which the encoder's Jacobian is measured.
        num_spectra: Images whose leading singular values are computed at each.
        spectrum_k: How many singular values.
        num_isotropy: Images on which isotropy is estimated at each.
        num_maps: Latents at which the Jacobian of the whole sampler is measured.
        map_k: Singular values of the whole sampler.
        map_steps: DDIM steps of the whole sampler.
        num_separable: Generated images behind linear separability; the paper takes 2,000. Where FID's sampler has as
            many steps, they are its first images.
        num_kept: The most confident of them, for each attribute; the paper keeps 1,000.
        num_truth_pairs: Pairs of latents whose paths are compared with the true factors.
        truth_points: Points of each such path, both ends included.
        num_alignment: Images, and latents, at which tangent spaces are compared.
        walk_points: Frames of the paths of num_truth_pairs on which adjacent ones are compared, both ends included.
        num_edited: Latents moved along leading directions of the bottleneck.
        num_directions: How many directions at each.
        edit_gammas: Lengths of these moves, to both sides, in units of the latents.
        edit_steps: DDIM steps of the moved images.
        num_inverted: Real images inverted.
        inversion_steps: DDIM steps of inversion and reconstruction, one measurement each.
        refinements: Fixed-point refinements of a step of the inversion, one measurement each.
        batch_size: Images at a time.
    """

    num_fid_images: int
    fid_steps: int = 20
    num_ppl_pairs: int
    ppl_steps: int
    ppl_epsilon: float = 1e-4
    num_sweep_pairs: int
    sweep_epsilons: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    num_rtl_pairs: int
    rtl_points: int
    rtl_steps: int = 20
    spectrum_times: tuple[int, ...] = (200, 600, 800)
    num_spectra: int
    spectrum_k: int = 50
    num_isotropy: int
    num_maps: int
    map_k: int = 10
    map_steps: int = 20
    num_separable: int
    num_kept: int
    num_truth_pairs: int
    truth_points: int
    num_alignment: int
    walk_points: int
    num_edited: int
    num_directions: int = 3
    edit_gammas: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    edit_steps: int = 10
    num_inverted: int
    inversion_steps: tuple[int, ...]
    refinements: tuple[int, ...] = (0, 5)
    batch_size: int = 64


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
