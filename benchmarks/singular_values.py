"""Time the leading singular values of the faces32 encoder against a dense Jacobian and its SVD.

    python benchmarks/singular_values.py --models base isometric --rows 32 --threads 1 2

The Jacobian of X_t → H (3,072 → 1,536) on the tangent space of the sphere at true x_t, the leading 50 values. Each run
takes the routes in turn on the same points; medians of the seconds a point are compared.

- ours: ``singular_values(criterion="values")`` on all rows at once.
- dense: the whole Jacobian, row by row, then ``torch.linalg.svdvals``. The Jacobian comes from one forward graph over
  copies of the point and as many vector-Jacobian products at once; this was faster than ``jacrev``, below.
- jacrev: the same with ``torch.func.jacrev`` in chunks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.datasets import open_dataset
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry import project_to_tangent, singular_values
from isodiff.metrics.spectrum import noisy_images

K = 50
CHUNK = 64
Map = Callable[[Tensor], Tensor]


def dense_by_copies(f: Map, x: Tensor) -> Tensor:
    """Return the tangent Jacobian (m, n) at one point (1, *S) from one graph over ``CHUNK`` copies of it."""
    copies = x.expand(CHUNK, *x.shape[1:]).contiguous().requires_grad_()
    y = f(copies)
    units = torch.eye(y[0].numel(), device=x.device).reshape(-1, *y.shape[1:])
    products = [torch.autograd.grad(y, copies, u, retain_graph=True)[0] for u in units.split(CHUNK)]
    return torch.cat([project_to_tangent(v, copies.detach()) for v in products]).flatten(1)


def dense_by_jacrev(f: Map, x: Tensor) -> Tensor:
    """Return the tangent Jacobian (m, n) at one point (1, *S) from `torch.func.jacrev`."""
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.func.jacrev(lambda z: f(z[None]).flatten(), chunk_size=CHUNK)(x[0])
    return project_to_tangent(jacobian, x.expand_as(jacobian)).flatten(1)


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["base", "isometric"], help="of faces32")
    parser.add_argument("--rows", type=int, default=32, help="points")
    parser.add_argument("--steps", type=int, nargs="+", default=[600], help="diffusion steps t")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each")
    parser.add_argument("--dense-rows", type=int, default=1, help="points that the dense routes are timed on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    images = torch.stack(list(open_dataset("faces", 32, seed=1).__getitems__(list(range(options.rows))))).to(device)
    print("model      t  threads   ours s   dense s  jacrev s  dense/ours  jacrev/ours  largest error %  CPU ratio")
    for name in options.models:
        pipeline = load_pipeline(f"faces32/{name}").to(device)
        pipeline.unet.requires_grad_(False)
        for t in options.steps:
            x = noisy_images(pipeline.scheduler, images, t, seed=0)
            for threads in options.threads:
                torch.set_num_threads(threads)
                print(_row(name, t, threads, partial(encode, pipeline.unet, t=t), x, options), flush=True)


def _row(name: str, t: int, threads: int, f: Map, x: Tensor, options: argparse.Namespace) -> str:
    points = x[: options.dense_rows]

    def ours() -> Tensor:
        return singular_values(f, x, K, tangent=True, criterion="values")

    def dense(jacobian: Callable[[Map, Tensor], Tensor]) -> Tensor:
        return torch.stack([torch.linalg.svdvals(jacobian(f, p[None]))[:K] for p in points])

    routes = {"ours": ours, "copies": partial(dense, dense_by_copies), "jacrev": partial(dense, dense_by_jacrev)}
    counts = {"ours": len(x), "copies": len(points), "jacrev": len(points)}
    seconds, processor, values = {k: [] for k in routes}, {k: [] for k in routes}, {}
    for _ in range(options.repeats):
        for route, run in routes.items():
            wall, cpu = time.perf_counter(), time.process_time()
            values[route] = run().cpu()  # which also waits for the device
            seconds[route].append((time.perf_counter() - wall) / counts[route])
            processor[route].append((time.process_time() - cpu) / counts[route])
    error = (values["ours"][: len(points)] / values["copies"] - 1).abs().max().item()
    a, b, c = (statistics.median(seconds[route]) for route in routes)
    ratio = statistics.median(processor["copies"]) / statistics.median(processor["ours"])
    times = f"{a:>8.3f} {b:>9.3f} {c:>9.3f} {b / a:>11.1f} {c / a:>12.1f}"
    return f"{name:<10} {t} {threads:>7} {times} {100 * error:>16.3f} {ratio:>10.1f}"


if __name__ == "__main__":
    main()
