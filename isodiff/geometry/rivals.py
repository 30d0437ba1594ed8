r"""Rival interpolations of diffusion latents, each as its authors state it.

Besides `lerp` and `slerp` these are what the tangential metric is compared with (Saito and Matsubara 2025). Where a
paper leaves a choice open, the authors' released code decides; departures are named. Latents are (B, *S), pairs are
solved one by one, and paths come in the precision of ``a``.
"""

import math
import warnings

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from isodiff.geometry.jacobian import Map
from isodiff.geometry.sphere import require_at_least, require_pair, require_same_shape, slerp

# of a step: its middle alone would let the path jump over the walls of w at no cost
_NODES, _WEIGHTS = (torch.as_tensor(value) / 2 for value in np.polynomial.legendre.leggauss(4))
_WIDEST = 0.2  # radians; the chord of such a step passes 0.5 % inside the arc


def noise_diffusion(
    a: Tensor, b: Tensor, t: float | Tensor, *, image_a: Tensor, image_b: Tensor, alpha_bar: float
) -> Tensor:
    r"""Interpolate latents with their clean images mixed in, at t from 0 to 1, a number or one per row, (B,).

    With α, β = (cos, sin)(πt/2), μ = 1.2 α/(α + β), ν = 1.2 β/(α + β), ᾱ of the latents' diffusion step, and latents
    clipped to ±2 before and after (Zheng et al. 2024, NoiseDiffusion),

        x(t) = α x_a + β x_b + (μ − α) √ᾱ image_a + (ν − β) √ᾱ image_b.

    The path does not keep its ends: at t = 0 it is clip(clip(a) + 0.2 √ᾱ image_a). Fresh noise is left out.
    """
    for tensor, name in ((b, "b"), (image_a, "image_a"), (image_b, "image_b")):
        require_pair(a, tensor, "a", name)
    if not 0 < alpha_bar <= 1:
        raise ValueError(f"alpha_bar must lie in (0, 1], got {alpha_bar}")
    position = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    if position.shape not in ((), a.shape[:1]) or not ((position >= 0) & (position <= 1)).all():
        raise ValueError(f"t must be a number or {len(a)} of them, from 0 to 1; got {t}")
    angle = position.reshape(-1, *[1] * (a.ndim - 1)) * (math.pi / 2)
    alpha, beta = angle.cos(), angle.sin()
    mu, nu = (1.2 * weight / (alpha + beta) for weight in (alpha, beta))
    images = (mu - alpha) * image_a + (nu - beta) * image_b
    return (alpha * a.clamp(-2, 2) + beta * b.clamp(-2, 2) + math.sqrt(alpha_bar) * images).clamp(-2, 2)


@torch.no_grad()
def density_path(
    score: Map,
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 0.002,
    sphere: bool = True,
    num_levels: int = 4,
    iterations_per_level: int = 100,
    learning_rate: float = 0.1,
) -> Tensor:
    r"""Bend a path towards high density (Yu et al. 2025); return control points and ends, (B, 2ᴸ + 1, *S).

    A geodesic of ``p^{−2α} I`` has ``Π(A/‖V‖²) + α Π ∇log p = 0``, with velocity V, acceleration A and Π the projector
    off V. All m control points of a spline, twice as many at each of L levels, take the steps

        X ← X + η Π(∇log p + A/(α ‖V‖²)),        η = lr (1 − k/K)/m   at iteration k of K.

    A level ends early once the second term is on average longer than the first. On the sphere, of the ends' mean radius
    to which they are scaled, the path is a chain of great arcs; else the spline is cubic. Steps are stable for
    lr < α ‖V‖²/(6·2ᴸ): the published constants are for long paths and a score of the size of −ε_θ, not −ε_θ/σ. Text
    inversion and averaging over neighbouring diffusion steps are left out.
    """
    norms = _norms(a, b, nonzero=sphere)
    if not (alpha > 0 and learning_rate > 0):
        raise ValueError(f"alpha and learning_rate must be positive, got {alpha} and {learning_rate}")
    require_at_least(1, num_levels=num_levels, iterations_per_level=iterations_per_level)

    def flat_score(x: Tensor) -> Tensor:
        value = score(rows := x.reshape(-1, *a.shape[1:]))
        require_same_shape(value, rows, "score(x)", "x")
        if not torch.isfinite(value).all():
            raise ValueError("score(x) must be finite; it is not along the path: a smaller learning_rate may help")
        return value.flatten(1)

    paths = []
    for x, y, radius in zip(a.flatten(1), b.flatten(1), sum(norms) / 2, strict=True):
        place = (lambda z, r=radius: r * z / z.norm(dim=1, keepdim=True)) if sphere else (lambda z: z)
        path, iteration = place(torch.stack([x, y])), 0
        for level in range(1, num_levels + 1):
            path = _halve(path, sphere)
            while iteration < level * iterations_per_level:
                forces = _forces(flat_score(path[1:-1]), path, alpha, sphere)
                share, iteration = 1 - iteration / (num_levels * iterations_per_level), iteration + 1
                if forces[0].norm(dim=1).mean() < forces[1].norm(dim=1).mean():
                    break
                moved = path[1:-1] + learning_rate * share / len(forces[0]) * sum(forces)
                path = torch.cat([path[:1], place(moved), path[-1:]])
        paths.append(path)
    return torch.stack(paths).reshape(len(a), -1, *a.shape[1:])


def norm_aware_path(a: Tensor, b: Tensor, num_segments: int, *, num_nodes: int = 128) -> Tensor:
    r"""Return the path, (B, N+1, *S), of least ``∫ w(‖x‖) ‖dx‖``, ``w = −log χₙ`` (Samuel et al. 2023), variance 1.

    It lies in the plane of a and b (for antipodes, that of `slerp`): two unknowns a node, whatever n. N segments of
    equal Euclidean length are cut from M = ``num_nodes`` steps. The released code, M = 50, takes w in the middle of a
    step only; we minimise the energy ½M Σ w̄²‖Δx‖², with w̄ the mean of w along a step, by a trust-region Newton method
    in float64: its minimum is the same as M grows, and it spaces the nodes by itself. A minimum not found, or a step
    that turns by more than 0.2 rad, is a RuntimeError.
    """
    _norms(a, b, nonzero=True)
    require_at_least(1, num_segments=num_segments)
    require_at_least(2, num_nodes=num_nodes)
    x, y = a.flatten(1).double(), b.flatten(1).double()
    norms = [end.norm(dim=1, keepdim=True) for end in (x, y)]
    units = x / norms[0], y / norms[1]
    # of the chord and its complement, so that small and large angles are exact
    angles = 2 * torch.atan2((units[0] - units[1]).norm(dim=1), (units[0] + units[1]).norm(dim=1))
    paths = []
    for row, angle in enumerate(angles.tolist()):
        planar = _planar_path(norms[0][row].item(), norms[1][row].item(), angle, x.shape[1], num_nodes)
        planar = _resample(planar, planar.diff(dim=0).norm(dim=1), num_segments)
        turn = (torch.atan2(planar[:, 1], planar[:, 0]) + math.pi / 2) % (2 * math.pi) - math.pi / 2
        share = (turn / angle if angle > 0 else torch.zeros_like(turn)).clamp(0, 1)
        direction = slerp(*(u[row].expand(num_segments + 1, -1) for u in units), share.to(a.device))
        paths.append(planar.norm(dim=1)[:, None].to(a.device) * direction)
    path = torch.stack(paths)
    path[:, 0], path[:, -1] = x, y
    return path.reshape(len(a), num_segments + 1, *a.shape[1:]).to(a.dtype)


def chi_cost(radius: Tensor, n: int) -> Tensor:
    """Return ``w(r) = −log χₙ(r)`` at radii r > 0; for n ≥ 2 it is at least ½, and smallest at ``r = √(n−1)``."""
    return radius.square() / 2 - (n - 1) * radius.log() + (n / 2 - 1) * math.log(2) + math.lgamma(n / 2)


def _norms(a: Tensor, b: Tensor, *, nonzero: bool) -> tuple[Tensor, Tensor]:
    """Check the ends of a path; return their norms, (B,) each."""
    require_pair(a, b)
    norms = a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)
    if nonzero and not torch.stack(norms).all():
        raise ValueError("a and b must have no zero rows, as zero lies on no sphere")
    return norms


def _forces(score: Tensor, path: Tensor, alpha: float, sphere: bool) -> tuple[Tensor, Tensor]:
    """Return Π∇log p and Π(A/(α‖V‖²)) at the inner knots of a path (N + 1, n) with knots at i/N."""
    velocity, acceleration = _derivatives(path, sphere)
    if sphere:
        score, acceleration = (_project_off(v, path[1:-1]) for v in (score, acceleration))
    acceleration = acceleration / (alpha * velocity.square().sum(1, keepdim=True))
    return _project_off(score, velocity), _project_off(acceleration, velocity)


def _derivatives(path: Tensor, sphere: bool) -> tuple[Tensor, Tensor]:
    """Return velocity and acceleration at the inner knots: of a natural cubic spline, or V of the two great arcs."""
    inner = len(path) - 2
    system = 4 * torch.eye(inner) + torch.ones(inner, inner).tril(1).triu(-1) - torch.eye(inner)
    second = path[2:] - 2 * path[1:-1] + path[:-2]
    acceleration = torch.linalg.solve(system.to(path), 6 * (inner + 1) ** 2 * second)
    if not sphere:
        padded = torch.nn.functional.pad(acceleration, (0, 0, 1, 1))
        slope = (path[2:] - path[:-2]) * (inner + 1) / 2 - (padded[2:] - padded[:-2]) / (12 * (inner + 1))
        return slope, acceleration
    unit = path / path.norm(dim=1, keepdim=True)
    cosine = (unit[1:] * unit[:-1]).sum(1, keepdim=True).clamp(-1, 1)
    speed = 1 / torch.sinc(cosine.acos() / math.pi)  # θ/sin θ of each arc
    leaving = speed * (path[1:] - cosine * path[:-1])
    arriving = speed * (cosine * path[1:] - path[:-1])
    return (leaving[1:] + arriving[:-1]) * (inner + 1) / 2, acceleration


def _halve(path: Tensor, sphere: bool) -> Tensor:
    """Put a knot into the middle of every segment, on the great arc or on the cubic spline."""
    if sphere:
        middle = slerp(path[:-1], path[1:], 0.5)
    else:
        middle = (path[1:] + path[:-1]) / 2
        if len(path) > 2:
            acceleration = torch.nn.functional.pad(_derivatives(path, False)[1], (0, 0, 1, 1))
            middle = middle - (acceleration[1:] + acceleration[:-1]) / (16 * (len(path) - 1) ** 2)
    return torch.cat([torch.stack([path[:-1], middle], 1).flatten(0, 1), path[-1:]])


def _project_off(v: Tensor, direction: Tensor) -> Tensor:
    unit = direction / direction.norm(dim=1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
    return v - (v * unit).sum(1, keepdim=True) * unit


def _planar_path(start: float, end: float, angle: float, n: int, num_nodes: int) -> Tensor:
    """Minimise the energy between (start, 0) and the point of radius ``end`` at an angle; (num_nodes + 1, 2)."""
    arc = _first_guess(start, end, angle, n, num_nodes)
    if torch.equal(arc[0], arc[-1]):
        return arc
    unit = arc.diff(dim=0).norm(dim=1).sum()

    def path_of(shift: Tensor) -> Tensor:
        return torch.cat([arc[:1], arc[1:-1] + unit * shift.view(-1, 2), arc[-1:]])

    def energy(shift: Tensor) -> Tensor:
        cost, square = _steps(path_of(shift), n)
        return num_nodes / 2 * (cost.square() * square).sum()

    shift = torch.zeros(2 * (num_nodes - 1), dtype=torch.float64)
    options = {"gtol": 1e-5, "maxiter": 1000, "initial_trust_radius": 0.1}
    for _ in range(2):  # the second time to the precision of the minimum, which may lie far below the start
        scale = energy(shift)
        value, slope, curvature = (
            lambda v, d=d, scale=scale: (d(torch.as_tensor(v)) / scale).numpy()
            for d in (energy, torch.func.grad(energy), torch.func.hessian(energy))
        )
        with warnings.catch_warnings():  # torch scripts functions of its own at the first use, and deprecates scripting
            warnings.simplefilter("ignore", FutureWarning)
            found = minimize(value, shift.numpy(), method="trust-exact", jac=slope, hess=curvature, options=options)
        shift = torch.as_tensor(found.x)
    if not found.success:
        raise RuntimeError(f"the norm-aware path was not found after {found.nit} iterations: {found.message}")
    path = path_of(shift)
    widest = torch.nn.functional.cosine_similarity(path[1:], path[:-1]).min().clamp(-1, 1).acos().item()
    if widest > _WIDEST:
        why = f"the radii {start:.4g} and {end:.4g} are far from that of noise, {math.sqrt(n - 1):.4g}"
        step = f"num_nodes = {num_nodes} leaves a step of {widest:.2f} rad, above {_WIDEST}"
        raise RuntimeError(f"{step}: give more, as {why}")
    return path


def _first_guess(start: float, end: float, angle: float, n: int, num_nodes: int) -> Tensor:
    """Return the cheaper of the great arc and of the way along the shell of noise, in steps of equal cost."""
    t = torch.linspace(0, 1, 10 * num_nodes + 1, dtype=torch.float64)
    shell, zero = torch.full_like(t, math.sqrt(n - 1)), torch.zeros_like(t)
    along_shell = torch.cat([start + (shell - start) * t, shell, end + (shell - end) * t.flip(0)])
    around_shell = torch.cat([zero, angle * t, angle + zero])
    candidates = (start + (end - start) * t, angle * t), (along_shell, around_shell)
    paths = [radius[:, None] * torch.stack([turn.cos(), turn.sin()], 1) for radius, turn in candidates]
    costs = [_steps(path, n)[0] * path.diff(dim=0).norm(dim=1) for path in paths]
    best = int(costs[1].sum() < costs[0].sum())
    return _resample(paths[best], costs[best], num_nodes)


def _steps(path: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the mean of w along every step, by Gauss–Legendre quadrature, and its squared Euclidean length."""
    step = path[1:] - path[:-1]
    points = path[:-1, None] + (_NODES[:, None] + 0.5) * step[:, None]
    return chi_cost(points.norm(dim=2), n) @ _WEIGHTS, step.square().sum(1)


def _resample(path: Tensor, measure: Tensor, num_segments: int) -> Tensor:
    """Return points of a polygon at equal distances along it in a measure of its steps, (num_segments + 1, 2)."""
    passed = np.concatenate([[0], measure.cumsum(0).numpy()])
    at = np.linspace(0, passed[-1], num_segments + 1)
    return torch.as_tensor(np.stack([np.interp(at, passed, axis) for axis in path.numpy().T], 1))
