"""The course's look: methods keep their colours, captions stay inside their figure."""

import matplotlib as mpl
import matplotlib.pyplot as plt

from isodiff.plots import COLOURS, caption, colour_of, use_style


def test_caption_stays_inside_the_figure_and_below_the_axes() -> None:
    with mpl.rc_context():
        use_style()
        fig, ax = plt.subplots(figsize=(5, 3))
        ax.set_xlabel("x")
        text = caption(fig, "Mean over n = 256 samples and seeds 0 to 9; bands are 95 % bootstrap intervals. " * 3)
        fig.canvas.draw()
        box, below = text.get_window_extent(), ax.get_tightbbox()
        assert text.get_text().count("\n") >= 2
        assert 0 <= box.x0 < box.x1 <= fig.bbox.width
        assert 0 <= box.y0 < box.y1 <= below.y0
        plt.close(fig)


def test_methods_keep_their_colour_and_others_take_none_of_theirs() -> None:
    models = ("base", "control", "isometric")
    assert [colour_of(model, 5) for model in models] == [COLOURS[model] for model in models]
    assert colour_of("base against real", 1) == COLOURS["base"]
    free = {colour_of("real", index) for index in range(6)}
    assert not free & {COLOURS[model] for model in models}
    assert len(free) == 6
