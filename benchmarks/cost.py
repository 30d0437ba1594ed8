r"""Measure what the regulariser costs: time and peak memory beside plain training, the released code and the paper.

    python benchmarks/cost.py                    # about 10 minutes on two cores
    python benchmarks/cost.py --device cuda --resolutions 32 64 128 256 --batches 1 8 32 --limit-seconds 600

Four parts, written to `cost.json` in `--output`; `--parts` takes some of them.

- `steps`: forward and backward into the parameters on the faces32 architecture, over resolution and batch: `dsm` (the
  denoising loss), `full` (the isometry term by double backward), `differences` (the same by central differences),
  `fraction` (`full` on a quarter of the rows), `released` (the formula of the released code, repaired). One probe, t =
  600. Lazy regularisation costs `full` / k on average and as much memory. Times are medians of interleaved runs, of
  wall clock and of CPU seconds; memory is the peak of one step above what was held before it, without gradients.
- `paper`: the architecture of google/ddpm-celebahq-256 with random weights at 256 pixels, batch 1: one product Jv and
  one Jᵀu of the encoder, one step of the term, and the whole Jacobian *extrapolated* as 32,768 products Jᵀu, beside
  App. A.2 of Hahm et al. 2024 (A100: 202.77 s and 24 GB, 0.6 s a product).
- `samples`: images a second of `ddim_sample` and of diffusers' `DDIMPipeline`, after a check that the images are equal.
- `processes`: steps a second of `finetune` on 1 and 2 processes at one global batch.

What would take longer than `--limit-seconds` or more memory than `--limit-gib`, as extrapolated from the size before
it, is left out, and the reason is recorded. The CUDA branch has not been run by the authors.
"""

from __future__ import annotations

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
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from released import released_traces
from timing import facts, interleaved, peak_memory
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion import (
    FinetuneConfig,
    build_pipeline,
    build_unet,
    checkpointing,
    ddim_sample,
    dsm_loss,
    encode,
    load_pipeline,
)
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

    def released(x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        return released_traces(unet, x, at, probes)

    rows = max(1, round(FRACTION * batch))
    ways = {
        "dsm": lambda: dsm_loss(unet, scheduler, x, times, v).backward(),
        "full": lambda: ratio_backward(ours, x, v),
        "differences": lambda: ratio_backward(partial(ours, route="differences"), x, v),
        "fraction": lambda: ratio_backward(ours, x[:rows], v[:rows]),
        "released": lambda: ratio_backward(released, x, v),
    }
    if rows == batch:
        del ways["fraction"]

    def recomputed(name: str) -> None:
        with checkpointing(unet, True):
            ways[name]()

    return ways | {f"{name}, recomputed": partial(recomputed, name) for name in ("dsm", "differences")}


def whole_steps(ways: dict[str, dict]) -> dict[str, dict]:
    """Compose steps at p = 0.5 of their passes, which follow one another: times add up, the larger peak counts."""
    released_peak = max(ways["dsm"]["mib"] or 0, ways["released"]["mib"] or 0)
    plans = {name: ("dsm", name, 1) for name in ("full", "differences", "fraction", "released")}
    plans |= {"lazy": ("dsm", "full", 4), "fraction, dsm recomputed": ("dsm, recomputed", "fraction", 1)}
    plans |= {"differences, all recomputed": ("dsm, recomputed", "differences, recomputed", 1)}
    found = {}
    for plan, (dsm, term, every) in plans.items():
        if term in ways:
            seconds = ways[dsm]["cpu_seconds"] + 0.5 * ways[term]["cpu_seconds"] / every
            found[plan] = {"time_of_control": seconds / ways["dsm"]["cpu_seconds"]}
            if released_peak:
                found[plan]["peak_of_released"] = max(ways[dsm]["mib"], ways[term]["mib"]) / released_peak
    return found


def measure_steps(options: argparse.Namespace, device: torch.device) -> list[dict]:
    """Time every way at every resolution and batch that fits the limits."""
    found: list[dict] = []
    for batch in options.batches:
        seconds_a_pixel = mib_a_pixel = 0.0
        for side in options.resolutions:
            pixels, cell = batch * side**2, {"resolution": side, "batch": batch}
            if reason := _too_much(options, seconds_a_pixel * pixels, mib_a_pixel * pixels):
                found.append(cell | {"left_out": reason})
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

    def product() -> None:
        with torch.no_grad():
            Linearisation(f, x).jvp(v)

    timed["jvp"]["mib"] = peak_memory(product, device)
    timed["jvp, new graph"] = interleaved({"one": product}, 1, device)["one"]
    unet.requires_grad_(True)

    def step(route: str, recompute: bool) -> None:
        with checkpointing(unet, recompute):
            ratio_backward(lambda x, probes: trace_samples(f, x, probes=probes, route=route), x, v)

    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    names = {
        "step, differences, recomputed": ("differences", True),
        "step, double backward": ("double_backward", False),
    }
    for name, (route, recompute) in names.items():
        # double backward keeps about four times what the graph of one product keeps
        expected = 4 * (timed["jvp"]["mib"] or 0) if route == "double_backward" else 0.0
        if reason := _too_much(options, 0.0, expected):
            timed[name] = {"left_out": reason}
            continue
        began, began_cpu = time.perf_counter(), time.process_time()
        mib = peak_memory(partial(step, route, recompute), device)
        timed[name] = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
            "mib": mib,
        }
    print(json.dumps(timed), flush=True)
    return {
        "resolution": side,
        "parameters": sum(p.numel() for p in unet.parameters()),
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


def measure_samples(options: argparse.Namespace, device: torch.device) -> dict:
    """Check that both samplers give the same images, then time them."""
    pipeline = load_pipeline("faces32/base").to(device)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    stock = DDIMPipeline(unet=pipeline.unet, scheduler=scheduler)
    stock.set_progress_bar_config(disable=True)
    count, steps = options.samples, 20

    def ours() -> Tensor:
        latents = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            return (ddim_sample(pipeline.unet, pipeline.scheduler, latents, steps) / 2 + 0.5).clamp(0, 1)

    def theirs() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = stock(count, generator, eta=0.0, num_inference_steps=steps, output_type="np").images
        return torch.from_numpy(images).movedim(3, 1)

    difference = (ours().cpu() - theirs()).abs().max().item()
    assert difference < 1e-4, f"the images differ by {difference}"
    timed = interleaved({"ours": ours, "diffusers": theirs}, options.repeats, device)
    rates = {name: count / way["cpu_seconds" if device.type == "cpu" else "seconds"] for name, way in timed.items()}
    return {"model": "faces32/base", "images": count, "ddim_steps": steps, "largest_difference": difference} | {
        "timed": timed,
        "images_a_second": rates,
    }


def measure_processes(options: argparse.Namespace, device: torch.device) -> dict:
    """Start training on 1 and 2 processes and read how many steps a second it makes."""
    found = {}
    for count in (1, 2):
        launch = ["-m", "accelerate.commands.launch", "--num_processes", str(count), "--main_process_port", "0"]
        extra = ["--multi_gpu"] if count > 1 else []  # without a GPU it means several processes
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, *launch, *extra, __file__, "--worker", "--device", str(device)]
        finished = subprocess.run(command, capture_output=True, text=True, env=environment)
        if finished.returncode:
            lines = finished.stderr.strip().splitlines()
            found[str(count)] = {"left_out": lines[-1] if lines else f"exit status {finished.returncode}"}
            continue
        found[str(count)] = json.loads(finished.stdout.splitlines()[-1])
    return {"threads_a_process": 1, "by_processes": found}


def work(device: torch.device, steps: int = 12) -> None:
    """Train a little as one of several processes; the main one prints what it took."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    config = FinetuneConfig(num_steps=steps, batch_size=16, p=0.0, normalize=True)
    pipeline, images = build_pipeline("faces32"), open_dataset("faces", 32)
    ends = []
    for _ in finetune(pipeline, images, config, accelerator=accelerator):
        ends.append(time.perf_counter())
    if accelerator.is_main_process:
        rate = (steps - 2) / (ends[-1] - ends[1])  # the first two warm up
        print(json.dumps({"steps_a_second": rate, "batch": config.batch_size, "images_a_second": 16 * rate}))


def _too_much(options: argparse.Namespace, seconds: float, mib: float) -> str | None:
    if seconds > options.limit_seconds:
        return f"about {seconds:.0f} s expected, more than --limit-seconds {options.limit_seconds:g}"
    if mib > 1024 * options.limit_gib:
        return f"about {mib / 1024:.1f} GiB expected, more than --limit-gib {options.limit_gib:g}"
    return None


def main() -> None:
    """Parse the options, run, and write the results."""
    parts: dict[str, Callable] = {
        "steps": measure_steps,
        "paper": measure_paper,
        "samples": measure_samples,
        "processes": measure_processes,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--resolutions", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each, after one for warm-up")
    parser.add_argument("--paper-resolution", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16)
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
