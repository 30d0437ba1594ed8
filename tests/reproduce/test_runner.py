"""Runs: one whole record each, never twice, resumed where they stopped, refused by name where they do not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from isodiff.diffusion import training
from isodiff.metrics import record as record_module
from isodiff.reproduce import programs, runner
from isodiff.reproduce.experiments import Arm, Experiment, Pretraining, Program, experiments
from isodiff.reproduce.observations import load_run, observe, seeds_of
from isodiff.reproduce.runner import FORMAT, Place, Run, execute, is_done, reproduce, runs_of, settings_of

TRACE = Run("trace", 0, "run")
TINY = Experiment(
    question="Does a run go on where it stopped?",
    dataset="faces",
    base=Pretraining(architecture="faces16", config={"num_steps": 2, "batch_size": 2}),
    config={"num_steps": 2, "batch_size": 2, "normalize": True, "lambda_iso": 1e-2, "p": 0.0},
    arms={
        "base": Arm(changes=None, families=("isotropy",)),
        "control": Arm(changes={"lambda_iso": 0.0}, families=("isotropy",)),
        "isometric": Arm(changes={}, families=("isotropy",), sizes={"num_isotropy": 4}),
    },
    sizes={"spectrum_times": [600, 800], "num_isotropy": 3},
    seeds=2,
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("smoke", tmp_path / "records", tmp_path / "work")


@pytest.fixture
def tiny(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place whose only experiment is a tiny one."""
    monkeypatch.setattr(runner, "experiments", lambda profile, photographs=None: {"tiny": TINY})
    return place


class Inline:
    """What the runner needs of a pool of processes, in this one: what was submitted last is done first."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Future[None], Callable[..., None], tuple[object, ...]]] = []

    def __call__(self, jobs: int, **options: object) -> Inline:
        return self

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, do: Callable[..., None], *arguments: object) -> Future[None]:
        self.submitted.append((Future(), do, arguments))
        return self.submitted[-1][0]

    def wait(self, running: dict[Future[None], Run], return_when: str) -> tuple[set[Future[None]], set[Future[None]]]:
        future, do, arguments = self.submitted.pop()
        try:
            future.set_result(do(*arguments))
        except ValueError as error:
            future.set_exception(error)
        return {future}, set(running) - {future}


@pytest.fixture
def order(tiny: Place, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were executed, in order; each leaves an empty record and costs nothing."""
    order: list[Run] = []

    def note(run: Run, place: Place) -> None:
        order.append(run)
        body = {"format": FORMAT, "run": {"settings": settings_of(run, place)}}
        model = place.work / "models" / run.experiment / f"{run.arm}-seed{run.seed}" / "training.json"
        for path, text in ((place.output / run.file, json.dumps(body)), (model, "{}")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    pool = Inline()
    monkeypatch.setattr(runner, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(runner, "wait", pool.wait)
    monkeypatch.setattr(runner, "execute", note)
    return order


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_a_program_runs_in_a_process_of_its_own_and_only_once(place: Place) -> None:
    assert reproduce(place, ["trace"], jobs=1, progress=False) == []
    written = contents(place.output)
    assert set(written) == {f"trace/run-seed{seed}.json" for seed in range(experiments("smoke")["trace"].seeds)}
    body = load_run(place.output / TRACE.file)
    assert body["format"] == FORMAT
    assert body["run"] == {**dataclasses.asdict(TRACE), "settings": settings_of(TRACE, place), "profile": "smoke"}
    assert body["values"] == programs.trace(0, **experiments("smoke")["trace"].options)
    assert {"torch", "isodiff"} <= body["versions"].keys()
    assert reproduce(place, ["trace"], jobs=1, progress=False) == []
    assert contents(place.output) == written


def test_every_run_once_its_base_first_seed_by_seed(order: list[Run], place: Place) -> None:
    assert reproduce(place, ["tiny"], jobs=2, progress=False) == []
    assert sorted(order) == sorted(runs_of(place, ["tiny"]))
    assert len(order) == len(set(order)) == 6
    for run in order:
        assert run.arm == "base" or order.index(Run("tiny", run.seed, "base")) < order.index(run)
    assert runs_of(place, ["tiny"]) == [Run("tiny", seed, arm) for seed in (0, 1) for arm in TINY.arms]


def test_only_what_is_missing_runs(order: list[Run], place: Place) -> None:
    reproduce(place, ["tiny"], progress=False)
    order.clear()
    (place.output / "tiny" / "control-seed1.json").unlink()
    (place.output / "tiny" / ".control-seed1.json.partial").write_text("{")
    reproduce(place, ["tiny"], progress=False)
    assert order == [Run("tiny", 1, "control")]


def test_a_base_whose_model_is_gone_is_trained_before_those_that_start_from_it(order: list[Run], place: Place) -> None:
    reproduce(place, ["tiny"], progress=False)
    order.clear()
    (place.output / "tiny" / "control-seed1.json").unlink()
    (place.work / "models" / "tiny" / "base-seed1" / "training.json").unlink()
    reproduce(place, ["tiny"], progress=False)
    assert order == [Run("tiny", 1, "base"), Run("tiny", 1, "control")]


def test_a_failure_is_a_line_and_stops_no_other_run(
    order: list[Run], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = runner.execute

    def fail(run: Run, place: Place) -> None:
        if run == Run("tiny", 0, "control"):
            raise ValueError("the loss\nis not finite")
        note(run, place)

    monkeypatch.setattr(runner, "execute", fail)
    failures = reproduce(place, ["tiny"], jobs=1, progress=False)
    assert failures == ["tiny/control-seed0.json: ValueError: the loss is not finite"]
    assert len(order) == 5


def test_a_run_goes_on_where_it_stopped(
    tiny: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped between training and record: the model is there, and it alone is measured again, to the same record."""
    base, isometric = Run("tiny", 0, "base"), Run("tiny", 0, "isometric")
    for run in (base, isometric):
        execute(run, tiny)
    assert "seed0" not in capfd.readouterr().err, "one bar for all runs is enough"
    file = tiny.output / isometric.file
    before, models = load_run(file), contents(tiny.work / "models")
    assert set(before["measurements"]) == {"isotropy_t600", "isotropy_t800"}
    assert observe(before, "isotropy") >= 1
    assert before["measurements"]["isotropy_t600"]["n"] == 4, "the arm's own size"
    assert load_run(tiny.output / base.file)["measurements"]["isotropy_t600"]["n"] == 3
    assert before["curves"]["step"] == [1.0, 2.0]
    assert all(value > 0 for name in ("dsm", "isotropy") for value in before["curves"][name])
    assert {Path(name).parts[1] for name in models} == {"base-seed0", "isometric-seed0"}

    def trains(*_arguments: object, **_options: object) -> Iterator[None]:
        raise AssertionError("a model that is there was trained again")

    monkeypatch.setattr(training, "finetune", trains)
    file.unlink()
    assert not is_done(isometric, tiny)
    execute(isometric, tiny)
    assert is_done(isometric, tiny)
    assert json.loads(file.read_text()) == before
    assert contents(tiny.work / "models") == models


def test_a_base_by_name_is_measured_as_it_is(tiny: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    named = dataclasses.replace(TINY, base="digits16/base", dataset="digits")
    monkeypatch.setattr(runner, "experiments", lambda profile, photographs=None: {"tiny": named})
    execute(Run("tiny", 0, "base"), tiny)
    body = load_run(tiny.output / "tiny" / "base-seed0.json")
    assert "curves" not in body
    assert observe(body, "isotropy") > 0
    assert not (tiny.work / "models").exists()


def test_a_record_made_with_other_settings_is_refused_by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(TRACE, place)
    before = contents(place.output)
    other = experiments("smoke")["trace"]
    other = dataclasses.replace(other, options={**other.options, "num_repeats": 9})
    monkeypatch.setattr(runner, "experiments", lambda profile, photographs=None: {"trace": other})
    message = r"trace/run-seed0\.json was made with other settings \(options\); choose another output, or delete it"
    for check in (lambda: is_done(TRACE, place), lambda: reproduce(place, ["trace"], progress=False)):
        with pytest.raises(ValueError, match=message):
            check()
    assert contents(place.output) == before


@pytest.mark.parametrize("text", ["", '{"run": {"sett', "[]", "{}", '{"run": null}', '{"run": {"arm": "run"}}'])
def test_a_damaged_record_is_refused_by_name(text: str, place: Place) -> None:
    path = place.output / TRACE.file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run-seed0\.json is damaged \(.*\); delete it to run it again"):
        is_done(TRACE, place)


def test_a_write_that_fails_leaves_nothing_and_a_partial_file_never_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = place.output / "trace" / ".run-seed0.json.partial"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match=r"run-seed0\.json could not be written \(disk full\); make room there"):
            execute(TRACE, place)
    assert contents(place.output) == {}
    partial.write_text('{"format": ')
    assert not is_done(TRACE, place)
    assert seeds_of(place.output, "trace", "run") == []
    execute(TRACE, place)
    assert is_done(TRACE, place)
    assert not partial.exists()


def test_a_number_that_is_not_finite_is_no_record(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.PROGRAMS, "trace", lambda seed, **options: {"slope": float("nan")})
    with pytest.raises(ValueError, match="nan"):
        execute(TRACE, place)
    assert contents(place.output) == {}


def test_a_record_tells_the_commit_it_was_made_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "git_revision", lambda: "0123abc")
    execute(TRACE, place)
    assert load_run(place.output / TRACE.file)["revision"] == "0123abc"


def test_settings_hold_all_that_decides_and_no_path() -> None:
    place = Place("gpu", Path("out"), Path("work"), photographs="/home/someone/photographs")
    every = experiments("gpu", photographs=place.photographs)
    seen = set()
    for name, experiment in every.items():
        for arm in ["run"] if isinstance(experiment, Program) else experiment.arms:
            settings = settings_of(Run(name, 1, arm), place)
            assert json.loads(json.dumps(settings)) == settings
            assert "someone" not in json.dumps(settings)
            seen.add(json.dumps(settings))
    assert len(seen) == sum(1 if isinstance(e, Program) else len(e.arms) for e in every.values())


@pytest.mark.parametrize(
    ("names", "jobs", "message"),
    [
        (["trace", "faces99"], 1, r"no experiment is called faces99; profile smoke has faces16, .*cost"),
        (["photos64"], 1, "no experiment is called photos64"),
        (["trace"], 0, "jobs must be at least 1; got 0"),
        (["trace"], -2, "jobs must be at least 1; got -2"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_made(
    names: list[str], jobs: int, message: str, place: Place
) -> None:
    with pytest.raises(ValueError, match=message):
        reproduce(place, names, jobs=jobs)
    assert not place.output.exists()
