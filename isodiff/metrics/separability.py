r"""Linear separability: how well a support vector machine on the latent foretells an attribute of the image.

    LS = exp Σᵢ H(Yᵢ | Xᵢ)      (Eq. 9, App. D, Hahm et al. 2024; Karras et al. 2019),

with Yᵢ whether the image shows attribute i according to a classifier, Xᵢ what the machine predicts from the latent, and
entropies in nats. 1 is perfect; a machine that knows nothing leaves exp Σᵢ H(Yᵢ), at most 2 to the number of them.

Karras trains and scores on the same latents. But n points in general position in d ≥ n dimensions are separable
whatever their labels, so that protocol gives 1 even for labels drawn by lot; out-of-fold predictions do not.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import SVC

from isodiff.metrics.measure import Arrays, Measurement, content_digest, finite, leave_groups_out, over_units

Kernel = Literal["linear", "rbf"]  # ⟨x, x′⟩, or exp(−γ‖x − x′‖²) with γ = 1/(d·Var x) of the latents trained on
Protocol = Literal["cross-validated", "training", "shuffled"]  # held-out folds, latents trained on, labels by lot
FOLDS = 5


def conditional_entropy(y: np.ndarray, x: np.ndarray) -> float:
    """Return the plug-in estimate of ``H(Y|X) = H(Y) − I(Y; X)`` of classes (n,), in nats."""
    return max(0.0, float(entropy(np.unique(y, return_counts=True)[1]) - mutual_info_score(y, x)))


def separability_score(
    x: ArrayLike, labels: ArrayLike, *, kernel: Kernel = "linear", protocol: Protocol = "cross-validated", seed: int = 0
) -> float:
    """Return ``exp Σᵢ H(Yᵢ|Xᵢ)`` of latents (n, d) as they are, not standardised, and binary labels (n, attributes).

    The five folds are stratified, so each class needs a member a fold (for ``"training"``, one); the SVC has C = 1.
    """
    predict = _predictor(np.asarray(x), kernel, protocol, seed)
    labels, rows = np.asarray(labels), np.arange(len(x))
    if labels.ndim != 2 or len(labels) != len(rows) or labels.shape[1] < 1:
        raise ValueError(f"labels must be ({len(rows)}, attributes), one row a latent; got shape {labels.shape}")
    if not (binary := np.isin(labels, (0, 1))).all():
        raise ValueError(f"labels must be true or false; got {labels[~binary][0]!r}; threshold probabilities at ½")
    for column, y in enumerate(labels.T):
        if few := _too_few(y, protocol):
            raise ValueError(f"attribute {column} {few}")
    return _score(np.stack([predict(rows, y, column) for column, y in enumerate(labels.astype(bool).T)], axis=1))


def linear_separability(
    latents: ArrayLike,
    probabilities: ArrayLike,
    *,
    names: Sequence[str],
    num_kept: int,
    kernel: Kernel = "linear",
    protocol: Protocol = "cross-validated",
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Measurement:
    """Measure the separability of latents (n, …) by what a classifier says of their images, (n, attributes) in [0, 1].

    For each attribute the `num_kept` latents count whose images the classifier is surest of, by |p − ½|, labelled
    p > ½; the paper keeps 1,000 of 2,000. One with too few members of a class among them is ``skipped``. `facts` are
    what else decides the number. The jackknife over (Y, X) pairs is conditional on the fitted machines.
    """
    x, p, names = np.asarray(latents), np.asarray(probabilities, dtype=float), tuple(names)
    x = x.reshape(len(x), -1) if x.size else x
    if p.shape != (len(x), len(names)) or not names or len(set(names)) < len(names):
        needed = f"({len(x)}, {len(names)}), latents × names, and names one at least and all different"
        raise ValueError(f"probabilities must be {needed}; got shape {p.shape} and names {', '.join(names)}")
    if not ((p >= 0) & (p <= 1)).all():  # false for NaN
        raise ValueError(f"probabilities must be in [0, 1]; got {p.min():.4g} to {p.max():.4g}; apply a sigmoid")
    if not 2 <= num_kept <= len(x):
        raise ValueError(f"num_kept must be 2 to the number of latents, {len(x)}; got {num_kept}")
    kept = np.sort(np.argsort(-np.abs(p - 0.5), axis=0, kind="stable")[:num_kept], axis=0).T
    labels = np.take_along_axis(p.T, kept, axis=1) > 0.5
    few = {name: reason for name, y in zip(names, labels, strict=True) if (reason := _too_few(y, protocol))}
    columns = [column for column, name in enumerate(names) if name not in few]
    if not columns:
        raise ValueError("; ".join(f"{name} {reason}" for name, reason in few.items()))
    predictor = cache(lambda: _predictor(x, kernel, protocol, seed))  # no need of it where all is kept

    def compute(start: int, stop: int) -> Arrays:
        return {"pairs": np.array([predictor()(kept[c], labels[c], c) for c in columns[start:stop]])}

    settings = {"kernel": kernel, "protocol": protocol, "num_folds": None if protocol == "training" else FOLDS}
    digests = {"latents": content_digest(x), "labels": content_digest(kept[columns], labels[columns])}
    found = over_units(compute, len(columns), size=1, what="separability", seed=seed, **settings, **digests)["pairs"]
    pairs = np.full((len(x), len(columns), 2), -1)
    for place, column in enumerate(columns):
        pairs[kept[column], place] = found[place]
    value, left_out = leave_groups_out(_score, pairs)
    attributes = {
        names[column]: {
            "conditional_entropy": conditional_entropy(y, x),
            "entropy": conditional_entropy(y, np.zeros_like(y)),
            "accuracy": float((y == x).mean()),
            "num_true": int(y.sum()),
        }
        for column, (y, x) in zip(columns, np.moveaxis(found, 2, 1), strict=True)
    }
    settings |= {"num_kept": num_kept, "svm": "SVC, C = 1, raw latents", "attributes": list(attributes)}
    settings |= {"skipped": list(few), **(facts or {})}
    details = {"chance": float(np.exp(sum(a["entropy"] for a in attributes.values()))), "attributes": attributes}
    shared = {"n": len(x), "unit": "latents", "seed": seed, "protocol": settings, "details": details}
    return Measurement.from_jackknife("linear_separability", value, left_out, **shared)


def _score(pairs: np.ndarray) -> float:
    """``exp Σ H(Y|X)`` of Y and X in the last axis of (n, attributes, 2), without the latents where they are −1."""
    counted = (column[column[:, 0] >= 0] for column in np.moveaxis(pairs, 1, 0))
    return float(np.exp(sum(conditional_entropy(*column.T) for column in counted if len(column))))


def _too_few(y: np.ndarray, protocol: Protocol) -> str:
    needed, true = 1 if protocol == "training" else FOLDS, int(y.sum())
    if min(true, len(y) - true) >= needed:
        return ""
    return f"has {true} latents with it and {len(y) - true} without; {protocol} needs at least {needed} of each"


def _predictor(
    x: np.ndarray, kernel: Kernel, protocol: Protocol, seed: int
) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """Return the function of rows, their labels and the attribute's number to (rows, 2): labels and predictions."""
    for name, value, accepted in (("kernel", kernel, Kernel), ("protocol", protocol, Protocol)):
        if value not in get_args(accepted):
            raise ValueError(f"{name} must be one of {', '.join(get_args(accepted))}; got {value!r}")
    machine = SVC(kernel=_kernel(x, kernel))

    def predict(rows: np.ndarray, y: np.ndarray, column: int) -> np.ndarray:
        if protocol == "training":
            return np.stack([y, machine.fit(rows[:, None], y).predict(rows[:, None])], axis=1)
        if protocol == "shuffled":  # each attribute in its own way
            y = np.random.default_rng([seed, column]).permutation(y)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        return np.stack([y, cross_val_predict(machine, rows[:, None], y, cv=folds)], axis=1)

    return predict


def _kernel(x: np.ndarray, kernel: Kernel) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the kernel of latents given by number, from their inner products: they have more columns than rows."""
    x = finite(x, "latents", 2, 1)
    if (distinct := len({(row + 0.0).tobytes() for row in x})) < len(x):  # or a fold would know the answers of another
        raise ValueError(f"latents must differ; {distinct} of {len(x)} are distinct")
    dimension, sums = x.shape[1], x.sum(axis=1)
    products = sum(block @ block.T for block in np.split(x, range(4096, dimension, 4096), axis=1))
    squares = products.diagonal()

    def between(some: np.ndarray, train: np.ndarray) -> np.ndarray:
        rows, train = some[:, 0].astype(int), train[:, 0].astype(int)
        inner = products[np.ix_(rows, train)]
        if kernel == "linear":
            return inner
        size = len(train) * dimension  # the scale is that of the fold's own latents, as of SVC(gamma="scale")
        variance = squares[train].sum() / size - (sums[train].sum() / size) ** 2
        return np.exp(-np.maximum(squares[rows, None] + squares[train] - 2 * inner, 0) / (dimension * variance))

    return between
