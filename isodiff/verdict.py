"""Verdicts: what a paper claims, what we measured, and whether the two agree."""

import dataclasses
from collections.abc import Iterable
from html import escape
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

VERDICTS_MIME = "application/vnd.isodiff.verdicts+json"

# verdict → (sign, colour): the sign carries the meaning where colour does not
VERDICT_KINDS = {
    "reproduced": ("✓", "#1a7f5a"),
    "smaller": ("✓⁻", "#4f7d12"),  # of the claimed sign, short of what would count
    "not reproduced": ("✗", "#b5451b"),
    "undecided": ("~", "#8a6d1a"),
    "not testable here": ("–", "#6e6e6e"),
}
_HEADINGS = ("Claim", "Source", "Paper", "Ours", "Verdict")
Text = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True)
class Verdict:
    """A claim of a paper, decided; every field is text, "–" where there is nothing to say."""

    claim: Text  # in a sentence
    source: Text  # where it is made
    paper: Text  # its value
    ours: Text  # with interval, n and seeds
    verdict: Literal[tuple(VERDICT_KINDS)]


@dataclasses.dataclass(frozen=True)
class VerdictTable:
    """Verdicts that show themselves: HTML in Jupyter, aligned text elsewhere, JSON for the course index."""

    verdicts: tuple[Verdict, ...]

    def to_html(self) -> str:
        """Return a table that carries its own style: the same in Jupyter and in the index."""
        cell = "text-align:left;vertical-align:top;padding:.45em .8em;border-bottom:1px solid #8884;"
        head = "".join(f'<th style="{cell}font-weight:600">{title}</th>' for title in _HEADINGS)
        body = ""
        for *texts, verdict in map(dataclasses.astuple, self.verdicts):
            sign, colour = VERDICT_KINDS[verdict]
            style = f"{cell}white-space:nowrap;font-weight:600;color:{colour}"
            body += "<tr>" + "".join(f'<td style="{cell}">{escape(text)}</td>' for text in texts)
            body += f'<td style="{style}">{sign} {verdict}</td></tr>'
        style = "border-collapse:collapse;font-size:.95em"
        return f'<table class="verdicts" style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

    def __str__(self) -> str:
        """Return aligned text, one verdict per line."""
        rows = [_HEADINGS, *map(dataclasses.astuple, self.verdicts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        plain = [dataclasses.asdict(row) for row in self.verdicts]
        return {"text/plain": str(self), "text/html": self.to_html(), VERDICTS_MIME: plain}


def verdict_table(verdicts: Iterable[Verdict]) -> VerdictTable:
    """Return a table of at least one verdict; make it the last line of a notebook's cell."""
    rows = tuple(verdicts)
    if not rows or not all(isinstance(row, Verdict) for row in rows):
        raise TypeError(f"verdict_table got {rows!r}; give at least one Verdict, and nothing else")
    return VerdictTable(rows)
