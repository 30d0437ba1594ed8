"""Time tangential geodesics between faces: seconds a pair, against how many pairs are solved at once and by whom.

    python benchmarks/geodesics.py --pairs 1 2 4 --segments 16

- ours: `solve_geodesic`, L-BFGS preconditioned by the path's Laplacian, in batches of pairs.
- Adam: the same energy and criteria with the optimiser the image literature takes, on the first pair.

Given are seconds a pair, whether the path converged, iterations, and energy over the lower bound, for pairs of rendered
faces inverted to τ = 0.6 T. Every pair of ends is new to both.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import DDPMScheduler

from isodiff.diffusion.noise_level import NoiseLevel
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry.geodesics import GeodesicResult, solve_geodesic
from isodiff.metrics.evaluation import real_images


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="faces32/base", help="a directory or the name of a shipped model of faces")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4], help="pairs given at once")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--pieces", type=int, default=2, help="K, pieces a segment")
    parser.add_argument("--share", type=float, default=0.6, help="noise level, share of T")
    parser.add_argument("--adam", type=int, default=300, help="iterations of Adam; 0 leaves it out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    pipeline = load_pipeline(options.model)
    unet = pipeline.unet.to(options.device).eval().requires_grad_(False)
    free = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    level = NoiseLevel(unet, free, share=options.share)
    images = real_images("faces", unet.config.sample_size, 2 * max(options.pairs)).to(options.device)
    points = level.invert(images, refinements=5).latents

    def solve(pairs: int, **how: object) -> tuple[float, GeodesicResult]:
        began = time.perf_counter()
        found = solve_geodesic(
            level.score,
            points[: 2 * pairs : 2],
            points[1 : 2 * pairs : 2],
            sigma=level.sigma,
            num_segments=options.segments,
            num_subsamples=options.pieces,
            batch_size=64,
            **how,
        )
        return (time.perf_counter() - began) / pairs, found

    print(f"{options.model}, t = {level.t}, {options.segments} segments of {options.pieces} pieces, {options.device}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print("optimiser   pairs   s/pair   against one   converged   iterations   energy/bound")
    runs = [("ours", pairs, {}) for pairs in options.pairs]
    if options.adam:
        runs.append(("Adam", 1, {"optimizer": "adam", "max_iterations": options.adam}))
    first = None
    for name, pairs, how in runs:
        seconds, found = solve(pairs, **how)
        first = first or seconds
        print(
            f"{name:9} {pairs:7} {seconds:8.1f} {seconds / first:12.2f}×  {found.converged.float().mean():9.2f} "
            f"{found.iterations.float().mean():12.0f} {(found.energy / found.lower_bound).mean():14.4f}"
        )


if __name__ == "__main__":
    main()
