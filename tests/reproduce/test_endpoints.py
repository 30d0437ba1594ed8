"""Records back to numbers, and the functions that make endpoints of them, in closed form."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from scipy import stats

from isodiff.reproduce.claims import CLAIMS
from isodiff.reproduce.endpoints import FORMAT, Endpoint, contrast, load_run, observe, seeds_of
from isodiff.reproduce.run import Run

from .synthetic import drawn, record_of, write_records


@pytest.fixture
def body() -> dict:
    """Record of a fine-tuned model at 32², whose numbers tell their names by their lengths."""
    return record_of(Run("faces32", 1, "isometric", {}), lambda run, name: float(len(name)))


def test_quantities_are_read_by_name_or_derived(body: dict) -> None:
    assert observe(body, "fid") == 3.0
    assert observe(record_of(Run("trace", 0, "run", {}), lambda run, name: -0.5), "slope") == -0.5
    measured = body["measurements"]
    for name, low, high in (("anisotropy", 2.0, 8.0), ("mcn", 9.0, 4.0), ("vor", 0.1, 0.4)):
        measured[f"{name}_t600"]["value"], measured[f"{name}_t800"]["value"] = low, high
        assert observe(body, name) == pytest.approx(math.sqrt(low * high))
    measured["mrtl"]["details"] = {"steps": [999, 500, 499, 0], "value": [1.0, 2.0, 5.0, 7.0]}
    assert (observe(body, "rtl_late"), observe(body, "rtl_early")) == (1.5, 6.0)
    for kernel, told in (("linear", 2.0), ("rbf", 0.5)):
        measured[f"ls_{kernel}_shuffled"]["value"] = 5.0
        measured[f"ls_{kernel}_cross-validated"]["value"] = 5.0 / told
        assert observe(body, f"told_{kernel}") == pytest.approx(math.log(told))
    body["curves"]["dsm"] = [8.0, 8.0, 1.0, 2.0, 3.0]
    assert observe(body, "dsm") == 2.0
    with pytest.raises(KeyError, match="faces32, isometric, seed 1 has no 'map_anisotropy'"):
        observe(body, "map_anisotropy")


def test_seeds_are_counted_by_number_and_arms_by_their_whole_name(tmp_path: Path) -> None:
    (tmp_path / "faces16").mkdir()
    for name in ("p_0-seed10.json", "p_0-seed2.json", "p_0.75-seed3.json", "lambda_p_0-seed4.json", ".p_0-seed5.json"):
        (tmp_path / "faces16" / name).write_text("{}")
    assert seeds_of(tmp_path, "faces16", "p_0") == [2, 10]
    assert seeds_of(tmp_path, "faces16", "p_0.75") == [3]
    assert seeds_of(tmp_path, "faces32", "p_0") == []


def test_a_record_is_read_once_until_it_changes(tmp_path: Path, body: dict) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(body))
    assert load_run(path) is load_run(path)
    body["measurements"]["fid"]["value"] = 7.0
    path.write_text(json.dumps(body))
    os.utime(path, ns=(1, 10**18))
    assert observe(load_run(path), "fid") == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no record at .*run\.json; `isodiff reproduce` writes it"),
        *[
            (text, r"run\.json is damaged \(.*\); delete it to run it again")
            for text in ("", '{"run": {"sett', "[]", "{}", f'{{"format": "{FORMAT}", "run": null}}')
        ],
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
    effects = [0.01, -0.02, 0.04]

    def draw(run: Run, name: str) -> float:
        return 10.0 ** (run.seed + 1) * (math.exp(effects[run.seed]) if run.arm == "isometric" else 1)

    write_records(tmp_path, draw, names=("faces16",))
    endpoint = contrast("faces16", "ppl_alex_full", "isometric", "control")
    assert endpoint == CLAIMS["table1-ppl-faces16"].endpoint
    assert endpoint(tmp_path).values == pytest.approx(effects)
    (tmp_path / "faces16" / "control-seed1.json").unlink()
    assert endpoint(tmp_path).values == pytest.approx([0.01, 0.04])
    (tmp_path / "faces16" / "isometric-seed0.json").unlink()
    with pytest.raises(ValueError, match="at least 2 finite numbers"):
        endpoint(tmp_path)


def test_ranks_correlate_as_scipy_says(tmp_path: Path) -> None:
    write_records(tmp_path, drawn(lambda run, name: None), names=("faces16",))
    endpoint = CLAIMS["ppl-edits"].endpoint
    arms = dict.fromkeys(arm for _, arm, _ in endpoint.sources)
    for seed, value in enumerate(endpoint(tmp_path).values):
        bodies = [load_run(tmp_path / "faces16" / f"{arm}-seed{seed}.json")["measurements"] for arm in arms]
        pairs = [(body["ppl_alex_full"]["value"], body["spill_over"]["value"]) for body in bodies]
        assert value == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def test_functions_in_closed_form(tmp_path: Path) -> None:
    """Late RTL halves, early RTL falls by a fifth; t = 500 is late and t = 499 is not. Hyperplanes tell logs."""
    spread = {"faces16": 3.0, "faces32": 12.0, "latent64": 6.0}

    def change(run: Run, name: str) -> float | None:
        falls = {"rtl_late": 0.5, "rtl_early": 0.8}
        if name in falls:
            return 1.1 if run.arm == "lambda_1e-2" else falls[name] ** (run.arm == "isometric") * (2.0 + run.seed)
        if name.startswith("anisotropy_t") and run.arm == "isometric":
            return spread[run.experiment]
        told = {"control": 0.5, "isometric": 0.75}.get(run.arm, 0.0)
        given = {"ls_linear_shuffled": math.exp(3), "ls_linear_cross-validated": math.exp(3 - told)}
        given |= {"stress_stereographic": 0.2, "stress_reconstruction": 0.1, "slope": -0.5 - run.seed / 10}
        paths = {"isometric": 0.75, "base": 0.5}
        given |= {"path_excess_slerp": paths.get(run.arm), "path_excess_tangential": 0.25}
        given |= {"dsm": {"isometric": 0.3, "control": 0.2}.get(run.arm)}
        return given.get(name)

    write_records(tmp_path, drawn(change))
    expected = {
        "fig5-where": math.log(0.5 / 0.8),
        "fig5-one": 1.1,
        "table2-linear": 0.25,
        "size-normalised": math.log(4),
        "fig2-sphere": math.log(2),
        "tangential-excess": math.log(0.5),
        "isometric-tangential": math.log(3),
        "dsm": math.log(1.5),
    }
    for name, value in expected.items():
        found = CLAIMS[name].endpoint(tmp_path).values
        assert found == pytest.approx([value] * len(found)), name
    assert CLAIMS["trace-error"].endpoint(tmp_path).values == pytest.approx([-0.5 - s / 10 for s in range(10)])


def test_a_log_ratio_of_what_is_not_positive_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path, drawn(lambda run, name: -1.0), names=("trace",))
    with pytest.raises(ValueError, match=r"a log ratio needs positive numbers; got -1.0 and -1.0"):
        Endpoint.read({"log_ratio": "trace run error_1/error_256"})(tmp_path)
