r"""How evenly a morph changes: statistics of the distances between adjacent frames, whatever made the frames.

With frames x₀ … x_N of a pair of images a and b, d the LPIPS distance, dᵢ = d(xᵢ₋₁, xᵢ) and d̄ their mean,

    PPL = Σ dᵢ, or as a mean d̄ = Σ dᵢ / N        PDV = √(Σ (dᵢ − d̄)² / N)        largest step = max dᵢ
    jerkiness = max dᵢ / d̄ = N max dᵢ / Σ dᵢ     end distance = (d(x₀, a) + d(x_N, b)) / 2

(PPL and PDV of frames: Saito and Matsubara 2025). Over n pairs each is a mean with Student's interval. As LPIPS is of
second order in a small change, twice as many frames about halve the sum and quarter the mean: compare at equal N.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import t as student
from torch import Tensor
from tqdm import tqdm

from isodiff.datasets import open_morphs
from isodiff.files import resolve_device
from isodiff.metrics.interpolation import smoothness
from isodiff.metrics.measure import Arrays, Measurement, Record, content_digest, git_revision, over_points, versions
from isodiff.metrics.networks import Net, perceptual_distance
from isodiff.metrics.path_length import Distance, describe, measure_all

DEFINITIONS = {
    "ppl_sum": "sum of the distances of adjacent frames",
    "ppl_mean": "mean of the distances of adjacent frames: the sum over the number of steps N",
    "pdv": "standard deviation of the distances of adjacent frames, N in the denominator",
    "largest_step": "largest distance of adjacent frames",
    "jerkiness": "largest over mean distance of adjacent frames: 1 at constant speed, N for one jump, without scale",
    "end_distance": "mean distance of the end frames to their originals, cut centrally and resized to the frames",
}
CAUTIONS = {
    "network": "distances on AlexNet and on VGG differ by a factor, and so do versions of LPIPS",
    "resolution": "the same paths at another size, or cut or compressed otherwise, have other distances",
    "sum or mean": "papers call both PPL; here both are given, and the sum is N times the mean",
    "frames a path": "LPIPS is of second order: twice the frames, about half the sum and a quarter of the mean",
    "denominator": "PDV with N − 1 is larger by √(N / (N − 1)); others give the variance",
}


def frame_statistics(distances: ArrayLike) -> dict[str, float]:
    """Return PPL as sum and mean, PDV, largest step and jerkiness of one path's adjacent distances, (N,) with N ≥ 1."""
    d = np.asarray(distances, dtype=float)
    mean, maximum, variance, jerkiness = (float(of_path[0]) for of_path in smoothness(d[None]))
    spread = {"pdv": math.sqrt(variance), "largest_step": maximum, "jerkiness": jerkiness}
    return {"ppl_sum": float(d.sum()), "ppl_mean": mean, **spread}


def student_interval(values: ArrayLike) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of independent values, ``m ± t(0.975; n − 1) s / √n``; None if n is 1."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return None
    mean, reach = values.mean(), student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(mean - reach), float(mean + reach)


def pair_distances(pairs: Tensor, distances: Mapping[str, Distance]) -> Arrays:
    """Return by name the distances (n,) of n pairs of images (n, 2, 3, H, W) in uint8."""

    @torch.no_grad()
    def compute(some: Tensor, start: int) -> Arrays:
        first, second = (some.float() / 127.5 - 1).unbind(1)
        return measure_all(distances, first, second)

    size = max(1, 2**17 // pairs[0, 0, 0].numel())  # VGG has 64 numbers a pixel, and more behind
    found = over_points(compute, pairs, size=size, what="frames", version=2, distances=describe(distances))
    return {name: found[f"distance {name}"] for name in distances}


def evaluate_frames(
    folders: Sequence[str | Path],
    *,
    originals: str | Path | None = None,
    resolution: int | None = None,
    nets: Sequence[Net] = get_args(Net),
    name: str = "frames",
    device: str = "auto",
    progress: bool = False,
) -> Record:
    """Measure paths that lie as frames in folders, one a pair, or in one folder with a sub-folder a pair.

    Folders, `originals` and `resolution` are those of `open_morphs`. The record, of the frames' `name`, has
    ``<statistic>_<net>`` for the keys of `DEFINITIONS`, and the steps of each path in the details of ``ppl_sum``.
    """
    morphs, place = open_morphs(folders, originals=originals, resolution=resolution), resolve_device(device)
    distances = {net: perceptual_distance(net, device=place) for net in nets}
    found: dict[str, list[np.ndarray]] = {net: [] for net in nets}
    digests, known = [], []
    for morph in tqdm(morphs, desc="frames", unit="pair", disable=not progress):
        frames = morph.load()
        digests.append(content_digest(frames))
        pairs = torch.stack([frames[:-1], frames[1:]], 1)
        if morph.originals:  # to each end its own, then the other's
            ends = morph.load_originals()
            known.append(content_digest(ends))
            pairs = torch.cat([pairs, torch.stack([frames[[0, -1, 0, -1]], ends[[0, 1, 1, 0]]], 1)])
        for net, d in pair_distances(pairs, distances).items():
            found[net].append(d)
    alike = [{key: morph.facts[key] for key in ("pair", "frames", "size")} for morph in morphs]
    protocol: dict[str, Any] = {key: sorted({one[key] for one in alike}) for key in ("frames", "size")}
    protocol["resize"] = "none" if resolution is None else f"central square, Lanczos, to {resolution} pixels"
    protocol |= {"pairs": content_digest(*map(str, alike))[:12], "interval": "Student's t over pairs, 95 %"}
    measured = {}
    for net, described in describe(distances).items():
        steps = [d[: len(morph.frames) - 1] for morph, d in zip(morphs, found[net], strict=True)]
        rows = [frame_statistics(d) for d in steps]
        values = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        details = {"ppl_sum": {"steps": {m.name: d.round(9).tolist() for m, d in zip(morphs, steps, strict=True)}}}
        if known:
            first, last, *crossed = np.stack([d[-4:] for d in found[net]]).T
            values["end_distance"] = (first + last) / 2
            details["end_distance"] = {"first": first.round(9).tolist(), "last": last.round(9).tolist()}
            for morph in np.array(morphs)[sum(crossed) < first + last]:
                order = " and ".join(path.name for path in morph.originals)
                warnings.warn(f"{morph.name} runs from the second of its originals {order} to the first", stacklevel=2)
        for key, column in values.items():
            fields = {"unit": "pairs", "n": len(column), "seed": 0, "details": details.get(key, {})}
            fields["protocol"] = {**described, "definition": DEFINITIONS[key], **protocol}
            fields |= {"interval": student_interval(column), "replicates": column if len(column) > 1 else None}
            measured[f"{key}_{net}"] = Measurement(name=key, value=float(column.mean()), **fields)
    left_out = {} if len(morphs) > 1 else {"interval": "there is one pair; give two or more"}
    if not known:
        left_out["end_distance"] = "no originals are given; name their folder with --originals"
    settings = {"pairs": [morph.facts for morph in morphs], "what makes papers' numbers differ": CAUTIONS}
    facts = {"dataset": f"originals {content_digest(*known)[:12]}" if known else "no originals", "device": place.type}
    facts |= {"model": name, "digest": content_digest(*digests), "profile": "frames", "seed": 0, "settings": settings}
    return Record(**facts, versions=versions(), revision=git_revision(), measurements=measured, left_out=left_out)
