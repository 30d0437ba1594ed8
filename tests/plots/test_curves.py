"""The recurring curves draw the numbers they are given, in the course's colours."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from isodiff.plots import curves
from isodiff.plots.style import COLOURS

MODELS = ("base", "control", "isometric")
RUNS = {
    name: {"step": [0, 1, 2, 3], "dsm": [1.0, 3.0, 5.0, 7.0], "anisotropy": [None, 8.0, None, 4.0]} for name in MODELS
}
PASS = {name: {"cpu_seconds": float(factor), "mib": 3.0} for name, factor in (("dsm", 1), ("full", 2), ("released", 5))}
CELLS = [
    {"resolution": 32, "batch": 8, "ways": PASS},
    {"resolution": 64, "batch": 8, "ways": {**PASS, "dsm": {"cpu_seconds": 4.0, "mib": None}}},
    {"resolution": 128, "batch": 8, "left_out": "about 900 s expected"},
    {"resolution": 32, "batch": 1, "ways": {}},
]


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_training_curve_leaves_out_what_was_not_measured_and_shows_the_isometry(ax: Axes) -> None:
    curves.training_curves(RUNS, "anisotropy", ax, smooth=1)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["isometric"].get_xydata(), [[1, 8], [3, 4]])
    assert lines["isometric"].get_color() == COLOURS["isometric"]
    assert lines["scaled isometry"].get_ydata()[0] == 1


def test_a_smoothed_training_curve_is_the_running_mean_over_its_points(ax: Axes) -> None:
    curves.training_curves({"control": RUNS["control"]}, "dsm", ax, smooth=3)
    points, mean = ax.get_lines()
    np.testing.assert_array_equal(points.get_ydata(), [1, 3, 5, 7])
    np.testing.assert_allclose(mean.get_xydata(), [[2, 3], [3, 5]])
    assert legend(ax) == ["control"]


def test_points_of_a_group_stand_side_by_side_and_a_model_without_a_value_leaves_a_gap(ax: Axes) -> None:
    groups = {"training": {m: (1.0, None) for m in MODELS}, "shuffled": {"base": (2.0, (1.5, 2.5))}}
    curves.grouped_points(groups, ax, ylabel="LS", lines={"perfect": 1, "ignorance": 2})
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == "o"}
    assert points == {"base": [[-0.22, 1], [0.78, 2]], "control": [[0, 1]], "isometric": [[0.22, 1]]}
    assert [0.78, 1.5] in [line.get_xydata()[0].tolist() for line in ax.get_lines()]
    assert legend(ax) == [*MODELS, "perfect", "ignorance"]


def test_forest_fills_what_leaves_out_zero_and_keeps_what_is_far_at_the_edge(ax: Axes) -> None:
    values, intervals = [1.0, -5.0, 300.0], [[-1, 3], [-6, -4], [200, 400]]
    options = {"xlabel": "difference, %", "paper": {"ppl": -12.0}, "limit": 100}
    curves.difference_forest(["fid", "kid", "ppl"], values, intervals, ax, **options)
    points = {line.get_ydata()[0]: line for line in ax.get_lines() if len(line.get_xdata()) == 1 and line.get_ms() == 6}
    assert [points[row].get_xdata()[0] for row in range(3)] == [1, -5, 100]
    assert [points[row].get_marker() for row in range(3)] == ["o", "o", ">"]
    assert [to_hex(points[row].get_markerfacecolor()) for row in range(3)] == ["#ffffff", "#222222", "#222222"]
    assert [line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == "D"] == [[[-12, 2]], []]
    assert ax.yaxis_inverted()  # the first name is on top


@pytest.mark.parametrize(
    ("quantity", "label", "found"),
    [("cpu_seconds", "CPU seconds a pass", [1, 4]), ("mib", "peak memory of a pass, MiB", [3])],
)
def test_cost_is_drawn_where_it_was_measured(quantity: str, label: str, found: list[float], ax: Axes) -> None:
    curves.cost_over_resolution(CELLS, ax, batch=8, quantity=quantity)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {curves.WAYS[name][0] for name in PASS}
    assert lines[curves.WAYS["dsm"][0]].get_xydata().tolist() == [[32 * 2**i, value] for i, value in enumerate(found)]
    assert ax.get_ylabel() == label
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["32", "64"]


def test_factor_paths_name_the_detour_of_those_in_colour(ax: Axes) -> None:
    factors = np.array([[0, 0, 0], [0.5, 0.5, 0], [0, 1, 0]])  # there and back, an excess of 1; no detour; still
    names = ("hair_length", "smile", "pose")
    curves.factor_paths([0, 0.5, 1], factors, names, ax, columns=(1, 0))
    assert legend(ax) == ["smile +0.00", "hair length +1.00"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    assert lines["hair length +1.00"] == [0, 0.5, 0]
