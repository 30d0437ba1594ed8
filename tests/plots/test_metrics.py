"""The figures of the metrics notebook: each returns its labelled axes and draws the numbers it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from isodiff.plots import intervals, metrics
from isodiff.plots.style import COLOURS

mpl.use("Agg")
from matplotlib import pyplot as plt

rng = np.random.default_rng(0)
MODELS = ("base", "control", "isometric")
sizes = np.array([50, 100, 200, 400])
steps = list(range(950, -1, -50))
quarter = np.linspace(0, np.pi / 2, 33)
arc = np.stack([np.cos(quarter), np.sin(quarter)], 1) @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T
factors = np.cumsum(0.05 * rng.normal(size=(9, 6)), axis=0)
names = ("smile", "hair_length", "hair_colour", "pose", "age", "glasses")
epsilons = np.geomspace(1e-1, 1e-5, 5)

FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "metric_by_size": lambda ax: metrics.metric_by_size(
        {"base": (sizes, 3 + 100 / sizes), "real": (sizes, rng.uniform(1, 2, size=(3, 4)))},
        ax,
        ylabel="FID",
        truth=(0.0, "truth"),
    ),
    "epsilon_sweep": lambda ax: metrics.epsilon_sweep(
        epsilons, {"a": np.ones(5), "b": epsilons}, ax, floors={"a": 1e-9 / epsilons**2}, used=1e-4
    ),
    "arcs_over_chords": lambda ax: metrics.arcs_over_chords({"base": arc, "isometric": 3 * arc + 1}, ax),
    "rtl_by_step": lambda ax: metrics.rtl_by_step(
        steps,
        {model: np.full(20, 1.2) for model in MODELS},
        {model: np.tile([1.1, 1.3], (20, 1)) for model in MODELS},
        ax,
        regularised_from=500,
    ),
    "condition_by_k": lambda ax: metrics.condition_by_k(
        {"base": np.arange(8, 0, -1.0), "control": np.ones((2, 8))}, ax, marked=(4,)
    ),
    "scores_by_dimension": lambda ax: metrics.scores_by_dimension(
        (10, 100), {"by lot, same points": [1.9, 1.0], "by lot, held out": [2.0, 1.99]}, ax, n=50
    ),
    "factor_paths": lambda ax: metrics.factor_paths(np.linspace(0, 1, 9), factors, names, ax, columns=(0, 4)),
    "grouped_points": lambda ax: intervals.grouped_points(
        {"training": {m: (1.0, None) for m in MODELS}, "shuffled": {"base": (2.0, (1.5, 2.5))}},
        ax,
        ylabel="LS",
        lines={"perfect": 1, "ignorance": 2},
    ),
    "interval_coverage": lambda ax: intervals.interval_coverage(
        [0.0, 1.0, 5.0], [[-1, 1], [0, 2], [4, 6]], 0.5, ax, xlabel="mean"
    ),
    "difference_forest": lambda ax: intervals.difference_forest(
        ["fid", "kid", "ppl"],
        [1.0, -5.0, 300.0],
        [[-1, 3], [-6, -4], [200, 400]],
        ax,
        xlabel="difference, %",
        paper={"ppl": -12.0},
        limit=100,
    ),
}


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_returns_its_labelled_axes_and_can_be_drawn(name: str, ax: Axes) -> None:
    assert FIGURES[name](ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()


def test_every_public_plot_function_is_tested() -> None:
    for module in (metrics, intervals):
        found = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert found <= {*FIGURES, "plane_of_path", "colour_of"}


def test_methods_keep_their_colour_and_others_take_none_of_theirs() -> None:
    assert [metrics.colour_of(model, 5) for model in MODELS] == [COLOURS[model] for model in MODELS]
    assert metrics.colour_of("base against real", 1) == COLOURS["base"]
    free = {metrics.colour_of("real", index) for index in range(6)}
    assert not free & {COLOURS[model] for model in MODELS}
    assert len(free) == 6


def test_the_dotted_line_of_a_metric_ends_at_its_limit(ax: Axes) -> None:
    metrics.metric_by_size({"fid": (sizes, 3 + 100 / sizes)}, ax, ylabel="FID")
    dotted = next(line for line in ax.get_lines() if line.get_linestyle() == ":")
    assert dotted.get_xdata()[0] == 0
    assert dotted.get_ydata()[0] == pytest.approx(3)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["∞", "400", "200", "100", "50"]


def test_a_quarter_circle_lies_on_the_dashed_arc_whatever_its_size_place_and_turn(ax: Axes) -> None:
    along, bulge = metrics.plane_of_path(3 * arc[:, ::-1] + 1)
    np.testing.assert_allclose((along - 0.5) ** 2 + (bulge + 0.5) ** 2, 0.5, atol=1e-12)
    metrics.arcs_over_chords({"isometric": arc}, ax)
    dashed = next(line for line in ax.get_lines() if line.get_label() == "90° arc")
    x, y = dashed.get_data()
    np.testing.assert_allclose((x - 0.5) ** 2 + (y + 0.5) ** 2, 0.5, atol=1e-12)
    np.testing.assert_allclose([x[0], y[0], x[-1], y[-1]], [0, 0, 1, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("path", "message"), [(np.zeros((2, 4)), r"\(2, 4\)"), (np.zeros((5, 1)), r"\(5, 1\)"), (np.ones((4, 3)), "chord")]
)
def test_a_path_without_a_plane_is_refused(path: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.plane_of_path(path)


def test_rtl_draws_the_round_embedding_dashed_and_the_straight_line_dotted(ax: Axes) -> None:
    FIGURES["rtl_by_step"](ax)
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in ax.get_lines() if line.get_color() == "#000000"}
    assert levels == {"--": pytest.approx(1.1107, abs=5e-5), ":": 1}
    assert ax.xaxis_inverted()  # the sampler runs from left to right


def test_condition_is_the_mean_over_rows_of_the_ratio(ax: Axes) -> None:
    metrics.condition_by_k({"base": np.array([[8.0, 4.0, 1.0], [2.0, 2.0, 1.0]])}, ax)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [1, 1.5, 5])


def test_factor_paths_name_the_detour_of_those_in_colour(ax: Axes) -> None:
    z = np.zeros((3, 3))
    z[:, 0] = [0, 0.5, 0]  # there and back: an excess of 1
    z[:, 1] = [0, 0.5, 1]  # far, without a detour
    metrics.factor_paths(np.array([0, 0.5, 1]), z, ("hair_length", "smile", "pose"), ax, columns=(1, 0))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["smile +0.00", "hair length +1.00"]


def test_coverage_counts_what_misses(ax: Axes) -> None:
    FIGURES["interval_coverage"](ax)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[:2] == ["covers, 2", "misses, 1"]


def test_forest_fills_what_leaves_out_zero_and_keeps_what_is_far_at_the_edge(ax: Axes) -> None:
    FIGURES["difference_forest"](ax)
    points = {line.get_ydata()[0]: line for line in ax.get_lines() if len(line.get_xdata()) == 1 and line.get_ms() == 6}
    assert [points[row].get_xdata()[0] for row in range(3)] == [1, -5, 100]
    assert [points[row].get_marker() for row in range(3)] == ["o", "o", ">"]
    faces = [points[row].get_markerfacecolor() for row in range(3)]
    assert [to_hex(face) for face in faces] == ["#ffffff", "#222222", "#222222"]
    assert ax.yaxis_inverted()  # the first name is on top


def test_a_model_without_a_value_leaves_a_gap(ax: Axes) -> None:
    FIGURES["grouped_points"](ax)
    drawn = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert len(drawn) == 4
