"""The parts of the README that are made: verdicts from records, the bill from the outputs that notebook 10 stores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

from isodiff.reproduce.endpoints import record
from isodiff.reproduce.observations import load_run, seeds_of
from isodiff.reproduce.report import decide, tally, verdicts_markdown

HEADLINES = (
    *("encoder", "whole-map", "table1-ppl-faces32", "table1-ppl-faces16", "table1-mrtl-faces32", "table1-mcn-faces32"),
    *("table1-fid-faces32", "control-ppl", "table2-linear", "tableI-ppl", "chart-isotropy", "ambient-isotropy"),
    *("lambda-paper", "fig5-one", "rtl-round", "smooth-excess", "spill-over", "inversion", "ppl-edits"),
    *("tangential-slerp", "isometric-tangential", "sphere", "cost", "cost-quarter", "table1-celeba-hq"),
    "stable-diffusion",
)
"""The claims that the README shows first."""


_BILL = re.compile(r"^(.+?) *: (\S+) operations, +(\S+) hours, +(\d+) dollars$", re.MULTILINE)


def readme_blocks(folder: Path, notebooks: Path) -> dict[str, str]:
    """Return the parts of the README that are made, by the name in their markers.

    Args:
        folder: Records of the reproduction.
        notebooks: Folder of the course, with stored outputs.

    Raises:
        ValueError: If notebook 10 stores no bill.
    """
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
        chosen = load_run(record(folder, experiment, "isometric", seeds[0]))["run"]["settings"]
        config, base = chosen["config"], chosen["base"]
        start = (
            f"the shipped {base}"
            if isinstance(base, str)
            else f"{len(seeds)} bases of {base['config']['num_steps']:,} steps of {base['config']['batch_size']}"
        )
        told.append(f"{images}: {start}, fine-tuned {config['num_steps']} steps of {config['batch_size']}")
    return f"Faces of {'; '.join(told)}; weight {config['lambda_iso']:g} on isotropy; {len(seeds)} seeds."


def _bill(notebooks: Path) -> str:
    (path,) = notebooks.glob("10_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    printed = "\n".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    rows = _BILL.findall(printed)
    if not rows:
        raise ValueError(f"{path.name} stores no bill; run it with: isodiff run 10 --update")
    lines = ["| training | operations | hours | dollars |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def fill_readme(text: str, blocks: Mapping[str, str]) -> str:
    """Return a text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced, for every block.

    Raises:
        ValueError: If a marker is missing.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no place for {name!r}: the text needs <!-- {name} --> and <!-- /{name} -->")
        text = pattern.sub(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
    return text
