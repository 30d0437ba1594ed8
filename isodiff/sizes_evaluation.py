"""What an evaluation can be told, every size explained; the values at each profile are in `isodiff.profiles`."""

from __future__ import annotations

import dataclasses

from isodiff.sizes import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Sizes of ``isodiff evaluate``: how much of each metric is measured.

    Attributes:
        num_fid_images: Generated images, and as many real ones, behind FID and KID.
        fid_steps: DDIM steps of these images; the paper takes 20.
        num_ppl_pairs: Pairs of latents of the perceptual path length.
        ppl_steps: DDIM steps of its images; the paper takes 100.
        ppl_epsilon: Distance of its two positions on the path, as a share of the path.
        ppl_networks: Networks inside LPIPS, "alex" and "vgg"; the paper takes the first.
        ppl_modes: Where on the path, "full" and "end"; the paper takes the first.
        num_sweep_pairs: Pairs at each epsilon of the sweep; 0 for no sweep.
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
        truth_floor: Whether the floor of that measurement is measured too, at twice the cost.
        num_alignment: Images, and latents, at which tangent spaces are compared.
        walk_points: Frames of the paths of num_truth_pairs on which adjacent ones are compared, both ends included.
        num_edited: Latents moved along leading directions of the bottleneck.
        num_directions: How many directions at each.
        edit_gammas: Lengths of these moves, to both sides, in units of the latents.
        edit_steps: DDIM steps of the moved images.
        num_inverted: Real images inverted.
        inversion_steps: DDIM steps of inversion and reconstruction, one measurement each.
        refinements: Fixed-point refinements of a step of the inversion, one measurement each.
        path_methods: Interpolations of real images to compare, names in `isodiff.metrics.path_methods`.
        num_interpolated: Pairs of real images, for methods in closed form.
        num_geodesics: The first of them, for methods that solve for their path.
        path_share: Noise level of the paths, as a share of the T steps; the papers take 0.6.
        path_segments: Segments of each path; a power of 2, for the density path.
        swept_shares: Further noise levels.
        swept_methods: Methods compared at these.
        num_swept: Pairs at each of these.
        batch_size: Images at a time.
    """

    num_fid_images: int
    fid_steps: int = 20
    num_ppl_pairs: int
    ppl_steps: int
    ppl_epsilon: float = 1e-4
    ppl_networks: tuple[str, ...] = ("alex", "vgg")
    ppl_modes: tuple[str, ...] = ("full", "end")
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
    truth_floor: bool = True
    num_alignment: int
    walk_points: int
    num_edited: int
    num_directions: int = 3
    edit_gammas: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    edit_steps: int = 10
    num_inverted: int
    inversion_steps: tuple[int, ...]
    refinements: tuple[int, ...] = (0, 5)
    path_methods: tuple[str, ...] = ("lerp", "slerp", "norm_aware", "noise_diffusion", "density", "tangential")
    num_interpolated: int
    num_geodesics: int
    path_share: float = 0.6
    path_segments: int = 16
    swept_shares: tuple[float, ...] = (0.2, 0.4, 0.8)
    swept_methods: tuple[str, ...] = ("lerp", "slerp", "tangential")
    num_swept: int
    batch_size: int = 64
