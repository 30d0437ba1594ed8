"""The gradient of the isometry loss against central differences of its value, layer by layer, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from isodiff.geometry import isometry_loss
from isodiff.geometry.layers import TwiceDifferentiable

from .tensors import noise, refusals, slopes


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


def checkpointed(norm: nn.Module, *, use_reentrant: bool = False) -> nn.Module:
    return nn.Sequential(Call(lambda x, a: checkpoint(a, x, use_reentrant=use_reentrant), a=block(norm)), block())


def attention(**options: bool) -> nn.Module:
    return tokens(lambda x, a: a(x, x, x, **options)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


def inside(x: Tensor, q: nn.Linear) -> Tensor:
    """A fused kernel asked for inside the map, where no outer choice reaches."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(*q(x).unsqueeze(1).chunk(3, 3)).squeeze(1)


torch.manual_seed(0)
UNARY = "SiLU GELU Mish Softplus ELU SELU CELU LeakyReLU Hardswish LogSigmoid Sigmoid Tanhshrink Softsign Hardtanh"
CONVOLUTIONS = [{"stride": 2}, {"groups": 2}, {"groups": 4}, {"dilation": 2}, {"padding_mode": "circular"}]
NORMS = [nn.LayerNorm((4, 6, 6)), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True)]
POOLS = [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(5)]
RESIZED = [nn.Upsample(scale_factor=s, mode=mode) for s, mode in ((2, "nearest"), (2, "bilinear"), (1.5, "bicubic"))]
AROUND = [
    *(getattr(nn, name)() for name in UNARY.split()),
    *(nn.Conv2d(4, 4, 3, **{"padding": 2} | options) for options in (*CONVOLUTIONS, {"padding": "same"})),
    *(*NORMS, *POOLS, *RESIZED, nn.ConvTranspose2d(4, 4, 3, stride=2)),
    *(nn.GELU("tanh"), nn.PReLU(4), nn.Softmax(1), nn.ReLU(inplace=True), nn.Dropout(0.3)),
]
LAYERS: dict[str, nn.Module] = {
    **{str(layer): around(layer) for layer in AROUND},
    **{str(layer): rows(layer) for layer in (nn.LayerNorm(8, elementwise_affine=False), nn.RMSNorm(8))},
    "conv unbatched": Call(lambda x, c: torch.stack([torch.tanh(c(row)) for row in x]), c=nn.Conv2d(4, 2, 3)),
    "conv vmapped": Call(lambda x, c: torch.tanh(torch.vmap(c)(x)), c=nn.Conv2d(4, 2, 3)),
    "layer norm, torch": after(lambda x: torch.tanh(torch.layer_norm(x, (6,)))),
    "instance norm, tracked, eval": around(nn.InstanceNorm2d(4, track_running_stats=True)).eval(),
    "batch norm, eval": around(nn.BatchNorm2d(4)).eval(),
    "weight norm": around(weight_norm(nn.Conv2d(4, 4, 3))),
    "attention": attention(),
    "attention, eval": attention(need_weights=False).eval(),
    "in place on the input": nn.Sequential(nn.SiLU(inplace=True), nn.Conv2d(4, 2, 3), nn.SiLU()),
    "checkpointed": checkpointed(nn.GroupNorm(2, 4)),
}
REFUSED = [
    (after(lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5)[0].tanh()), "layer normalisation"),
    (nn.Sequential(block(), torch.jit.script(nn.LayerNorm(6))), "layer normalisation"),
    (tokens(inside, q=nn.Linear(8, 24)), "flash_attention.*differences"),
    (checkpointed(nn.LayerNorm(6)), "checkpoint.*differences"),
    (checkpointed(nn.GroupNorm(2, 4), use_reentrant=True), "reentrant.*differences"),
]


def loss(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # for dropout
    return isometry_loss(net, x, generator=torch.Generator().manual_seed(2), num_probes=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("net", LAYERS.values(), ids=LAYERS)
def test_the_gradient_is_the_slope_of_the_loss(net: nn.Module) -> None:
    net, x = net.double(), noise(2, 4, 6, 6)
    weights = list(net.parameters())
    with torch.no_grad():
        for p in weights:
            p.add_(0.1 * torch.randn_like(p))  # away from ones and zeros
    gradients = torch.autograd.grad(loss(net, x), weights, allow_unused=True, materialize_grads=True)
    said, measured = slopes(lambda: loss(net, x).item(), weights, gradients)
    assert said == pytest.approx(measured, rel=1e-5, abs=1e-8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("net", "message"), REFUSED)
def test_what_double_backward_gets_wrong_is_refused_with_a_remedy(net: nn.Module, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        loss(net.double(), noise(2, 4, 6, 6))


OPTIONS = [{"stride": (2, 1), "padding": (0, 2)}, {"dilation": 2}, {"groups": 2, "bias": False}, {"padding": "same"}]


def tracked(*, training: bool) -> nn.Module:
    layer = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).train(training)
    layer.running_mean.normal_(generator=torch.Generator().manual_seed(0))
    return layer


@pytest.mark.parametrize(
    "layer", [*NORMS, nn.LayerNorm(6), nn.RMSNorm(6), tracked(training=True), tracked(training=False)]
)
def test_normalisations_have_the_value_of_torch_s(layer: nn.Module) -> None:
    layer, x = layer.double(), 3 + noise(2, 4, 6, 6, seed=1)
    expected = layer(x)
    with TwiceDifferentiable():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


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
