"""Units made in pieces that are kept; numbers with intervals, stored and compared; full float32."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from isodiff.metrics import bootstrap_interval, jackknife_interval, paired_bootstrap_interval, paired_ratio_interval
from isodiff.metrics.measure import (
    Measurement,
    cached,
    compare,
    content_digest,
    full_precision,
    is_cached,
    leave_groups_out,
    over_points,
    over_units,
)


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    return {"square": np.arange(start, stop, dtype=float) ** 2, "pair": np.arange(2 * start, 2 * stop).reshape(-1, 2)}


def constant(value: float, **key: object) -> float:
    return over_units(lambda *_: {"x": np.array([value])}, 1, size=1, what="x", **key)["x"].item()


def test_an_interrupted_run_redoes_nothing_and_a_larger_sample_keeps_the_smaller(tmp_path: Path) -> None:
    calls: list[int] = []

    def dying(start: int, stop: int) -> dict[str, np.ndarray]:
        if start == 6 and -1 not in calls:
            calls.append(-1)
            raise KeyboardInterrupt
        calls.append(start)
        return rows(start, stop)

    with cached(tmp_path, seed=0):
        with pytest.raises(KeyboardInterrupt):
            over_units(dying, 10, size=2, what="rows")
        assert calls == [0, 2, 4, -1]
        over_units(dying, 10, size=2, what="rows")
        assert calls == [0, 2, 4, -1, 6, 8]
        larger = over_units(dying, 14, size=2, what="rows")
    assert calls == [0, 2, 4, -1, 6, 8, 10, 12]
    np.testing.assert_array_equal(larger["square"], rows(0, 14)["square"])


def test_points_are_known_by_their_values_and_where_asked_by_their_number(tmp_path: Path) -> None:
    x, calls = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None], []

    def compute(points: torch.Tensor, start: int) -> dict[str, np.ndarray]:
        calls.append(start)
        return {"y": points.numpy() + start}

    with cached(tmp_path):
        for numbered in (False, True, True):
            made = over_points(compute, x, size=3, what="y", numbered=numbered)["y"]
            np.testing.assert_array_equal(made, x.numpy() + np.repeat([0, 3, 6], [3, 3, 1])[:, None])
        assert calls == [0, 3, 6] * 2
        over_points(compute, x[3:], size=3, what="y")  # the last four are known as such
        assert calls == [0, 3, 6] * 2
        over_points(compute, x[3:], size=3, what="y", numbered=True)
        assert calls == [0, 3, 6] * 2 + [0, 3]


def test_another_key_or_scope_is_another_entry_and_blocks_nest(tmp_path: Path) -> None:
    with cached(tmp_path):
        assert is_cached()
        with cached(model="a"):
            assert [constant(0, seed=0), constant(2, seed=1)] == [0, 2]
        with cached(model="b"):
            assert constant(1, seed=0) == 1
        with cached(model="b"), cached(model="a"):  # the inner one counts
            assert constant(9, seed=0) == 0
        with pytest.raises(ValueError, match="model is already in the scope"), cached(model="a"):
            constant(0, model="b")
    assert not is_cached()
    assert [constant(3, seed=0), constant(4, seed=0)] == [3, 4]  # nothing is kept outside


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_entry_is_made_again_and_said_so(tmp_path: Path, damage: bytes) -> None:
    with cached(tmp_path):
        constant(1)
        next(tmp_path.rglob("*.npz")).write_bytes(damage)
        with pytest.warns(UserWarning, match="damaged"):
            assert constant(2) == 2
        assert constant(3) == 2


def test_a_full_disk_is_named_with_a_remedy_and_leaves_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left .*with --cache; what was finished"), cached(tmp_path):
        constant(0)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_digest_sees_values_shapes_types_and_order_but_not_the_layout() -> None:
    a = np.arange(6.0)
    others = [a.reshape(2, 3), a.astype(np.float32), a + 1]
    assert len({content_digest(*parts) for parts in ([a], *([b] for b in others), [a, "x"], ["x", a])}) == 6
    assert content_digest(a.reshape(2, 3).T.copy().T) == content_digest(a.reshape(2, 3))
    assert content_digest(torch.from_numpy(a)) == content_digest(a)


def mean_of(values: np.ndarray, **changes: object) -> Measurement:
    return Measurement.from_units("ppl", values, **({"unit": "pairs", "seed": 0, "protocol": {"steps": 20}} | changes))


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(5, 2, 100)


def test_a_mean_carries_its_units_and_json_brings_everything_back(values: np.ndarray) -> None:
    measured = mean_of(values, details={"curve": [1, 2]})
    assert measured.value == pytest.approx(values.mean())
    assert measured.n == 100
    assert measured.interval[0] < measured.value < measured.interval[1]
    again = Measurement.from_json(json.loads(json.dumps(measured.to_json())))
    np.testing.assert_allclose(again.replicates, measured.replicates, rtol=1e-5)
    assert {**vars(again), "replicates": None} == {**vars(measured), "replicates": None}


def test_the_text_shows_value_interval_n_and_unit() -> None:
    measured = dataclasses.replace(mean_of(np.arange(10.0)), value=16.24, interval=(15.13, 17.44))
    assert str(measured) == "16.2 [15.1, 17.4] (n = 10 pairs)"
    assert dataclasses.replace(measured, interval=None).number() == "16.24"


@pytest.mark.parametrize("kind", ["mean", "jackknife"])
def test_pairs_see_a_difference_that_separate_samples_would_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 10, 20)

    def measured(shift: float) -> Measurement:
        values = common + rng.normal(shift, 0.1, 20)
        fields = {"unit": "pairs", "seed": 0, "protocol": {"steps": 20}}
        if kind == "mean":
            return Measurement.from_units("ppl", values, **fields)
        return Measurement.from_jackknife("ppl", *leave_groups_out(np.mean, values), n=20, **fields)

    first, second = measured(0.5), measured(0)
    assert first.interval[0] < second.value
    assert compare(first, second).is_outside_noise
    assert compare(first, second).value == pytest.approx(0.5, abs=0.1)
    assert not compare(second, measured(0)).is_outside_noise


def test_the_jackknife_of_a_mean_is_its_t_interval(values: np.ndarray) -> None:
    left_out = (values.sum() - values) / (len(values) - 1)
    reach = student.ppf(0.975, 99) * values.std(ddof=1) / 10
    expected = values.mean() - reach, values.mean() + reach
    assert jackknife_interval(values.mean(), left_out) == pytest.approx(expected)


def test_nineteen_in_twenty_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    jackknife = bootstrap = ratio = 0
    for trial in range(300):
        x = rng.gamma(4.0, size=200)  # its coefficient of variation is 1/2
        low, high = jackknife_interval(*leave_groups_out(lambda v: v.std() / v.mean(), x))
        jackknife += low <= 0.5 <= high
        low, high = bootstrap_interval(x, num_resamples=400, seed=trial)
        bootstrap += low <= 4 <= high
        low, high = paired_ratio_interval(2 * x * rng.normal(1, 0.05, 200), x, seed=trial)
        ratio += low <= 2 <= high
        assert high - low < 0.06  # unpaired, the scatter of the gamma law alone would make it 0.4
    margin = 3 * math.sqrt(0.95 * 0.05 / 300)
    assert all(abs(hits / 300 - 0.95) < margin for hits in (jackknife, bootstrap, ratio))


def test_the_bootstrap_has_the_width_of_the_normal_law_takes_any_statistic_and_follows_its_seed() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2000), rel=0.06)
    ordered = np.arange(21.0)
    low, high = bootstrap_interval(ordered, np.median, seed=1)
    assert low < 10 < high
    assert (low, high) == bootstrap_interval(ordered, np.median, seed=1)
    assert bootstrap_interval(ordered, lambda v: float(np.max(v)))[1] == 20  # without an axis
    low, high = paired_bootstrap_interval(100 * values + 1 + 0.1 * values[::-1], 100 * values)
    assert 0.98 < low < 1 < high < 1.02


@pytest.fixture
def _fast_and_loose() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_fast_and_loose")
def test_a_block_runs_in_float32_whatever_is_set_around_it_and_leaves_nothing_behind() -> None:
    def settings() -> tuple:
        cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul

    before, a = settings(), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision():
            with full_precision():
                pass
            assert (a @ a).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="inside"), full_precision():
        raise RuntimeError("inside")
    assert settings() == before


X = np.arange(4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_units(rows, 0, size=1, what="x"), "at least 1; got 0 and 1"),
        (lambda: over_units(rows, 1, size=0, what="x"), "at least 1; got 1 and 0"),
        (lambda: over_points(rows, X[:0], size=1, what="x"), "got 0 points"),
        (lambda: over_points(rows, X, size=0, what="x"), "batch_size at least 1"),
        (lambda: Measurement.from_json(mean_of(X).to_json() | {"kind": "median"}), "median"),
        (lambda: Measurement.from_json(mean_of(X).to_json() | {"extra": 1}), "extra"),
        (lambda: compare(mean_of(X), mean_of(X, seed=1)), "seed is 0 and 1"),
        (lambda: compare(mean_of(X), mean_of(X, protocol={"steps": 50})), "protocol"),
        (lambda: compare(mean_of(X), mean_of(X, unit="images")), "unit"),
        (lambda: compare(*[dataclasses.replace(mean_of(X), replicates=None)] * 2), "no replicates"),
        (lambda: jackknife_interval(math.nan, [1.0, 2.0]), "estimate must be finite"),
        (lambda: jackknife_interval(1.0, [1.0]), "replicates .* at least 2 entries, got shape"),
        (lambda: bootstrap_interval([[1.0, 2.0]]), "at least 2 entries, got shape"),
        (lambda: bootstrap_interval([1.0, math.nan]), "1 NaN or infinite"),
        (lambda: bootstrap_interval(X, num_resamples=0), "at least 1, got 0"),
        (lambda: paired_bootstrap_interval(X, X[:2]), "got 4 and 2 values"),
        (lambda: paired_ratio_interval(X, X[:2]), "got 4 and 2 values"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
