"""One step along a path of latents: its two points, their images, and the distance between these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.sphere import slerp
from isodiff.metrics.generator import check_images, draw_latents, number_generator

if TYPE_CHECKING:
    from isodiff.metrics.generator import Generate
    from isodiff.metrics.store import Arrays

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (B, C, H, W) to their distances (B,). It has a name or, as LPIPS does, a `protocol`."""

Mode = Literal["full", "end"]
"""Where on the path: anywhere, t ~ U(0, 1), or at its start, t = 0."""


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """Return ``‖a − b‖²`` of each row, (B,): the distance whose path length is known in closed form."""
    return (a - b).flatten(1).square().sum(dim=1)


def draw_paths(shape: tuple[int, ...], start: int, stop: int, mode: Mode, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the paths ``start … stop − 1``: both ends, and a position t on each, in float64.

    Path i runs from latent 2i to latent 2i + 1 of the stream "pairs".
    """
    ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="pairs", dtype=torch.float64)
    t = torch.zeros(stop - start, dtype=torch.float64)
    if mode == "full":
        for row in range(stop - start):
            t[row] = torch.rand((), generator=number_generator(seed, "positions", start + row), dtype=t.dtype)
    return ends[::2], ends[1::2], t


def path_points(
    a: Tensor,
    b: Tensor,
    t: float | Tensor,
    epsilons: Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
) -> list[Tensor]:
    """Return x(t) and every x(t + ε), computed in float64 and rounded once.

    In float32 the position alone would be wrong by up to 3e-8, and a step of 1e-4 by 6e-4 of itself.

    Args:
        a: Starts, (B, *S).
        b: Ends, (B, *S).
        t: Positions, a number or (B,).
        epsilons: Steps.
        dtype: Of the points.
        start: Number of the first path, for the error.

    Raises:
        ValueError: If a path has no angle, or a step is too small to change any number of a point.
    """
    a, b = a.double(), b.double()
    position = torch.as_tensor(t, dtype=torch.float64, device=a.device)
    x, *ys = (slerp(a, b, position + step).to(dtype) for step in (0, *epsilons))
    resolution = torch.finfo(dtype).eps
    apart = (a / _norm(a) - b / _norm(b)).flatten(1).norm(dim=1)
    if (apart <= 8 * resolution).any():
        raise ValueError(
            f"pair {start + int(apart.argmin())} has no angle between its latents, so that there is no arc to walk; "
            "expected two latents of different directions"
        )
    for y, epsilon in zip(ys, epsilons, strict=True):
        if (x == y).flatten(1).all(dim=1).any():
            raise ValueError(
                f"epsilon must be large enough to move a latent in {dtype}; got {epsilon}, which changes none of its "
                "numbers"
            )
    return [x, *ys]


def decode(generate: Generate, x: Tensor) -> Tensor:
    """Return the images of latents in float32, refusing those that were made in less."""
    images = generate(x)
    if isinstance(images, Tensor) and images.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            "generate must give images in float32 or better, as lower precision rounds a small step away; "
            f"got {images.dtype}"
        )
    return check_images(images, len(x))


def measure(distance: Distance, first: Tensor, second: Tensor) -> Tensor:
    """Return the distances of two batches, refusing what is not one finite number a row."""
    found = distance(first, second)
    if found.shape != first.shape[:1]:
        raise ValueError(f"distance must give one number a row, ({len(first)},); got shape {tuple(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"distance must be finite; got {int((~found.isfinite()).sum())} NaN or infinite values")
    return found


def measure_all(distances: Mapping[str, Distance], image: Tensor, others: Sequence[Tensor]) -> Arrays:
    """Return by name the distances (B, K) of one batch of images to K others."""
    found = {name: [measure(d, image, other) for other in others] for name, d in distances.items()}
    return {f"distance {name}": torch.stack(columns, dim=1).double().cpu().numpy() for name, columns in found.items()}


def describe(distances: Mapping[str, Distance]) -> dict[str, dict[str, Any]]:
    """Return what identifies each distance in results and in the store.

    Raises:
        ValueError: If there is no distance, or one has neither a name nor a `protocol`.
    """
    if not distances:
        raise ValueError("distances must hold at least one distance by name; got none")
    described = {}
    for name, distance in distances.items():
        own = getattr(distance, "__name__", "<lambda>")
        protocol = getattr(distance, "protocol", None)
        if protocol is None and own == "<lambda>":
            raise ValueError(
                f"distance {name!r} must be a named function or have a `protocol`, as results state it; "
                f"got {distance!r}"
            )
        described[name] = {"distance": own} if protocol is None else dict(protocol)
    return described


def check_step(epsilon: float, *, power: int = 2, mode: str = "full") -> None:
    """Raise ValueError for a step outside (0, 1], a power other than 1 and 2, or an unknown mode."""
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1], a share of the path; got {epsilon}")
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2; got {power}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; got {mode!r}")


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
