"""Time one step of the isometry term against the formula of the released code and against DSM alone.

    python benchmarks/isometry_step.py --batch 1 4 16 --repeats 15

All three run forward and backward into the parameters, on the U-Net of the shipped faces models and on the same rows;
their runs are interleaved, and medians are compared.

- ours: ``isometry_loss`` on the encoder, stereographic metric, one probe.
- released: the formula of the authors' code, ‖Jᵀ J v‖² / (‖J v‖²)², with ``J v`` computed twice by double backward and
  ``Jᵀ`` once, each on a fresh pass of the whole U-Net that reads the bottleneck with a hook. (Their ratio of means is
  ours; only the route differs. The decoder runs but nothing is differentiated through it.)
- dsm: the denoising loss alone, whole U-Net.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_unet
from isodiff.diffusion.process import dsm_loss
from isodiff.geometry import isometry_loss, project_to_tangent

STEP = 600


def bottleneck_by_hook(unet: UNet2DModel, x: Tensor) -> Tensor:
    """Run the whole U-Net and return what its mid block gave."""
    kept: list[Tensor] = []
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    unet(x, STEP)
    handle.remove()
    return kept[0]


def released_loss(unet: UNet2DModel, x: Tensor) -> Tensor:
    """Return Eq. 6 by the route of the released code."""
    x = x.detach().requires_grad_()
    v = project_to_tangent(torch.randn_like(x), x.detach())

    def double_backward_jvp() -> Tensor:
        h = bottleneck_by_hook(unet, x)
        u = torch.zeros_like(h, requires_grad=True)
        (pulled,) = torch.autograd.grad(h, x, u, create_graph=True)
        return torch.autograd.grad(pulled, u, v, create_graph=True)[0]

    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        first, second = double_backward_jvp(), double_backward_jvp()
        (pulled,) = torch.autograd.grad(bottleneck_by_hook(unet, x), x, second, create_graph=True)
    pulled = project_to_tangent(pulled, x.detach())
    return pulled.flatten(1).square().sum(1).mean() / first.flatten(1).square().sum(1).mean().square()


def peak_memory(step: Callable[[], None], device: torch.device) -> float | None:
    """Return the peak memory of one step above what was held before it, in MiB, where the system tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and reset.exists()):
        return None

    def read(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # hands freed memory back, so that using it again counts
    reset.write_text("5")  # sets the high-water mark to what is resident now
    held = read("VmRSS")
    step()
    return (read("VmHWM") - held) / 1024


def main() -> None:
    """Parse the options, run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=15, help="interleaved runs of each, after two for warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    unet, scheduler = build_unet("faces32").to(device), DDPMScheduler()
    print(f"{sum(p.numel() for p in unet.parameters()):,} parameters, {device}, {torch.get_num_threads()} threads")
    print("batch   ours ms  released ms   dsm ms  released/ours  ours/dsm   peak MiB above what was held")

    for batch in options.batch:
        x = torch.randn(batch, 3, 32, 32, device=device)
        t = torch.full((batch,), STEP, device=device)
        losses = {
            "ours": lambda x=x: isometry_loss(partial(encode, unet, t=STEP), x),
            "released": partial(released_loss, unet, x),
            "dsm": lambda x=x, t=t: dsm_loss(unet, scheduler, x, t, torch.randn_like(x)),
        }

        def step(name: str, losses: dict[str, Callable[[], Tensor]] = losses) -> None:
            unet.zero_grad()
            losses[name]().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()

        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for run in range(options.repeats + 2):
            for name, times in seconds.items():
                start = time.perf_counter()
                step(name)
                if run >= 2:
                    times.append(time.perf_counter() - start)
        memory = {name: peak_memory(partial(step, name), device) for name in losses}
        ours, released, dsm = (1000 * statistics.median(times) for times in seconds.values())
        peaks = ", ".join(f"{k} {'not measured' if m is None else round(m)}" for k, m in memory.items())
        row = f"{batch:>5} {ours:>9.1f} {released:>12.1f} {dsm:>8.1f} {released / ours:>14.2f} {ours / dsm:>9.2f}"
        print(f"{row}   {peaks}", flush=True)


if __name__ == "__main__":
    main()
