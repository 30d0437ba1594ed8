"""Move a latent along one of its directions and watch the image change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from isodiff.editing import gamma_traversal
from isodiff.plots.images import image_strip
from isodiff.plots.style import caption
from isodiff.widgets.explorer import menu, slider
from isodiff.widgets.film import FilmExplorer, check_frames, check_generators, strip_indices

_TOLERANCE = 1e-3  # of |‖v‖ − 1| and |v·x̂|: more than float32 makes, less than an eye could see


class DirectionExplorer(FilmExplorer):
    """Show the image of a latent moved by the arc length γ along a tangent direction, for a model at a time.

    Args:
        generators: By model, the map from latents (B, C, H, W) to images in [−1, 1].
        latents: The latents, (B, C, H, W), shared by the models or one such batch for each.
        directions: By model, k unit tangent vectors at each latent, (B, k, C, H, W), the leading one first.
        sigma: By model, the singular value of each direction, (B, k), to be shown with it.
        max_gamma: Largest |γ|, in the units of the latents; by default half the mean radius, 29° either way.
        num_frames: Values of γ; an odd number includes 0.
        batch_size: Latents decoded at a time.
        capacity: Films to keep; each holds ``num_frames`` images in 8 bits.

    Raises:
        ValueError: If models, latents and directions do not match, there are more directions than the tangent space has
            dimensions, or they are not unit tangent vectors, or ``max_gamma`` or ``num_frames`` makes no film.

    Note:
        A choice decodes ``num_frames`` images once; after that, a move only looks one up.
    """

    def __init__(
        self,
        generators: Mapping[str, Callable[[Tensor], Tensor]],
        latents: Tensor | Mapping[str, Tensor],
        directions: Mapping[str, Tensor],
        *,
        sigma: Mapping[str, Tensor] | None = None,
        max_gamma: float | None = None,
        num_frames: int = 33,
        batch_size: int = 64,
        capacity: int = 64,
    ) -> None:
        self.generators, self.directions, self.sigma = dict(generators), dict(directions), dict(sigma or {})
        self.latents = dict.fromkeys(generators, latents) if isinstance(latents, Tensor) else dict(latents)
        self.batch_size = batch_size
        check_frames(num_frames)
        self._check_models()
        check_generators(generators, {model: x.shape[1:] for model, x in self.latents.items()})
        for model in generators:
            _check_directions(model, self.latents[model], self.directions[model])
        number, k = next(iter(self.directions.values())).shape[:2]
        self.max_gamma = self._largest_gamma() if max_gamma is None else float(max_gamma)
        if not 0 < self.max_gamma < math.inf:
            raise ValueError(f"max_gamma must be positive and finite; got {max_gamma!r}")
        menus = {
            "model": menu(list(generators), "model", "Which model, with its own directions"),
            "latent": menu([str(i) for i in range(1, number + 1)], "latent", "Which latent is moved"),
            "direction": menu([str(i) for i in range(1, k + 1)], "direction", "Which direction, the leading one first"),
        }
        step = 2 * self.max_gamma / (num_frames - 1)
        start = -self.max_gamma + step * (num_frames // 2)
        gamma = slider(
            -self.max_gamma,
            self.max_gamma,
            step,
            start,
            "γ",
            "Length of the arc along the direction, negative backwards",
        )
        super().__init__("Directions at a latent", menus, ("gamma", gamma), capacity=capacity)

    def figure(self, *, columns: int = 9, rows: int = 4) -> Figure:
        """Draw the leading directions of the chosen model at the chosen latent.

        Args:
            columns: Values of γ to show.
            rows: Directions to show, or as many as there are.
        """
        state, shown = self.state, strip_indices(self.num_frames, columns)
        names = self.controls["direction"].options[:rows]
        fig = Figure(figsize=(0.9 * columns + 1.4, 0.98 * len(names) + 0.6), layout="constrained")
        labels = [f"{gamma:.3g}" for gamma in self.frame_values()[shown].round(9)]
        for name, ax in zip(names, fig.subplots(len(names), squeeze=False)[:, 0], strict=True):
            images = self.film(direction=name)[shown].float() / 127.5 - 1
            sigma = self._sigma(state["model"], state["latent"], name)
            label = f"direction {name}" + ("" if sigma is None else f"\nσ = {sigma:.3g}")
            image_strip(images, ax, ylabel=label, labels=labels if name == names[-1] else None)
        caption(fig, f"Model {state['model']}, latent {state['latent']}; below, the arc length γ in units of x.")
        return fig

    def _decode(self, model: str, latent: str, direction: str) -> Tensor:
        row = int(latent) - 1
        x, v = self.latents[model][row, None], self.directions[model][row, int(direction) - 1, None]
        gammas = self.frame_values().tolist()
        return gamma_traversal(self.generators[model], x, v, gammas, batch_size=self.batch_size)[0]

    def _describe(self) -> str:
        now = self.state
        radius = float(self.latents[now["model"]][int(now["latent"]) - 1].norm())
        sigma = self._sigma(now["model"], now["latent"], now["direction"])
        return (
            f"{now['model']}: latent {now['latent']}, direction {now['direction']}"
            + ("" if sigma is None else f" (σ = {sigma:.3g})")
            + f", γ = {now['gamma']:.2f}, which is {math.degrees(now['gamma'] / radius):.1f}° on the sphere"
        )

    def _sigma(self, model: str, latent: str, direction: str) -> float | None:
        return float(self.sigma[model][int(latent) - 1, int(direction) - 1]) if self.sigma else None

    def _largest_gamma(self) -> float:
        return sum(float(x.flatten(1).norm(dim=1).mean()) for x in self.latents.values()) / (2 * len(self.latents))

    def _check_models(self) -> None:
        """Refuse latents, directions or singular values of other models, or of other shapes from model to model."""
        given = {"latents": self.latents, "directions": self.directions} | ({"sigma": self.sigma} if self.sigma else {})
        for name, tensors in given.items():
            if tensors.keys() != self.generators.keys():
                raise ValueError(f"{name} must be given for the models {list(self.generators)}; got {list(tensors)}")
        shapes = {model: tuple(v.shape) for model, v in self.directions.items()}
        if len({shape[:2] for shape in shapes.values()}) > 1:
            raise ValueError(f"every model must have as many latents and directions as the others; got {shapes}")
        for model, values in self.sigma.items():
            if values.shape != shapes[model][:2]:
                raise ValueError(f"sigma of {model!r} must be of shape {shapes[model][:2]}; got {tuple(values.shape)}")


def _check_directions(model: str, x: Tensor, v: Tensor) -> None:
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"latents of {model!r} must be of shape (B, C, H, W), B ≥ 1; got {tuple(x.shape)}")
    if v.ndim != 5 or v.shape[0] != x.shape[0] or v.shape[2:] != x.shape[1:] or v.shape[1] == 0:
        raise ValueError(
            f"directions of {model!r} must be of shape {(len(x), 'k', *x.shape[1:])}, k ≥ 1, as its latents are "
            f"{tuple(x.shape)}; got {tuple(v.shape)}"
        )
    if v.shape[1] > x[0].numel() - 1:
        raise ValueError(
            f"directions of {model!r} must be at most {x[0].numel() - 1}, the dimensions of the tangent space; "
            f"got {v.shape[1]}"
        )
    flat, unit = v.flatten(2).double(), torch.nn.functional.normalize(x.flatten(1).double(), dim=1)
    length = (flat.norm(dim=2) - 1).abs().max()
    radial = torch.einsum("bkn,bn->bk", flat, unit).abs().max()
    if not (length < _TOLERANCE and radial < _TOLERANCE):
        raise ValueError(
            f"directions of {model!r} must be unit vectors tangent to the sphere, to {_TOLERANCE:g}; "
            f"their length is off by up to {length:.3g} and their radial part is up to {radial:.3g}"
        )
