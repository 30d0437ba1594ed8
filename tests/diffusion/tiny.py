"""Tiny models of the same classes as the real ones, made on the spot, and noise for them."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

BLOCKS = {"block_out_channels": (4, 8), "norm_num_groups": 4, "layers_per_block": 1}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the same normal numbers at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Gaussian(torch.nn.Module):
    """The exact model, times `gain`, of data x₀ ~ N(mean, scale² I), whatever it is asked to predict: affine in x_t."""

    def __init__(
        self, scheduler: DDPMScheduler, scale: float | Tensor = 0.6, gain: float = 1.0, mean: float | Tensor = 0.0
    ) -> None:
        super().__init__()
        self.scheduler, self.scale, self.gain, self.mean, self.calls = scheduler, scale, gain, mean, 0
        self.config = SimpleNamespace(in_channels=1, sample_size=4)

    def forward(self, x: Tensor, t: Tensor | int) -> SimpleNamespace:
        self.calls += 1
        alpha_bar = self.scheduler.alphas_cumprod.to(x)[t].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        score = -(x - alpha * self.mean) / (alpha_bar * self.scale**2 + 1 - alpha_bar)
        eps, clean = -sigma * score, self.mean - alpha * self.scale**2 * score
        predicted = {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "sample": clean}
        return SimpleNamespace(sample=self.gain * predicted[self.scheduler.config.prediction_type])


def tiny_unet(channels: int = 3, size: int = 8, **options: object) -> UNet2DModel:
    """Return an unconditional U-Net with attention at the bottleneck."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": size, "in_channels": channels, "out_channels": channels, "attention_head_dim": 4}
    return UNet2DModel(**BLOCKS | blocks | sizes | options)


def weights(model: torch.nn.Module) -> Tensor:
    """Return all parameters as one vector."""
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def tiny_ddpm(seed: int = 0, **options: object) -> DDPMPipeline:
    """Return a model of pixels, 8 × 8."""
    torch.manual_seed(seed)
    return DDPMPipeline(unet=tiny_unet(**options), scheduler=DDPMScheduler(timestep_spacing="trailing"))


def tiny_autoencoder(kind: str = "kl", seed: int = 0) -> AutoencoderKL | VQModel:
    """Return an untrained autoencoder, 16 × 16 pixels to 2 × 8 × 8 latents."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    settings = BLOCKS | blocks | {"latent_channels": 2, "sample_size": 16, "scaling_factor": 0.7}
    return AutoencoderKL(**settings) if kind == "kl" else VQModel(**settings, num_vq_embeddings=16)


def tiny_ldm(kind: str = "kl", seed: int = 0) -> LDMPipeline:
    """Return an unconditional latent-diffusion model of 16 × 16 images."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    return LDMPipeline(vqvae=tiny_autoencoder(kind, seed), unet=tiny_unet(2), scheduler=scheduler)


def tiny_stable_diffusion(folder: Path, prediction: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """Return a Stable Diffusion pipeline of 16 × 16 images; its vocabulary is written to the folder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    symbols = ["a", "b", "c", "e", "f", "a</w>", "b</w>", "c</w>", "e</w>", "f</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(symbols), "max_position_embeddings": 8, "bos_token_id": 10}
    text = CLIPTextConfig(**sizes, **tokens, eos_token_id=11, pad_token_id=11)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    blocks = BLOCKS | {"down_block_types": down, "up_block_types": up, "attention_head_dim": 2}
    unet = UNet2DConditionModel(8, 2, 2, **blocks, cross_attention_dim=8)
    return StableDiffusionPipeline(
        vae=tiny_autoencoder("kl", seed),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type=prediction),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    )
