"""The encoder is the first half of the U-Net, exactly."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from isodiff.diffusion.hspace import bottleneck_hook, encode
from isodiff.diffusion.models import build_unet
from isodiff.geometry import jvp, vjp

_SMALL = {
    **{"sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
    **{"attention_head_dim": 4, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
}
_LAYOUTS = {
    "plain": {},
    "attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "skip": {
        "down_block_types": ("SkipDownBlock2D",) * 2,
        "up_block_types": ("SkipUpBlock2D",) * 2,
        "norm_num_groups": 8,
    },
    "centred": {"center_input_sample": True},
}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _hooked(unet: UNet2DModel, x: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with bottleneck_hook(unet, seen.append):
        unet(x, t)
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("t", [0, 700, torch.tensor([3, 400, 999])])
def test_encode_is_what_a_hook_on_the_mid_block_sees(layout: str, t: torch.Tensor | int) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**_SMALL | _LAYOUTS[layout])
    x = _noise(3, 3, 16, 16)
    torch.testing.assert_close(encode(unet, x, t), _hooked(unet, x, t), atol=0, rtol=0)


@torch.no_grad()
def test_a_bottleneck_hook_sees_h_and_replaces_it() -> None:
    unet, x, seen = build_unet("digits16"), _noise(2, 1, 16, 16), []
    with bottleneck_hook(unet, seen.append):
        watched = unet(x, 300).sample
    torch.testing.assert_close(watched, unet(x, 300).sample, atol=0, rtol=0)
    torch.testing.assert_close(seen[0], encode(unet, x, 300), atol=0, rtol=0)
    with bottleneck_hook(unet, torch.zeros_like):
        assert not torch.allclose(unet(x, 300).sample, watched, atol=1e-3)


def test_decoder_does_not_run() -> None:
    unet = build_unet("digits16")
    unet.up_blocks = None
    unet.conv_out = None
    assert encode(unet, _noise(1, 1, 16, 16), 0).shape == (1, 48, 4, 4)


def test_jacobian_products_are_adjoint_through_attention() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(**_SMALL | _LAYOUTS["attention"]).double()
    x, v = _noise(2, 3, 16, 16).double(), _noise(2, 3, 16, 16).double().flip(0)
    h, pushed = jvp(lambda y: encode(unet, y, 500), x, v)
    u = torch.cos(h.detach())
    _, pulled = vjp(lambda y: encode(unet, y, 500), x, u)
    torch.testing.assert_close((pushed * u).sum(), (v * pulled).sum(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(1, 16, 16), 0, r"\(B, 1, H, W\).*\(1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16), 0, r"\(1, 3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), torch.tensor([1, 2, 3]), r"one per row \(2\).*\(3,\)"),
        (torch.zeros(2, 1, 16, 16), torch.zeros(2, 1), r"\(2, 1\)"),
    ],
)
def test_bad_input_is_refused(x: torch.Tensor, t: torch.Tensor | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(build_unet("digits16"), x, t)


def test_models_without_a_bottleneck_are_refused() -> None:
    x = torch.zeros(1, 1, 16, 16)
    unet = build_unet("digits16")
    unet.mid_block = None
    with pytest.raises(ValueError, match="no mid block"):
        encode(unet, x, 0)
    with pytest.raises(TypeError, match="UNet2DModel; Linear has no conv_in"):
        encode(torch.nn.Linear(1, 1), x, 0)
    conditional = UNet2DModel(**_SMALL | _LAYOUTS["plain"], num_class_embeds=3)
    with pytest.raises(ValueError, match="class-conditional"):
        encode(conditional, torch.zeros(1, 3, 16, 16), 0)
