"""Linear separability: known entropies, machines equal to scikit-learn's, protocols that tell chance from knowledge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, ortho_group
from sklearn.svm import SVC

from isodiff.metrics.measurement import compare
from isodiff.metrics.separability import conditional_entropy, linear_separability, separability_score
from isodiff.metrics.store import Store
from isodiff.metrics.support_vectors import InnerProducts, Predictor

KERNELS = ("linear", "rbf")


def table(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (y, x) that a contingency table counts, rows x, columns y."""
    counts = np.array(counts)
    x, y = np.indices(counts.shape)
    return np.repeat(y.ravel(), counts.ravel()), np.repeat(x.ravel(), counts.ravel())


def h(p: float) -> float:
    """Return the entropy of a coin in nats."""
    return float(entropy([p, 1 - p]))


def blobs(n: int, d: int, attributes: int, *, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw latents whose first columns show the attributes, classes `distance` apart in units of their spread."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, attributes)) < 0.5
    x = rng.standard_normal((n, d))
    x[:, :attributes] += distance * (labels - 0.5)
    return x, labels


# Conditional entropy


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[30, 10], [10, 30]], h(1 / 4)),  # a symmetric channel
        ([[20, 20], [0, 60]], 0.4 * np.log(2)),  # sure in one row, a coin in the other
        ([[30, 10], [60, 20]], h(1 / 4)),  # independent: all of H(Y) remains
        ([[50, 0], [0, 50]], 0.0),
        ([[0, 50], [50, 0]], 0.0),  # always wrong is as good as always right
        ([[25, 75]], h(1 / 4)),  # a constant prediction
        ([[40], [60]], 0.0),  # a constant label
        ([[10, 10, 10], [0, 0, 30]], 0.5 * np.log(3)),
    ],
)
def test_conditional_entropy_of_known_tables(counts: list[list[int]], expected: float) -> None:
    assert conditional_entropy(*table(counts)) == pytest.approx(expected, abs=1e-14)


@given(st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), min_size=2, max_size=2))
def test_conditional_entropy_is_joint_minus_marginal(counts: list[list[int]]) -> None:
    array = np.array(counts)
    if not array.sum():
        return
    ours = conditional_entropy(*table(counts))
    assert ours == pytest.approx(entropy(array.ravel()) - entropy(array.sum(axis=1)), abs=1e-12)
    assert -1e-15 <= ours <= entropy(array.sum(axis=0)) + 1e-12


@pytest.mark.parametrize(("y", "x"), [([1, 0], [1]), ([], []), ([[1]], [[1]])])
def test_conditional_entropy_refuses_other_shapes(y: list, x: list) -> None:
    with pytest.raises(ValueError, match="one shape"):
        conditional_entropy(y, x)


# Machines


@pytest.mark.parametrize("kernel", KERNELS)
def test_machine_on_inner_products_is_scikit_learns(kernel: str) -> None:
    """The precomputed kernel decides as SVC(kernel, gamma="scale") does, in training and on other rows."""
    x, labels = blobs(120, 300, 1, distance=3.0)
    x = 1.7 * x + 0.3  # gamma="scale" must see the mean as well
    y, train, test = labels[:, 0], np.arange(80), np.arange(80, 120)
    products = InnerProducts(x)
    ours = SVC(kernel="precomputed").fit(products.matrix(kernel, train, train), y[train])
    theirs = SVC(kernel=kernel, gamma="scale").fit(x[train], y[train])
    scores = ours.decision_function(products.matrix(kernel, test, train))
    np.testing.assert_allclose(scores, theirs.decision_function(x[test]), atol=2e-3)
    np.testing.assert_allclose(np.sort(ours.support_), np.sort(theirs.support_))


def test_rows_choose_latents() -> None:
    """A machine on some of the latents knows nothing of the others."""
    x, labels = blobs(100, 20, 1, distance=2.0)
    rows = np.arange(0, 100, 2)
    predictor = Predictor(kernel="rbf", protocol="cross-validated", num_folds=5, seed=0)
    _, some = predictor.predict(InnerProducts(x), rows, labels[rows, 0], 0)
    _, alone = predictor.predict(InnerProducts(x[rows]), np.arange(50), labels[rows, 0], 0)
    np.testing.assert_array_equal(some, alone)


def test_out_of_fold_predictions_do_not_see_their_own_label() -> None:
    """Where each class is its own far cluster, a row with a false label is still predicted by its neighbours."""
    x, labels = blobs(60, 5, 1, distance=12.0)
    labels[0] = ~labels[0]
    predictor = Predictor(kernel="linear", protocol="cross-validated", num_folds=5, seed=0)
    y, predicted = predictor.predict(InnerProducts(x), np.arange(60), labels[:, 0], 0)
    assert (predicted != y).nonzero()[0].tolist() == [0]


# The score


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("attributes", [1, 2, 3])
def test_separable_attributes_score_one(kernel: str, attributes: int) -> None:
    x, labels = blobs(300, 10, attributes, distance=12.0)
    assert separability_score(x, labels, kernel=kernel) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("attributes", [1, 2, 3])
def test_shuffled_labels_score_chance(kernel: str, attributes: int) -> None:
    """Within 2 % an attribute below exp Σ H(Y), which no score exceeds: the bias of the entropy is 1/2n ≈ 0.2 %."""
    x, labels = blobs(300, 10, attributes, distance=12.0)
    chance = np.exp(sum(h(share) for share in labels.mean(axis=0)))
    score = separability_score(x, labels, kernel=kernel, protocol="shuffled")
    assert 0.98**attributes * chance <= score <= chance + 1e-9


@pytest.mark.parametrize("kernel", KERNELS)
def test_training_protocol_cannot_fail_in_high_dimension(kernel: str) -> None:
    """Labels by lot in d > n: train = test says perfectly separable, held-out folds say chance."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((100, 1000)), rng.random((100, 2)) < 0.5
    assert separability_score(x, labels, kernel=kernel, protocol="training") == 1
    chance = np.exp(sum(h(share) for share in labels.mean(axis=0)))
    assert separability_score(x, labels, kernel=kernel) > 0.9 * chance


@pytest.mark.parametrize("kernel", KERNELS)
def test_score_rises_with_label_noise(kernel: str) -> None:
    """Flipping a share q of the labels leaves h(q) an attribute, up to what the machine loses by learning from them."""
    x, labels = blobs(400, 4, 2, distance=14.0)
    order = np.random.default_rng(1).random(labels.shape)
    shares = (0.0, 0.05, 0.15, 0.3)
    scores = [separability_score(x, labels ^ (order < q), kernel=kernel) for q in shares]
    assert scores == sorted(scores)
    for q, score in zip(shares, scores, strict=True):
        realised = np.exp(sum(h(share) for share in (order < q).mean(axis=0)))
        assert 0.93 * realised <= score <= 1.15 * realised


@given(seed=st.integers(0, 1000), kernel=st.sampled_from(KERNELS))
@settings(max_examples=10)
def test_score_knows_no_axes_and_no_origin(seed: int, kernel: str) -> None:
    """Rotating and moving all latents changes no machine."""
    x, labels = blobs(40, 6, 2, distance=2.0, seed=seed)
    moved = x @ ortho_group.rvs(6, random_state=seed) + 0.5
    score = separability_score(x, labels, kernel=kernel)
    assert separability_score(moved, labels, kernel=kernel) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_training_score_knows_no_order(kernel: str) -> None:
    x, labels = blobs(150, 5, 2, distance=1.5)
    order = np.random.default_rng(3).permutation(len(x))
    first, second = (separability_score(x[o], labels[o], kernel=kernel, protocol="training") for o in (..., order))
    assert first == pytest.approx(second, abs=1e-12)
    assert first > 1.5


def test_seed_decides() -> None:
    x, labels = blobs(80, 5, 1, distance=1.0)
    first, again, other = (separability_score(x, labels, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


# The measurement


def confident(labels: np.ndarray, unsure: np.ndarray) -> np.ndarray:
    """Return probabilities: 0.9 and 0.1 by label, and next to ½ on the wrong side where unsure."""
    return np.where(unsure[:, None], np.where(labels, 0.49, 0.51), np.where(labels, 0.9, 0.1))


def test_only_the_most_confident_count() -> None:
    """The classifier errs where it is unsure; the kept half is right and separable, the whole is not."""
    x, labels = blobs(200, 6, 2, distance=12.0)
    probabilities = confident(labels, np.arange(200) % 4 >= 2)
    latents = x.reshape(200, 1, 2, 3)
    kept = linear_separability(latents, probabilities, names=["a", "b"], num_kept=100)
    whole = linear_separability(latents, probabilities, names=["a", "b"], num_kept=200)
    assert kept.value == pytest.approx(1, abs=1e-9)
    assert whole.value > 2
    assert (kept.name, kept.n, kept.unit) == ("linear_separability", 200, "latents")
    assert kept.protocol["num_kept"] == 100
    assert whole.value <= whole.details["chance"] + 1e-9
    assert set(whole.details["attributes"]) == {"a", "b"}


@pytest.mark.parametrize("protocol", ["cross-validated", "training", "shuffled"])
def test_measurement_of_everything_is_the_score(protocol: str) -> None:
    x, labels = blobs(120, 200, 2, distance=2.0)
    measured = linear_separability(
        x, labels.astype(float), names=["a", "b"], num_kept=120, protocol=protocol, kernel="rbf", seed=4
    )
    assert measured.value == separability_score(x, labels, protocol=protocol, kernel="rbf", seed=4)
    assert len(measured.replicates) == 20
    details = measured.details["attributes"].values()
    assert measured.value == pytest.approx(np.exp(sum(a["conditional_entropy"] for a in details)))
    assert [a["num_true"] for a in details] == labels.sum(axis=0).tolist()
    assert measured.protocol["num_folds"] == (None if protocol == "training" else 5)


def test_interval_covers() -> None:
    """95 % intervals of 150 draws cover the score of the limit, with machines that need no learning."""
    rng, flips, covered = np.random.default_rng(0), (0.1, 0.25), 0
    truth = np.exp(sum(h(q) for q in flips))
    for _ in range(150):
        clean = rng.random((200, 2)) < 0.5
        labels = clean ^ (rng.random((200, 2)) < flips)
        x = 4.0 * clean + 0.1 * rng.standard_normal((200, 2))
        low, high = linear_separability(x, labels.astype(float), names="ab", num_kept=200, num_folds=2).interval
        covered += low <= truth <= high
    assert 0.89 <= covered / 150 <= 0.99  # binomial: 0.95 ± 3.4 standard errors


def test_models_on_the_same_latents_compare() -> None:
    """The difference of a separable and a noisy model is outside the noise, of a model and itself it is nothing."""
    x, labels = blobs(200, 5, 1, distance=12.0)
    noisy = labels ^ (np.random.default_rng(1).random(labels.shape) < 0.2)
    clean, other = (linear_separability(x, y.astype(float), names=["a"], num_kept=100) for y in (labels, noisy))
    assert compare(other, clean).is_outside_noise
    assert compare(clean, clean).value == 0


def test_predictions_are_kept_an_attribute_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at the second attribute and called again, only that one is predicted, and the figures are equal."""
    x, labels = blobs(100, 5, 2, distance=1.0)
    arguments = {"names": ["a", "b"], "num_kept": 80, "seed": 1}
    fresh = linear_separability(x, labels.astype(float), **arguments)
    predict, calls = Predictor.predict, []

    def interrupted(self: Predictor, *given: object) -> object:
        calls.append(given[-1])
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return predict(self, *given)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        linear_separability(x, labels.astype(float), store=store, **arguments)
    resumed = linear_separability(x, labels.astype(float), store=store, **arguments)
    assert linear_separability(x, labels.astype(float), store=store, **arguments).to_json() == fresh.to_json()
    assert resumed.to_json() == fresh.to_json()
    assert calls == [0, 1, 1]
    linear_separability(x + 1, labels.astype(float), store=store, **arguments)
    assert calls == [0, 1, 1, 0, 1]


def test_skipped_attribute_is_told() -> None:
    x, labels = blobs(60, 5, 2, distance=3.0)
    labels[:, 1] = True
    measured = linear_separability(x, labels.astype(float), names=["a", "b"], num_kept=60, on_single_class="skip")
    alone = linear_separability(x, labels[:, :1].astype(float), names=["a"], num_kept=60)
    assert measured.value == alone.value
    assert measured.protocol["skipped"] == ["b"]
    assert measured.protocol["attributes"] == ["a"]
    with pytest.raises(ValueError, match="only one protocol compares"):
        compare(measured, alone)


def test_facts_join_the_protocol() -> None:
    x, labels = blobs(40, 5, 1, distance=3.0)
    measured = linear_separability(x, labels.astype(float), names=["a"], num_kept=40, facts={"classifier": "faces"})
    assert measured.protocol["classifier"] == "faces"


# Bad input


def test_bad_latents_are_refused() -> None:
    x, labels = blobs(40, 5, 1, distance=3.0)
    for spoilt, message in (
        (np.where(x == x[3, 2], np.nan, x), "finite; got 1 NaN"),
        (np.zeros_like(x), "latents must differ.*; 1 of 40 are distinct"),
        (x[:, 0], r"\(n, d\).*got shape \(40,\)"),
        (x[:, :0], r"got shape \(40, 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            separability_score(spoilt, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((39, 1)), r"\(40, attributes\).*got shape \(39, 1\)"),
        (np.zeros(40), r"got shape \(40,\)"),
        (np.full((40, 1), 0.3), r"true or false; got .*0\.3"),
        (np.full((40, 1), np.nan), "true or false; got .*nan"),
        (np.ones((40, 1)), "attribute 0 has 40 latents with it and 0 without; cross-validated needs at least 5"),
        (np.arange(40)[:, None] < 4, "attribute 0 has 4 latents with it and 36 without"),
    ],
)
def test_bad_labels_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        separability_score(blobs(40, 5, 1, distance=3.0)[0], labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cubic"}, "kernel must be one of linear, rbf; got 'cubic'"),
        ({"protocol": "test"}, "protocol must be one of cross-validated, training, shuffled; got 'test'"),
        ({"num_folds": 1}, "num_folds must be at least 2; got 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    x, labels = blobs(40, 5, 1, distance=3.0)
    with pytest.raises(ValueError, match=message):
        separability_score(x, labels, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kept": 41}, "num_kept must be 2 to the number of latents, 40; got 41"),
        ({"num_kept": 1}, "num_kept must be 2 to"),
        ({"names": ["a"]}, r"\(40, 1\), latents × names.*got shape \(40, 2\)"),
        ({"names": ["a", "a"]}, "names must differ; got a, a"),
        ({"probabilities": np.full((40, 2), 1.2)}, r"\[0, 1\]; got values from 1\.2 to 1\.2; apply a sigmoid"),
        ({"probabilities": np.full((40, 2), np.nan)}, "numbers; got 80 NaN"),
        ({"probabilities": np.ones((40, 2))}, "a has 40 latents with it and 0 without"),
        ({"probabilities": np.ones((40, 2)), "on_single_class": "skip"}, "every attribute has too few.*a, b"),
        ({"on_single_class": "ignore"}, "'raise' or 'skip'; got 'ignore'"),
        ({"latents": np.ones((40, 3))}, "1 of 40 are distinct"),
        ({"latents": np.empty((0, 3))}, r"probabilities must be \(0, 2\)"),
    ],
)
def test_bad_measurements_are_refused(change: dict, message: str) -> None:
    x, labels = blobs(40, 5, 2, distance=3.0)
    arguments = {"latents": x, "probabilities": labels.astype(float), "names": ["a", "b"], "num_kept": 40} | change
    with pytest.raises(ValueError, match=message):
        linear_separability(arguments.pop("latents"), arguments.pop("probabilities"), **arguments)
