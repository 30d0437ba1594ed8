r"""Cartoon faces whose manifold, tangent spaces and attributes are known exactly.

A face is x = render(z), z ∈ [−1, 1]¹⁰: the data manifold is the image of a cube under a smooth map, with the tangent
space at x spanned by the ten columns of ∂render/∂z. A shape is a smooth signed distance d, positive inside, turned into
a coverage m = σ(d / w) with an edge w of about half a pixel. Layers are composited from front to back,

    x = Σₖ wₖ cₖ,    wₖ = mₖ Πⱼ₍before k₎ (1 − mⱼ),

with colours cₖ that depend on z as well. Coordinates: u to the right, v downwards, both in [−1, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

FACTORS = (  # the columns of `factors`; −1 and 1 are, for example, a frown and a smile
    "smile", "hair_length", "hair_colour", "skin_tone", "face_width",
    "eye_size", "glasses", "pose", "age", "background",
)  # fmt: skip
_CHUNK_PIXELS = 32 * 4096  # images are rendered in pieces that stay in the processor's cache

# Quadratic Bézier curves in RGB: start, control and end colour of each factor that paints.
_SKIN = ((0.99, 0.86, 0.74), (0.90, 0.66, 0.50), (0.47, 0.30, 0.22))
_HAIR = ((0.13, 0.10, 0.12), (0.52, 0.20, 0.10), (0.96, 0.80, 0.44))
_BACKGROUND = ((0.98, 0.74, 0.62), (0.84, 0.92, 0.74), (0.45, 0.68, 0.90))


def _bezier(z: Tensor, points: Sequence[Sequence[float]]) -> Tensor:
    """Return the colour (B, 3) at z ∈ [−1, 1] on a quadratic Bézier curve."""
    start, control, end = torch.tensor(points, dtype=z.dtype, device=z.device)
    s = (z.view(-1, 1) + 1) / 2
    return (1 - s) ** 2 * start + 2 * s * (1 - s) * control + s**2 * end


def _ellipse(u: Tensor, v: Tensor, a: Tensor | float, b: Tensor | float, power: int = 2) -> Tensor:
    """Return the distance, to first order, to the superellipse (u/a)ᵖ + (v/b)ᵖ = 1."""
    scale = torch.minimum(torch.as_tensor(a).to(u), torch.as_tensor(b).to(u)) / power  # u and v meet in the sum only
    return scale * (1 - (u / a) ** power) - scale * (v / b) ** power


def _draw(z: Tensor, resolution: int) -> Tensor:
    """Return pictures (B, 3, R, R) in [0, 1]."""
    centres = (torch.arange(resolution, dtype=z.dtype, device=z.device) + 0.5) * (2 / resolution) - 1
    u_wall, v = centres.view(1, 1, -1), centres.view(1, -1, 1)
    clear, weights, colours = torch.ones_like(v), [], []

    def cover(distance: Tensor, blur: float = 0.0) -> Tensor:
        """Return the coverage σ(d / w) of a shape; the blur of its edge does not depend on the resolution."""
        return torch.sigmoid(distance * (1 / (0.8 / resolution + blur)))

    def paint(mask: Tensor, colour: Tensor) -> None:
        """Put a layer of the given coverage (B, R, R) and colour (B or 1, 3) behind all layers painted so far."""
        nonlocal clear
        weight = mask * clear
        clear = clear - weight
        weights.append(weight)
        colours.append(colour.expand(len(z), 3))

    def rgb(*colour: float) -> Tensor:
        return torch.tensor([colour], dtype=z.dtype, device=z.device)

    smile, hair_length, hair_colour, skin_tone, face_width, eye_size, glasses, pose, age, background = (
        column.view(-1, 1, 1) for column in z.unbind(1)
    )
    years = (age + 1) / 2
    skin, wall = _bezier(skin_tone, _SKIN), _bezier(background, _BACKGROUND)
    grey = 0.75 * years.view(-1, 1) ** 2
    hair = (1 - grey) * _bezier(hair_colour, _HAIR) + grey * rgb(0.83, 0.84, 0.86)
    white = rgb(0.99, 0.99, 0.98)

    # The head stays put while its features slide over it: enough to read as a turn of the head.
    width = 0.53 + 0.09 * face_width
    u_head, v_head, u = u_wall - 0.03 * pose, v - 0.10, u_wall - 0.15 * pose
    side = torch.sqrt(u**2 + 1e-4)  # a smooth |u|: left and right features are drawn at once

    # Glasses.
    eye_u, eye_v = 0.22 + 0.025 * face_width, 0.06
    lens = _ellipse(side - eye_u, v - eye_v, 0.180, 0.155, power=4)
    rim = cover(0.018 - torch.abs(lens))
    bridge = cover(0.016 - torch.abs(v - eye_v + 0.03)) * cover(eye_u - 0.18 - side)
    paint(0.475 * (glasses + 1) * torch.maximum(rim, bridge), rgb(0.16, 0.16, 0.24))

    # Eyes: highlights, pupil, iris, upper lid and white.
    gaze, size = side - eye_u, 1 + 0.30 * eye_size
    for eye in (eye_u, -eye_u):
        paint(cover(_ellipse(u - eye - 0.018, v - eye_v + 0.026 * size, 0.018, 0.018)), white)
    ball = cover(_ellipse(gaze, v - eye_v, 0.108 * size, 0.078 * size))
    lid = cover(_ellipse(gaze, v - eye_v + 0.016, 0.122 * size, 0.088 * size))
    iris = ball * cover(_ellipse(gaze, v - eye_v, 0.064 * size, 0.070 * size))
    paint(cover(_ellipse(gaze, v - eye_v, 0.034 * size, 0.038 * size)), rgb(0.12, 0.10, 0.14))
    paint(iris, rgb(0.25, 0.42, 0.50))
    paint(ball, white)
    paint(0.8 * lid, 0.40 * skin)

    # Brows rise with the eyes.
    arch = eye_v - 0.160 - 0.05 * eye_size + 1.6 * gaze**2
    brow = cover(0.022 - torch.abs(v - arch)) * cover(0.120 - torch.abs(gaze))
    paint(0.9 * brow, 0.6 * hair)

    # Mouth: a bent spindle between two lips; it opens as the smile widens.
    half = 0.195 + 0.035 * smile
    bow = 1 - (u / half) ** 2
    middle = 0.475 + (0.070 * smile + 0.015 * smile**2) * torch.clamp(bow, min=-0.5) - 0.03 * smile
    mouth = (0.018 + 0.022 * (1 + smile)) * bow - torch.abs(v - middle)
    teeth = cover(mouth - 0.006) * cover(middle - v + 0.004)
    paint(0.45 * (smile + 1) * teeth, white)
    paint(cover(mouth), rgb(0.50, 0.13, 0.17))
    lips = cover(mouth + 0.020) * cover(half + 0.015 - side)
    paint(0.8 * lips, 0.72 * skin * rgb(1.0, 0.72, 0.72))

    # Nose: the shadow under its tip and the light on its ridge.
    u_nose = u_wall - 0.19 * pose
    paint(0.6 * cover(_ellipse(u_nose, v - 0.285, 0.060, 0.026), 0.01), 0.70 * skin)
    paint(0.35 * cover(_ellipse(u_nose, v - 0.17, 0.032, 0.115), 0.02), 0.25 + 0.75 * skin)

    # Age: folds beside the mouth, lines on the forehead.
    crease = cover(0.012 - torch.abs(side - 0.170 - 0.42 * (v - 0.27)))
    fold = crease * cover(0.085 - torch.abs(v - 0.355))
    wave = torch.abs(torch.abs(v + 0.255 - 0.12 * u**2) - 0.040)
    lines = cover(0.010 - wave) * cover(0.20 - side)
    paint(0.75 * years * torch.maximum(fold, lines), 0.55 * skin)

    # The fringe hangs over the forehead and draws back with age.
    crown = cover(_ellipse(u_head, v + 0.11, width + 0.12, 0.73)) * torch.sigmoid(25 * (0.16 - v))
    hairline = -0.27 - 0.15 * years + 0.75 * (u_head - 0.03 * pose) ** 2
    paint(crown * cover(hairline - v), hair)
    face = cover(_ellipse(u_head * (1 + 0.16 * (v_head + 0.2)), v_head, width, 0.70))
    paint(0.30 * face * cover(hairline + 0.06 - v, 0.03), 0.5 * skin)

    # Blush and face, lit from above; the jaw is narrower than the temples.
    blush = cover(_ellipse(side - 0.31, v - 0.30, 0.10, 0.07), 0.03)
    paint(0.35 * face * blush, 0.9 * skin * rgb(1.05, 0.72, 0.72))
    paint(face * (0.35 * torch.sigmoid(-4 * (v + 0.05))), 0.18 + 0.82 * skin)
    paint(face, skin)

    # Ears, neck and the shadow of the chin.
    ear = torch.sqrt((u_wall + 0.05 * pose) ** 2 + 1e-4) - width
    paint(cover(_ellipse(ear, v - 0.12, 0.080, 0.120)), 0.88 * skin)
    neck = cover(_ellipse(u_wall, v - 0.62, 0.22, 0.36, power=4))
    paint(0.55 * neck * cover(0.85 - v, 0.04), 0.68 * skin)
    paint(neck, 0.88 * skin)

    # Hair: a round crown, and behind the head a mane from a short crop to below the shoulders, darker towards its tips.
    top, bottom = -0.45, 0.30 + 0.50 * (hair_length + 1)
    mane_width, mane_height = width + 0.11 + 0.05 * hair_length, (bottom - top) / 2
    tresses = cover(_ellipse(u_head, v - (top + bottom) / 2, mane_width, mane_height, power=4))
    paint(tresses * (0.35 * torch.sigmoid(5 * (v - 0.1))), 0.55 * hair)
    paint(crown, hair)
    paint(tresses, hair)

    # Clothes with a collar, and a wall that is lighter around the head.
    collar = cover(0.03 - torch.abs(_ellipse(u_wall, v - 0.86, 0.30, 0.16)))
    shoulders = cover(_ellipse(u_wall, v - 1.30, 0.90, 0.50))
    paint(0.6 * shoulders * collar, rgb(0.86, 0.88, 0.95))
    paint(shoulders, rgb(0.28, 0.33, 0.52))
    paint(0.5 * cover(_ellipse(u_wall, v + 0.1, 0.9, 0.9), 0.15), 0.4 + 0.6 * wall)
    paint(torch.ones_like(clear), 0.94 * wall)
    shape = (len(z), resolution, resolution)
    layers = torch.stack([weight.expand(shape).flatten(1) for weight in weights], dim=1)
    return torch.bmm(torch.stack(colours, dim=2), layers).unflatten(2, shape[1:])


def render(factors: Tensor, resolution: int) -> Tensor:
    """Render factors (B, 10) in [−1, 1], columns as in `FACTORS`, as images (B, 3, R, R) in [−1, 1], differentiably."""
    _check(factors, resolution)
    pieces = [_draw(piece, resolution) for piece in factors.split(max(1, _CHUNK_PIXELS // resolution**2))]
    return 2 * torch.cat(pieces) - 1


def sample_factors(num: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw (num, 10) factors, i.i.d. uniform on [−1, 1]¹⁰: the distribution of the data."""
    return 2 * torch.rand(num, len(FACTORS), generator=generator, dtype=dtype) - 1


def _check(factors: Tensor, resolution: int) -> None:
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS) or not factors.is_floating_point():
        got = f"{factors.dtype} of shape {tuple(factors.shape)}"
        raise ValueError(f"factors must be floating-point (B, 10), with columns {', '.join(FACTORS)}; got {got}")
    if not 8 <= resolution <= 1024:
        raise ValueError(f"resolution must be 8 to 1024 pixels; got {resolution}")
    largest = factors.detach().abs().max().item() if len(factors) else 0.0
    if not largest <= 1 + 1e-6:
        raise ValueError(f"factors must lie in [-1, 1]; got a largest magnitude of {largest}")


class FacesDataset(Dataset[Tensor]):
    """An endless supply of faces: item i is the face of the i-th row of `factors`, drawn from `seed`."""

    channels, horizontal_flip = 3, False  # mirroring changes the sign of `pose`, which has both already

    def __init__(self, resolution: int, *, num_images: int = 1_000_000, seed: int = 0) -> None:
        _check(torch.zeros(1, len(FACTORS)), resolution)
        self.resolution = resolution
        self.factors = sample_factors(num_images, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, index: int) -> Tensor:
        return render(self.factors[[index]], self.resolution)[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return list(render(self.factors[torch.as_tensor(list(indices))], self.resolution))
