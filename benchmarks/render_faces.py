"""Count the faces that the renderer draws in a second.

    python benchmarks/render_faces.py --resolution 16 32 64 256

Wall-clock and processor time, medians of several runs; on a machine that does other work the second is the fair one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from isodiff.datasets.faces import render, sample_factors


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, nargs="+", default=[16, 32, 64, 256], help="sides in pixels")
    parser.add_argument("--pixels", type=int, default=2**22, help="pixels a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs at each resolution, after one for warm-up")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    print(f"{'pixels':>6} {'images':>7} {'images/s':>10} {'images/processor s':>19}")
    for resolution in options.resolution:
        factors = sample_factors(max(1, options.pixels // resolution**2), generator=torch.Generator().manual_seed(0))
        wall, processor = [], []
        for _ in range(options.repeats + 1):
            start = time.perf_counter(), time.process_time()
            render(factors, resolution)
            wall.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
        rates = (len(factors) / statistics.median(times[1:]) for times in (wall, processor))
        print(f"{resolution:>6} {len(factors):>7} {next(rates):>10,.0f} {next(rates):>19,.0f}", flush=True)


if __name__ == "__main__":
    main()
