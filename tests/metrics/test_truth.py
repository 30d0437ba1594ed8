"""Paths of known factors, angles of known spans, and maps whose leading directions are known."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion import build_unet
from isodiff.geometry import lerp, slerp
from isodiff.metrics import truth
from isodiff.metrics.generator import draw_latents, number_generator, to_uint8
from isodiff.metrics.truth import excess_variation, factor_path_length, straightness, tangent_space

from ..geometry.tensors import refusals

SHAPE = (12,)
MIX = 0.08 * torch.randn(12, 10, generator=torch.Generator().manual_seed(5))
SIDE = 16
PIXELS = 3 * SIDE**2
SCHEDULER = DDPMScheduler()
walk = partial(truth.path_truth, shape=SHAPE, num_pairs=3, num_points=5)

# paths that end one further on in every factor, so that each has a length
shapes = array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7)
paths = arrays(np.float64, shapes, elements=st.floats(-1, 1, allow_subnormal=False)).map(
    lambda path: np.concatenate([path, path[:, -1:] + 1], axis=1)
)


def linear_factors(x_T: Tensor) -> Tensor:
    return (x_T @ MIX).clamp(-0.95, 0.95)  # for the draws of these tests no clamp is at work


def perfect(x_T: Tensor) -> Tensor:
    return render(linear_factors(x_T), 32)


def test_a_straight_line_at_varying_speed_has_no_excess_and_straightness_one() -> None:
    line = np.linspace(0, 1, 9)[:, None] ** 2 * [[[0.9, -0.4, 0.0]]] + [-0.5, 0.3, 0.2]
    assert np.allclose(excess_variation(line), 0, atol=1e-12)
    assert np.allclose(straightness(line), 1, atol=1e-12)


def test_there_and_back_travels_the_way_twice() -> None:
    path = np.array([[[0.8, 0.0], [0.2, 0.1], [-0.4, 0.2], [0.2, 0.3], [0.8, 0.4]]])
    assert np.allclose(excess_variation(path), [[2.4, 0]])
    assert straightness(path) == pytest.approx(0.4 / (4 * np.hypot(0.6, 0.1)))


@pytest.mark.parametrize("angle", [0.3, np.pi])
def test_an_arc_of_a_circle_has_its_chord_over_its_length(angle: float) -> None:
    theta = np.linspace(0, angle, 2001)
    arc = 0.7 * np.stack([np.cos(theta), np.sin(theta)], axis=1)[None]
    assert straightness(arc)[0] == pytest.approx(2 * np.sin(angle / 2) / angle, rel=1e-6)
    assert factor_path_length(arc)[0] == pytest.approx((0.7 * angle) ** 2, rel=1e-6)
    assert excess_variation(arc)[0, 0] == pytest.approx(0, abs=1e-12)


def test_noise_of_the_factors_adds_at_every_step() -> None:
    """E|z₁ − z₂| = 2s/√π for independent errors, which is why the number of points belongs to the protocol."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((4000, 21, 1))
    expected = 19 * 2 * 0.01 / np.sqrt(np.pi)  # 20 steps, less the one that the ends are apart
    assert excess_variation(noise).mean() == pytest.approx(expected, rel=0.02)


@given(paths)
def test_excess_straightness_and_length_keep_their_bounds(path: np.ndarray) -> None:
    """Constant speed is the shortest way to travel; a detour goes out and comes back."""
    ends = path[:, [0, -1]]
    beyond = np.maximum(path.max(axis=1) - ends.max(axis=1), ends.min(axis=1) - path.min(axis=1))
    assert (excess_variation(path) >= 2 * beyond - 1e-12).all()
    assert ((straightness(path) >= 0) & (straightness(path) <= 1)).all()
    length = np.linalg.norm(np.diff(path, axis=1), axis=2).sum(axis=1)
    assert (factor_path_length(path) >= length**2 * (1 - 1e-9)).all()


@given(paths)
def test_neither_the_direction_of_time_nor_points_between_two_frames_matter(path: np.ndarray) -> None:
    refined = np.stack([path[:, :-1], (path[:, :-1] + path[:, 1:]) / 2], axis=2).reshape(len(path), -1, path.shape[2])
    refined = np.concatenate([refined, path[:, -1:]], axis=1)
    for measure in (excess_variation, straightness, factor_path_length):
        assert np.allclose(measure(path), measure(path[:, ::-1]), atol=1e-9)
        assert np.allclose(measure(path), measure(refined), atol=1e-9)


def test_great_arcs_are_measured_as_the_factors_that_made_them() -> None:
    measured = walk(perfect)
    ends = draw_latents(SHAPE, 0, 6, seed=0, stream="paths")
    points = [linear_factors(slerp(ends[::2], ends[1::2], t)) for t in (0, 0.25, 0.5, 0.75, 1)]
    z = torch.stack(points, dim=1).numpy()
    assert excess_variation(z).mean() > 0.01  # there is something to find
    assert np.allclose(measured["factor_excess"].replicates, excess_variation(z).mean(axis=1), atol=2e-3)
    assert np.allclose(measured["factor_straightness"].replicates, straightness(z), atol=1e-3)
    assert np.allclose(measured["factor_path_length"].replicates, factor_path_length(z), rtol=1e-2)
    assert measured["manifold_distance"].value < 1e-6
    assert measured["factor_excess"].details["floor"]["value"] < 1e-3
    by_points = measured["factor_excess"].details["by_points"]
    assert by_points["num_points"] == [5, 3]
    assert by_points["value"][1] == pytest.approx(excess_variation(z[:, ::2]).mean(), abs=2e-3)


def test_noise_is_found_as_distance_and_as_floor() -> None:
    """Pixel noise of a known size is the mean re-rendering error, less what ten factors fit away."""
    noise = 0.05 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    # short paths, so that errors of the fit turn factors back
    measured = walk(lambda x: (perfect(0.1 * x) + noise).clamp(-1, 1), num_pairs=2, num_points=4)
    distance = measured["manifold_distance"]
    assert distance.value == pytest.approx(0.05**2, rel=0.1)
    assert distance.details["floor"]["value"] == pytest.approx(distance.value, rel=0.1)
    assert 1e-3 < measured["factor_excess"].details["floor"]["value"] < 0.2


def test_batches_change_neither_paths_nor_their_floor() -> None:
    whole, rows = (walk(perfect, batch_size=size) for size in (64, 5))
    for name, measurement in whole.items():
        assert np.allclose(rows[name].replicates, measurement.replicates, rtol=1e-4, atol=1e-6)
        assert rows[name].details["floor"]["value"] == pytest.approx(measurement.details["floor"]["value"], rel=1e-3)


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_angles_are_the_singular_values_of_the_overlap_whatever_the_scales(seed: int, p: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 9, p)), rng.standard_normal((2, 9, q))
    overlap = np.swapaxes(np.linalg.qr(a)[0], 1, 2) @ np.linalg.qr(b)[0]
    expected = np.arccos(np.linalg.svd(overlap, compute_uv=False).clip(-1, 1))
    assert np.allclose(truth.principal_angles(a * 10.0 ** rng.integers(-6, 7, p), b), expected, atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1.0, np.pi / 2])
def test_two_lines_meet_at_their_angle(angle: float) -> None:
    a = np.array([[3.0], [0.0], [0.0]])
    b = -2 * np.array([[np.cos(angle)], [0.0], [np.sin(angle)]])
    assert truth.principal_angles(a, b)[0] == pytest.approx(angle, rel=1e-9, abs=1e-15)


def test_tangent_space_is_the_derivative_of_the_renderer(generator: torch.Generator) -> None:
    z = 0.9 * sample_factors(2, generator=generator, dtype=torch.float64)
    columns = tangent_space(z, SIDE)
    for index, shift in enumerate(1e-5 * torch.eye(len(FACTORS), dtype=z.dtype)):
        difference = (render(z + shift, SIDE) - render(z - shift, SIDE)).flatten(1) / 2e-5
        torch.testing.assert_close(columns[:, :, index], difference, rtol=1e-4, atol=1e-5)
    corners = torch.tensor([[-1.0] * 10, [1.0] * 10], dtype=torch.float64)
    assert (torch.linalg.matrix_rank(tangent_space(corners, SIDE)) == 10).all()


def test_a_decoder_that_renders_is_aligned(generator: torch.Generator) -> None:
    """The columns of its Jacobian are combinations of ∂render/∂z: one space, all angles zero."""
    mix = 0.03 * torch.randn(40, 10, generator=generator)
    measured = truth.decoder_alignment(lambda x: render((x @ mix).clamp(-1, 1), SIDE), (40,), num_latents=2)
    assert measured.value > 0.999
    assert max(measured.details["angles"]["value"]) < 2.5
    assert measured.details["error"] < 1e-6
    assert measured.details["chance"] == pytest.approx(10 / PIXELS)


def test_prescribed_directions_have_their_energy(generator: torch.Generator) -> None:
    """Of the two leading directions one lies in the tangent space, the other is orthogonal to it."""
    z = 0.5 * sample_factors(1, generator=generator)
    face = render(z, SIDE)
    basis = torch.linalg.qr(torch.cat([tangent_space(z, SIDE)[0], torch.randn(PIXELS, 1, generator=generator)], 1))[0]
    inside, outside = basis[:, 3], basis[:, 10]

    def plane(x: Tensor) -> Tensor:
        moved = 2e-6 * x[:, :1] * inside + 1e-6 * x[:, 1:2] * outside + 1e-9 * x[:, 2:3] * basis[:, 4]
        return face + moved.reshape(-1, 3, SIDE, SIDE)

    assert truth.decoder_alignment(plane, (400,), k=1, num_latents=2).value == pytest.approx(1, abs=2e-3)
    both = truth.decoder_alignment(plane, (400,), k=2, num_latents=2)
    assert both.value == pytest.approx(0.5, abs=2e-3)
    assert both.details["energy"]["value"] == pytest.approx([1, 0], abs=2e-3)
    assert both.details["angles"]["value"] == pytest.approx([0, 90], abs=3)


def test_an_encoder_that_sees_the_factors_only_is_aligned_and_one_that_sees_all_alike_at_chance() -> None:
    draws = [number_generator(0, "tangent faces", index) for index in range(2)]
    columns = tangent_space(torch.cat([sample_factors(1, generator=draw) for draw in draws]), SIDE)
    see = lambda x: torch.einsum("bnk,bn->bk", columns, x.flatten(1))  # noqa: E731
    for t in (0, 600):
        measured = truth.encoder_alignment(see, SCHEDULER, t, SIDE, num_faces=2)
        assert measured.value > 0.999
        assert measured.protocol["t"] == t
    measured = truth.encoder_alignment(lambda x: 2 * x, SCHEDULER, 300, SIDE, num_faces=8)
    assert measured.details["chance"] == pytest.approx(10 / (PIXELS - 1))
    assert measured.value == pytest.approx(10 / (PIXELS - 1), rel=0.2)


def test_batches_do_not_change_the_alignment(generator: torch.Generator) -> None:
    weights = torch.randn(PIXELS, 12, generator=generator)
    see = partial(truth.encoder_alignment, lambda x: x.flatten(1) @ weights, SCHEDULER, 100, SIDE, num_faces=3, k=3)
    assert np.allclose(see(batch_size=8).replicates, see(batch_size=1).replicates, rtol=1e-2)


@pytest.mark.parametrize("width", [1.0, 0.7])
def test_faces_of_fewer_kinds_spread_less(width: float) -> None:
    """Faces of the data spread by 1; of those drawn from seven tenths of each factor's range by 0.7."""
    factors = width * sample_factors(128, generator=torch.Generator().manual_seed(1))
    found = truth.diversity(to_uint8(render(factors, 16)).numpy())
    assert found.interval[0] < width < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2


E = np.eye(5)[:, :2]
encode = partial(truth.encoder_alignment, lambda x: x, SCHEDULER, resolution=SIDE, num_faces=2)
decode = partial(truth.decoder_alignment, lambda x: x, num_latents=2)
align = partial(truth.tangent_alignment, scheduler=SCHEDULER, num_latents=2, t=4, num_steps=2)
test_bad_input_is_refused = refusals(
    (lambda: straightness(E), r"got shape \(5, 2\)"),
    (lambda: factor_path_length([[[0.0], [np.nan]]]), "1 NaN"),
    (lambda: straightness([[[0.0], [1.0]], [[1.0], [1.0]]]), "path 1 has length zero"),
    (lambda: walk(lambda x: perfect(x)[:, :, :16]), r"square with 3 channels; got images of shape \(3, 16, 32\)"),
    (lambda: walk(lambda x: perfect(torch.zeros_like(x))), "path 0 begins and ends in the same image"),
    (lambda: walk(perfect, num_points=2), "num_points at least 3; got 3 and 2"),
    (lambda: walk(perfect, interpolate=lambda a, b, t: lerp(a, b, t)), "named function"),
    (lambda: truth.principal_angles(E, E * [1, 0]), "linearly independent"),
    (lambda: truth.principal_angles(E, E[:4]), r"one space; got shapes \(5, 2\) and \(4, 2\)"),
    (lambda: truth.principal_angles(E.T, E), r"got shape \(2, 5\)"),
    (lambda: truth.principal_angles(E, np.full((5, 2), np.nan)), "finite"),
    (lambda: align(build_unet("digits16")), r"\(1, 16, 16\)"),
    (lambda: decode((3, SIDE, SIDE), num_latents=1), "at least 2 latents are needed; got 1"),
    (lambda: decode((1, SIDE, SIDE)), r"got torch.float32 of shape \(2, 1, 16, 16\)"),
    (lambda: encode(t=1000), "integer steps 0 to 999; got 1000"),
    (lambda: encode(t=0, k=800), "k must be between 1 and 767"),
)
