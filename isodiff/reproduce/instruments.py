"""Controls of the instruments: effects that are built, hence known, and what each instrument shows of them.

Names end in ``_built`` and ``_seen``, both log ratios, where an effect is known in size; the rest are levels.
"""

import dataclasses
import math
from functools import partial

import numpy as np
import torch
from scipy.special import ellipe
from torch import Tensor

from isodiff import datasets, diffusion, metrics
from isodiff.metrics.edits import effects, inversion_error
from isodiff.metrics.evaluation import real_images
from isodiff.metrics.fidelity import extract_features, fid, kid
from isodiff.metrics.jacobians import log_anisotropy, map_anisotropy, map_variance, mean_condition_number
from isodiff.metrics.networks import inception_features, perceptual_distance
from isodiff.metrics.path_length import path_lengths
from isodiff.metrics.separability import linear_separability
from isodiff.metrics.trajectory import trajectory_ratio
from isodiff.metrics.truth import excess_variation, fit_faces

Values = dict[str, float]


def controls(seed: int, *, num_pairs: int, num_points: int, num_latents: int, num_inverted: int) -> Values:
    """Show effects of about 10 % to what measures paths, maps, latents and faces."""
    pipeline, random = diffusion.load_pipeline(f"faces16/base-{seed}"), torch.Generator().manual_seed(seed)
    found = _walk(pipeline, seed, num_pairs) | _arc() | _maps(random, num_points) | _labels(random, num_latents, seed)
    found |= _faces(random, num_pairs) | _moves(random, num_points)
    images = real_images("faces", 16, num_inverted, seed=seed)
    unclipped = dataclasses.replace(diffusion.NoiseSchedule.of(pipeline.scheduler), clip=None)
    for steps in (20, 40):
        measured = inversion_error(pipeline.unet, unclipped, images, steps, distances={}, seed=seed)
        found[f"inversion_{steps}"] = measured["inversion_mse"].value
    return found


def image_controls(seed: int, *, num_images: int) -> Values:
    """Compare with the data other images of it, a model's images, and these with white noise of 0.02 and of 0.05."""
    generate = metrics.Generator(diffusion.load_pipeline(f"faces16/base-{seed}"), 20)
    with torch.no_grad():
        latents = metrics.draw_latents(generate.shape, 0, num_images, seed=seed, stream="controls").split(64)
        images = torch.cat([generate(part) for part in latents])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    real = partial(real_images, "faces", 16, num_images)
    sets = {"real": real(seed=seed), "_floor": real(seed=seed + 1_000), "": images}
    sets |= {"_faint": images + 0.02 * noise, "_noisy": images + 0.05 * noise}
    extractor = inception_features()
    f = {name: extract_features(metrics.to_uint8(x.clamp(-1, 1)).numpy(), extractor) for name, x in sets.items()}
    target = f.pop("real")
    return {f"{d.__name__}{name}": d(target, features).value for d in (fid, kid) for name, features in f.items()}


def _walk(pipeline: object, seed: int, num_pairs: int) -> Values:
    """Walk the same great circles faster, so that PPL is larger by 13 %."""
    generate, built = metrics.Generator(pipeline, 20), 0.12
    options = {"num_pairs": num_pairs, "seed": seed}
    slow, fast = (
        path_lengths(generate, generate.shape, {"alex": perceptual_distance("alex")}, epsilon=epsilon, **options)
        for epsilon in (1e-4, 1e-4 * math.exp(built / 2))
    )
    return {"walk_built": built, "walk_seen": fast["log_alex"].value + built - slow["log_alex"].value}


def _arc() -> Values:
    """Flatten a quarter arc to that of an ellipse with axes 1 and ½, whose length is an elliptic integral."""
    tau, axis = np.linspace(0, math.pi / 2, 9), 0.5
    arcs = [np.stack([np.cos(tau), b * np.sin(tau)], 1)[None] for b in (1.0, axis)]
    round_, flat = (trajectory_ratio(arc).item() - 1 for arc in arcs)
    exact = ellipe(1 - axis**2) / math.hypot(1, axis) - 1
    return {"arc_built": math.log(exact / (math.pi / 2 / math.sqrt(2) - 1)), "arc_seen": math.log(flat / round_)}


def _maps(random: torch.Generator, num_points: int) -> Values:
    """Even out the singular values of linear maps, which are known."""
    rank, some = 60, 10  # the points have no component in the directions that the maps see: those are tangents
    x = torch.cat([torch.zeros(num_points, rank), torch.randn(num_points, 200, generator=random)], 1)
    wide = torch.linspace(0.2, 2, rank)
    before, after = wide, wide**0.8
    maps = [lambda x, s=s: x[:, :rank] * s for s in (before, after)]
    few = [lambda x, s=s: x[:, :some] * s[-some:] ** 4 for s in (before, after)]

    def known(sigma: Tensor) -> float:
        return (len(sigma) * (sigma**4).sum() / (sigma**2).sum() ** 2).log().item()

    condition = [math.log(mean_condition_number(f, x, k=50).value) for f in maps]
    anisotropy = [math.log(map_anisotropy(f, x).value) for f in maps]
    ranked = [log_anisotropy(f, x, rank=some).value for f in few]
    # a scale that a normal coordinate across the map's directions decides, point by point
    scaled = [lambda x, a=a: x[:, :rank] * wide * (1 + a * x[:, [rank]]) for a in (0.1, 0.08)]
    variances = [math.log(map_variance(f, x, k=50).value) for f in scaled]
    ordered = [s.sort(descending=True).values for s in (before, after)]
    return {
        "condition_built": math.log(ordered[1][0] / ordered[1][49]) - math.log(ordered[0][0] / ordered[0][49]),
        "condition_seen": condition[1] - condition[0],
        "variance_built": 2 * math.log(0.8),
        "variance_seen": variances[1] - variances[0],
        "anisotropy_built": known(after) - known(before),
        "anisotropy_seen": anisotropy[1] - anisotropy[0],
        "rank_built": known(after[-some:] ** 4) - known(before[-some:] ** 4),
        "rank_seen": ranked[1] - ranked[0],
    }


def _labels(random: torch.Generator, num_latents: int, seed: int) -> Values:
    """Ask latents for ten attributes that are linear in them, as told by which side of a hyperplane, and for lots."""
    latents = torch.randn(num_latents, 768, generator=random)
    sides = latents @ torch.nn.functional.normalize(torch.randn(768, 10, generator=random), dim=0)
    lots = torch.randn(num_latents, 10, generator=random)
    options = {"names": [f"attribute {i}" for i in range(10)], "num_kept": num_latents // 2, "seed": seed}
    found = {}
    for kernel in ("linear", "rbf"):
        for name, values in {"": sides, "_by_lot": lots}.items():
            scores = [
                linear_separability(latents, values.sigmoid(), kernel=kernel, protocol=protocol, **options).value
                for protocol in ("shuffled", "cross-validated")
            ]
            found[f"told_{kernel}{name}"] = math.log(scores[0] / scores[1])
    return found


def _faces(random: torch.Generator, num_pairs: int) -> Values:
    """Render paths that detour by a known amount, under noise of known size, and fit their factors."""
    ends = datasets.sample_factors(2 * num_pairs, generator=random).unflatten(0, (num_pairs, 2)) * 0.8
    tau = torch.linspace(0, 1, 9).view(1, 9, 1)
    straight = (1 - tau) * ends[:, :1] + tau * ends[:, 1:]
    way = torch.randn(num_pairs, 1, ends.shape[2], generator=random).sign() * 0.2
    noise = torch.randn(num_pairs, 9, 3, 16, 16, generator=random)
    found: dict[str, list[float]] = {"true": [], "excess": [], "distance": []}
    for share, variance in ((1.0, 2e-3), (0.8, 2.2e-3)):
        factors = straight + share * way * torch.sin(math.pi * tau)
        frames = datasets.render(factors.flatten(0, 1), 16).unflatten(0, (num_pairs, 9)) + variance**0.5 * noise
        fitted = fit_faces(frames)
        found["true"].append(math.log(excess_variation(factors).mean()))
        found["excess"].append(math.log(excess_variation(fitted["factors"]).mean()))
        found["distance"].append(math.log(fitted["error"].mean()))
    change = {name: after - before for name, (before, after) in found.items()}
    seen = {"excess_built": change["true"], "excess_seen": change["excess"]}
    return seen | {"distance_built": math.log(1.1), "distance_seen": change["distance"]}


def _moves(random: torch.Generator, num_points: int) -> Values:
    """Move faces along their target and, less so, along every other factor; then a fifth more along these."""
    starts, gammas = 0.2 * datasets.sample_factors(num_points, generator=random), np.linspace(-1, 1, 9)
    noise = 0.02 * torch.randn(num_points, 9, 3, 16, 16, generator=random)
    spilt, seen = [], []
    for other in (0.14, 0.17):
        gains = torch.full(starts.shape[1:], other)
        gains[0] = 0.8
        factors = starts[:, None] + torch.from_numpy(gammas).float()[:, None] * gains
        frames = datasets.render(factors.flatten(0, 1), 16).unflatten(0, (num_points, 9)) + noise
        seen.append(1 - effects(fit_faces(frames)["factors"], gammas).share_at_total.mean())
        spilt.append(1 - (gains[0] / gains.sum()).item())
    return {"spill_built": math.log(spilt[1] / spilt[0]), "spill_seen": math.log(seen[1] / seen[0])}
