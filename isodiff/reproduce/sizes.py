"""How large every experiment is, at every profile: seeds, steps and the sizes of its evaluation."""

from __future__ import annotations

from typing import Any

LEAN: dict[str, Any] = {  # what every evaluation here leaves out, as no claim asks for it
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
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        name: {
            "seeds": 2,
            "base_steps": 4,
            "steps": 4,
            "sizes": LEAN
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
            "sizes": LEAN
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
            "steps": 150,
            "sizes": LEAN
            | {
                "num_fid_images": 64,
                "num_ppl_pairs": 40,
                "ppl_steps": 20,
                "num_rtl_pairs": 6,
                "num_spectra": 3,
                "num_isotropy": 16,
                "num_truth_pairs": 10,
                "num_separable": 128,
                "num_kept": 64,
                "num_interpolated": 3,
                "num_geodesics": 3,
                "path_methods": ["lerp", "slerp", "tangential"],
            },
        },
        "latent64": {
            "seeds": 3,
            "steps": 100,
            "sizes": LEAN
            | {
                "num_fid_images": 64,
                "num_ppl_pairs": 40,
                "ppl_steps": 20,
                "num_rtl_pairs": 6,
                "num_spectra": 3,
                "num_isotropy": 16,
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

PROGRAMS: dict[str, dict[str, Any]] = {
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
