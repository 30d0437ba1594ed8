"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        p: share of the T steps, from t = 0 up, that is not regularised, in [0, 1].
        metric: of the isometry term, "stereographic", "chart_identity" or "euclidean".
        num_probes: random directions a row.
        ema_decay: limit of the decay of the weights' exponential moving average, which warms up as 1 − (1 +
            step)^(−3/4).
        max_grad_norm: the gradient is clipped to this norm.
        horizontal_flip: mirror each image with probability 1/2; None leaves the choice to the dataset.
        mixed_precision: "no", "fp16" or "bf16", for L_dsm; traces are computed in float32 whatever this says.
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
    ema_decay: float = 0.9999
    max_grad_norm: float = 1.0
    horizontal_flip: bool | None = None
    mixed_precision: str = "no"
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
            "checkpoint_every": 1,
            "warmup_steps": 0,
            "num_workers": 0,
            "seed": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        if not 0 <= self.lambda_iso < math.inf:
            raise ValueError(f"lambda_iso must be at least 0 and finite; got {self.lambda_iso}")
        for name in ("p", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")
        choices = {
            "lr_scheduler": ("constant", "cosine"),
            "metric": ("stereographic", "chart_identity", "euclidean"),
            "mixed_precision": ("no", "fp16", "bf16"),
        }
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {getattr(self, name)!r}")
