"""Claims and their endpoints: what decides each can be measured at every profile, and closed forms come out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from isodiff.paths import data_directory
from isodiff.reproduce.claims import CLAIMS, Claim, ablations, geometry, paths, tables
from isodiff.reproduce.decide import Effect, Estimate, Within
from isodiff.reproduce.experiments import PROFILES, Experiment, experiments
from isodiff.reproduce.observations import load_run
from isodiff.reproduce.runner import Place, Run

from .synthetic import Draw, measured_names, write_records

DECIDED = {name: claim for name, claim in CLAIMS.items() if claim.endpoint is not None}
FACES16 = list(experiments("smoke")["faces16"].arms)


@pytest.fixture(scope="module", params=list(PROFILES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of every record of a profile, with positive numbers of chance."""
    folder = tmp_path_factory.mktemp(request.param)
    write_records(folder, profile=request.param, num_seeds=2)
    return folder


def drawn(change: Callable[[Run, str], float | None], seed: int = 0) -> Draw:
    """Return numbers of chance, except where a change gives one."""
    source = np.random.default_rng(seed)

    def draw(run: Run, name: str) -> float:
        by_chance = float(source.uniform(0.5, 2))
        return by_chance if (given := change(run, name)) is None else given

    return draw


def values(name: str, folder: Path, names: tuple[str, ...], change: Callable[[Run, str], float | None]) -> np.ndarray:
    """Return a claim's numbers on records of all its seeds at profile cpu, with some of them given."""
    write_records(folder, profile="cpu", names=names, draw=drawn(change))
    return np.array(CLAIMS[name].endpoint(folder).values)


def test_there_are_many_and_no_two_share_a_name() -> None:
    every = [*tables(), *ablations(), *geometry(), *paths()]
    assert len(every) >= 30
    assert [claim.name for claim in every] == list(CLAIMS)
    assert len(DECIDED) >= 30
    assert all(name == claim.name and name.isascii() and " " not in name for name, claim in CLAIMS.items())


def test_each_says_what_where_and_how() -> None:
    for claim in CLAIMS.values():
        assert all((claim.group, claim.statement, claim.source, claim.paper)), claim.name
        assert claim.unit in ("%", "", "nats", "log", "part", "times", "in ρ"), claim.name
        assert bool(claim.protocol) == (claim.endpoint is not None), claim.name
        assert bool(claim.reason) == (claim.endpoint is None), claim.name
    assert len({(claim.group, claim.statement, claim.protocol) for claim in CLAIMS.values()}) == len(CLAIMS)


def test_the_smallest_effect_that_counts_is_one() -> None:
    for claim in DECIDED.values():
        rule = claim.rule
        assert rule.smallest > 0 if isinstance(rule, Effect) else isinstance(rule, Within), claim.name


@pytest.mark.parametrize("profile", PROFILES)
def test_every_source_is_an_arm_of_an_experiment_of_every_profile(profile: str) -> None:
    there = experiments(profile)
    for claim in DECIDED.values():
        assert set(claim.experiments) <= set(there), claim.name
        for experiment, arm, _ in claim.endpoint.sources:
            known = there[experiment]
            assert arm in (known.arms if isinstance(known, Experiment) else ["run"]), claim.name
    assert all(experiment.seeds >= 2 for experiment in there.values())


@pytest.mark.parametrize("name", DECIDED)
def test_what_decides_it_is_measured(name: str, folder: Path) -> None:
    claim = CLAIMS[name]
    estimate = claim.endpoint(folder)
    assert len(estimate.values) == 2
    verdict, p = claim.rule.decide(estimate)
    assert verdict in ("reproduced", "not reproduced", "underpowered")
    assert 0 <= p <= 1


def test_the_names_made_up_here_are_those_of_real_records() -> None:
    shipped = data_directory() / "results" / "reproduce"
    files = sorted(shipped.glob("*/*-seed*.json"))
    if not files:
        pytest.skip(f"no records in {shipped} yet")
    place = Place("cpu", shipped, shipped)
    for file in files:
        body = load_run(file)
        run = Run(*(body["run"][key] for key in ("experiment", "seed", "arm")))
        found = set(body["values"] if "values" in body else body["measurements"])
        assert found == set(measured_names(run, place)), file.name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rule": Effect(1, 0.1)},
        {"rule": Effect(1, 0.1), "reason": "no GPU"},
        {"endpoint": CLAIMS["cost"].endpoint},
        {"endpoint": CLAIMS["cost"].endpoint, "reason": "no GPU"},
        {"endpoint": CLAIMS["cost"].endpoint, "rule": Effect(1, 0.1), "reason": "no GPU"},
    ],
)
def test_a_claim_that_nothing_decides_and_that_says_not_why_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="larger needs an endpoint with a rule, or a reason why there is none"):
        Claim(name="larger", group="Sizes", statement="It is larger", source="nobody", **fields)


def test_two_arms_are_compared_by_their_log_ratio_seed_by_seed(tmp_path: Path) -> None:
    """Seeds differ tenfold, arms by little: paired, only the little is left."""
    effects = [0.01, -0.02, 0.04]

    def change(run: Run, name: str) -> float | None:
        if name != "ppl_alex_full" or run.arm not in ("control", "isometric"):
            return None
        return 10.0 ** (run.seed + 1) * (math.exp(effects[run.seed]) if run.arm == "isometric" else 1)

    assert values("table1-ppl-faces16", tmp_path, ("faces16",), change) == pytest.approx(effects)


def test_a_seed_counts_where_both_arms_have_it(tmp_path: Path) -> None:
    by_seed = values("table1-ppl-faces16", tmp_path, ("faces16",), lambda run, name: None)
    (tmp_path / "faces16" / "control-seed1.json").unlink()
    assert CLAIMS["table1-ppl-faces16"].endpoint(tmp_path).values == pytest.approx(by_seed[[0, 2]])
    (tmp_path / "faces16" / "isometric-seed0.json").unlink()
    with pytest.raises(ValueError, match="at least 2 finite numbers"):
        CLAIMS["table1-ppl-faces16"].endpoint(tmp_path)


def test_separability_is_a_difference_of_what_is_told_beyond_shuffled_labels(tmp_path: Path) -> None:
    """Scores exp(a) of shuffled labels and exp(a − told) of the true ones; the other kernel does not matter."""
    told = {"control": [0.5, 0.1, 0.2], "isometric": [0.75, 0.05, 0.5], "base": [0, 0, 0]}

    def change(run: Run, name: str) -> float | None:
        scores = {"ls_linear_shuffled": 3.0, "ls_linear_cross-validated": 3.0 - told.get(run.arm, [0] * 3)[run.seed]}
        return math.exp(scores[name] + run.seed) if name in scores else None

    found = values("table2-linear", tmp_path, ("faces32",), change)
    assert found == pytest.approx(np.subtract(told["isometric"], told["control"]))


def test_isotropy_is_a_geometric_mean_over_two_steps(tmp_path: Path) -> None:
    def change(run: Run, name: str) -> float | None:
        factor = 4.0 if run.arm == "isometric" else 1.0
        return {"isotropy_t600": 2.0 * factor, "isotropy_t800": 8.0}.get(name)

    assert values("encoder", tmp_path, ("faces32",), change) == pytest.approx(np.full(3, math.log(2)))


@pytest.mark.parametrize("rising", [True, False])
def test_ranks_that_rise_together_correlate_perfectly(rising: bool, tmp_path: Path) -> None:
    """Whatever the shape: excess is a power of PPL, or falls with it."""

    def change(run: Run, name: str) -> float | None:
        place = 1.0 + (3 * FACES16.index(run.arm) + run.seed) % 17
        return {"ppl_alex_full": 100 * place, "factor_excess": place ** (3 if rising else -3)}.get(name)

    assert values("ppl-excess", tmp_path, ("faces16",), change) == pytest.approx([1.0 if rising else -1.0] * 3)


def test_ranks_in_no_order_correlate_as_scipy_says(tmp_path: Path) -> None:
    found = values("ppl-edits", tmp_path, ("faces16",), lambda run, name: None)
    sources = CLAIMS["ppl-edits"].endpoint.sources
    arms = list(dict.fromkeys(arm for _, arm, _ in sources))
    assert len(arms) >= 8
    assert "base" not in arms
    for seed, value in enumerate(found):
        bodies = [load_run(tmp_path / "faces16" / f"{arm}-seed{seed}.json")["measurements"] for arm in arms]
        pairs = [(body["ppl_alex_full"]["value"], body["spill_over"]["value"]) for body in bodies]
        assert value == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def test_spread_is_the_log_of_largest_over_smallest(tmp_path: Path) -> None:
    levels = {"faces16": 3.0, "faces32": 12.0, "latent64": 6.0}

    def change(run: Run, name: str) -> float | None:
        return levels[run.experiment] if name.startswith("isotropy") and run.arm == "isometric" else None

    assert values("size-normalised", tmp_path, tuple(levels), change) == pytest.approx(np.full(3, math.log(4)))


def test_the_drop_of_late_steps_is_compared_with_that_of_early_ones(tmp_path: Path) -> None:
    """Late RTL halves, early RTL falls by a fifth: log 0.5 − log 0.8. t = 500 is late and t = 499 is not."""

    def change(run: Run, name: str) -> float | None:
        falls = {"rtl_late": 0.5, "rtl_early": 0.8}
        return falls[name] ** (run.arm == "isometric") * (2.0 + run.seed) if name in falls else None

    assert values("fig5-where", tmp_path, ("faces16",), change) == pytest.approx(np.full(3, math.log(0.5 / 0.8)))


def test_levels_and_quantities_of_one_arm(tmp_path: Path) -> None:
    def change(run: Run, name: str) -> float | None:
        given = {"rtl_late": 1.1 + run.seed / 100, "path_excess_slerp": 0.5, "path_excess_tangential": 0.25}
        given |= {"stress_stereographic": 0.2, "stress_reconstruction": 0.1, "slope": -0.5 - run.seed / 10}
        return given.get(name) if run.arm in ("run", "base", "lambda_1e-2") else {"path_excess_slerp": 0.75}.get(name)

    names = ("faces16", "faces32", "sphere", "trace")
    assert values("fig5-one", tmp_path, names, change) == pytest.approx([1.1, 1.11, 1.12])
    seeds = experiments("cpu")["trace"].seeds
    assert CLAIMS["trace-error"].endpoint(tmp_path).values == pytest.approx([-0.5 - s / 10 for s in range(seeds)])
    assert CLAIMS["fig2-sphere"].endpoint(tmp_path).mean == pytest.approx(math.log(2))
    assert CLAIMS["tangential-excess"].endpoint(tmp_path).mean == pytest.approx(math.log(0.5))
    assert CLAIMS["isometric-tangential"].endpoint(tmp_path).mean == pytest.approx(math.log(3))


def test_the_denoising_loss_is_that_of_the_last_half_of_training(tmp_path: Path) -> None:
    """The first half of every curve is 9 and would show."""

    def change(run: Run, name: str) -> float | None:
        return {"isometric": 0.3, "control": 0.2}.get(run.arm) if name == "dsm" else None

    assert values("dsm", tmp_path, ("faces16",), change) == pytest.approx(np.full(3, math.log(1.5)))


def test_theory_and_paper_cannot_both_be_right_about_straight_lines() -> None:
    """π/(2√2) and 1 are bounds that do not meet, so that one number decides both claims."""
    straight, bent = CLAIMS["fig5-one"].rule, CLAIMS["rtl-round"].rule
    assert straight.high < bent.low
    assert (bent.low + bent.high) / 2 == pytest.approx(math.pi / (2 * math.sqrt(2)))
    for level, verdicts in ((1.0, ("reproduced", "not reproduced")), (1.11, ("not reproduced", "reproduced"))):
        estimate = Estimate.of([level - 1e-4, level + 1e-4, level])
        assert (straight.decide(estimate)[0], bent.decide(estimate)[0]) == verdicts
