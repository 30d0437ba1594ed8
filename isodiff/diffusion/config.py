"""Settings of the trainings: each field is also an option of a command, and the comment beside it the option's help."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args, get_origin, get_type_hints

# a type with the test of its range, and the range in words
Count = Annotated[int, (lambda n: n >= 1, "at least 1")]
Natural = Annotated[int, (lambda n: n >= 0, "at least 0")]
Seed = Annotated[int, (lambda n: 0 <= n < 2**32, "at least 0 and below 2**32")]
Positive = Annotated[float, (lambda x: 0 < x < math.inf, "positive and finite")]
Weight = Annotated[float, (lambda x: 0 <= x < math.inf, "at least 0 and finite")]
Share = Annotated[float, (lambda x: 0 <= x <= 1, "in [0, 1]")]
Part = Annotated[float, (lambda x: 0 < x <= 1, "in (0, 1]")]

Times = Literal["late", "early", "variance"]
Metric = Literal["stereographic", "chart_identity", "as_printed", "euclidean"]
Estimator = Literal["ratio", "unbiased", "jackknife", "per_row"]
Route = Literal["double_backward", "differences"]
Target = Literal["encoder", "pooled", "denoiser", "sampler", "smooth"]

# what has no meaning for a target
_IDLE = {
    "sampler": ("p", "regularize_times"),
    "smooth": ("p", "regularize_times", "normalize", "metric", "num_probes", "estimator", "isometry_route"),
}


class Settings:
    """A dataclass whose values are held to the ranges and choices that its annotations name."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}; got {value!r}")
            for contains, words in getattr(hint, "__metadata__", ()):
                if not contains(value):
                    raise ValueError(f"{name} must be {words}; got {value!r}")


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Settings of `finetune`, the minimisation of Eq. 7 of Hahm et al. 2024."""

    num_steps: Count = 1000  # optimiser steps
    batch_size: Count = 32  # images a step, over all processes and passes
    gradient_accumulation_steps: Count = 1  # passes a step: less memory, the same loss and gradient
    learning_rate: Positive = 1e-4  # of Adam
    lr_scheduler: Literal["constant", "cosine"] = "constant"  # course of the learning rate after its warm-up
    warmup_steps: Natural = 0  # of linear warm-up of the learning rate
    lambda_iso: Weight = 1e-4  # weight of the isometry term; 0 is plain training, the control
    # map that the term is of: encoder x_t to H (the paper), pooled to its mean over positions, denoiser x_t to the
    # estimate of x_0, sampler x_T to x_0; or smooth, Smooth Diffusion's penalty on the estimate of x_0
    target: Target = "encoder"
    sampler_steps: Count = 4  # of DDIM, of the target sampler
    normalize: bool = False  # multiply lambda_iso by the rank: it then weighs the anisotropy, comparable across sizes
    p: Share = 0.5  # share of the T diffusion steps that is not regularised
    regularize_times: Times = "late"  # t + 1 > pT (Eq. 7); early: T - t > pT; variance: late, weighted by 1 - alpha_bar
    # of the noise: the sphere's; its chart taken as flat (G = I), or with Eq. 2 and 3 as printed; or the space's
    metric: Metric = "stereographic"
    num_probes: Count = 1  # random directions a row
    estimator: Estimator = "ratio"  # of Eq. 6; the others need the batch in one pass of one process
    regularize_every: Count = 1  # k: take the isometry term at every k-th step only, k times as strong
    regularize_fraction: Part = 1.0  # share of the batch's rows that the isometry term is taken on
    isometry_route: Route = "double_backward"  # exact; or differences: the gradient to about 1e-3, in less memory
    ema_decay: Share = 0.9999  # limit of the decay of the weights' moving average, 1 - (1 + step)^(-3/4) before it
    max_grad_norm: Positive = 1.0  # the gradient is clipped to this norm
    horizontal_flip: bool | None = None  # mirror each image with probability 1/2; by default the dataset decides
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # of the denoising loss; the isometry term stays in float32
    gradient_checkpointing: bool = False  # recompute activations of the denoising loss, and of the term by differences
    seed: Seed = 0  # of all randomness
    checkpoint_every: Count = 500  # steps between checkpoints
    num_workers: Natural = 0  # processes that load images

    def __post_init__(self) -> None:
        super().__post_init__()
        passes = self.gradient_accumulation_steps
        if self.estimator in ("unbiased", "jackknife") and self.num_probes < 2:
            raise ValueError(f"num_probes must be at least 2 for the {self.estimator} estimator; got {self.num_probes}")
        for name in _IDLE.get(self.target, ()):
            if (value := getattr(self, name)) != (default := type(self).__dataclass_fields__[name].default):
                raise ValueError(f"{name} must be {default!r} for the target {self.target}; got {value!r}")
        if self.estimator != "ratio" and passes > 1:
            raise ValueError(f"gradient_accumulation_steps must be 1 for the {self.estimator} estimator; got {passes}")

    @property
    def regularised_rows(self) -> int:
        """Rows of the global batch that the isometry term is taken on, at least one."""
        return max(1, round(self.regularize_fraction * self.batch_size))


@dataclass(frozen=True)
class AutoencoderConfig(Settings):
    """Settings of `train_autoencoder`."""

    num_steps: Count = 3000  # optimiser steps
    batch_size: Count = 16  # images a step, over all processes
    learning_rate: Positive = 1e-3  # of Adam, at its height: it warms up over 200 steps and falls along a cosine
    beta: Weight = 1e-6  # weight of the KL term
    ema_decay: Share = 0.999  # limit of the decay of the weights' moving average
    seed: Seed = 0  # of all randomness
    checkpoint_every: Count = 250  # steps between checkpoints
    num_workers: Natural = 0  # processes that load images

    gradient_accumulation_steps: ClassVar[int] = 1
    lr_scheduler: ClassVar[str] = "cosine"
    warmup_steps: ClassVar[int] = 200
    max_grad_norm: ClassVar[float] = 1.0
    mixed_precision: ClassVar[str] = "no"


TrainingConfig = FinetuneConfig | AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class AttributeConfig(Settings):
    """Settings of `isodiff.metrics.train_attributes`."""

    architecture: str = "resnext50_32x4d"  # classification network of torchvision; the paper takes a ResNeXt
    num_epochs: Count = 10  # passes over the training images
    batch_size: Annotated[int, (lambda n: n >= 2, "at least 2")] = 64  # images a step
    learning_rate: Positive = 1e-3  # of AdamW: the peak between a warm-up over a tenth of the steps and a cosine to 0
    weight_decay: Weight = 0.05  # of AdamW
    held_out: Annotated[float, (lambda x: 0 < x < 1, "in (0, 1)")] = 0.1  # share of images not trained on
    mixed_precision: Literal["no", "bf16"] = "no"  # of the network's products in training
    seed: Seed = 0  # of all randomness
