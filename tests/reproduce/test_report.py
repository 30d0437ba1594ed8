"""Verdicts and tables from folders of records: what the correction does, what is written, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodiff.reproduce.claims import CLAIMS, TABLES, Claim, experiments
from isodiff.reproduce.endpoints import load_run, observe
from isodiff.reproduce.readme import fill_readme
from isodiff.reproduce.report import (
    Decision,
    check_names,
    decide,
    effect,
    table_markdown,
    tally,
    verdicts_markdown,
    write_report,
)
from isodiff.reproduce.rules import RATE, Estimate
from isodiff.reproduce.run import Run
from isodiff.verdict import VERDICT_KINDS

from .synthetic import write_records

FAMILY = {name: claim for name, claim in CLAIMS.items() if claim.endpoint is not None}


def near_a_bound(run: Run, name: str) -> float:
    """Return arms and seeds that differ by some percent, a radius that misses its bound by a hair, and clear costs."""
    if name == "radius_excess":  # mean 0.037, half of the distance of the two seeds 0.002: t = 13.5 beyond 0.01
        return 0.037 + 0.002 * (-1) ** run.seed
    if name == "step_ratio":
        return 1.6 + 1e-9 * run.seed
    arm, chance = (np.random.default_rng([*text.encode(), ord("x")]) for text in (run.arm + name, repr(run) + name))
    return math.exp(0.1 * arm.normal() + 0.04 * chance.normal())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of everything."""
    write_records(tmp_path, near_a_bound, num_seeds=2)
    return tmp_path


def test_the_correction_runs_over_all_claims_whatever_is_asked_for(tmp_path: Path) -> None:
    write_records(tmp_path, near_a_bound)
    decisions = {d.claim.name: d for d in decide(tmp_path)}
    alone = {name: claim.rule.decide(claim.endpoint(tmp_path)) for name, claim in FAMILY.items()}
    adjusted = stats.false_discovery_control([p for _, p in alone.values()])
    killed = {n for n, p in zip(FAMILY, adjusted, strict=True) if p > RATE and alone[n][0] != "underpowered"}
    assert 3 <= len(killed) < len(FAMILY) - 3
    for name, (verdict, p) in alone.items():
        found = decisions[name]
        assert (found.corrected, found.p) == (name in killed, p)
        assert found.verdict == ("underpowered" if name in killed else verdict)
    assert {"reproduced", "not reproduced", "underpowered"} <= {d.verdict for d in decisions.values()}
    for name in CLAIMS.keys() - FAMILY.keys():
        assert decisions[name].verdict == (CLAIMS[name].settled or "not testable here")
        assert decisions[name].ours == CLAIMS[name].reason
    for name in [next(iter(killed)), "table1-ppl-faces32"]:
        (found,) = decide(tmp_path, [name])
        assert found == decisions[name]


def test_decisions_are_rows_of_verdict_tables(folder: Path) -> None:
    decisions = decide(folder)
    counts = Counter(decision.verdict for decision in decisions)
    assert tally(decisions) == ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])
    for row, decision in zip(verdicts_markdown(decisions).splitlines()[2:], decisions, strict=True):
        assert decision.estimate is None or ", 2 seeds" in decision.as_verdict().ours
        assert decision.claim.protocol in decision.as_verdict().ours
        assert row.replace("\\|", "").count("|") == 5, row
        assert f"<br>`{decision.claim.name}` |" in row
        assert f"| {VERDICT_KINDS[decision.verdict][0]} {decision.verdict}" in row
        among = "decided alone, but not among all claims at once" in decision.as_verdict().ours
        assert row.endswith(" ᶜ |") == decision.corrected == among
    assert ", 2 seeds of 100 pairs;" in decide(folder, ["table1-ppl-faces16"])[0].as_verdict().ours
    barred = Claim(name="a", group="b", statement="E[H|X]\nfalls", source="c", reason="d")
    assert "| E[H\\|X] falls<br>" in verdicts_markdown([Decision(barred, None, "underpowered")])


def test_what_is_asked_for_needs_its_records_and_nothing_else_does(folder: Path) -> None:
    shutil.rmtree(folder / "trace")
    found = decide(folder, ["cost-quarter", "sphere-thickness"])
    assert [d.claim.name for d in found] == ["sphere-thickness", "cost-quarter"]
    with pytest.raises(FileNotFoundError, match=r"records of trace, is made by: isodiff reproduce trace-er"):
        decide(folder, ["trace-error"])
    with pytest.raises(FileNotFoundError, match="records of trace"):
        write_report(folder)
    assert not list(folder.glob("verdicts*"))


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([math.log(0.9)] * 2, "%", "-10 % [-10, -10]"),
        ([math.log(1e7)] * 2, "%", "+1e+09 % [+1e+09, +1e+09]"),
        ([-0.1, 0.0, 0.1], "%", "+0.0 % [-22, +28]"),  # ends exp(∓4.303 · 0.1/√3) − 1: wide, so without decimals
        ([1.1107] * 3, "", "1.1107 [1.1107, 1.1107]"),
        ([0.25, 0.25], "nats", "0.2500 [0.2500, 0.2500] nats"),
        ([math.log(2)] * 3, "log", "2.00 [2.00, 2.00] times"),
        ([1.0, 1.5, 2.0], "times", "1.50 [0.26, 2.74] times"),
    ],
)
def test_effects_as_text(values: list[float], unit: str, text: str) -> None:
    assert effect(Estimate.of(values), unit) == text


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_has_a_row_an_arm_and_a_column_a_quantity(heading: str, folder: Path) -> None:
    """Arms that the experiment does not know come last; one that is not asked for a quantity has a dash."""
    experiment, quantities = TABLES[heading]
    for seed in (0, 1):
        (folder / experiment / f"base-seed{seed}.json").rename(folder / experiment / f"added-seed{seed}.json")
    head, line, *rows = (row.strip("|").split("|") for row in table_markdown(folder, heading).splitlines())
    assert [cell.strip() for cell in head] == ["arm", *quantities]
    assert line == ["---"] * len(head)
    assert [row[0].strip() for row in rows] == [*list(experiments("smoke")[experiment].arms)[1:], "added"]
    for row in rows:
        arm, *cells = (cell.strip() for cell in row)
        bodies = [load_run(folder / experiment / f"{arm}-seed{seed}.json") for seed in (0, 1)]
        for cell, quantity in zip(cells, quantities.values(), strict=True):
            try:
                values = [observe(body, quantity) for body in bodies]
            except KeyError:
                assert cell == "–"
                continue
            mean, error = (float(number) for number in cell.split(" ± "))
            assert mean == pytest.approx(np.mean(values), rel=0.006)
            assert error == pytest.approx(stats.sem(values), rel=0.51)
    assert any(cell.strip() == "–" for row in rows for cell in row), "no arm measures all"


def test_names_stand_for_groups_of_claims() -> None:
    table1 = [name for name in CLAIMS if name.startswith("table1-")]
    assert check_names(["dsm", "table1"]) == ["dsm", *table1]
    assert check_names(["table1-ppl", "table1-ppl-faces32"]) == ["table1-ppl-faces32", "table1-ppl-faces16"]
    for name in ("table", "", "Table1", "dsm "):
        with pytest.raises(ValueError, match=f"no claim is called '{name}'; there are table1-ppl-faces32, "):
            check_names(["dsm", name])


def test_only_what_stands_between_markers_is_replaced() -> None:
    before = "# A\n<!-- tally -->\nold\nand older\n<!-- /tally -->\nb <!-- c -->\n<!-- bill -->\n-\n<!-- /bill -->"
    after = fill_readme(before, {"tally": r"3 of 4 \1", "bill": "| a |\n|---|"})
    assert after == (
        "# A\n<!-- tally -->\n3 of 4 \\1\n<!-- /tally -->\nb <!-- c -->\n<!-- bill -->\n| a |\n|---|\n<!-- /bill -->"
    )
    assert fill_readme(after, {"tally": r"3 of 4 \1"}) == after
    for text in ("", "<!-- tally -->\nold", "old\n<!-- /tally -->", "<!-- bill -->\n\n<!-- /bill -->"):
        with pytest.raises(ValueError, match="no place for 'tally': the text needs <!-- tally --> and <!-- /tally -->"):
            fill_readme(text, {"tally": "new"})
