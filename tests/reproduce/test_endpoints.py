"""Records back to numbers, and the functions that make endpoints of them, in closed form."""

import json
import math
import os
from pathlib import Path

import pytest

from isodiff.reproduce.claims import CLAIMS
from isodiff.reproduce.endpoints import FORMAT, Endpoint, contrast, load_run, observe, seeds_of
from isodiff.reproduce.run import Run

from .synthetic import chance, record_of, write_records


def test_seeds_are_counted_by_number_and_arms_by_their_whole_name(tmp_path: Path) -> None:
    (tmp_path / "doses").mkdir()
    for name in ("p_0-seed10.json", "p_0-seed2.json", "p_0.75-seed3.json", "lambda_p_0-seed4.json", ".p_0-seed5.json"):
        (tmp_path / "doses" / name).write_text("{}")
    assert seeds_of(tmp_path, "doses", "p_0") == [2, 10]
    assert seeds_of(tmp_path, "faces32", "p_0") == []


def test_a_record_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path, run = tmp_path / "a.json", Run("trace", 0, "run", {})
    path.write_text(json.dumps(record_of(run, chance)))
    assert load_run(path) is load_run(path)
    path.write_text(json.dumps(record_of(run, lambda run, name: 7.0)))
    os.utime(path, ns=(1, 10**18))
    assert observe(load_run(path), "slope") == 7.0


DAMAGED = r"run\.json is damaged \(.*\); delete it to run it again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no record at .*run\.json; `isodiff reproduce` writes it"),
        ('{"run": {"sett', DAMAGED),
        (f'{{"format": "{FORMAT}", "run": null}}', DAMAGED),
        ('{"format": "other-1", "run": {"settings": {}}}', f"has format 'other-1'; expected '{FORMAT}'"),
    ],
)
def test_what_is_no_record_is_refused_by_name(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_run(tmp_path / "run.json")


def test_two_arms_are_compared_by_their_log_ratio_seed_by_seed(tmp_path: Path) -> None:
    """Seeds differ tenfold, arms by little: paired, only the little is left. A seed counts where both arms have it."""
    effects = [0.01, -0.02, 0.04, 0.0, 0.03]

    def draw(run: Run, name: str) -> float:
        return 10.0 ** (run.seed + 1) * (math.exp(effects[run.seed]) if run.arm == "isometric" else 1)

    write_records(tmp_path, draw, names=["doses"])
    endpoint = contrast("doses", "mcn", "isometric", "control")
    assert endpoint == CLAIMS["table1-mcn"].endpoint
    assert endpoint(tmp_path).values == pytest.approx(effects)
    (tmp_path / "doses" / "control-seed1.json").unlink()
    assert endpoint(tmp_path).values == pytest.approx([0.01, 0.04, 0.0, 0.03])
    for seed in (0, 2, 3):
        (tmp_path / "doses" / f"isometric-seed{seed}.json").unlink()
    with pytest.raises(ValueError, match="at least 2 finite numbers"):
        endpoint(tmp_path)


def test_functions_in_closed_form(tmp_path: Path) -> None:
    """Late excess of RTL halves, early falls by a fifth; t = 500 is late and t = 499 is not.

    SVMs tell what shuffled labels leave open and true ones do not, of the two attributes that both models have.
    """
    arms = {
        "isometric": {"rtl_excess": 0.25, "rtl_late_excess": 0.5, "rtl_early_excess": 0.8, "dsm": 0.3},
        "control": {"rtl_excess": 0.5, "rtl_late_excess": 1.0, "rtl_early_excess": 1.0, "dsm": 0.2},
    }
    for arm, told in (("isometric", 0.3), ("control", 0.2)):
        arms[arm] |= {"ls_linear_shuffled entropy": 0.6, "ls_linear_cross-validated entropy": 0.6 - told}
    arms["isometric"] |= {"log_ppl_alex_full": -2.5, "path_excess_slerp": 0.75}
    arms["control"] |= {"log_ppl_alex_full": -2.0, "path_excess_tangential": 0.25}
    given = {"stress_stereographic": 0.2, "stress_reconstruction": 0.1, "slope": -0.5}
    weights = {"control": 1.0, "lambda_1e-4": 2.0, "isometric": 4.0, "lambda_1e-2": 8.0}

    def draw(run: Run, name: str) -> float:
        if run.experiment == "ablations" and name in ("ppl_alex_full", "factor_excess"):
            weight = weights.get(run.arm, 1.0)
            return 3 * weight**-0.5 if name == "factor_excess" else weight
        return arms.get(run.arm, {}).get(name, given.get(name, chance(run, name)))

    write_records(tmp_path, draw)
    expected = {
        "table1-ppl": -0.5,
        "table1-mrtl": math.log(0.5),
        "fig5-where": math.log(0.5 / 0.8),
        "fig5-one": 1.5,
        "table2-linear": 2 * 0.1,
        "fig2-sphere": math.log(2),
        "isometric-tangential": math.log(3),
        "dsm": math.log(1.5),
        "trace-error": -0.5,
        "ppl-excess": -0.5,
    }
    for name, value in expected.items():
        found = CLAIMS[name].endpoint(tmp_path).values
        assert found == pytest.approx([value] * len(found)), name


def test_a_log_ratio_of_what_is_not_positive_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path, lambda run, name: -1.0, names=["trace"])
    with pytest.raises(ValueError, match=r"a log ratio needs positive numbers; got -1.0 and -1.0"):
        Endpoint.read({"log_ratio": "trace run error_1/error_256"})(tmp_path)
