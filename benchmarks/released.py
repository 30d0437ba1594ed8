"""The formula of the authors' released code for Eq. 6, as the benchmarks compare with it.

Two Jacobian-vector products by double backward and one vector-Jacobian product, each on a fresh pass of the whole U-Net
that reads the bottleneck with a hook. Repaired here: its graph reaches the parameters, and it yields traces, so that a
ratio of means can be taken of them. The probe's square, its gradient included, is ours; only the route differs.
"""

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isodiff.geometry import project_to_tangent


def released_traces(unet: UNet2DModel, x: Tensor, t: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples of Tr R and Tr R² as `isodiff.geometry.trace_samples` does, by the route of the released code."""
    x = x.detach().requires_grad_()
    first, second = [], []
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        for probe in probes:
            v = project_to_tangent(probe, x.detach())
            one, other = _double_backward_jvp(unet, x, t, v), _double_backward_jvp(unet, x, t, v)
            (pulled,) = torch.autograd.grad(_bottleneck_by_hook(unet, x, t), x, other, create_graph=True)
            first.append(one.flatten(1).square().sum(1))
            second.append(project_to_tangent(pulled, x.detach()).flatten(1).square().sum(1))
    return torch.stack(first, 1), torch.stack(second, 1)


def _double_backward_jvp(unet: UNet2DModel, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    h = _bottleneck_by_hook(unet, x, t)
    u = torch.zeros_like(h, requires_grad=True)
    (pulled,) = torch.autograd.grad(h, x, u, create_graph=True)
    return torch.autograd.grad(pulled, u, v, create_graph=True)[0]


def _bottleneck_by_hook(unet: UNet2DModel, x: Tensor, t: Tensor) -> Tensor:
    """Run the whole U-Net and return what its mid block gave."""
    kept: list[Tensor] = []
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    unet(x, t)
    handle.remove()
    return kept[0]
