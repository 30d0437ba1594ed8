"""Verdicts and tables from folders of records: what the correction does, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodiff.paths import repository_root
from isodiff.reproduce.claims import CLAIMS
from isodiff.reproduce.decide import RATE, Estimate
from isodiff.reproduce.experiments import experiments
from isodiff.reproduce.observations import load_run, observe
from isodiff.reproduce.readme import HEADLINES, fill_readme, readme_blocks
from isodiff.reproduce.report import (
    TABLES,
    Decision,
    check_names,
    decide,
    effect,
    table_markdown,
    tally,
    verdicts_markdown,
    write_report,
)
from isodiff.reproduce.runner import Run
from isodiff.results import VERDICT_KINDS, Verdict

from .synthetic import write_records

RAW = {name: claim for name, claim in CLAIMS.items() if claim.endpoint is not None}


def small_effects(run: Run, name: str) -> float:
    """Return arms that differ by some percent, each by its own, and seeds that scatter by less."""
    arm, chance = (np.random.default_rng([*text.encode(), ord("x")]) for text in (run.arm + name, repr(run) + name))
    return math.exp(0.1 * arm.normal() + 0.04 * chance.normal())


def near_a_bound(run: Run, name: str) -> float:
    """Return a clear excess of radius for one that misses its bound by a hair, and costs that are clearly too high."""
    if name == "radius_excess":  # mean 0.037, half of the distance of the seeds 0.002: t = 13.5 beyond 0.01, p = 0.047
        return 0.037 + 0.002 * (-1) ** run.seed
    if name == "step_ratio":
        return 1.6 + 1e-9 * run.seed
    return small_effects(run, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of everything."""
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, draw=near_a_bound)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder of the same records that a test may change."""
    write_records(tmp_path / "copy", draw=near_a_bound)
    return tmp_path / "copy"


def test_what_survives_alone_may_not_survive_among_all(folder: Path) -> None:
    by_name = {decision.claim.name: decision for decision in decide(folder)}
    assert list(by_name) == list(CLAIMS)
    sphere, cost = by_name["sphere"], by_name["cost"]
    assert CLAIMS["sphere"].rule.decide(sphere.estimate)[0] == "not reproduced"
    assert (sphere.verdict, sphere.corrected) == ("underpowered", True)
    assert sphere.p == pytest.approx(2 * stats.t.sf(13.5, 1))
    assert 0.04 < sphere.p < 0.05
    assert (cost.verdict, cost.corrected) == ("not reproduced", False)
    assert "decided alone, but not among all claims at once" in sphere.as_verdict().ours
    assert "decided alone" not in cost.as_verdict().ours


def test_the_correction_is_that_of_scipy_over_all_claims(tmp_path: Path) -> None:
    write_records(tmp_path, profile="cpu", draw=small_effects)
    decisions = {d.claim.name: d for d in decide(tmp_path)}
    decided = {name: CLAIMS[name].rule.decide(CLAIMS[name].endpoint(tmp_path)) for name in RAW}
    adjusted = stats.false_discovery_control([decided[name][1] for name in RAW])
    killed = {n for n, p in zip(RAW, adjusted, strict=True) if p > RATE and decided[n][0] != "underpowered"}
    assert 3 <= len(killed) < len(RAW) - 3
    for name, (verdict, p) in decided.items():
        found = decisions[name]
        assert (found.corrected, found.p) == (name in killed, p)
        assert found.verdict == ("underpowered" if name in killed else verdict)
    assert {"reproduced", "not reproduced", "underpowered"} <= {d.verdict for d in decisions.values()}
    assert all(
        d.verdict == (d.claim.settled or "not testable here") and d.ours == d.claim.reason
        for n, d in decisions.items()
        if n not in RAW
    )
    for name in ("sphere", "table1-ppl-faces32"):  # asked for alone, they face the same correction
        alone = decide(tmp_path, [name])
        assert [d.verdict for d in alone] == [decisions[d.claim.name].verdict for d in alone]


def test_decisions_are_verdicts_of_the_course(folder: Path) -> None:
    decisions = decide(folder)
    for decision in decisions:
        verdict = decision.as_verdict()
        assert isinstance(verdict, Verdict)
        assert verdict.verdict in VERDICT_KINDS
        if decision.estimate is not None:
            assert ", 2 seeds" in verdict.ours
            assert decision.claim.protocol in verdict.ours
    assert ", 2 seeds of 40 pairs;" in decide(folder, ["table1-ppl-faces16"])[0].as_verdict().ours
    counts = Counter(decision.verdict for decision in decisions)
    assert tally(decisions) == ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])
    assert tally([]) == ""


def test_what_is_asked_for_needs_its_records_and_nothing_else_does(copy: Path) -> None:
    for file in (copy / "trace").iterdir():
        file.unlink()
    assert [d.claim.name for d in decide(copy, ["cost-quarter", "sphere-thickness"])] == [
        "sphere-thickness",
        "cost-quarter",
    ]
    with pytest.raises(FileNotFoundError, match=r"records of trace, is made by: isodiff reproduce trace-er"):
        decide(copy, ["trace-error"])
    with pytest.raises(FileNotFoundError, match="records of trace"):
        decide(copy)


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([math.log(0.9)] * 2, "%", "-10 % [-10, -10]"),
        ([math.log(0.5)] * 2, "%", "-50 % [-50, -50]"),
        ([math.log(2)] * 2, "%", "+100 % [+100, +100]"),
        ([0.0, 0.0], "%", "+0.0 % [+0.0, +0.0]"),
        ([math.log(1e7)] * 2, "%", "+1e+09 % [+1e+09, +1e+09]"),
        ([1.1107] * 3, "", "1.1107 [1.1107, 1.1107]"),
        ([0.25, 0.25], "nats", "0.2500 [0.2500, 0.2500] nats"),
        ([math.log(2)] * 3, "log", "2.00 [2.00, 2.00] times"),
        ([1.0, 1.5, 2.0], "times", "1.50 [0.26, 2.74] times"),
    ],
)
def test_effects_as_text(values: list[float], unit: str, text: str) -> None:
    assert effect(Estimate.of(values), unit) == text


def test_a_wide_interval_in_percent_has_no_decimals() -> None:
    """Values ±0.1 in log: mean −0.0 rounds to no digit after the point, ends are exp(∓t s) − 1."""
    estimate = Estimate.of([-0.1, 0.0, 0.1])
    low, high = (100 * math.expm1(end) for end in estimate.interval)
    assert effect(estimate, "%").endswith(f" % [{low:+.0f}, {high:+.0f}]")


@pytest.mark.parametrize("heading", TABLES)
def test_a_table_has_a_row_an_arm_and_a_column_a_quantity(heading: str, folder: Path) -> None:
    experiment, quantities = TABLES[heading]
    head, line, *rows = (row.strip("|").split("|") for row in table_markdown(folder, heading).splitlines())
    assert [cell.strip() for cell in head] == ["arm", *quantities]
    assert line == ["---"] * len(head)
    assert [row[0].strip() for row in rows] == list(experiments("smoke")[experiment].arms)
    for row in rows:
        arm, *cells = (cell.strip() for cell in row)
        assert len(cells) == len(quantities)
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


def test_arms_that_an_experiment_does_not_know_come_last(copy: Path) -> None:
    for seed in (0, 1):
        (copy / "latent64" / f"base-seed{seed}.json").rename(copy / "latent64" / f"added-seed{seed}.json")
    rows = table_markdown(copy, "Tab. I, latent diffusion").splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["control", "isometric", "raw", "added"]


def test_verdicts_as_markdown(folder: Path) -> None:
    decisions = decide(folder)
    rows = verdicts_markdown(decisions).splitlines()
    assert len(rows) == 2 + len(decisions)
    for row, decision in zip(rows[2:], decisions, strict=True):
        assert row.replace("\\|", "").count("|") == 5, row
        assert f"<br>`{decision.claim.name}` |" in row
        assert f"| {VERDICT_KINDS[decision.verdict][0]} {decision.verdict}" in row
        assert row.endswith(" ᶜ |") == decision.corrected


def test_bars_in_a_text_do_not_cut_its_cell(folder: Path) -> None:
    (decision,) = decide(folder, ["trace-error"])
    claim = dataclasses.replace(decision.claim, statement="E[H|X]\nfalls", paper="")
    row = verdicts_markdown([Decision(claim, None, "underpowered")]).splitlines()[2]
    assert "| E[H\\|X] falls<br>" in row


def test_names_stand_for_groups_of_claims() -> None:
    assert check_names(["dsm"]) == ["dsm"]
    table1 = [name for name in CLAIMS if name.startswith("table1-")]
    assert check_names(["table1"]) == table1
    assert check_names(["dsm", "table1-ppl", "table1-ppl-faces32"]) == [
        "dsm",
        "table1-ppl-faces32",
        "table1-ppl-faces16",
    ]
    assert check_names([]) == []
    assert not set(check_names(["tableI"])) & set(table1)


@pytest.mark.parametrize("name", ["table9", "table", "", "Table1", "dsm "])
def test_an_unknown_claim_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"no claim is called '{name}'; there are table1-ppl-faces32, "):
        check_names(["dsm", name])


def test_both_files_of_a_report_are_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = decide(copy)
    markdown, plain = write_report(copy)
    assert [markdown, plain] == [copy / "verdicts.md", copy / "verdicts.json"]
    text = markdown.read_text(encoding="utf-8")
    assert f"{len(CLAIMS)} claims: {tally(decisions)}." in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        *dict.fromkeys(claim.group for claim in CLAIMS.values()),
        *TABLES,
    ]
    assert all(table_markdown(copy, heading) in text for heading in TABLES)
    rows = json.loads(plain.read_text())
    assert [row["claim"] for row in rows] == list(CLAIMS)
    for row, decision in zip(rows, decisions, strict=True):
        assert (row["verdict"], row["corrected"], row["ours"]) == (decision.verdict, decision.corrected, decision.ours)
        assert row["values"] == pytest.approx([] if decision.estimate is None else decision.estimate.values, rel=1e-5)
    assert not list(copy.glob(".*"))
    before = {file: file.read_bytes() for file in (markdown, plain)}
    monkeypatch.setattr(Path, "write_bytes", lambda *_a, **_o: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(copy)
    assert {file: file.read_bytes() for file in before} == before


def test_a_report_without_all_records_is_none(copy: Path) -> None:
    (copy / "cost" / "run-seed1.json").unlink()
    with pytest.raises(FileNotFoundError, match="records of cost"):
        write_report(copy)
    assert not list(copy.glob("verdicts*"))


def test_the_readme_begins_with_claims_that_there_are(folder: Path) -> None:
    blocks = readme_blocks(folder, repository_root() / "notebooks")
    assert {"tally", "verdicts"} <= set(blocks)
    assert blocks["tally"].startswith(f"Of {len(CLAIMS)} claims: ")
    assert len(set(HEADLINES)) == len(HEADLINES)
    assert [row.split("`")[1] for row in blocks["verdicts"].splitlines()[2:]] == list(HEADLINES)


def test_only_what_stands_between_markers_is_replaced() -> None:
    before = (
        "# A\n<!-- tally -->\nold\nand older\n<!-- /tally -->\nb <!-- c -->\n<!-- verdicts -->\n-\n<!-- /verdicts -->"
    )
    after = fill_readme(before, {"tally": r"3 of 4 \1", "verdicts": "| a |\n|---|"})
    assert after == (
        "# A\n<!-- tally -->\n3 of 4 \\1\n<!-- /tally -->\nb <!-- c -->\n"
        "<!-- verdicts -->\n| a |\n|---|\n<!-- /verdicts -->"
    )
    assert fill_readme(after, {"tally": r"3 of 4 \1"}) == after
    assert fill_readme(before, {}) == before


@pytest.mark.parametrize(
    "text", ["", "<!-- tally -->\nold", "old\n<!-- /tally -->", "<!-- verdicts -->\n\n<!-- /verdicts -->"]
)
def test_a_marker_that_is_missing_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="no place for 'tally': the text needs <!-- tally --> and <!-- /tally -->"):
        fill_readme(text, {"tally": "new"})
