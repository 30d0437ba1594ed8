"""Walk between two latents and watch the image change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from matplotlib.figure import Figure
from torch import Tensor

from isodiff.editing import traverse
from isodiff.geometry.sphere import lerp, slerp
from isodiff.plots.images import image_strip
from isodiff.plots.style import caption
from isodiff.widgets.explorer import menu, slider
from isodiff.widgets.film import FilmExplorer, check_frames, check_generators, strip_indices

PATHS = MappingProxyType({"slerp": slerp, "lerp": lerp})


class LatentTraversal(FilmExplorer):
    """Show the image at a position on a path between two latents, for a model at a time.

    Args:
        generators: By model, the map from latents (B, C, H, W) to images in [−1, 1].
        latents: By name, one latent (C, H, W); or a batch (B, C, H, W), whose names are then "1", "2", ….
        paths: By name, ``(a, b, τ) → point``, as `isodiff.editing.traverse` takes them.
        num_frames: Positions on a path.
        batch_size: Latents decoded at a time.
        capacity: Paths to keep decoded; each holds ``num_frames`` images in 8 bits.

    Raises:
        ValueError: If there are fewer than two latents or they differ in shape, there is no model or path, a model
            takes latents of another shape, or ``num_frames`` is below 2.

    Note:
        A choice decodes ``num_frames`` images once; after that, a move only looks one up.
    """

    def __init__(
        self,
        generators: Mapping[str, Callable[[Tensor], Tensor]],
        latents: Tensor | Mapping[str, Tensor],
        *,
        paths: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = PATHS,
        num_frames: int = 33,
        batch_size: int = 64,
        capacity: int = 64,
    ) -> None:
        if isinstance(latents, Tensor):
            latents = {str(number): latent for number, latent in enumerate(latents, start=1)}
        shapes = {name: latent.shape for name, latent in latents.items()}
        if len(shapes) < 2:
            raise ValueError(f"latents must hold at least two endpoints; got {len(shapes)}")
        if len(set(shapes.values())) > 1 or any(len(shape) != 3 for shape in shapes.values()):
            got = ", ".join(f"{name}: {tuple(shape)}" for name, shape in shapes.items())
            raise ValueError(f"endpoints must all have one shape (C, H, W); got {got}")
        if not paths:
            raise ValueError("paths must hold at least one path; got none")
        check_frames(num_frames)
        names = list(latents)
        check_generators(generators, dict.fromkeys(generators, shapes[names[0]]))
        self.generators, self.latents, self.paths = dict(generators), dict(latents), dict(paths)
        self.batch_size = batch_size
        menus = {
            "model": menu(list(generators), "model", "Which model decodes the latents"),
            "path": menu(list(paths), "path", "How the two latents are joined"),
            "start": menu(names, "start", "The latent at position 0"),
            "end": menu(names, "end", "The latent at position 1", value=names[1]),
        }
        step = 1 / (num_frames - 1)
        middle = step * (num_frames // 2)
        position = slider(0, 1, step, middle, "position", "How far along the path, 0 at the start and 1 at the end")
        super().__init__("Latent traversal", menus, ("position", position), capacity=capacity)

    def figure(self, *, columns: int = 9) -> Figure:
        """Draw the chosen path once for every model.

        Args:
            columns: Positions to show.
        """
        state, shown = self.state, strip_indices(self.num_frames, columns)
        rows = {model: self.film(model=model)[shown].float() / 127.5 - 1 for model in self.generators}
        fig = Figure(figsize=(0.9 * columns + 1, 0.98 * len(rows) + 0.6), layout="constrained")
        labels = [f"{tau:.2f}" for tau in self.frame_values()[shown]]
        axes = fig.subplots(len(rows), squeeze=False)[:, 0]
        for ax, (model, images) in zip(axes, rows.items(), strict=True):
            image_strip(images, ax, ylabel=model, labels=labels if ax is axes[-1] else None)
        caption(fig, f"{state['path']} from latent {state['start']} to latent {state['end']}; position below, 0 to 1.")
        return fig

    def _decode(self, model: str, path: str, start: str, end: str) -> Tensor:
        ends = (self.latents[start][None], self.latents[end][None])
        return traverse(
            self.generators[model], *ends, self.num_frames, path=self.paths[path], batch_size=self.batch_size
        )[0]

    def _describe(self) -> str:
        now = self.state
        return (
            f"{now['model']}: {now['path']} from latent {now['start']} to latent {now['end']}, "
            f"position {now['position']:.2f}"
        )
