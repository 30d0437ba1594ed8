"""Verdicts show themselves in three forms that agree, and refuse what is not a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from IPython.core.formatters import DisplayFormatter

from isodiff.verdict import VERDICT_KINDS, VERDICTS_MIME, Verdict, verdict_table

ROW = dict(claim="a < b & c", source="Tab. 1", paper="3", ours="4 [3, 5], n = 9", verdict="reproduced")


def cells(html: str) -> list[str]:
    """Return the text of the cells of a table whose tags are balanced."""
    return ["".join(cell.itertext()) for cell in ElementTree.fromstring(html).iter("td")]


def test_jupyter_gets_text_html_and_json() -> None:
    table = verdict_table([Verdict(**ROW)])
    bundle, _ = DisplayFormatter().format(table)
    assert json.loads(json.dumps(bundle[VERDICTS_MIME])) == [ROW]
    assert bundle["text/plain"] == str(table)
    assert cells(bundle["text/html"]) == [*list(ROW.values())[:4], "✓ reproduced"]


def test_text_is_aligned() -> None:
    lines = str(verdict_table([Verdict(**ROW), Verdict(**(ROW | {"claim": "longer than that"}))])).splitlines()
    assert len(lines) == 3
    assert len({line.index("Tab. 1") for line in lines[1:]}) == 1
    assert lines[0].startswith("Claim")


@pytest.mark.parametrize("kind", VERDICT_KINDS)
def test_every_kind_is_accepted_and_told_apart_without_colour(kind: str) -> None:
    table = verdict_table([Verdict(**(ROW | {"verdict": kind}))])
    assert cells(table.to_html())[-1] == f"{VERDICT_KINDS[kind][0]} {kind}"
    assert len({sign for sign, _ in VERDICT_KINDS.values()}) == len(VERDICT_KINDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Verdict(**(ROW | {"verdict": "true"})), "verdict is 'true'; give one of reproduced, not reproduced"),
        (lambda: Verdict(**(ROW | {"ours": "  "})), "ours is '  '"),
        (lambda: Verdict(**(ROW | {"ours": 3})), "ours is 3"),
        (lambda: verdict_table([]), "no verdicts"),
        (lambda: verdict_table([ROW]), "every entry must be a Verdict"),
    ],
)
def test_what_is_no_verdict_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()
