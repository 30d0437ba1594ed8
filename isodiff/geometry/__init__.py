"""Mathematics on tensors and callables: the sphere, Jacobians without matrices, the isometry loss, geodesics."""

import lazy_loader

_NAMES = {
    "geodesics": "GeodesicResult continue_geodesic solve_geodesic",
    "initial_paths": "graph_path initial_path resample",
    "isometry": "Metric anisotropy estimate_loss exact_isometry_loss exact_traces isometry_loss isometry_loss_share "
    "trace_samples",
    "jacobian": "Linearisation Map dense_jacobian jvp pullback_vp restrict_to_mean singular_values singular_vectors "
    "vjp",
    "riemann": "DensityMetric PullbackMetric TangentialMetric",
    "rivals": "density_path noise_diffusion norm_aware_path",
    "layers": "recomputed",
    "scores": "AnalyticScore GaussianMixture LowRankGaussian NoisyShell c_arc curve helix two_moons",
    "smooth": "pulled_lengths smooth_loss_share updated_average",
    "spacetime": "SpacetimeCurve spacetime_geodesic",
    "sphere": "combine conformal_factor expected_radius inverse_stereographic lerp move project_to_tangent "
    "require_batch require_same_shape slerp stereographic transport",
    "trace": "TraceEstimate hutchinson local_dimension sample_probes",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
