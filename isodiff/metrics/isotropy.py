r"""How isometric a map is: from the singular values of its Jacobian, and from its scaled-isometry loss.

With ``J`` the Jacobian at one point, ``G = JᵀJ`` is the metric that the map pulls back, ``σᵢ`` are the singular values
of ``J`` and ``σᵢ²`` the eigenvalues of ``G`` (Eq. 10 of Hahm et al. 2024 prints ``σᵢ = λᵢ²``; what holds is
``σᵢ = √λᵢ``). A scaled isometry has ``G = c² I`` with one ``c`` everywhere: all its ``σᵢ`` are equal, at a point and
from point to point.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import eigh

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import check_steps
from isodiff.geometry.isometry import isometry_loss, isotropy

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, UNet2DModel
    from numpy.typing import ArrayLike, NDArray


def condition_number(sigma: ArrayLike | torch.Tensor, *, squared: bool = False) -> float:
    """Return the mean condition number, ``MCN = Eₓ[σ₁ / σₖ]`` (Hahm et al. 2024).

    Args:
        sigma: The k leading singular values at n points, (n, k), each row descending and positive.
        squared: Take the condition number of ``G = JᵀJ`` instead, ``(σ₁ / σₖ)²``, as Lee et al. (2022) do.

    Returns:
        The mean over the points, at least 1; 1 is a conformal map on the k directions.

    Raises:
        ValueError: If ``sigma`` is not such an array, or a ``σₖ`` is zero.
    """
    return float(condition_numbers(sigma, squared=squared).mean())


def condition_numbers(sigma: ArrayLike | torch.Tensor, *, squared: bool = False) -> NDArray[np.floating]:
    """Return the condition number at each point, (n,); Args and Raises as `condition_number`."""
    values = _singular_values(sigma, minimum=1)
    if (values[:, -1] == 0).any():
        row = int((values[:, -1] == 0).argmax())
        raise ValueError(
            f"the last of the {values.shape[1]} singular values of row {row} is 0, so the rank is less than "
            "k and the condition number infinite; expected positive values, take a smaller k"
        )
    ratio = values[:, 0] / values[:, -1]
    return ratio**2 if squared else ratio


def metric_variance(sigma: ArrayLike | torch.Tensor) -> float:
    """Return the variation of the metric from point to point, ``VoR = Σᵢ Varₙ[σᵢ]`` (Eq. 11, Hahm et al. 2024).

    Args:
        sigma: The k leading singular values at n ≥ 2 points, (n, k), each row descending.

    Returns:
        The sum over i of the variance over points, in squared units of σ; 0 if the spectrum is the same everywhere.

    Raises:
        ValueError: If ``sigma`` is not such an array.

    Note:
        The variance is divided by n, so that its mean over samples is (n − 1)/n of the population's. Spectra may agree
        while the directions turn; only `affine_invariant_variance` sees that.
    """
    return float(_singular_values(sigma, minimum=2).var(axis=0).sum())


def affine_invariant_variance(metrics: ArrayLike | torch.Tensor) -> float:
    """Return the affine-invariant variation of a metric, ``Eₙ Σᵢ log² λᵢ(Ḡ⁻¹ Gₙ)`` (Lee et al. 2022).

    ``Ḡ`` is the arithmetic mean of the ``Gₙ``. The eigenvalues of ``Ḡ⁻¹G`` do not depend on the coordinates: they are
    the same for ``AᵀGA`` with any invertible ``A``.

    Args:
        metrics: Symmetric positive definite matrices at n ≥ 2 points, (n, k, k).

    Returns:
        The mean over the points of the squared affine-invariant distance to the mean; 0 if all are equal.

    Raises:
        ValueError: If ``metrics`` is not such an array.
    """
    matrices = _float64(metrics, "metrics")
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.shape[1] == 0 or len(matrices) < 2:
        raise ValueError(f"metrics must have shape (n, k, k) with n ≥ 2, got {matrices.shape}")
    largest = np.abs(matrices).max(axis=(1, 2), keepdims=True)
    if (np.abs(matrices - matrices.swapaxes(1, 2)) > 1e-6 * largest).any():
        raise ValueError("metrics must be symmetric, got matrices that differ from their transposes")
    mean = matrices.mean(axis=0)
    try:
        eigenvalues = np.array([eigh(matrix, mean, eigvals_only=True) for matrix in matrices])
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the mean metric must be positive definite: {error}; take fewer directions") from error
    if eigenvalues.min() <= 0:
        row = int(eigenvalues.min(axis=1).argmin())
        raise ValueError(
            f"metrics must be positive definite, got a smallest relative eigenvalue of {eigenvalues.min():.3g} at row "
            f"{row}; take fewer directions"
        )
    return float((np.log(eigenvalues) ** 2).sum(axis=1).mean())


def _singular_values(sigma: ArrayLike | torch.Tensor, *, minimum: int) -> NDArray[np.floating]:
    values = _float64(sigma, "sigma")
    if values.ndim != 2 or values.shape[1] == 0 or len(values) < minimum:
        raise ValueError(f"sigma must have shape (n, k) with n ≥ {minimum} and k ≥ 1, got {values.shape}")
    if values.min() < 0:
        raise ValueError(f"sigma must not be negative, got {values.min():.3g}")
    if (np.diff(values, axis=1) > 0).any():
        raise ValueError("sigma must descend along each row, from the first to the k-th; got a row that rises")
    return values


def _float64(array: ArrayLike | torch.Tensor, name: str) -> NDArray[np.floating]:
    plain = array.detach().cpu() if isinstance(array, torch.Tensor) else array
    values = np.asarray(plain, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite values")
    return values


@torch.no_grad()
def encoder_isotropy(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    x_0: torch.Tensor,
    t: int,
    *,
    num_batches: int = 8,
    num_probes: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Estimate L_iso · rank (Eq. 6, Hahm et al. 2024) of X_t → H at one step, once for each of several batches.

    Args:
        unet: the model.
        scheduler: its noise schedule.
        x_0: (N, C, H, W) images in [−1, 1], split evenly over the batches; their noise and probes are drawn from
            `seed`, so that models can be compared pair by pair.
        t: the step.
        num_batches: number of batches.
        num_probes: random directions a row.
        seed: of noise and probes.

    Returns:
        (num_batches,) estimates; 1 is a scaled isometry. Their mean has a bias of O(1/(rows · probes of a batch)).

    Raises:
        ValueError: t out of range, or fewer images than batches.
    """
    check_steps(scheduler, t)
    if not 1 <= num_batches <= len(x_0):
        raise ValueError(f"num_batches must be 1 to the number of images, {len(x_0)}; got {num_batches}")
    values = []
    for index, batch in enumerate(x_0.tensor_split(num_batches)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        eps = torch.randn(batch.shape, generator=generator).to(batch)
        x_t = scheduler.add_noise(batch, eps, torch.full((len(batch),), t, device=batch.device))
        encoder = partial(encode, unet, t=t)
        loss = isometry_loss(encoder, x_t, num_probes=num_probes, generator=generator)
        values.append(isotropy(loss.item(), x_t[0].numel(), encoder(x_t[:1]).numel()))
    return np.array(values)
