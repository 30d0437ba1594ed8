r"""The traces of the isometry loss from first-order passes alone, by central differences.

With ``D_h(v) = ‖v‖ (f(x + h v̂) − f(x − h v̂)) / 2h = J v + O(h²)``, ``v̂ = v / ‖v‖``, the products of one probe are

    u = D_h(v),    w = P Jᵀ u,    z = D_h(w),

``w`` by one vector-Jacobian product. The gradient of ``‖w‖² = ‖P JᵀJ v‖²`` in the parameters needs no second derivative
of ``f``, only the variation of two forms in which both directions are constant:

    d‖u‖² = 2 ⟨u, dJ v⟩,    d‖w‖² = 2 ⟨z, dJ v⟩ + 2 ⟨u, dJ w⟩.

Each ``dJ v`` is the derivative of a difference of two evaluations. So fused attention, recomputation of activations
(gradient checkpointing) and compilers, none of which has a second derivative, can be used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# Step h over ‖x‖, in units of ε^(1/3), where rounding (ε/h) and curvature (h²) are of one size. A probe is spread over
# all directions and JᵀJ v lies along the few that f stretches and bends most, hence the shorter step.
_PROBE_STEP = 2.0
_METRIC_STEP = 0.2


class DifferenceSquares:
    """Evaluate ``‖J v‖²`` and ``‖P JᵀJ v‖²`` at every row by central differences, differentiable in the parameters.

    Args:
        f: Map from (B, *S) to (B, *M), row by row, twice differentiable. What its layers draw at random, such as
            dropout, is drawn alike at every evaluation.
        x: Points, (B, *S), finite, no row zero; taken as constant.
        project: ``P``, row by row.

    Raises:
        ValueError: If a row of ``x`` is zero, which leaves the step without a scale.

    Note:
        A probe costs five evaluations of ``f``, one vector-Jacobian product and, for the gradient, four backward
        passes, all of first order; it keeps the graphs of four. In float32 the traces and their gradients are
        right to about 10⁻³ on the U-Nets of the course, against order one from the probes' own noise.
    """

    def __init__(self, f: Map, x: Tensor, project: Callable[[Tensor], Tensor]) -> None:
        """Keep the map and set the scale of the steps."""
        self._f, self._x, self._project = f, x.detach(), project
        self._devices = [x.device] if x.device.type == "cuda" else []
        self._scale = _row_norm(self._x) * torch.finfo(x.dtype).eps ** (1 / 3)
        if not self._scale.all():
            row = int((self._scale == 0).flatten().nonzero()[0])
            raise ValueError(f"x must have no zero row with the differences route, got zero in row {row}")

    def __call__(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two squares for directions ``v`` (B, *S), (B,) each."""
        pushed = self._push(v, _PROBE_STEP)
        u = pushed.detach()
        w = self._project(self._pull(u))
        first, second = _row_dot(pushed, pushed), _row_dot(w, w)
        if torch.is_grad_enabled():
            pushed_again = self._push(w, _METRIC_STEP)
            z = pushed_again.detach()
            # zero in value; its gradient is that of ‖P JᵀJ v‖²
            second = second + 2 * _row_dot(z, pushed - u) + 2 * _row_dot(u, pushed_again - z)
        return first, second

    def _push(self, v: Tensor, step: float) -> Tensor:
        norm = _row_norm(v)
        move = step * self._scale * v / norm.clamp_min(torch.finfo(v.dtype).tiny)
        ahead, behind = self._evaluate(self._x + move), self._evaluate(self._x - move)
        per_row = (norm / (2 * step * self._scale)).view(-1, *[1] * (ahead.ndim - 1))
        return per_row * (ahead - behind)

    def _pull(self, u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = self._x.clone().requires_grad_()
            y = self._evaluate(x)
            if not y.requires_grad:
                raise ValueError("f(x) must depend on x differentiably, got an output detached from x")
            return torch.autograd.grad(y, x, u, materialize_grads=True)[0]

    def _evaluate(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(self._devices):
            y = self._f(x)
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(f"f must map {len(x)} rows to {len(x)} rows, got output of shape {tuple(y.shape)}")
        return y


def _row_norm(rows: Tensor) -> Tensor:
    """Return (B, 1, …), to be multiplied with the rows."""
    return rows.flatten(1).norm(dim=1).view(-1, *[1] * (rows.ndim - 1))


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)
