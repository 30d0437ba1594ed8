r"""Leading singular triplets of a matrix known by its products alone, for several matrices at once.

Block Lanczos iteration on ``A = JᵀJ`` with full reorthogonalisation (Golub and Underwood 1977; Musco and Musco 2015).
The rows of ``Q`` are an orthonormal basis of the Krylov space, which grows by a block of ``b`` vectors at a time:

    A Qᵀ = Qᵀ T + (0 … 0  BᵀR),        T = Q A Qᵀ,

with ``B`` the next block. The eigenvalues of ``T`` (Ritz values) rise towards the squared singular values as the space
grows (Cauchy's interlacing), and ``v = Qᵀc`` with ``T c = σ²c`` leaves ``‖A v − σ²v‖ = ‖R c'‖``, ``c'`` the last ``b``
entries of ``c``. A dimension costs two products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from isodiff.geometry.sphere import require_option

Criterion = Literal["residual", "values", "subspace"]
Product = Callable[[Tensor], Tensor]

_SEED = 2**31 - 1  # one that hardly anyone draws x from


def leading_triplets(
    push: Product,
    pull: Product,
    project: Product,
    like: Tensor,
    k: int,
    *,
    dimension: int,
    num_outputs: int,
    criterion: Criterion = "residual",
    tolerance: float | None = None,
    block_size: int | None = None,
    max_iterations: int = 50,
    generator: torch.Generator | None = None,
    vectors: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` leading singular values, (B, k), and right singular vectors, (B, k, n), of every matrix.

    ``push`` is ``J`` times vectors, (B, b, n) → (B, b, m) for any b, ``pull`` ``Jᵀ`` times covectors, and ``project``
    the orthogonal projection onto the space of ``dimension`` ≤ n that ``Jᵀ`` maps to. ``like``, (B, n), has the
    precision and the device to compute in, and ``generator``, of a fixed seed if not given, starts all matrices alike.
    A matrix's triplets are those at which its own criterion held first, so that they do not depend on the others:

    | criterion | stops when | meant for | tolerance, if not given |
    |---|---|---|---|
    | ``"residual"`` | ``‖Jᵀu − σv‖ ≤ tolerance · σ₁`` for every triplet | vectors, and values to many digits | √ε |
    | ``"values"`` | none is expected to rise by more than the share ``tolerance`` | values to a per cent | 0.005 |
    | ``"subspace"`` | ``sin φ ≤ tolerance`` | the leading subspace, where ``σₖ`` and ``σₖ₊₁`` differ | 0.01 |

    with ``φ`` the largest principal angle between the leading subspaces before and after the space grew by a tenth. The
    rise is extrapolated from the last two tenths, an estimate and no bound: at 0.005 it left 0.4 % for trained U-Nets.
    A criterion that does not hold within ``max_iterations`` · k dimensions, or a product that is not finite, is a
    RuntimeError. The smaller ``block_size`` b, the fewer the products, but of a value more often degenerate than b,
    copies may be missed.
    """
    require_option(criterion, Criterion, "criterion")
    if not 1 <= k <= min(dimension, num_outputs):
        raise ValueError(f"k must be between 1 and {min(dimension, num_outputs)}, got {k}")
    if block_size is None:
        block_size = k if criterion == "residual" else min(k, 4)
    if not 1 <= block_size <= k:
        raise ValueError(f"block_size must be between 1 and k = {k}, got {block_size}")
    measure, name = _CRITERIA[criterion]
    if tolerance is None:
        tolerance = {"residual": math.sqrt(_eps(like)), "values": 5e-3, "subspace": 1e-2}[criterion]
    space = _Space(push, pull, project, like, num_outputs, generator or torch.Generator().manual_seed(_SEED))
    sigma, right = like.new_zeros(len(like), k), like.new_zeros(len(like), k if vectors else 0, like.shape[1])
    waiting = torch.ones(len(like), dtype=torch.bool, device=like.device)
    limit, seen = min(dimension, k * max_iterations), None
    while waiting.any() and space.size < limit:
        space.grow(min(block_size, limit - space.size))
        if space.size < limit and space.size < (1.1 * seen.size if seen else k):
            continue
        now = _Spectrum(space, k, seen)
        worst = measure(now)
        ready = waiting if space.size == dimension else waiting & (worst <= tolerance)
        if ready.any():
            sigma[ready], right[ready] = space.triplets(now.weights, ready, vectors)
        waiting, seen = waiting & ~ready, now
    if waiting.any():
        raise RuntimeError(
            f"the {k} leading singular values did not converge: {name} {worst[waiting].max().item():.2g} "
            f"after {max_iterations} iterations, accepted is {tolerance:.2g}; raise max_iterations or tolerance"
        )
    return sigma, right


class _Space:
    """The Krylov spaces of all matrices: ``Q`` (B, D, n), its image ``Q Jᵀ`` (B, D, m), ``T`` and ``R``."""

    def __init__(
        self, push: Product, pull: Product, project: Product, like: Tensor, num_outputs: int, generator: torch.Generator
    ) -> None:
        self.push, self.pull, self.project, self.like, self.generator = push, pull, project, like, generator
        self.basis, self.image = (like.new_empty(len(like), 0, width) for width in (like.shape[1], num_outputs))
        self.gram = self.coupling = like.new_zeros(len(like), 0, 0)
        self.following = like.new_zeros(len(like), 0, like.shape[1])

    size = property(lambda self: self.basis.shape[1])  # D, the dimension so far

    def grow(self, count: int) -> None:
        block = self._next_block(count)
        image = self.push(block)
        self.basis, self.image = torch.cat([self.basis, block], 1), torch.cat([self.image, image], 1)
        remainder, overlaps = self._split(self.pull(image), 2 * count)
        if not torch.isfinite(remainder).all():
            raise RuntimeError("a product with the Jacobian is not finite; the map overflows, or divides zero by zero")
        gram = torch.nn.functional.pad(self.gram, (0, count, 0, count))
        gram[:, -count:], gram[:, :, -count:] = overlaps, overlaps.mT
        gram[:, -count:, -count:] = (overlaps[:, :, -count:] + overlaps[:, :, -count:].mT) / 2
        self.gram = gram
        following, self.coupling = torch.linalg.qr(remainder.mT)
        self.following = following.mT

    def triplets(self, weights: Tensor, which: Tensor, vectors: bool) -> tuple[Tensor, Tensor]:
        """Return values and vectors of some of the matrices, from the weights (B, D, k) of the leading subspace."""
        weights = weights[which]
        image = weights.mT @ self.image[which]
        if not vectors:
            return torch.linalg.svdvals(image), self.following[which, :0]
        # The values of the image have no squares to lose digits by; they put the weights in order, too.
        left, sigma, _ = torch.linalg.svd(image, full_matrices=False)
        return sigma, (weights @ left).mT @ self.basis[which]

    def _split(self, z: Tensor, recent: int) -> tuple[Tensor, Tensor]:
        """Return the part of ``z`` outside the basis, and its products with the basis, (B, b, D)."""
        # In exact arithmetic only the last two blocks overlap; without them, one pass over all removes the rounding.
        first = max(0, self.size - recent)
        overlap = z @ self.basis[:, first:].mT
        z = self.project(z - overlap @ self.basis[:, first:])
        overlaps = z @ self.basis.mT
        z = z - overlaps @ self.basis
        overlaps[:, :, first:] += overlap
        return z, overlaps

    def _next_block(self, count: int) -> Tensor:
        """Return the next orthonormal block, with a random vector wherever the Krylov space is exhausted."""
        options = {"generator": self.generator, "device": self.generator.device, "dtype": self.like.dtype}
        noise = torch.randn(count, self.like.shape[1], **options).to(self.like.device)
        noise = self.project(noise.expand(len(self.like), -1, -1))
        if self.size == 0:
            return self._orthonormal(noise)
        scale = self.gram.diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
        strength = self.coupling.diagonal(dim1=1, dim2=2).abs()[:, :count]
        exhausted = strength <= self.size * _eps(scale) * scale
        block = torch.where(exhausted[..., None], noise, self.following[:, :count])
        cancelled = strength < 1e-2 * self.coupling.norm(dim=1)[:, :count]
        return self._orthonormal(block) if (cancelled | exhausted).any() else block

    def _orthonormal(self, block: Tensor) -> Tensor:
        for _ in range(2):  # what cancellation leaves of the basis, or of the radius, goes the second time
            block = torch.linalg.qr(self._split(block, 0)[0].mT)[0].mT
        return block


class _Spectrum:
    """What the Krylov spaces tell about the ``k`` leading triplets, now and at the two looks before."""

    def __init__(self, space: _Space, k: int, before: _Spectrum | None) -> None:
        self.size, self.k, self.before = space.size, k, before
        self._gram, self._coupling = space.gram, space.coupling
        if before is not None and before.before is not None:
            before.before.before = None

    @cached_property
    def values(self) -> Tensor:
        return torch.linalg.eigvalsh(self._gram)[:, -self.k :].flip(1).clamp_min(0).sqrt()

    @cached_property
    def weights(self) -> Tensor:
        return torch.linalg.eigh(self._gram)[1][:, :, -self.k :].flip(2)

    def residual(self) -> Tensor:
        """Return the largest ``‖Jᵀu − σv‖`` relative to σ₁, (B,)."""
        block = self._coupling.shape[2]
        square = (self._coupling @ self.weights[:, -block:]).norm(dim=1)  # ‖A v − σ²v‖
        rounding = self.size * _eps(square) * self.values[:, :1].square()
        square = torch.where(square > rounding, square, 0.0)
        # The error of σ² is at most this; hence that of σ, where σ vanishes, at most its root.
        residuals = square / torch.maximum(self.values, square.sqrt()).clamp_min(_tiny(square))
        return residuals.amax(1) / self.values[:, 0].clamp_min(_tiny(square))

    def rise(self) -> Tensor:
        """Return the largest share by which a value has yet to rise, (B,): rises shrinking by ρ add up to ρ/(1 − ρ)."""
        if self.before is None or self.before.before is None:
            return torch.full_like(self.values[:, 0], math.inf)
        last, previous = self._share(), self.before._share()
        ratio = (last / previous.clamp_min(_tiny(last))).clamp_max(0.95)
        return torch.maximum(last * ratio / (1 - ratio), last)  # chance alone may make one rise small

    def angle(self) -> Tensor:
        """Return the sine of the largest principal angle between the leading subspaces before and now, (B,)."""
        if self.before is None:
            return torch.full_like(self.values[:, 0], math.inf)
        old, size = self.before.weights, self.before.size
        outside = self.weights.clone()  # what the new subspace has and the old has not: no cosine near 1 is needed
        outside[:, :size] -= old @ (old.mT @ self.weights[:, :size])
        return torch.linalg.matrix_norm(outside, 2)

    def _share(self) -> Tensor:
        """Return the largest share by which a value rose, (B,); values lost in rounding have nothing to say."""
        share = (self.values - self.before.values).abs() / self.values.clamp_min(_tiny(self.values))
        return torch.where(self.values > math.sqrt(self.size * _eps(share)) * self.values[:, :1], share, 0.0).amax(1)


_CRITERIA = {
    "residual": (_Spectrum.residual, "relative residual"),
    "values": (_Spectrum.rise, "expected rise of a value"),
    "subspace": (_Spectrum.angle, "sine of the largest principal angle"),
}


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _eps(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps
