"""Mathematics on tensors and callables: the sphere, Jacobians without matrices, traces, the isometry loss."""

from isodiff.geometry.isometry import (
    exact_isometry_loss,
    exact_traces,
    isometry_loss,
    isometry_loss_share,
    isotropy,
    trace_samples,
)
from isodiff.geometry.jacobian import jvp, pullback_vp, singular_values, singular_vectors, vjp
from isodiff.geometry.sphere import (
    conformal_factor,
    expected_radius,
    inverse_stereographic,
    lerp,
    project_to_tangent,
    slerp,
    stereographic,
)
from isodiff.geometry.trace import TraceEstimate, hutchinson, sample_probes

__all__ = [
    "TraceEstimate",
    "conformal_factor",
    "exact_isometry_loss",
    "exact_traces",
    "expected_radius",
    "hutchinson",
    "inverse_stereographic",
    "isometry_loss",
    "isometry_loss_share",
    "isotropy",
    "jvp",
    "lerp",
    "project_to_tangent",
    "pullback_vp",
    "sample_probes",
    "singular_values",
    "singular_vectors",
    "slerp",
    "stereographic",
    "trace_samples",
    "vjp",
]
