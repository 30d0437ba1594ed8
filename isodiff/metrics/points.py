"""What metrics over points in noise space share: work in batches, leave-out estimates, and the name of a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from isodiff.geometry.jacobian import Map
from isodiff.metrics.maps import DescribedMap
from isodiff.metrics.store import Store, content_digest

_GROUPS = 20


def by_batches(
    compute: Callable[[Tensor, int], np.ndarray],
    x: Tensor,
    batch_size: int,
    store: Store | None,
    *,
    numbered: bool = False,
    **key: Any,  # noqa: ANN401 - plain JSON values
) -> np.ndarray:
    """Compute a finite array row by row, keeping each batch under the digest of its points (and their numbers)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    work = []
    for start in range(0, len(x), batch_size):
        points = x[start : start + batch_size]
        entry = {**key, "version": 1, "points": digest(points), **({"start": start} if numbered else {})}
        work.append((lambda p=points, s=start: {"values": _finite(compute(p, s), key["what"])}, entry))
    return np.concatenate([piece["values"] for piece in (store or Store()).get_all(work)])


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} of the map must be finite; got {int((~np.isfinite(values)).sum())} that are not")
    return values


def jackknife(statistic: Callable[[np.ndarray], float], values: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the statistic of all points, and without each of at most 20 groups; point i is in group i modulo them."""
    groups = min(_GROUPS, len(values))
    left_out = [statistic(values[np.arange(len(values)) % groups != g]) for g in range(groups)]
    return statistic(values), np.array(left_out)


def identity(f: Map, key: Mapping[str, Any] | None, store: Store | None) -> dict[str, Any]:
    """Return what decides a map; an error if nothing is known of it and results are kept."""
    facts = {**(f.protocol if isinstance(f, DescribedMap) else {}), **(key or {})}
    if store is not None and store.directory is not None and not facts:
        raise ValueError("a store on disk needs a key that says what f is, got none; pass key={...}")
    return facts


def require_points(x: Tensor, minimum: int) -> None:
    """Refuse too few points."""
    if len(x) < minimum:
        raise ValueError(f"x must hold at least {minimum} points, got {len(x)}")


def digest(x: Tensor) -> str:
    """Return the SHA-256 of points."""
    return content_digest(x.detach().cpu().numpy())
