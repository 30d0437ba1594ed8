"""The explorers without a browser: controls drive the picture, films are decoded once, bad input is refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry import project_to_tangent, slerp
from isodiff.metrics.generator import Generator, draw_latents, to_uint8
from isodiff.widgets import DirectionExplorer, LatentTraversal, SphereExplorer
from isodiff.widgets.explorer import Explorer
from isodiff.widgets.film import film_png, strip_indices

SHAPE = (1, 16, 16)


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


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return draw_latents(SHAPE, 0, 3, seed=0)


@pytest.fixture(scope="module")
def directions(latents: Tensor) -> Tensor:
    """Return two unit tangent vectors at each latent, (3, 2, 1, 16, 16)."""
    noise = draw_latents(SHAPE, 3, 9, seed=0)
    tangent = project_to_tangent(noise, latents.repeat_interleave(2, dim=0)).flatten(1)
    return torch.nn.functional.normalize(tangent, dim=1).reshape(3, 2, *SHAPE)


@pytest.fixture
def traversal(generators: dict[str, Counted], latents: Tensor) -> LatentTraversal:
    return LatentTraversal(generators, latents, num_frames=5)


@pytest.fixture
def explorer(generators: dict[str, Counted], latents: Tensor, directions: Tensor) -> DirectionExplorer:
    sigma = dict.fromkeys(generators, torch.tensor([[2.0, 1.0]] * 3))
    return DirectionExplorer(generators, latents, dict.fromkeys(generators, directions), sigma=sigma, num_frames=5)


def picture(explorer: Explorer) -> bytes:
    return bytes(explorer.picture.value)


def pixels(explorer: Explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture(explorer))).convert("RGBA"))


# what is shown ------------------------------------------------------------------------------------------------------


def test_frames_are_the_images_of_the_path(traversal: LatentTraversal, model: Generator, latents: Tensor) -> None:
    with torch.no_grad():
        points = torch.cat([slerp(latents[:1], latents[1:2], tau) for tau in (0.0, 0.25, 0.5, 0.75, 1.0)])
        expected = to_uint8(model(points))
    assert (traversal.film().int() - expected.int()).abs().max() <= 1  # batches round differently


def test_frames_are_the_images_along_the_great_circle(
    explorer: DirectionExplorer, model: Generator, latents: Tensor, directions: Tensor
) -> None:
    explorer.move_to(latent="2", direction="2")
    x, v = latents[1:2], directions[1, 1:2]
    radius = x.norm()
    with torch.no_grad():
        points = [torch.cos(g / radius) * x + radius * torch.sin(g / radius) * v for g in explorer.frame_values()]
        expected = to_uint8(model(torch.cat(points).float()))
    assert (explorer.film().int() - expected.int()).abs().max() <= 1
    assert explorer.max_gamma == pytest.approx(latents.flatten(1).norm(dim=1).mean().item() / 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_shows_the_frame_between_the_ends(channels: int) -> None:
    levels = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)
    film = levels[:, None, None, None].expand(5, channels, 4, 8)
    image = np.asarray(Image.open(io.BytesIO(film_png(film, 3, "#ff0000"))))
    height = 128  # of an image 256 pixels wide and half as tall
    assert image.shape[1] == 592
    assert [image[height // 2, column, 0] for column in (64, 296, 528)] == [10, 160, 210]
    strip = image[height + 16]
    assert [strip[32 + 66 * column, 0] for column in range(0, 9, 2)] == [10, 60, 110, 160, 210]
    mark = np.flatnonzero((image[-3] == (255, 0, 0, 255)).all(axis=1))
    assert mark.mean() == pytest.approx(32 + 528 * 3 / 4, abs=1)
    assert image[0, 0, 3] == 0  # the ground is transparent, for light and dark themes


def test_large_images_shrink_to_the_picture() -> None:
    film = torch.randint(0, 256, (2, 3, 512, 512), dtype=torch.uint8)
    assert Image.open(io.BytesIO(film_png(film, 0, "#ff0000"))).width == 592


def test_strip_holds_both_ends() -> None:
    assert strip_indices(33, 9) == list(range(0, 33, 4))
    assert strip_indices(2, 3)[0::2] == [0, 1]


@pytest.mark.parametrize(
    ("latitude", "longitude", "norm", "factor"),
    [(-90.0, 0.0, 0.0, 4.0), (0.0, 90.0, 1.5, 1.0), (30.0, -60.0, 1.5 * 3**0.5, 0.25)],
)
def test_sphere_is_measured_exactly(latitude: float, longitude: float, norm: float, factor: float) -> None:
    """‖z‖ = r cot((90° − latitude)/2) and G = (1 − sin latitude)²."""
    x, z, found = SphereExplorer(latitude=latitude, longitude=longitude, radius=1.5).point()
    assert np.linalg.norm(x) == pytest.approx(1.5)
    assert np.linalg.norm(z) == pytest.approx(norm, abs=1e-12)
    assert found == pytest.approx(factor)
    if norm:
        assert np.rad2deg(np.arctan2(z[1], z[0])) == pytest.approx(longitude)


# what moves it ------------------------------------------------------------------------------------------------------


def test_every_control_changes_the_picture_and_reset_restores_it(
    traversal: LatentTraversal, explorer: DirectionExplorer
) -> None:
    for shown in (traversal, explorer, SphereExplorer()):
        first, said = picture(shown), shown.status.value
        for control in shown.controls.values():
            assert control.description
            assert control.tooltip
            before = picture(shown)
            if hasattr(control, "options"):
                control.value = control.options[-1]
            else:
                control.value = control.max
            assert picture(shown) != before
            assert shown.picture.tooltip in shown.status.value
        assert shown.status.value != said
        shown.reset_button.click()
        assert picture(shown) == first
        assert shown.status.value == said


def test_a_move_decodes_nothing(traversal: LatentTraversal, generators: dict[str, Counted]) -> None:
    assert generators["base"].rows == 5
    for value in traversal.frame_values():
        traversal.controls["position"].value = value
    assert [generators[name].rows for name in ("base", "negative")] == [5, 0]
    traversal.controls["model"].value = "negative"
    traversal.controls["model"].value = "base"
    traversal.reset()
    assert [generators[name].rows for name in ("base", "negative")] == [5, 5]


def test_a_direction_is_decoded_once(explorer: DirectionExplorer, generators: dict[str, Counted]) -> None:
    for _ in range(2):
        for direction in ("1", "2"):
            explorer.controls["direction"].value = direction
            for value in explorer.frame_values():
                explorer.controls["gamma"].value = value
    assert generators["base"].rows == 10


def test_the_film_unused_for_longest_is_forgotten(generators: dict[str, Counted], latents: Tensor) -> None:
    traversal = LatentTraversal(generators, latents, num_frames=2, capacity=2)
    for path in ("lerp", "slerp"):
        traversal.move_to(path=path)
    assert generators["base"].rows == 4
    traversal.move_to(end="3")  # lerp goes
    traversal.reset()
    assert generators["base"].rows == 6
    traversal.move_to(path="lerp")
    assert generators["base"].rows == 8


def test_several_controls_move_at_once(traversal: LatentTraversal, generators: dict[str, Counted]) -> None:
    traversal.move_to(path="lerp", start="3", end="1", position=1.0)
    assert traversal.state == {"model": "base", "path": "lerp", "start": "3", "end": "1", "position": 1.0}
    assert traversal.frame == 4
    assert generators["base"].rows == 10  # no film of a state in between


def test_latents_by_name_and_paths_of_ones_own(generators: dict[str, Counted], latents: Tensor) -> None:
    def stay(a: Tensor, b: Tensor, tau: float) -> Tensor:
        return a

    traversal = LatentTraversal(generators, {"one": latents[0], "two": latents[1]}, paths={"stay": stay}, num_frames=3)
    film = traversal.film()
    assert (film == film[:1]).all()
    assert "latent one to latent two" in traversal.status.value


def test_static_figures_show_every_model_or_direction(traversal: LatentTraversal, explorer: DirectionExplorer) -> None:
    figure = traversal.figure(columns=3)
    assert [ax.get_ylabel() for ax in figure.axes] == ["base", "negative"]
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["0.00", "0.50", "1.00"]
    assert "slerp from latent 1 to latent 2" in figure.get_supxlabel()
    assert [ax.get_ylabel() for ax in explorer.figure().axes] == ["direction 1\nσ = 2", "direction 2\nσ = 1"]
    assert "‖z‖" in SphereExplorer().figure().get_supxlabel()


def test_a_reader_without_a_kernel_is_told(traversal: LatentTraversal) -> None:
    assert repr(traversal) == "LatentTraversal (Latent traversal): run this cell in JupyterLab to use it"


# what is refused ----------------------------------------------------------------------------------------------------


def test_a_model_that_fails_says_so(latents: Tensor) -> None:
    def breaks(x: Tensor) -> Tensor:
        raise RuntimeError("out of <memory>")

    good = Counted(lambda x: x.clamp(-1, 1))
    traversal = LatentTraversal({"good": good, "bad": breaks}, latents, num_frames=2)
    with pytest.raises(RuntimeError, match="out of"):
        traversal.controls["model"].value = "bad"
    assert "cannot draw this: out of &lt;memory&gt;" in traversal.status.value


def test_endpoints_of_different_shapes(generators: dict[str, Counted], latents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one shape \(C, H, W\); got a: \(1, 16, 16\), b: \(1, 8, 8\)"):
        LatentTraversal(generators, {"a": latents[0], "b": torch.zeros(1, 8, 8)})
    with pytest.raises(ValueError, match=r"at least two endpoints; got 1"):
        LatentTraversal(generators, latents[:1])


def test_model_and_latents_that_do_not_match(generators: dict[str, Counted], directions: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'base' takes latents of shape \(1, 16, 16\); got .* \(3, 32, 32\)"):
        LatentTraversal(generators, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"directions of 'base' must be of shape .* got \(3, 2, 1, 16, 16\)"):
        DirectionExplorer(generators, torch.randn(2, *SHAPE), dict.fromkeys(generators, directions))
    with pytest.raises(ValueError, match="unit vectors tangent to the sphere"):
        DirectionExplorer(generators, torch.randn(3, *SHAPE), dict.fromkeys(generators, directions))
    with pytest.raises(ValueError, match=r"directions must be given for the models .* got \['base'\]"):
        DirectionExplorer(generators, torch.randn(3, *SHAPE), {"base": directions})
    with pytest.raises(ValueError, match="at least one model"):
        LatentTraversal({}, torch.randn(2, *SHAPE))


def test_more_directions_than_dimensions() -> None:
    x = torch.tensor([3.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    axes = torch.eye(4)[[1, 2, 3, 1]].reshape(1, 4, 1, 2, 2)
    model = {"identity": lambda x: x.clamp(-1, 1)}
    assert DirectionExplorer(model, x, {"identity": axes[:, :3]}, num_frames=3).film().shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match="at most 3, the dimensions of the tangent space; got 4"):
        DirectionExplorer(model, x, {"identity": axes})


def test_values_out_of_range(traversal: LatentTraversal, explorer: DirectionExplorer) -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="position must lie between 0 and 1; got"):
            traversal.move_to(path="lerp", position=value)
    assert traversal.state["path"] == "slerp"  # all or nothing
    with pytest.raises(ValueError, match=r"gamma must lie between -.* got 100"):
        explorer.move_to(gamma=100)
    with pytest.raises(ValueError, match=r"end must be one of 1, 2, 3; got '4'"):
        traversal.move_to(end="4")
    with pytest.raises(ValueError, match=r"no control 'tau'; there are model, path, start, end, position"):
        traversal.move_to(tau=0.5)
    with pytest.raises(ValueError, match="a film holds every position"):
        traversal.film(position=0.5)
    with pytest.raises(ValueError, match="latitude must lie between -90 and 45; got 90"):
        SphereExplorer(latitude=90)
    with pytest.raises(ValueError, match=r"radius r must lie between 0\.5 and 1\.5; got 0"):
        SphereExplorer(radius=0)


@pytest.mark.parametrize("number", [1, 2.5, True])
def test_films_need_two_frames(generators: dict[str, Counted], latents: Tensor, number: object) -> None:
    with pytest.raises(ValueError, match="num_frames must be an integer of at least 2"):
        LatentTraversal(generators, latents, num_frames=number)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("inf"), float("nan")])
def test_the_largest_gamma_is_positive(
    generators: dict[str, Counted], latents: Tensor, directions: Tensor, gamma: float
) -> None:
    with pytest.raises(ValueError, match="max_gamma must be positive and finite"):
        DirectionExplorer(generators, latents, dict.fromkeys(generators, directions), max_gamma=gamma)
