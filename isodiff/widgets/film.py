"""Films: frames along one parameter, decoded in one batch when a choice is first made and only looked up after that."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from ipywidgets import Dropdown, FloatSlider
from PIL import Image, ImageDraw
from torch import Tensor

from isodiff.metrics.generator import to_uint8
from isodiff.plots.style import COLOURS
from isodiff.widgets.explorer import Explorer

_LARGE, _END, _THUMB, _THUMBS, _GAP, _RAIL = 256, 128, 64, 9, 2, 14  # pixels, but for the number of thumbnails
_WIDTH = _THUMBS * _THUMB + (_THUMBS - 1) * _GAP


class FilmExplorer(Explorer):
    """An explorer of a film: menus choose it, a slider chooses the frame.

    Args:
        title: Shown above.
        menus: By name, what chooses the film; "model" among them.
        sliders: The name and the control that chooses the frame; its range is divided into the frames.
        capacity: Films to keep; the one unused for longest goes first.
    """

    def __init__(
        self, title: str, menus: Mapping[str, Dropdown], sliders: tuple[str, FloatSlider], *, capacity: int
    ) -> None:
        self._menus, (self._slider, control) = list(menus), sliders
        self.num_frames = round((control.max - control.min) / control.step) + 1
        self._film = lru_cache(maxsize=capacity)(self._develop)
        super().__init__(title, {**menus, self._slider: control})

    def film(self, **choices: str) -> Tensor:
        """Return every frame of a film, decoding it if it is not kept.

        Args:
            **choices: By the name of a menu, its value; what is left out is as chosen now.

        Returns:
            (N, C, H, W) in 8 bits.

        Raises:
            ValueError: If there is no such menu or choice.
        """
        if self._slider in choices:
            raise ValueError(f"a film holds every {self._slider}; choose among {', '.join(self._menus)}")
        for name, value in choices.items():
            self._check(name, value)
        return self._film(*({**self.state, **choices}[name] for name in self._menus))

    @property
    def frame(self) -> int:
        """The number of the frame that is shown, from 0."""
        control = self.controls[self._slider]
        return round((control.value - control.min) / control.step)

    def frame_values(self) -> np.ndarray:
        """Return the slider's value at every frame."""
        control = self.controls[self._slider]
        return np.linspace(control.min, control.max, self.num_frames)

    @abstractmethod
    def _decode(self, *choices: str) -> Tensor:
        """Return the frames (N, C, H, W) in [−1, 1] of the film that the menus choose."""

    @abstractmethod
    def _describe(self) -> str:
        """Say what is shown."""

    def _develop(self, *choices: str) -> Tensor:
        self._say(f"decoding {self.num_frames} frames …")
        return to_uint8(self._decode(*choices)).cpu()

    def _draw(self) -> tuple[bytes, str]:
        return film_png(self.film(), self.frame, COLOURS.get(self.state["model"], COLOURS["slerp"])), self._describe()


def film_png(film: Tensor, frame: int, colour: str) -> bytes:
    """Return one frame, large, between the first and the last, above a strip of the film with a mark at the frame.

    Args:
        film: (N, C, H, W) in 8 bits, C of 1 or 3.
        frame: Which is large.
        colour: Of the mark.

    Returns:
        A PNG on a transparent ground, 592 pixels wide.
    """
    tall = film.shape[2] / film.shape[3]
    large, end, thumb = (round(side * tall) for side in (_LARGE, _END, _THUMB))
    canvas = Image.new("RGBA", (_WIDTH, large + 2 * _GAP + thumb + _RAIL))
    canvas.paste(_pixels(film[frame], _LARGE), ((_WIDTH - _LARGE) // 2, 0))
    canvas.paste(_pixels(film[0], _END), (0, (large - end) // 2))
    canvas.paste(_pixels(film[-1], _END), (_WIDTH - _END, (large - end) // 2))
    top = large + 2 * _GAP
    for column, index in enumerate(strip_indices(len(film))):
        canvas.paste(_pixels(film[index], _THUMB), (column * (_THUMB + _GAP), top))
    rail, middle = top + thumb + _RAIL // 2, _THUMB // 2
    mark = middle + frame / (len(film) - 1) * (_WIDTH - 2 * middle)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((middle, rail - 1, _WIDTH - middle, rail), fill="#c5ccd6")
    draw.rectangle((mark - 6, rail - 5, mark + 6, rail + 5), fill=colour)
    png = io.BytesIO()
    canvas.save(png, "png", compress_level=1)
    return png.getvalue()


def strip_indices(number: int, columns: int = _THUMBS) -> list[int]:
    """Return the numbers of frames at equal distances, the first and the last among them."""
    return [round(index) for index in np.linspace(0, number - 1, columns)]


def check_generators(
    generators: Mapping[str, Callable[[Tensor], Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse models whose latents have another shape than those given, as far as a model tells its own.

    Args:
        generators: By model, the map from latents to images, perhaps with the attribute ``shape``.
        shapes: By model, the shape of one given latent.

    Raises:
        ValueError: If there is no model, or one expects another shape.
    """
    if not generators:
        raise ValueError("generators must hold at least one model; got none")
    for model, generate in generators.items():
        expected = getattr(generate, "shape", None)
        if expected is not None and tuple(expected) != tuple(shapes[model]):
            raise ValueError(
                f"model {model!r} takes latents of shape {tuple(expected)}; got latents of shape {tuple(shapes[model])}"
            )


def check_frames(num_frames: int) -> None:
    """Refuse a film of fewer than two frames."""
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 2:
        raise ValueError(f"num_frames must be an integer of at least 2; got {num_frames!r}")


def _pixels(image: Tensor, width: int) -> Image.Image:
    """Return an image at a given width: enlarged, every pixel stays a rectangle."""
    array = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    size = (width, round(width * array.shape[0] / array.shape[1]))
    how = Image.Resampling.NEAREST if array.shape[1] <= width else Image.Resampling.BOX
    return Image.fromarray(array).resize(size, how)
