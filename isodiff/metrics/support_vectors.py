"""Support vector machines on latents, fitted through their inner products: latents have far more columns than rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

Kernel = Literal["linear", "rbf"]
"""Of the support vector machine: ⟨x, x′⟩, or exp(−γ‖x − x′‖²) with γ = 1/(d·Var x), scikit-learn's ``"scale"``."""

Protocol = Literal["cross-validated", "training", "shuffled"]
"""Where predictions come from: held-out folds, the training latents themselves (as Karras), or, as a control, held-out
folds after the labels have been shuffled."""


class InnerProducts:
    """``⟨xᵢ, xⱼ⟩`` of all latents in float64, from which every kernel matrix follows without the d columns.

    Args:
        x: (n, d) latents as they are, with n ≥ 2 and d ≥ 1.

    Raises:
        ValueError: If the shape is another, a latent is not finite, or two are equal: one fold would then know the
            answers of another.
    """

    def __init__(self, x: np.ndarray) -> None:
        if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
            raise ValueError(f"latents must be (n, d) with n ≥ 2 and d ≥ 1; got shape {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError(f"latents must be finite; got {np.count_nonzero(~np.isfinite(x))} NaN or infinite values")
        distinct = len({row.tobytes() for row in x})
        if distinct < len(x):
            raise ValueError(
                f"latents must differ, or a fold would know the answers of another; {distinct} of {len(x)} are distinct"
            )
        self.dimension = x.shape[1]
        self.products = np.zeros((len(x), len(x)))
        for start in range(0, self.dimension, 4096):  # a large float32 array is not copied to float64 whole
            block = x[:, start : start + 4096].astype(np.float64)
            self.products += block @ block.T
        self.sums = x.sum(axis=1, dtype=np.float64)

    def matrix(self, kernel: Kernel, rows: np.ndarray, train: np.ndarray) -> np.ndarray:
        """Return (rows, train) kernel values; the scale of the RBF kernel comes from `train`, as in SVC."""
        products = self.products[np.ix_(rows, train)]
        if kernel == "linear":
            return products
        squares = self.products.diagonal()
        size = len(train) * self.dimension
        variance = squares[train].sum() / size - (self.sums[train].sum() / size) ** 2
        distances = squares[rows, None] + squares[train] - 2 * products
        return np.exp(-np.maximum(distances, 0) / (self.dimension * variance))


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """How labels are predicted from latents: scikit-learn's SVC with C = 1, and where its predictions count.

    Attributes:
        kernel: See `Kernel`.
        protocol: See `Protocol`.
        num_folds: Stratified folds, 2 or more; None for ``"training"``, whatever was given.
        seed: Of the folds and of the shuffling.

    Raises:
        ValueError: If a setting is none of these.
    """

    kernel: Kernel
    protocol: Protocol
    num_folds: int | None
    seed: int

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, value, accepted in (("kernel", self.kernel, Kernel), ("protocol", self.protocol, Protocol)):
            if value not in get_args(accepted):
                raise ValueError(f"{name} must be one of {', '.join(get_args(accepted))}; got {value!r}")
        if self.protocol == "training":
            object.__setattr__(self, "num_folds", None)
        elif self.num_folds is None or self.num_folds < 2:
            raise ValueError(f"num_folds must be at least 2; got {self.num_folds}")

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    def require_classes(self, y: np.ndarray, name: str) -> None:
        """Refuse labels without enough members of each class: one, or one a fold."""
        needed, true = self.num_folds or 1, int(y.sum())
        if min(true, len(y) - true) < needed:
            raise ValueError(
                f"{name} has {true} latents with it and {len(y) - true} without; "
                f"{self.protocol} needs at least {needed} of each"
            )

    def predict(
        self, products: InnerProducts, rows: np.ndarray, y: np.ndarray, stream: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and predictions of some of the latents.

        Args:
            products: Of all latents.
            rows: (r,) numbers of those labelled.
            y: (r,) true or false.
            stream: Number of the attribute, so that each is shuffled in its own way.

        Returns:
            (r,) the labels, shuffled if the protocol says so, and (r,) what is predicted.
        """
        if self.protocol == "shuffled":
            y = np.random.default_rng([self.seed, stream]).permutation(y)
        predicted = np.empty_like(y)
        for train, test in self._splits(y):
            machine = SVC(kernel="precomputed").fit(products.matrix(self.kernel, rows[train], rows[train]), y[train])
            predicted[test] = machine.predict(products.matrix(self.kernel, rows[test], rows[train]))
        return y, predicted

    def _splits(self, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.num_folds is None:
            return [(np.arange(len(y)), np.arange(len(y)))]
        return list(StratifiedKFold(self.num_folds, shuffle=True, random_state=self.seed).split(y, y))
