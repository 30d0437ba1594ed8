"""Sizes of every notebook at every profile, as data.

A notebook names itself and receives one frozen object: its seed, its device, and how large everything is.
``cpu`` is the committed default (minutes on two cores), ``gpu`` the scale of the papers. No cell branches on
the profile: sizes live here, and ``overrides`` replaces single ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from isodiff.parameters import check_seed, check_sizes, listing, parse_overrides, resolve_device
from isodiff.profiles_evaluation import EVALUATION
from isodiff.sizes import (
    EditingSettings,
    FinetuningSettings,
    GeodesicSettings,
    MetricsSettings,
    Settings,
    SphereSettings,
    TangentialSettings,
    ToySettings,
    TraceSettings,
    TraversalSettings,
)
from isodiff.sizes_real_models import RealModelSettings
from isodiff.sizes_reproduction import AblationSettings, VerdictSettings

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
            num_live_steps=60,
            batch_size=16,
            num_images=512,
            num_jacobian_images=64,
            num_spectra=1,
            num_samples=40,
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
    "05_metrics": {
        "cpu": MetricsSettings(
            num_images=96,
            num_path_pairs=8,
            num_rtl_pairs=4,
            num_spectra=3,
            path_frames=13,
            num_experiments=300,
            num_checked=3,
        ),
        "gpu": MetricsSettings(
            num_images=1_000,
            num_path_pairs=256,
            num_rtl_pairs=64,
            num_spectra=32,
            path_frames=17,
            num_experiments=2_000,
            num_checked=32,
        ),
    },
    "06_traversal": {
        "cpu": TraversalSettings(num_pairs=3, num_radii=6, num_ends=100, num_checked=2, film_frames=17),
        "gpu": TraversalSettings(num_pairs=100, num_radii=256, num_ends=100, num_checked=100, film_frames=65),
    },
    "07_editing_and_inversion": {
        "cpu": EditingSettings(
            num_latents=3,
            num_inverted=3,
            inversion_steps=(10, 50),
            num_injected=3,
            injection_steps=20,
            film_frames=17,
        ),
        "gpu": EditingSettings(
            num_latents=64,
            num_inverted=64,
            inversion_steps=(10, 20, 50, 100, 200, 500),
            num_injected=8,
            injection_steps=100,
            film_frames=65,
        ),
    },
    "08_tangential_geodesics": {
        "cpu": TangentialSettings(
            num_points=200,
            num_faces=2,
            face_times=(20, 50, 100, 200, 400),
            num_segments=160,
            trap_segments=128,
            num_samples=1_000,
            num_pairs=12,
        ),
        "gpu": TangentialSettings(
            num_points=2_000,
            num_faces=16,
            face_times=(10, 20, 50, 100, 200, 400, 600),
            num_segments=256,
            trap_segments=160,
            num_samples=5_000,
            num_pairs=200,
        ),
    },
    "09_geodesics_of_images": {
        "cpu": GeodesicSettings(num_pairs=2),
        "gpu": GeodesicSettings(num_pairs=32),
    },
    "10_real_models": {
        "cpu": RealModelSettings(
            use_hub=False,
            dataset="faces",
            num_shell_images=200,
            num_live_steps=60,
            batch_size=16,
            lambda_iso=3e-3,
            normalize=True,
            metrics=("isotropy",),
            measured='{"num_isotropy": 64, "spectrum_times": [600, 800]}',
            num_processes=1,
        ),
        # the paper's: batch 32, learning rate and λ of 10⁻⁴, ten epochs of 14,342 images
        "gpu": RealModelSettings(
            use_hub=True,
            dataset="celebahq",
            num_shell_images=10_000,
            num_live_steps=4_482,
            batch_size=32,
            lambda_iso=1e-4,
            normalize=False,
            isometry_route="differences",
            gradient_checkpointing=True,
            gradient_accumulation_steps=4,
            metrics=("fid", "kid", "ppl", "mrtl", "mcn", "vor", "isotropy"),
            num_processes=1,
        ),
    },
    "11_ablations_and_cost": {
        "cpu": AblationSettings(num_live_steps=16, batch_size=8),
        "gpu": AblationSettings(num_live_steps=1_000, batch_size=32),
    },
    "12_verdict": {
        "cpu": VerdictSettings(),
        "gpu": VerdictSettings(),
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
        notebook: File name of the notebook without its ending, such as ``"04_isometric_finetuning"``, or
            ``"evaluation"``.
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
    by_profile = EVALUATION if notebook == "evaluation" else PROFILES.get(notebook)
    if by_profile is None:
        raise ValueError(f"no notebook is called {notebook!r}; there are {listing(PROFILES)}")
    if profile not in by_profile:
        raise ValueError(f"profile is {profile!r}; {notebook} accepts {listing(by_profile)}")
    return by_profile[profile]
