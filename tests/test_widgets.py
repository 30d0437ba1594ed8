"""The explorers without a browser: controls drive the picture, films are decoded once, bad input is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isodiff.diffusion import load_pipeline
from isodiff.geometry import lerp, project_to_tangent, slerp
from isodiff.metrics import Generator, draw_latents, to_uint8
from isodiff.plots import COLOURS
from isodiff.widgets import DirectionExplorer, LatentTraversal, SphereExplorer
from isodiff.widgets.explorer import Explorer
from isodiff.widgets.film import film_png
from isodiff.widgets.sphere import point

SHAPE = (1, 16, 16)
LATENTS = draw_latents(SHAPE, 0, 3, seed=0)
TANGENTS = project_to_tangent(draw_latents(SHAPE, 3, 9, seed=0), LATENTS.repeat_interleave(2, dim=0)).flatten(1)
DIRECTIONS = torch.nn.functional.normalize(TANGENTS, dim=1).reshape(3, 2, *SHAPE)
MODELS = {"base": lambda x: x.clamp(-1, 1), "negative": lambda x: -x.clamp(-1, 1)}


class Counted:
    """A model that counts the latents it has decoded."""

    def __init__(self, generate: Callable[[Tensor], Tensor]) -> None:
        self.generate, self.shape, self.rows = generate, SHAPE, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.generate(x)


@pytest.fixture(scope="module")
def model() -> Generator:
    return Generator(load_pipeline("digits16/base"), 2)


@pytest.fixture
def generators(model: Generator) -> dict[str, Counted]:
    return {"base": Counted(model), "negative": Counted(lambda x: -model(x))}


def traverses(models: object = MODELS, latents: Tensor = LATENTS) -> LatentTraversal:
    return LatentTraversal(models, latents, paths={"slerp": slerp, "lerp": lerp}, num_frames=5)


def moves(models: object = MODELS, latents: Tensor = LATENTS, **options: object) -> DirectionExplorer:
    options = {"sigma": dict.fromkeys(models, torch.tensor([[2.0, 1.0]] * 3)), "max_gamma": 8.0} | options
    directions = options.pop("directions", dict.fromkeys(models, DIRECTIONS))
    return DirectionExplorer(models, latents, directions, **options, num_frames=5)


@torch.no_grad()
def test_frames_are_the_images_of_the_path_and_of_the_great_circle(generators: dict, model: Generator) -> None:
    x, v, radius = LATENTS[1:2], DIRECTIONS[1, 1:2], LATENTS[1].norm()
    path = [slerp(LATENTS[:1], x, tau) for tau in (0.0, 0.25, 0.5, 0.75, 1.0)]
    circle = [torch.cos(g / radius) * x + radius * torch.sin(g / radius) * v for g in torch.linspace(-8, 8, 5)]
    films = traverses(generators).film("base", "slerp", "1", "2"), moves(generators).film("base", "2", "2")
    for film, points in zip(films, (path, circle), strict=True):
        expected = to_uint8(model(torch.cat(points)))
        assert (film.int() - expected.int()).abs().max() <= 1  # batches round differently


@pytest.mark.parametrize(("channels", "enlarged"), [(1, 1), (3, 128)])
def test_picture_shows_the_frame_between_the_ends(channels: int, enlarged: int) -> None:
    levels = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)
    film = levels[:, None, None, None].expand(5, channels, 4 * enlarged, 8 * enlarged)
    image = np.asarray(Image.open(io.BytesIO(film_png(film, 3, "isometric"))))
    height = 128  # of an image 256 pixels wide and half as tall
    assert image.shape[1] == 592
    assert [image[height // 2, column, 0] for column in (64, 296, 528)] == [10, 160, 210]
    assert [image[height + 16, 32 + 66 * column, 0] for column in range(0, 9, 2)] == [10, 60, 110, 160, 210]
    colour = [int(COLOURS["isometric"][i : i + 2], 16) for i in (1, 3, 5)]
    mark = np.flatnonzero((image[-3] == (*colour, 255)).all(axis=1))
    assert mark.mean() == pytest.approx(32 + 528 * 3 / 4, abs=1)
    assert image[0, 0, 3] == 0  # the ground is transparent, for light and dark themes


@pytest.mark.parametrize(
    ("latitude", "longitude", "norm", "factor"),
    [(-90.0, 0.0, 0.0, 4.0), (0.0, 90.0, 1.5, 1.0), (30.0, -60.0, 1.5 * 3**0.5, 0.25)],
)
def test_sphere_is_measured_exactly(latitude: float, longitude: float, norm: float, factor: float) -> None:
    """‖z‖ = r cot((90° − latitude)/2) and G = (1 − sin latitude)²."""
    x, z, found = point(latitude, longitude, 1.5)
    assert np.linalg.norm(x) == pytest.approx(1.5)
    assert np.linalg.norm(z) == pytest.approx(norm, abs=1e-12)
    assert found == pytest.approx(factor)
    if norm:
        assert np.rad2deg(np.arctan2(z[1], z[0])) == pytest.approx(longitude)


@pytest.mark.parametrize("make", [traverses, moves, SphereExplorer])
def test_every_control_changes_the_picture_and_reset_restores_it(make: Callable[[], Explorer]) -> None:
    shown = make()
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


def test_films_are_decoded_once_and_reset_decodes_nothing(generators: dict[str, Counted]) -> None:
    explorer, rows = moves(generators), generators["base"].rows
    for _ in range(2):
        for direction in ("1", "2"):
            explorer.controls["direction"].value = direction
            for gamma in explorer.frames:
                explorer.controls["γ"].value = gamma
    assert generators["base"].rows == rows + 5  # of the second direction
    explorer.controls["model"].value = "negative"
    explorer.controls["latent"].value = "3"
    explorer.reset_button.click()
    assert [generators[name].rows for name in ("base", "negative")] == [rows + 5, 10]


def test_static_figures_show_every_model_or_direction() -> None:
    figure = traverses().figure()
    assert [ax.get_ylabel() for ax in figure.axes] == ["base", "negative"]
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()][::4] == ["0.00", "0.50", "1.00"]
    assert "slerp from latent 1 to latent 2" in figure.get_supxlabel()
    assert [ax.get_ylabel() for ax in moves().figure().axes] == ["direction 1\nσ = 2", "direction 2\nσ = 1"]
    assert "‖z‖" in SphereExplorer().figure().get_supxlabel()


def test_a_model_that_fails_says_so() -> None:
    def breaks(x: Tensor) -> Tensor:
        raise RuntimeError("out of <memory>")

    traversal = traverses({"good": MODELS["base"], "bad": breaks})
    with pytest.raises(RuntimeError, match="out of"):
        traversal.controls["model"].value = "bad"
    assert "cannot draw this: out of &lt;memory&gt;" in traversal.status.value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: traverses({"base": Counted(torch.sin)}, torch.randn(2, 3, 8, 8)), r"\(1, 16, 16\) of this model"),
        (lambda: moves(latents=LATENTS[:2]), r"with the shapes .*\(2, 2\).* got .*\(3, 2\)"),
        (lambda: moves(directions={"base": DIRECTIONS}), "with the shapes .*'negative'"),
        (lambda: moves(sigma={"base": torch.ones(3, 2)}), "got .* and {'base'"),
        (lambda: moves(sigma=dict.fromkeys(MODELS, torch.ones(3, 1))), r"and .*\(3, 1\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
