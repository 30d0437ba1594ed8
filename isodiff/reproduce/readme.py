"""What is made of the README: blocks from records, and figures from records, shipped models and stored outputs."""

from __future__ import annotations

import base64
import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isodiff import diffusion, geometry, metrics
from isodiff.files import data_directory, write_whole
from isodiff.reproduce.endpoints import contrast, load_run, record, seeds_of
from isodiff.reproduce.report import Decision, decide, effect, plural, tally
from isodiff.reproduce.rules import Within
from isodiff.verdict import VERDICT_KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# notebook → which of its figures stands for it
_CHOSEN = {"01": 4, "04": 3, "05": 4, "07": 3, "08": 4, "10": 4, "12": 1}
GALLERY = dict.fromkeys(map("{:02}".format, range(1, 14)), 0) | _CHOSEN


def readme_blocks(folder: Path) -> dict[str, str]:
    """Return the parts of the README that are made, by the name in their markers, from records.

    The name of a claim stands for its effect with its interval.
    """
    decisions = decide(folder)
    papers, others = ([d for d in decisions if (d.claim.family == "other") == other] for other in (False, True))
    tallied = f"Of {len(papers)} claims of the papers: {tally(papers)}. Of {len(others)} slips, counter-claims and "
    tallied += f"questions of others: {tally(others)}."
    effects = {d.claim.name: effect(d.estimate, d.claim.unit) for d in decisions if d.estimate}
    made = {"tally": tallied, "sizes": _sizes(folder), "verdicts": _primary(decisions)}
    strong = {"map": "map_log_anisotropy", "ppl": "ppl_alex_full", "kid": "kid"}  # at a hundred times the weight
    for name, quantity in strong.items():
        effects[f"encoder-{name}"] = effect(contrast("targets", quantity, "encoder", "control")(folder), "%")
    return effects | made | {f"{what}-32": _geodesics(what) for what in ("distance", "excess")}


def _primary(decisions: Iterable[Decision]) -> str:
    """Return the primary claims in five plain columns."""
    lines = ["| claim | paper | here | n | verdict |", "|---|---|---|---|---|"]
    for d in (d for d in decisions if d.claim.family == "primary"):
        n = f"{len(d.estimate.values)} {plural(d.claim.drawn)} of {d.sample}"
        sign = f"{VERDICT_KINDS[d.verdict][0]} {d.verdict}"
        lines.append(f"| {d.claim.statement} | {d.claim.paper} | {effect(d.estimate, d.claim.unit)} | {n} | {sign} |")
    return "\n".join(lines)


def _geodesics(what: str) -> str:
    """Return something of geodesics over that of slerp, on the larger model's pairs at the level t = 399."""
    found = metrics.Record.load(data_directory() / "results" / "interpolation" / "faces32-base.json").measurements
    one, two = (found[f"path_{what}_{method}_tau40"].replicates for method in ("tangential", "slerp"))
    n = min(len(one), len(two))
    low, high = metrics.paired_ratio_interval(one[:n], two[:n])
    return f"{one[:n].mean() / two[:n].mean():.2f} [{low:.2f}, {high:.2f}] times"


def _sizes(folder: Path) -> str:
    """Say how long models were trained, from what their records tell."""
    told = []
    kinds = {"doses": "16²", "faces32": "32²", "latent64": "latents of 64²", "photographs": "photographs, 32²"}
    for experiment, images in kinds.items():
        if not (seeds := seeds_of(folder, experiment, "isometric")):
            continue
        settings = load_run(record(folder, experiment, "isometric", seeds[0]))["run"]["settings"]
        own = isinstance(settings["base"], dict) or "{seed}" in settings["base"]  # a base for each training
        config, bases = settings["config"], len(seeds) if own else 1
        start = f"{bases} base{'s' * (bases > 1)}, {len(seeds)} trainings of {config['num_steps']:,} steps"
        told.append(f"{images}: {start} of {config['batch_size']}")
    return f"Faces of {'; '.join(told)}; weight {config['lambda_iso']:g} on anisotropy."


def _outputs(notebooks: Path, number: str) -> list[dict[str, Any]]:
    (path,) = notebooks.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def fill_readme(text: str, blocks: Mapping[str, str]) -> str:
    """Return a text with what stands between each ``<!-- name -->`` and ``<!-- /name -->`` replaced."""

    def fill(found: re.Match[str]) -> str:
        name, line = found[1], found[2]
        if name not in blocks:
            raise ValueError(f"nothing is called {name!r}; there are {', '.join(blocks)}")
        return f"<!-- {name} -->{line}{blocks[name]}{line}<!-- /{name} -->"

    return re.sub(r"<!-- ([\w-]+) -->(\n?).*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


def write_figures(records: Path, notebooks: Path, output: Path) -> list[Path]:
    """Draw every figure of the README as a PNG and return the files."""
    from isodiff.plots import palette_png, use_style

    use_style()
    pictures = {"headline": palette_png(headline()), "verdicts": palette_png(primary_forest(records))}
    pictures |= {f"notebook-{number}": _thumbnail(notebooks, number, index) for number, index in GALLERY.items()}
    for name, png in pictures.items():
        write_whole(output / f"{name}.png", png)
    return [output / f"{name}.png" for name in pictures]


def headline() -> Figure:
    """Draw what isometric fine-tuning does to the shipped encoder and sampler, and to a walk between two latents."""
    import matplotlib.pyplot as plt
    import torch

    from isodiff.plots import THEORY, caption, grouped_points, image_strip

    names = ("control", "isometric")
    x_T = metrics.draw_latents((3, 32, 32), 0, 2, seed=0, stream="headline")
    path = torch.cat([geometry.slerp(x_T[:1], x_T[1:], tau) for tau in torch.linspace(0, 1, 9).tolist()])
    results = data_directory() / "results"
    measured = {name: metrics.Record.load(results / f"faces32-{name}.json").measurements for name in names}
    titles = ("encoder\nt = 600", "encoder\nt = 800", "noise →\npicture")
    keys, groups = ("anisotropy_t600", "anisotropy_t800", "map_anisotropy"), {}
    for title, key in zip(titles, keys, strict=True):
        groups[title] = {name: (found[key].value, found[key].interval) for name, found in measured.items()}
    fig, axes = plt.subplot_mosaic([["maps", name] for name in names], figsize=(11, 3.5), width_ratios=(1, 1.9))
    grouped_points(groups, axes["maps"], xlabel="map", ylabel="anisotropy (1 is an isometry)")
    axes["maps"].set_yscale("log")
    axes["maps"].axhline(1, **THEORY)
    for name in names:
        with torch.no_grad():
            pictures = metrics.Generator(diffusion.load_pipeline(f"faces32/{name}"), 20)(path)
        image_strip(pictures, axes[name], ylabel=name)
    before, after = measured.values()
    times = " and ".join(f"{before[key].value / after[key].value:.0f}" for key in keys[:2])
    apart = metrics.compare(after["map_anisotropy"], before["map_anisotropy"]).is_outside_noise
    caption(
        fig,
        f"Left: isometric fine-tuning makes the encoder of a small model of faces {times} times more isotropic "
        f"({before['anisotropy_t600'].n} images), the map that makes pictures "
        f"{'a little' if apart else 'not measurably'} ({before['map_anisotropy'].n} latents; 95 % intervals, one "
        f"training of each). Right: a great circle of noise, decoded by both; pair 0, not chosen.",
    )
    return fig


def primary_forest(records: Path) -> Figure:
    """Draw the primary claims: effect over what would count, with intervals, coloured by verdict."""
    import matplotlib.pyplot as plt

    from isodiff.plots import THEORY, caption

    found = [d for d in decide(records) if d.claim.family == "primary"]
    fig, ax = plt.subplots(figsize=(9, 0.42 * len(found) + 1))
    for row, d in enumerate(found):
        sign, colour = VERDICT_KINDS[d.verdict]
        mean, *ends = (x / d.claim.rule.theta for x in (d.estimate.mean, *d.estimate.interval))
        ax.plot(ends, [row, row], color=colour, lw=2)
        ax.plot(mean, row, "s" if isinstance(d.claim.rule, Within) else "o", color=colour, ms=7)
        ax.annotate(f" {sign} {d.verdict}", (1.01, row), xycoords=("axes fraction", "data"), color=colour, va="center")
    for at in (0, 1):
        ax.axvline(at, **THEORY)
    statements = [textwrap.fill(d.claim.statement, 60) for d in found]
    ax.set_yticks(range(len(found)), statements)
    ax.set_xscale("symlog", linthresh=2)
    ax.set_xticks(ticks := [-50, -10, -1, 0, 1, 10], map(str, ticks))
    ax.set(ylim=(len(found) - 0.5, -0.5), xlabel="effect over the smallest that counts: 0 is none, 1 counts")
    ax.grid(axis="y", visible=False)
    units = {len(d.estimate.values) for d in found}
    caption(
        fig,
        f"The primary claims, {min(units)} independent units each, 95 % intervals, in units of what would count in the "
        "claimed direction (symmetric log scale beyond ±2). A square is a bound: the claim is that it stays below 1.",
    )
    return fig


def _thumbnail(notebooks: Path, number: str, index: int) -> bytes:
    from PIL import Image

    found = [output["data"] for output in _outputs(notebooks, number) if "image/png" in output.get("data", {})]
    image = Image.open(io.BytesIO(base64.b64decode("".join(found[index]["image/png"])))).convert("RGB")
    image.thumbnail((480, 1920), Image.Resampling.LANCZOS)
    compact = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(compact, "png", optimize=True)
    return compact.getvalue()
