"""Paths (B, N+1, *S) to start a geodesic from, between a and b, (B, *S); and equal spacing.

A solver finds a minimum near its start, so the initial path decides which of several: along the data or across a gap.
"""

from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree
from torch import Tensor

from isodiff.geometry.riemann import require_path
from isodiff.geometry.sphere import lerp, require_at_least, require_batch, require_pair, slerp

InitialName = Literal["slerp", "lerp"]
_CURVES = {"slerp": slerp, "lerp": lerp}


def initial_path(initial: InitialName | Tensor, a: Tensor, b: Tensor, num_segments: int) -> Tensor:
    """Return the path of N ≥ 2 segments that a solver starts from, in the precision of a, its ends exactly a and b.

    One that is given as ``initial`` may end elsewhere by the square root of its precision, relative to ‖b − a‖.
    """
    _require_ends(a, b, num_segments)
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
    elif initial not in get_args(InitialName):
        raise ValueError(f"initial must be one of {get_args(InitialName)} or a path, got {initial!r}")
    else:
        path = torch.stack([_CURVES[initial](a, b, i / num_segments) for i in range(num_segments + 1)], 1)
    path[:, 0], path[:, -1] = a, b
    return path


def resample(path: Tensor, num_segments: int) -> Tensor:
    """Place N ≥ 1 segments' nodes at equal Euclidean arc length along the polygon through a path; corners are cut."""
    require_path(path)
    require_at_least(1, num_segments=num_segments)
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
    """Return the shortest path over the nearest-neighbour graph of a, b and samples, (n, *S), at equal arc length.

    Edges weigh their Euclidean length (Isomap, Tenenbaum et al. 2000); the path is jagged at the scale of their gaps.
    """
    _require_ends(a, b, num_segments)
    require_batch(samples, "samples")
    if samples.shape[1:] != a.shape[1:]:
        raise ValueError(f"samples must have rows of shape {tuple(a.shape[1:])}, got {tuple(samples.shape[1:])}")
    samples = torch.unique(samples.to(a).flatten(1), dim=0)  # copies would be each other's only neighbours
    if not 1 <= num_neighbours <= len(samples):
        most = f"{len(samples)}, the number of distinct samples"
        raise ValueError(f"num_neighbours must be between 1 and {most}; got {num_neighbours}")
    paths = []
    for ends in torch.stack([a, b], 1).flatten(2):
        vertices = torch.cat([ends, samples])
        order = _shortest(vertices.cpu().double().numpy(), num_neighbours)
        paths.append(resample(vertices[order][None], num_segments))
    path = torch.cat(paths).unflatten(2, a.shape[1:])
    path[:, 0], path[:, -1] = a, b
    return path


def _require_ends(a: Tensor, b: Tensor, num_segments: int) -> None:
    require_pair(a, b)
    same = (a == b).flatten(1).all(1)
    if same.any():
        raise ValueError(f"a and b must differ, as a point is no path; they are equal in row {int(same.nonzero()[0])}")
    require_at_least(2, num_segments=num_segments)


def _shortest(vertices: np.ndarray, num_neighbours: int) -> list[int]:
    """Return the vertices of the shortest path from vertex 0 to vertex 1."""
    lengths, neighbours = KDTree(vertices).query(vertices, num_neighbours + 1)  # each is its own nearest neighbour
    rows = np.repeat(np.arange(len(vertices)), num_neighbours + 1)
    edges = rows != neighbours.ravel()
    graph = coo_array(
        (lengths.ravel()[edges], (rows[edges], neighbours.ravel()[edges])), shape=(len(vertices),) * 2
    ).tocsr()
    before = dijkstra(graph, directed=False, indices=0, return_predecessors=True)[1]
    if before[1] < 0:
        how = "raise it, or give more samples"
        raise ValueError(f"num_neighbours = {num_neighbours} leaves a and b unconnected; {how}")
    order = [1]
    while order[-1] != 0:
        order.append(int(before[order[-1]]))
    return order[::-1]
