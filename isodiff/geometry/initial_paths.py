"""Paths to start a geodesic from: the straight line, the great arc, a walk over samples; and equal spacing.

A geodesic solver finds a minimum near its start. Which of several it finds, along the data or across a gap in them, is
decided by the initial path.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from isodiff.geometry.path_energy import require_path
from isodiff.geometry.sphere import lerp, require_batch, require_same_shape, slerp

InitialName = Literal["slerp", "lerp"]


def initial_path(initial: InitialName | Tensor, a: Tensor, b: Tensor, num_segments: int) -> Tensor:
    """Return the path that a solver starts from.

    Args:
        initial: ``"slerp"``, ``"lerp"``, or the path itself, (B, N+1, *S), with ends a and b.
        a: Starts, (B, *S).
        b: Ends, (B, *S).
        num_segments: N, at least 2.

    Returns:
        Nodes, (B, N+1, *S), in the precision of a, the ends exactly a and b.

    Raises:
        ValueError: If the name is unknown; if a given path has another shape, is not finite, or ends elsewhere (beyond
            the square root of its precision, relative to ‖b − a‖); if N < 2 or a and b do not fit.
    """
    require_ends(a, b)
    require_segments(num_segments)
    if isinstance(initial, Tensor):
        expected = (len(a), num_segments + 1, *a.shape[1:])
        if tuple(initial.shape) != expected:
            raise ValueError(f"initial must have shape {expected}, got {tuple(initial.shape)}")
        require_path(initial)
        path = initial.to(a).clone()
        away = torch.stack([path[:, 0] - a, path[:, -1] - b]).flatten(2).norm(dim=2)
        rounding = max(torch.finfo(points.dtype).eps for points in (a, initial)) ** 0.5
        if not (away <= rounding * (b - a).flatten(1).norm(dim=1)).all():
            raise ValueError(f"initial must begin at a and end at b, got ends up to {away.max():.3g} away")
    else:
        if initial not in get_args(InitialName):
            raise ValueError(f"initial must be one of {get_args(InitialName)} or a path, got {initial!r}")
        curve = slerp if initial == "slerp" else lerp
        path = torch.stack([curve(a, b, i / num_segments) for i in range(num_segments + 1)], 1)
    path[:, 0], path[:, -1] = a, b
    return path


def resample(path: Tensor, num_segments: int) -> Tensor:
    """Place nodes at equal Euclidean arc length along the polygon through a path.

    Args:
        path: Nodes, (B, M+1, *S).
        num_segments: N, at least 1.

    Returns:
        (B, N+1, *S) with the same ends. Corners of the polygon between new nodes are cut.

    Raises:
        ValueError: If the path is no finite batch, has no length, or N < 1.
    """
    require_path(path)
    if num_segments < 1:
        raise ValueError(f"num_segments must be at least 1, got {num_segments}")
    flat = path.flatten(2)
    travelled = torch.nn.functional.pad(flat.diff(dim=1).norm(dim=2).cumsum(1), (1, 0))
    total = travelled[:, -1:]
    if not (total > 0).all():
        raise ValueError("path must have a positive length, got one whose nodes coincide")
    shares = torch.arange(1, num_segments, dtype=path.dtype, device=path.device) / num_segments
    target = (shares * total).contiguous()
    piece = (torch.searchsorted(travelled, target, right=True) - 1).clamp(0, path.shape[1] - 2)
    start, stop = travelled.gather(1, piece), travelled.gather(1, piece + 1)
    share = ((target - start) / (stop - start))[..., None]
    index = piece[..., None].expand(-1, -1, flat.shape[2])
    inner = torch.lerp(flat.gather(1, index), flat.gather(1, index + 1), share)
    return torch.cat([flat[:, :1], inner, flat[:, -1:]], 1).unflatten(2, path.shape[2:])


def graph_path(a: Tensor, b: Tensor, samples: Tensor, num_segments: int, *, num_neighbours: int = 10) -> Tensor:
    """Return the shortest path over the nearest-neighbour graph of samples (as in Isomap, Tenenbaum et al. 2000).

    Vertices are a, b and the samples, edges join each to its nearest neighbours, and weigh their Euclidean length.

    Args:
        a: Starts, (B, *S).
        b: Ends, (B, *S).
        samples: Points that trace the data, (n, *S).
        num_segments: N, at least 2.
        num_neighbours: k, from 1 to the number of distinct samples.

    Returns:
        Nodes at equal arc length, (B, N+1, *S), on the device and in the precision of a.

    Raises:
        ValueError: If shapes do not fit, N < 2, k is out of range, or the graph does not connect a pair.

    Note:
        The path is jagged at the scale of the gaps between samples. Costs a tree search of n points and a shortest path
        a pair; in high dimension the search is by brute force, O(n²).
    """
    require_ends(a, b)
    require_segments(num_segments)
    require_batch(samples, "samples")
    if samples.shape[1:] != a.shape[1:]:
        raise ValueError(f"samples must have rows of shape {tuple(a.shape[1:])}, got {tuple(samples.shape[1:])}")
    samples = torch.unique(samples.to(a).flatten(1), dim=0)  # copies would be each other's only neighbours
    if not 1 <= num_neighbours <= len(samples):
        raise ValueError(
            f"num_neighbours must be between 1 and {len(samples)}, the number of distinct samples; got {num_neighbours}"
        )
    paths = []
    for start, stop in zip(a, b, strict=True):
        vertices = torch.cat([start.flatten()[None], stop.flatten()[None], samples])
        order = _shortest(vertices.cpu().double().numpy(), num_neighbours)
        paths.append(resample(vertices[torch.tensor(order, device=a.device)][None], num_segments))
    path = torch.cat(paths).unflatten(2, a.shape[1:])
    path[:, 0], path[:, -1] = a, b
    return path


def require_ends(a: Tensor, b: Tensor) -> None:
    """Refuse anything but two finite batches of one shape whose rows differ."""
    require_batch(a, "a")
    require_batch(b, "b")
    require_same_shape(b, a, "b", "a")
    same = (a == b).flatten(1).all(1)
    if same.any():
        raise ValueError(f"a and b must differ, as a point is no path; they are equal in row {int(same.nonzero()[0])}")


def require_segments(num_segments: int) -> None:
    """Refuse paths without a free node."""
    if num_segments < 2:
        raise ValueError(f"num_segments must be at least 2, got {num_segments}")


def _shortest(vertices: np.ndarray, num_neighbours: int) -> list[int]:
    """Return the vertices of the shortest path from vertex 0 to vertex 1."""
    lengths, neighbours = KDTree(vertices).query(vertices, num_neighbours + 1)  # each is its own nearest neighbour
    rows = np.repeat(np.arange(len(vertices)), num_neighbours + 1)
    edges = rows != neighbours.ravel()
    # an edge of no length, from an end that is a sample, would be read as no edge
    weights = np.maximum(lengths.ravel()[edges], np.finfo(float).tiny)
    graph = coo_array((weights, (rows[edges], neighbours.ravel()[edges])), shape=(len(vertices),) * 2).tocsr()
    distance, before = dijkstra(graph, directed=False, indices=0, return_predecessors=True)
    if not np.isfinite(distance[1]):
        raise ValueError(
            f"num_neighbours = {num_neighbours} leaves a and b unconnected; raise it, or give more samples"
        )
    order = [1]
    while order[-1] != 0:
        order.append(int(before[order[-1]]))
    return order[::-1]
