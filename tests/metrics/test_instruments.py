"""What compares targets of the term sees an effect built to be there, and none where none is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma

from isodiff.datasets import render, sample_factors
from isodiff.metrics import compare, effects, to_uint8
from isodiff.metrics.jacobians import log_anisotropy
from isodiff.metrics.truth import diversity

N, RANK, PROBES = 60, 10, 16


def _points(count: int = 48) -> torch.Tensor:
    """Points whose first ten coordinates are 0, so that these span directions of the sphere's tangent space."""
    x = torch.randn(count, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([torch.zeros(count, RANK, dtype=torch.float64), x[:, RANK:]], 1)


@pytest.mark.parametrize("sigma", [torch.ones(RANK), torch.linspace(0.2, 2, RANK)], ids=["isometry", "other"])
def test_a_map_of_known_rank_has_its_known_anisotropy(sigma: torch.Tensor) -> None:
    """The isometry is the floor: log(rK/2) − ψ(rK/2) is all that K probes add to 0."""
    sigma = sigma.double()
    found = log_anisotropy(lambda x: 3 * x[:, :RANK] * sigma, _points(), rank=RANK, num_probes=PROBES)
    expected = (RANK * (sigma**4).sum() / (sigma**2).sum() ** 2).log().item()
    bias = np.log(RANK * PROBES / 2) - digamma(RANK * PROBES / 2) if expected == 0 else 0
    assert found.value == pytest.approx(expected + bias, abs=4 * found.details["standard_error"])
    assert found.details["standard_error"] < 0.05


def test_pairs_see_a_few_per_cent_and_a_scale_alone_is_no_difference() -> None:
    sigma = torch.linspace(0.5, 1.5, RANK, dtype=torch.float64)
    first, again, flatter = (
        log_anisotropy(lambda x, s=s: x[:, :RANK] * s, _points(32), rank=RANK) for s in (sigma, 5 * sigma, sigma**0.9)
    )
    assert compare(again, first).value == pytest.approx(0, abs=1e-9)
    low, high = compare(flatter, first).interval
    exact = [np.log((s**4).sum() / (s**2).sum() ** 2) for s in (sigma**0.9, sigma)]
    assert low < exact[0] - exact[1] < high < 0


@pytest.mark.parametrize("width", [1.0, 0.7])
def test_faces_of_fewer_kinds_spread_less(width: float) -> None:
    """Faces of the data spread by 1; of those drawn from seven tenths of each factor's range by 0.7."""
    factors = width * sample_factors(128, generator=torch.Generator().manual_seed(1))
    found = diversity(to_uint8(render(factors, 16)).numpy())
    assert found.interval[0] < width < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.2


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
