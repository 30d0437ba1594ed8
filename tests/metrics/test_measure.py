"""Units made in pieces that are kept; numbers with intervals, stored and compared; full float32."""

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from isodiff.metrics import measure
from isodiff.metrics.measure import Measurement, cached, compare, content_digest, full_precision

from ..geometry.tensors import refusals


def constant(value: float, **key: object) -> float:
    return measure.over_units(lambda *_: {"x": np.array([value])}, 1, size=1, what="x", **key)["x"].item()


def test_a_larger_sample_keeps_the_smaller(tmp_path: Path) -> None:
    starts: list[int] = []

    def squares(start: int, stop: int) -> dict[str, np.ndarray]:
        starts.append(start)
        return {"square": np.arange(start, stop) ** 2}

    with cached(tmp_path, seed=0):
        made = [measure.over_units(squares, n, size=2, what="squares")["square"] for n in (6, 6, 10)]
    assert starts == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(made[-1], np.arange(10) ** 2)


def test_points_are_known_by_their_values_and_where_asked_by_their_number(tmp_path: Path) -> None:
    x, calls = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None], []

    def found(points: torch.Tensor, **options: bool) -> np.ndarray:
        def compute(points: torch.Tensor, start: int) -> dict[str, np.ndarray]:
            calls.append(start)
            return {"y": points.numpy() + start}

        return measure.over_points(compute, points, size=3, what="y", **options)["y"]

    with cached(tmp_path):
        np.testing.assert_array_equal(found(x).ravel(), x.ravel() + torch.tensor([0, 0, 0, 3, 3, 3, 6]))
        found(x[3:])  # the last four are known
        assert calls == [0, 3, 6]
        np.testing.assert_array_equal(found(x, numbered=True), found(x, numbered=True))
        found(x[3:], numbered=True)
        assert calls == [0, 3, 6] * 2 + [0, 3]


def test_another_key_or_scope_is_another_entry_and_blocks_nest(tmp_path: Path) -> None:
    with cached(tmp_path):
        with cached(model="a"):
            assert [constant(0, seed=0), constant(2, seed=1)] == [0, 2]
        with cached(model="b"):
            assert constant(1, seed=0) == 1
            with cached(model="a"):  # the inner one counts
                assert constant(9, seed=0) == 0
        with pytest.raises(ValueError, match="model is already in the scope"), cached(model="a"):
            constant(0, model="b")
    assert [constant(3, seed=0), constant(4, seed=0)] == [3, 4]  # nothing is kept outside


def test_a_damaged_entry_is_made_again_and_said_so(tmp_path: Path) -> None:
    with cached(tmp_path):
        constant(1)
        next(tmp_path.rglob("*.npz")).write_bytes(b"PK\x03\x04 cut short")
        with pytest.warns(UserWarning, match="damaged"):
            assert constant(2) == 2
        assert constant(3) == 2


def test_a_digest_sees_values_shapes_types_and_order_but_not_the_layout() -> None:
    a = np.arange(6.0)
    different = [[a], [a.reshape(2, 3)], [a.astype(np.float32)], [a + 1], [a, "x"], ["x", a]]
    assert len({content_digest(*parts) for parts in different}) == 6
    assert content_digest(a.reshape(2, 3).T.copy().T) == content_digest(torch.from_numpy(a.reshape(2, 3)))


FACTS = {"unit": "pairs", "seed": 0, "protocol": {"steps": 20}}


def mean_of(values: np.ndarray, **changes: object) -> Measurement:
    return Measurement.from_units("ppl", values, **(FACTS | changes))


def test_a_measurement_shows_value_interval_n_and_unit() -> None:
    measured = dataclasses.replace(mean_of(np.arange(10.0)), value=16.24, interval=(15.13, 17.44))
    assert str(measured) == "16.2 [15.1, 17.4] (n = 10 pairs)"


@pytest.mark.parametrize("kind", ["mean", "jackknife"])
def test_pairs_see_a_difference_that_separate_samples_would_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 20)

    def measured(shift: float) -> Measurement:
        values = common + rng.normal(shift, 0.1, 20)
        if kind == "mean":
            return mean_of(values)
        return Measurement.from_jackknife("ppl", *measure.leave_groups_out(np.mean, values), n=20, **FACTS)

    first, second = measured(0.5), measured(0)
    difference = compare(first, second)
    assert first.interval[0] < second.value
    assert difference.is_outside_noise
    assert difference.value == pytest.approx(0.5, abs=0.1)
    assert not compare(second, measured(0)).is_outside_noise


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 100)
    left_out = (values.sum() - values) / 99
    expected = student.interval(0.95, 99, values.mean(), values.std(ddof=1) / 10)
    assert measure.jackknife_interval(values.mean(), left_out) == pytest.approx(expected)


def test_nineteen_in_twenty_intervals_cover() -> None:
    rng, truth, hits = np.random.default_rng(0), np.array([0.5, 4, 2]), []
    for trial in range(300):
        x = rng.gamma(4.0, size=200)  # its coefficient of variation is 1/2, its mean 4
        jackknife = measure.jackknife_interval(*measure.leave_groups_out(lambda v: v.std() / v.mean(), x))
        bootstrap = measure.bootstrap_interval(x, num_resamples=400, seed=trial)
        ratio = measure.paired_ratio_interval(2 * x * rng.normal(1, 0.05, 200), x, seed=trial)
        low, high = np.transpose([jackknife, bootstrap, ratio])
        hits.append((low <= truth) & (truth <= high))
        assert high[2] - low[2] < 0.06  # unpaired, the scatter of the gamma law alone would make it 0.4
    assert (abs(np.mean(hits, axis=0) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 300)).all()


def test_the_bootstrap_takes_any_statistic_follows_its_seed_and_knows_pairs() -> None:
    low, high = measure.bootstrap_interval(np.arange(21), lambda v: float(np.median(v)), seed=1)  # without an axis
    assert low < 10 < high
    assert (low, high) == measure.bootstrap_interval(np.arange(21), np.median, seed=1)
    values = np.random.default_rng(0).normal(size=2000)
    low, high = measure.paired_bootstrap_interval(100 * values + 1 + 0.1 * values[::-1], 100 * values)
    assert 0.98 < low < 1 < high < 1.02


def test_a_block_runs_in_float32_whatever_is_set_around_it_and_leaves_nothing_behind() -> None:
    def settings() -> tuple:
        cudnn = torch.backends.cudnn
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()

    torch.set_float32_matmul_precision("high")
    before, a = settings(), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with contextlib.suppress(RuntimeError), full_precision(), full_precision():
            assert (a @ a).dtype == torch.float32
            assert settings() == (False, True, False, "highest")
            raise RuntimeError
        assert (a @ a).dtype == torch.bfloat16
    assert settings() == before
    torch.set_float32_matmul_precision("highest")


X = np.arange(4.0)
test_bad_input_is_refused_by_name = refusals(
    (lambda: measure.over_units(dict, 0, size=1, what="x"), "at least 1; got 0 and 1"),
    (lambda: Measurement.from_json(mean_of(X).to_json() | {"kind": "median"}), "median"),
    (lambda: compare(mean_of(X), mean_of(X, seed=1)), "seed is 0 and 1"),
    (lambda: compare(*[dataclasses.replace(mean_of(X), replicates=None)] * 2), "no replicates"),
    (lambda: measure.bootstrap_interval([1.0, math.nan]), "1 NaN or infinite"),
    (lambda: measure.paired_bootstrap_interval(X, X[:2]), "got 4 and 2 values"),
)
