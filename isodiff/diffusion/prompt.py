r"""Stable Diffusion with the prompt held fixed: then its U-Net is a map of noise alone, like any other here.

With c the embedded prompt and ∅ the negative one, guidance of scale w (Ho and Salimans 2022) denoises with

    ε(x_t, t) = ε_θ(x_t, t, ∅) + w (ε_θ(x_t, t, c) − ε_θ(x_t, t, ∅)),

which at w = 1 is the conditional model. The bottleneck h is that of the conditional branch, which `encode` computes; to
watch or change h while sampling, w must be 1.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from isodiff.diffusion.models import load_pipeline


class FixedPrompt(nn.Module):
    """A text-conditional U-Net, of ε- or v-prediction, as a function of (x_t, t): the prompt is part of the map.

    Weights are shared. The embedded prompts c and ∅ are (1, L, D); ∅ is needed where w is not 1, and costs as much.
    """

    def __init__(
        self, unet: UNet2DConditionModel, embedding: Tensor, negative: Tensor | None, guidance_scale: float
    ) -> None:
        super().__init__()
        for name in ("class_embedding", "add_embedding", "encoder_hid_proj"):
            if getattr(unet, name, None) is not None:
                raise ValueError(f"the U-Net is conditioned on more than a prompt ({name}); expected one without")
        if not guidance_scale >= 0:
            raise ValueError(f"guidance_scale must be at least 0; got {guidance_scale}")
        self.unet, self.guidance_scale = unet, guidance_scale
        self.register_buffer("embedding", embedding.detach().clone(), persistent=False)
        self.register_buffer("negative", None if negative is None else negative.detach().clone(), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor | int) -> UNet2DOutput:
        """Return the guided prediction as `.sample`, in the shape of x_t."""
        prompts = [self.embedding] if self.guidance_scale == 1 else [self.embedding, self.negative]
        contexts = [prompt.to(x_t.dtype).expand(len(x_t), -1, -1) for prompt in prompts]
        conditional, *free = [self.unet(x_t, t, encoder_hidden_states=context).sample for context in contexts]
        return UNet2DOutput(sample=free[0] + self.guidance_scale * (conditional - free[0]) if free else conditional)

    config = property(lambda self: self.unet.config)
    dtype = property(lambda self: self.unet.dtype)
    device = property(lambda self: self.unet.device)

    @property
    def mid_block(self) -> nn.Module:
        """The U-Net's bottleneck; under guidance it is evaluated on two branches, and which h is meant is open."""
        if self.guidance_scale != 1:
            raise ValueError(f"with guidance_scale = {self.guidance_scale} the bottleneck is visited twice; take 1")
        return self.unet.mid_block


@dataclass(frozen=True)
class PromptedPipeline:
    """A Stable Diffusion pipeline with its prompt fixed, for whatever here takes a pipeline; weights are shared."""

    unet: FixedPrompt
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    pipeline: StableDiffusionPipeline

    def save_pretrained(self, path: str, **options: object) -> None:
        """Write the whole pipeline, as diffusers does; the prompt is not part of it."""
        self.pipeline.save_pretrained(path, **options)


@torch.no_grad()
def with_prompt(pipeline: StableDiffusionPipeline, prompt: str, *, guidance_scale: float = 1.0) -> PromptedPipeline:
    """Fix the prompt of a Stable Diffusion pipeline; text beyond what its encoder reads is cut off, and it says so."""
    if not hasattr(pipeline, "encode_prompt") or not hasattr(pipeline, "vae"):
        raise TypeError(f"expected a StableDiffusionPipeline; got {type(pipeline).__name__}, which takes no prompt")
    embedding, negative = pipeline.encode_prompt(
        prompt, pipeline.device, 1, do_classifier_free_guidance=guidance_scale != 1, negative_prompt=""
    )
    unet = FixedPrompt(pipeline.unet, embedding, negative, guidance_scale)
    return PromptedPipeline(unet, pipeline.vae, pipeline.scheduler, pipeline)


def open_model(source: str | Path, prompt: str | None = None) -> DiffusionPipeline | PromptedPipeline:
    """Load a model by `load_pipeline`, with its prompt fixed if it takes one, and with none if not."""
    pipeline = load_pipeline(source)
    takes = hasattr(pipeline, "encode_prompt")
    if takes and prompt is None:
        raise ValueError(f"{str(source)!r} draws what a prompt says; give one, '' for none in particular")
    if prompt is not None and not takes:
        raise ValueError(f"{str(source)!r} is a {type(pipeline).__name__}, which takes no prompt; got {prompt!r}")
    return with_prompt(pipeline, prompt) if takes else pipeline
