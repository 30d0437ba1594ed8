"""The course's look: colours that colour-blind readers tell apart, captions that stay inside their figure."""

from __future__ import annotations

from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from isodiff.plots import COLOURS, THEORY, caption, colour_of, use_style

# linear RGB as seen without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
SEEN_TOGETHER = [
    ("base", "control", "isometric", "theory"),
    ("euclidean", "chart_identity", "stereographic", "theory"),
    ("lerp", "slerp", "tangential", "density", "norm_aware", "noise_diffusion", "theory"),
]


TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(colour: str, vision: np.ndarray) -> np.ndarray:
    """Return a colour in OKLab (Ottosson 2020), where equal distances look equally different."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return TO_LAB @ np.cbrt(TO_CONES @ np.clip(vision @ linear, 0, 1))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("group", SEEN_TOGETHER, ids="-".join)
def test_colours_seen_together_are_told_apart(group: tuple[str, ...], vision: str) -> None:
    for first, second in combinations(group, 2):
        distance = np.linalg.norm(oklab(COLOURS[first], VISION[vision]) - oklab(COLOURS[second], VISION[vision]))
        assert distance > 0.08, f"{first} and {second} look alike with {vision}: {distance:.3f}"


def test_every_method_has_its_own_colour_and_theory_is_dashed_black() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert (to_rgb(THEORY["color"]), THEORY["linestyle"]) == ((0, 0, 0), "--")


def test_caption_stays_inside_the_figure_and_below_the_axes() -> None:
    with mpl.rc_context():
        use_style()
        fig, ax = plt.subplots(figsize=(5, 3))
        ax.set_xlabel("x")
        text = caption(fig, "Mean over n = 256 samples and seeds 0 to 9; bands are 95 % bootstrap intervals. " * 3)
        fig.canvas.draw()
        box, below = text.get_window_extent(), ax.get_tightbbox()
        assert text.get_text().count("\n") >= 2
        assert box.x0 >= 0
        assert box.x1 <= fig.bbox.width
        assert 0 <= box.y0 < box.y1 <= below.y0
        plt.close(fig)
    with pytest.raises(ValueError, match="say what is drawn"):
        caption(plt.Figure(), " ")


def test_methods_keep_their_colour_and_others_take_none_of_theirs() -> None:
    models = ("base", "control", "isometric")
    assert [colour_of(model, 5) for model in models] == [COLOURS[model] for model in models]
    assert colour_of("base against real", 1) == COLOURS["base"]
    free = {colour_of("real", index) for index in range(6)}
    assert not free & {COLOURS[model] for model in models}
    assert len(free) == 6
