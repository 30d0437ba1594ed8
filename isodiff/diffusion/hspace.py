"""The semantic latent space H: the bottleneck of a diffusers U-Net (Kwon et al. 2023), without its decoder.

Here and in all that samples or inverts, a `FixedPrompt` may stand for the `UNet2DModel`.
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isodiff.diffusion.latent import latent_shape


def encode(unet: UNet2DModel, x: Tensor, t: Tensor | int) -> Tensor:
    """Map noise to the bottleneck, h = e_θ(x_t, t): the encoder that Eq. 6 of Hahm et al. 2024 regularises.

    x_t is (B, C, H, W), t one step for all rows or (B,) of them, and h (B, C', H', W') the output of `unet.mid_block`.
    """
    check_encoder(unet)
    prompt, unet = getattr(unet, "embedding", None), getattr(unet, "unet", unet)  # of a `FixedPrompt`

    def context_of(block: nn.Module) -> dict[str, Tensor]:
        attends = prompt is not None and getattr(block, "has_cross_attention", False)
        return {"encoder_hidden_states": prompt.to(x.dtype).expand(len(x), -1, -1)} if attends else {}

    if x.ndim != 4 or x.shape[1] != unet.config.in_channels:
        raise ValueError(f"x must have shape (B, {unet.config.in_channels}, H, W) for this U-Net; got {tuple(x.shape)}")
    t = torch.as_tensor(t, device=x.device)
    if t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, len(x))):
        raise ValueError(f"t must be one step or one per row ({len(x)}); got shape {tuple(t.shape)}")

    sample = 2 * x - 1 if unet.config.center_input_sample else x
    embedding = unet.time_embedding(unet.time_proj(t.expand(len(x))).to(unet.dtype))
    hidden, skip = unet.conv_in(sample), sample
    for block in unet.down_blocks:
        if hasattr(block, "skip_conv"):  # the NCSN++ blocks carry a second, downsampled copy of the input
            hidden, _, skip = block(hidden, embedding, skip)
        else:
            hidden, _ = block(hidden, embedding, **context_of(block))
    return unet.mid_block(hidden, embedding, **context_of(unet.mid_block))


def bottleneck_shape(unet: UNet2DModel) -> tuple[int, int, int]:
    """Return the shape (C', H', W') of h, by one evaluation of the encoder at zero."""
    devices = [unet.device] if unet.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # dropout draws nothing from the caller's random numbers
        zero = torch.zeros(1, *latent_shape(unet), dtype=unet.dtype, device=unet.device)
        return tuple(encode(unet, zero, 0).shape[1:])


def bottleneck_hook(unet: UNet2DModel, edit: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Inside a `with` block, decode what `edit` returns of each h (B, C', H', W') in its place; None leaves h."""
    check_encoder(unet)
    return unet.mid_block.register_forward_hook(lambda _module, _inputs, h: edit(h))


def check_latents(unet: UNet2DModel, x: Tensor, name: str) -> None:
    """Raise ValueError unless x is a finite batch (B, C, H, W) of the channels and size that the model was made for."""
    expected = (unet.config.in_channels, "H", "W") if unet.config.sample_size is None else latent_shape(unet)
    if x.ndim != 4 or len(x) == 0 or any(e not in (n, "H", "W") for e, n in zip(expected, x.shape[1:], strict=True)):
        needed = ", ".join(map(str, expected))
        raise ValueError(f"{name} must have the shape (B, {needed}) of this model; got {tuple(x.shape)}")
    if not x.is_floating_point() or not x.isfinite().all():
        got = f"{x.dtype}, {int((~x.isfinite()).sum())} values not finite"
        raise ValueError(f"{name} must be floating-point and finite; got {got}")


def check_encoder(unet: UNet2DModel) -> None:
    """Raise unless `encode` can read the bottleneck of this model."""
    if type(unet).__name__ == "UNet2DConditionModel":
        raise ValueError("a UNet2DConditionModel maps noise once its prompt is fixed; wrap the pipeline in with_prompt")
    unet = getattr(unet, "unet", unet)  # of a `FixedPrompt`
    needed = ("conv_in", "time_proj", "time_embedding", "down_blocks", "config")
    if missing := [name for name in needed if not hasattr(unet, name)]:
        raise TypeError(f"expected a diffusers UNet2DModel; {type(unet).__name__} has no {', '.join(missing)}")
    if getattr(unet, "mid_block", None) is None:
        raise ValueError("the U-Net has no mid block, so it has no bottleneck h; mid_block is None, expected a module")
    if getattr(unet, "class_embedding", None) is not None:
        raise ValueError("the U-Net is class-conditional; expected an unconditional UNet2DModel")
