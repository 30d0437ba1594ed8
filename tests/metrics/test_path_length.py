"""Path lengths in closed form, against a plain transcription, and what does not count as one."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.geometry import slerp
from isodiff.metrics.generator import draw_latents, number_generator
from isodiff.metrics.measure import cached
from isodiff.metrics.path_length import path_lengths, path_speed, percentile_mean, squared_l2
from isodiff.metrics.path_length import perceptual_path_length as ppl

from ..geometry.tensors import noise, refusals

SHAPE = (1, 4, 6)
SMALL = 0.1  # keeps standard normal latents within the range of images


def _shrink(x: Tensor) -> Tensor:
    return (SMALL * x).clamp(-1, 1)


def _bend(x: Tensor) -> Tensor:
    return torch.tanh(x + 0.5 * x.roll(1, dims=-1))


@pytest.mark.parametrize("epsilon", [0.3, 1e-4])
def test_a_scaled_isometry_has_the_chord_of_the_arc(epsilon: float) -> None:
    """For G = c·Q on a sphere of radius r: (2 c r sin(θε/2) / ε)², which tends to (c r θ)²."""
    a, b = (4.9 * v / v.norm(dim=1, keepdim=True) for v in noise(2, 5, 24))
    rotation = torch.linalg.qr(noise(24, 24, seed=1))[0]
    measured, with_power_one = (
        path_speed(lambda x: 0.3 * x @ rotation, squared_l2, a, b, 0.4, epsilon, power=power) for power in (2, 1)
    )
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b))
    expected = (2 * 0.3 * 4.9 * torch.sin(angle * epsilon / 2) / epsilon) ** 2
    torch.testing.assert_close(measured, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(measured, (0.3 * 4.9 * angle) ** 2, rtol=epsilon**2, atol=0)
    torch.testing.assert_close(with_power_one, epsilon * measured)  # which vanishes with ε


def test_float32_points_are_those_of_float64_rounded_once() -> None:
    """At ε = 10⁻⁴ positions in float32 would be wrong by up to 6e-4 of the step."""
    a, b = noise(2, 50, 24).float()
    t = torch.rand(50, dtype=torch.float64)
    measured = path_speed(lambda x: x.double(), squared_l2, a, b, t, 1e-4)
    exact = path_speed(lambda x: x, squared_l2, a.double(), b.double(), t, 1e-4)
    torch.testing.assert_close(measured, exact, rtol=2e-3, atol=0)
    assert ((measured / exact).mean() - 1).abs() < 3e-4


def _naive_distances(generate: Callable, distance: Callable, count: int, epsilon: float, *, seed: int) -> np.ndarray:
    """One pair at a time, as Karras et al. describe it."""
    found, shape = [], getattr(generate, "shape", SHAPE)
    for i in range(count):
        a, b = (draw_latents(shape, k, k + 1, seed=seed, stream="pairs").double() for k in (2 * i, 2 * i + 1))
        t = torch.rand((), generator=number_generator(seed, "positions", i), dtype=torch.float64)
        images = [generate(slerp(a, b, position).float()) for position in (t, t + epsilon)]
        found.append(distance(*images).item())
    return np.array(found)


def test_the_driver_equals_a_plain_transcription() -> None:
    measured = ppl(_bend, SHAPE, squared_l2, num_pairs=130, epsilon=0.01, seed=3)
    speed = _naive_distances(_bend, squared_l2, 130, 0.01, seed=3) / 0.01**2
    assert measured.value == pytest.approx(np.sort(speed)[1:129].mean(), rel=1e-5)
    assert measured.details["unfiltered"] == pytest.approx(speed.mean(), rel=1e-5)
    left_out = [percentile_mean(np.delete(speed, np.arange(g, 130, 20))) for g in range(20)]
    np.testing.assert_allclose(measured.replicates, left_out, rtol=1e-5)
    assert (measured.n, measured.unit, measured.seed) == (130, "pairs", 3)
    protocol = {"distance": "squared_l2", "epsilon": 0.01, "power": 2, "mode": "full", "percentiles": [1, 99]}
    assert measured.protocol == {**protocol, "path": "slerp with radius"}


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).sum(dim=1)


def test_distances_share_the_images_and_what_is_kept_serves_again(tmp_path: Path) -> None:
    calls: list[int] = []
    generate = lambda x: calls.append(len(x)) or _shrink(x)  # noqa: E731
    measure = partial(path_lengths, generate, SHAPE, {"l2": squared_l2, "l1": l1}, num_pairs=40, batch_size=20)
    with cached(tmp_path):
        first = measure()
        assert measure()["l1"].to_json() == first["l1"].to_json()
        assert calls == [20] * 4
        measure(epsilon=1e-3)
        measure(mode="end")
        assert len(calls) == 12
    assert ppl(_shrink, SHAPE, l1, num_pairs=40, batch_size=20).value == first["l1"].value


def test_the_mean_log_of_pairs_shows_a_factor_exactly_and_none_where_images_do_not_move() -> None:
    measure = partial(path_lengths, shape=SHAPE, distances={"l2": squared_l2}, num_pairs=40, batch_size=20)
    slow, fast = (measure(lambda x, c=c: c * _shrink(x))["log_l2"] for c in (0.5, 1.0))
    assert fast.value - slow.value == pytest.approx(2 * math.log(2), abs=1e-3)
    assert fast.replicates.shape == (40,)
    assert measure(lambda x: 0 * x).keys() == {"l2"}


def test_ambient_autocast_changes_nothing() -> None:
    layer = torch.nn.Linear(6, 6)
    measure = partial(ppl, lambda x: layer(x).tanh(), SHAPE, squared_l2, num_pairs=40)
    expected = measure().value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure().value == expected


@pytest.mark.parametrize("count", [1, 100, 101])
def test_the_filter_is_that_of_karras(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    kept = np.sort(values)[math.floor((count - 1) / 100) : math.ceil((count - 1) * 99 / 100) + 1]
    assert percentile_mean(values) == pytest.approx(kept.mean())
    assert math.isclose(percentile_mean(values), values.mean(), rel_tol=1e-12) is (count <= 100)


def _infinite(a: Tensor, _: Tensor) -> Tensor:
    return torch.full((len(a),), torch.inf)


def _of(generate: Callable = _shrink, distance: Callable = l1, num_pairs: int = 40, **options: float) -> object:
    return ppl(generate, SHAPE, distance, num_pairs=num_pairs, **options)


A, B = torch.eye(3).split([1, 2])
test_other_input_is_refused = refusals(
    (lambda: _of(num_pairs=39), "at least 40, two for each of .*20 groups; got 39"),
    (lambda: _of(epsilon=0), r"epsilon must be in \(0, 1\].*got 0"),
    (lambda: _of(epsilon=1e-12), "large enough to move a latent in torch.float32; got 1e-12"),
    (lambda: _of(lambda x: x[:1] * SMALL), r"images \(32, 1 or 3, H, W\); got shape \(1, 1, 4, 6\)"),
    (lambda: _of(lambda x: _shrink(x).half()), "float32 or better.*got torch.float16"),
    (lambda: _of(distance=lambda a, b: a), "must be a named function or have a `protocol`"),
    (lambda: _of(distance=_infinite), "must be finite; got 32 NaN or infinite"),
    (lambda: path_speed(_shrink, l1, B, B, 0.3, 1e-4, power=3), "power must be 1 or 2; got 3"),
    (lambda: path_speed(_shrink, l1, B, torch.cat([A, B[1:]]), 0.3, 1e-4), "pair 1 has no angle"),
    errors=(ValueError, TypeError),
)
