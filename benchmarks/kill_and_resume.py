"""Kill a fine-tuning with SIGKILL at random moments, resume it, and compare its weights bit by bit.

    python benchmarks/kill_and_resume.py --kills 20

A small model is fine-tuned with the isometry term on the CPU, with a checkpoint after every step, so that a kill may
well fall into the writing of one. Once it runs undisturbed. Then it is started, killed after a random time and started
again until it ends by itself, as often as the kills last. One line a kill, then a verdict; the exit status is 1 if any
run ended with other weights or other loss curves than the undisturbed one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def kill_and_resume(
    directory: Path, kills: int = 20, seed: int = 0, num_steps: int = 40, show: Callable[[str], None] = print
) -> int:
    """Return in how many runs, killed and resumed, weights or loss curves differ from the undisturbed run's.

    Args:
        directory: an empty one; runs go into folders of it.
        kills: how many processes to kill.
        seed: of the moments, which are uniform in time over half of a run.
        num_steps: of a run.
        show: receives one line a kill and one a finished run.

    Raises:
        RuntimeError: a run that nobody killed ended with an error.
    """
    moments, whole = random.Random(seed), directory / "whole"
    _wait(_start(time.sleep, 0.0))  # the server, which imports everything first, is no part of the duration
    began = time.monotonic()
    _wait(_start(_train, whole, num_steps))
    duration = time.monotonic() - began

    killed = differing = runs = 0
    while killed < kills:
        runs += 1
        output = directory / f"run-{runs}"
        while True:
            process = _start(_train, output, num_steps)
            moment = moments.uniform(0, duration / 2)
            if killed < kills:
                process.join(moment)
            if killed == kills or process.exitcode is not None:
                _wait(process)
                break
            process.kill()
            process.join()
            killed += 1
            show(f"kill {killed}/{kills}: run {runs}, {moment:.2f} s after its start; {_left(output)}")
        equal = _same_weights(whole, output) and _curves(whole) == _curves(output)
        differing += not equal
        show(f"run {runs} ended, {'equal bit by bit' if equal else 'DIFFERENT'}")
    return differing


def _start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Call a function in a process forked from a server that has imported everything, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["isodiff.diffusion.training", "isodiff.datasets.faces"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def _train(output: Path, num_steps: int) -> None:
    import torch
    from accelerate import Accelerator
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from tqdm.auto import tqdm

    from isodiff.datasets.faces import FacesDataset
    from isodiff.diffusion.config import FinetuneConfig
    from isodiff.diffusion.training import train

    tqdm.set_lock(threading.RLock())  # its own, a semaphore of the system, would outlive the kill
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    config = FinetuneConfig(
        num_steps=num_steps, batch_size=4, learning_rate=1e-3, lambda_iso=1e-2, normalize=True, checkpoint_every=1
    )
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # the progress bar
        train(pipeline, FacesDataset(8, num_images=50), config, output, accelerator=Accelerator(cpu=True))


def _wait(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run ended with exit status {process.exitcode}; 0 was expected")


def _left(output: Path) -> str:
    """Say what a killed run has left on disk."""
    found = []
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        if (output / name).exists():
            with safe_open(output / name, framework="pt") as file:
                found.append(f"step {file.metadata()['step']}")
    text = f"checkpoints: {', '.join(found) or 'none'}"
    return text + (", one half written" if (output / ".checkpoint.safetensors.partial").exists() else "")


def _same_weights(one: Path, other: Path) -> bool:
    return (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def _curves(output: Path) -> dict:
    return json.loads((output / "training.json").read_text())["curves"]


def main() -> int:
    """Run the comparison in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default: 0")
    parser.add_argument("--num-steps", type=int, default=40, help="of a run; default: 40")
    options = parser.parse_args()
    if options.kills < 1 or options.num_steps < 1:
        parser.error(f"--kills and --num-steps must be at least 1; got {options.kills} and {options.num_steps}")
    with tempfile.TemporaryDirectory() as directory:
        differing = kill_and_resume(Path(directory), options.kills, options.seed, options.num_steps)
    print(f"{options.kills} kills: " + (f"{differing} RUNS DIFFER" if differing else "no run differs in a single bit"))
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
