"""What is made of the README: blocks from records, and figures from records, shipped models and stored outputs."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isodiff import diffusion, geometry, metrics
from isodiff.files import data_directory, write_whole
from isodiff.reproduce.claims import HEADLINES
from isodiff.reproduce.endpoints import load_run, record, seeds_of
from isodiff.reproduce.report import decide, tally, verdicts_markdown
from isodiff.verdict import VERDICT_KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# notebook → which of its figures stands for it
GALLERY = dict.fromkeys(map("{:02}".format, range(1, 14)), 0) | {"04": 4, "05": 4, "07": 3, "08": 4, "10": 4, "12": 1}


def readme_blocks(folder: Path, notebooks: Path) -> dict[str, str]:
    """Return the parts of the README that are made, by the name in their markers, from records and stored outputs."""
    decisions = {decision.claim.name: decision for decision in decide(folder)}
    undecided = [d for d in decisions.values() if d.verdict == "not testable here"]
    return {
        "tally": f"Of {len(decisions)} claims: {tally(decisions.values())}.",
        "sizes": _sizes(folder),
        "verdicts": verdicts_markdown(decisions[name] for name in HEADLINES),
        "undecided": "\n".join(f"- {d.claim.statement} ({d.claim.source}): {d.claim.reason}." for d in undecided),
        "bill": _bill(notebooks),
    }


def _sizes(folder: Path) -> str:
    """Say how long models were trained, from what their records tell."""
    told = []
    for experiment, images in {"faces16": "16²", "faces32": "32²", "latent64": "latents of 64²"}.items():
        seeds = seeds_of(folder, experiment, "isometric")
        settings = load_run(record(folder, experiment, "isometric", seeds[0]))["run"]["settings"]
        config, start = settings["config"], f"the shipped {settings['base']}"
        if isinstance(settings["base"], dict):
            own = settings["base"]["config"]
            start = f"{len(seeds)} bases of {own['num_steps']:,} steps of {own['batch_size']}"
        told.append(f"{images}: {start}, fine-tuned {config['num_steps']} steps of {config['batch_size']}")
    return f"Faces of {'; '.join(told)}; weight {config['lambda_iso']:g} on anisotropy; {len(seeds)} seeds."


def _outputs(notebooks: Path, number: str) -> list[dict[str, Any]]:
    (path,) = notebooks.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def _bill(notebooks: Path) -> str:
    text = "\n".join("".join(output.get("text", "")) for output in _outputs(notebooks, "10"))
    rows = re.findall(r"^(.+?) *: (\S+) operations, +(\S+) hours, +(\d+) dollars$", text, re.MULTILINE)
    if not rows:
        raise ValueError("notebook 10 stores no bill; run it with: isodiff run 10 --update")
    head = "| training | operations | hours | dollars |\n|---|---|---|---|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def fill_readme(text: str, blocks: Mapping[str, str]) -> str:
    """Return a text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced, for every block."""
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no place for {name!r}: the text needs <!-- {name} --> and <!-- /{name} -->")
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    return text


def write_figures(records: Path, notebooks: Path, output: Path) -> list[Path]:
    """Draw every figure of the README as a PNG and return the files."""
    from isodiff.plots import palette_png, use_style

    use_style()
    pictures = {"headline": palette_png(headline()), "verdicts": palette_png(verdict_overview(records))}
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


def verdict_overview(records: Path) -> Figure:
    """Draw how many claims of each group had which verdict, as stacked bars with their numbers."""
    import matplotlib.pyplot as plt

    from isodiff.plots import caption

    groups: dict[str, Counter[str]] = {}
    for decision in decide(records):
        groups.setdefault(decision.claim.group, Counter())[decision.verdict] += 1
    fig, ax = plt.subplots(figsize=(9, 3.9))
    left = np.zeros(len(groups))
    for kind, (sign, colour) in VERDICT_KINDS.items():
        counts = [group[kind] for group in groups.values()]
        bars = ax.barh(range(len(groups)), counts, left=left, color=colour, height=0.7, label=f"{sign} {kind}")
        ax.bar_label(bars, [count or "" for count in counts], label_type="center", color="white", fontsize=9)
        left += counts
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(ylim=(len(groups) - 0.5, -0.5), xlabel="claims", ylabel="source")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1, handlelength=1)
    caption(fig, f"{sum(c.total() for c in groups.values())} claims, by where they are made; from records.")
    return fig


def _thumbnail(notebooks: Path, number: str, index: int) -> bytes:
    from PIL import Image

    found = [output["data"] for output in _outputs(notebooks, number) if "image/png" in output.get("data", {})]
    image = Image.open(io.BytesIO(base64.b64decode("".join(found[index]["image/png"])))).convert("RGB")
    image.thumbnail((480, 1920), Image.Resampling.LANCZOS)
    compact = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(compact, "png", optimize=True)
    return compact.getvalue()
