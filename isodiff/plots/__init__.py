"""Figures that recur in the course: every plot function is ``(data, ax) -> ax``; matplotlib loads when one is used."""

import lazy_loader

_NAMES = {
    "curves": "WAYS cost_over_resolution difference_forest factor_paths grouped_points training_curves",
    "images": "image_grid image_strip",
    "spheres": "circles_in_chart circles_on_sphere curve globe orthographic scale_bar scale_colour small_circle",
    "style": "COLOURS OTHERS THEORY caption colour_of palette_png show use_style",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={k: v.split() for k, v in _NAMES.items()})
