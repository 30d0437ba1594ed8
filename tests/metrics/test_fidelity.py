"""FID and KID: closed forms, invariances, the libraries' values, intervals that cover, features that are kept."""

import json
import math
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ortho_group
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from isodiff.metrics import fidelity
from isodiff.metrics.fidelity import extract_features, fid, frechet_distance, kernel_distance, kid
from isodiff.metrics.measure import cached

from ..geometry.tensors import refusals


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@given(n=st.integers(6, 40), m=st.integers(6, 40), d=st.integers(2, 5), seed=st.integers(0, 99))
def test_distance_of_two_gaussians(n: int, m: int, d: int, seed: int) -> None:
    """Samples with the moments (0, P²) and (c, Q²) of commuting P and Q are at |c|² + Tr (P − Q)²."""
    random = np.random.default_rng(seed)
    axes = ortho_group.rvs(d, random_state=seed)
    p, q, c = random.uniform(0, 2, d), random.uniform(0, 2, d), random.normal(size=d)

    def whitened(count: int) -> np.ndarray:
        """Draw a sample whose mean is zero and whose covariance is the identity, exactly."""
        x = random.standard_normal((count, d))
        return np.linalg.qr(x - x.mean(0))[0] * np.sqrt(count - 1)

    a, b = whitened(n) @ (axes * p) @ axes.T, whitened(m) @ (axes * q) @ axes.T + c
    assert frechet_distance(a, b) == pytest.approx(c @ c + np.square(p - q).sum(), abs=1e-9)


@pytest.mark.parametrize(("shape", "offset", "rel"), [((20, 300), 0, 1e-12), ((30, 4), 1e4, 1e-9)])
def test_distance_of_a_scaled_sample(random: np.random.Generator, shape: tuple, offset: float, rel: float) -> None:
    """Scaling deviations by s and shifting by c moves it by |c|² + (1 − s)² Tr Σ, whatever the rank of Σ."""
    a, c = random.standard_normal(shape), random.standard_normal(shape[1])
    a -= a.mean(0)
    expected = c @ c + 0.3**2 * a.var(0, ddof=1).sum()
    assert frechet_distance(offset + a, offset + 1.3 * a + c) == pytest.approx(expected, rel=rel)
    assert frechet_distance(offset + a, offset + a) == pytest.approx(0, abs=1e-9)


@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_exchange_constant_features_and_rotations_change_nothing(n: int, m: int, d: int, seed: int) -> None:
    """With many constant features the same number comes from the n × m products, a singular Σ and all."""
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((n, d)), random.standard_normal((m, d)) * 2 + 1
    wide_a, wide_b = (np.hstack([x, np.full((len(x), 15), 7.0)]) for x in (a, b))
    turn = ortho_group.rvs(d + 15, random_state=seed)
    for first, second in ((wide_a, wide_b), (wide_a @ turn, wide_b @ turn), (b, a)):
        assert frechet_distance(first, second) == pytest.approx(frechet_distance(a, b), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(60, 90), (20, 15)])
def test_distance_equals_torch_fidelity(random: np.random.Generator, n: int, m: int) -> None:
    a, b = random.gamma(1.0, size=(n, 24)), random.gamma(1.3, size=(m, 24))
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@given(n=st.integers(2, 9), m=st.integers(2, 25), seed=st.integers(0, 99))
def test_kernel_distance_is_its_definition(n: int, m: int, seed: int) -> None:
    """The kernel is averaged over pairs one by one; of equal sets, the cross term has a diagonal."""
    random = np.random.default_rng(seed)
    first, second = random.standard_normal((n, 3)), random.standard_normal((m, 3)) + 0.5
    for a, b in ((first, second), (second, first), (first, first)):
        within_a, within_b, across = (
            np.mean([(x @ y / 3 + 1) ** 3 for x, y in pairs])
            for pairs in (permutations(a, 2), permutations(b, 2), product(a, b))
        )
        assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across, abs=1e-9)


@pytest.mark.parametrize("d", [3, 60], ids=["from covariances", "from products"])
@pytest.mark.parametrize(("metric", "distance"), [(fid, frechet_distance), (kid, kernel_distance)])
def test_replicates_leave_out_each_group(metric: object, distance: object, d: int, random: np.random.Generator) -> None:
    """Sets of different sizes that the groups do not divide: each replicate equals the distance of what is left."""
    a, b = random.standard_normal((43, d)), random.standard_normal((51, d)) * 1.2
    measured = metric(a, b)
    assert measured.value == pytest.approx(distance(a, b), rel=1e-9)
    left = [distance(*(rows[np.arange(len(rows)) % 20 != g] for rows in (a, b))) for g in range(20)]
    np.testing.assert_allclose(measured.replicates, left, rtol=1e-8)


MEAN, SCALE = np.array([0.3, 0, 0, 0]), np.array([1, 1.3, 0.7, 1])


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw samples of N(0, I) and of N(MEAN, diag SCALE²)."""
    return random.standard_normal((200, 4)), MEAN + SCALE * random.standard_normal((200, 4))


def exact_kernel_distance() -> float:
    """Compute KID of the two distributions: the cubic kernel compares their moments of order 1, 2 and 3."""

    def moments(mean: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
        covariance = np.diag(scale**2)
        mixed = np.einsum("ij,k->ijk", covariance, mean)
        third = np.einsum("i,j,k->ijk", mean, mean, mean) + mixed + mixed.transpose(0, 2, 1) + mixed.transpose(2, 0, 1)
        return [mean, covariance + np.outer(mean, mean), third]

    pairs = zip(moments(np.zeros(4), np.ones(4)), moments(MEAN, SCALE), strict=True)
    return sum(math.comb(3, j) / 4**j * np.square(p - q).sum() for j, (p, q) in enumerate(pairs, 1))


@pytest.mark.parametrize("metric", [fid, kid])
def test_intervals_cover(metric: object, random: np.random.Generator) -> None:
    """Of 200 intervals, as many hold the truth as a coverage of 95 % makes plausible (99.9 % of the binomial law).

    For KID the truth is that of the distributions; for FID, which is biased, its mean at this n.
    """
    truth = exact_kernel_distance()
    if metric is fid:
        truth = np.mean([frechet_distance(*draw(random)) for _ in range(3000)])
    intervals = [metric(*draw(random)).interval for _ in range(200)]
    least, most = binom.interval(0.999, 200, 0.95)
    assert least <= sum(low <= truth <= high for low, high in intervals) <= most


def test_recall_sees_a_missing_half_and_precision_what_is_far_from_the_data(random: np.random.Generator) -> None:
    """Two clusters far apart: one of them alone is all data and half of it; a third is none."""
    left, right, away = (random.normal(size=(100, 3)) + at for at in (0.0, 50.0, 500.0))
    real = np.concatenate([left, right])
    for generated, precision, recall in ((real, 1, 1), (left, 1, 0.5), (np.concatenate([real, away]), 2 / 3, 1)):
        found = fidelity.precision_recall(real, generated)
        assert found["precision"].value == pytest.approx(precision)
        assert found["recall"].value == pytest.approx(recall)
        assert (found["recall"].n, found["recall"].interval) == (len(generated), None)


def test_curve_falls_to_its_limit(random: np.random.Generator) -> None:
    """FID of two Gaussian samples falls with n, and the line through 1/n ends nearer the truth than any sample."""
    a, b = random.standard_normal((200, 4)), SCALE * random.standard_normal((200, 4))
    curve = fidelity.fid_curve(a, b, repeats=40, seed=1)
    assert curve["sizes"] == [25, 50, 100, 200]
    assert (np.diff(curve["mean"]) < 0).all()
    line = np.polyfit(1 / np.array(curve["sizes"]), curve["mean"], 1)
    np.testing.assert_allclose([curve["slope"], curve["intercept"]], line, rtol=1e-6)
    np.testing.assert_allclose(np.array(curve["values"])[:, 3], frechet_distance(a, b), rtol=1e-9)
    truth = np.square(SCALE - 1).sum()
    assert abs(curve["intercept"] - truth) < 0.2 * abs(curve["mean"][-1] - truth) + 0.02
    assert json.loads(json.dumps(curve)) == curve == fidelity.fid_curve(a, b, repeats=40, seed=1)


class Means:
    """An extractor of channel means that counts its work."""

    def __init__(self, network: str = "means") -> None:
        self.protocol, self.seen = {"network": network}, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.float().mean((2, 3))


def test_pixels_are_seen_once_by_each_protocol(tmp_path: Path, random: np.random.Generator) -> None:
    images, first, second, third = random.integers(0, 256, (150, 3, 6, 6), np.uint8), Means(), Means(), Means("other")
    with cached(tmp_path):
        features = extract_features(images, first)
        np.testing.assert_allclose(features, images.mean((2, 3)), rtol=1e-5)
        assert np.array_equal(extract_features(images, second), features)
        assert (first.seen, second.seen) == (150, 0)
        images[149, 0, 0, 0] ^= 1
        extract_features(images, second)
        extract_features(images, third)
    assert (second.seen, third.seen) == (150 - 128, 150)  # the last piece of 64


ROWS = np.random.default_rng(0).standard_normal((40, 3))
test_other_input_is_refused = refusals(
    (lambda: kernel_distance(ROWS, ROWS[:, :2]), "one dimension; got 3 and 2"),
    (lambda: frechet_distance(ROWS[0], ROWS), r"got .*\(3,\)"),
    (lambda: kernel_distance(ROWS, ROWS * np.nan), "second features must be finite; got 120"),
    (lambda: fid(ROWS, ROWS[:19]), "second features .*19"),
    (lambda: extract_features(np.zeros((0, 3, 4, 4), np.uint8), Means()), r"N ≥ 1; got uint8 \(0, 3, 4, 4\)"),
)
