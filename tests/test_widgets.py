"""The explorers without a browser: controls drive the picture, films are decoded once, bad input is refused."""

import io
import itertools
from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isodiff.geometry import lerp, project_to_tangent, slerp
from isodiff.metrics import draw_latents, to_uint8
from isodiff.plots import COLOURS
from isodiff.widgets import DirectionExplorer, LatentTraversal, SphereExplorer
from isodiff.widgets.explorer import Explorer
from isodiff.widgets.film import film_png
from isodiff.widgets.sphere import point

from .geometry.tensors import refusals

SHAPE = (1, 16, 16)
LATENTS = draw_latents(SHAPE, 0, 3, seed=0)
TANGENTS = project_to_tangent(draw_latents(SHAPE, 3, 9, seed=0), LATENTS.repeat_interleave(2, dim=0)).flatten(1)
DIRECTIONS = torch.nn.functional.normalize(TANGENTS, dim=1).reshape(3, 2, *SHAPE)
MODELS = {"base": lambda x: x.clamp(-1, 1), "negative": lambda x: -x.clamp(-1, 1)}


def traverses(models: object = MODELS, latents: Tensor = LATENTS) -> LatentTraversal:
    return LatentTraversal(models, latents, paths={"slerp": slerp, "lerp": lerp}, num_frames=5)


def moves(models: object = MODELS, latents: Tensor = LATENTS, **options: object) -> DirectionExplorer:
    options = {"sigma": dict.fromkeys(models, torch.tensor([[2.0, 1.0]] * 3)), "max_gamma": 8.0} | options
    directions = options.pop("directions", dict.fromkeys(models, DIRECTIONS))
    return DirectionExplorer(models, latents, directions, **options, num_frames=5)


def test_frames_are_the_images_of_the_path_and_of_the_great_circle() -> None:
    x, v, radius = LATENTS[1:2], DIRECTIONS[1, 1:2], LATENTS[1].norm()
    path = torch.cat([slerp(LATENTS[:1], x, tau) for tau in (0.0, 0.25, 0.5, 0.75, 1.0)])
    circle = torch.cat([torch.cos(g / radius) * x + radius * torch.sin(g / radius) * v for g in (-8, -4, 0, 4, 8)])
    for film, points in ((traverses().film("base", "slerp", "1", "2"), path), (moves().film("base", "2", "2"), circle)):
        assert (film.int() - to_uint8(MODELS["base"](points)).int()).abs().max() <= 1


@pytest.mark.parametrize("enlarged", [1, 128])
def test_picture_shows_the_frame_between_the_ends(enlarged: int) -> None:
    levels = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)
    film = levels[:, None, None, None].expand(5, 3, 4 * enlarged, 8 * enlarged)
    image = np.asarray(Image.open(io.BytesIO(film_png(film, 3, "isometric"))))
    height = 128  # of an image 256 pixels wide and half as tall
    assert image.shape[1] == 592
    assert [image[height // 2, column, 0] for column in (64, 296, 528)] == [10, 160, 210]
    assert [image[height + 16, 32 + 66 * column, 0] for column in range(0, 9, 2)] == [10, 60, 110, 160, 210]
    colour = [int(COLOURS["isometric"][i : i + 2], 16) for i in (1, 3, 5)]
    mark = np.flatnonzero((image[-3] == (*colour, 255)).all(axis=1))
    assert mark.mean() == pytest.approx(32 + 528 * 3 / 4, abs=1)
    assert image[0, 0, 3] == 0  # the ground is transparent, for light and dark themes


@pytest.mark.parametrize(("latitude", "longitude"), [(-90.0, 0.0), (0.0, 90.0), (30.0, -60.0)])
def test_sphere_is_measured_exactly(latitude: float, longitude: float) -> None:
    """‖z‖ = r cot((90° − latitude)/2) and G = (1 − sin latitude)²."""
    x, z, factor = point(latitude, longitude, 1.5)
    south, east = np.deg2rad([(90 - latitude) / 2, longitude])
    assert np.linalg.norm(x) == pytest.approx(1.5)
    assert z == pytest.approx(1.5 / np.tan(south) * np.array([np.cos(east), np.sin(east)]), abs=1e-12)
    assert factor == pytest.approx((1 - np.sin(np.deg2rad(latitude))) ** 2)


@pytest.mark.parametrize("make", [traverses, moves, SphereExplorer])
def test_every_control_changes_the_picture_and_reset_restores_it(make: Callable[[], Explorer]) -> None:
    shown = make()
    assert "aria-label" in shown.children[-1].outputs[0]["data"]["application/javascript"]  # tested in the browser
    first, said = shown.picture.value, shown.status.value
    for control in shown.controls.values():
        assert control.description and control.tooltip  # noqa: PT018 - one sentence
        before = shown.picture.value
        control.value = control.options[-1] if hasattr(control, "options") else control.max
        assert shown.picture.value != before
        assert shown.picture.tooltip in shown.status.value
    assert shown.status.value != said
    shown.reset_button.click()
    assert (shown.picture.value, shown.status.value) == (first, said)


def test_films_are_decoded_once_and_reset_decodes_nothing() -> None:
    counted = {name: Mock(wraps=model, shape=SHAPE) for name, model in MODELS.items()}
    explorer = moves(counted)
    for direction, gamma in itertools.product("1212", explorer.frames):
        explorer.controls["direction"].value, explorer.controls["γ"].value = direction, gamma
    assert counted["base"].call_count == 2  # a batch for each direction
    explorer.controls["model"].value = "negative"
    explorer.controls["latent"].value = "3"
    explorer.reset_button.click()
    assert [model.call_count for model in counted.values()] == [2, 2]


def test_static_figures_show_every_model_or_direction() -> None:
    figure = traverses().figure()
    assert [ax.get_ylabel() for ax in figure.axes] == ["base", "negative"]
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()][::4] == ["0.00", "0.50", "1.00"]
    assert "slerp from latent 1 to latent 2" in figure.get_supxlabel()
    assert [ax.get_ylabel() for ax in moves().figure().axes] == ["direction 1\nσ = 2", "direction 2\nσ = 1"]
    assert "‖z‖" in SphereExplorer().figure().get_supxlabel()


def test_a_model_that_fails_says_so() -> None:
    breaks = Mock(side_effect=RuntimeError("out of <memory>"), shape=SHAPE)
    traversal = traverses({"good": MODELS["base"], "bad": breaks})
    with pytest.raises(RuntimeError, match="out of"):
        traversal.controls["model"].value = "bad"
    assert "cannot draw this: out of &lt;memory&gt;" in traversal.status.value


AXES, FOUR = torch.eye(4).reshape(1, 4, 1, 2, 2), {"base": torch.ones(1, 4)}  # a tangent space has three
test_what_cannot_be_shown_is_refused = refusals(
    (lambda: traverses(latents=LATENTS[:1]), "two latents, one path and two frames; got 2, 1, 2 and 5"),
    (lambda: traverses({"base": Mock(shape=SHAPE)}, torch.randn(2, 3, 8, 8)), r"\(1, 16, 16\) of this model"),
    (lambda: moves(latents=LATENTS[:2]), r"at the latents \(2, 1, 16, 16\); got .*\(3, 2, 1, 16, 16\)"),
    (lambda: moves(directions={"base": DIRECTIONS}), r"for the models \['base', 'negative'\]"),
    (lambda: moves(sigma=dict.fromkeys(MODELS, torch.ones(3, 1))), "must be given for the models"),
    (lambda: moves(max_gamma=float("nan")), "max_gamma must be positive"),
    (lambda: moves({"base": torch.sin}, AXES[:, 0], directions={"base": AXES}, sigma=FOUR), "k below the dimens"),
)
