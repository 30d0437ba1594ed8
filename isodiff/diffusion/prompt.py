r"""Stable Diffusion with the prompt held fixed: then its U-Net is a map of noise alone, like any other here.

With c the embedded prompt and ∅ the embedded negative one, classifier-free guidance of scale w (Ho and Salimans 2022)
denoises with

    ε(x_t, t) = ε_θ(x_t, t, ∅) + w (ε_θ(x_t, t, c) − ε_θ(x_t, t, ∅)),

which at w = 1 is the conditional model. The bottleneck h is that of the conditional branch, which `encode` computes; to
watch or change h while sampling, w must be 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from isodiff.diffusion.models import load_pipeline

if TYPE_CHECKING:
    from pathlib import Path

    import diffusers


class FixedPrompt(nn.Module):
    """A text-conditional U-Net, of ε- or v-prediction, as a function of (x_t, t): the prompt is part of the map.

    Its weights are shared, not copied. `embedding` and `negative` are the embedded prompts c and ∅, (1, L, D); ∅ is
    needed where the scale w is not 1. At w = 1 the model is evaluated once, otherwise twice.
    """

    def __init__(
        self,
        unet: diffusers.UNet2DConditionModel,
        embedding: torch.Tensor,
        negative: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if type(unet).__name__ != "UNet2DConditionModel":
            raise TypeError(f"expected a diffusers UNet2DConditionModel; got {type(unet).__name__}")
        for name in ("class_embedding", "add_embedding", "encoder_hid_proj"):
            if getattr(unet, name, None) is not None:
                raise ValueError(f"the U-Net is conditioned on more than a prompt ({name}); expected one without")
        width = unet.config.cross_attention_dim
        for each in (embedding,) if negative is None else (embedding, negative):
            if each.ndim != 3 or len(each) != 1 or each.shape[2] != width:
                raise ValueError(f"an embedded prompt has the shape (1, L, {width}) here; got {tuple(each.shape)}")
        if not guidance_scale >= 0:
            raise ValueError(f"guidance_scale must be at least 0; got {guidance_scale}")
        if guidance_scale != 1 and negative is None:
            raise ValueError(f"guidance_scale = {guidance_scale} needs a negative prompt; the empty one is usual")
        self.unet, self.guidance_scale = unet, guidance_scale
        self.register_buffer("embedding", embedding.detach().clone(), persistent=False)
        self.register_buffer("negative", None if negative is None else negative.detach().clone(), persistent=False)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor | int) -> UNet2DOutput:
        """Return the guided prediction as `.sample`, in the shape of x_t."""
        conditional = self._predict(x_t, t, self.embedding)
        if self.guidance_scale == 1:
            return UNet2DOutput(sample=conditional)
        free = self._predict(x_t, t, self.negative)
        return UNet2DOutput(sample=free + self.guidance_scale * (conditional - free))

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor | int, embedding: torch.Tensor) -> torch.Tensor:
        context = embedding.to(x_t.dtype).expand(len(x_t), -1, -1)
        return self.unet(x_t, t, encoder_hidden_states=context).sample

    config = property(lambda self: self.unet.config)
    dtype = property(lambda self: self.unet.dtype)
    device = property(lambda self: self.unet.device)

    @property
    def mid_block(self) -> nn.Module:
        """The U-Net's bottleneck; under guidance it is evaluated on two branches, and which h is meant is open."""
        if self.guidance_scale != 1:
            raise ValueError(
                f"with guidance_scale = {self.guidance_scale} the bottleneck is visited twice a step; "
                "watch or change h at guidance_scale = 1"
            )
        return self.unet.mid_block


@dataclass(frozen=True)
class PromptedPipeline:
    """A Stable Diffusion pipeline with its prompt fixed, for whatever here takes a pipeline; weights are shared."""

    unet: FixedPrompt
    vae: diffusers.AutoencoderKL
    scheduler: diffusers.SchedulerMixin
    pipeline: diffusers.StableDiffusionPipeline

    def save_pretrained(self, path: str, **options: object) -> None:
        """Write the whole pipeline, as diffusers does; the prompt is not part of it."""
        self.pipeline.save_pretrained(path, **options)


@torch.no_grad()
def with_prompt(
    pipeline: diffusers.StableDiffusionPipeline, prompt: str, *, negative_prompt: str = "", guidance_scale: float = 1.0
) -> PromptedPipeline:
    """Fix the prompt of a Stable Diffusion pipeline; text beyond what its encoder reads is cut off, and it says so."""
    if not hasattr(pipeline, "encode_prompt") or not hasattr(pipeline, "vae"):
        raise TypeError(f"expected a StableDiffusionPipeline; got {type(pipeline).__name__}, which takes no prompt")
    embedding, negative = pipeline.encode_prompt(
        prompt, pipeline.device, 1, do_classifier_free_guidance=guidance_scale != 1, negative_prompt=negative_prompt
    )
    unet = FixedPrompt(pipeline.unet, embedding, negative, guidance_scale)
    return PromptedPipeline(unet, pipeline.vae, pipeline.scheduler, pipeline)


def open_model(source: str | Path, prompt: str | None = None) -> diffusers.DiffusionPipeline | PromptedPipeline:
    """Load a model by `load_pipeline`, with its prompt fixed if it takes one, and with none if not."""
    pipeline = load_pipeline(source)
    takes = hasattr(pipeline, "encode_prompt")
    if takes and prompt is None:
        raise ValueError(f"{str(source)!r} draws what a prompt says; give one, '' for none in particular")
    if prompt is not None and not takes:
        raise ValueError(f"{str(source)!r} is a {type(pipeline).__name__}, which takes no prompt; got {prompt!r}")
    return with_prompt(pipeline, prompt) if takes else pipeline
