"""Draw what `cost.py` and `isotropy_race.py` found.

    python benchmarks/cost_figure.py

Reads `cost.json` and `race.json` in `--results` and writes `cost.png` beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from isodiff.plots.cost import cost_over_resolution, isotropy_over_time, variance_against_cost
from isodiff.plots.style import caption, use_style


def main() -> None:
    """Parse the options and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("data/results/cost"), help="where the results lie")
    results = parser.parse_args().results
    steps = json.loads((results / "cost.json").read_text())["steps"]
    race = json.loads((results / "race.json").read_text())
    batch = max(cell["batch"] for cell in steps["found"] if "ways" in cell)
    use_style()
    figure, axes = plt.subplots(2, 2, figsize=(10, 8.4))
    cost_over_resolution(steps["found"], axes[0, 0], batch=batch)
    cost_over_resolution(steps["found"], axes[0, 1], batch=batch, quantity="mib")
    axes[0, 1].get_legend().remove()
    parts = race["cpu_seconds_a_step"]["parts"]
    variance_against_cost(race["gradient_variance"], axes[1, 0], term_over_dsm=parts["full"] / parts["dsm"])
    isotropy_over_time(race, axes[1, 1])
    for ax, title in zip(
        axes.flat,
        ("Time of one pass", "Memory of one pass", "Variance against cost", "Isotropy over time"),
        strict=True,
    ):
        ax.set_title(title)
    caption(
        figure,
        f"faces32 architecture, {steps['device']}, {steps['threads']} thread. Top: batch {batch}, random weights, "
        f"medians of {steps['repeats']} interleaved runs. Bottom: {race['resolution']} pixels, batch "
        f"{race['batch']}, p = 0.5; variance over 24 draws; isotropy of {race['steps']} steps from one start, seeds "
        f"{', '.join(map(str, race['seeds']))} (released: the first), each method at its best λ of "
        f"{', '.join(f'{w:g}' for w in race['lambdas'])}; time is steps × CPU seconds a step.",
    )
    figure.savefig(results / "cost.png")
    with Image.open(results / "cost.png") as drawn:  # few colours, a third of the size
        drawn.convert("RGB").quantize(64).save(results / "cost.png", optimize=True)


if __name__ == "__main__":
    main()
