"""Records back to numbers: what is read, and what is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from isodiff.reproduce.observations import DERIVED, load_run, observe, sample_of, seeds_of
from isodiff.reproduce.runner import FORMAT, Place, Run

from .synthetic import record_of, write


@pytest.fixture
def body() -> dict:
    """Record of a fine-tuned model at 32², whose numbers tell their names by their lengths."""
    run = Run("faces32", 1, "isometric")
    return record_of(run, Place("smoke", Path(), Path()), lambda run, name: float(len(name)))


def test_measurements_and_values_are_read_by_name(body: dict) -> None:
    assert observe(body, "fid") == 3.0
    program = record_of(Run("trace", 0, "run"), Place("smoke", Path(), Path()), lambda run, name: -0.5)
    assert observe(program, "slope") == -0.5


def test_derived_quantities(body: dict) -> None:
    measured = body["measurements"]
    for name, low, high in (("isotropy", 2.0, 8.0), ("mcn", 9.0, 4.0), ("vor", 0.1, 0.4)):
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
    assert set(DERIVED) == {"isotropy", "mcn", "vor", "rtl_late", "rtl_early", "told_linear", "told_rbf", "dsm"}


def test_what_a_run_has_not_is_named(body: dict) -> None:
    with pytest.raises(KeyError, match="faces32, isometric, seed 1 has no 'map_isotropy'"):
        observe(body, "map_isotropy")


def test_how_much_a_number_rests_on(body: dict) -> None:
    for name in ("fid", "isotropy", "rtl_late", "told_linear"):
        assert sample_of(body, name) == "40 pairs"
    body["measurements"]["fid"]["n"] = 10_000
    assert sample_of(body, "fid") == "10,000 pairs"
    assert sample_of(body, "dsm") == f"{body['run']['settings']['config']['num_steps'] // 2} steps"
    assert sample_of({"values": {"slope": -0.5}}, "slope") == ""


def test_seeds_are_counted_by_number_and_arms_by_their_whole_name(tmp_path: Path) -> None:
    names = ["p_0-seed10", "p_0-seed2", "p_0.75-seed3", "lambda_p_0-seed4"]
    for name in names:
        write(tmp_path / "faces16" / f"{name}.json", {})
    write(tmp_path / "faces16" / ".p_0-seed5.json.partial", {})
    assert seeds_of(tmp_path, "faces16", "p_0") == [2, 10]
    assert seeds_of(tmp_path, "faces16", "p_0.75") == [3]
    assert seeds_of(tmp_path, "faces32", "p_0") == []


def test_a_record_is_read_once_until_it_changes(tmp_path: Path, body: dict) -> None:
    path = tmp_path / "a.json"
    write(path, body)
    assert load_run(path) is load_run(path)
    body["measurements"]["fid"]["value"] = 7.0
    write(path, body)
    os.utime(path, ns=(1, 10**18))
    assert observe(load_run(path), "fid") == 7.0


def test_a_missing_record_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no record at .*none\.json; `isodiff reproduce` writes it"):
        load_run(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", '{"format": ', "[1]", "3", "{}"])
def test_a_damaged_record_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text(text)
    with pytest.raises(ValueError, match=r"cut\.json is not a record of a run .*; delete it and run it again"):
        load_run(tmp_path / "cut.json")


def test_a_record_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"format": "isodiff-evaluation-1"}))
    with pytest.raises(ValueError, match=f"has format 'isodiff-evaluation-1'; expected '{FORMAT}'"):
        load_run(tmp_path / "other.json")
