"""Verdicts and tables from folders of records: what the correction does, what is written, and what is refused."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodiff.reproduce import report
from isodiff.reproduce.claims import CLAIMS, experiments
from isodiff.reproduce.endpoints import load_run, observe
from isodiff.reproduce.rules import RATE, Estimate, holm
from isodiff.reproduce.run import Run
from isodiff.verdict import VERDICT_KINDS, Verdict

from .synthetic import SHIPPED, chance, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path)
    return tmp_path


def test_corrections_run_over_whole_families_whatever_is_asked_for(folder: Path) -> None:
    decisions = {decision.claim.name: decision for decision in report.decide(folder)}
    for family, adjust in (("primary", holm), ("secondary", stats.false_discovery_control), ("other", list)):
        of = {name: claim for name, claim in CLAIMS.items() if decisions[name].estimate and claim.family == family}
        alone = {name: claim.rule.decide(claim.endpoint(folder)) for name, claim in of.items()}
        for (name, (verdict, p)), adjusted in zip(alone.items(), adjust([p for _, p in alone.values()]), strict=True):
            found = decisions[name]
            assert found.p == p
            assert found.alone in (verdict, "not testable here")
            assert family == "other" or found.adjusted == pytest.approx(adjusted)
            lost = family == "primary" and adjusted > RATE and found.alone in ("reproduced", "smaller")
            assert found.verdict == ("undecided" if lost else found.alone)
    assert {d.verdict for d in decisions.values()} == set(VERDICT_KINDS)
    for name, claim in CLAIMS.items():
        there = all((folder / experiment).is_dir() for experiment in claim.experiments)
        if claim.endpoint is None or not there:
            assert decisions[name].estimate is None
            assert decisions[name].verdict == (claim.settled or "not testable here")
            assert decisions[name].ours == claim.reason
    for name in ("table1-ppl", "faces32-ppl"):
        assert report.decide(folder, [name]) == [decisions[name]]


def test_what_the_instrument_cannot_reach_is_not_testable(tmp_path: Path) -> None:
    for reach, verdict in ((0.3, "reproduced"), (0.2, "not testable here")):
        given = {"told_linear": reach, "ls_linear_cross-validated entropy": 0.4}

        def draw(run: Run, name: str, given: dict[str, float] = given) -> float:
            more = run.arm == "isometric" and name == "ls_linear_shuffled entropy"
            return given.get(name, 0.6 if more else 0.4 if "entropy" in name else chance(run, name))

        write_records(tmp_path, draw)
        assert report.decide(tmp_path, ["table2-linear"])[0].alone == verdict


def test_decisions_are_rows_of_verdict_tables_and_of_json(folder: Path) -> None:
    decisions = report.decide(folder)
    counts = Counter(decision.verdict for decision in decisions)
    assert report.tally(decisions) == ", ".join(f"{counts[kind]} {kind}" for kind in VERDICT_KINDS if counts[kind])
    for decision in decisions:
        claim, ours, plain = decision.claim, decision.as_verdict().ours, decision.to_json()
        assert (plain["name"], plain["family"], plain["verdict"]) == (claim.name, claim.family, decision.verdict)
        if decision.estimate is None:
            assert plain["n_units"] == 0
            assert plain["value"] is plain["detectable"] is plain["p"] is None
            continue
        assert claim.protocol in ours
        assert "seen with 80 % power" in ours
        assert plain["detectable_text"].startswith({-1: "−", 1: "+"}.get(getattr(claim.rule, "sign", 0), "±"))
        assert (plain["p"] is None, plain["adjusted_p"] is None) == (False, claim.family == "other")
        assert (f"alone: {decision.alone}" in ours) == (decision.alone != decision.verdict)
        assert plain["n_units"] == len(decision.estimate.values)
        expected = [decision.estimate.mean, *decision.estimate.interval, claim.rule.theta]
        assert [plain[key] for key in ("value", "low", "high", "theta")] == pytest.approx(expected, rel=1e-5)
    ppl = report.decide(folder, ["table1-ppl"])[0]
    assert ", 5 trainings of 400 pairs; path length: " in ppl.as_verdict().ours
    assert (ppl.to_json()["unit"], ppl.to_json()["n_per_unit"]) == ("training", 400)


ROWS = {
    "table1-ppl": ("control", "isometric", ["log_ppl_alex_full"], lambda a, b: (b - a).mean()),
    "table1-mrtl": ("control", "isometric", ["mrtl"], lambda a, b: np.log((b.mean() - 1) / (a.mean() - 1))),
    "table1-mcn": ("control", "isometric", ["mcn_t600", "mcn_t800"], lambda a, b: np.log(b.mean() / a.mean())),
    "whole-map": ("control", "isometric", ["map_log_anisotropy"], lambda a, b: (b - a).mean()),
    "smooth-excess": ("control", "isometric", ["factor_excess"], lambda a, b: np.log(b.mean() / a.mean())),
    "tangential-slerp": ("base", "base", ["path_distance_slerp", "path_distance_tangential"], None),
}


@pytest.mark.parametrize("name", ROWS)
def test_primary_rows_follow_from_replicates_by_a_few_lines(name: str) -> None:
    """From the shipped files alone: means over what a training drew, Student over trainings, sign and size."""
    first, second, keys, contrast = ROWS[name]
    values = []
    for seed in range(5):
        files = [SHIPPED / "doses" / f"{arm}-seed{seed}.json" for arm in (first, second)]
        a, b = ([np.array(json.loads(f.read_text())["measurements"][k]["replicates"]) for k in keys] for f in files)
        found = [np.log(b[1].mean() / a[0].mean())] if contrast is None else list(map(contrast, a, b))
        values.append(np.mean(found))
    mean, reach = np.mean(values), 2.7764451 * np.std(values, ddof=1) / 5**0.5  # t of 4 degrees of freedom
    (decision,) = report.decide(SHIPPED, [name])
    theta = decision.claim.rule.theta
    found = (decision.estimate.mean, *decision.estimate.interval)
    assert found == pytest.approx((mean, mean - reach, mean + reach), abs=1e-4)
    if mean + reach < 0:
        assert decision.alone == ("reproduced" if mean <= theta else "smaller")
    else:
        assert decision.alone == ("not reproduced" if mean - reach > theta else "undecided")


def test_what_is_asked_for_needs_its_records_and_nothing_else_does(folder: Path) -> None:
    shutil.rmtree(folder / "trace")
    found = report.decide(folder, ["cost-quarter", "sphere-thickness"])
    assert [decision.claim.name for decision in found] == ["sphere-thickness", "cost-quarter"]
    with pytest.raises(FileNotFoundError, match=r"records of trace, is made by: isodiff reproduce trace-er"):
        report.write_report(folder)
    assert not list(folder.glob("verdicts*"))


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([math.log(1e-4), math.log(2e-4)], "%", "−99.99 % [−100.00, −98.84]"),
        ([math.log(1e7)] * 2, "%", "+1e+09 % [+1e+09, +1e+09]"),
        ([-0.1, 0.0, 0.1], "%", "+0 % [−22, +28]"),  # ends exp(∓4.303 · 0.1/√3) − 1: wide, so without decimals
        ([-1e-4, 0.0, 1e-4], "part", "+0.0000 [−0.0002, +0.0002] part"),
        ([1.1107] * 3, "nats", "+1.1107 [+1.1107, +1.1107] nats"),
        ([math.log(2)] * 3, "log", "2.0000 [2.0000, 2.0000] times"),
        ([1.0, 1.5, 2.0], "", "1.5 [0.3, 2.7]"),
    ],
)
def test_effects_as_text(values: list[float], unit: str, text: str) -> None:
    assert report.effect(Estimate.of(values), unit) == text


def test_quantities_are_shown_of_the_arms_that_have_them_in_the_experiments_order(folder: Path) -> None:
    """Arms that the experiment does not know come last."""
    for file in list((folder / "ablations").glob("control-seed*.json")):
        file.rename(file.with_name(file.name.replace("control", "added")))
    arms = report.arms_of(folder, "ablations")
    assert arms == [*list(experiments("smoke")["ablations"].arms)[1:], "added"]
    found = report.arm_estimates(folder, "ablations", "factor_excess", arms)
    assert {"isometric", "added"} <= found.keys() < set(arms)
    for arm, estimate in found.items():
        bodies = [load_run(file) for file in sorted((folder / "ablations").glob(f"{arm}-seed*.json"))]
        assert estimate.values == tuple(observe(body, "factor_excess") for body in bodies)


def test_one_training_stands_beside_what_several_decide(folder: Path) -> None:
    rows = [Verdict("PPL falls", "Tab. 1", "–", "−7 %", "reproduced"), Verdict("b", "c", "d", "e", "reproduced")]
    first, second = report.over_trainings(rows, {"PPL falls": "table1-ppl"}, folder)
    (decision,) = report.decide(folder, ["table1-ppl"])
    assert first.verdict == decision.verdict
    assert first.ours == f"−7 %. That is one training; over several trainings (`table1-ppl`): {decision.ours}"
    assert second == rows[1]
    with pytest.raises(ValueError, match="no row says PPL rises"):
        report.over_trainings(rows, {"PPL rises": "table1-ppl"}, folder)


def test_names_stand_for_groups_of_claims() -> None:
    assert report.check_names(["dsm", "table1"]) == ["dsm", *(name for name in CLAIMS if name.startswith("table1-"))]
    assert report.check_names(["mcn", "mcn-k400"]) == ["mcn-k100", "mcn-k400"]
    for name in ("table", ""):
        with pytest.raises(ValueError, match=f"no claim is called '{name}'; there are table1-ppl, "):
            report.check_names(["dsm", name])
