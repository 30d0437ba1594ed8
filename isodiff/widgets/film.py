"""Films: frames along one parameter, decoded in one batch when a choice is first made and only looked up after that."""

import io
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from ipywidgets import Dropdown
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from isodiff.editing import Generate, Path, gamma_traversal, traverse
from isodiff.metrics import to_uint8
from isodiff.plots import COLOURS, caption, image_strip
from isodiff.widgets.explorer import Explorer, slider

Models, Tensors = Mapping[str, Generate], Mapping[str, Tensor]


class FilmExplorer(Explorer):
    """Menus choose a film, "model" the first of them, and a last control its frame; 64 films are kept in 8 bits."""

    def __init__(self, title: str, menus: dict[str, tuple[list[str], str]], frames: np.ndarray, name: str) -> None:
        self.frames, self.film = frames, lru_cache(maxsize=64)(lambda *chosen: to_uint8(self._decode(*chosen)[0]).cpu())
        controls = {key: Dropdown(options=o, description=key, tooltip=tip) for key, (o, tip) in menus.items()}
        tip = "How far along: arrow keys move it frame by frame"
        super().__init__(title, controls | {name: slider(frames, name, tip, frames[len(frames) // 2])})

    def _draw(self) -> tuple[bytes, str]:
        *menus, value = self.state.values()
        return film_png(self.film(*menus), int(np.abs(self.frames - value).argmin()), menus[0]), self._describe()

    def _strips(self, films: dict[str, Tensor], form: str, text: str, width: float) -> Figure:
        shown, fig = nine(len(self.frames)), Figure(figsize=(width, 0.98 * len(films) + 0.6), layout="constrained")
        axes = fig.subplots(len(films), squeeze=False)[:, 0]
        for ax, (name, film) in zip(axes, films.items(), strict=True):
            labels = [format(value, form) for value in self.frames[shown].round(9)] if ax is axes[-1] else None
            image_strip(film[shown].float() / 127.5 - 1, ax, ylabel=name, labels=labels)
        caption(fig, text.format(**self.state))
        return fig


class LatentTraversal(FilmExplorer):
    """Show the image at a position on a path between two of the latents (B, C, H, W), for a model at a time."""

    def __init__(self, models: Models, latents: Tensor, *, paths: Mapping[str, Path], num_frames: int) -> None:
        if not models or len(latents) < 2 or not paths or num_frames < 2:
            got = f"{len(models)}, {len(latents)}, {len(paths)} and {num_frames}"
            raise ValueError(f"give at least one model, two latents, one path and two frames; got {got}")
        self.models, self.latents, self.paths = models, latents, paths
        first, second, *others = [str(i + 1) for i in range(len(latents))]
        menus = {
            "model": (list(models), "Which model decodes the latents"),
            "path": (list(paths), "How the two latents are joined"),
            "start": ([first, second, *others], "The latent at position 0"),
            "end": ([second, first, *others], "The latent at position 1"),
        }
        super().__init__("Latent traversal", menus, np.linspace(0, 1, num_frames), "position")

    def figure(self) -> Figure:
        """Draw the chosen path once for every model."""
        _, *path, _ = self.state.values()
        films = {model: self.film(model, *path) for model in self.models}
        return self._strips(films, ".2f", "{path} from latent {start} to latent {end}; position below, 0 to 1.", 9.1)

    def _decode(self, model: str, path: str, start: str, end: str) -> Tensor:
        a, b = (self.latents[int(name) - 1][None] for name in (start, end))
        return traverse(self.models[model], a, b, len(self.frames), path=self.paths[path])

    def _describe(self) -> str:
        return "{model}: {path} from latent {start} to latent {end}, position {position:.2f}".format(**self.state)


class DirectionExplorer(FilmExplorer):
    """Show the image of a latent moved by the arc length γ, up to ±`max_gamma`, along a tangent direction.

    The latents are (B, C, H, W), the directions (B, k, C, H, W) and singular values sigma (B, k) each model's own.
    """

    def __init__(
        self, models: Models, latents: Tensor, directions: Tensors, *, sigma: Tensors, max_gamma: float, num_frames: int
    ) -> None:
        k = min((v.shape[1] for v in directions.values()), default=0)
        wanted = dict.fromkeys(models, (len(latents), k, *latents.shape[1:]))
        found = {model: tuple(v.shape) for model, v in directions.items()}
        scales = {model: (*s.shape, *latents.shape[1:]) for model, s in sigma.items()}
        if not found == wanted == scales or not 0 < k < latents[0].numel():
            raise ValueError(
                "directions (B, k, C, H, W), k below the dimension, and sigma (B, k) must be given for the models "
                f"{list(models)} at the latents {tuple(latents.shape)}; got {found}, {scales}"
            )
        if not 0 < max_gamma < math.inf or num_frames < 2:
            raise ValueError(f"max_gamma must be positive, num_frames at least 2; got {max_gamma!r}, {num_frames!r}")
        self.models, self.latents, self.directions, self.sigma = models, latents, directions, sigma
        menus = {
            "model": (list(models), "Which model, with its own directions"),
            "latent": ([str(i + 1) for i in range(len(latents))], "Which latent is moved"),
            "direction": ([str(i + 1) for i in range(k)], "Which direction, the leading one first"),
        }
        super().__init__("Directions at a latent", menus, np.linspace(-max_gamma, max_gamma, num_frames), "γ")

    def figure(self) -> Figure:
        """Draw the leading directions, at most four, of the chosen model at the chosen latent."""
        model, latent, *_ = self.state.values()
        leading = self.controls["direction"].options[:4]
        films = {f"direction {v}\nσ = {self._scale(v)}": self.film(model, latent, v) for v in leading}
        return self._strips(films, ".3g", "Model {model}, latent {latent}; below, the arc length γ in units of x.", 9.5)

    def _decode(self, model: str, latent: str, direction: str) -> Tensor:
        x, v = self.latents[int(latent) - 1], self.directions[model][int(latent) - 1, int(direction) - 1]
        return gamma_traversal(self.models[model], x[None], v[None], self.frames.tolist())

    def _scale(self, direction: str) -> str:
        model, latent, *_ = self.state.values()
        return f"{self.sigma[model][int(latent) - 1, int(direction) - 1].item():.3g}"

    def _describe(self) -> str:
        model, latent, v, gamma = self.state.values()
        angle = math.degrees(gamma / float(self.latents[int(latent) - 1].norm()))
        which = f"{model}: latent {latent}, direction {v} (σ = {self._scale(v)})"
        return f"{which}, γ = {gamma:.2f}, which is {angle:.1f}° on the sphere"


def film_png(film: Tensor, frame: int, model: str) -> bytes:
    """Return a PNG of one frame of (N, C, H, W), large, between the ends, above a strip with a mark at the frame."""
    tall = film.shape[2] / film.shape[3]
    canvas, top, png = Image.new("RGBA", (592, round(320 * tall) + 18)), round(256 * tall) + 4, io.BytesIO()
    places = [(frame, 256, 168, 0), (0, 128, 0, round(64 * tall)), (-1, 128, 464, round(64 * tall))]
    places += [(index, 64, 66 * column, top) for column, index in enumerate(nine(len(film)))]
    for index, width, *place in places:
        array = film[index].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        how = Image.Resampling.NEAREST if array.shape[1] <= width else Image.Resampling.BOX  # pixels stay rectangles
        canvas.paste(Image.fromarray(array).resize((width, round(width * tall)), how), tuple(place))
    rail, mark, colour = canvas.height - 7, 32 + frame / (len(film) - 1) * 528, COLOURS.get(model, COLOURS["slerp"])
    ImageDraw.Draw(canvas).rectangle((32, rail - 1, 560, rail), fill="#c5ccd6")
    ImageDraw.Draw(canvas).rectangle((mark - 6, rail - 5, mark + 6, rail + 5), fill=colour)
    canvas.save(png, "png", compress_level=1)
    return png.getvalue()


def nine(number: int) -> list[int]:
    """Return the numbers of nine frames at equal distances, the first and the last among them."""
    return np.linspace(0, number - 1, 9).round().astype(int).tolist()
