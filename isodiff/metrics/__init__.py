"""Measurements: each a pure function on arrays, with a driver that samples and returns a `Measurement`.

| question | module |
|---|---|
| are the images good? | `fidelity`, through the networks of `networks` |
| do they change at a steady pace? are paths straight in H? | `path_length`; `trajectory` |
| is a map an isometry? | `jacobians` |
| does noise on images lie on a sphere? do attributes separate? | `shell`; `separability`, by `attributes` |
| what does the truth say of faces, and does an edit do what it should? | `truth`; `edits` |
| which way from one image to another, and how evenly? | `interpolation`; `frames` of paths in folders |
| all of them, of one model | `evaluation`, on `measure` (what all share) and `generator` (the map they look at) |
"""

import lazy_loader

_NAMES = {
    "attributes": "held_out_table open_attributes read_labels train_attributes",
    "edits": "direction_effects effects inversion_error neighbour_correlation norm_ratio",
    "evaluation": "evaluate real_images",
    "fidelity": "extract_features fid frechet_distance kernel_distance kid",
    "frames": "evaluate_frames frame_statistics student_interval",
    "generator": "Generator draw_latents to_uint8",
    "interpolation": "CLOSED_FORM Ends SOLVED adjacent_distances interpolation_quality path_smoothness smoothness",
    "jacobians": "condition_number encoder_anisotropy encoder_map log_anisotropy map_anisotropy map_variance "
    "mean_condition_number metric_variance noisy_images singular_spectrum",
    "measure": "Measurement Record bootstrap_interval cached compare comparison_table git_revision jackknife_interval "
    "paired_bootstrap_interval paired_ratio_interval versions",
    "networks": "fetch_weights inception_features perceptual_distance",
    "path_length": "Distance path_speed perceptual_path_length squared_l2",
    "separability": "linear_separability separability_score",
    "shell": "measure_shell",
    "trajectory": "relative_trajectory_length trajectory_ratio",
    "truth": "encoder_alignment excess_variation path_truth principal_angles straightness tangent_alignment "
    "tangent_space",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
