"""A number with its interval: how it is shown, stored and compared."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from isodiff.metrics.intervals import jackknife_interval
from isodiff.metrics.measurement import Measurement, compare


def mean_of(values: np.ndarray, **changes: object) -> Measurement:
    fields = {"unit": "pairs", "seed": 0, "protocol": {"steps": 20}}
    return Measurement.from_units("ppl", values, **(fields | changes))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, 100)


def test_a_mean_carries_its_units_and_interval(values: np.ndarray) -> None:
    measured = mean_of(values)
    assert measured.value == pytest.approx(values.mean())
    assert measured.n == 100
    assert measured.interval[0] < measured.value < measured.interval[1]


def test_the_text_shows_value_interval_n_and_unit() -> None:
    measured = dataclasses.replace(mean_of(np.arange(10.0)), value=16.24, interval=(15.13, 17.44))
    assert str(measured) == "16.2 [15.1, 17.4] (n = 10 pairs)"
    assert dataclasses.replace(measured, interval=None).number() == "16.24"


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e4, 1e9])
def test_the_text_tells_the_ends_of_an_interval_apart(scale: float, values: np.ndarray) -> None:
    low, high = (float(part) for part in mean_of(values * scale).number().split("[")[1].rstrip("]").split(", "))
    assert low < mean_of(values * scale).value < high


def test_json_brings_everything_back(values: np.ndarray) -> None:
    measured = mean_of(values, details={"curve": [1, 2]})
    again = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    np.testing.assert_allclose(again.replicates, measured.replicates, rtol=1e-5)
    assert {**vars(again), "replicates": None} == {**vars(measured), "replicates": None}


@pytest.mark.parametrize("change", [{"kind": "median"}, {"extra": 1}])
def test_damaged_json_is_refused(change: dict, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"median|extra"):
        Measurement.from_json(mean_of(values).to_json() | change)


def test_pairs_see_a_difference_that_separate_samples_would_not() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 50)
    first, second = mean_of(common + rng.normal(0.5, 0.1, 50)), mean_of(common + rng.normal(0, 0.1, 50))
    assert first.interval[0] < second.value
    difference = compare(first, second)
    assert difference.is_outside_noise
    assert difference.value == pytest.approx(0.5, abs=0.1)


def test_the_jackknife_pairs_too() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 20)

    def measured(shift: float, noise: float) -> Measurement:
        values = common + shift + noise * rng.normal(size=20)
        replicates = (values.sum() - values) / 19
        fields = {"n": 20, "unit": "groups", "seed": 0, "protocol": {}}
        return Measurement.from_jackknife("fid", values.mean(), replicates, **fields)

    assert compare(measured(0.5, 0.1), measured(0, 0.1)).is_outside_noise
    assert not compare(measured(0, 0.1), measured(0, 0.1)).is_outside_noise


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"protocol": {"steps": 50}}, {"unit": "images"}], ids=["seed", "protocol", "unit"]
)
def test_only_one_protocol_compares_with_itself(change: dict, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        compare(mean_of(values), mean_of(values, **change))


def test_a_number_without_replicates_has_no_difference(values: np.ndarray) -> None:
    bare = dataclasses.replace(mean_of(values), replicates=None)
    with pytest.raises(ValueError, match="no replicates"):
        compare(bare, bare)


def test_the_jackknife_of_a_mean_is_its_t_interval(values: np.ndarray) -> None:
    from scipy.stats import t

    left_out = (values.sum() - values) / (len(values) - 1)
    reach = t.ppf(0.975, 99) * values.std(ddof=1) / 10
    low, high = jackknife_interval(values.mean(), left_out)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_nineteen_in_twenty_jackknife_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        x = rng.gamma(4.0, size=200)
        groups = np.arange(200) % 20
        replicates = [x[groups != g].std() / x[groups != g].mean() for g in range(20)]
        low, high = jackknife_interval(x.std() / x.mean(), replicates)
        covered += low <= 0.5 <= high  # the coefficient of variation of a gamma law of shape 4 is 1/2
    assert 0.92 < covered / 1000 < 0.97


@pytest.mark.parametrize("estimate", [np.nan, np.inf])
def test_an_estimate_that_is_not_finite_is_refused(estimate: float) -> None:
    with pytest.raises(ValueError, match="estimate must be finite"):
        jackknife_interval(estimate, [1.0, 2.0])
