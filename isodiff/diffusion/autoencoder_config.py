"""Settings of the training of an autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of a run; every field is also an option of `isodiff train-autoencoder`.

    Attributes:
        num_steps: optimiser steps.
        batch_size: images a step, over all processes.
        learning_rate: of Adam, at its height; it warms up over the first 200 steps and falls along a cosine.
        beta: weight of the KL term, ≥ 0.
        ema_decay: limit of the decay of the weights' moving average.
        seed: of all randomness.
        checkpoint_every: steps between checkpoints.
        num_workers: processes that load images.
    """

    num_steps: int = 3000
    batch_size: int = 16
    learning_rate: float = 1e-3
    beta: float = 1e-6
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_every: int = 250
    num_workers: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        for name in ("num_steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32; got {self.seed}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be at least 0 and finite; got {self.beta}")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must lie in [0, 1]; got {self.ema_decay}")
