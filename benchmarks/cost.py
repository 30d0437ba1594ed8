r"""Measure what the regulariser costs: time and peak memory beside plain training, the released code and the paper.

    python benchmarks/cost.py                    # about 10 minutes on two cores
    python benchmarks/cost.py --device cuda --resolutions 32 64 128 256 --batches 1 8 32 --limit-seconds 600

Three parts, written to `cost.json` in `--output`; `--parts` takes some of them.

- `steps`: forward and backward into the parameters on the faces32 architecture, over resolution and batch: `dsm` (the
  denoising loss), `full` (the isometry term by double backward), `differences` (the same by central differences),
  `fraction` (`full` on a quarter of the rows), `released` (the formula of the released code, repaired). One probe, t =
  600. Times are medians of interleaved runs, of wall clock and of CPU seconds; memory is the peak of one step above
  what was held before it, without gradients.
- `paper`: the architecture of google/ddpm-celebahq-256 with random weights at 256 pixels, batch 1: one product Jv and
  one Jᵀu of the encoder, one step of the term by differences, recomputed, and the whole Jacobian *extrapolated* as
  32,768 products Jᵀu, beside App. A.2 of Hahm et al. 2024 (A100: 202.77 s and 24 GB, 0.6 s a product).
- `processes`: images a second of `finetune` on 1 and 2 processes at one global batch.

What would take longer than `--limit-seconds` or more memory than `--limit-gib`, as extrapolated from the size before
it, is left out, and the reason is recorded. The CUDA branch has not been run by the authors.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from released import released_traces
from timing import facts, interleaved, peak_memory
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion import FinetuneConfig, build_pipeline, build_unet, checkpointing, dsm_loss, encode
from isodiff.diffusion.finetune import finetune
from isodiff.geometry import Linearisation, trace_samples

T, FRACTION = 600, 0.25
PAPER = {"full_jacobian_seconds": 202.77, "full_jacobian_gib": 24, "jvp_seconds": 0.6, "device": "A100"}


def ratio_backward(traces: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, v: Tensor) -> None:
    """Take one gradient of the ratio of means."""
    first, second = traces(x, v[None])
    (second.mean() / first.mean().square()).backward()


def ways_of(unet: UNet2DModel, batch: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return one step of each way at a batch, all on the same rows."""
    generator = torch.Generator().manual_seed(0)
    side, scheduler = unet.config.sample_size, DDPMScheduler()
    x, v = (torch.randn(batch, 3, side, side, generator=generator).to(device) for _ in range(2))
    times, at = torch.full((batch,), T, device=device), torch.tensor(T, device=device)

    def ours(x: Tensor, probes: Tensor, route: str = "double_backward") -> tuple[Tensor, Tensor]:
        return trace_samples(partial(encode, unet, t=at), x, probes=probes, route=route)

    rows = max(1, round(FRACTION * batch))
    ways = {
        "dsm": lambda: dsm_loss(unet, scheduler, x, times, v).backward(),
        "full": lambda: ratio_backward(ours, x, v),
        "differences": lambda: ratio_backward(partial(ours, route="differences"), x, v),
        "fraction": lambda: ratio_backward(ours, x[:rows], v[:rows]),
        "released": lambda: ratio_backward(lambda x, probes: released_traces(unet, x, at, probes), x, v),
    }
    return {name: way for name, way in ways.items() if name != "fraction" or rows < batch}


def whole_steps(ways: dict[str, dict]) -> dict[str, dict]:
    """Compose steps at p = 0.5 of their passes, which follow one another: times add up, the larger peak counts."""
    dsm, released_peak = ways["dsm"], max(ways["dsm"]["mib"] or 0, ways["released"]["mib"] or 0)
    found = {}
    for name in ways.keys() & {"full", "differences", "fraction", "released"}:
        seconds = dsm["cpu_seconds"] + 0.5 * ways[name]["cpu_seconds"]
        found[name] = {"time_of_control": seconds / dsm["cpu_seconds"]}
        if released_peak:
            found[name]["peak_of_released"] = max(dsm["mib"], ways[name]["mib"]) / released_peak
    return found


def measure_steps(options: argparse.Namespace, device: torch.device) -> list[dict]:
    """Time every way at every resolution and batch that fits the limits."""
    found: list[dict] = []
    for batch in options.batches:
        seconds_a_pixel = mib_a_pixel = 0.0
        for side in options.resolutions:
            pixels, cell = batch * side**2, {"resolution": side, "batch": batch}
            seconds, gib = seconds_a_pixel * pixels, mib_a_pixel * pixels / 1024
            if seconds > options.limit_seconds or gib > options.limit_gib:
                found.append(cell | {"left_out": f"about {seconds:.0f} s and {gib:.1f} GiB expected"})
                continue
            unet = build_unet("faces32", resolution=side).to(device)
            ways = ways_of(unet, batch, device)
            for way in ways.values():  # gradients are allocated before memory is measured
                way()
            cell["ways"] = interleaved(ways, options.repeats, device)
            for name, way in ways.items():
                cell["ways"][name]["mib"] = peak_memory(way, device)
            cell["whole_steps_at_p_half"] = whole_steps(cell["ways"])
            found.append(cell)
            total = sum(way["seconds"] for way in cell["ways"].values())
            seconds_a_pixel = (options.repeats + 3) * total / pixels
            mib_a_pixel = max(way["mib"] or 0 for way in cell["ways"].values()) / pixels
            row = ", ".join(f"{k} {v['cpu_seconds']:.3f} s {v['mib'] or 0:.0f} MiB" for k, v in cell["ways"].items())
            print(f"{side} pixels, batch {batch}: {row}", flush=True)
    return found


def measure_paper(options: argparse.Namespace, device: torch.device) -> dict:
    """Time products and a step on the paper's architecture, and extrapolate its whole Jacobian."""
    unet = build_unet("ddpm-256", resolution=options.paper_resolution).to(device)
    side, generator = options.paper_resolution, torch.Generator().manual_seed(0)
    x, v = (torch.randn(1, 3, side, side, generator=generator).to(device) for _ in range(2))
    f = partial(encode, unet, t=torch.tensor(T, device=device))
    unet.requires_grad_(False)  # the products alone need no gradient in the weights
    with torch.no_grad():
        at_x = Linearisation(f, x)
    u = torch.randn(at_x.y.shape, generator=generator).to(device)
    products = {"jvp": partial(at_x.jvp, v), "vjp": partial(at_x.vjp, u)}  # all share one graph
    timed = interleaved(products, options.repeats, device)
    outputs = at_x.y[0].numel()
    del at_x, products
    unet.requires_grad_(True)

    def step() -> None:
        with checkpointing(unet, True):
            ratio_backward(lambda x, probes: trace_samples(f, x, probes=probes, route="differences"), x, v)

    # gradients are allocated before memory is measured
    took = interleaved({"one": step}, 1, device)["one"]
    timed["step, differences, recomputed"] = took | {"mib": peak_memory(step, device)}
    print(json.dumps(timed), flush=True)
    return {
        "resolution": side,
        "outputs": outputs,
        "measured": timed,
        "full_jacobian_extrapolated": {
            "seconds": outputs * timed["vjp"]["seconds"],
            "cpu_seconds": outputs * timed["vjp"]["cpu_seconds"],
            "gib": outputs * x.numel() * 4 / 2**30,
            "rule": "outputs × one vector-Jacobian product on a shared graph; memory of the float32 matrix alone",
        },
        "paper": PAPER,
    }


def measure_processes(options: argparse.Namespace, device: torch.device) -> dict:
    """Start training on 1 and 2 processes and read how many steps a second it makes."""
    found = {}
    for count in (1, 2):
        launch = ["-m", "accelerate.commands.launch", "--num_processes", str(count), "--main_process_port", "0"]
        extra = ["--multi_gpu"] if count > 1 else []  # without a GPU it means several processes
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, *launch, *extra, __file__, "--worker", "--device", str(device)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
        found[str(count)] = json.loads(told.splitlines()[-1])
    return {"threads_a_process": 1, "by_processes": found}


def work(device: torch.device, steps: int = 12) -> None:
    """Train a little as one of several processes; the main one prints what it took."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    config = FinetuneConfig(num_steps=steps, batch_size=16, p=0.0, normalize=True)
    loop = finetune(build_pipeline("faces32"), open_dataset("faces", 32), config, accelerator=accelerator)
    ends = [time.perf_counter() for _ in loop]
    if accelerator.is_main_process:
        rate = (steps - 2) / (ends[-1] - ends[1])  # the first two warm up
        print(json.dumps({"steps_a_second": rate, "batch": config.batch_size, "images_a_second": 16 * rate}))


def main() -> None:
    """Parse the options, run, and write the results."""
    parts: dict[str, Callable] = {"steps": measure_steps, "paper": measure_paper, "processes": measure_processes}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each, after one for warm-up")
    parser.add_argument("--paper-resolution", type=int, default=256)
    parser.add_argument("--limit-seconds", type=float, default=120, help="for one resolution and batch")
    parser.add_argument("--limit-gib", type=float, default=2.5, help="for one step")
    parser.add_argument("--output", type=Path, default=Path("data/results/cost"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.worker:
        work(device)
        return
    file = options.output / "cost.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    for name in options.parts:
        result[name] = {"found": parts[name](options, device), **facts(device), "repeats": options.repeats}
        options.output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: written to {file}", flush=True)


if __name__ == "__main__":
    main()
