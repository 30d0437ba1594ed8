r"""Leading singular triplets of a matrix known by its products alone, for several matrices at once.

Block Lanczos iteration on ``A = JᵀJ`` with full reorthogonalisation (Golub and Underwood 1977; Musco and Musco 2015).
The rows of ``Q`` are an orthonormal basis of the Krylov space, which grows by a block of ``b`` vectors at a time:

    A Qᵀ = Qᵀ T + (0 … 0  BᵀR),        T = Q A Qᵀ,

with ``B`` the next block. The eigenvalues of ``T`` (Ritz values) rise towards the squared singular values as the space
grows (Cauchy's interlacing), and ``v = Qᵀc`` with ``T c = σ²c`` leaves ``‖A v − σ²v‖ = ‖R c'‖``, ``c'`` the last ``b``
entries of ``c``. There are three ways to say "close enough":

| criterion | stops when | meant for |
|---|---|---|
| ``"residual"`` | ``‖Jᵀu − σv‖ ≤ tolerance · σ₁`` for every triplet | vectors, and values to many digits |
| ``"values"`` | none is expected to rise by more than the share ``tolerance`` | values to a per cent |
| ``"subspace"`` | ``sin φ ≤ tolerance`` | the leading subspace |

with ``φ`` the largest principal angle between the leading subspaces before and after the space grew by a tenth. The
rise still to come is extrapolated from those over the last two tenths: an estimate, not a bound.

Note:
    A small residual says that *some* singular value is near, not that it is the i-th: on a flat spectrum residuals of
    4 % go along with values that are still 2 % too small, as larger ones wait to be found. And where ``σₖ ≈ σₖ₊₁``
    the leading subspace is hardly determined: its angles go on changing long after the values have settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

Criterion = Literal["residual", "values", "subspace"]
Product = Callable[[Tensor], Tensor]

_GROWTH = 1.1  # of the space between two looks at its spectrum
_SEED = 2**31 - 1  # one that hardly anyone draws x from
_SMALL_BLOCK = 4  # its arithmetic is efficient already, and it takes hardly more products than single vectors


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
    """Return the ``k`` leading singular values and right singular vectors of every matrix.

    Args:
        push: ``J`` times vectors, (B, b, n) → (B, b, m) for any b.
        pull: ``Jᵀ`` times covectors, (B, b, m) → (B, b, n).
        project: The orthogonal projection onto the space that ``Jᵀ`` maps to, (B, b, n) → (B, b, n).
        like: Any tensor (B, n) of the precision and on the device to compute in.
        k: How many, 1 to the smaller dimension.
        dimension: Of the space that ``project`` maps to, at most n.
        num_outputs: m.
        criterion: When to stop; see the module.
        tolerance: Of that criterion; the square root of the machine precision for ``"residual"``, 0.005 for
            ``"values"`` (which leaves errors below 1 %, see the note) and 0.01 for ``"subspace"`` if not given.
        block_size: b, 1 to ``k``; ``k`` for ``"residual"`` and 4 for the other two if not given. The smaller the block,
            the fewer the products; copies of a value more often degenerate than ``b`` may be missed.
        max_iterations: Largest dimension of the space, in multiples of ``k``.
        generator: Source of the random start, the same for every matrix; a fixed seed if not given.
        vectors: Whether the vectors are wanted.

    Returns:
        Values (B, k), descending, and unit vectors (B, k, n), or (B, 0, n) if they are not wanted. A matrix's are those
        at which its own criterion held first, so that they do not depend on the others.

    Raises:
        ValueError: If an option is unknown or out of range.
        RuntimeError: If the criterion does not hold after ``max_iterations``, or a product is not finite.

    Note:
        Errors left by ``"values"`` at 0.005, the largest of 3 (encoders) or 24 random starts: 0.4 % for encoders of
        trained U-Nets, with decaying and with flat spectra; 0.8 % for equally spaced values; and, worst, 1.4 % at the
        edge of a random matrix's spectrum, where values crowd.
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"criterion must be one of {get_args(Criterion)}, got {criterion!r}")
    if not 1 <= k <= min(dimension, num_outputs):
        raise ValueError(f"k must be between 1 and {min(dimension, num_outputs)}, got {k}")
    strict = criterion == "residual"
    if block_size is None:
        block_size = k if strict else min(k, _SMALL_BLOCK)
    if not 1 <= block_size <= k:
        raise ValueError(f"block_size must be between 1 and k = {k}, got {block_size}")
    if tolerance is None:
        tolerance = {"residual": math.sqrt(_eps(like)), "values": 5e-3, "subspace": 1e-2}[criterion]

    space = _Space(push, pull, project, like, num_outputs, generator or torch.Generator().manual_seed(_SEED))
    sigma, right = like.new_zeros(len(like), k), like.new_zeros(len(like), k if vectors else 0, like.shape[1])
    waiting = torch.ones(len(like), dtype=torch.bool, device=like.device)
    limit, seen = min(dimension, k * max_iterations), None
    while waiting.any() and space.size < limit:
        space.grow(min(block_size, limit - space.size))
        if space.size < limit and space.size < (_GROWTH * seen.size if seen else k):
            continue
        now = _Spectrum(space, k, seen)
        worst = _MEASURES[criterion](now)
        ready = waiting if space.size == dimension else waiting & (worst <= tolerance)
        if ready.any():
            sigma[ready], right[ready] = space.triplets(now.weights, ready, vectors)
        waiting, seen = waiting & ~ready, now
    if waiting.any():
        raise RuntimeError(
            f"the {k} leading singular values did not converge: {_NAMES[criterion]} {worst[waiting].max().item():.2g} "
            f"after {max_iterations} iterations, accepted is {tolerance:.2g}; raise max_iterations or tolerance"
        )
    return sigma, right


class _Space:
    """The Krylov spaces of all matrices: ``Q`` (B, D, n), its image ``Q Jᵀ`` (B, D, m), ``T`` and ``R``."""

    def __init__(
        self, push: Product, pull: Product, project: Product, like: Tensor, num_outputs: int, generator: torch.Generator
    ) -> None:
        self.push, self.pull, self.project, self.like, self.generator = push, pull, project, like, generator
        self.basis, self.image = _Rows(like, like.shape[1]), _Rows(like, num_outputs)
        self.gram = like.new_zeros(len(like), 0, 0)
        self.coupling = like.new_zeros(len(like), 0, 0)
        self.following = like.new_zeros(len(like), 0, like.shape[1])

    @property
    def size(self) -> int:
        """D, the dimension so far."""
        return self.basis.size

    def grow(self, count: int) -> None:
        """Add ``count`` basis vectors."""
        block = self._following(count)
        image = self.push(block)
        self.basis.append(block)
        self.image.append(image)
        remainder, overlaps = self._split(self.pull(image), 2 * count)
        if not torch.isfinite(remainder).all():
            raise RuntimeError("a product with the Jacobian is not finite; the map overflows, or divides zero by zero")
        gram = self.like.new_zeros(len(self.like), self.size, self.size)
        gram[:, :-count, :-count] = self.gram
        gram[:, -count:], gram[:, :, -count:] = overlaps, overlaps.mT
        gram[:, -count:, -count:] = (overlaps[:, :, -count:] + overlaps[:, :, -count:].mT) / 2
        self.gram = gram
        following, self.coupling = torch.linalg.qr(remainder.mT)
        self.following = following.mT

    def triplets(self, weights: Tensor, which: Tensor, vectors: bool) -> tuple[Tensor, Tensor]:
        """Return values and vectors of some of the matrices, from the weights (B, D, k) of the leading subspace."""
        weights = weights[which]
        image = weights.mT @ self.image.rows[which]
        if not vectors:
            return torch.linalg.svdvals(image), self.following[which, :0]
        # The values of the image have no squares to lose digits by; they put the weights in order, too.
        left, sigma, _ = torch.linalg.svd(image, full_matrices=False)
        return sigma, (weights @ left).mT @ self.basis.rows[which]

    def _split(self, z: Tensor, recent: int) -> tuple[Tensor, Tensor]:
        """Return the part of ``z`` outside the basis, and its products with the basis, (B, b, D)."""
        # In exact arithmetic only the last two blocks overlap; without them, one pass over all removes the rounding.
        first = max(0, self.size - recent)
        overlap = z @ self.basis.rows[:, first:].mT
        z = self.project(z - overlap @ self.basis.rows[:, first:])
        overlaps = z @ self.basis.rows.mT
        z = z - overlaps @ self.basis.rows
        overlaps[:, :, first:] += overlap
        return z, overlaps

    def _following(self, count: int) -> Tensor:
        """Return the next orthonormal block, with a random vector wherever the Krylov space is exhausted."""
        noise = torch.randn(
            count, self.like.shape[1], generator=self.generator, device=self.generator.device, dtype=self.like.dtype
        )
        noise = self.project(noise.to(self.like.device).expand(len(self.like), -1, -1))
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
    """What the Krylov spaces tell about the ``k`` leading triplets."""

    def __init__(self, space: _Space, k: int, before: _Spectrum | None) -> None:
        self.size, self.k, self._gram, self._coupling = space.size, k, space.gram, space.coupling
        self.before = before
        if before is not None and before.before is not None:
            before.before.before = None  # two are enough

    @cached_property
    def values(self) -> Tensor:
        """Estimates of the singular values, from below, (B, k)."""
        return torch.linalg.eigvalsh(self._gram)[:, -self.k :].flip(1).clamp_min(0).sqrt()

    @cached_property
    def weights(self) -> Tensor:
        """Orthonormal eigenvectors of ``T``, (B, D, k)."""
        return torch.linalg.eigh(self._gram)[1][:, :, -self.k :].flip(2)

    @cached_property
    def residuals(self) -> Tensor:
        """``‖Jᵀu − σv‖``, (B, k)."""
        block = self._coupling.shape[2]
        square = (self._coupling @ self.weights[:, -block:]).norm(dim=1)  # ‖A v − σ²v‖
        rounding = self.size * _eps(square) * self.values[:, :1].square()
        square = torch.where(square > rounding, square, 0.0)
        # The error of σ² is at most this; hence that of σ, where σ vanishes, at most its root.
        return square / torch.maximum(self.values, square.sqrt()).clamp_min(_tiny(square))


def _residual(now: _Spectrum) -> Tensor:
    """Return the largest residual relative to σ₁, (B,)."""
    return now.residuals.amax(1) / now.values[:, 0].clamp_min(_tiny(now.values))


def _rise(now: _Spectrum) -> Tensor:
    """Return the largest share by which a value has yet to rise, (B,), extrapolated from its last two rises.

    Rises that shrink by a factor ``ρ`` each time add up to ``ρ / (1 − ρ)`` times the last one.
    """
    if now.before is None or now.before.before is None:
        return torch.full_like(now.values[:, 0], math.inf)
    last, previous = _share(now, now.before), _share(now.before, now.before.before)
    ratio = (last / previous.clamp_min(_tiny(last))).clamp_max(0.95)
    return torch.maximum(last * ratio / (1 - ratio), last)  # chance alone may make one rise small


def _share(now: _Spectrum, before: _Spectrum) -> Tensor:
    """Return the largest share by which a value rose, (B,); values lost in rounding have nothing to say."""
    share = (now.values - before.values).abs() / now.values.clamp_min(_tiny(now.values))
    return torch.where(now.values > math.sqrt(now.size * _eps(share)) * now.values[:, :1], share, 0.0).amax(1)


def _angle(now: _Spectrum) -> Tensor:
    """Return the sine of the largest principal angle between the leading subspaces, (B,)."""
    if now.before is None:
        return torch.full_like(now.values[:, 0], math.inf)
    old, size = now.before.weights, now.before.size
    outside = now.weights.clone()  # what the new subspace has and the old one has not: no cosine near 1 is needed
    outside[:, :size] -= old @ (old.mT @ now.weights[:, :size])
    return torch.linalg.matrix_norm(outside, 2)


_MEASURES = {"residual": _residual, "values": _rise, "subspace": _angle}
_NAMES = {
    "residual": "relative residual",
    "values": "expected rise of a value",
    "subspace": "sine of the largest principal angle",
}


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _eps(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps


class _Rows:
    """Rows (B, D, width) with room to grow, so that appending does not copy what is there."""

    def __init__(self, like: Tensor, width: int) -> None:
        self.size, self._room = 0, like.new_empty(len(like), 0, width)

    @property
    def rows(self) -> Tensor:
        """The rows so far."""
        return self._room[:, : self.size]

    def append(self, rows: Tensor) -> None:
        """Add rows."""
        needed = self.size + rows.shape[1]
        if needed > self._room.shape[1]:
            room = rows.new_empty(len(rows), 2 * needed, rows.shape[2])
            room[:, : self.size] = self.rows
            self._room = room
        self._room[:, self.size : needed] = rows
        self.size = needed
