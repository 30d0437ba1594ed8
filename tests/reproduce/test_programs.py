"""Experiments without a diffusion model: theory where there is one, and the same numbers for the same seed."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

from isodiff.diffusion import process
from isodiff.geometry import isometry
from isodiff.reproduce import programs
from isodiff.reproduce.experiments import PROFILES, Program, experiments
from isodiff.reproduce.programs import PROGRAMS, cost, shell, sphere, trace

from . import synthetic

SMALL = {
    "sphere": {"num_steps": 4, "batch_size": 8, "num_pairs": 50},
    "trace": {"num_repeats": 20, "size": 16, "doublings": 4},
    "shell": {"num_images": 8, "resolution": 16},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_tells_them_what_they_take(profile: str) -> None:
    told = {name: found for name, found in experiments(profile).items() if isinstance(found, Program)}
    assert {program.function for program in told.values()} == set(PROGRAMS)
    for program in told.values():
        bound = inspect.signature(PROGRAMS[program.function]).bind(0, **program.options)
        assert bound.arguments["seed"] == 0


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_decides_every_number(name: str) -> None:
    one, same, other = (PROGRAMS[name](seed, **SMALL[name]) for seed in (3, 3, 4))
    assert one == same
    assert one.keys() == other.keys()
    assert all(one[key] != other[key] for key in one)
    assert all(isinstance(value, float) and math.isfinite(value) for value in one.values())
    if name != "trace":
        assert set(one) == set(synthetic.PROGRAMS[name])


def test_the_error_of_the_trace_falls_with_the_square_root_of_the_probes() -> None:
    slopes = [trace(seed, num_repeats=200, size=32)["slope"] for seed in range(4)]
    assert all(abs(slope + 0.5) < 0.08 for slope in slopes)
    assert abs(np.mean(slopes) + 0.5) < 0.04


def test_the_error_of_one_probe_is_that_of_the_symmetric_part() -> None:
    """Var vᵀAv = 2 ‖(A + Aᵀ)/2‖², whose mean over Gaussian A is n (n + 1): over seeds, error_1 is about n."""
    n = 32
    found = [trace(seed, num_repeats=400, size=n, doublings=4) for seed in range(6)]
    assert set(found[0]) == {"slope", "error_1", "error_16"}
    for name, count in (("error_1", 1), ("error_16", 16)):
        mean_square = np.mean([values[name] ** 2 for values in found])
        assert math.sqrt(mean_square) == pytest.approx(math.sqrt(n * (n + 1) / count), rel=0.1)


def test_the_names_made_up_for_other_tests_are_theirs() -> None:
    assert set(trace(0, num_repeats=2, size=4)) == set(synthetic.PROGRAMS["trace"])


def test_networks_of_the_sphere_know_their_distances() -> None:
    """Stress is a share of the distances, and 2 · L_iso of a map of surfaces is at least 1 up to its few points."""
    values = sphere(0, num_steps=30, batch_size=64, num_pairs=200)
    assert all(0 < values[name] < 1 for name in values if name.startswith("stress"))
    assert all(0.8 < values[name] < 3 for name in values if name.startswith("isotropy"))
    assert len({values[name] for name in values}) == len(values)


def test_noisy_images_have_nearly_the_radius_of_noise() -> None:
    """At t = 500, ᾱ = 0.078: the norm exceeds √(1−ᾱ) E‖ε‖ by about ᾱ‖x₀‖² / (2 (1−ᾱ) n), at most 4 %."""
    values = shell(0, num_images=100, resolution=16)
    assert 0 < values["radius_excess"] < 0.04
    assert values["thickness_excess"] > -0.5


def test_a_step_with_the_term_costs_more_and_the_ratios_are_those_of_its_times() -> None:
    values = cost(0, resolution=16, batch_size=4, repeats=2)
    assert set(values) == set(synthetic.PROGRAMS["cost"])
    assert values["step_ratio"] == pytest.approx(1 + values["term_seconds"] / values["dsm_seconds"] / 2)
    assert values["step_ratio"] > 1
    assert values["row_ratio"] > 1


def test_costs_are_medians_after_a_warm_up_and_the_last_is_that_of_a_quarter_of_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock on which L_dsm takes 2 s and the term 1 s a row; the first round takes 100 s more, another one 50."""
    now, calls = [0.0], []

    def takes(name: str, seconds: float) -> torch.Tensor:
        calls.append(name)
        now[0] += seconds + {1: 100.0, 3: 50.0}.get(calls.count(name), 0.0)
        return torch.ones((), requires_grad=True)

    monkeypatch.setattr(programs.time, "process_time", lambda: now[0])
    monkeypatch.setattr(process, "dsm_loss", lambda *arguments: takes("dsm", 2.0))
    monkeypatch.setattr(
        isometry, "isometry_loss", lambda f, x, **options: takes(f"term on {len(x)} rows", float(len(x)))
    )
    values = cost(0, resolution=16, batch_size=8, repeats=5)
    assert calls == 6 * ["dsm", "term on 8 rows", "term on 2 rows"], "interleaved"
    assert values == {"dsm_seconds": 2.0, "term_seconds": 8.0, "step_ratio": 3.0, "row_ratio": 1.5}
