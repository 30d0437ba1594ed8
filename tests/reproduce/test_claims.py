"""The two files and their reader: every claim says what decides it, and that is measured; faults are named."""

import inspect
import tomllib

import pytest

from isodiff.diffusion import FinetuneConfig
from isodiff.reproduce import claims
from isodiff.reproduce.claims import CLAIMS, INSTRUMENTS, Program, experiments
from isodiff.reproduce.programs import PROGRAMS
from isodiff.reproduce.run import Place, is_done, runs_of

from ..geometry.tensors import refusals
from .synthetic import SHIPPED

DECIDED = {name: claim for name, claim in CLAIMS.items() if claim.endpoint is not None}
CLAIM = '[Sizes.larger]\nfamily = "other"\nstatement = "It is larger"\nsource = "nobody"\n'
EXPERIMENT = {"function": "trace", "options": {}, "cpu": {"seeds": 2, "step": 3}}


def test_each_claim_says_what_where_and_how() -> None:
    assert len(DECIDED) >= 60
    for name, claim in CLAIMS.items():
        assert all((claim.group, claim.statement, claim.source, claim.paper)), name
        assert claim.unit in ("%", "", "nats", "log", "part", "times", "in ρ"), name
        assert bool(claim.protocol) == (claim.endpoint is not None), name
        assert claim.protocol or claim.reason, name
        assert not claim.instrument or claim.instrument in INSTRUMENTS, name
    assert len({(claim.group, claim.statement, claim.protocol) for claim in CLAIMS.values()}) == len(CLAIMS)
    primary = [claim for claim in CLAIMS.values() if claim.family == "primary"]
    assert len(primary) <= 10
    for claim in primary:  # each on five trainings, or on a hundred pairs over three bases
        assert {experiments("cpu")[name].seeds for name in claim.endpoint.experiments} == {5}, claim.name
    assert {claim.instrument for claim in DECIDED.values()} == set(INSTRUMENTS)


@pytest.mark.parametrize("profile", claims.PROFILES)
def test_what_decides_a_claim_is_measured_at_every_profile_and_trained_by_fields_of_trainings(profile: str) -> None:
    """By an arm with the same families as at profile cpu, where records have every quantity."""
    there, shipped = experiments(profile), experiments("cpu")
    for name, arm, _ in (source for claim in DECIDED.values() for source in claim.endpoint.sources):
        assert there[name].seeds >= 2
        if isinstance(shipped[name], Program):
            assert (arm, there[name].function) == ("run", shipped[name].function), name
        else:
            assert there[name].arms[arm].families == shipped[name].arms[arm].families, name
    for experiment in there.values():
        if isinstance(experiment, Program):
            inspect.signature(PROGRAMS[experiment.function]).bind(0, **experiment.options)
            continue
        for arm in experiment.arms.values():
            FinetuneConfig(**{"seed": 0, **experiment.config, **(arm.changes or {})})
        if isinstance(experiment.base, dict):
            FinetuneConfig(**experiment.base["config"], lambda_iso=0.0, seed=0)


def test_every_shipped_record_is_one_of_a_run_and_fits() -> None:
    """What no claim needs and was never run may wait."""
    needed = {name for claim in DECIDED.values() if not claim.reason for name in claim.experiments}
    begun = {n: e for n, e in experiments("cpu").items() if n in needed or (SHIPPED / n).is_dir()}
    runs, place = runs_of(begun), Place("cpu", SHIPPED, SHIPPED)
    assert all(is_done(run, place) for run in runs)
    told = "".join((SHIPPED / run.file).read_text(encoding="utf-8") for run in runs)
    assert "folder:" not in told, "where a data set lies is the machine's own matter"
    assert {str(run.file) for run in runs} == {str(f.relative_to(SHIPPED)) for f in SHIPPED.glob("*/*-seed*.json")}


def read(text: str) -> None:
    claims.read_claims(tomllib.loads(CLAIM + text))


test_a_faulty_claim_or_experiment_is_named_with_its_key = refusals(
    (
        lambda: read("rule = { rises_by = 1 }"),
        r"larger\n.*needs an endpoint with a rule, or a reason why there is none",
    ),
    (lambda: read('reason = "no GPU"\nprotocl = "FID"'), r"larger\.protocl\n +Unexpected keyword argument"),
    (lambda: read('endpoint = { mean = "a b c" }'), r"larger\.endpoint\n.*an endpoint is one of level, .*got {'mean'"),
    (lambda: read('endpoint = { level = "a b" }'), r"larger\.endpoint\n.*'a b' is not 'experiment arm quantity'"),
    (lambda: read("rule = { falls = 1 }"), r"larger\.rule\n.*a rule is one of falls_by, .* got {'falls': 1}"),
    (lambda: read('reason = "a"\n[Others.larger]\nreason = "b"'), r"two claims are called larger"),
    (lambda: claims.read_experiment("sizes", EXPERIMENT, "cpu"), r"sizes\.step\n +Unexpected keyword argument"),
)
