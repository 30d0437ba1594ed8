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


class Call(nn.Module):
    """A module from a function of its parts and the input."""

    def __init__(self, forward: Callable, **parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


def around(layer: nn.Module) -> nn.Module:
    """Images (B, 4, 6, 6) through a convolution, the layer, a nonlinearity and a pool."""
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU(), layer, nn.Tanh(), nn.Conv2d(4, 2, 3))


def rows(layer: nn.Module, features: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.SiLU(), layer, nn.Tanh(), nn.Linear(features, 6))


def tokens(layer: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    """Images as 36 tokens of 4 channels, after an embedding of 8."""
    embed = nn.Linear(4, 8)
    return Call(
        lambda x, embed, head, **p: head(layer(embed(x.flatten(2).mT), **p)), embed=embed, head=nn.Linear(8, 2), **parts
    )


def attend(x: Tensor, qkv: nn.Linear) -> Tensor:
    q, k, v = qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def film(x: Tensor, conv: nn.Conv2d, table: nn.Embedding) -> Tensor:
    scale, shift = table(torch.arange(len(x)) % 3).chunk(2, 1)
    return torch.tanh(conv(x) * (1 + scale[..., None, None]) + shift[..., None, None])


def inside(x: Tensor, q: nn.Linear) -> Tensor:
    """A fused kernel asked for inside the map, where no outer choice reaches."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*q(x).unsqueeze(1).chunk(3, 3)).squeeze(1)


def dit_block(x: Tensor, norm: nn.LayerNorm, attn: nn.MultiheadAttention, mlp: nn.Module, mod: nn.Linear) -> Tensor:
    shift, scale, gate = mod(F.silu(x.mean(1, keepdim=True))).chunk(3, 2)
    y = norm(x) * (1 + scale) + shift
    x = x + gate * attn(y, y, y)[0]
    return x + mlp(norm(x))


def vit_block() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)


def unet() -> nn.Module:
    net = UNet2DModel(
        sample_size=6,
        in_channels=4,
        out_channels=2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return Call(lambda x, net: net(x, 5).sample, net=net)


def conditional_unet() -> nn.Module:
    net = UNet2DConditionModel(
        sample_size=6,
        in_channels=4,
        out_channels=2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    prompt = torch.randn(1, 3, 6, dtype=torch.float64)
    return Call(lambda x, net: net(x, 5, prompt.expand(len(x), -1, -1)).sample, net=net)


def volume(x: Tensor, conv: nn.Module) -> Tensor:
    return torch.tanh(conv(x.unflatten(1, (2, 2))))


def evaluated(net: nn.Module) -> nn.Module:
    """In eval mode, with running statistics that are not the defaults."""
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return net.eval()


def block(*norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *norm, nn.SiLU())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: rows(nn.Identity()),
    "bilinear": lambda: Call(lambda x, a: torch.tanh(a(x.flatten(1), x.flatten(1))), a=nn.Bilinear(144, 144, 4)),
    "conv1d": lambda: Call(lambda x, c: torch.tanh(c(x.flatten(2))), c=nn.Conv1d(4, 3, 3)),
    "conv2d": lambda: around(nn.Conv2d(4, 4, 3, stride=2, padding=2)),
    "conv3d": lambda: Call(volume, conv=nn.Conv3d(2, 2, (1, 3, 3))),
    "conv transposed": lambda: around(nn.ConvTranspose2d(4, 4, 3, stride=2)),
    "conv grouped": lambda: around(nn.Conv2d(4, 4, 3, groups=2)),
    "conv depthwise": lambda: around(nn.Conv2d(4, 4, 3, groups=4)),
    "conv dilated": lambda: around(nn.Conv2d(4, 4, 3, dilation=2, padding=2)),
    "conv same": lambda: around(nn.Conv2d(4, 4, 3, padding="same")),
    "conv circular": lambda: around(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    "conv unbatched": lambda: Call(lambda x, c: torch.stack([torch.tanh(c(row)) for row in x]), c=nn.Conv2d(4, 2, 3)),
    "conv vmapped": lambda: Call(lambda x, c: torch.tanh(torch.vmap(c)(x)), c=nn.Conv2d(4, 2, 3)),
    "layer norm": lambda: rows(nn.LayerNorm(8)),
    "layer norm, images": lambda: around(nn.LayerNorm((4, 6, 6))),
    "layer norm, plain": lambda: rows(nn.LayerNorm(8, elementwise_affine=False)),
    "layer norm, torch": lambda: Call(lambda x, a: torch.tanh(torch.layer_norm(a(x), (6,))), a=block()),
    "layer norm, native": lambda: Call(
        lambda x, a: torch.tanh(torch.native_layer_norm(a(x), (6,), None, None, 1e-5)[0]), a=block()
    ),
    "layer norm, scripted": lambda: Call(lambda x, a, b: b(a(x)), a=block(), b=torch.jit.script(nn.LayerNorm(6))),
    "group norm": lambda: around(nn.GroupNorm(2, 4)),
    "group norm, plain": lambda: around(nn.GroupNorm(2, 4, affine=False)),
    "rms norm": lambda: rows(nn.RMSNorm(8)),
    "instance norm": lambda: around(nn.InstanceNorm2d(4, affine=True)),
    "instance norm, tracked, eval": lambda: evaluated(around(nn.InstanceNorm2d(4, track_running_stats=True))),
    "instance norm, tracked, train": lambda: around(nn.InstanceNorm2d(4, track_running_stats=True)),
    "batch norm, eval": lambda: evaluated(around(nn.BatchNorm2d(4))),
    "batch norm 1d, eval": lambda: evaluated(rows(nn.BatchNorm1d(8))),
    "local response": lambda: around(nn.LocalResponseNorm(2)),
    "normalize": lambda: Call(lambda x, a: F.normalize(a(x)), a=block()),
    "weight norm": lambda: around(weight_norm(nn.Conv2d(4, 4, 3))),
    "weight norm, old": lambda: around(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 3))),
    "spectral norm, eval": lambda: around(spectral_norm(nn.Conv2d(4, 4, 3))).eval(),
    "attention": lambda: tokens(lambda x, a: a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
    "attention without weights": lambda: tokens(
        lambda x, a: a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)
    ),
    "attention, eval": lambda: tokens(
        lambda x, a: a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)
    ).eval(),
    "sdpa": lambda: tokens(attend, qkv=nn.Linear(8, 24)),
    "sdpa causal": lambda: tokens(
        lambda x, q: F.scaled_dot_product_attention(*q(x).chunk(3, 2), is_causal=True), q=nn.Linear(8, 24)
    ),
    "sdpa, kernel chosen inside": lambda: tokens(inside, q=nn.Linear(8, 24)),
    "silu": lambda: around(nn.SiLU()),
    "gelu": lambda: around(nn.GELU()),
    "gelu, tanh": lambda: around(nn.GELU("tanh")),
    "mish": lambda: around(nn.Mish()),
    "softplus": lambda: around(nn.Softplus()),
    "elu": lambda: around(nn.ELU()),
    "selu": lambda: around(nn.SELU()),
    "celu": lambda: around(nn.CELU()),
    "glu": lambda: around(Call(lambda x, a: F.glu(torch.cat([x, x.flip(1)], 1), 1), a=nn.Identity())),
    "leaky relu": lambda: around(nn.LeakyReLU()),
    "prelu": lambda: around(nn.PReLU(4)),
    "hardswish": lambda: around(nn.Hardswish()),
    "logsigmoid": lambda: around(nn.LogSigmoid()),
    "softmax": lambda: around(nn.Softmax(1)),
    "log softmax": lambda: around(nn.LogSoftmax(1)),
    "sigmoid": lambda: around(nn.Sigmoid()),
    "tanhshrink": lambda: around(nn.Tanhshrink()),
    "softsign": lambda: around(nn.Softsign()),
    "hardtanh": lambda: around(nn.Hardtanh()),
    "relu in place": lambda: around(nn.ReLU(inplace=True)),
    "in place on the input": lambda: nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(4, 2, 3), nn.SiLU()),
    "max pool": lambda: around(nn.MaxPool2d(2, 1)),
    "average pool": lambda: around(nn.AvgPool2d(2, 1)),
    "adaptive pool": lambda: around(nn.AdaptiveAvgPool2d(5)),
    "adaptive max": lambda: around(nn.AdaptiveMaxPool2d(4)),
    "lp pool": lambda: around(nn.LPPool2d(2, 2, 1)),
    "bilinear upsample": lambda: around(nn.Upsample(scale_factor=2, mode="bilinear")),
    "bicubic": lambda: around(nn.Upsample(scale_factor=1.5, mode="bicubic")),
    "nearest": lambda: around(nn.Upsample(scale_factor=2)),
    "area": lambda: around(Call(lambda x, a: F.interpolate(a(x), size=4, mode="area"), a=nn.Identity())),
    "pixel shuffle": lambda: around(Call(lambda x, a: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), a=nn.Identity())),
    "reflection": lambda: around(nn.ReflectionPad2d(1)),
    "replication": lambda: around(nn.ReplicationPad2d(1)),
    "unfold": lambda: Call(lambda x, a: torch.tanh(a(F.unfold(x, 3).mT)), a=nn.Linear(36, 2)),
    "grid sample": lambda: around(
        Call(
            lambda x, a: F.grid_sample(
                x,
                torch.linspace(-1, 1, 50, dtype=x.dtype).view(1, 5, 5, 2).expand(len(x), -1, -1, -1),
                align_corners=True,
            ),
            a=nn.Identity(),
        )
    ),
    "film": lambda: Call(film, conv=nn.Conv2d(4, 4, 3), table=nn.Embedding(3, 8)),
    "dropout, train": lambda: around(nn.Dropout(0.3)),
    "lstm": lambda: tokens(lambda x, a: a(x)[0], a=nn.LSTM(8, 8, batch_first=True)),
    "gru": lambda: tokens(lambda x, a: a(x)[0], a=nn.GRU(8, 8, batch_first=True)),
    "einsum": lambda: Call(lambda x, a: torch.tanh(torch.einsum("bchw,bdhw->bcd", a(x), a(x))), a=block()),
    "fft": lambda: Call(lambda x, a: torch.fft.rfft2(torch.tanh(a(x))).abs().square().log1p(), a=block()),
    "cdist": lambda: Call(lambda x, a: torch.cdist(a(x).flatten(2), a(x.flip(1)).flatten(2)), a=block()),
    "cosine similarity": lambda: Call(lambda x, a: F.cosine_similarity(a(x), x, 1), a=block()),
    "std": lambda: Call(lambda x, a: a(x).std((2, 3)) + a(x).logsumexp((2, 3)), a=block()),
    "inverse": lambda: Call(lambda x, a: torch.linalg.inv(a(x) @ a(x).mT + 3 * torch.eye(6, dtype=x.dtype)), a=block()),
    "cumprod": lambda: Call(lambda x, a: (2 + a(x)).cumprod(1), a=block()),
    "checkpointed": lambda: Call(
        lambda x, a, b: b(checkpoint(a, x, use_reentrant=False)), a=block(nn.GroupNorm(2, 4)), b=block()
    ),
    "checkpointed with layer norm": lambda: Call(
        lambda x, a, b: b(checkpoint(a, x, use_reentrant=False)), a=block(nn.LayerNorm(6)), b=block()
    ),
    "checkpointed, reentrant": lambda: Call(
        lambda x, a, b: b(checkpoint(a, x, use_reentrant=True)), a=block(nn.GroupNorm(2, 4)), b=block()
    ),
    "functional call": lambda: Call(
        lambda x, a: functional_call(a, {n: p.clone() for n, p in a.named_parameters()}, (x,)),
        a=block(nn.GroupNorm(2, 4)),
    ),
    "dit": lambda: tokens(
        dit_block,
        norm=nn.LayerNorm(8, elementwise_affine=False),
        attn=nn.MultiheadAttention(8, 2, batch_first=True),
        mlp=nn.Sequential(nn.Linear(8, 16), nn.GELU("tanh"), nn.Linear(16, 8)),
        mod=nn.Linear(8, 24),
    ),
    "vit": lambda: tokens(lambda x, a: a(x), a=vit_block()),
    "vit, eval": lambda: tokens(lambda x, a: a(x), a=vit_block()).eval(),
    "unet": unet,
    "unet with a prompt": conditional_unet,
}


REFUSED = {
    "layer norm, native": "layer normalisation",
    "layer norm, scripted": "layer normalisation",
    "sdpa, kernel chosen inside": "flash_attention.*differences",
    "checkpointed with layer norm": "checkpoint.*differences",
    "checkpointed, reentrant": "reentrant.*differences",
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = LAYERS[name]().double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net, torch.randn(2, 4, 6, 6, dtype=torch.float64)


def loss(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # for dropout
    return isometry_loss(net, x, generator=torch.Generator().manual_seed(2), num_probes=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in REFUSED])
def test_the_gradient_is_the_slope_of_the_loss(name: str) -> None:
    net, x = build(name)
    weights = list(net.parameters())
    directions = [torch.randn_like(p) * p.std(correction=0).clamp_min(0.1) for p in weights]
    gradients = torch.autograd.grad(loss(net, x), weights, allow_unused=True, materialize_grads=True)
    given = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(weights, directions, strict=True):
                p.add_(step * d)
        value = loss(net, x).item()
        with torch.no_grad():
            for p, d in zip(weights, directions, strict=True):
                p.sub_(step * d)
        return value

    h = 1e-4  # differences of fourth order
    measured = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    assert given == pytest.approx(measured, rel=1e-5, abs=1e-8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_double_backward_gets_wrong_is_refused_with_a_remedy(name: str, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        loss(*build(name))


@pytest.mark.parametrize("route", ["double_backward", "differences"])
@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).eval()])
def test_normalisation_over_the_batch_is_refused_and_its_statistics_stay(module: nn.Module, route: str) -> None:
    before = [buffer.clone() for buffer in module.buffers()]
    with pytest.raises(ValueError, match=r"BatchNorm2d.*eval"):
        isometry_loss(nn.Sequential(module, nn.Flatten()), torch.randn(2, 4, 6, 6), route=route)
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


@pytest.mark.parametrize("form", ["inside", "prepared"])
def test_networks_that_cast_by_themselves_have_the_loss_of_plain_products(form: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.LayerNorm(6), nn.Conv2d(8, 4, 3)), torch.randn(4, 3, 8, 8)

    def cast(z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(z)

    prepared = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(net.forward))  # as accelerate prepares it
    f = cast if form == "inside" else prepared
    value = isometry_loss(f, x, generator=torch.Generator().manual_seed(2))
    value.backward()
    exact = isometry_loss(net, x, generator=torch.Generator().manual_seed(2))
    assert value.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(p.grad is not None for p in net.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("f", "x", "message"),
    [
        (lambda z: (z, z), torch.randn(2, 3), "tensor.*tuple"),
        (lambda z: UNet2DOutput(sample=z), torch.randn(2, 3), "tensor.*UNet2DOutput.*sample"),
        (lambda z: z, np.zeros((2, 3)), "tensor.*ndarray"),
        (lambda z: z.detach(), torch.randn(2, 3), "depend on x"),
    ],
)
@pytest.mark.parametrize("route", ["double_backward", "differences"])
def test_what_is_no_map_of_tensors_is_refused(f: Callable, x: object, message: str, route: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        isometry_loss(f, x, route=route)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        isometry_loss(torch.tanh, torch.randn(2, 3))
