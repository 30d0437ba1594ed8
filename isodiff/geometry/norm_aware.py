r"""The path along which the norm of Gaussian noise stays likely: NAO of Samuel et al. (2023).

The paper is *Norm-guided latent space exploration for text-to-image generation*. The norm of ``x ~ N(0, Iₙ)`` follows
the chi law. The path between two latents maximises the line integral of its log density, that is, minimises

    ∫ w(‖x‖) ‖dx‖,      w(r) = −log χₙ(r) = r²/2 − (n−1) log r + (n/2 − 1) log 2 + log Γ(n/2),

a length of the metric ``w² I``: ``w`` is positive everywhere (at least ½) for n ≥ 2, and smallest at ``r = √(n−1)``.
The formula is that of the authors' released code.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from isodiff.geometry.sphere import require_batch, require_same_shape, slerp

# of a step: its middle alone would let the path jump over the walls of w at no cost
_NODES, _WEIGHTS = (torch.as_tensor(value) / 2 for value in np.polynomial.legendre.leggauss(4))
_NODES = _NODES + 0.5
_WIDEST = 0.2  # radians; the chord of such a step passes 0.5 % inside the arc


def chi_cost(radius: Tensor, n: int) -> Tensor:
    """Return ``w(r) = −log χₙ(r)``, the cost of a unit step of the norm-aware path at radius r.

    Args:
        radius: r > 0, any shape.
        n: Dimension, at least 2.

    Returns:
        w, in the shape and precision of ``radius``.
    """
    return radius.square() / 2 - (n - 1) * radius.log() + (n / 2 - 1) * math.log(2) + math.lgamma(n / 2)


def norm_aware_path(a: Tensor, b: Tensor, num_segments: int, *, num_nodes: int = 128) -> Tensor:
    r"""Return the path between latents along which the chi law's log density is largest (NAO, Samuel et al. 2023).

    The cost depends on ‖x‖ only, so the path lies in the plane of ``a`` and ``b``: two unknowns a node, whatever n.

    Args:
        a: Start, noise of unit variance, (B, *S), no row zero.
        b: End, (B, *S), no row zero.
        num_segments: Segments N ≥ 1 of the path returned, of equal Euclidean length.
        num_nodes: Steps of the discretised path behind it; the authors take 50.

    Returns:
        Path, (B, N + 1, *S), from ``a`` to ``b``, in the precision of ``a``. For antipodal pairs, which have no plane
        of their own, it lies in that of `slerp`.

    Raises:
        ValueError: If shapes do not fit, values are not finite, a row is zero, or ``num_segments < 1`` or
            ``num_nodes < 2``.
        RuntimeError: If the minimum is not found, or a step turns by more than 0.2 rad: latents far from the radius of
            noise spend their nodes on the way to it and need more.

    Note:
        The released code takes w in the middle of a step only, and a penalty on steps longer than 2‖a − b‖/num_nodes:
        a path may then jump over radii of high cost. We minimise the energy ½M Σ w̄²‖Δx‖² over M steps, with w̄ the mean
        of w along a step: it has the same minimum as M grows, and spaces the nodes by itself. By a trust-region Newton
        method in float64, one pair after the other, about a tenth of a second each.
    """
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    if num_segments < 1 or num_nodes < 2:
        raise ValueError(
            f"num_segments must be at least 1 and num_nodes at least 2, got {num_segments} and {num_nodes}"
        )
    x, y = a.flatten(1).double(), b.flatten(1).double()
    norm_x, norm_y = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    if not ((norm_x > 0).all() and (norm_y > 0).all()):
        raise ValueError("a and b must have no zero rows, as zero has no direction")
    units = x / norm_x, y / norm_y
    # of the chord and its complement, so that small and large angles are exact
    angles = 2 * torch.atan2((units[0] - units[1]).norm(dim=1), (units[0] + units[1]).norm(dim=1))
    paths = []
    for row, angle in enumerate(angles.tolist()):
        planar = _planar_path(norm_x[row].item(), norm_y[row].item(), angle, x.shape[1], num_nodes)
        radius, turn = _polar(_resample(planar, _lengths(planar), num_segments), angle)
        direction = slerp(*(u[row].expand(num_segments + 1, -1) for u in units), turn.to(a.device))
        paths.append(radius[:, None].to(a.device) * direction)
    path = torch.stack(paths)
    path[:, 0], path[:, -1] = x, y
    return path.reshape(len(a), num_segments + 1, *a.shape[1:]).to(a.dtype)


def _planar_path(start: float, end: float, angle: float, n: int, num_nodes: int) -> Tensor:
    """Minimise the energy between (start, 0) and the point of radius ``end`` at an angle; (num_nodes + 1, 2)."""
    arc = _initial_path(start, end, angle, n, num_nodes)
    if torch.equal(arc[0], arc[-1]):
        return arc
    unit = _lengths(arc).sum()

    def path_of(shift: Tensor) -> Tensor:
        # in units of the first path's length: what is small is then the same for all radii
        return torch.cat([arc[:1], arc[1:-1] + unit * shift.reshape(-1, 2), arc[-1:]])

    def energy(path: Tensor) -> Tensor:
        cost, square = _steps(path, n)
        return num_nodes / 2 * (cost.square() * square).sum()

    def hessian(path: Tensor) -> Tensor:
        # of one step in its four coordinates, then summed into place: the whole is block-tridiagonal
        local = torch.func.vmap(torch.func.hessian(lambda step: energy(step.reshape(2, 2))))
        with warnings.catch_warnings():  # torch scripts functions of its own at the first use, and deprecates scripting
            warnings.simplefilter("ignore", FutureWarning)
            blocks = local(torch.cat([path[:-1], path[1:]], 1))
        index = 2 * torch.arange(num_nodes)[:, None] + torch.arange(4)
        whole = torch.zeros(2 * num_nodes + 2, 2 * num_nodes + 2, dtype=path.dtype)
        whole.index_put_((index[:, :, None], index[:, None]), blocks, accumulate=True)
        return whole[2:-2, 2:-2]

    gradient = torch.func.grad(energy)
    shift = torch.zeros(2 * (num_nodes - 1), dtype=torch.float64)
    for _ in range(2):  # the second time to the precision of the minimum, which may lie far below the start
        scale = energy(path_of(shift)).item()
        found = minimize(
            lambda v: energy(path_of(torch.as_tensor(v))).item() / scale,  # noqa: B023 - called within the loop
            shift.numpy(),
            jac=lambda v: (gradient(path_of(torch.as_tensor(v)))[1:-1].flatten() * unit / scale).numpy(),  # noqa: B023
            hess=lambda v: (hessian(path_of(torch.as_tensor(v))) * unit**2 / scale).numpy(),  # noqa: B023
            method="trust-exact",
            options={"gtol": 1e-5, "maxiter": 1000, "initial_trust_radius": 0.1},
        )
        shift = torch.as_tensor(found.x)
    if not found.success:
        raise RuntimeError(f"the norm-aware path was not found after {found.nit} iterations: {found.message}")
    path = path_of(shift)
    widest = torch.nn.functional.cosine_similarity(path[1:], path[:-1]).min().clamp(-1, 1).acos().item()
    if widest > _WIDEST:
        raise RuntimeError(
            f"num_nodes = {num_nodes} leaves a step of {widest:.2f} rad, above {_WIDEST}: give more, as the radii "
            f"{start:.4g} and {end:.4g} are far from that of noise, {math.sqrt(n - 1):.4g}"
        )
    return path


def _initial_path(start: float, end: float, angle: float, n: int, num_nodes: int) -> Tensor:
    """Return the cheaper of the great arc and of the way along the shell of noise, in steps of equal cost."""
    t = torch.linspace(0, 1, 10 * num_nodes + 1, dtype=torch.float64)
    shell = torch.full_like(t, math.sqrt(n - 1))
    to_shell, from_shell = (radius + (shell - radius) * s for radius, s in ((start, t), (end, t.flip(0))))
    zero = torch.zeros_like(t)
    candidates = [
        (start + (end - start) * t, angle * t),
        (torch.cat([to_shell, shell, from_shell]), torch.cat([zero, angle * t, angle + zero])),
    ]
    paths = [radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1) for radius, turn in candidates]
    costs = [_steps(path, n)[0] * _lengths(path) for path in paths]
    best = int(costs[1].sum() < costs[0].sum())
    return _resample(paths[best], costs[best], num_nodes)


def _steps(path: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the mean of w along every step, by Gauss–Legendre quadrature, and its squared Euclidean length."""
    points = path[:-1, None] + _NODES[:, None] * (path[1:] - path[:-1])[:, None]
    return chi_cost(points.norm(dim=2), n) @ _WEIGHTS, (path[1:] - path[:-1]).square().sum(1)


def _lengths(path: Tensor) -> Tensor:
    return (path[1:] - path[:-1]).norm(dim=1)


def _resample(path: Tensor, measure: Tensor, num_segments: int) -> Tensor:
    """Return points of a polygon at equal distances along it in a measure of its steps, (num_segments + 1, 2)."""
    passed = np.concatenate([[0], measure.cumsum(0).numpy()])
    at = np.linspace(0, passed[-1], num_segments + 1)
    return torch.as_tensor(np.stack([np.interp(at, passed, axis) for axis in path.numpy().T], 1))


def _polar(path: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Return the radius, and the angle as a share of the whole one (0 if there is none)."""
    turn = (torch.atan2(path[:, 1], path[:, 0]) + math.pi / 2) % (2 * math.pi) - math.pi / 2
    share = turn / angle if angle > 0 else torch.zeros_like(turn)
    return path.norm(dim=1), share.clamp(0, 1)
