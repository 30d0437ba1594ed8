"""The page a run ends with: per notebook its question, what became of it, its verdicts and its figures.

One self-contained HTML file: figures are embedded, nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from nbformat import NotebookNode

from isodiff.results import VERDICT_KINDS, VERDICTS_MIME, Verdict, verdict_table


@dataclasses.dataclass(frozen=True)
class Failure:
    """Where a notebook stopped, and the line of the error."""

    where: str
    what: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one notebook.

    Attributes:
        name: File name without its ending.
        notebook: The executed notebook, up to the failure if there was one.
        minutes: Wall-clock time.
        failure: None if every cell ran.
    """

    name: str
    notebook: NotebookNode
    minutes: float
    failure: Failure | None = None


def title(notebook: NotebookNode) -> str:
    """Return the first top-level heading, or an empty string."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# +(.+)$", cell.source, re.MULTILINE)):
            return found[1].strip()
    return ""


def front_matter(notebook: NotebookNode) -> dict[str, str]:
    """Return the two-column table above the first code cell, keyed by its lower-case first column."""
    entries = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            break
        for line in re.findall(r"^\|(.+)\|\s*$", cell.source, re.MULTILINE):
            key, _, value = (part.strip() for part in line.partition("|"))
            if value and not set(key) <= set("-: "):
                entries[key.strip("* ").lower()] = value
    return entries


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure: the nearest heading above it, what it says to those who do not see it, and its base64 PNG."""

    heading: str
    description: str
    png: str


def figures(notebook: NotebookNode) -> Iterator[Picture]:
    """Yield every figure among the outputs, in order."""
    heading = title(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if headings := re.findall(r"^#{2,} +(.+)$", cell.source, re.MULTILINE):
                heading = headings[-1].strip()
        elif cell.cell_type == "code":
            for bundle in output_data(cell):
                if "image/png" in bundle:
                    spoken = bundle.get("text/plain", "")
                    if not spoken or spoken.startswith("<Figure"):  # what matplotlib says by itself is no help
                        spoken = heading
                    yield Picture(heading, spoken, "".join(bundle["image/png"].split()))


def verdicts(notebook: NotebookNode) -> list[Verdict]:
    """Return the verdicts of every verdict table among the outputs."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tables = [bundle[VERDICTS_MIME] for cell in code for bundle in output_data(cell) if VERDICTS_MIME in bundle]
    return [Verdict(**row) for table in tables for row in table]


def output_data(cell: NotebookNode) -> list[Mapping[str, Any]]:
    """Return the MIME bundles of a code cell's outputs."""
    return [output.data for output in cell.outputs if "data" in output]


def index_page(outcomes: Sequence[Outcome], *, profile: str, parameters: Mapping[str, Any]) -> str:
    """Return the whole page as HTML.

    Args:
        outcomes: One per notebook, in order.
        profile: The profile they ran at.
        parameters: What was changed on the command line.
    """
    changed = "".join(f", {escape(name)} = {escape(str(value))}" for name, value in parameters.items())
    tally = Counter(verdict.verdict for outcome in outcomes for verdict in verdicts(outcome.notebook))
    counts = " · ".join(f"{tally[kind]} {kind}" for kind in VERDICT_KINDS if tally[kind])
    rows = "".join(_summary_row(outcome) for outcome in outcomes)
    sections = "".join(_section(outcome) for outcome in outcomes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>isodiff: figures and verdicts</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Isometric diffusion, run and checked</h1>
<p>Profile {escape(profile)}{changed}. {f"Verdicts: {counts}." if counts else "No verdicts."}</p>
</header>
<main>
<table class="summary">
<thead><tr><th>Notebook</th><th>Question</th><th>Minutes</th><th>Status</th></tr></thead>
<tbody>{rows}</tbody>
</table>
{sections}
</main>
</body>
</html>
"""


def _summary_row(outcome: Outcome) -> str:
    question = _inline(front_matter(outcome.notebook).get("question", ""))
    return (
        f'<tr><td><a href="#{outcome.name}">{_heading(outcome)}</a></td><td>{question}</td>'
        f'<td class="number">{outcome.minutes:.1f}</td><td>{_status(outcome)}</td></tr>'
    )


def _section(outcome: Outcome) -> str:
    name = escape(outcome.name)
    question = _inline(front_matter(outcome.notebook).get("question", ""))
    failure = ""
    if outcome.failure:
        failure = f'<p class="failure">{escape(outcome.failure.where)}: {escape(outcome.failure.what)}</p>'
    rows = verdicts(outcome.notebook)
    table = f'<div class="wide">{verdict_table(rows).to_html()}</div>' if rows else ""
    pictures = "".join(
        f'<figure><img alt="{_plain(picture.description)}" src="data:image/png;base64,{picture.png}">'
        f"<figcaption><b>{number}</b> {_inline(picture.heading)}</figcaption></figure>"
        for number, picture in enumerate(figures(outcome.notebook), start=1)
    )
    return f"""<section id="{name}">
<h2>{_heading(outcome)}</h2>
<p class="question">{question}</p>
<p class="facts">{_status(outcome)} in {outcome.minutes:.1f} minutes ·
<a href="{name}.html">read it</a> · <a href="{name}.ipynb">open the notebook</a></p>
{failure}{table}<div class="figures">{pictures}</div>
</section>
"""


def _heading(outcome: Outcome) -> str:
    """Return the notebook's number and title."""
    number = outcome.name.split("_")[0]
    return f'<span class="number">{escape(number)}</span> {_inline(title(outcome.notebook) or outcome.name)}'


def _status(outcome: Outcome) -> str:
    return '<span class="failed">✗ failed</span>' if outcome.failure else '<span class="ran">✓ ran</span>'


def _inline(markdown: str) -> str:
    """Return one line of Markdown as HTML: emphasis, code and formulas."""
    text, *formulas_and_text = re.split(r"\$(.+?)\$", markdown)
    html = _emphasised(text)
    for latex, following in zip(formulas_and_text[::2], formulas_and_text[1::2], strict=True):
        html += _formula(latex) + _emphasised(following)
    return html


def _emphasised(markdown: str) -> str:
    html = escape(markdown, quote=False)
    html = re.sub(r"`(.+?)`", r"<code>\1</code>", html)
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html)
    return re.sub(r"(?<![\w*])\*(\S.*?)\*(?![\w*])", r"<em>\1</em>", html)


def _plain(markdown: str) -> str:
    """Return one line of Markdown as text for an attribute: formulas as their source."""
    return escape(re.sub(r"\$(.+?)\$|\*\*(.+?)\*\*|`(.+?)`", lambda found: found[found.lastindex], markdown))


def _formula(latex: str) -> str:
    """Return a formula typeset by matplotlib as an embedded image, or its source where matplotlib cannot."""
    drawn = io.BytesIO()
    points = 12
    font = FontProperties(size=points, math_fontfamily="cm")
    try:
        depth = math_to_image(f"${latex}$", drawn, prop=font, format="svg")
    except ValueError:
        return f"<code>{escape(latex)}</code>"
    height = float(re.search(rb'height="([0-9.]+)pt"', drawn.getvalue())[1])
    style = f"height:{height / points:.2f}em;vertical-align:{-depth / points:.2f}em"
    source = base64.b64encode(drawn.getvalue()).decode()
    return f'<img style="{style}" alt="{escape(latex)}" src="data:image/svg+xml;base64,{source}">'


_STYLE = """
:root { color-scheme: light; --ink: #1d2126; --quiet: #5d6570; --line: #dfe3e8; --accent: #0b5c8a; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
header, main { max-width: 70rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .3rem; }
header p, .facts, figcaption { color: var(--quiet); }
a { color: var(--accent); text-underline-offset: .15em; }
table { border-collapse: collapse; }
.summary { width: 100%; margin: 1.5rem 0 0; font-size: .95rem; }
.summary th, .summary td { text-align: left; vertical-align: top; padding: .5rem .8rem .5rem 0;
  border-bottom: 1px solid var(--line); }
.summary th { color: var(--quiet); font-weight: 600; }
.summary td:last-child { white-space: nowrap; }
.number { font-variant-numeric: tabular-nums; }
h2 .number { color: var(--quiet); font-weight: 400; }
section { margin: 3.5rem 0; padding-top: 1.5rem; border-top: 2px solid var(--ink); }
.question { font-size: 1.08rem; margin: 0 0 .3rem; }
.facts { margin: 0 0 1.2rem; font-size: .95rem; }
.ran { color: #1a7f5a; font-weight: 600; }
.failed, .failure { color: #b5451b; font-weight: 600; }
.failure { border-left: 3px solid; padding-left: .8rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.figures { margin-top: 1.8rem; display: grid; gap: 2rem; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .92rem; margin-top: .4rem; }
@media print { section { break-before: page; } figure { break-inside: avoid; } }
"""
