"""Runs: one whole record each, never twice, resumed where they stopped, refused by name where they do not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from isodiff.metrics import git_revision
from isodiff.reproduce.claims import Arm, Experiment, experiments
from isodiff.reproduce.endpoints import FORMAT, load_run, observe, seeds_of
from isodiff.reproduce.programs import PROGRAMS
from isodiff.reproduce.run import Place, execute, is_done, reproduce, runs_of

PROGRAM = experiments("smoke")["trace"]
TRACE = runs_of({"trace": PROGRAM})[0]
TINY = Experiment(
    dataset="faces",
    base={"architecture": "faces16", "config": {"num_steps": 1, "batch_size": 2}},
    config={"num_steps": 2, "batch_size": 2, "normalize": True, "lambda_iso": 1e-2, "p": 0.0},
    arms={
        "base": Arm(families=["anisotropy"]),
        "isometric": Arm(changes={}, families=["anisotropy"], sizes={"num_anisotropy": 4}),
        "impossible": Arm(changes={"num_steps": 0}, families=["anisotropy"]),
    },
    sizes={"spectrum_times": [600, 800], "num_anisotropy": 3},
    seeds=1,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("smoke", tmp_path / "records", tmp_path / "work")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_photographs_are_named_where_they_are_opened_and_not_in_records() -> None:
    photos, there = experiments("gpu")["photos64"], Place("gpu", Path("a"), Path("b"), photographs="/home/x")
    one, other = (runs_of({"one": experiment})[0] for experiment in (photos, TINY))
    assert (one.settings["dataset"], there.dataset(one), there.dataset(other)) == (
        "photographs",
        "folder:/home/x",
        "faces",
    )


def test_a_run_is_a_whole_record_and_never_done_twice(place: Place) -> None:
    """An unfinished file never counts; a base by name is measured as it is, and nothing is trained."""
    named = dataclasses.replace(TINY, base="digits16/base", dataset="digits", arms={"base": TINY.arms["base"]})
    base, unfinished = runs_of({"named": named})[0], place.output / "trace" / ".run-seed0.json.1.partial"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text('{"format": ')
    assert seeds_of(place.output, "trace", "run") == []
    execute(TRACE, place)
    execute(base, place)
    unfinished.unlink()
    written = contents(place.output)
    assert set(written) == {"trace/run-seed0.json", "named/base-seed0.json"}
    body = load_run(place.output / TRACE.file)
    assert body["format"] == FORMAT
    assert body["run"] == {**dataclasses.asdict(TRACE), "profile": "smoke"}
    assert body["values"] == PROGRAMS["trace"](0, **PROGRAM.options)
    assert {"torch", "isodiff"} <= body["versions"].keys()
    assert body["revision"] == git_revision()
    body = load_run(place.output / base.file)
    assert "curves" not in body
    assert observe(body, "anisotropy") > 0
    assert not (place.work / "models").exists()
    assert reproduce({"trace": dataclasses.replace(PROGRAM, seeds=1), "named": named}, place, progress=False) == []
    assert contents(place.output) == written


def test_trainings_start_from_their_base_and_go_on_where_they_stopped(place: Place) -> None:
    """A failure is a line and stops no other run; what is there stays; what is missing comes back the same."""
    failures = reproduce({"tiny": TINY}, place, jobs=1, progress=False)
    assert [line.split(":")[0] for line in failures] == ["tiny/impossible-seed0.json"]
    assert "ValueError: num_steps" in failures[0]
    possible = dataclasses.replace(TINY, arms={name: TINY.arms[name] for name in ("base", "isometric")})
    base, isometric = runs_of({"tiny": possible})
    records, models = contents(place.output), contents(place.work / "models")
    assert set(records) == {str(base.file), str(isometric.file)}
    assert {Path(name).parts[1] for name in models} == {"base-seed0", "isometric-seed0"}
    body = load_run(place.output / isometric.file)
    assert set(body["measurements"]) == {"anisotropy_t600", "anisotropy_t800"}
    assert observe(body, "anisotropy") >= 1
    assert body["measurements"]["anisotropy_t600"]["n"] == 4, "the arm's own size"
    assert load_run(place.output / base.file)["measurements"]["anisotropy_t600"]["n"] == 3
    assert body["curves"]["step"] == [1.0, 2.0]
    assert all(value > 0 for name in ("dsm", "anisotropy") for value in body["curves"][name])

    (place.output / isometric.file).unlink()
    assert not is_done(isometric, place)
    execute(isometric, place)
    assert (place.output / isometric.file).read_bytes() == records[str(isometric.file)][0]
    assert contents(place.work / "models") == models, "a model that is there is not trained again"

    # the base's record is there and its model is not: it is trained again, before what starts from it
    (place.output / isometric.file).unlink()
    for run in (base, isometric):
        shutil.rmtree(place.model(run))
    assert reproduce({"tiny": possible}, place, jobs=1, progress=False) == []
    again = contents(place.output)
    assert again.pop(str(isometric.file))[0] == records.pop(str(isometric.file))[0]
    assert again == records, "only what is missing runs"


def test_a_record_made_with_other_settings_or_damaged_is_refused_by_name(place: Place) -> None:
    execute(TRACE, place)
    before = contents(place.output)
    other = {"trace": dataclasses.replace(PROGRAM, options={"num_repeats": 8, "size": 4})}
    message = r"trace/run-seed0\.json was made with other settings \(options\); choose another output, or delete it"
    with pytest.raises(ValueError, match=message):
        reproduce(other, place, progress=False)
    (place.output / TRACE.file).write_text("{}")
    with pytest.raises(ValueError, match=r"run-seed0\.json is damaged"):
        reproduce(other, place, progress=False)
    assert set(contents(place.output)) == set(before)


def test_a_number_that_is_not_finite_is_no_record(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMS, "trace", lambda seed, **options: {"slope": float("nan")})
    with pytest.raises(ValueError, match="nan"):
        execute(TRACE, place)
    assert contents(place.output) == {}
