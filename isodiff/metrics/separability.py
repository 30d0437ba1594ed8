r"""Linear separability: how well a support vector machine on the latent foretells an attribute of the image.

    LS = exp Σᵢ H(Yᵢ | Xᵢ)      (Eq. 9, App. D, Hahm et al. 2024; Karras et al. 2019),

with Yᵢ whether the image shows attribute i according to a classifier, Xᵢ what the machine predicts from the latent, and
entropies in nats; Karras's 2 to the sum in bits is the same number. 1 is perfect; a machine that knows nothing leaves
exp Σᵢ H(Yᵢ), at most 2 to the number of attributes.

Karras trains and scores on the same latents. But n points in general position in d ≥ n dimensions are separable
whatever their labels, so there that protocol gives 1 even for labels drawn by lot; out-of-fold predictions do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from isodiff.metrics.measurement import Measurement
from isodiff.metrics.store import Store, content_digest
from isodiff.metrics.support_vectors import InnerProducts, Kernel, Predictor, Protocol

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Of each attribute by name: numbers of the latents that count, their labels Y, and what is predicted, X."""

_GROUPS = 20  # of the jackknife


def conditional_entropy(y: ArrayLike, x: ArrayLike) -> float:
    """Return the plug-in estimate of ``H(Y|X) = −Σ p(x, y) log p(y|x)`` in nats.

    Args:
        y: (n,) classes.
        x: (n,) predicted classes.

    Returns:
        The entropy, from 0 (x determines y) to H(Y).

    Raises:
        ValueError: If the two differ in shape, are not one-dimensional, or are empty.

    Note:
        Biased down by about (|X| − 1)(|Y| − 1)/2n where X knows nothing: with two classes and n = 1,000 by 0.0005. A
        prediction that is always wrong carries as much information as one that is always right.
    """
    y, x = np.asarray(y), np.asarray(x)
    if y.shape != x.shape or y.ndim != 1 or y.size == 0:
        raise ValueError(f"y and x must be of one shape (n,) with n ≥ 1; got {y.shape} and {x.shape}")
    columns, y = np.unique(y, return_inverse=True)
    rows, x = np.unique(x, return_inverse=True)
    counts = np.zeros((len(rows), len(columns)))
    np.add.at(counts, (x, y), 1)
    given_x = counts / counts.sum(axis=1, keepdims=True)
    return max(0.0, float(-(counts * np.log(np.where(counts > 0, given_x, 1))).sum()) / y.size)


def separability_score(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    kernel: Kernel = "linear",
    protocol: Protocol = "cross-validated",
    num_folds: int = 5,
    seed: int = 0,
) -> float:
    """Return ``exp Σᵢ H(Yᵢ|Xᵢ)`` of latents and binary labels.

    Args:
        x: (n, d) latents as they are, not standardised (as Karras).
        labels: (n, attributes) true or false.
        kernel: See `Kernel`.
        protocol: See `Protocol`.
        num_folds: Stratified folds, 2 or more; ``"training"`` has none.
        seed: Of the folds and of the shuffling.

    Returns:
        The score, 1 or more.

    Raises:
        ValueError: If an argument has another shape or value, a latent is not finite or occurs twice, or an attribute
            has too few members of a class: fewer than one for ``"training"``, otherwise than `num_folds`.

    Note:
        scikit-learn's SVC with C = 1 on a precomputed kernel: cost O(n²d) once and O(n²) to O(n³) an attribute and
        fold.
    """
    predictor = Predictor(kernel=kernel, protocol=protocol, num_folds=num_folds, seed=seed)
    products = InnerProducts(np.asarray(x))
    labels = _check_labels(labels, len(products.products))
    total = 0.0
    for column, y in enumerate(labels.T):
        predictor.require_classes(y, f"attribute {column}")
        total += conditional_entropy(*predictor.predict(products, np.arange(len(y)), y, column))
    return float(np.exp(total))


def linear_separability(
    latents: ArrayLike,
    probabilities: ArrayLike,
    *,
    names: Sequence[str],
    num_kept: int = 1000,
    kernel: Kernel = "linear",
    protocol: Protocol = "cross-validated",
    num_folds: int = 5,
    on_single_class: Literal["raise", "skip"] = "raise",
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure the linear separability of latents by the attributes of their images.

    For each attribute the `num_kept` latents count whose images the classifier is surest of, by |p − ½|; they are
    labelled p > ½. The paper generates 2,000 and keeps 1,000.

    Args:
        latents: (n, …) one for each image, flattened to (n, d) and otherwise as they are.
        probabilities: (n, attributes) in [0, 1], what the classifier says of the images.
        names: Of the attributes.
        num_kept: Latents for each attribute, at most n.
        kernel: See `Kernel`.
        protocol: See `Protocol`.
        num_folds: As in `separability_score`.
        on_single_class: What becomes of an attribute with too few members of a class among the kept: an error, or left
            out of the sum and listed under ``skipped``. Scores over other attributes do not compare.
        seed: As in `separability_score`.
        facts: What else decides the number and belongs in its protocol, such as sampler and classifier.
        store: Keeps the predictions, attribute by attribute.

    Returns:
        ``linear_separability``; details hold the value of chance, exp Σ H(Yᵢ), and of each attribute the entropies,
        the accuracy of the predictions and the number of kept latents that have it.

    Raises:
        ValueError: As `separability_score`; or if probabilities leave [0, 1] or are NaN, names do not fit them,
            num_kept exceeds n, or every attribute would be skipped.

    Note:
        The interval is a delete-a-group jackknife over (Y, X) pairs, conditional on the fitted machines: it covers the
        draw of the latents that are predicted, not of those trained on. It is symmetric, so near a score of 1 its lower
        end may lie below 1.
    """
    predictor = Predictor(kernel=kernel, protocol=protocol, num_folds=num_folds, seed=seed)
    x = np.asarray(latents)
    x = x.reshape(len(x), -1) if x.size else x
    probabilities, names = _check_probabilities(probabilities, names, len(x))
    if not 2 <= num_kept <= len(x):
        raise ValueError(f"num_kept must be 2 to the number of latents, {len(x)}; got {num_kept}")
    if on_single_class not in ("raise", "skip"):
        raise ValueError(f"on_single_class must be 'raise' or 'skip'; got {on_single_class!r}")
    store = store or Store()
    products = cache(lambda: InnerProducts(x))  # not needed where every prediction is already kept
    digest = content_digest(x)

    pairs, skipped = {}, []
    for column, (name, p) in enumerate(zip(names, probabilities.T, strict=True)):
        kept = np.sort(np.argsort(-np.abs(p - 0.5), kind="stable")[:num_kept])
        y = p[kept] > 0.5
        try:
            predictor.require_classes(y, name)
        except ValueError:
            if on_single_class == "raise":
                raise
            skipped.append(name)
            continue

        def compute(kept: np.ndarray = kept, y: np.ndarray = y, column: int = column) -> dict[str, np.ndarray]:
            return dict(zip("yx", predictor.predict(products(), kept, y, column), strict=True))

        key = {"what": "separability", "version": 1, "latents": digest, "labels": content_digest(kept, y)}
        kept_pair = store.get(compute, **key, **predictor.settings(), column=column)
        pairs[name] = kept, kept_pair["y"], kept_pair["x"]
    if not pairs:
        raise ValueError(f"every attribute has too few members of a class among the kept: {', '.join(skipped)}")

    groups = np.arange(len(x)) % _GROUPS
    settings = {name: value for name, value in predictor.settings().items() if name != "seed"}
    return Measurement.from_jackknife(
        "linear_separability",
        _score(pairs, groups >= 0),
        np.array([_score(pairs, groups != group) for group in np.unique(groups)]),
        n=len(x),
        unit="latents",
        seed=seed,
        protocol={
            **settings,
            "num_kept": num_kept,
            "svm": "SVC, C = 1, raw latents",
            "attributes": list(pairs),
            "skipped": skipped,
            **(facts or {}),
        },
        details=_describe(pairs),
    )


def _score(pairs: Pairs, chosen: np.ndarray) -> float:
    """``exp Σ H(Y|X)`` over the pairs whose latents are chosen, (n,) true or false."""
    among = ((y[chosen[kept]], x[chosen[kept]]) for kept, y, x in pairs.values())
    return float(np.exp(sum(conditional_entropy(y, x) for y, x in among if y.size)))


def _describe(pairs: Pairs) -> dict[str, Any]:
    attributes = {
        name: {
            "conditional_entropy": conditional_entropy(y, x),
            "entropy": conditional_entropy(y, np.zeros_like(y)),
            "accuracy": float((y == x).mean()),
            "num_true": int(y.sum()),
        }
        for name, (_, y, x) in pairs.items()
    }
    return {"chance": float(np.exp(sum(a["entropy"] for a in attributes.values()))), "attributes": attributes}


def _check_labels(labels: ArrayLike, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(labels) != count or labels.shape[1] < 1:
        raise ValueError(f"labels must be ({count}, attributes), one row a latent; got shape {labels.shape}")
    if not (binary := np.isin(labels, (0, 1))).all():
        raise ValueError(f"labels must be true or false; got {labels[~binary][0]!r}; threshold probabilities at ½")
    return labels.astype(bool)


def _check_probabilities(
    probabilities: ArrayLike, names: Sequence[str], count: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    probabilities, names = np.asarray(probabilities, dtype=float), tuple(names)
    if probabilities.shape != (count, len(names)) or not names:
        raise ValueError(
            f"probabilities must be ({count}, {len(names)}), latents × names, with one name at least; "
            f"got shape {probabilities.shape}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ; got {', '.join(names)}")
    if np.isnan(probabilities).any():
        raise ValueError(f"probabilities must be numbers; got {np.count_nonzero(np.isnan(probabilities))} NaN")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            f"probabilities must lie in [0, 1]; got values from {probabilities.min():.4g} to "
            f"{probabilities.max():.4g}; apply a sigmoid to logits"
        )
    return probabilities, names
