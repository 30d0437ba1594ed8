"""Linear separability: known entropies, machines equal to scikit-learn's, protocols that tell chance from knowledge."""

from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, ortho_group
from sklearn.svm import SVC

from isodiff.metrics import separability
from isodiff.metrics.measure import Measurement, cached, compare
from isodiff.metrics.separability import conditional_entropy, linear_separability, separability_score

from ..geometry.tensors import refusals

both_kernels = pytest.mark.parametrize("kernel", ["linear", "rbf"])


def chance(shares: np.ndarray) -> float:
    """Return exp Σ H(Y), in nats, of attributes that these shares have."""
    return float(np.exp(entropy([shares, 1 - shares]).sum()))


def blobs(n: int, d: int, attributes: int, *, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw latents whose first columns show the attributes, classes `distance` apart in units of their spread."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, attributes)) < 0.5
    x = rng.standard_normal((n, d))
    x[:, :attributes] += distance * (labels - 0.5)
    return x, labels


def measure(x: np.ndarray, labels: np.ndarray, **options: object) -> Measurement:
    return linear_separability(x, labels.astype(float), **{"names": "ab", "num_kept": len(x)} | options)


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
def test_conditional_entropy_is_joint_minus_marginal(counts: list[int]) -> None:
    joint = np.reshape(counts, (2, 2))
    ours = conditional_entropy(y=np.repeat([0, 1, 0, 1], counts), x=np.repeat([0, 0, 1, 1], counts))
    assert ours == pytest.approx(entropy(counts) - entropy(joint.sum(axis=1)), abs=1e-12)
    assert 0 <= ours <= entropy(joint.sum(axis=0)) + 1e-12


@both_kernels
def test_machine_on_inner_products_is_scikit_learns(kernel: str) -> None:
    x, labels = blobs(120, 300, 1, distance=3.0)
    x = 1.7 * x + 0.3  # gamma="scale" must see the mean as well
    y, train, test = labels[:, 0], np.arange(80), np.arange(80, 120)
    ours = SVC(kernel=separability._kernel(x, kernel)).fit(train[:, None], y[train])
    theirs = SVC(kernel=kernel, gamma="scale").fit(x[train], y[train])
    scores = ours.decision_function(test[:, None])
    np.testing.assert_allclose(scores, theirs.decision_function(x[test]), atol=2e-3)
    np.testing.assert_array_equal(np.sort(ours.support_), np.sort(theirs.support_))


@both_kernels
def test_separable_attributes_score_one_and_shuffled_ones_chance(kernel: str) -> None:
    """Within 2 % an attribute below exp Σ H(Y), which no score exceeds: the bias of the entropy is 1/2n ≈ 0.2 %."""
    x, labels = blobs(300, 10, 3, distance=12.0)
    assert separability_score(x, labels, kernel=kernel) == pytest.approx(1, abs=1e-9)
    score = separability_score(x, labels, kernel=kernel, protocol="shuffled")
    assert 0.98**3 * chance(labels.mean(axis=0)) <= score <= chance(labels.mean(axis=0)) + 1e-9


@both_kernels
def test_training_protocol_cannot_fail_in_high_dimension(kernel: str) -> None:
    """Labels by lot in d > n: train = test says perfectly separable, held-out folds say chance."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((100, 1000)), rng.random((100, 2)) < 0.5
    assert separability_score(x, labels, kernel=kernel, protocol="training") == pytest.approx(1, abs=1e-12)
    assert separability_score(x, labels, kernel=kernel) > 0.9 * chance(labels.mean(axis=0))


@given(seed=st.integers(0, 1000), kernel=st.sampled_from(["linear", "rbf"]))
@settings(max_examples=10)
def test_score_knows_no_axes_and_no_origin_and_training_no_order(seed: int, kernel: str) -> None:
    x, labels = blobs(40, 6, 2, distance=2.0, seed=seed)
    moved, order = x @ ortho_group.rvs(6, random_state=seed) + 0.5, np.random.default_rng(seed).permutation(40)
    score = separability_score(x, labels, kernel=kernel)
    assert separability_score(moved, labels, kernel=kernel) == pytest.approx(score, abs=1e-9)
    trained = [separability_score(x[o], labels[o], kernel=kernel, protocol="training") for o in (..., order)]
    assert trained[0] == pytest.approx(trained[1], abs=1e-12)


def test_only_the_most_confident_count() -> None:
    """The classifier errs where it is unsure; the kept half is right and separable, the whole is not."""
    x, labels = blobs(200, 6, 2, distance=12.0)
    unsure = np.arange(200)[:, None] % 4 >= 2
    p = np.where(unsure, np.where(labels, 0.49, 0.51), np.where(labels, 0.9, 0.1))
    kept, whole = (measure(x.reshape(200, 1, 2, 3), p, num_kept=count) for count in (100, 200))
    assert kept.value == pytest.approx(1, abs=1e-9)
    assert 2 < whole.value <= whole.details["chance"] + 1e-9
    assert (kept.n, kept.protocol["num_kept"]) == (200, 100)


@pytest.mark.parametrize("protocol", ["cross-validated", "training", "shuffled"])
def test_measurement_of_everything_is_the_score(protocol: str) -> None:
    x, labels = blobs(120, 200, 2, distance=2.0)
    options = {"protocol": protocol, "kernel": "rbf", "seed": 4}
    measured = measure(x, labels, facts={"classifier": "faces"}, **options)
    assert measured.value == pytest.approx(separability_score(x, labels, **options), abs=1e-12)
    details = measured.details["attributes"]
    assert measured.value == pytest.approx(np.exp(sum(a["conditional_entropy"] for a in details.values())))
    assert {name: a["num_true"] for name, a in details.items()} == dict(zip("ab", labels.sum(axis=0), strict=True))
    assert measured.protocol["num_folds"] == (None if protocol == "training" else 5)
    assert measured.protocol["classifier"] == "faces"


def test_interval_covers() -> None:
    """95 % intervals of 150 draws cover exp Σ H(q), the limit for labels of which a share q is flipped."""
    rng, flips, covered = np.random.default_rng(0), np.array([0.1, 0.25]), 0
    for _ in range(150):
        clean = rng.random((200, 2)) < 0.5
        labels = clean ^ (rng.random((200, 2)) < flips)
        low, high = measure(4.0 * clean + 0.1 * rng.standard_normal((200, 2)), labels).interval
        covered += low <= chance(flips) <= high
    assert 0.89 <= covered / 150 <= 0.99  # binomial: 0.95 ± 3.4 standard errors


def test_what_an_interruption_leaves_is_predicted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = blobs(100, 5, 2, distance=1.0)
    fresh = measure(x, labels).to_json()
    effects = [DEFAULT, KeyboardInterrupt, DEFAULT, DEFAULT, DEFAULT]  # at the second attribute
    predict = Mock(wraps=separability.cross_val_predict, side_effect=effects)
    monkeypatch.setattr(separability, "cross_val_predict", predict)
    with cached(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            measure(x, labels)
        assert measure(x, labels).to_json() == measure(x, labels).to_json() == fresh
        assert predict.call_count == 3
        measure(x + 1, labels)
        assert predict.call_count == 5


def test_skipped_attribute_is_told() -> None:
    x, labels = blobs(60, 5, 2, distance=3.0)
    labels[:, 1] = True
    measured, alone = measure(x, labels), measure(x, labels[:, :1], names="a")
    assert measured.value == alone.value
    assert (measured.protocol["skipped"], measured.protocol["attributes"]) == (["b"], ["a"])
    with pytest.raises(ValueError, match="only one protocol compares"):
        compare(measured, alone)


X, LABELS = blobs(40, 5, 2, distance=3.0)
test_bad_input_is_refused = refusals(
    (lambda: separability_score(X * np.nan, LABELS), "finite; got 200 NaN"),
    (lambda: separability_score(np.ones_like(X), LABELS), "latents must differ.*; 1 of 40 are distinct"),
    (lambda: separability_score(np.copysign(0.0, X), LABELS), "1 of 40 are distinct"),
    (lambda: separability_score(X, LABELS[1:]), r"\(40, attributes\).*got shape \(39, 2\)"),
    (lambda: separability_score(X, 0.3 * LABELS), r"true or false; got .*0\.3"),
    (lambda: separability_score(X, np.arange(40)[:, None] < 4), "attribute 0 has 4 latents with it and 36 without"),
    (lambda: separability_score(X, LABELS, kernel="cubic"), "kernel must be one of linear, rbf; got 'cubic'"),
    (lambda: measure(X, LABELS, num_kept=41), "num_kept must be 2 to the number of latents, 40; got 41"),
    (lambda: measure(X, LABELS, names="aa"), "all different; got .* a, a"),
    (lambda: measure(X, 1.2 * LABELS), r"\[0, 1\]; got 0 to 1\.2; apply a sigmoid"),
    (lambda: measure(X, np.nan * LABELS), "got nan to nan"),
    (lambda: measure(X, LABELS | True), "a has 40 latents with it and 0 without.*; b has 40"),
)
