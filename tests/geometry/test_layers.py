"""The gradient of the isometry loss against central differences of its value, layer by layer, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from isodiff.geometry import isometry_loss
from isodiff.geometry.layers import TwiceDifferentiable

from .tensors import noise, refusals


class Call(nn.Module):
    """A module from a function of the input and its parts."""

    def __init__(self, forward: Callable, **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


def block(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *layers, nn.SiLU())


def around(layer: nn.Module) -> nn.Module:
    """Images (B, 4, 6, 6) through a convolution, the layer, a nonlinearity and a pool."""
    return nn.Sequential(block(), layer, nn.Tanh(), nn.Conv2d(4, 2, 3))


def after(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(block(), Call(function))


def rows(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.SiLU(), layer, nn.Tanh(), nn.Linear(8, 6))


def tokens(layer: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    """Images as 36 tokens of 4 channels, after an embedding of 8."""
    flat = Call(lambda x: x.flatten(2).mT)
    return nn.Sequential(flat, nn.Linear(4, 8), Call(layer, **parts), nn.Linear(8, 2))


def evaluated(net: nn.Module) -> nn.Module:
    """In eval mode, with running statistics that are not the defaults."""
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return net.eval()


def checkpointed(norm: nn.Module, *, use_reentrant: bool = False) -> nn.Module:
    return nn.Sequential(Call(lambda x, a: checkpoint(a, x, use_reentrant=use_reentrant), a=block(norm)), block())


def attention(**options: bool) -> nn.Module:
    return tokens(lambda x, a: a(x, x, x, **options)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


def heads(x: Tensor, qkv: nn.Linear) -> Tensor:
    q, k, v = qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def inside(x: Tensor, q: nn.Linear) -> Tensor:
    """A fused kernel asked for inside the map, where no outer choice reaches."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*q(x).unsqueeze(1).chunk(3, 3)).squeeze(1)


def film(x: Tensor, conv: nn.Conv2d, table: nn.Embedding) -> Tensor:
    scale, shift = table(torch.arange(len(x)) % 3).chunk(2, 1)
    return torch.tanh(conv(x) * (1 + scale[..., None, None]) + shift[..., None, None])


def on_a_grid(x: Tensor) -> Tensor:
    grid = torch.linspace(-1, 1, 50, dtype=x.dtype).view(1, 5, 5, 2).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, align_corners=True)


def dit_block() -> nn.Module:
    def forward(x: Tensor, norm: nn.Module, attn: nn.Module, mlp: nn.Module, modulation: nn.Module) -> Tensor:
        shift, scale, gate = modulation(F.silu(x.mean(1, keepdim=True))).chunk(3, 2)
        y = norm(x) * (1 + scale) + shift
        x = x + gate * attn(y, y, y)[0]
        return x + mlp(norm(x))

    norm, attn = nn.LayerNorm(8, elementwise_affine=False), nn.MultiheadAttention(8, 2, batch_first=True)
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU("tanh"), nn.Linear(16, 8))
    return tokens(forward, norm=norm, attn=attn, mlp=mlp, modulation=nn.Linear(8, 24))


def vit_block() -> nn.Module:
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    return tokens(lambda x, a: a(x), a=nn.TransformerEncoderLayer(8, 2, 16, **options))


UNET = {"sample_size": 6, "in_channels": 4, "out_channels": 2, "block_out_channels": (4, 8)}
UNET |= {"norm_num_groups": 2, "layers_per_block": 1}


def unet() -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return Call(lambda x, net: net(x, 5).sample, net=UNet2DModel(**UNET, **blocks, attention_head_dim=4))


def conditional_unet() -> nn.Module:
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    options = {"down_block_types": down, "up_block_types": up, "attention_head_dim": 2, "cross_attention_dim": 6}
    prompt = noise(1, 3, 6)
    net = UNet2DConditionModel(**UNET, **options)
    return Call(lambda x, net: net(x, 5, prompt.expand(len(x), -1, -1)).sample, net=net)


torch.manual_seed(0)
UNARY = "SiLU GELU Mish Softplus ELU SELU CELU LeakyReLU Hardswish LogSigmoid Sigmoid Tanhshrink Softsign Hardtanh"
CONVOLUTIONS = [{"stride": 2}, {"groups": 2}, {"groups": 4}, {"dilation": 2}, {"padding_mode": "circular"}]
NORMS = [
    nn.LayerNorm((4, 6, 6)),
    nn.GroupNorm(2, 4),
    nn.GroupNorm(2, 4, affine=False),
    nn.InstanceNorm2d(4, affine=True),
]
POOLS = [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(5), nn.AdaptiveMaxPool2d(4), nn.LPPool2d(2, 2, 1)]
RESIZED = [nn.Upsample(scale_factor=s, mode=mode) for s, mode in ((2, "nearest"), (2, "bilinear"), (1.5, "bicubic"))]
AROUND = [
    *(getattr(nn, name)() for name in UNARY.split()),
    *(nn.Conv2d(4, 4, 3, **{"padding": 2} | options) for options in (*CONVOLUTIONS, {"padding": "same"})),
    *(nn.GroupNorm(2, 4), *NORMS),
    *POOLS,
    *RESIZED,
    *(nn.ConvTranspose2d(4, 4, 3, stride=2), nn.LocalResponseNorm(2), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)),
    *(nn.GELU("tanh"), nn.PReLU(4), nn.Softmax(1), nn.LogSoftmax(1), nn.ReLU(inplace=True), nn.Dropout(0.3)),
]
LAYERS: dict[str, nn.Module] = {
    **{str(layer): around(layer) for layer in AROUND},
    **{str(layer): rows(layer) for layer in (nn.Identity(), nn.LayerNorm(8), nn.RMSNorm(8))},
    "layer norm, plain": rows(nn.LayerNorm(8, elementwise_affine=False)),
    "bilinear": Call(lambda x, a: torch.tanh(a(x.flatten(1), x.flatten(1))), a=nn.Bilinear(144, 144, 4)),
    "conv1d": Call(lambda x, c: torch.tanh(c(x.flatten(2))), c=nn.Conv1d(4, 3, 3)),
    "conv3d": Call(lambda x, c: torch.tanh(c(x.unflatten(1, (2, 2)))), c=nn.Conv3d(2, 2, (1, 3, 3))),
    "conv unbatched": Call(lambda x, c: torch.stack([torch.tanh(c(row)) for row in x]), c=nn.Conv2d(4, 2, 3)),
    "conv vmapped": Call(lambda x, c: torch.tanh(torch.vmap(c)(x)), c=nn.Conv2d(4, 2, 3)),
    "layer norm, torch": after(lambda x: torch.tanh(torch.layer_norm(x, (6,)))),
    "layer norm, native": after(lambda x: torch.tanh(torch.native_layer_norm(x, (6,), None, None, 1e-5)[0])),
    "layer norm, scripted": nn.Sequential(block(), torch.jit.script(nn.LayerNorm(6))),
    "instance norm, tracked, eval": evaluated(around(nn.InstanceNorm2d(4, track_running_stats=True))),
    "instance norm, tracked, train": around(nn.InstanceNorm2d(4, track_running_stats=True)),
    "batch norm, eval": evaluated(around(nn.BatchNorm2d(4))),
    "batch norm 1d, eval": evaluated(rows(nn.BatchNorm1d(8))),
    "normalize": after(F.normalize),
    "weight norm": around(weight_norm(nn.Conv2d(4, 4, 3))),
    "weight norm, old": around(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 3))),
    "spectral norm, eval": around(spectral_norm(nn.Conv2d(4, 4, 3))).eval(),
    "attention": attention(),
    "attention without weights": attention(need_weights=False),
    "attention, eval": attention(need_weights=False).eval(),
    "sdpa": tokens(heads, qkv=nn.Linear(8, 24)),
    "sdpa causal": tokens(
        lambda x, q: F.scaled_dot_product_attention(*q(x).chunk(3, 2), is_causal=True), q=nn.Linear(8, 24)
    ),
    "sdpa, kernel chosen inside": tokens(inside, q=nn.Linear(8, 24)),
    "glu": around(Call(lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1))),
    "in place on the input": nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(4, 2, 3), nn.SiLU()),
    "area": around(Call(lambda x: F.interpolate(x, size=4, mode="area"))),
    "pixel shuffle": around(nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2))),
    "unfold": Call(lambda x, a: torch.tanh(a(F.unfold(x, 3).mT)), a=nn.Linear(36, 2)),
    "grid sample": around(Call(on_a_grid)),
    "film": Call(film, conv=nn.Conv2d(4, 4, 3), table=nn.Embedding(3, 8)),
    "lstm": tokens(lambda x, a: a(x)[0], a=nn.LSTM(8, 8, batch_first=True)),
    "gru": tokens(lambda x, a: a(x)[0], a=nn.GRU(8, 8, batch_first=True)),
    "einsum": after(lambda x: torch.tanh(torch.einsum("bchw,bdhw->bcd", x, x))),
    "fft": after(lambda x: torch.fft.rfft2(torch.tanh(x)).abs().square().log1p()),
    "cdist": Call(lambda x, a: torch.cdist(a(x).flatten(2), a(x.flip(1)).flatten(2)), a=block()),
    "cosine similarity": Call(lambda x, a: F.cosine_similarity(a(x), x, 1), a=block()),
    "std": after(lambda x: x.std((2, 3)) + x.logsumexp((2, 3))),
    "inverse": after(lambda x: torch.linalg.inv(x @ x.mT + 3 * torch.eye(6, dtype=x.dtype))),
    "cumprod": after(lambda x: (2 + x).cumprod(1)),
    "checkpointed": checkpointed(nn.GroupNorm(2, 4)),
    "checkpointed with layer norm": checkpointed(nn.LayerNorm(6)),
    "checkpointed, reentrant": checkpointed(nn.GroupNorm(2, 4), use_reentrant=True),
    "functional call": Call(
        lambda x, a: functional_call(a, {n: p.clone() for n, p in a.named_parameters()}, (x,)),
        a=block(nn.GroupNorm(2, 4)),
    ),
    "dit": dit_block(),
    "vit": vit_block(),
    "vit, eval": vit_block().eval(),
    "unet": unet(),
    "unet with a prompt": conditional_unet(),
}
REFUSED = {
    "layer norm, native": "layer normalisation",
    "layer norm, scripted": "layer normalisation",
    "sdpa, kernel chosen inside": "flash_attention.*differences",
    "checkpointed with layer norm": "checkpoint.*differences",
    "checkpointed, reentrant": "reentrant.*differences",
}


def loss(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # for dropout
    return isometry_loss(net, x, generator=torch.Generator().manual_seed(2), num_probes=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in REFUSED])
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    net, x = LAYERS[name].double(), noise(2, 4, 6, 6)
    weights = list(net.parameters())

    def move(directions: list[Tensor], step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(weights, directions, strict=True):
                p.add_(step * d)
        return loss(net, x)

    start = move([torch.randn_like(p) for p in weights], 0.1)
    directions = [torch.randn_like(p) * p.std(correction=0).clamp_min(0.1) for p in weights]
    gradients = torch.autograd.grad(start, weights, allow_unused=True, materialize_grads=True)
    given = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    h = 1e-4  # differences of fourth order, at h, −h, −2h and 2h
    right, left, far_left, far_right = (move(directions, step * h).item() for step in (1, -2, -1, 4))
    measured = (8 * (right - left) - (far_right - far_left)) / (12 * h)
    assert given == pytest.approx(measured, rel=1e-5, abs=1e-8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_double_backward_gets_wrong_is_refused_with_a_remedy(name: str, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        loss(LAYERS[name].double(), noise(2, 4, 6, 6))


OPTIONS = [{"stride": (2, 1), "padding": (0, 2)}, {"dilation": 2}, {"groups": 2, "bias": False}, {"padding": "same"}]


@pytest.mark.parametrize("options", [*OPTIONS, {"padding": 1, "padding_mode": "circular"}])
def test_convolutions_have_the_value_and_derivatives_of_torch_s(options: dict) -> None:
    layer, x = nn.Conv2d(4, 6, 3, **options).double(), noise(2, 4, 7, 6, seed=1).requires_grad_()

    def derivatives() -> list[Tensor]:
        y, wanted = layer(x), [x, *layer.parameters()]
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)]

    expected = derivatives()
    with TwiceDifferentiable():
        torch.testing.assert_close(derivatives(), expected, rtol=0, atol=1e-10)


ROUTES = ("double_backward", "differences")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).eval()])
def test_normalisation_over_the_batch_is_refused_and_its_statistics_stay(module: nn.Module, route: str) -> None:
    before = [buffer.clone() for buffer in module.buffers()]
    with pytest.raises(ValueError, match=r"BatchNorm2d.*eval"):
        isometry_loss(nn.Sequential(module, nn.Flatten()), torch.randn(2, 4, 6, 6), route=route)
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@pytest.mark.parametrize("form", ["inside", "prepared"])
def test_networks_that_cast_by_themselves_have_the_loss_of_plain_products(form: str) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.LayerNorm(6), nn.Conv2d(8, 4, 3)), torch.randn(4, 3, 8, 8)
    cast = torch.autocast("cpu", torch.bfloat16)(net.forward)
    f = cast if form == "inside" else convert_outputs_to_fp32(cast)  # as accelerate prepares it
    value, exact = (isometry_loss(g, x, generator=torch.Generator().manual_seed(2)) for g in (f, net))
    assert value.item() == pytest.approx(exact.item(), rel=0.03)
    value.backward()
    assert all(p.grad is not None for p in net.parameters() if p.ndim > 1)


test_what_is_no_map_of_tensors_is_refused = refusals(
    *((lambda r=r: isometry_loss(lambda z: (z, z), torch.ones(2, 3), route=r), "tensor.*tuple") for r in ROUTES),
    (lambda: isometry_loss(lambda z: UNet2DOutput(sample=z), torch.ones(2, 3)), "tensor.*UNet2DOutput.*sample"),
    (lambda: isometry_loss(torch.tanh, np.zeros((2, 3))), "tensor.*ndarray"),
    (lambda: torch.inference_mode()(isometry_loss)(torch.tanh, torch.ones(2, 3)), "no_grad"),
    errors=(TypeError, ValueError, RuntimeError),
)
