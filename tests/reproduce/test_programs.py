"""Experiments without a diffusion model: theory where there is one, and the same numbers for the same seed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isodiff.reproduce import programs
from isodiff.reproduce.endpoints import load_run
from isodiff.reproduce.programs import PROGRAMS, cost, shell, trace

from .synthetic import SHIPPED


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("sphere", {"num_steps": 30, "batch_size": 64}),
        ("trace", {"num_repeats": 20, "size": 16}),
        ("shell", {"num_images": 8, "resolution": 16}),
    ],
)
def test_a_seed_decides_every_number(name: str, small: dict) -> None:
    """Of the sphere, stress is a share of the distances and 2 · L_iso of a map of surfaces at least 1, up to noise."""
    one, same, other = (PROGRAMS[name](seed, **small) for seed in (3, 3, 4))
    assert one == same
    assert all(one[key] != other[key] for key in one)
    assert one.keys() == load_run(SHIPPED / name / "run-seed0.json")["values"].keys()
    assert all(0 < one[key] < 1 for key in one if key.startswith("stress"))
    assert all(0.8 < one[key] < 3 for key in one if key.startswith("anisotropy"))


def test_the_error_of_the_trace_falls_with_the_square_root_of_the_probes() -> None:
    """Var vᵀAv = 2 ‖(A + Aᵀ)/2‖², whose mean over Gaussian A is n (n + 1): over seeds, error_1 is about n."""
    n = 32
    found = [trace(seed, num_repeats=200, size=n) for seed in range(6)]
    assert all(abs(values["slope"] + 0.5) < 0.08 for values in found)
    for count in (1, 256):
        mean_square = np.mean([values[f"error_{count}"] ** 2 for values in found])
        assert math.sqrt(mean_square) == pytest.approx(math.sqrt(n * (n + 1) / count), rel=0.1)


def test_noisy_images_have_nearly_the_radius_of_noise() -> None:
    """At t = 500, ᾱ = 0.078: the norm exceeds √(1−ᾱ) E‖ε‖ by about ᾱ‖x₀‖² / (2 (1−ᾱ) n), at most 4 %."""
    values = shell(0, num_images=100, resolution=16)
    assert 0 < values["radius_excess"] < 0.04
    assert values["thickness_excess"] > -0.5


def test_costs_are_medians_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which L_dsm takes 2 s and the term 1 s a row; the first round takes 100 s more, another one 50."""
    now, calls = [0.0], []

    def takes(name: str, seconds: float) -> torch.Tensor:
        calls.append(name)
        now[0] += seconds + {1: 100.0, 3: 50.0}.get(calls.count(name), 0.0)
        return torch.ones((), requires_grad=True)

    def product(f: object, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return v, v * takes("product", 4.0)

    term = SimpleNamespace(isometry_loss=lambda f, x, **_: takes(f"term on {len(x)} rows", float(len(x))))
    term.jvp = term.vjp = product
    term.project_to_tangent = lambda v, x: v
    monkeypatch.setattr(programs.time, "process_time", lambda: now[0])
    monkeypatch.setattr(programs, "geometry", term)
    monkeypatch.setattr(programs.diffusion, "dsm_loss", lambda *_: takes("dsm", 2.0))
    values = cost(0, resolution=16, batch_size=8, repeats=5)
    assert calls == 6 * ["dsm", "term on 8 rows", "term on 2 rows", *3 * ["product"]], "interleaved"
    assert values == {"dsm_seconds": 2.0, "step_ratio": 3.0, "row_ratio": 1.5, "released_ratio": 4.0}
    assert values.keys() == load_run(SHIPPED / "cost" / "run-seed0.json")["values"].keys()
