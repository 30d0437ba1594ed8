r"""Race regularisers to anisotropy at 64 × 64 pixels: what each costs, and what it reaches, at equal steps and seeds.

    python benchmarks/anisotropy_race.py --output data/results/cost

Declared before the runs:

- start: faces32/base, fully convolutional, at 64 pixels, adapted to them by 200 plain steps (batch 8, learning rate
  2e-4, seed 100); every run starts from these weights.
- runs: 40 steps of `isodiff.diffusion.finetune`, batch 8, learning rate 2e-4, p = 0.5, one probe, seeds 0 and 1, the
  normalised weights λ of `LAMBDAS`. Methods: `control` (λ = 0), `full`, `fraction` (a quarter of the rows), `lazy`
  (every 4th step, 4 times as strong), and `released`, the formula of the released code, repaired. The latter is the
  same function of weights, rows and probes as `full` and so takes the same path up to rounding: its best λ is full's,
  and it is run there with seed 0. A draft had 80 steps, the grid 0.01, 0.1, 1, two probes and a measurement every 10
  steps; one run that does not count (`full`, λ = 1, seed 5, 40 steps: anisotropy 42 to 6.0) and the time at hand led to
  the present sizes before the runs that do.
- anisotropy: L_iso · rank of the raw weights on 8 held-out images at t = 550, 750 and 950, one probe a row, the same
  images, noise and probes for every run and step; a ratio of means at each t, then the mean over t. Every 5 steps.
- target: a quarter of the control's anisotropy after the last step, for the same seed. Time to it: steps, interpolated
  log-linearly between measurements, × CPU seconds a step. The latter come from medians of interleaved runs of the
  denoising pass and of each term, weighted by how often the term is taken: the machine's load does not enter.
- best λ of a method: the one that reaches the target in the fewest steps in the mean over the seeds; a run that does
  not reach it counts as infinite; among equals the lowest final anisotropy.
- gradient variance: of the term's contribution to one step at the start, its indicator t ≥ pT included, relative to the
  square of its mean: E‖g‖² / ‖E g‖² − 1 over 24 draws of images, t, noise and probe.

Interrupted and run again, it goes on with the runs that are missing; they lie in `--runs`.
"""

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, UNet2DModel
from race_summary import best_lambda, summarise
from released import released_traces
from timing import facts, interleaved
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion import FinetuneConfig, bottleneck_shape, dsm_loss, encode, load_pipeline, save_pipeline
from isodiff.diffusion.finetune import finetune
from isodiff.files import write_whole
from isodiff.geometry import anisotropy, trace_samples

SIDE, BATCH, STEPS, EVERY = 64, 8, 40, 5
SEEDS, LAMBDAS, TIMES, DRAWS = (0, 1), (0.1, 1.0, 10.0), (550, 750, 950), 24
ADAPT = FinetuneConfig(num_steps=200, batch_size=BATCH, learning_rate=2e-4, lambda_iso=0.0, ema_decay=0.0, seed=100)
RACE = FinetuneConfig(num_steps=STEPS, batch_size=BATCH, learning_rate=2e-4, lambda_iso=0.0, normalize=True)
METHODS = {"full": {}, "fraction": {"regularize_fraction": 0.25}, "lazy": {"regularize_every": 4}}


def main() -> None:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/race"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=Path("data/results/cost"), help="where the results go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    race = Race(options.runs, torch.device(options.device))
    curves = [race.curve("control", 0.0, seed) for seed in SEEDS]
    curves += [race.curve(method, weight, seed) for method in METHODS for seed in SEEDS for weight in LAMBDAS]
    targets = {curve["seed"]: curve["anisotropy"][-1] / 4 for curve in curves if curve["method"] == "control"}
    best = {method: best_lambda(curves, method, LAMBDAS, targets) for method in METHODS}
    curves.append(race.curve("released", best["full"], SEEDS[0]))
    best["released"] = best["full"]
    cost, variance = race.kept("cost", race.cost), race.kept("variance", race.variance)
    result = {
        "protocol": " ".join(__doc__.split("Declared before the runs:")[1].split("Interrupted")[0].split()),
        **facts(race.device),
        "cpu_seconds_a_step": cost,
        "gradient_variance": variance,
        "best_lambda": best,
        "summary": summarise(curves, targets, cost["step"]),
        "curves": curves,
    }
    write_whole(options.output / "race.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps({"summary": result["summary"], "cost": cost, "variance": variance}, indent=1))


class Race:
    """The start, the measurement and the runs."""

    def __init__(self, runs: Path, device: torch.device) -> None:
        runs.mkdir(parents=True, exist_ok=True)
        self.runs, self.device = runs, device
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.images = open_dataset("faces", SIDE, seed=0)
        held_out = open_dataset("faces", SIDE, seed=1)
        self.held_out = torch.stack([held_out[i] for i in range(8)]).to(device)
        path = runs / "start"
        if not path.exists():
            pipeline = load_pipeline("faces32/base")
            pipeline.unet.register_to_config(sample_size=SIDE)
            for state in finetune(pipeline, self.images, ADAPT, accelerator=self.accelerator):
                print(f"adapt {state.step} dsm {state.dsm:.4f}", flush=True)
            save_pipeline(pipeline, path)
        self.start = load_pipeline(path).to(device)

    def kept(self, name: str, compute: Callable[[], dict]) -> dict:
        """Return what an earlier start computed under this name, or compute and keep it."""
        file = self.runs / f"{name}.json"
        if not file.exists():
            write_whole(file, json.dumps(compute()))
        return json.loads(file.read_text())

    def curve(self, method: str, weight: float, seed: int) -> dict:
        """Return one run: anisotropy over the steps, and held-out L_dsm at its end."""
        return self.kept(f"{method}-{weight}-{seed}", partial(self._run, method, weight, seed))

    def _run(self, method: str, weight: float, seed: int) -> dict:
        pipeline = copy.deepcopy(self.start)
        config = replace(RACE, lambda_iso=weight, seed=seed, **METHODS.get(method, {}))
        found = {"method": method, "lambda": weight, "seed": seed, "step": [0]}
        found["anisotropy"] = [self.anisotropy(pipeline)]
        with _released_route(pipeline.unet) if method == "released" else nullcontext():
            for state in finetune(pipeline, self.images, config, accelerator=self.accelerator):
                if state.step % EVERY == 0:
                    found["step"].append(state.step)
                    found["anisotropy"].append(self.anisotropy(pipeline))
                    if state.step == STEPS:  # raw weights, as before it; the loop ends in their average
                        found["held_out_dsm"] = self.held_out_dsm(pipeline)
        print({name: value for name, value in found.items() if name != "step"}, flush=True)
        return found

    @torch.no_grad()
    def anisotropy(self, pipeline: DDPMPipeline) -> float:
        """Measure L_iso · rank as declared."""
        values, add_noise, rows = [], pipeline.scheduler.add_noise, len(self.held_out)
        for t in TIMES:
            generator = torch.Generator().manual_seed(10_000 + t)
            eps = torch.randn(self.held_out.shape, generator=generator).to(self.device)
            x_t = add_noise(self.held_out, eps, torch.full((rows,), t, device=self.device))
            first, second = trace_samples(partial(encode, pipeline.unet, t=t), x_t, num_probes=1, generator=generator)
            loss = second.mean() / first.mean().square()
            values.append(anisotropy(loss.item(), x_t[0].numel(), math.prod(bottleneck_shape(pipeline.unet))))
        return statistics.mean(values)

    @torch.no_grad()
    def held_out_dsm(self, pipeline: DDPMPipeline) -> float:
        """Return L_dsm on the held-out images at 20 steps each."""
        generator, losses = torch.Generator().manual_seed(7), []
        for t in range(25, 1000, 50):
            eps = torch.randn(self.held_out.shape, generator=generator).to(self.device)
            steps = torch.full((len(eps),), t, device=self.device)
            losses.append(dsm_loss(pipeline.unet, pipeline.scheduler, self.held_out, steps, eps).item())
        return statistics.mean(losses)

    def _term(self, unet: UNet2DModel, x: Tensor, t: int, probes: Tensor, *, released: bool = False) -> None:
        at = torch.tensor(t, device=self.device)
        ours = partial(trace_samples, partial(encode, unet, t=at))
        first, second = released_traces(unet, x, at, probes) if released else ours(x, probes=probes)
        unet.zero_grad()
        (second.mean() / first.mean().square()).backward()

    def cost(self, repeats: int = 7) -> dict:
        """Return the median CPU seconds of the denoising pass and of each term, and of a step of each method."""
        pipeline = copy.deepcopy(self.start)
        unet, scheduler = pipeline.unet.requires_grad_(True).train(), pipeline.scheduler
        generator = torch.Generator().manual_seed(3)
        x, v = (torch.randn(self.held_out.shape, generator=generator).to(self.device) for _ in range(2))
        t = torch.randint(1000, (BATCH,), generator=generator).to(self.device)
        rows = replace(RACE, **METHODS["fraction"]).regularised_rows

        def denoise() -> None:
            unet.zero_grad()
            dsm_loss(unet, scheduler, x, t, v).backward()

        ways: dict[str, Callable[[], None]] = {
            "dsm": denoise,
            "full": lambda: self._term(unet, x, 750, v[None]),
            "fraction": lambda: self._term(unet, x[:rows], 750, v[None, :rows]),
            "released": lambda: self._term(unet, x, 750, v[None], released=True),
        }
        parts = {name: way["cpu_seconds"] for name, way in interleaved(ways, repeats, self.device).items()}
        dsm, often = parts["dsm"], 1 - RACE.p
        step = {name: dsm + often * parts[name] for name in ("full", "fraction", "released")}
        step |= {"control": dsm, "lazy": dsm + often * parts["full"] / METHODS["lazy"]["regularize_every"]}
        return {"parts": parts, "step": step, "of_control": {name: value / dsm for name, value in step.items()}}

    def variance(self) -> dict:
        """Return the relative variance of a step's contribution, by method, and what the term costs of the DSM pass."""
        pipeline = copy.deepcopy(self.start)
        unet, often = pipeline.unet.requires_grad_(True).train(), 1 - RACE.p
        shares = {"full": 1.0, "half": 0.5, "fraction": 0.25, "eighth": 0.125}
        gradients: dict[str, list[Tensor]] = {name: [] for name in shares}
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(20_000 + draw)
            images = torch.stack([self.images[i] for i in range(BATCH * draw, BATCH * (draw + 1))]).to(self.device)
            t = int(torch.randint(int(1000 * RACE.p), 1000, (), generator=generator))
            eps, v = (torch.randn(images.shape, generator=generator).to(self.device) for _ in range(2))
            x = pipeline.scheduler.add_noise(images, eps, torch.full((BATCH,), t, device=self.device))
            for name, share in shares.items():
                rows = round(share * BATCH)
                self._term(unet, x[:rows], t, v[None, :rows])
                flat = [p.grad.flatten() for p in unet.parameters() if p.grad is not None]
                gradients[name].append(torch.cat(flat).double())
        full = torch.stack(gradients["full"])
        total = full.sum(0).square().sum()
        squares = {name: torch.stack(g).square().sum(1).mean().item() for name, g in gradients.items()}
        mean_square = ((total - full.square().sum()) / (DRAWS * (DRAWS - 1))).item()  # unbiased: pairs of draws
        costs = shares | {f"every {every}": 1 / every for every in (2, 4, 8)}
        squares |= {f"every {every}": every * squares["full"] for every in (2, 4, 8)}  # by arithmetic
        return {
            name: {"variance": squares[name] / (often * mean_square) - 1, "cost": often * cost}
            for name, cost in costs.items()
        }


def _released_route(unet: UNet2DModel) -> AbstractContextManager[object]:
    """Let the training loop take its traces by the released formula, everything else being equal."""

    def traces(f: partial, x: Tensor, *, probes: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        return released_traces(unet, x, f.keywords["t"], probes)

    return patch.object(sys.modules[finetune.__module__], "trace_samples", traces)


if __name__ == "__main__":
    main()
