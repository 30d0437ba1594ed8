"""The figures of cost show what they are given, in its units."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from isodiff.plots.cost import METHODS, cost_over_resolution, isotropy_over_time, variance_against_cost
from isodiff.plots.style import COLOURS

mpl.use("Agg")
from matplotlib import pyplot as plt

CELLS = [
    {
        "resolution": side,
        "batch": 8,
        "ways": {
            name: {"seconds": 2.0 * factor * side**2, "cpu_seconds": 1.0 * factor * side**2, "mib": 3.0 * side}
            for name, factor in (("dsm", 1), ("full", 2), ("released", 5))
        },
    }
    for side in (32, 64)
] + [{"resolution": 128, "batch": 8, "left_out": "about 900 s expected"}, {"resolution": 32, "batch": 1, "ways": {}}]


@pytest.fixture
def ax() -> Axes:
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def _race() -> dict:
    def run(method: str, weight: float, seed: int, end: float) -> dict:
        return {"method": method, "lambda": weight, "seed": seed, "step": [0, 10], "isotropy": [20.0, end]}

    return {
        "curves": [
            *(run("control", 0.0, seed, 16.0) for seed in (0, 1)),
            *(run(method, weight, 0, 4.0 * weight) for method in ("full", "lazy", "fraction") for weight in (1.0, 2.0)),
            run("released", 1.0, 0, 4.0),
        ],
        "best_lambda": {"full": 1.0, "lazy": 2.0, "fraction": 1.0, "released": 1.0},
        "cpu_seconds_a_step": {"step": {"control": 1.0, "full": 2.0, "lazy": 1.2, "fraction": 1.1, "released": 4.0}},
    }


def test_cost_is_drawn_where_it_was_measured(ax: Axes) -> None:
    assert cost_over_resolution(CELLS, ax, batch=8) is ax
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {METHODS[name][0] for name in ("dsm", "full", "released")}
    assert list(lines[METHODS["full"][0]].get_xdata()) == [32, 64]
    np.testing.assert_allclose(lines[METHODS["full"][0]].get_ydata(), [2 * 32**2, 2 * 64**2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("side of the image, pixels", "CPU seconds a pass")


def test_memory_has_its_own_unit_and_missing_values_are_left_out(ax: Axes) -> None:
    cells = [CELLS[0], {**CELLS[1], "ways": {**CELLS[1]["ways"], "dsm": {"mib": None}}}]
    cost_over_resolution(cells, ax, batch=8, quantity="mib")
    assert ax.get_ylabel() == "peak memory of a pass, MiB"
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 2, 2]


def test_what_was_not_measured_is_refused_by_name(ax: Axes) -> None:
    with pytest.raises(ValueError, match=r"no cell of batch 4 was measured; there are \[1, 8\]"):
        cost_over_resolution(CELLS, ax, batch=4)
    with pytest.raises(ValueError, match="quantity must be one of cpu_seconds, seconds, mib, got 'joules'"):
        cost_over_resolution(CELLS, ax, batch=8, quantity="joules")


def test_variance_is_drawn_over_the_cost_of_a_step(ax: Axes) -> None:
    variance = {
        "full": {"variance": 2.0, "cost": 0.5},
        "fraction": {"variance": 8.0, "cost": 0.125},
        "every 4": {"variance": 11.0, "cost": 0.125},
    }
    variance_against_cost(variance, ax, term_over_dsm=1.2)
    rows, steps = ax.lines
    np.testing.assert_allclose(rows.get_xdata(), [15, 60])
    np.testing.assert_allclose(rows.get_ydata(), [8, 2])
    np.testing.assert_allclose(steps.get_ydata(), [11, 2])
    assert {"1/4", "k = 4"} <= {text.get_text() for text in ax.texts}


def test_the_race_shows_each_method_at_its_best_weight_in_its_own_time(ax: Axes) -> None:
    isotropy_over_time(_race(), ax)
    drawn = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    lazy = drawn["every 4th step, λ = 2"]
    np.testing.assert_allclose(lazy.get_xdata(), [0, 12])
    np.testing.assert_allclose(lazy.get_ydata(), [20, 8])
    assert "full term, λ = 1" in drawn
    theory = drawn["a quarter of the control's"]
    assert (theory.get_color(), theory.get_linestyle()) == (COLOURS["theory"], "--")
    np.testing.assert_allclose(theory.get_ydata(), [4, 4])
    assert ax.get_ylabel().startswith("isotropy")
