"""Initial paths: the named curves, equal spacing, and walks over samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isodiff.geometry import graph_path, initial_path, lerp, resample, slerp

from .tensors import noise, refusals


@pytest.mark.parametrize(("name", "curve"), [("lerp", lerp), ("slerp", slerp)])
def test_named_paths_are_the_curves_of_the_sphere_module(name: str, curve: object) -> None:
    a, b = noise(2, 3, 2, 2)
    path = initial_path(name, a, b, 5)
    torch.testing.assert_close(path, torch.stack([curve(a, b, i / 5) for i in range(6)], 1), rtol=0, atol=1e-15)
    assert torch.equal(path[:, [0, -1]], torch.stack([a, b], 1))


def test_a_given_path_is_taken_as_it_is_but_for_the_rounding_of_its_ends() -> None:
    a, b = noise(2, 3, 2)
    given = initial_path("lerp", a, b, 4) + torch.tensor([0, 1, 1, 1, 0], dtype=torch.float64)[:, None]
    path = initial_path(given.float(), a, b, 4)
    assert path.dtype == torch.float64
    assert torch.equal(path[:, 1:-1], given[:, 1:-1].float().double())
    with pytest.raises(ValueError, match=r"initial must begin at a and end at b, got ends up to 1 away"):
        initial_path(given + torch.tensor([1.0, 0.0]), a, b, 4)


@given(st.integers(1, 30), st.integers(0, 2**31))
def test_resampling_a_straight_line_spaces_it_equally_wherever_its_nodes_were(num_segments: int, seed: int) -> None:
    a, b = noise(2, 3, 4, seed=seed)
    shares = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(dim=1)[0]
    shares[:, 0], shares[:, -1] = 0, 1
    path = resample(a[:, None] + shares[..., None] * (b - a)[:, None], num_segments)
    expected = torch.stack([lerp(a, b, i / num_segments) for i in range(num_segments + 1)], 1)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-12)


def test_resampling_steps_over_repeated_nodes() -> None:
    path = torch.tensor([[[0.0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [3, 0], [3, 0]]])
    torch.testing.assert_close(resample(path, 3), torch.tensor([[[0.0, 0], [1, 0], [2, 0], [3, 0]]]))


def test_the_graph_path_is_the_shortest_one_of_all_in_equal_steps() -> None:
    """On three samples, by hand: 0 → (1, 0) → 2 is 2 long, 0 → (1, 1) → 2 is 2√2 long, and 0 → 2 is no edge."""
    ends = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    samples = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 5.0]])  # one of them twice
    path = graph_path(ends, ends.flip(0), samples, 4, num_neighbours=2)
    expected = torch.tensor([[0.0, 0], [0.5, 0], [1, 0], [1.5, 0], [2, 0]])
    torch.testing.assert_close(path, torch.stack([expected, expected.flip(0)]))


def test_the_graph_path_weighs_edges_by_length_and_keeps_its_ends_to_the_last_bit() -> None:
    """Over (1.5, 1.2) there are two edges of 1.92 each; the three along the line are shorter together."""
    samples = torch.tensor([[1.0, 0.1], [2.0, 0.1], [1.5, 1.2]]) + 0.1
    a, b = torch.tensor([[[0.1, 0.1]], [[3.1, 0.1]]])
    path = graph_path(a, b, samples, 7, num_neighbours=2)
    torch.testing.assert_close(path, resample(torch.cat([a, samples[:2], b])[None], 7))
    assert torch.equal(path[:, 0], a)
    assert torch.equal(path[:, -1], b)
    assert torch.equal(graph_path(samples[:1], b, samples, 7, num_neighbours=2)[:, 0], samples[:1]), "an end twice"


A, B = noise(2, 3, 2)
NEAR = noise(20, 2) / 100
test_bad_paths_are_refused = refusals(
    (lambda: initial_path("geodesic", A, B, 4), r"one of \('slerp', 'lerp'\) or a path, got 'geodesic'"),
    (lambda: initial_path(noise(3, 4, 2), A, B, 4), r"initial must have shape \(3, 5, 2\), got \(3, 4, 2\)"),
    (lambda: initial_path("lerp", A, B[:2], 4), "b must have the shape of a"),
    (lambda: resample(torch.ones(1, 4, 2), 3), "path must have a positive length"),
    (lambda: graph_path(A, B, noise(5, 3), 4), r"rows of shape \(2,\), got \(3,\)"),
    (lambda: graph_path(A, B, noise(5, 2), 4, num_neighbours=6), "between 1 and 5, .* distinct samples; got 6"),
    (lambda: graph_path(A / 99, 9 + B / 99, torch.cat([NEAR, 9 + NEAR]), 4, num_neighbours=3), "a and b unconnected"),
)
