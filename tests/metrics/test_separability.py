"""Linear separability: known entropies, machines equal to scikit-learn's, protocols that tell chance from knowledge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, ortho_group
from sklearn.svm import SVC

from isodiff.metrics import separability
from isodiff.metrics.measure import cached, compare
from isodiff.metrics.separability import conditional_entropy, linear_separability, separability_score

both_kernels = pytest.mark.parametrize("kernel", ["linear", "rbf"])


def table(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (y, x) that a contingency table counts, rows x, columns y."""
    counts = np.array(counts)
    x, y = np.indices(counts.shape)
    return np.repeat(y.ravel(), counts.ravel()), np.repeat(x.ravel(), counts.ravel())


def h(p: float) -> float:
    """Return the entropy of a coin in nats."""
    return float(entropy([p, 1 - p]))


def chance(labels: np.ndarray) -> float:
    """Return exp Σ H(Y)."""
    return float(np.exp(sum(h(share) for share in labels.mean(axis=0))))


def blobs(n: int, d: int, attributes: int, *, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw latents whose first columns show the attributes, classes `distance` apart in units of their spread."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, attributes)) < 0.5
    x = rng.standard_normal((n, d))
    x[:, :attributes] += distance * (labels - 0.5)
    return x, labels


def predict(x: np.ndarray, rows: np.ndarray, y: np.ndarray, kernel: str = "linear") -> np.ndarray:
    """Return out-of-fold predictions of some rows."""
    return separability._predictor(x, kernel, "cross-validated", 0)(rows, y, 0)[:, 1]


# Conditional entropy


@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), min_size=2, max_size=2))
def test_conditional_entropy_is_joint_minus_marginal(counts: list[list[int]]) -> None:
    array = np.array(counts)
    if not array.sum():
        return
    ours = conditional_entropy(*table(counts))
    assert ours == pytest.approx(entropy(array.ravel()) - entropy(array.sum(axis=1)), abs=1e-12)
    assert 0 <= ours <= entropy(array.sum(axis=0)) + 1e-12


# Machines


@both_kernels
def test_machine_on_inner_products_is_scikit_learns(kernel: str) -> None:
    """The kernel of numbers decides as SVC(kernel, gamma="scale") does on the latents of the fold."""
    x, labels = blobs(120, 300, 1, distance=3.0)
    x = 1.7 * x + 0.3  # gamma="scale" must see the mean as well
    y, train, test = labels[:, 0], np.arange(80), np.arange(80, 120)
    ours = SVC(kernel=separability._kernel(x, kernel)).fit(train[:, None], y[train])
    theirs = SVC(kernel=kernel, gamma="scale").fit(x[train], y[train])
    scores = ours.decision_function(test[:, None])
    np.testing.assert_allclose(scores, theirs.decision_function(x[test]), atol=2e-3)
    np.testing.assert_array_equal(np.sort(ours.support_), np.sort(theirs.support_))


def test_out_of_fold_predictions_do_not_see_their_own_label() -> None:
    """Where each class is its own far cluster, a row with a false label is still predicted by its neighbours."""
    x, labels = blobs(60, 5, 1, distance=12.0)
    labels[0] = ~labels[0]
    assert (predict(x, np.arange(60), labels[:, 0]) != labels[:, 0]).nonzero()[0].tolist() == [0]


# The score


@both_kernels
@pytest.mark.parametrize("attributes", [1, 3])
def test_separable_attributes_score_one_and_shuffled_ones_chance(kernel: str, attributes: int) -> None:
    """Within 2 % an attribute below exp Σ H(Y), which no score exceeds: the bias of the entropy is 1/2n ≈ 0.2 %."""
    x, labels = blobs(300, 10, attributes, distance=12.0)
    assert separability_score(x, labels, kernel=kernel) == pytest.approx(1, abs=1e-9)
    score = separability_score(x, labels, kernel=kernel, protocol="shuffled")
    assert 0.98**attributes * chance(labels) <= score <= chance(labels) + 1e-9


@both_kernels
def test_training_protocol_cannot_fail_in_high_dimension(kernel: str) -> None:
    """Labels by lot in d > n: train = test says perfectly separable, held-out folds say chance."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((100, 1000)), rng.random((100, 2)) < 0.5
    assert separability_score(x, labels, kernel=kernel, protocol="training") == pytest.approx(1, abs=1e-12)
    assert separability_score(x, labels, kernel=kernel) > 0.9 * chance(labels)


@both_kernels
def test_score_rises_with_label_noise(kernel: str) -> None:
    """Flipping a share q of the labels leaves h(q) an attribute, up to what the machine loses by learning from them."""
    x, labels = blobs(400, 4, 2, distance=14.0)
    order = np.random.default_rng(1).random(labels.shape)
    shares = (0.0, 0.05, 0.15, 0.3)
    scores = [separability_score(x, labels ^ (order < q), kernel=kernel) for q in shares]
    assert scores == sorted(scores)
    for q, score in zip(shares, scores, strict=True):
        assert 0.93 * chance(order < q) <= score <= 1.15 * chance(order < q)


@given(seed=st.integers(0, 1000), kernel=st.sampled_from(["linear", "rbf"]))
@settings(max_examples=10)
def test_score_knows_no_axes_and_no_origin_and_training_no_order(seed: int, kernel: str) -> None:
    x, labels = blobs(40, 6, 2, distance=2.0, seed=seed)
    moved, order = x @ ortho_group.rvs(6, random_state=seed) + 0.5, np.random.default_rng(seed).permutation(40)
    score = separability_score(x, labels, kernel=kernel)
    assert separability_score(moved, labels, kernel=kernel) == pytest.approx(score, abs=1e-9)
    trained = [separability_score(x[o], labels[o], kernel=kernel, protocol="training") for o in (..., order)]
    assert trained[0] == pytest.approx(trained[1], abs=1e-12)


# The measurement


def test_only_the_most_confident_count() -> None:
    """The classifier errs where it is unsure; the kept half is right and separable, the whole is not."""
    x, labels = blobs(200, 6, 2, distance=12.0)
    unsure = np.arange(200)[:, None] % 4 >= 2
    p = np.where(unsure, np.where(labels, 0.49, 0.51), np.where(labels, 0.9, 0.1))
    kept, whole = (
        linear_separability(x.reshape(200, 1, 2, 3), p, names=["a", "b"], num_kept=count) for count in (100, 200)
    )
    assert kept.value == pytest.approx(1, abs=1e-9)
    assert 2 < whole.value <= whole.details["chance"] + 1e-9
    assert (kept.name, kept.n, kept.unit) == ("linear_separability", 200, "latents")
    assert kept.protocol["num_kept"] == 100


@pytest.mark.parametrize("protocol", ["cross-validated", "training", "shuffled"])
def test_measurement_of_everything_is_the_score(protocol: str) -> None:
    x, labels = blobs(120, 200, 2, distance=2.0)
    options = {"protocol": protocol, "kernel": "rbf", "seed": 4}
    facts = {"classifier": "faces"}
    measured = linear_separability(x, labels.astype(float), names=["a", "b"], num_kept=120, facts=facts, **options)
    assert measured.value == pytest.approx(separability_score(x, labels, **options), abs=1e-12)
    assert len(measured.replicates) == 20
    details = measured.details["attributes"]
    assert measured.value == pytest.approx(np.exp(sum(a["conditional_entropy"] for a in details.values())))
    assert {name: a["num_true"] for name, a in details.items()} == dict(zip("ab", labels.sum(axis=0), strict=True))
    assert measured.protocol["num_folds"] == (None if protocol == "training" else 5)
    assert measured.protocol["classifier"] == "faces"


def test_interval_covers() -> None:
    """95 % intervals of 150 draws cover the score of the limit, with machines that need no learning."""
    rng, flips, covered = np.random.default_rng(0), (0.1, 0.25), 0
    truth = np.exp(sum(h(q) for q in flips))
    for _ in range(150):
        clean = rng.random((200, 2)) < 0.5
        labels = clean ^ (rng.random((200, 2)) < flips)
        x = 4.0 * clean + 0.1 * rng.standard_normal((200, 2))
        low, high = linear_separability(x, labels.astype(float), names="ab", num_kept=200).interval
        covered += low <= truth <= high
    assert 0.89 <= covered / 150 <= 0.99  # binomial: 0.95 ± 3.4 standard errors


def test_predictions_are_kept_an_attribute_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at the second attribute and called again, only that one is predicted, and the figures are equal."""
    x, labels = blobs(100, 5, 2, distance=1.0)
    cross_val_predict, calls = separability.cross_val_predict, []

    def measure(latents: np.ndarray) -> dict:
        with cached(tmp_path):
            return linear_separability(latents, labels.astype(float), names=["a", "b"], num_kept=80, seed=1).to_json()

    fresh = linear_separability(x, labels.astype(float), names=["a", "b"], num_kept=80, seed=1).to_json()

    def interrupted(*given: object, **options: object) -> object:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cross_val_predict(*given, **options)

    monkeypatch.setattr(separability, "cross_val_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(x)
    assert measure(x) == measure(x) == fresh
    assert len(calls) == 3
    measure(x + 1)
    assert len(calls) == 5


def test_skipped_attribute_is_told() -> None:
    x, labels = blobs(60, 5, 2, distance=3.0)
    labels[:, 1] = True
    measured = linear_separability(x, labels.astype(float), names=["a", "b"], num_kept=60)
    alone = linear_separability(x, labels[:, :1].astype(float), names=["a"], num_kept=60)
    assert measured.value == alone.value
    assert (measured.protocol["skipped"], measured.protocol["attributes"]) == (["b"], ["a"])
    with pytest.raises(ValueError, match="only one protocol compares"):
        compare(measured, alone)


X, LABELS = blobs(40, 5, 2, distance=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.where(X[3, 2] == X, np.nan, X)}, "finite; got 1 NaN"),
        ({"x": np.zeros_like(X)}, "latents must differ.*; 1 of 40 are distinct"),
        ({"x": X[:, 0]}, r"\(≥ 2, ≥ 1\).*got shape \(40,\)"),
        ({"labels": np.zeros((39, 1))}, r"\(40, attributes\).*got shape \(39, 1\)"),
        ({"labels": np.full((40, 1), 0.3)}, r"true or false; got .*0\.3"),
        ({"labels": np.ones((40, 1))}, "attribute 0 has 40 latents with it and 0 without; cross-validated needs at le"),
        ({"labels": np.arange(40)[:, None] < 4}, "attribute 0 has 4 latents with it and 36 without"),
        ({"kernel": "cubic"}, "kernel must be one of linear, rbf; got 'cubic'"),
        ({"protocol": "test"}, "protocol must be one of cross-validated, training, shuffled; got 'test'"),
    ],
)
def test_bad_scores_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        separability_score(**{"x": X, "labels": LABELS} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kept": 41}, "num_kept must be 2 to the number of latents, 40; got 41"),
        ({"names": ["a"]}, r"\(40, 1\), latents × names.*got shape \(40, 2\)"),
        ({"names": ["a", "a"]}, "all different; got .* a, a"),
        ({"probabilities": np.full((40, 2), 1.2)}, r"\[0, 1\]; got 1\.2 to 1\.2; apply a sigmoid"),
        ({"probabilities": np.full((40, 2), np.nan)}, "got nan to nan"),
        ({"probabilities": np.ones((40, 2))}, "a has 40 latents with it and 0 without.*; b has 40"),
        ({"latents": np.empty((0, 3))}, r"probabilities must be \(0, 2\)"),
    ],
)
def test_bad_measurements_are_refused(change: dict, message: str) -> None:
    options = {"latents": X, "probabilities": LABELS.astype(float), "names": ["a", "b"], "num_kept": 40} | change
    with pytest.raises(ValueError, match=message):
        linear_separability(options.pop("latents"), options.pop("probabilities"), **options)
