"""Measurements: each a pure function on arrays, with a driver that samples and returns a `Measurement`.

| question | module |
|---|---|
| are the images good? | `fidelity`, through the networks of `networks` |
| do they change at a steady pace? | `path_length` |
| are paths straight in H? | `trajectory` |
| is a map an isometry? | `jacobians` |
| does noise on images lie on a sphere? | `shell` |
| do attributes separate? | `separability`; `attributes` ← `attribute_training` |
| what does the truth say of faces? | `truth` of their paths, `tangents` |
| does an edit do what it should? | `edits` |
| which way from one image to another, and how evenly? | `interpolation` |
| all of them, of one model | `evaluation`; `suite` lists them, and how much of each |

Common to all: `measure` (units in pieces that are kept, numbers with intervals, differences in pairs) and `generator`
(latents by number, the sampler as a map). The names below can be imported from here; each is loaded, with the library
behind it, when it is first asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribute_training": ["held_out_table", "train_attributes"],
        "attributes": ["open_attributes", "read_labels"],
        "edits": ["direction_effects", "effects", "inversion_error", "neighbour_correlation", "norm_ratio"],
        "evaluation": ["real_images"],
        "fidelity": ["extract_features", "fid", "frechet_distance", "kernel_distance", "kid"],
        "generator": ["Generator", "draw_latents", "model_digest", "to_uint8"],
        "interpolation": [
            "CLOSED_FORM",
            "Ends",
            "SOLVED",
            "Tangential",
            "adjacent_distances",
            "interpolation_quality",
            "path_smoothness",
            "smoothness",
        ],
        "jacobians": [
            "condition_number",
            "encoder_anisotropy",
            "encoder_map",
            "map_anisotropy",
            "map_variance",
            "mean_condition_number",
            "metric_variance",
            "noisy_images",
            "singular_spectrum",
        ],
        "measure": [
            "Measurement",
            "bootstrap_interval",
            "cached",
            "compare",
            "content_digest",
            "jackknife_interval",
            "paired_bootstrap_interval",
            "paired_ratio_interval",
        ],
        "networks": [
            "fetch_weights",
            "fidelity_names",
            "find_weights",
            "inception_features",
            "inception_state",
            "perceptual_distance",
        ],
        "path_length": ["Distance", "epsilon_sweep", "path_speed", "perceptual_path_length", "squared_l2"],
        "record": ["Record", "comparison_table", "git_revision", "versions"],
        "suite": ["evaluate"],
        "separability": ["linear_separability", "separability_score"],
        "shell": ["measure_shell"],
        "tangents": ["encoder_alignment", "principal_angles", "tangent_alignment", "tangent_space"],
        "trajectory": ["ROUND_EMBEDDING", "relative_trajectory_length", "trajectory_ratio"],
        "truth": ["excess_variation", "path_truth", "straightness"],
    },
)
