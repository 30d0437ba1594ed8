"""Records of evaluations: what they hold, how they come back, and how they stand side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from isodiff.metrics.measurement import Measurement
from isodiff.metrics.record import Record, comparison_table, git_revision, versions


def record(model: str, shift: float = 0.0, **changes: object) -> Record:
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(abs(hash(shift)) % 100)
    values = rng.normal(5, 2, 50) + shift + 0.01 * noise.normal(size=50)
    ppl = Measurement.from_units(
        "ppl", values, unit="pairs", seed=0, protocol={"net": "alex"}, details={"curve": [[1, 2]]}
    )
    bare = dataclasses.replace(ppl, name="chance", replicates=None, interval=None)
    fields = {
        "digest": "0" * 64,
        "dataset": "faces",
        "profile": "cpu",
        "seed": 0,
        "device": "cpu",
        "settings": {"times": [200, 600]},
        "versions": versions(),
        "revision": "abc",
        "measurements": {"ppl": ppl, "chance": bare},
        "left_out": {"truth": "no faces"},
    }
    return Record(model=model, **(fields | changes))


def test_a_record_comes_back_whole(tmp_path: Path) -> None:
    saved = record("base")
    saved.save(tmp_path / "deep" / "base.json")
    again = Record.load(tmp_path / "deep" / "base.json")
    assert again.measurements["ppl"].interval == saved.measurements["ppl"].interval
    np.testing.assert_allclose(again.measurements["ppl"].replicates, saved.measurements["ppl"].replicates, rtol=1e-5)
    assert dataclasses.replace(again, measurements={}) == dataclasses.replace(saved, measurements={})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["base.json"]


def test_a_record_is_plain_json_with_its_numbers_on_one_line(tmp_path: Path) -> None:
    record("base").save(tmp_path / "base.json")
    text = (tmp_path / "base.json").read_text()
    assert json.loads(text)["format"] == "isodiff-evaluation-1"
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a record"),
        ('{"format": "other"}', "not a record"),
        ('{"format": "isodiff-evaluation-1", "model": "x"}', "damaged"),
        ('{"format": "isodiff-evaluation-1", "measurements": {"fid": {}}}', "damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Record.load(tmp_path / "x.json")


def test_a_missing_record_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="isodiff evaluate"):
        Record.load(tmp_path / "none.json")


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    record("base").save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        record("base", settings={"x": float("nan")}).save(path)
    assert path.read_bytes() == before


def test_the_table_marks_what_is_outside_the_noise() -> None:
    lines = comparison_table([record("base"), record("control", 1e-9), record("isometric", -1.0)]).splitlines()
    assert lines[0].split() == ["metric", "n", "base", "control", "−", "base", "isometric", "−", "base"]
    ppl = next(line for line in lines if line.startswith("ppl"))
    assert ppl.count("*") == 1
    assert ppl.endswith("*")
    assert "50 pairs" in ppl
    assert next(line for line in lines if line.startswith("chance")).endswith("–")


def test_a_metric_that_one_record_lacks_is_a_dash() -> None:
    table = comparison_table([record("base"), record("isometric", measurements={})])
    assert next(line for line in table.splitlines() if line.startswith("ppl")).split()[-2:] == ["–", "–"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"profile": "gpu"}, {"dataset": "digits"}])
def test_records_measured_differently_do_not_compare(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        comparison_table([record("base"), record("other", **change)])


def test_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        comparison_table([])


def test_versions_and_revision_are_those_of_this_installation() -> None:
    import torch

    assert versions()["torch"] == torch.__version__.split("+")[0]
    revision = git_revision()
    assert revision is None or (len(revision.rstrip("+")) == 40 and int(revision.rstrip("+"), 16) > 0)
