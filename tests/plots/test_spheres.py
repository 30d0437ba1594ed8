"""Spheres seen from afar: the view is a rotation, circles keep their angle and are drawn where they are."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from isodiff import plots
from isodiff.geometry import stereographic


def test_circles_are_drawn_where_they_are_in_the_colour_of_their_scale(ax: Axes) -> None:
    circles, scales = np.stack([plots.small_circle(latitude, 20, 9) for latitude in (-60, 0, 40)]), (1.8, 1.0, 0.4)
    images = stereographic(torch.from_numpy(circles.reshape(-1, 3)), 1.0).reshape(3, -1, 2).numpy()
    plots.circles_on_sphere(circles, scales, ax)
    plots.circles_in_chart(images, scales, ax)
    on_sphere = [np.stack(plots.orthographic(circle)[:2], axis=1) for circle in circles]
    for patch, expected, scale in zip(ax.patches, [*on_sphere, *images], 2 * scales, strict=True):
        np.testing.assert_allclose(patch.get_xy()[: len(expected)], expected)
        assert patch.get_facecolor()[:3] == plots.scale_colour(scale)[:3]
    plots.scale_bar(ax)
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("graticule", "number"), [(30.0, 11), (180.0, 1)])
def test_a_globe_has_a_parallel_and_a_meridian_every_so_many_degrees(graticule: float, number: int, ax: Axes) -> None:
    plots.globe(ax, graticule=graticule)
    assert sum(line.get_alpha() == 1 for line in ax.lines) == number  # the parts in front


def test_orthographic_is_a_rotation() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    screen = np.stack(plots.orthographic(points), axis=1)
    np.testing.assert_allclose(screen @ screen.T, points @ points.T, atol=1e-12)
    e, a = np.deg2rad([22, 25])
    towards = plots.orthographic(np.array([[np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]]))
    np.testing.assert_allclose(np.concatenate(towards), [0, 0, 1], atol=1e-12)
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        plots.orthographic(np.zeros((4, 2)))


@pytest.mark.parametrize("latitude", [-90.0, 70.0])
def test_small_circle_keeps_its_angle_from_the_centre_and_starts_north(latitude: float) -> None:
    centre, circle = plots.small_circle(latitude, 40, 0)[0], plots.small_circle(latitude, 40, 12)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(circle @ centre, np.cos(np.deg2rad(12)), atol=1e-12)
    np.testing.assert_allclose(circle[0], circle[-1], atol=1e-12)
    np.testing.assert_allclose(circle[0, 2], np.sin(np.deg2rad(latitude + 12)), atol=1e-12)
