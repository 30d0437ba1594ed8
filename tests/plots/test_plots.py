"""Every figure of the sphere notebook: returns its axes, labels them, and draws what it was given."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from scipy import stats

from isodiff.geometry.sphere import conformal_factor, lerp, slerp, stereographic
from isodiff.plots import charts, paths, sphere
from isodiff.plots.globe import curve, globe, orthographic, small_circle
from isodiff.plots.images import image_grid, image_strip
from isodiff.plots.inline import palette_png

mpl.use("Agg")
from matplotlib import pyplot as plt

rng = np.random.default_rng(0)
steps, times = np.arange(0, 100, 25), np.arange(100)
circles = np.stack([small_circle(lat, 20, 9) for lat in (-60, 0, 40)])
a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0.6, 0.8]])
line = np.linspace(0, 1, 11)
path = {name: np.concatenate([f(a, b, s).numpy() for s in line]) for name, f in (("lerp", lerp), ("slerp", slerp))}

LABELLED: dict[str, Callable[[Axes], Axes]] = {
    "noise_ring": lambda ax: sphere.noise_ring(rng.normal(size=(20, 2)), ax, n=16),
    "ridges": lambda ax: sphere.ridges(
        {3: rng.normal(size=50), 256: 0.01 * rng.normal(size=50)},
        lambda n, values: stats.norm(scale=1 if n == 3 else 0.01).pdf(values),
        ax,
        xlabel="x",
        limits=(-3, 3),
    ),
    "against_dimension": lambda ax: sphere.against_dimension(
        (2, 16, 256),
        np.array([0.4, 0.5, 0.5]),
        ax,
        ylabel="variance",
        theory=lambda n: 0.5 + 0 * n,
        theory_label="1/2",
        errors=np.full((2, 3), 0.05),
        claim=(1.0, "paper"),
    ),
    "radius_over_time": lambda ax: sphere.radius_over_time(
        steps,
        rng.uniform(0.9, 1, size=(4, 30)),
        ax,
        times=times,
        exact=np.ones(100),
        paper=np.ones(100),
        name="faces",
    ),
    "error_over_time": lambda ax: sphere.error_over_time(
        times,
        {"digits": np.geomspace(1, 0.1, 100)},
        ax,
        steps=steps,
        measured={"digits": np.geomspace(1, 0.1, 4)},
        ylabel="error, %",
        tolerance=(0.5, "half"),
        paper_step=50,
    ),
    "shells_and_mean": lambda ax: sphere.shells_and_mean(
        {5: rng.normal(size=30), 9: rng.normal(size=30)},
        {5: rng.uniform(size=30), 9: rng.uniform(size=30)},
        {5: 0.5, 9: 0.1},
        ax,
    ),
    "paths_in_plane": lambda ax: paths.paths_in_plane(
        {name: points[None, :, :2] for name, points in path.items()}, ax, n=16, shell=(0.7, 1.3)
    ),
    "norms_along_path": lambda ax: paths.norms_along_path(
        line, {16: -line * (1 - line), 256: -9 * line * (1 - line)}, ax, name="lerp"
    ),
    "projection_section": lambda ax: charts.projection_section(np.array([-1.0, 0.0, 0.5]), ax),
    "circles_in_chart": lambda ax: charts.circles_in_chart(
        stereographic(torch.from_numpy(circles.reshape(-1, 3)), 1.0).reshape(3, -1, 2).numpy(), np.ones(3), ax
    ),
    "metric_of_charts": lambda ax: charts.metric_of_charts(
        {chart: line for chart in charts.CHART_COLOURS},
        {chart: 1 + line for chart in charts.CHART_COLOURS},
        line,
        {"first": 1 + line, "second": 2 + line},
        ax,
    ),
}
BARE: dict[str, Callable[[Axes], Axes]] = {
    "globe": globe,
    "curve": lambda ax: curve(circles[0], ax, color="black"),
    "paths_on_sphere": lambda ax: paths.paths_on_sphere(path["lerp"], path["slerp"], ax),
    "circles_on_sphere": lambda ax: charts.circles_on_sphere(circles, np.array([1.8, 1.0, 0.4]), ax),
    "scale_bar": charts.scale_bar,
    "image_grid": lambda ax: image_grid(torch.zeros(5, 3, 4, 4), ax, columns=2, title="faces"),
    "image_strip": lambda ax: image_strip(torch.zeros(2, 1, 4, 4), ax, labels=["a", "b"], ylabel="row"),
}


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("name", [*LABELLED, *BARE])
def test_returns_its_axes_and_can_be_drawn(name: str, ax: Axes) -> None:
    assert (LABELLED | BARE)[name](ax) is ax
    assert ax.has_data() or name == "scale_bar"
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", LABELLED)
def test_both_axes_are_labelled(name: str, ax: Axes) -> None:
    LABELLED[name](ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_every_public_plot_function_is_tested() -> None:
    helpers = {"dimension_colour", "scale_colour"}
    for module in (sphere, paths, charts):
        names = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert names <= {*LABELLED, *BARE} | helpers


def test_theory_is_dashed_black(ax: Axes) -> None:
    LABELLED["against_dimension"](ax)
    theory = next(curve for curve in ax.get_lines() if curve.get_label() == "1/2")
    assert theory.get_linestyle() == "--"
    assert theory.get_color() == "#000000"


def test_orthographic_is_a_rotation() -> None:
    points = rng.normal(size=(40, 3))
    screen = np.stack(orthographic(points, elevation=33, azimuth=-70), axis=1)
    np.testing.assert_allclose(screen @ screen.T, points @ points.T, atol=1e-12)
    viewer = np.array([[np.cos(0.4) * np.cos(0.7), np.cos(0.4) * np.sin(0.7), np.sin(0.4)]])
    towards = orthographic(viewer, elevation=np.rad2deg(0.4), azimuth=np.rad2deg(0.7))
    np.testing.assert_allclose(np.concatenate(towards), [0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("latitude", [-90.0, -20.0, 70.0])
def test_small_circle_keeps_its_angle_from_the_centre_and_starts_north(latitude: float) -> None:
    centre, circle = small_circle(latitude, 40, 0)[0], small_circle(latitude, 40, 12)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(circle @ centre, np.cos(np.deg2rad(12)), atol=1e-12)
    np.testing.assert_allclose(circle[0], circle[-1], atol=1e-12)
    np.testing.assert_allclose(circle[0, 2], np.sin(np.deg2rad(latitude + 12)), atol=1e-12)


def test_the_chart_turns_circles_into_circles_of_the_size_that_the_metric_says() -> None:
    centre, circle = (torch.from_numpy(small_circle(-20, 40, radius)) for radius in (0, 0.01))
    image = stereographic(circle, 1.0)
    distance = (image - (image[0] + image[36]) / 2).norm(dim=1)
    torch.testing.assert_close(distance, distance[:1].expand_as(distance), rtol=1e-9, atol=0)
    length = distance[0] * conformal_factor(stereographic(centre[:1], 1.0), 1.0).sqrt()[0]
    assert length.item() == pytest.approx(np.deg2rad(0.01), rel=1e-6)


def test_image_grid_puts_pixels_where_they_belong(ax: Axes) -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 3.0)])
    shown = image_grid(images, ax, columns=2).images[0].get_array()
    np.testing.assert_allclose(shown[[0, 0, 3, 3], [0, 3, 0, 3], 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(shown[[0, 2], [0, 2], 3], [1, 0])


def test_image_strip_labels_the_centres_and_span_widens_the_range(ax: Axes) -> None:
    image_strip(torch.full((3, 3, 4, 4), 2.0), ax, labels=["a", "b", "c"], span=4.0)
    np.testing.assert_allclose(ax.get_xticks(), [1.5, 6.5, 11.5])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.images[0].get_array()[0, 0, :3], 0.75)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 4, 4), {}, r"\(3, 4, 4\)"),
        (torch.zeros(2, 2, 4, 4), {}, r"\(2, 2, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), {}, r"\(0, 3, 4, 4\)"),
        (torch.full((1, 1, 2, 2), torch.nan), {}, "4 NaN"),
        (torch.zeros(2, 1, 4, 4), {"span": 0.0}, "0.0"),
    ],
)
@pytest.mark.parametrize("draw", [image_grid, image_strip])
def test_bad_images_are_refused(
    draw: Callable[..., Axes], images: torch.Tensor, options: dict[str, float], message: str, ax: Axes
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(images, ax, **options)


def test_bad_columns_labels_and_points_are_refused(ax: Axes) -> None:
    with pytest.raises(ValueError, match="got 0"):
        image_grid(torch.zeros(1, 1, 2, 2), ax, columns=0)
    with pytest.raises(ValueError, match="2; got 1"):
        image_strip(torch.zeros(2, 1, 2, 2), ax, labels=["a"])
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        orthographic(np.zeros((4, 2)))


def test_palette_png_is_the_figure_to_the_eye_and_smaller(ax: Axes) -> None:
    globe(ax)
    plain = io.BytesIO()
    ax.figure.savefig(plain, format="png", facecolor="white")
    compact = palette_png(ax.figure)
    pictures = [Image.open(io.BytesIO(data)) for data in (plain.getvalue(), compact)]
    assert pictures[1].mode == "P"
    before, after = (np.asarray(picture.convert("RGB"), dtype=float) for picture in pictures)
    assert np.abs(before - after).mean() < 1  # of 255
    assert len(compact) < 0.6 * len(plain.getvalue())
