"""Time a plain step of training, a step with the isometry term, and the released formula of the term, on faces32.

    python benchmarks/isometry_step.py --against ../before    # and new / old, of this code and another checkout's

`plain` and `with term` are whole steps of `finetune`, with one probe at every step; `term` and `released` are value and
gradient of the term alone. All are interleaved in one process; two versions alternate in processes of their own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from released import released_traces
from timing import interleaved

from isodiff.datasets import open_dataset
from isodiff.diffusion import FinetuneConfig, build_pipeline, encode
from isodiff.diffusion.finetune import finetune
from isodiff.geometry import estimate_loss, trace_samples


def ways_of(batch: int, accelerator: Accelerator, released: bool = True) -> dict[str, Callable[[], object]]:
    """Return one step of each way."""
    ways, images = {}, open_dataset("faces", 32)
    for name, weight in (("plain", 0.0), ("with term", 1e-4)):
        config = FinetuneConfig(num_steps=10_000, batch_size=batch, lambda_iso=weight, p=0.0, checkpoint_every=10_000)
        ways[name] = partial(next, finetune(build_pipeline("faces32"), images, config, accelerator=accelerator))
    unet, t = build_pipeline("faces32").unet.to(accelerator.device), torch.tensor(600, device=accelerator.device)
    x, v = torch.randn(2, batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(accelerator.device)

    def term(traces: Callable) -> None:
        unet.zero_grad()
        estimate_loss(*traces(x, probes=v[None])).backward()

    ours, theirs = partial(trace_samples, partial(encode, unet, t=t)), partial(released_traces, unet, t=t)
    return ways | {"term": partial(term, ours)} | ({"released": partial(term, theirs)} if released else {})


def seconds(ways: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median CPU seconds of each way, or seconds by the clock on a GPU."""
    clock = "cpu_seconds" if device.type == "cpu" else "seconds"
    return [way[clock] for way in interleaved(ways, repeats, device).values()]


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--repeats", type=int, default=5, help="of each way, interleaved, after a round for warm-up")
    parser.add_argument("--against", type=Path, help="folder of another checkout")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options, accelerator = parser.parse_args(), Accelerator()
    if options.worker:  # a line with a batch asks for one round
        ways = {batch: ways_of(batch, accelerator, released=False) for batch in options.batches}
        for line in sys.stdin:
            print(json.dumps(seconds(ways[int(line)], 1, accelerator.device)), flush=True)
        return
    print("batch    plain  with term    term  released s   with term / plain  term / plain  released / term")
    for batch in options.batches:
        plain, whole, term, released = seconds(ways_of(batch, accelerator), options.repeats, accelerator.device)
        ratios = f"{whole / plain:20.2f} {term / plain:13.2f} {released / term:16.2f}"
        print(f"{batch:5} {plain:8.3f} {whole:10.3f} {term:7.3f} {released:11.3f}{ratios}", flush=True)
    if not options.against:
        return
    command, pipes = [sys.executable, __file__, "--worker", *sys.argv[1:]], {"stdin": -1, "stdout": -1, "text": True}
    folders = (Path(__file__).resolve().parents[1], options.against.resolve())
    workers = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(f)}, **pipes) for f in folders]
    print("new / old, medians of pairs: batch       plain  with term       term")
    for batch in options.batches:
        told = ([], [])
        for turn in range(options.repeats):
            for which in (turn % 2, 1 - turn % 2):
                print(batch, file=workers[which].stdin, flush=True)
                told[which].append(json.loads(workers[which].stdout.readline()))
        ratios = (torch.tensor(told[0]) / torch.tensor(told[1])).quantile(0.5, 0).tolist()
        print(f"{batch:33}  " + "".join(f"{ratio:11.3f}" for ratio in ratios), flush=True)
    [worker.communicate() for worker in workers]


if __name__ == "__main__":
    main()
