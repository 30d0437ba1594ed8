"""Verdicts show themselves in three forms that agree, and refuse what is not a verdict."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from IPython.core.formatters import DisplayFormatter

from isodiff.results import VERDICT_KINDS, VERDICTS_MIME, Verdict, verdict_table

ROW = {
    "claim": "a < b & c",
    "source": "Tab. 1",
    "paper": "3",
    "ours": "4 [3, 5], n = 9",
    "verdict": "reproduced",
}


class Cells(HTMLParser):
    """Collect the text of table cells and check that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "td":
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.texts[-1] += data


def test_jupyter_gets_text_html_and_json() -> None:
    table = verdict_table([Verdict(**ROW)])
    bundle, _ = DisplayFormatter().format(table)
    assert json.loads(json.dumps(bundle[VERDICTS_MIME])) == [ROW]
    assert bundle["text/plain"] == str(table)
    assert Cells(bundle["text/html"]).texts == [*list(ROW.values())[:4], "✓ reproduced"]


def test_text_is_aligned() -> None:
    lines = str(verdict_table([Verdict(**ROW), Verdict(**(ROW | {"claim": "longer than that"}))])).splitlines()
    assert len(lines) == 3
    assert len({line.index("Tab. 1") for line in lines[1:]}) == 1
    assert lines[0].startswith("Claim")


@pytest.mark.parametrize("kind", VERDICT_KINDS)
def test_every_kind_is_accepted_and_told_apart_without_colour(kind: str) -> None:
    table = verdict_table([Verdict(**(ROW | {"verdict": kind}))])
    assert Cells(table.to_html()).texts[-1] == f"{VERDICT_KINDS[kind][0]} {kind}"
    assert len({sign for sign, _ in VERDICT_KINDS.values()}) == len(VERDICT_KINDS)


def test_unknown_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="verdict is 'true'; give one of reproduced, not reproduced"):
        Verdict(**(ROW | {"verdict": "true"}))


@pytest.mark.parametrize("value", ["", "  ", 3, None])
def test_empty_or_untyped_entries_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=f"ours is {value!r}"):
        Verdict(**(ROW | {"ours": value}))


def test_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no verdicts"):
        verdict_table([])


def test_entries_must_be_verdicts() -> None:
    with pytest.raises(TypeError, match="every entry must be a Verdict"):
        verdict_table([ROW])
