"""What every explorer shares: labelled controls, one picture, a line that says what it shows, and a reset."""

from abc import abstractmethod
from html import escape
from typing import Any

import numpy as np
from ipywidgets import HTML, Box, Button, Dropdown, FloatSlider, Image, Layout, Output, VBox
from traitlets import Unicode

# once on the page: names for a slider's handle and number, which ipywidgets leaves without; and the arrow keys, which
# Notebook 7 would take for itself
_NAMES = """
let tries = 100;
const timer = setInterval(() => {
  const root = element.closest('.isodiff-explorer');
  const controls = root?.querySelectorAll('[role=slider], select') ?? [];
  for (const control of controls) {
    control.dataset.lmSuppressShortcuts = 'true';
    const slider = control.closest('.widget-slider'), number = slider?.querySelector('.widget-readout');
    const name = slider?.querySelector('.widget-label').textContent;
    if (slider) control.setAttribute('aria-label', name);
    number?.setAttribute('role', 'textbox');
    number?.setAttribute('aria-label', `${name}, as a number`);
  }
  if (controls.length || !--tries) clearInterval(timer);
}, 100);
"""


class Picture(Image):
    """An image with a text for those who do not see it: its tooltip, which the page shows as the title."""

    description = Unicode("").tag(sync=True)  # ipywidgets 8 asks for it before it shows a tooltip; an Image has none


class Explorer(VBox):
    """Sliders and menus by name, with the values that *Reset* restores, beside a picture of what they say."""

    def __init__(self, title: str, controls: dict[str, Dropdown | FloatSlider]) -> None:
        self.controls, self._title, self._held, self.status = controls, title, False, HTML()
        self._initial = self.state
        self.picture = Picture(format="png", layout=Layout(max_width="100%", align_self="flex-start"))
        self.reset_button = Button(description="Reset", icon="undo", tooltip="Put every control back to where it began")
        self.reset_button.layout = Layout(width="auto", align_self="flex-start", margin="6px 0 2px 2px")
        self.reset_button.on_click(self._reset)
        for control in controls.values():
            control.style.description_width, control.layout.width = "80px", "320px"
            control.observe(lambda _: self._held or self.update(), names="value")
        heading = HTML(f'<span role="heading" aria-level="4" style="font-weight:600">{escape(title)}</span>')
        hint = HTML('<span style="opacity:0.75;font-size:90%">Tab, then arrow keys; Space opens a menu.</span>')
        panel = VBox([*controls.values(), self.reset_button, hint], layout=Layout(width="340px"))
        view = VBox([self.picture, self.status], layout=Layout(flex="1 1 560px", min_width="0", overflow="hidden"))
        beside = Box([panel, view], layout=Layout(display="flex", flex_flow="row wrap", grid_gap="12px 24px"))
        script = {"output_type": "display_data", "data": {"application/javascript": _NAMES}, "metadata": {}}
        names = Output(outputs=(script,), layout=Layout(display="none"))
        super().__init__([heading, beside, names], layout=Layout(overflow="hidden"))
        self.add_class("isodiff-explorer")
        self.update()

    @property
    def state(self) -> dict[str, Any]:
        """The value of every control, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def update(self) -> None:
        """Draw what the controls say."""
        try:
            self.picture.value, text = self._draw()
        except Exception as error:  # raised in a callback, it would reach the log alone and not the reader
            self._say(f"cannot draw this: {error}")
            raise
        self._say(text)

    @abstractmethod
    def _draw(self) -> tuple[bytes, str]:
        """Return the picture for the present state as a PNG, and what it shows in words."""

    def _reset(self, _: Button) -> None:
        self._held = True  # draw once, no state in between
        for name, value in self._initial.items():
            self.controls[name].value = value
        self._held = False
        self.update()

    def _say(self, text: str) -> None:
        self.status.value = f'<span role="status" aria-live="polite" style="line-height:1.5">{escape(text)}</span>'
        self.picture.tooltip = text

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self._title}): run this cell in JupyterLab or Notebook 7 to use it"


def slider(values: np.ndarray, label: str, tooltip: str, start: float, form: str = ".2f") -> FloatSlider:
    """Return a labelled slider over equal steps that reports each on the way."""
    low, high, step = values[0], values[-1], (values[-1] - values[0]) / (len(values) - 1)
    return FloatSlider(start, min=low, max=high, step=step, readout_format=form, description=label, tooltip=tooltip)
