"""Verdicts show themselves in three forms that agree, and refuse what is not a verdict."""

import json
from xml.etree import ElementTree

import pytest
from IPython.core.formatters import DisplayFormatter

from isodiff.verdict import VERDICT_KINDS, VERDICTS_MIME, Verdict, verdict_table

from .geometry.tensors import refusals

ROW = dict(claim="a < b & c", source="Tab. 1", paper="3", ours="4 [3, 5], n = 9", verdict="reproduced")


@pytest.mark.parametrize("kind", VERDICT_KINDS)
def test_jupyter_gets_text_html_and_json_that_tell_every_kind_without_colour(kind: str) -> None:
    row = ROW | {"verdict": kind}
    bundle, _ = DisplayFormatter().format(verdict_table([Verdict(**row)]))
    assert json.loads(json.dumps(bundle[VERDICTS_MIME])) == [row]
    head, line = bundle["text/plain"].splitlines()
    assert all(value in line for value in row.values())
    assert head.index("Verdict") == line.index(kind)
    cells = ["".join(cell.itertext()) for cell in ElementTree.fromstring(bundle["text/html"]).iter("td")]
    assert cells == [*list(row.values())[:4], f"{VERDICT_KINDS[kind][0]} {kind}"]
    assert len({sign for sign, _ in VERDICT_KINDS.values()}) == len(VERDICT_KINDS)


test_what_is_no_verdict_is_refused = refusals(
    (lambda: Verdict(**ROW | {"verdict": "true"}), "should be 'reproduced', .* input_value='true'"),
    (lambda: Verdict(**ROW | {"ours": "  "}), r"ours\n.* input_value='  '"),
    (lambda: verdict_table([]), "at least one Verdict"),
    (lambda: verdict_table([ROW]), "and nothing else"),
    errors=(ValueError, TypeError),
)
