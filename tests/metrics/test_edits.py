"""Effects of moves on factors, and DDIM inversion: closed forms, noise that must not flatter, real models."""

from collections.abc import Callable
from functools import cache
from math import erfc
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from isodiff.datasets.faces import render
from isodiff.diffusion import invert, load_pipeline
from isodiff.editing import local_basis
from isodiff.geometry import move
from isodiff.metrics import edits
from isodiff.metrics.edits import Effects, effects, excess_kurtosis, neighbour_correlation, norm_ratio
from isodiff.metrics.generator import draw_latents
from isodiff.metrics.measure import Measurement, cached, content_digest
from isodiff.metrics.path_length import squared_l2

from ..geometry.tensors import refusals

GAMMAS = np.array([-4.0, -3, -2, -1, 0, 1, 2, 3, 4])
MOVES = (-4.0, -2.0, 0.0, 2.0, 4.0)
IMAGES = draw_latents((1, 16, 16), 0, 4, seed=1).clamp(-1, 1)
MIX = 0.06 * torch.randn(256, 10, generator=torch.Generator().manual_seed(5)) / 4


def known_factors(x_T: Tensor) -> Tensor:
    return (x_T.flatten(1) @ MIX).clamp(-0.95, 0.95)


def perfect(x_T: Tensor) -> Tensor:
    """Every image is a face, and its factors are a linear function of the latent."""
    return render(known_factors(x_T), 16)


@cache
def digits() -> DDPMPipeline:
    return load_pipeline("digits16/base")  # its bottleneck gives directions for faces that do not come from it


def measure(draw: Callable[[Tensor], Tensor] = perfect, **change: int) -> dict[str, Measurement]:
    generate = Mock(wraps=draw, scheduler=digits().scheduler, num_steps=2)
    sizes = {"k": 2, "gammas": MOVES, "num_latents": 3, "batch_size": 15} | change
    with pytest.MonkeyPatch.context() as patch:  # the facts are of moves along any directions, so they settle early
        patch.setattr(edits, "BASIS_TOLERANCE", 0.05)
        return edits.direction_effects(generate, digits().unet, **sizes)


@cache
def measured() -> dict[str, Measurement]:
    return measure()


def reconstruct(x: Tensor, **options: int) -> dict[str, Measurement]:
    distances = {"squared_l2": squared_l2}
    return edits.inversion_error(digits().unet, digits().scheduler, x, 3, distances=distances, **options)


def test_a_direction_of_one_factor_spills_nothing() -> None:
    slopes = np.array([[0, 0, 0, 0, 0.1], [-0.2, 0, 0, 0, 0], [0, 0, 0.05, 0, 0]])
    found = effects(slopes[:, None] * GAMMAS[:, None], GAMMAS)
    assert found.target.tolist() == [4, 0, 2]
    assert found.sign.tolist() == [1, -1, 1]
    assert np.allclose(found.share, 1)
    assert np.allclose(found.target_change, np.array([0.1, 0.2, 0.05]) * 3.5 / 2)  # mean of 3 and 4, range 2
    assert np.allclose(found.other_change, 0)
    assert found.monotone.all()
    assert np.allclose(found.correlation, 1)


def test_what_comes_back_on_both_sides_is_spill_over_and_no_target() -> None:
    found = effects(np.stack([0.05 * GAMMAS, 0.1 * np.abs(GAMMAS)], axis=1)[None], GAMMAS)
    assert found.target.tolist() == [0]
    assert found.share == pytest.approx(1 / 3)


def test_spill_over_at_equal_change_does_not_depend_on_how_far_a_move_goes() -> None:
    """Others grow as the square of the move: the longer move spills more, at equal change both spill alike."""
    gammas = np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4])

    def moved(gain: float) -> np.ndarray:
        g = gain * gammas / 4
        return np.stack([np.stack([0.5 * g, *[0.3 * g**2 * np.sign(g)] * 4], axis=1)])

    short, long = (effects(moved(gain), gammas) for gain in (1.2, 1.4))
    assert short.reaches.all()
    assert long.reaches.all()
    assert long.share[0] < 0.97 * short.share[0]
    # change 0.25 g + 0.6 g² = 1 at g = 1.1
    g = (-0.25 + (0.25**2 + 4 * 0.6) ** 0.5) / 1.2
    assert [e.share_at_total[0] for e in (short, long)] == pytest.approx([0.25 * g] * 2, rel=0.02)


def test_noise_gets_the_share_of_chance_and_no_more() -> None:
    z = 0.02 * np.random.default_rng(0).standard_normal((5_000, 9, 10))
    found = effects(z, GAMMAS)
    assert abs(found.share.mean() - 1 / 10) < 4 * found.share.std() / len(z) ** 0.5
    assert abs(found.correlation.mean()) < 4 / (len(z) * 4) ** 0.5  # of 5 scored images: variance 1/4
    rise = erfc(0.05 / 0.02 / 2) / 2  # chance that one end lies above the other by more than the tolerance
    assert found.monotone.mean() < rise + 4 * (rise / len(z)) ** 0.5


def test_a_target_is_monotone_up_to_the_tolerance() -> None:
    rising = np.array([-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4])
    dip, deeper, turned = rising.copy(), rising.copy(), rising.copy()
    dip[7], deeper[7], turned[-1] = -0.04, -0.06, 0.1  # below the middle image, or back
    found = effects(np.stack([rising, -rising, dip, deeper, turned, rising / 10, rising / 20])[:, :, None], GAMMAS)
    assert found.monotone.tolist() == [True, True, True, False, False, True, False]  # the last rises by less


def test_rank_correlation_is_spearmans() -> None:
    z = np.random.default_rng(1).normal(size=(6, 9, 1)).round(1)  # with ties
    found, scored = effects(z, GAMMAS), [0, 1, 4, 7, 8]
    expected = [s * spearmanr(GAMMAS[scored], row[scored, 0]).statistic for s, row in zip(found.sign, z, strict=True)]
    assert np.allclose(found.correlation, expected)
    small_only = [0, 0, -1, -1, 0, 1, 1, 0, 0]  # chosen by the small moves, still on the large ones
    assert effects(np.stack([small_only, 0.1 * GAMMAS], axis=1)[None], GAMMAS).correlation.tolist() == [0]


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_neither_order_nor_the_sign_of_a_direction_matters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (5, 9, 4))
    rows, moves, factors = rng.permutation(5), rng.permutation(9), rng.permutation(4)
    found, turned = effects(z, GAMMAS), effects(z[:, ::-1], GAMMAS)
    moved = effects(z[rows][:, moves][:, :, factors], GAMMAS[moves])
    assert np.array_equal(factors[moved.target], found.target[rows])
    assert np.array_equal(turned.target, found.target)
    assert np.array_equal(turned.sign, -found.sign)
    for name in Effects._fields[2:]:
        assert np.allclose(getattr(moved, name), getattr(found, name)[rows])
        assert np.allclose(getattr(turned, name), getattr(found, name))


def test_measured_effects_are_those_of_the_factors_that_drew_the_faces() -> None:
    x_T = draw_latents((1, 16, 16), 0, 3, seed=0, stream="directions")
    truth = [
        effects(torch.stack([known_factors(move(x_T, d, g)) for g in MOVES], dim=1).numpy(), MOVES)
        for d in local_basis(digits().unet, x_T, 999, 2, tolerance=0.05).directions.unbind(1)
    ]
    true = dict(zip(Effects._fields, np.stack(truth, axis=2), strict=True))
    true |= {"target_share": true["share"], "spill_over": 1 - true["share"], "monotone_share": true["monotone"]}
    found = measured()
    for name in ("target_share", "spill_over", "target_change", "other_change", "monotone_share"):
        assert np.allclose(found[name].replicates, true[name].mean(axis=1), atol=2e-3)
        assert np.allclose(found[name].details["by_direction"]["value"], true[name].mean(axis=0), atol=2e-3)
    assert found["rank_correlation"].value == pytest.approx(1)  # factors are linear in γ, but for the arc's curve
    assert found["move_error"].value < 1e-6
    assert found["move_error"].protocol.items() >= {"t": 999, "num_steps": 2}.items()


def test_the_control_is_a_random_direction() -> None:
    """Through a linear map it has the share of the largest of ten normal magnitudes: 0.24, deviation 0.05 a draw."""
    control = measure(k=1, num_latents=6)["target_share"].details["control"]
    assert control["value"][0] == pytest.approx(0.24, abs=4 * 0.05 / 6**0.5)


def test_a_killed_measurement_goes_on_and_a_larger_sample_begins_with_a_smaller(tmp_path: Path) -> None:
    draw = Mock(wraps=perfect, side_effect=[DEFAULT, KeyboardInterrupt, DEFAULT, DEFAULT])
    with cached(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            measure(draw)
        resumed, fewer = measure(draw), measure(draw, num_latents=2)
    assert draw.call_count == 4  # one finished, one killed, and that one and the last
    for name, measurement in measured().items():
        assert np.array_equal(resumed[name].replicates, measurement.replicates)
        assert np.array_equal(fewer[name].replicates, measurement.replicates[:2])


def test_noise_has_the_claimed_mean_and_standard_deviation() -> None:
    noise, n = draw_latents((3, 32, 32), 0, 400, seed=0), 3 * 32 * 32
    laws = (norm_ratio, 1, 1 / (2 * n)), (neighbour_correlation, 0, 1 / (2 * n)), (excess_kurtosis, 0, 24 / n)
    for statistic, mean, variance in laws:
        assert abs(statistic(noise).mean() - mean) < 4 * variance**0.5 / 20
        assert statistic(noise).std() == pytest.approx(variance**0.5, rel=0.12)


def test_a_moving_average_has_its_known_correlation_and_a_laplace_law_its_kurtosis() -> None:
    """xⱼ = eⱼ + a eⱼ₊₁ has a lag-1 correlation of a/(1 + a²), here in one direction of the two."""
    e = draw_latents((1, 128, 129), 0, 20, seed=0).double()
    x = e[..., :-1] + 0.5 * e[..., 1:]
    for turned in (x, x.mT):
        assert neighbour_correlation(turned).mean() == pytest.approx(0.5 / 1.25 / 2, abs=2e-3)
    assert np.allclose(neighbour_correlation(torch.ones(2, 3, 8, 8)), 1)
    laplace = torch.from_numpy(np.random.default_rng(0).laplace(size=(20, 3, 64, 64)))
    assert excess_kurtosis(laplace).mean() == pytest.approx(3.0, abs=0.25)


def test_measured_is_what_inversion_gives_and_finished_batches_are_kept(tmp_path: Path) -> None:
    with cached(tmp_path):
        found, again = (reconstruct(IMAGES, batch_size=2, seed=1) for _ in range(2))
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    inversion = invert(digits().unet, digits().scheduler, IMAGES, 3)
    mse = (inversion.reconstruction.clamp(-1, 1) - IMAGES).square().flatten(1).mean(1).numpy()
    statistics = {"norm_ratio": norm_ratio, "correlation": neighbour_correlation, "kurtosis": excess_kurtosis}
    expected = {f"latent_{name}": statistic(inversion.latents) for name, statistic in statistics.items()}
    expected |= {"inversion_mse": mse, "inversion_squared_l2": 256 * mse}
    assert found.keys() == expected.keys()
    for name, measurement in found.items():
        assert np.allclose(measurement.replicates, expected[name], rtol=1e-3, atol=1e-4)
        assert np.array_equal(again[name].replicates, measurement.replicates)
    protocol = {"num_steps": 3, "refinements": 0, "clip_sample": True, "images": content_digest(IMAGES)}
    assert found["inversion_mse"].protocol.items() >= protocol.items()


Z = np.full((2, 1, 3), 0.1) * GAMMAS[:, None]
test_bad_input_is_refused = refusals(
    (lambda: effects(Z[:, :5], [-2, -1, 0, 1, 3]), "0 and the same two or more sizes to both sides"),
    (lambda: effects(Z[:, 1:], GAMMAS), r"shape \(n, 9, K\), one row a move; got \(2, 8, 3\)"),
    (lambda: effects(Z * [[[1]], [[0]]], GAMMAS), "those of latent 1 change none"),
    (lambda: measure(num_latents=1), "num_latents must be at least 2; got 1"),
    (lambda: measure(lambda x: perfect(0 * x)), "change the image, at latent 0 they do not"),
    (lambda: reconstruct(IMAGES[..., 1:]), r"shape \(n, 1, 16, 16\), n ≥ 2; got \(4, 1, 16, 15\)"),
    (lambda: excess_kurtosis(IMAGES * torch.nan), "must be finite; got 1024 NaN"),
    (lambda: neighbour_correlation(torch.cat([IMAGES, 0 * IMAGES])), "must not be zero; number 4"),
)
