r"""The isometry term of a training step: where it applies, on which rows, and its gradient over processes and passes.

L_iso (Eq. 6, Hahm et al. 2024) holds at one t, whereas L_dsm draws a t for every row. A regularised step therefore
draws one t for the whole batch and adds the term where t + 1 > pT, which is Eq. 7 in expectation. Two settings make it
cheaper and leave its expectation, up to the bias of the ratio on fewer rows, as it is:

- `regularize_every` = k adds k times the term at every k-th step (lazy regularisation, Karras et al. 2020);
- `regularize_fraction` takes the term on the first rows of the batch only, which are in random order.

With D = mean ‖Jv‖² and N = mean ‖JᵀJv‖², L_iso = N / D² is a ratio of means over all processes and passes, not a mean
of ratios: there is one scale c. D and N are therefore averaged first, and each part adds its share of the exact
gradient (`isometry_loss_share`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from isodiff.diffusion.execution import checkpointing, compiled
from isodiff.diffusion.global_batch import generator_of, global_mean, own_rows
from isodiff.diffusion.hspace import bottleneck_shape, encode
from isodiff.geometry.isometry import estimate_loss, isometry_loss_share, isotropy, trace_samples
from isodiff.geometry.trace import sample_probes

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from accelerate import Accelerator
    from diffusers import SchedulerMixin, UNet2DModel

    from isodiff.diffusion.config import FinetuneConfig


class Regularised(NamedTuple):
    """What the term was at a step; all None where the step was not regularised."""

    loss: float | None = None
    isotropy: float | None = None
    t: int | None = None


class IsometryTerm:
    """λ_iso · 1[t + 1 > pT] · L_iso(e_θ, t) of Eq. 7, as settings and processes cut it.

    Args:
        unet: in training.
        scheduler: gives x_t.
        config: the settings.
        accelerator: of the run.

    Note:
        A regularised step costs one Jacobian-vector and one vector-Jacobian product of the encoder a row and probe.
        Its rows are cut into passes no larger than those of L_dsm; where one pass is too few, the products are computed
        twice, first without graph, as every share needs D and N.
    """

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, config: FinetuneConfig, accelerator: Accelerator
    ) -> None:
        self.unet, self.scheduler, self.config, self.accelerator = unet, scheduler, config, accelerator
        self._size = math.prod(bottleneck_shape(unet)) if config.lambda_iso > 0 else 0
        # Only first-order passes can be compiled or recomputed: double backward needs the graph itself.
        first_order = config.isometry_route == "differences"
        self._encode = compiled(encode) if config.compile and first_order else encode
        self._recompute = config.gradient_checkpointing and first_order

    def backward(self, step: int, x_0: torch.Tensor, layers: Callable[[int], AbstractContextManager]) -> Regularised:
        """Add this process's share of the term's gradient at a step, given its rows x_0 and the layers' randomness."""
        config, accelerator = self.config, self.accelerator
        if config.lambda_iso == 0 or step % config.regularize_every:
            return Regularised()
        generator = generator_of(config.seed, step, "isometry")
        t = draw_regularised_step(
            self.scheduler.config.num_train_timesteps, config.p, generator, early=config.regularize_times == "early"
        )
        if t is None:
            return Regularised()
        # Drawn for the whole batch, so that a part of it sees the noise and probes that it sees within the whole.
        _, eps = draw_rows(x_0, self.scheduler, config, generator, accelerator)
        shape = (config.batch_size, *x_0.shape[1:])
        drawn = [sample_probes(shape, generator=generator) for _ in range(config.num_probes)]
        rows = regularised_rows(config) // accelerator.num_processes
        probes = torch.stack([own_rows(probe, accelerator)[:rows] for probe in drawn])
        steps = torch.full((rows,), t, device=x_0.device)
        x_t = self.scheduler.add_noise(x_0[:rows], eps[:rows], steps)

        rank = isotropy(1, x_t[0].numel(), self._size, metric=config.metric)
        weight = config.regularize_every * config.lambda_iso * (rank if config.normalize else 1)
        if config.regularize_times == "variance":
            weight *= 1 - float(self.scheduler.alphas_cumprod[t])
        at_t = partial(self._encode, self.unet, t=torch.tensor(t, device=x_0.device))
        traces = partial(trace_samples, at_t, metric=config.metric, route=config.isometry_route)
        passes = _passes(rows, len(x_0) // config.gradient_accumulation_steps)
        parts = list(zip(x_t.chunk(passes), probes.chunk(passes, 1), strict=True))
        with checkpointing(self.unet, self._recompute):
            loss = _backward(traces, parts, weight, layers, accelerator, config.estimator).item()
        return Regularised(loss, loss * rank, t)


def regularised_rows(config: FinetuneConfig) -> int:
    """Return how many rows of the global batch the term is taken on, at least one."""
    return max(1, round(config.regularize_fraction * config.batch_size))


def draw_regularised_step(
    num_train_timesteps: int, p: float, generator: torch.Generator, *, early: bool = False
) -> int | None:
    """Draw the step of the isometry term: uniform on 0 … T−1, or None where t + 1 ≤ pT (the indicator of Eq. 7).

    With ``early``, None where T − t ≤ pT: as many steps are left, at the other end.
    """
    t = int(torch.randint(num_train_timesteps, (), generator=generator))
    if early:
        return t if num_train_timesteps - t > p * num_train_timesteps else None
    return t if t + 1 > p * num_train_timesteps else None


def draw_rows(
    x_0: torch.Tensor,
    scheduler: SchedulerMixin,
    config: FinetuneConfig,
    generator: torch.Generator,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw steps and noise of the global batch and return this process's rows of them."""
    t = torch.randint(scheduler.config.num_train_timesteps, (config.batch_size,), generator=generator)
    eps = torch.randn(config.batch_size, *x_0.shape[1:], generator=generator).to(x_0.dtype)
    return own_rows(t, accelerator), own_rows(eps, accelerator)


def _passes(rows: int, largest: int) -> int:
    """Return the smallest number of equal passes of at most ``largest`` rows."""
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= largest)


def _backward(
    traces: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    parts: list[tuple[torch.Tensor, torch.Tensor]],
    weight: float,
    layers: Callable[[int], AbstractContextManager],
    accelerator: Accelerator,
    estimator: str,
) -> torch.Tensor:
    """Add this process's share of the gradient of weight · L_iso, given (x_t, probes) a pass; return L_iso of all."""
    if estimator != "ratio":  # no share of a part is known of these; the configuration sees to it that there is one
        ((x_t, probes),) = parts
        with layers(0):
            loss = estimate_loss(*traces(x_t, probes=probes), estimator=estimator)
        accelerator.backward(weight * loss)
        return loss.detach()
    alone = len(parts) == 1  # then the graph that gives the means gives the gradient too
    means, samples = [], None
    for index, (x_t, probes) in enumerate(parts):
        with torch.set_grad_enabled(alone), layers(index):
            samples = traces(x_t, probes=probes)
        means.append(torch.stack([sample.detach().mean() for sample in samples]))
    mean_first, mean_second = global_mean(torch.stack(means).mean(0), accelerator)
    for index, (x_t, probes) in enumerate(parts):
        if not alone:
            with layers(index):
                samples = traces(x_t, probes=probes)
        share = isometry_loss_share(*samples, mean_first, mean_second)
        accelerator.backward(weight / len(parts) * share)
    return mean_second / mean_first.square()
