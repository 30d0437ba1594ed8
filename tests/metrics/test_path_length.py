"""Path lengths in closed form, against a plain transcription, and what does not count as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry.sphere import slerp
from isodiff.metrics.generator import Generator, draw_latents, number_generator
from isodiff.metrics.measurement import Measurement, compare
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_length import (
    path_distances,
    path_length,
    path_lengths,
    percentile_mean,
    perceptual_path_length,
    squared_l2,
)
from isodiff.metrics.path_noise import decode_in_other_company, epsilon_sweep
from isodiff.metrics.store import Store

SHAPE = (1, 4, 6)
SMALL = 0.1  # keeps standard normal latents within the range of images


def _shrink(x: Tensor) -> Tensor:
    return (SMALL * x).clamp(-1, 1)


def _bend(x: Tensor) -> Tensor:
    return torch.tanh(x + 0.5 * x.roll(1, dims=-1))


def _pair(rows: int = 5, *, radius: float | None = None) -> tuple[Tensor, Tensor]:
    a, b = (draw_latents((24,), 0, rows, seed=seed, dtype=torch.float64) for seed in (0, 1))
    return (a, b) if radius is None else tuple(radius * v / v.norm(dim=1, keepdim=True) for v in (a, b))


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos(torch.nn.functional.cosine_similarity(a, b))


@pytest.mark.parametrize("epsilon", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("t", [0.0, 0.4])
def test_a_scaled_isometry_has_the_chord_of_the_arc(t: float, epsilon: float) -> None:
    """For G = c·Q on a sphere of radius r: (2 c r sin(θε/2) / ε)², which tends to (c r θ)²."""
    a, b = _pair(radius=4.9)
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    measured = path_length(lambda x: 0.3 * x @ rotation, squared_l2, a, b, t, epsilon)
    expected = (2 * 0.3 * 4.9 * torch.sin(_angle(a, b) * epsilon / 2) / epsilon) ** 2
    torch.testing.assert_close(measured, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(measured, (0.3 * 4.9 * _angle(a, b)) ** 2, rtol=epsilon**2, atol=0)


def test_a_linear_map_has_the_squared_speed_of_the_path() -> None:
    """‖A dx/dt‖² with the derivative of slerp, radius and all, by forward differentiation."""
    a, b = _pair()
    matrix, t = torch.randn(24, 7, dtype=torch.float64), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    _, velocity = torch.func.jvp(lambda t: slerp(a, b, t), (t,), (torch.ones_like(t),))
    speed = (velocity @ matrix).square().sum(dim=1)
    errors = []
    for epsilon in (1e-2, 1e-3):  # at the middle of the step the error is of second order
        measured = path_length(lambda x: x @ matrix, squared_l2, a, b, t - epsilon / 2, epsilon)
        errors.append(((measured - speed) / speed).abs().max().item())
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 50


def test_the_power_is_that_of_epsilon() -> None:
    a, b = _pair()
    one, two = (path_length(_shrink, squared_l2, a, b, 0.2, 1e-2, power=power) for power in (1, 2))
    torch.testing.assert_close(two, one / 1e-2)


def test_with_one_over_epsilon_the_length_vanishes_with_the_step() -> None:
    a, b = _pair()
    lengths = [path_length(_shrink, squared_l2, a, b, 0.2, e, power=1).mean().item() for e in (1e-2, 1e-3)]
    assert lengths[1] == pytest.approx(lengths[0] / 10, rel=1e-2)


def test_float32_points_are_those_of_float64_rounded_once() -> None:
    """At ε = 10⁻⁴ positions in float32 would be wrong by up to 6e-4 of the step."""
    a, b = (v.float() for v in _pair(50))
    t = torch.rand(50, dtype=torch.float64)
    measured = path_length(lambda x: x.double(), squared_l2, a, b, t, 1e-4)
    exact = path_length(lambda x: x, squared_l2, a.double(), b.double(), t, 1e-4)
    torch.testing.assert_close(measured, exact, rtol=2e-3, atol=0)
    assert ((measured / exact).mean() - 1).abs() < 3e-4


def _naive_distances(generate: Callable, distance: Callable, count: int, epsilon: float, *, seed: int) -> np.ndarray:
    """One pair at a time, as Karras et al. describe it."""
    found = []
    for i in range(count):
        a, b = (draw_latents(SHAPE, k, k + 1, seed=seed, stream="pairs").double() for k in (2 * i, 2 * i + 1))
        t = torch.rand((), generator=number_generator(seed, "positions", i), dtype=torch.float64)
        images = [generate(slerp(a, b, position).float()) for position in (t, t + epsilon)]
        found.append(distance(*images).item())
    return np.array(found)


@pytest.mark.parametrize("percentiles", [(1, 99), (10, 75.5), None])
@pytest.mark.parametrize("power", [1, 2])
def test_the_driver_equals_a_plain_transcription(percentiles: tuple | None, power: int) -> None:
    measured = perceptual_path_length(
        _bend, SHAPE, squared_l2, num_pairs=130, epsilon=0.01, power=power, percentiles=percentiles, seed=3
    )
    speed = _naive_distances(_bend, squared_l2, 130, 0.01, seed=3) / 0.01**power
    kept = np.sort(speed)
    if percentiles:
        first, last = (129 * p / 100 for p in percentiles)
        kept = kept[math.floor(first) : math.ceil(last) + 1]
    assert measured.value == pytest.approx(kept.mean(), rel=1e-5)
    assert measured.details["unfiltered"] == pytest.approx(speed.mean(), rel=1e-5)
    left_out = [percentile_mean(np.delete(speed, np.arange(g, 130, 20)), percentiles) for g in range(20)]
    np.testing.assert_allclose(measured.replicates, left_out, rtol=1e-5)
    assert measured.interval[0] < measured.value < measured.interval[1]
    assert (measured.n, measured.unit, measured.seed) == (130, "pairs", 3)
    assert measured.protocol == {
        "distance": "squared_l2",
        "epsilon": 0.01,
        "power": power,
        "mode": "full",
        "percentiles": None if percentiles is None else list(percentiles),
        "path": "slerp with radius",
    }


def test_the_driver_finds_the_closed_form() -> None:
    """E‖c dx/dt‖² = c² E[ρ²θ² + (‖b‖ − ‖a‖)²], with ρ the radius at t."""
    measured = perceptual_path_length(_shrink, SHAPE, squared_l2, num_pairs=400, epsilon=1e-3, percentiles=None)
    ends = draw_latents(SHAPE, 0, 800, seed=0, stream="pairs").double().flatten(1)
    a, b = ends[::2], ends[1::2]
    t = torch.tensor(
        [torch.rand((), generator=number_generator(0, "positions", i), dtype=torch.float64) for i in range(400)]
    )
    radius = (1 - t) * a.norm(dim=1) + t * b.norm(dim=1)
    speed = (radius * _angle(a, b)) ** 2 + (b.norm(dim=1) - a.norm(dim=1)) ** 2
    assert measured.value == pytest.approx(SMALL**2 * speed.mean().item(), rel=2e-3)


def test_the_mode_end_starts_at_the_first_latent() -> None:
    starts = []
    path_distances(
        lambda x: starts.append(x) or _shrink(x), SHAPE, {"l2": squared_l2}, num_pairs=3, mode="end", epsilon=0.1
    )
    assert torch.equal(starts[0], draw_latents(SHAPE, 0, 6, seed=0, stream="pairs")[::2])
    modes = [perceptual_path_length(_bend, SHAPE, squared_l2, num_pairs=40, mode=m).value for m in ("full", "end")]
    assert modes[0] != modes[1]


def test_chunks_change_nothing() -> None:
    found = [path_distances(_bend, SHAPE, {"l2": squared_l2}, num_pairs=50, batch_size=n)["l2"] for n in (1, 7, 64)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(path_distances(_bend, SHAPE, {"l2": squared_l2}, num_pairs=9)["l2"], found[0][:9])


def test_distances_share_the_images_and_the_store_serves_every_power_and_filter(tmp_path: Path) -> None:
    def l1(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).sum(dim=1)

    calls: list[int] = []

    def generate(x: Tensor) -> Tensor:
        calls.append(len(x))
        return _shrink(x)

    both = {"l2": squared_l2, "l1": l1}
    measure = partial(path_lengths, generate, SHAPE, both, num_pairs=40, batch_size=20, store=Store(tmp_path))
    first = measure()
    assert calls == [20] * 4
    plain = measure(power=1, percentiles=None)
    assert len(calls) == 4
    assert plain["l2"].value == pytest.approx(first["l2"].value * 1e-4)
    assert first["l1"].protocol["distance"] == "l1"
    assert measure()["l1"].to_json() == first["l1"].to_json()
    alone = perceptual_path_length(_shrink, SHAPE, l1, num_pairs=40, batch_size=20)
    assert alone.value == first["l1"].value
    measure(epsilon=1e-3)
    assert len(calls) == 8
    measure(mode="end")
    assert len(calls) == 12


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("sweep", [False, True])
def test_a_killed_measurement_goes_on(tmp_path: Path, sweep: bool) -> None:
    calls: list[int] = []
    per_chunk = 5 if sweep else 2

    def generate(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == per_chunk + 1:
            raise _Killed
        return _bend(x)

    def run(generate: Callable, store: Store | None) -> dict:
        shared = {"num_pairs": 40, "batch_size": 10, "store": store}
        if sweep:
            return epsilon_sweep(generate, SHAPE, {"l2": squared_l2}, [1e-2], **shared)
        return perceptual_path_length(generate, SHAPE, squared_l2, **shared).to_json()

    with pytest.raises(_Killed):
        run(generate, Store(tmp_path))
    resumed = run(generate, Store(tmp_path))
    assert len(calls) == 1 + 4 * per_chunk  # the call that was killed, and nothing else, is made again
    assert run(generate, Store(tmp_path)) == resumed
    assert len(calls) == 1 + 4 * per_chunk
    assert run(_bend, None) == resumed


def test_ambient_autocast_changes_nothing() -> None:
    layer = torch.nn.Linear(6, 6)

    def generate(x: Tensor) -> Tensor:
        return layer(x).tanh()

    measure = partial(perceptual_path_length, generate, SHAPE, squared_l2, num_pairs=40)
    expected = measure().value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure().value == expected
        assert layer(torch.zeros(1, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize("percentiles", [(1, 99), (0, 100), (25, 50)])
@pytest.mark.parametrize("count", [1, 2, 100, 101, 1000])
def test_the_filter_is_that_of_karras(percentiles: tuple, count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    kept = np.sort(values)
    first, last = (math.floor((count - 1) * percentiles[0] / 100), math.ceil((count - 1) * percentiles[1] / 100))
    assert percentile_mean(values, percentiles) == pytest.approx(kept[first : last + 1].mean())


def test_up_to_a_hundred_pairs_the_filter_removes_nothing() -> None:
    for count, same in ((100, True), (101, False)):
        values = np.random.default_rng(0).lognormal(size=count)
        assert math.isclose(percentile_mean(values), values.mean(), rel_tol=1e-12) is same


def test_the_interval_covers_the_mean_of_the_estimator() -> None:
    """600 experiments with 200 skewed values each; 95 % coverage, give or take three standard errors."""
    rng, groups = np.random.default_rng(0), np.arange(200) % 20
    experiments = rng.lognormal(sigma=0.7, size=(600, 200))
    truth = np.mean([percentile_mean(values) for values in experiments])
    covered = 0
    for values in experiments:
        replicates = [percentile_mean(values[groups != g]) for g in range(20)]
        fields = {"n": 200, "unit": "pairs", "seed": 0, "protocol": {}}
        measured = Measurement.from_jackknife("ppl", percentile_mean(values), np.array(replicates), **fields)
        covered += measured.interval[0] <= truth <= measured.interval[1]
    assert abs(covered / 600 - 0.95) < 3 * (0.95 * 0.05 / 600) ** 0.5


def test_two_models_compare_in_pairs() -> None:
    """Twice the images make four times the length, on the very same pairs."""
    one, two = (
        perceptual_path_length(lambda x, c=c: c * _shrink(x) / 2, SHAPE, squared_l2, num_pairs=200) for c in (1, 2)
    )
    difference = compare(two, one)
    assert difference.value == pytest.approx(3 * one.value, rel=1e-4)
    assert difference.is_outside_noise


@pytest.fixture(scope="module")
def faces() -> Generator:
    return Generator(load_pipeline("faces32/base"), num_steps=2)


def test_lpips_of_a_real_model_pair_by_pair(faces: Generator) -> None:
    """The driver's batches give what one pair at a time gives, up to rounding, on AlexNet and VGG from one decode."""
    distances = {net: perceptual_distance(net) for net in ("alex", "vgg")}
    found = path_distances(faces, faces.shape, distances, num_pairs=2, epsilon=1e-2, batch_size=2)
    ends = draw_latents(faces.shape, 0, 4, seed=0, stream="pairs")
    for pair in range(2):
        t = torch.rand((), generator=number_generator(0, "positions", pair), dtype=torch.float64)
        a, b = ends[2 * pair : 2 * pair + 1], ends[2 * pair + 1 : 2 * pair + 2]
        with torch.no_grad():
            images = [faces(slerp(a.double(), b.double(), tau).float()) for tau in (t, t + 1e-2)]
            for net, distance in distances.items():
                assert found[net][pair] == pytest.approx(distance(*images).item(), rel=1e-3)


def test_the_sweep_finds_a_plateau_above_the_floor_of_rounding(faces: Generator) -> None:
    sweep = epsilon_sweep(faces, faces.shape, {"l2": squared_l2}, [1e-3, 1e-4, 1e-6], num_pairs=6)["l2"]
    value, floor = np.array(sweep["value"]), np.array(sweep["floor"])
    assert value[1] == pytest.approx(value[0], rel=0.05)
    assert floor[1] < 0.02 * value[1]
    assert floor[2] > 0.05 * value[1]  # at 1e-6 rounding counts
    np.testing.assert_allclose(floor, max(sweep["noise"].values()) / np.array([1e-3, 1e-4, 1e-6]) ** 2)
    assert sweep["noise"]["last bit"] > 0  # whether sums change in other company is up to the machine's kernels
    same = path_distances(faces, faces.shape, {"l2": squared_l2}, num_pairs=6, epsilon=1e-4)["l2"]
    assert value[1] == pytest.approx(same.mean() / 1e-8, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_company_changes_who_is_decoded_together_and_nothing_else(rows: int) -> None:
    sizes: list[int] = []

    def generate(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return _shrink(x)

    x = draw_latents(SHAPE, 0, rows, seed=0)
    assert torch.equal(decode_in_other_company(generate, x), _shrink(x))
    assert rows not in sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 39}, "at least 40, two for each of the 20 groups .* got 39"),
        ({"epsilon": 0}, r"epsilon must be in \(0, 1\].*got 0"),
        ({"epsilon": -1e-4}, "got -0.0001"),
        ({"epsilon": 1.5}, "got 1.5"),
        ({"epsilon": math.nan}, "got nan"),
        ({"epsilon": 1e-12}, "large enough to move a latent in torch.float32; got 1e-12"),
        ({"power": 3}, "power must be 1 or 2; got 3"),
        ({"mode": "middle"}, "full, end; got 'middle'"),
        ({"percentiles": (99, 1)}, r"low < high ≤ 100; got \(99, 1\)"),
        ({"percentiles": (1, 101)}, "got"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perceptual_path_length(_shrink, SHAPE, squared_l2, **{"num_pairs": 40, **options})


@pytest.mark.parametrize(
    ("generate", "error", "message"),
    [
        (lambda x: x[:1] * SMALL, ValueError, r"must give images \(32, 1 or 3, H, W\); got shape \(1, 1, 4, 6\)"),
        (lambda x: x.flatten(1) * SMALL, ValueError, r"got shape \(32, 24\)"),
        (lambda x: x * torch.nan, ValueError, "768 NaN or infinite"),
        (lambda x: 2 * x, ValueError, r"in \[−1, 1\]; got values"),
        (lambda x: _shrink(x).half(), TypeError, "float32 or better.*got torch.float16"),
        (lambda x: _shrink(x).bfloat16(), TypeError, "got torch.bfloat16"),
        (lambda x: [x], TypeError, "got list"),
    ],
)
def test_what_makes_no_images_is_refused(generate: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        perceptual_path_length(generate, SHAPE, squared_l2, num_pairs=40)
    with pytest.raises(error, match=message):
        epsilon_sweep(generate, SHAPE, {"l2": squared_l2}, [1e-2], num_pairs=40)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).sum()


def _infinite(a: Tensor, b: Tensor) -> Tensor:
    return torch.full((len(a),), torch.inf)


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ({}, "at least one distance"),
        ({"mine": lambda a, b: squared_l2(a, b)}, "'mine' must be a named function or have a `protocol`"),
        ({"sum": _sum}, r"one number a row, \(32,\); got shape \(\)"),
        ({"infinite": _infinite}, "must be finite; got 32 NaN or infinite"),
    ],
)
def test_what_is_no_distance_is_refused(distances: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path_lengths(_shrink, SHAPE, distances, num_pairs=40)


def test_latents_without_an_angle_are_refused() -> None:
    a, b = _pair()
    for end in (a, 1.3 * a):
        same = b.clone()
        same[3] = end[3]
        with pytest.raises(ValueError, match="pair 3 has no angle between its latents"):
            path_length(_shrink, squared_l2, a, same, 0.3, 1e-4)
    path_length(_shrink, squared_l2, a, -a, 0.3, 1e-4)  # antipodal latents have one, though many arcs


@pytest.mark.parametrize(
    ("epsilons", "options", "message"),
    [
        ([], {}, "at least one epsilon"),
        ([1e-2], {"num_pairs": 1}, "at least 2 pairs.*num_pairs=1"),
        ([1e-2, 0], {}, r"\(0, 1\].*got 0"),
        ([1e-2], {"mode": "middle"}, "full, end"),
    ],
)
def test_bad_sweeps_are_refused(epsilons: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epsilon_sweep(_shrink, SHAPE, {"l2": squared_l2}, epsilons, **{"num_pairs": 4, **options})
