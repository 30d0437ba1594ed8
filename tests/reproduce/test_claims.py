"""The two files and their reader: every claim says what decides it, and that is measured; faults are named."""

from __future__ import annotations

import math
import tomllib

import pytest

from isodiff.diffusion import FinetuneConfig
from isodiff.reproduce.claims import (
    CLAIMS,
    HEADLINES,
    PROFILES,
    TABLES,
    Experiment,
    Pretraining,
    experiments,
    read_claims,
    read_experiment,
)
from isodiff.reproduce.endpoints import DERIVED, load_run
from isodiff.reproduce.rules import Effect
from isodiff.reproduce.run import Place, is_done, runs_of, settings_of

from .synthetic import SHIPPED

DECIDED = {name: claim for name, claim in CLAIMS.items() if claim.endpoint is not None}
CLAIM = """[Sizes.larger]
statement = "It is larger"
source = "nobody"
"""
EXPERIMENT = """
question = "Is it larger?"
dataset = "faces"
base = "faces32/base"
config = { batch_size = 8 }
families = { few = ["fid"] }
arms.base = { families = "few" }
cpu = { seeds = 2 }
"""


def test_each_claim_says_what_where_and_how() -> None:
    assert len(DECIDED) >= 60
    for name, claim in CLAIMS.items():
        assert all((claim.group, claim.statement, claim.source, claim.paper)), name
        assert claim.unit in ("%", "", "nats", "log", "part", "times", "in ρ"), name
        assert bool(claim.protocol) == (claim.endpoint is not None) == (not claim.reason), name
        assert not isinstance(claim.rule, Effect) or claim.rule.smallest > 0, name
    assert len({(claim.group, claim.statement, claim.protocol) for claim in CLAIMS.values()}) == len(CLAIMS)
    assert set(HEADLINES) <= set(CLAIMS)
    assert len(set(HEADLINES)) == len(HEADLINES)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_decides_a_claim_is_measured_at_every_profile_and_trained_by_fields_of_trainings(profile: str) -> None:
    """By an arm with the same families as at profile cpu, where records have every quantity."""
    there, shipped = experiments(profile), experiments("cpu")
    for name, arm, _ in (source for claim in DECIDED.values() for source in claim.endpoint.sources):
        if isinstance(shipped[name], Experiment):
            assert there[name].arms[arm].families == shipped[name].arms[arm].families, name
        else:
            assert (arm, there[name].function) == ("run", shipped[name].function), name
    assert all(experiment.seeds >= 2 for experiment in there.values())
    for experiment in (one for one in there.values() if isinstance(one, Experiment)):
        for arm in experiment.arms.values():
            FinetuneConfig(**{**experiment.config, **(arm.changes or {})}, seed=0)
        if isinstance(experiment.base, Pretraining):
            FinetuneConfig(**experiment.base.config, lambda_iso=0.0, seed=0)


def test_every_shipped_record_is_one_of_a_run_and_fits() -> None:
    known, place = experiments("cpu"), Place("cpu", SHIPPED, SHIPPED)
    runs = runs_of(known)
    assert all(is_done(run, known[run.experiment], place) for run in runs)
    assert {str(run.file) for run in runs} == {str(f.relative_to(SHIPPED)) for f in SHIPPED.glob("*/*-seed*.json")}
    for name, quantities in TABLES.values():
        body = load_run(SHIPPED / name / "isometric-seed0.json")
        assert set(quantities.values()) <= body["measurements"].keys() | DERIVED.keys()


def test_no_two_runs_are_told_the_same() -> None:
    known = experiments("gpu")
    told = [repr(settings_of(run, known[run.experiment])) for run in runs_of(known)]
    assert len(set(told)) == len(told)


def test_correlations_are_over_all_fine_tuned_arms_that_have_both_quantities() -> None:
    arms = {
        name
        for name, arm in experiments("cpu")["faces16"].arms.items()
        if arm.changes is not None and {"ppl", "truth", "directions"} <= set(arm.families)
    }
    for name in ("ppl-excess", "ppl-edits"):
        sources = CLAIMS[name].endpoint.sources
        assert {arm for _, arm, _ in sources} == arms
        assert len(sources) == 2 * len(arms)
        assert f"{len(arms)} " in CLAIMS[name].protocol


def test_theory_and_paper_cannot_both_be_right_about_straight_lines() -> None:
    """π/(2√2) and 1 are bounds that do not meet, so that one number decides both claims."""
    straight, bent = CLAIMS["fig5-one"].rule, CLAIMS["rtl-round"].rule
    assert straight.low < 1 < straight.high < bent.low
    assert (bent.low + bent.high) / 2 == pytest.approx(math.pi / (2 * math.sqrt(2)))


def test_a_claim_is_one_table() -> None:
    more = (
        'endpoint = { log_spread = ["faces16 base fid", "faces32/latent64 raw fid/kid"] }\nrule = { rises_by = 0.25 }'
    )
    (claim,) = read_claims(tomllib.loads(CLAIM + more)).values()
    assert (claim.name, claim.group, claim.paper, claim.unit) == ("larger", "Sizes", "–", "%")
    assert claim.rule == Effect(1, 0.25)
    assert claim.endpoint.sources == (
        ("faces16", "base", "fid"),
        *[(experiment, "raw", quantity) for quantity in ("fid", "kid") for experiment in ("faces32", "latent64")],
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "larger: .*needs an endpoint with a rule, or a reason why there is none"),
        ("rule = { rises_by = 1 }", "needs an endpoint with a rule"),
        ('endpoint = { level = "cost run step_ratio" }\nreason = "no GPU"', "needs an endpoint with a rule"),
        ('reason = "no GPU"\nprotocl = "FID"', "larger: protocl: Unexpected keyword argument"),
        ('reason = "no GPU"\npaper = 3', "larger: paper: Input should be a valid string"),
        ('endpoint = { mean = "cost run step_ratio" }', "larger: an endpoint is one of level, .*got {'mean'"),
        ('endpoint = { level = "cost step_ratio" }', "larger: 'cost step_ratio' is not 'experiment arm quantity'"),
        ('endpoint = { level = "cost run a/b" }', "larger: level is not a function of 2 numbers, as 'cost run a/b'"),
        ("rule = { falls = 1 }", "larger: a rule is one of falls_by, .* got {'falls': 1}"),
        ("rule = { falls_by = 1, within = [0, 1] }", "larger: a rule is one of"),
        ('rule = { rises_by = "much" }', "larger: smallest: Input should be a valid number"),
        ("rule = { rises_by = -1 }", "larger: .*smallest at least 0; got 1 and -1"),
        ('reason = "a"\n[Others.larger]\nreason = "b"', "two claims are called larger"),
    ],
)
def test_a_faulty_claim_is_named_with_its_key(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_claims(tomllib.loads(CLAIM + text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cpu = { seeds = 2 }", "cpu = { seeds = 2, step = 3 }", "sizes: step: Unexpected keyword argument"),
        ("seeds = 2", 'seeds = "two"', "sizes: seeds: Input should be a valid integer"),
        ('{ families = "few" }', '{ families = "many" }', "sizes has no families called many; there are few"),
        ('{ families = "few" }', '{ families = "few", change = {} }', "sizes: arms.base.change: Unexpected keyword"),
        ('dataset = "faces"\n', "", "sizes: dataset: Field required"),
        ('"faces32/base"', "{ config = {} }", "sizes: .*base.Pretraining.architecture: Field required"),
    ],
)
def test_a_faulty_experiment_is_named_with_its_key(old: str, new: str, message: str) -> None:
    assert read_experiment("sizes", tomllib.loads(EXPERIMENT), "cpu").arms["base"].families == ("fid",)
    assert old in EXPERIMENT
    with pytest.raises(ValueError, match=message):
        read_experiment("sizes", tomllib.loads(EXPERIMENT.replace(old, new)), "cpu")


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ValueError, match="profile is 'tpu'; reproduce accepts smoke, cpu, gpu"):
        experiments("tpu")
