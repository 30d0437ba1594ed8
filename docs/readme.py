"""Write what is made of README.md: numbers and tables from the records, figures from notebooks' stored outputs.

`python docs/readme.py`, after `isodiff reproduce --report` and `isodiff run 11 13 --update`.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from isodiff import metrics
from isodiff.files import write_whole
from isodiff.reproduce.endpoints import contrast, load_run, record, seeds_of
from isodiff.reproduce.report import Decision, decide, effect, plural, tally
from isodiff.verdict import VERDICT_KINDS

ROOT = Path(__file__).resolve().parents[1]
# which figure of a notebook stands for it, by its place among them
_CHOSEN = {"01": 4, "04": 3, "05": 4, "07": 3, "08": 4, "10": 4, "12": 1, "13": 1}
GALLERY = dict.fromkeys(map("{:02}".format, range(1, 14)), 0) | _CHOSEN
WHOLE = {"headline": ("13", 0), "verdicts": ("13", 1)}  # figures in their own size


def blocks(records: Path) -> dict[str, str]:
    """Return the parts of the README that are made, by the name in their markers.

    The name of a claim stands for its effect with its interval.
    """
    decisions = decide(records)
    papers, others = ([d for d in decisions if (d.claim.family == "other") == other] for other in (False, True))
    tallied = f"Of {len(papers)} claims of the papers: {tally(papers)}. Of {len(others)} slips, counter-claims and "
    tallied += f"questions of others: {tally(others)}."
    effects = {d.claim.name: effect(d.estimate, d.claim.unit) for d in decisions if d.estimate}
    made = {"tally": tallied, "sizes": _sizes(records), "verdicts": _primary(decisions)}
    strong = {"map": "map_log_anisotropy", "ppl": "ppl_alex_full", "kid": "kid"}  # at a hundred times the weight
    for name, quantity in strong.items():
        effects[f"encoder-{name}"] = effect(contrast("targets", quantity, "encoder", "control")(records), "%")
    effects["kid-32"] = effect(contrast("faces32", "kid", "isometric", "control")(records), "%")
    return effects | made | {f"{what}-32": _geodesics(records, what) for what in ("distance", "excess")}


def _primary(decisions: Iterable[Decision]) -> str:
    """Return the primary claims in five plain columns."""
    lines = ["| claim | paper | here | n | verdict |", "|---|---|---|---|---|"]
    for d in (d for d in decisions if d.claim.family == "primary"):
        n = f"{len(d.estimate.values)} {plural(d.claim.drawn)} of {d.sample}"
        sign = f"{VERDICT_KINDS[d.verdict][0]} {d.verdict}"
        lines.append(f"| {d.claim.statement} | {d.claim.paper} | {effect(d.estimate, d.claim.unit)} | {n} | {sign} |")
    return "\n".join(lines)


def _geodesics(records: Path, what: str) -> str:
    """Return something of geodesics over that of slerp, on the larger model's pairs at the level t = 399."""
    found = metrics.Record.load(records.parent / "interpolation" / "faces32-base.json").measurements
    one, two = (found[f"path_{what}_{method}_tau40"].replicates for method in ("tangential", "slerp"))
    n = min(len(one), len(two))
    low, high = metrics.paired_ratio_interval(one[:n], two[:n])
    return f"{one[:n].mean() / two[:n].mean():.2f} [{low:.2f}, {high:.2f}] times"


def _sizes(records: Path) -> str:
    """Say how long models were trained, from what their records tell."""
    told = []
    kinds = {"doses": "16²", "faces32": "32²", "latent64": "latents of 64²", "photographs": "photographs of 32²"}
    for experiment, images in kinds.items():
        if not (seeds := seeds_of(records, experiment, "isometric")):
            continue
        settings = load_run(record(records, experiment, "isometric", seeds[0]))["run"]["settings"]
        own = isinstance(settings["base"], dict) or "{seed}" in settings["base"]  # a base for each training
        config, bases = settings["config"], len(seeds) if own else 1
        start = f"{len(seeds)} on {bases} base{'s' * (bases > 1)}"
        told.append(f"{images}, {start}, {config['num_steps']:,} × {config['batch_size']}")
    weight = f"weight {config['lambda_iso']:g} on anisotropy (1: a scaled isometry)"
    return f"Trainings, steps × images: faces of {'; '.join(told)}; {weight}."


def fill(text: str, made: Mapping[str, str]) -> str:
    """Return a text with what stands between each ``<!-- name -->`` and ``<!-- /name -->`` replaced."""

    def replace(found: re.Match[str]) -> str:
        name, line = found[1], found[2]
        if name not in made:
            raise ValueError(f"nothing is called {name!r}; there are {', '.join(made)}")
        return f"<!-- {name} -->{line}{made[name]}{line}<!-- /{name} -->"

    return re.sub(r"<!-- ([\w-]+) -->(\n?).*?<!-- /\1 -->", replace, text, flags=re.DOTALL)


def figures(notebooks: Path) -> dict[str, bytes]:
    """Return every figure of the README as a PNG."""
    drawn = {}
    for number in GALLERY:
        (path,) = notebooks.glob(f"{number}_*.ipynb")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        drawn[number] = [base64.b64decode("".join(o["image/png"])) for o in outputs if "image/png" in o]
    found = {name: drawn[number][index] for name, (number, index) in WHOLE.items()}
    return found | {f"notebook-{number}": _thumbnail(drawn[number][index]) for number, index in GALLERY.items()}


def _thumbnail(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((480, 1920), Image.Resampling.LANCZOS)
    compact = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(compact, "png", optimize=True)
    return compact.getvalue()


if __name__ == "__main__":
    page = ROOT / "README.md"
    for name, png in figures(ROOT / "notebooks").items():
        write_whole(ROOT / "data" / "figures" / f"{name}.png", png)
    made = blocks(ROOT / "data" / "results" / "reproduce")
    write_whole(page, fill(page.read_text(encoding="utf-8"), made))
    print(f"written: {page} and its figures")
