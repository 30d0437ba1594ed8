"""FID and KID: closed forms, invariances, the libraries' values, intervals that cover, features that are kept."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import binom, ortho_group
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from isodiff.datasets.faces import render, sample_factors
from isodiff.metrics.fidelity import extract_features, fid, fid_curve, frechet_distance, kernel_distance, kid
from isodiff.metrics.generator import to_uint8
from isodiff.metrics.measurement import Measurement, compare
from isodiff.metrics.networks import EXTRACTOR, inception_features
from isodiff.metrics.store import Store

PHOTOGRAPHS = Path(
    os.environ.get("ISODIFF_PHOTOGRAPHS", Path(__file__).parents[3] / "shared/data/faces64_train.tar.xz")
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def whitened(random: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Draw a sample whose mean is zero and whose covariance is the identity, exactly; n > d."""
    x = random.standard_normal((n, d))
    x -= x.mean(0)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v * np.sqrt(n - 1)


def faces(count: int, seed: int, resolution: int = 32) -> np.ndarray:
    """Render faces as 8-bit images."""
    factors = sample_factors(count, generator=torch.Generator().manual_seed(seed))
    return to_uint8(render(factors, resolution)).numpy()


# Fréchet distance


@given(n=st.integers(6, 40), m=st.integers(6, 40), d=st.integers(1, 5), seed=st.integers(0, 99))
def test_distance_of_two_gaussians(n: int, m: int, d: int, seed: int) -> None:
    """Samples with the moments (0, P²) and (c, Q²) of commuting P and Q are at |c|² + Tr (P − Q)²."""
    random = np.random.default_rng(seed)
    axes = ortho_group.rvs(d, random_state=seed) if d > 1 else np.ones((1, 1))
    p, q, c = random.uniform(0, 2, d), random.uniform(0, 2, d), random.normal(size=d)
    a = whitened(random, n, d) @ (axes * p) @ axes.T
    b = whitened(random, m, d) @ (axes * q) @ axes.T + c
    assert frechet_distance(a, b) == pytest.approx(c @ c + np.square(p - q).sum(), abs=1e-9)


def test_distance_of_a_shifted_and_scaled_sample_with_more_dimensions_than_rows(random: np.random.Generator) -> None:
    """Scaling a sample by s and shifting it by c moves it by |c|² + (1 − s)² Tr Σ, whatever the rank of Σ."""
    a, c = random.standard_normal((20, 300)), random.standard_normal(300)
    a -= a.mean(0)
    expected = c @ c + 0.3**2 * a.var(0, ddof=1).sum()
    assert frechet_distance(a, 1.3 * a + c) == pytest.approx(expected, rel=1e-12)


@given(n=st.integers(2, 12), m=st.integers(2, 12), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_constant_features_and_rotations_change_nothing(n: int, m: int, d: int, seed: int) -> None:
    """Nor do many constant features, with which the same number comes from the n × m products, a singular Σ and all."""
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((n, d)), random.standard_normal((m, d)) * 2 + 1
    value = frechet_distance(a, b)
    wide_a, wide_b = (np.hstack([x, np.full((len(x), 15), 7.0)]) for x in (a, b))
    assert frechet_distance(wide_a, wide_b) == pytest.approx(value, rel=1e-6, abs=1e-6)
    turn = ortho_group.rvs(d + 15, random_state=seed)
    assert frechet_distance(wide_a @ turn, wide_b @ turn) == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shape", [(30, 4), (5, 40)])
def test_distance_is_zero_on_itself_far_from_the_origin(random: np.random.Generator, shape: tuple[int, int]) -> None:
    a = 1e4 + random.standard_normal(shape)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * shape[1], rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(60, 90), (20, 15), (200, 12)])
def test_distance_equals_torch_fidelity_and_scipy(random: np.random.Generator, n: int, m: int) -> None:
    a, b = random.gamma(1.0, size=(n, 24)), random.gamma(1.3, size=(m, 24))
    ours = frechet_distance(a, b)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-6)
    if min(n, m) > 24:  # scipy's root of a singular matrix is not to be trusted
        root = sqrtm(np.cov(a.T) @ np.cov(b.T))
        direct = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
        assert ours == pytest.approx(direct, rel=1e-9)


# Kernel distance


def naive_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Average the kernel over pairs one by one."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / len(x) + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x, y in itertools.product(a, b)])


@given(n=st.integers(2, 9), m=st.integers(2, 25), seed=st.integers(0, 99))
def test_kernel_distance_is_its_definition(n: int, m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((n, 3)), random.standard_normal((m, 3)) + 0.5
    assert kernel_distance(a, b) == pytest.approx(naive_kernel_distance(a, b), abs=1e-9)
    assert kernel_distance(b, a) == pytest.approx(kernel_distance(a, b), abs=1e-9)


def test_kernel_distance_of_a_set_to_itself(random: np.random.Generator) -> None:
    """One array given twice is two sets that share all rows, whose cross term has its diagonal."""
    a = random.standard_normal((8, 3))
    assert kernel_distance(a, a) == pytest.approx(naive_kernel_distance(a, a), abs=1e-12)
    assert kernel_distance(a, a) < 0


def test_kernel_distance_equals_torch_fidelity(random: np.random.Generator) -> None:
    a, b = random.gamma(1.0, size=(50, 12)), random.gamma(1.3, size=(50, 12))
    options = {"kid_subsets": 1, "kid_subset_size": 50, "verbose": False}
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)
    assert kernel_distance(a, b) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_kernel_distance_has_no_bias(random: np.random.Generator) -> None:
    """Of equal distributions, tiny samples average to zero."""
    values = [kernel_distance(random.standard_normal((4, 3)), random.standard_normal((7, 3))) for _ in range(3000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


# Intervals


@pytest.mark.parametrize("d", [3, 60], ids=["from covariances", "from products"])
@pytest.mark.parametrize(("metric", "distance"), [(fid, frechet_distance), (kid, kernel_distance)])
def test_replicates_leave_out_each_group(metric: object, distance: object, d: int, random: np.random.Generator) -> None:
    """Sets of different sizes that the groups do not divide: each replicate equals the distance of what is left."""
    a, b = random.standard_normal((23, d)), random.standard_normal((31, d)) * 1.2
    measured = metric(a, b, groups=5)
    assert measured.value == pytest.approx(distance(a, b), rel=1e-9)
    left = [distance(*(rows[np.arange(len(rows)) % 5 != g] for rows in (a, b))) for g in range(5)]
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
    covered = sum(low <= truth <= high for low, high in intervals)
    least, most = binom.ppf([0.0005, 0.9995], 200, 0.95)
    assert least <= covered <= most, f"{covered} of 200"


def test_a_paired_difference_is_sharper(random: np.random.Generator) -> None:
    """Two models on the same real images are compared group by group: what they share cancels."""
    real, noise = random.standard_normal((400, 8)), random.standard_normal((400, 8))
    first, second = (fid(real, scale * noise, seed=3, protocol={"steps": 20}) for scale in (1.3, 1.35))
    difference = compare(second, first)
    assert difference.is_outside_noise
    assert difference.value > 0
    assert first.interval[1] > second.interval[0]
    assert (first.n, first.unit, first.seed, first.protocol["steps"]) == (400, "images", 3, 20)
    with pytest.raises(ValueError, match="protocol"):
        compare(first, fid(real[:300], noise, seed=3, protocol={"steps": 20}))


def test_a_measurement_survives_json(random: np.random.Generator) -> None:
    measured = kid(random.standard_normal((40, 3)), random.standard_normal((40, 3)), protocol={"a": [1, "b"]})
    read = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    assert (read.value, read.interval, read.protocol) == (measured.value, measured.interval, measured.protocol)


# FID against n


def test_curve_falls_to_its_limit(random: np.random.Generator) -> None:
    """FID of two Gaussian samples falls with n, and the line through 1/n ends nearer the truth than any sample."""
    scale = np.array([1, 1.3, 0.7, 1])
    a, b = random.standard_normal((3000, 4)), scale * random.standard_normal((3000, 4))
    curve = fid_curve(a, b, [25, 50, 100, 200], repeats=40, seed=1)
    assert (np.diff(curve["mean"]) < 0).all()
    truth = np.square(scale - 1).sum()
    assert abs(curve["intercept"] - truth) < 0.2 * abs(curve["mean"][-1] - truth) + 0.02
    x, y = 1 / np.array(curve["sizes"]), np.array(curve["mean"])
    np.testing.assert_allclose([curve["slope"], curve["intercept"]], np.polyfit(x, y, 1), rtol=1e-6)
    assert json.loads(json.dumps(curve)) == curve
    assert fid_curve(a, b, [25, 50], repeats=2, seed=1) == fid_curve(a, b, [25, 50], repeats=2, seed=1)
    assert fid_curve(a, b, [25, 50], repeats=2, seed=2) != fid_curve(a, b, [25, 50], repeats=2, seed=1)


def test_curve_ends_at_the_whole_sample(random: np.random.Generator) -> None:
    a, b = random.standard_normal((40, 3)), random.standard_normal((40, 3))
    curve = fid_curve(a, b, [20, 40], repeats=3)
    np.testing.assert_allclose(np.array(curve["values"])[:, 1], frechet_distance(a, b), rtol=1e-9)


@pytest.mark.parametrize("sizes", [[10], [10, 10], [20, 10], [1, 10], [10, 41], []])
def test_curve_refuses_other_sizes(sizes: list[int], random: np.random.Generator) -> None:
    a = random.standard_normal((40, 3))
    with pytest.raises(ValueError, match=r"growing numbers from 2 to 40; got \["):
        fid_curve(a, a, sizes)


# Bad input


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((9, 3)), "first features have 1 rows; at least 2"),
        (np.zeros((9, 3)), np.zeros((9, 4)), "one dimension; got 3 and 4"),
        (np.zeros(9), np.zeros((9, 3)), r"shape \(n, d\); got \(9,\)"),
        (np.zeros((9, 3)), np.full((9, 3), np.nan), "second features must be finite; got 27"),
        (np.full((9, 3), np.inf), np.zeros((9, 3)), "first features must be finite; got 27"),
    ],
)
@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_other_features_are_refused(distance: object, a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distance(a, b)


@pytest.mark.parametrize("metric", [fid, kid])
def test_too_few_samples_for_an_interval(metric: object, random: np.random.Generator) -> None:
    a = random.standard_normal((40, 3))
    with pytest.raises(ValueError, match="second features have 19 rows; at least 20 are needed"):
        metric(a, a[:19])
    with pytest.raises(ValueError, match="at least 4"):
        metric(a[:3], a, groups=2)
    with pytest.raises(ValueError, match="groups must be at least 2; got 1"):
        metric(a, a, groups=1)
    assert metric(a[:20], a).replicates.shape == (20,)
    assert metric(a[:4], a[4:8], groups=2).replicates.shape == (2,)


# Features


class Means:
    """An extractor of channel means that counts its work and can be stopped."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.protocol, self.seen, self.stop_after = {"network": "means"}, 0, stop_after

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.stop_after is not None and self.seen + len(images) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.float().mean((2, 3))


def test_features_are_kept_by_content(tmp_path: Path, random: np.random.Generator) -> None:
    """The same pixels are never seen twice, other pixels or another protocol always."""
    images, store = random.integers(0, 256, (150, 3, 6, 6), dtype=np.uint8), Store(tmp_path)
    first, second = Means(), Means()
    features = extract_features(images, first, batch_size=10, store=store)
    np.testing.assert_allclose(features, images.mean((2, 3)), rtol=1e-5)
    assert np.array_equal(extract_features(images, second, batch_size=10, store=store), features)
    assert (first.seen, second.seen) == (150, 0)
    images[149, 0, 0, 0] ^= 1
    extract_features(images, second, store=store)
    assert second.seen == 150 - 128  # the last piece of 64
    second.protocol = {"network": "other means"}
    extract_features(images, second, store=store)
    assert second.seen == 22 + 150
    assert np.array_equal(extract_features(images, Means()), extract_features(images, Means(), store=store))


def test_a_killed_extraction_goes_on(tmp_path: Path, random: np.random.Generator) -> None:
    images, store = random.integers(0, 256, (200, 1, 4, 4), dtype=np.uint8), Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        extract_features(images, Means(stop_after=150), store=store)
    rest = Means()
    assert np.array_equal(extract_features(images, rest, store=store), extract_features(images, Means()))
    assert rest.seen == 200 - 128


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 4, 4)), "float64"),
        (np.zeros((0, 3, 4, 4), np.uint8), r"N ≥ 1; got uint8 \(0, 3, 4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"got uint8 \(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "got Tensor"),
    ],
)
def test_other_images_are_refused(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_features(images, Means())


def test_batches_of_none_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        extract_features(np.zeros((2, 3, 4, 4), np.uint8), Means(), batch_size=0)


# With the real network


class Images(Dataset):
    """8-bit images as torch-fidelity takes them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_torch_fidelity_measures_the_same() -> None:
    """Through its registry, on the same images, torch-fidelity's own FID and KID are ours."""
    one = faces(8, seed=0)
    other = np.clip(faces(8, seed=1) + np.random.default_rng(0).integers(0, 60, one.shape), 0, 255).astype(np.uint8)
    theirs = calculate_metrics(
        input1=Images(one),
        input2=Images(other),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=8,
        feature_extractor=EXTRACTOR,
        cuda=False,
        batch_size=8,
        save_cpu_ram=True,
        verbose=False,
    )
    extractor = inception_features()
    features = [extract_features(images, extractor) for images in (one, other)]
    assert frechet_distance(*features) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert kernel_distance(*features) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no photographs at {PHOTOGRAPHS}")
def test_halves_of_real_photographs_are_near_and_drawings_far() -> None:
    """By FID with its bias and by KID without: disjoint halves agree within noise, rendered faces are far from both."""
    photographs = []
    with tarfile.open(PHOTOGRAPHS) as archive:
        for member in archive:
            if member.isfile():
                pixels = Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")
                photographs.append(np.asarray(pixels).transpose(2, 0, 1))
            if len(photographs) == 80:
                break
    extractor = inception_features()
    real = extract_features(np.stack(photographs), extractor)
    drawn = extract_features(faces(40, seed=0, resolution=64), extractor)
    halves, far = fid(real[:40], real[40:]), fid(real[:40], drawn)
    assert halves.interval[1] < 0.6 * far.interval[0]
    same, other = kid(real[:40], real[40:]), kid(real[:40], drawn)
    assert same.interval[0] <= 0 <= same.interval[1]
    assert same.interval[1] < 0.1 * other.interval[0]
