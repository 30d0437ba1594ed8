"""Settings of the training of an attribute classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttributeConfig:
    """Settings of a training; every field is also an option of `isodiff train-attributes`.

    Attributes:
        architecture: Classification network of torchvision; the paper takes a ResNeXt.
        num_epochs: Passes over the training images.
        batch_size: Images a step.
        learning_rate: Of AdamW, the peak of a linear warm-up over a tenth of the steps and a cosine decay to 0.
        weight_decay: Of AdamW.
        held_out: Share of the images that is not trained on, between 0 and 1.
        mixed_precision: "no", or "bf16" for the network's products in training.
        seed: Of all randomness.
    """

    architecture: str = "resnext50_32x4d"
    num_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out: float = 0.1
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        for name, least in (("num_epochs", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32; got {self.seed}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number; got {self.learning_rate}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be 0 or more; got {self.weight_decay}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1; got {self.held_out}")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision must be 'no' or 'bf16'; got {self.mixed_precision!r}")
