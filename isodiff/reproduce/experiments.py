"""What is trained and measured, as data: every experiment, its arms and its sizes at every profile.

An *experiment* has a base model, and *arms* that fine-tune it in one way each; the arm ``base`` is the base itself.
Every arm runs with every seed. A seed decides everything that chance decides: the fine-tuning, the latents and real
images that are measured, and, where the experiment trains its own, the base. All arms of one seed see the same base,
images, diffusion steps, noise and latents, so that they compare in pairs.

Configurations, endpoints and rules (`isodiff.reproduce.claims`) were written before any of these runs; the weight of
the isometry term, 10⁻³ on isotropy, was taken from an earlier table of one seed and is the same in all experiments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from isodiff.parameters import listing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How an experiment's own base is trained.

    Attributes:
        architecture: Key of `isodiff.diffusion.published.ARCHITECTURES`.
        config: Fields of `FinetuneConfig`.
    """

    architecture: str
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        changes: Fields of `FinetuneConfig` that differ from the experiment's; None is the base itself.
        families: Families of `isodiff.metrics.suite` measured on it.
        sizes: Of its evaluation, in place of the experiment's.
    """

    changes: Mapping[str, Any] | None
    families: tuple[str, ...]
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Models that are compared.

    Attributes:
        question: What it is for.
        dataset: As for `isodiff evaluate`.
        base: A model by name, or how to train one for every seed.
        config: Fields of `FinetuneConfig` for every arm.
        arms: By name.
        sizes: Of the evaluation, in place of those of profile ``cpu``.
        seeds: How many, from 0.
    """

    question: str
    dataset: str
    base: str | Pretraining
    config: Mapping[str, Any]
    arms: Mapping[str, Arm]
    sizes: Mapping[str, Any]
    seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """An experiment without a diffusion model of its own: a function of `isodiff.reproduce.programs`.

    Attributes:
        question: What it is for.
        function: Its name there.
        options: What it is told besides the seed.
        seeds: How many, from 0.
    """

    question: str
    function: str
    options: Mapping[str, Any]
    seeds: int


LAMBDA = 1e-3
"""Weight of isotropy in every isometric arm, unless the arm says otherwise."""

_ENCODER = ("mrtl", "mcn", "vor", "isotropy")
_PATHS = ("ppl", "truth", "directions")
_CONTROL = {"lambda_iso": 0.0}


def _faces16(size: Mapping[str, Any]) -> Experiment:
    plain, full = (*_ENCODER, *_PATHS), ("fid", "kid", *_ENCODER, *_PATHS)
    every = (*full, "map", "inversion")
    arms = {
        "base": Arm(changes=None, families=every),
        "control": Arm(changes=_CONTROL, families=every),
        "isometric": Arm(changes={}, families=every),
        # the weight of the term
        "lambda_paper": Arm(changes={"lambda_iso": 1e-4, "normalize": False}, families=full),
        "lambda_1e-4": Arm(changes={"lambda_iso": 1e-4}, families=plain),
        "lambda_1e-2": Arm(changes={"lambda_iso": 1e-2}, families=full),
        # where in t
        "p_0": Arm(changes={"p": 0.0}, families=full),
        "p_0.75": Arm(changes={"p": 0.75}, families=full),
        "early": Arm(changes={"regularize_times": "early"}, families=full),
        "variance": Arm(changes={"p": 0.0, "regularize_times": "variance"}, families=full),
        # the metric G
        "chart_identity": Arm(changes={"metric": "chart_identity"}, families=full),
        "euclidean": Arm(changes={"metric": "euclidean"}, families=full),
        # the estimate
        "probes_4": Arm(changes={"num_probes": 4}, families=_ENCODER),
        "unbiased_4": Arm(changes={"num_probes": 4, "estimator": "unbiased"}, families=_ENCODER),
        "per_row": Arm(changes={"estimator": "per_row"}, families=_ENCODER),
    }
    return Experiment(
        question="Which of the method's choices matter, when everything else is equal?",
        dataset="faces",
        base=Pretraining(
            architecture="faces16",
            config={
                "num_steps": size["base_steps"],
                "batch_size": 16,
                "learning_rate": 1e-3,
                "lr_scheduler": "cosine",
                "warmup_steps": min(200, size["base_steps"] // 2),
            },
        ),
        config={"num_steps": size["steps"], "batch_size": 16, "normalize": True, "lambda_iso": LAMBDA},
        arms=arms,
        sizes=size["sizes"],
        seeds=size["seeds"],
    )


def _three_arms(families: tuple[str, ...], sizes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Arm]:
    return {
        "base": Arm(changes=None, families=families),
        "control": Arm(changes=_CONTROL, families=families, sizes=sizes),
        "isometric": Arm(changes={}, families=families, sizes=sizes),
        # what weighs as much as the isometric arm of faces16 where nothing is normalised: 512 · 10⁻³ on L_iso
        "raw": Arm(changes={"lambda_iso": 512 * LAMBDA, "normalize": False}, families=("isotropy",)),
    }


def _faces32(size: Mapping[str, Any]) -> Experiment:
    families = ("fid", "kid", *_ENCODER, "ppl", "truth", "separability", "interpolation")
    return Experiment(
        question="Do Tab. 1 and 2 hold for faces whose manifold is known, and which way between two faces is best?",
        dataset="faces",
        base="faces32/base",
        config={"num_steps": size["steps"], "batch_size": 8, "normalize": True, "lambda_iso": LAMBDA},
        # geodesics need no training, so that only the base is asked for them
        arms=_three_arms(families, {"path_methods": ["slerp"]}),
        sizes=size["sizes"],
        seeds=size["seeds"],
    )


def _latent64(size: Mapping[str, Any]) -> Experiment:
    families = ("fid", "kid", *_ENCODER, "ppl")
    return Experiment(
        question="Does Tab. I hold for a small latent-diffusion model?",
        dataset="faces",
        base="latent64/base",
        config={"num_steps": size["steps"], "batch_size": 8, "normalize": True, "lambda_iso": LAMBDA},
        arms=_three_arms(families),
        sizes=size["sizes"],
        seeds=size["seeds"],
    )


def _photos64(size: Mapping[str, Any], photographs: str) -> Experiment:
    families = ("fid", "kid", *_ENCODER, "ppl")
    return Experiment(
        question="Does Tab. 1 hold for real photographs at 64 pixels?",
        dataset=f"folder:{photographs}",
        base=Pretraining(
            architecture="faces32",
            config={
                "num_steps": size["base_steps"],
                "batch_size": 64,
                "learning_rate": 5e-4,
                "lr_scheduler": "cosine",
                "warmup_steps": 500,
            },
        ),
        config={"num_steps": size["steps"], "batch_size": 32, "normalize": True, "lambda_iso": LAMBDA},
        arms=_three_arms(families),
        sizes=size["sizes"],
        seeds=size["seeds"],
    )


_LEAN = {  # what every evaluation here leaves out, as no claim asks for it
    "ppl_networks": ["alex"],
    "ppl_modes": ["full"],
    "num_sweep_pairs": 0,
    "truth_floor": False,
    "spectrum_times": [600, 800],
    "refinements": [0],
    "inversion_steps": [20],
    "edit_gammas": [2.0, 4.0],
    "map_steps": 10,
}

# profile → experiment → sizes
_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        name: {
            "seeds": 2,
            "base_steps": 4,
            "steps": 4,
            "sizes": _LEAN
            | {
                "num_fid_images": 42,
                "fid_steps": 2,
                "num_ppl_pairs": 40,
                "ppl_steps": 2,
                "num_rtl_pairs": 2,
                "rtl_points": 5,
                "rtl_steps": 4,
                "spectrum_k": 5,
                "num_spectra": 3,
                "num_isotropy": 4,
                "num_maps": 3,
                "map_k": 2,
                "map_steps": 2,
                "num_truth_pairs": 2,
                "truth_points": 3,
                "num_edited": 2,
                "num_directions": 1,
                "edit_steps": 2,
                "num_inverted": 2,
                "num_separable": 42,
                "num_kept": 40,
                "num_interpolated": 2,
                "num_geodesics": 2,
                "path_segments": 4,
                "path_methods": ["lerp", "slerp", "tangential"],
            },
        }
        for name in ("faces16", "faces32", "latent64")
    },
    "cpu": {
        "faces16": {
            "seeds": 3,
            "base_steps": 2_500,
            "steps": 200,
            "sizes": _LEAN
            | {
                "num_fid_images": 96,
                "num_ppl_pairs": 100,
                "ppl_steps": 20,
                "num_rtl_pairs": 24,
                "num_spectra": 4,
                "num_isotropy": 32,
                "num_maps": 3,
                "num_truth_pairs": 16,
                "num_edited": 4,
                "num_inverted": 8,
            },
        },
        "faces32": {
            "seeds": 3,
            "steps": 200,
            "sizes": _LEAN
            | {
                "num_fid_images": 96,
                "num_ppl_pairs": 48,
                "ppl_steps": 20,
                "num_rtl_pairs": 8,
                "num_spectra": 3,
                "num_isotropy": 32,
                "num_truth_pairs": 12,
                "num_separable": 200,
                "num_kept": 100,
                "num_interpolated": 4,
                "num_geodesics": 4,
                "path_methods": ["lerp", "slerp", "tangential"],
            },
        },
        "latent64": {
            "seeds": 3,
            "steps": 120,
            "sizes": _LEAN
            | {
                "num_fid_images": 96,
                "num_ppl_pairs": 40,
                "ppl_steps": 20,
                "num_rtl_pairs": 8,
                "num_spectra": 3,
                "num_isotropy": 32,
            },
        },
    },
    "gpu": {
        "faces16": {"seeds": 10, "base_steps": 20_000, "steps": 2_000, "sizes": {}},
        "faces32": {"seeds": 5, "steps": 2_000, "sizes": {}},
        "latent64": {"seeds": 5, "steps": 2_000, "sizes": {}},
        "photos64": {"seeds": 3, "base_steps": 100_000, "steps": 5_000, "sizes": {}},
    },
}

_PROGRAMS: dict[str, dict[str, Any]] = {
    "sphere": {
        "question": "What does the term do to a map that can be seen, and do estimated traces serve?",
        "function": "sphere",
        "smoke": ({"num_steps": 20, "batch_size": 16}, 2),
        "cpu": ({"num_steps": 1_000, "batch_size": 128}, 10),
        "gpu": ({"num_steps": 10_000, "batch_size": 512}, 50),
    },
    "trace": {
        "question": "How does the error of Hutchinson's estimator go with the number of probes (App. A.1)?",
        "function": "trace",
        "smoke": ({"num_repeats": 8}, 2),
        "cpu": ({"num_repeats": 200}, 10),
        "gpu": ({"num_repeats": 2_000}, 50),
    },
    "shell": {
        "question": "Do noisy images lie on the sphere of noise where the paper regularises (Sec. 3.1)?",
        "function": "shell",
        "smoke": ({"num_images": 20, "resolution": 32}, 2),
        "cpu": ({"num_images": 1_000, "resolution": 32}, 3),
        "gpu": ({"num_images": 10_000, "resolution": 256}, 10),
    },
    "cost": {
        "question": "What does the term cost beside plain training (App. F)?",
        "function": "cost",
        "smoke": ({"resolution": 32, "batch_size": 2, "repeats": 1}, 2),
        "cpu": ({"resolution": 32, "batch_size": 8, "repeats": 5}, 3),
        "gpu": ({"resolution": 256, "batch_size": 8, "repeats": 20}, 3),
    },
}

PROFILES = MappingProxyType(
    {
        "smoke": "every row once, of no meaning: minutes",
        "cpu": "what data/results/reproduce holds: one to two hours on two cores",
        "gpu": "the scale of the papers, and real photographs: a day on one GPU",
    }
)


def experiments(profile: str, *, photographs: str | None = None) -> dict[str, Experiment | Program]:
    """Return the experiments of a profile by name.

    Args:
        profile: A key of `PROFILES`.
        photographs: Folder or tar of aligned photographs, for the experiment that needs them; without it that one is
            left out.

    Raises:
        ValueError: If there is no such profile.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; reproduce accepts {listing(PROFILES)}")
    sizes = _SIZES[profile]
    makers = {"faces16": _faces16, "faces32": _faces32, "latent64": _latent64}
    found: dict[str, Experiment | Program] = {name: make(sizes[name]) for name, make in makers.items()}
    if photographs is not None and "photos64" in sizes:
        found["photos64"] = _photos64(sizes["photos64"], photographs)
    for name, facts in _PROGRAMS.items():
        options, seeds = facts[profile]
        found[name] = Program(question=facts["question"], function=facts["function"], options=options, seeds=seeds)
    return found
