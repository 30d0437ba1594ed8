"""Runs: one whole record each, never twice, resumed where they stopped, refused by name where they do not fit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isodiff.metrics import git_revision
from isodiff.reproduce.claims import Arm, Experiment, experiments
from isodiff.reproduce.endpoints import FORMAT, load_run, observe, seeds_of
from isodiff.reproduce.programs import PROGRAMS
from isodiff.reproduce.run import Place, execute, reproduce, runs_of

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


def without_seconds(path: Path) -> dict[str, Any]:
    return {name: facts for name, facts in load_run(path).items() if name != "seconds"}


def test_photographs_are_opened_where_they_lie_and_records_tell_only_their_name(place: Place) -> None:
    (folder := place.output.parent / "people").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{number}.png")
    named = dataclasses.replace(TINY, base="faces16/base-0", dataset="photographs", arms={"base": TINY.arms["base"]})
    execute(runs_of({"named": named})[0], dataclasses.replace(place, photographs=str(folder)))
    body = load_run(place.output / "named" / "base-seed0.json")
    assert str(folder) not in json.dumps(body)
    assert body["measurements"]["anisotropy_t600"]["protocol"]["dataset"] == "photographs"


def test_a_run_is_a_whole_record_and_never_done_twice(place: Place) -> None:
    """An unfinished file never counts; a base by name is measured as it is, and nothing is trained."""
    named = dataclasses.replace(TINY, base="digits16/base", dataset="digits", arms={"base": TINY.arms["base"]})
    unfinished = place.output / "trace" / ".run-seed0.json.1.partial"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text('{"format": ')
    assert seeds_of(place.output, "trace", "run") == []
    execute(TRACE, place)
    execute(runs_of({"named": named})[0], place)
    unfinished.unlink()
    written = contents(place.output)
    assert set(written) == {"trace/run-seed0.json", "named/base-seed0.json"}
    body = load_run(place.output / TRACE.file)
    assert body["run"] == {**dataclasses.asdict(TRACE), "profile": "smoke"}
    assert body["values"] == PROGRAMS["trace"](0, **PROGRAM.options)
    assert (body["format"], body["revision"]) == (FORMAT, git_revision())
    assert {"torch", "isodiff"} <= body["versions"].keys()
    body = load_run(place.output / "named" / "base-seed0.json")
    assert "curves" not in body
    assert observe(body, "anisotropy") > 0
    assert not (place.work / "models").exists()
    assert reproduce({"trace": dataclasses.replace(PROGRAM, seeds=1), "named": named}, place, progress=False) == []
    assert contents(place.output) == written


def test_trainings_start_from_their_base_and_go_on_where_they_stopped(place: Place) -> None:
    """A failure is a line and stops no other run; what is there stays; what is missing comes back the same."""
    (failure,) = reproduce({"tiny": TINY}, place, jobs=1, progress=False)
    assert failure.startswith("tiny/impossible-seed0.json: ValueError: num_steps")
    possible = dataclasses.replace(TINY, arms={name: TINY.arms[name] for name in ("base", "isometric")})
    base, isometric = runs_of({"tiny": possible})
    records, models = contents(place.output), contents(place.work / "models")
    assert set(records) == {str(base.file), str(isometric.file)}
    assert {Path(name).parts[1] for name in models} == {"base-seed0", "isometric-seed0"}
    path = place.output / isometric.file
    body, rest = load_run(path), without_seconds(path)
    assert set(body["measurements"]) == {"anisotropy_t600", "anisotropy_t800"}
    assert body["measurements"]["anisotropy_t600"]["n"] == 4, "the arm's own size"
    assert load_run(place.output / base.file)["measurements"]["anisotropy_t600"]["n"] == 3
    assert body["curves"]["step"] == [1.0, 2.0]
    assert all(value > 0 for name in ("dsm", "anisotropy") for value in body["curves"][name])

    path.unlink()
    execute(isometric, place)
    assert without_seconds(path) == rest
    assert load_run(path)["seconds"].keys() == {"measuring"}, "seconds of training are of a whole one"
    assert contents(place.work / "models") == models, "a model that is there is not trained again"

    # the base's record is there and its model is not: it is trained again, before what starts from it
    path.unlink()
    shutil.rmtree(place.work / "models")
    assert reproduce({"tiny": possible}, place, jobs=1, progress=False) == []
    assert without_seconds(path) == rest
    assert contents(place.output)[str(base.file)] == records[str(base.file)], "only what is missing runs"


def test_a_record_made_with_other_settings_is_refused_by_name(place: Place) -> None:
    execute(TRACE, place)
    before = contents(place.output)
    other = {"trace": dataclasses.replace(PROGRAM, options={"num_repeats": 8, "size": 4})}
    message = r"trace/run-seed0\.json was made with other settings \(options\); choose another output, or delete it"
    with pytest.raises(ValueError, match=message):
        reproduce(other, place, progress=False)
    assert contents(place.output) == before


def test_a_number_that_is_not_finite_is_no_record(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMS, "trace", lambda seed, **options: {"slope": float("nan")})
    with pytest.raises(ValueError, match="nan"):
        execute(TRACE, place)
    assert contents(place.output) == {}
