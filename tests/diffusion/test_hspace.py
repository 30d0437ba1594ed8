"""The encoder is the first half of the U-Net, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from isodiff.diffusion.hspace import bottleneck_hook, encode

from .tiny import noise, tiny_unet

LAYOUTS = {
    "plain": {},
    "attention": {
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    },
    "skip": {
        **{"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2},
        **{"block_out_channels": (8, 16), "norm_num_groups": 8},
    },
    "centred": {"center_input_sample": True},
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("t", [700, torch.tensor([3, 400, 999])])
def test_encode_is_what_a_hook_on_the_mid_block_sees_and_replaces(layout: str, t: Tensor | int) -> None:
    unet, x, seen = tiny_unet(**LAYOUTS[layout]), noise(3, 3, 8, 8), []
    with bottleneck_hook(unet, seen.append):
        watched = unet(x, t).sample
    torch.testing.assert_close(encode(unet, x, t), seen[0], atol=0, rtol=0)
    torch.testing.assert_close(watched, unet(x, t).sample, atol=0, rtol=0)
    with bottleneck_hook(unet, lambda h: 9 * torch.ones_like(h)):
        assert not torch.allclose(unet(x, t).sample, watched, atol=1e-3)
    unet.up_blocks = unet.conv_out = None
    assert encode(unet, x, t).shape == seen[0].shape, "the decoder is not run"


@pytest.mark.parametrize(
    ("unet", "shape", "t", "kind", "message"),
    [
        (tiny_unet(), (1, 1, 8, 8), 0, ValueError, r"\(B, 3, H, W\).*\(1, 1, 8, 8\)"),
        (tiny_unet(), (2, 3, 8, 8), torch.tensor([1, 2, 3]), ValueError, r"one per row \(2\).*\(3,\)"),
        (tiny_unet(mid_block_type=None), (1, 3, 8, 8), 0, ValueError, "no mid block"),
        (tiny_unet(num_class_embeds=3), (1, 3, 8, 8), 0, ValueError, "class-conditional"),
        (nn.Linear(1, 1), (1, 3, 8, 8), 0, TypeError, "UNet2DModel; Linear has no conv_in"),
    ],
)
def test_bad_input_is_refused(
    unet: nn.Module, shape: tuple[int, ...], t: Tensor | int, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        encode(unet, torch.zeros(shape), t)
