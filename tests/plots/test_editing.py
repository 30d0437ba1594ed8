"""Figures of edits and inversions show the numbers they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from isodiff.plots.editing import error_by_steps, factors_along_move
from isodiff.plots.style import COLOURS


def test_target_and_strongest_other_factor_are_named() -> None:
    gammas = np.linspace(-2, 2, 5)
    factors = np.stack([0.1 * gammas, 0.4 * gammas, 0.2 * gammas], axis=1)
    _, ax = plt.subplots()
    assert factors_along_move(gammas, factors, ("a", "b", "c"), 0, ax, colour="control") is ax
    by_label = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(by_label["target: a"].get_ydata(), factors[:, 0])
    assert by_label["target: a"].get_color() == COLOURS["control"]
    np.testing.assert_allclose(by_label["most changed other: b"].get_ydata(), factors[:, 1])
    assert "γ" in ax.get_xlabel() or "gamma" in ax.get_xlabel()


def test_errors_share_the_colour_of_their_model() -> None:
    steps, values = [10, 20, 50], np.array([1e-2, 1e-3, 1e-4])
    curve = (steps, values, np.stack([values / 2, values * 2], axis=1))
    _, ax = plt.subplots()
    error_by_steps(
        {"base": curve, "base, refined": curve, "control": curve}, ax, ylabel="mse", dashed=["base, refined"]
    )
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["base"].get_color() == lines["base, refined"].get_color() == COLOURS["base"]
    assert lines["base, refined"].get_linestyle() == "--"
    assert lines["control"].get_color() == COLOURS["control"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "20", "50"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_ylabel() == "mse"


@pytest.fixture(autouse=True)
def _close() -> None:
    yield
    plt.close("all")
