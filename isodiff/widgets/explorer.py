"""What every explorer shares: labelled controls, one picture, a line that says what it shows, and a reset."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from ipywidgets import HTML, Box, Button, Dropdown, FloatSlider, Image, Layout, VBox
from traitlets import Unicode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HINT = "Tab, then arrow keys; Space opens a menu."


class Picture(Image):
    """An image with a text for those who do not see it: its tooltip, which the page shows as the title."""

    description = Unicode("").tag(sync=True)  # ipywidgets 8 asks for it before it shows a tooltip; an Image has none


class Explorer(VBox):
    """Controls beside one picture that always shows what they say.

    Args:
        title: Shown above, and the name of the explorer for a screen reader.
        controls: By name, the sliders and menus; their values now are those that *Reset* restores.

    Attributes:
        controls: By name, the sliders and menus.
        picture: The picture, a PNG.
        status: What it shows, in words.
    """

    def __init__(self, title: str, controls: Mapping[str, Dropdown | FloatSlider]) -> None:
        self.controls = dict(controls)
        self._initial = self.state
        self._held = False
        self.picture = Picture(format="png", layout=Layout(max_width="100%", align_self="flex-start"))
        self.status = HTML()
        self.reset_button = Button(
            description="Reset",
            icon="undo",
            tooltip="Put every control back to where it began",
            layout=Layout(width="auto", align_self="flex-start", margin="6px 0 2px 2px"),
        )
        self.reset_button.on_click(lambda _: self.reset())
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        heading = HTML(f'<span role="heading" aria-level="4" style="font-weight:600">{escape(title)}</span>')
        hint = HTML(f'<span style="opacity:0.75;font-size:90%">{_HINT}</span>')
        panel = VBox([*self.controls.values(), self.reset_button, hint], layout=Layout(width="340px"))
        view = VBox([self.picture, self.status], layout=Layout(flex="1 1 560px", min_width="0", overflow="hidden"))
        beside = Box([panel, view], layout=Layout(display="flex", flex_flow="row wrap", grid_gap="12px 24px"))
        self._title = title
        super().__init__([heading, beside], layout=Layout(overflow="hidden"))
        self.update()

    @property
    def state(self) -> dict[str, Any]:
        """The value of every control, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def move_to(self, **values: str | float) -> None:
        """Move controls to given values and draw once.

        Args:
            **values: By the name of a control, its value.

        Raises:
            ValueError: If there is no such control, or it does not go there; then nothing has moved.
        """
        for name, value in values.items():
            self._check(name, value)
        self._held = True
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self._held = False
        self.update()

    def reset(self) -> None:
        """Put every control back to where it began."""
        self.move_to(**self._initial)

    def update(self) -> None:
        """Draw what the controls say."""
        try:
            picture, text = self._draw()
        except Exception as error:  # raised in a callback, it would reach the log alone and not the reader
            self._say(f"cannot draw this: {error}")
            raise
        self.picture.value = picture
        self._say(text)

    @abstractmethod
    def figure(self) -> Figure:
        """Draw what the explorer shows as a figure, which reads without a kernel."""

    @abstractmethod
    def _draw(self) -> tuple[bytes, str]:
        """Return the picture for the present state as a PNG, and what it shows in words."""

    def _say(self, text: str) -> None:
        self.status.value = f'<span role="status" aria-live="polite" style="line-height:1.5">{escape(text)}</span>'
        self.picture.tooltip = text

    def _changed(self, _: object) -> None:
        if not self._held:
            self.update()

    def _check(self, name: str, value: str | float) -> None:
        if name not in self.controls:
            raise ValueError(f"there is no control {name!r}; there are {', '.join(self.controls)}")
        control = self.controls[name]
        if isinstance(control, Dropdown):
            if value not in control.options:
                raise ValueError(f"{name} must be one of {', '.join(map(str, control.options))}; got {value!r}")
        else:
            _require_range(name, value, control.min, control.max)

    def __repr__(self) -> str:
        """Say what a reader without a kernel is missing."""
        return f"{type(self).__name__} ({self._title}): run this cell in JupyterLab to use it"


def menu(options: list[str], description: str, tooltip: str, *, value: str | None = None) -> Dropdown:
    """Return a labelled menu."""
    return Dropdown(
        options=options,
        value=options[0] if value is None else value,
        description=description,
        tooltip=tooltip,
        style={"description_width": "80px"},
        layout=Layout(width="320px"),
    )


def slider(
    low: float, high: float, step: float, value: float, description: str, tooltip: str, *, form: str = ".2f"
) -> FloatSlider:
    """Return a labelled slider that reports every step of the way; it refuses to begin out of its range."""
    _require_range(description, value, low, high)
    return FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        description=description,
        tooltip=tooltip,
        readout_format=form,
        style={"description_width": "80px"},
        layout=Layout(width="320px"),
    )


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g}; got {value!r}")
