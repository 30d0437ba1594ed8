"""Time the perceptual path length against sampling the same number of images and calling LPIPS on them.

    python benchmarks/path_length.py --pairs 64 --steps 20 --repeats 5

- ours: `perceptual_path_length` of a shipped model, start to end: drawing by number, slerp in float64, the checks of
  images and distances, the percentile filter and the jackknife.
- alone: the same batches of plain noise through `ddim_sample`, and the lpips package on the images.

Runs are interleaved; given are medians, also of the ratio of neighbouring runs. Also printed: the measured value and,
from an ε-sweep on the first pairs, where rounding begins to count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import lpips
import torch
from torch import Tensor

from isodiff.diffusion.pretrained import load_pipeline
from isodiff.diffusion.process import ddim_sample
from isodiff.metrics.generator import Generator
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_length import epsilon_sweep, perceptual_path_length


@torch.no_grad()
def sampling_and_lpips(generate: Generator, network: lpips.LPIPS, pairs: int, batch: int) -> Tensor:
    """Sample two images a pair and return their distances: the work that no path length can do without."""
    distances = []
    for start in range(0, pairs, batch):
        x_T = torch.randn(2, min(batch, pairs - start), *generate.shape, device=generate.unet.device)
        a, b = (ddim_sample(generate.unet, generate.scheduler, x, generate.num_steps).clamp(-1, 1) for x in x_T)
        distances.append(network(a, b).flatten())
    return torch.cat(distances).cpu()


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="faces32/base", help="a directory or the name of a shipped model")
    parser.add_argument("--pairs", type=int, default=64, help="at least 40")
    parser.add_argument("--batch", type=int, default=32, help="pairs at a time")
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each, after one for warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    generate = Generator(load_pipeline(options.model), options.steps)
    generate.unet.to(device)
    print(f"{options.model}, {options.pairs} pairs, {options.steps} steps, {device}, {torch.get_num_threads()} threads")
    print("net     ours ms/pair   alone ms/pair   ours/alone   path length")

    for net in ("alex", "vgg"):
        distance = perceptual_distance(net, device=device)
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval().to(device)  # weights cost no time
        runs: dict[str, Callable[[], object]] = {
            "ours": lambda d=distance: perceptual_path_length(
                generate, generate.shape, d, num_pairs=options.pairs, batch_size=options.batch
            ),
            "alone": lambda n=network: sampling_and_lpips(generate, n, options.pairs, options.batch),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        results: dict[str, object] = {}
        for run in range(options.repeats + 1):
            for name in sorted(runs, reverse=run % 2 == 1):
                start = time.perf_counter()
                results[name] = runs[name]()
                if run:
                    seconds[name].append(time.perf_counter() - start)
        ours, alone = (1000 * statistics.median(seconds[name]) / options.pairs for name in ("ours", "alone"))
        ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["alone"], strict=True))
        print(f"{net:<5} {ours:>14.2f} {alone:>15.2f} {ratio:>12.3f}   {results['ours']}", flush=True)

    distances = {net: perceptual_distance(net, device=device) for net in ("alex", "vgg")}
    epsilons = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    sweeps = epsilon_sweep(
        generate, generate.shape, distances, epsilons, num_pairs=min(16, options.pairs), batch_size=options.batch
    )
    for net, sweep in sweeps.items():
        print(f"\n{net}: ε, mean of d/ε² over {sweep['num_pairs']} pairs, the part of it that rounding can explain")
        for epsilon, value, floor in zip(epsilons, sweep["value"], sweep["floor"], strict=True):
            print(f"{epsilon:>8.0e} {value:>12.4g} {floor / value:>12.2g}")


if __name__ == "__main__":
    main()
