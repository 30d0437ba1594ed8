"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

# Younger than the first checkpoints, which do not tell of them: at their defaults they change nothing.
_LATER = (
    *("regularize_every", "regularize_fraction", "isometry_route", "channels_last", "compile"),
    *("regularize_times", "estimator"),
)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a run; every field is also an option of `isodiff pretrain` and `isodiff finetune`.

    Attributes:
        num_steps: optimiser steps.
        batch_size: images a step, over all processes and passes.
        gradient_accumulation_steps: passes into which each process cuts its share of a step's batch, one after the
            other in the memory of one. Batch, loss and gradient stay the same, to rounding.
        learning_rate: of Adam.
        lr_scheduler: "constant" or "cosine", after the warm-up.
        warmup_steps: of linear warm-up of the learning rate.
        lambda_iso: weight of the isometry term, ≥ 0; 0 is plain fine-tuning, the control.
        normalize: if true, `lambda_iso` multiplies the isotropy L_iso · rank instead of L_iso, which makes it
            comparable across sizes.
        p: share of the T steps that is not regularised, in [0, 1].
        regularize_times: which steps the others are: "late", t + 1 > pT, as in Eq. 7; "early", T − t > pT, as
            many at the other end; or "variance", the late ones with the term weighted by 1 − ᾱ_t.
        metric: of the isometry term, "stereographic", "chart_identity" or "euclidean".
        num_probes: random directions a row.
        estimator: of Eq. 6 from these, "ratio", "unbiased", "jackknife" or "per_row", see `isometry_loss`. All but the
            ratio need the whole batch in one process and one pass.
        regularize_every: k: the isometry term is added at every k-th step only, k times as strong, with the same
            expectation and 1/k of the cost. `max_grad_norm` clips the k-fold gradient.
        regularize_fraction: share of the batch's rows that the isometry term is taken on, in (0, 1], rounded to whole
            rows, which must be a multiple of the number of processes. The bias of L_iso grows as 1 / (rows ·
            num_probes).
        isometry_route: "double_backward", exact, or "differences": central differences, to about 10⁻³ of the gradient,
            in less memory.
        ema_decay: limit of the decay of the weights' exponential moving average, which warms up as 1 − (1 +
            step)^(−3/4).
        max_grad_norm: the gradient is clipped to this norm.
        horizontal_flip: mirror each image with probability 1/2; None leaves the choice to the dataset.
        mixed_precision: "no", "fp16" or "bf16", for L_dsm; traces are computed in float32 whatever this says.
        gradient_checkpointing: keep less for the backward pass and compute it again: L_dsm, and the isometry term
            with `isometry_route` "differences"; with "double_backward" the term keeps its whole graph.
        channels_last: lay out images and kernels with the channels last, which tensor cores read faster.
        compile: `torch.compile` for L_dsm, and for the encoder with `isometry_route` "differences"; double backward
            cannot be compiled. The first step takes minutes.
        seed: of all randomness.
        checkpoint_every: steps between checkpoints.
        num_workers: processes that load images.
    """

    num_steps: int = 1000
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    warmup_steps: int = 0
    lambda_iso: float = 1e-4
    normalize: bool = False
    p: float = 0.5
    metric: str = "stereographic"
    num_probes: int = 1
    regularize_times: str = "late"
    estimator: str = "ratio"
    regularize_every: int = 1
    regularize_fraction: float = 1.0
    isometry_route: str = "double_backward"
    ema_decay: float = 0.9999
    max_grad_norm: float = 1.0
    horizontal_flip: bool | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    checkpoint_every: int = 500
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        at_least = {
            "num_steps": 1,
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_probes": 1,
            "regularize_every": 1,
            "checkpoint_every": 1,
            "warmup_steps": 0,
            "num_workers": 0,
            "seed": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32; got {self.seed}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        if not 0 <= self.lambda_iso < math.inf:
            raise ValueError(f"lambda_iso must be at least 0 and finite; got {self.lambda_iso}")
        if not 0 < self.regularize_fraction <= 1:
            raise ValueError(f"regularize_fraction must lie in (0, 1]; got {self.regularize_fraction}")
        for name in ("p", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")
        choices = {
            "lr_scheduler": ("constant", "cosine"),
            "metric": ("stereographic", "chart_identity", "euclidean"),
            "mixed_precision": ("no", "fp16", "bf16"),
            "isometry_route": ("double_backward", "differences"),
            "regularize_times": ("late", "early", "variance"),
        }
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}")
        from isodiff.geometry.isometry import require_estimator  # brings torch, which the command line's help spares

        require_estimator(self.estimator, self.num_probes)
        if self.estimator != "ratio" and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"estimator {self.estimator!r} needs the whole batch in one pass; got "
                f"gradient_accumulation_steps = {self.gradient_accumulation_steps}"
            )

    def defining(self) -> dict[str, Any]:
        """Return the settings that a checkpoint must share with the run that goes on from it.

        Gradient checkpointing may change on the way, as it changes no bit.
        """
        defaults = {field.name: field.default for field in fields(self) if field.name in _LATER}
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "gradient_checkpointing" and not (name in defaults and value == defaults[name])
        }
