r"""Smooth Diffusion's penalty: all changes of the image pull back to noise of one length (Guo et al. 2024).

    L = mean (‖Jᵀδ‖ − a)²,    a ← a + r (mean ‖Jᵀδ‖ − a),    r = 0.01,

with J the Jacobian of the image in the noise and δ a random change of the image. The running mean a starts at 0 and is
updated before it is used, so that a share r of it carries gradient, as in StyleGAN2 (Karras et al. 2020).
"""

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map

RATE = 0.01


def pulled_lengths(f: Map, x: Tensor, covectors: Tensor) -> Tensor:
    """Return ‖Jᵀδ‖ of f at every row of x (B, *S) for δ like f(x), (B,); differentiable in the parameters of f."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        return Linearisation(f, x, dtype=x.dtype).vjp(covectors.to(x)).flatten(1).norm(dim=1)


def updated_average(mean: float, average: float) -> float:
    """Return the running mean a + r (mean − a)."""
    return average + RATE * (mean - average)


def smooth_loss_share(lengths: Tensor, mean: Tensor, average: float) -> Tensor:
    """Return one part's share of the penalty, for a batch cut into equal parts; `mean` is that of all lengths.

    With a the updated running mean held constant, shareᵢ = mean (ℓ − a)² − 2 r (mean − a) (mean ℓ − mean): the shares'
    mean is the penalty, and that of their gradients is its gradient.
    """
    mean = mean.detach()
    a = updated_average(mean, average)
    return (lengths - a).square().mean() - 2 * RATE * (mean - a) * (lengths.mean() - mean)
