"""Execute experiments: one record a run, whole or not at all, several runs at a time.

What is there and fits is left as it is; a training goes on from its last checkpoint and a measurement from its cache.
Runs share nothing but the base of their seed, which is trained before them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from isodiff import datasets, diffusion, metrics
from isodiff.files import write_whole
from isodiff.reproduce.claims import Experiment, Pretraining, Program
from isodiff.reproduce.endpoints import FORMAT, load_run, record
from isodiff.reproduce.programs import PROGRAMS


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One arm of one experiment with one seed; a program has the single arm ``run``."""

    experiment: str
    seed: int
    arm: str

    @property
    def file(self) -> Path:
        """Where its record goes, within the output."""
        return record(Path(), self.experiment, self.arm, self.seed)

    @property
    def base(self) -> Run:
        """The run of the same seed that trains the base."""
        return dataclasses.replace(self, arm="base")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where runs work: `output` has records, `work` models and the cache of measurements."""

    profile: str
    output: Path
    work: Path
    device: str = "cpu"
    photographs: str | None = None

    def model(self, run: Run) -> Path:
        """Return the folder of a run's model."""
        return self.work / "models" / run.file.with_suffix("")

    def dataset(self, experiment: Experiment) -> str:
        """Return an experiment's data set, as `isodiff evaluate` names it."""
        return f"folder:{self.photographs}" if experiment.dataset == "photographs" else experiment.dataset


def runs_of(experiments: Mapping[str, Experiment | Program]) -> list[Run]:
    """Return the runs of some experiments, base first, seed by seed."""
    arms = {name: ["run"] if isinstance(e, Program) else list(e.arms) for name, e in experiments.items()}
    return [Run(name, seed, arm) for name, e in experiments.items() for seed in range(e.seeds) for arm in arms[name]]


def reproduce(
    experiments: Mapping[str, Experiment | Program], place: Place, *, jobs: int = 2, progress: bool = True
) -> list[str]:
    """Execute every run of some experiments that has no record yet; return what failed, a line each.

    `jobs` processes run at a time, each with its share of the processor's threads. A failure stops no other run.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    todo = [run for run in runs_of(experiments) if not is_done(run, experiments[run.experiment], place)]
    own = {name for name, e in experiments.items() if isinstance(e, Experiment) and isinstance(e.base, Pretraining)}
    later = [run for run in todo if run.experiment in own and run.arm != "base"]
    first = [run for run in todo if run not in later]
    # a base whose record is there, but not its model, is trained again for those that start from it
    lost = {run.base for run in later if not (place.model(run.base) / diffusion.RECORD).is_file()} - set(first)
    failures, options = [], {"mp_context": get_context("spawn"), "initializer": _prepare, "initargs": (jobs,)}
    with tqdm(total=len(lost) + len(todo), unit="run", disable=not progress) as bar:
        for wave in (sorted(lost) + first, later):
            with ProcessPoolExecutor(jobs, **options) as pool:
                try:
                    futures = {pool.submit(execute, run, experiments[run.experiment], place): run for run in wave}
                    for future in as_completed(futures):
                        run = futures[future]
                        bar.update()
                        bar.set_description(f"{run.experiment} {run.arm} seed {run.seed}")
                        if error := future.exception():
                            failures.append(f"{run.file}: {type(error).__name__}: {' '.join(str(error).split())}")
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # interrupted: start nothing more
                    raise
    return failures


def _prepare(jobs: int) -> None:
    import torch
    from diffusers.utils import logging

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    logging.disable_progress_bar()


def settings_of(run: Run, experiment: Experiment | Program) -> dict[str, Any]:
    """Return everything that decides a run's record, as plain values."""
    if isinstance(experiment, Program):
        return {"function": experiment.function, "options": dict(experiment.options), "seed": run.seed}
    arm, base = experiment.arms[run.arm], experiment.base
    if isinstance(base, Pretraining):
        base = {name: value for name, value in dataclasses.asdict(base).items() if value is not None}
    plain = {
        "dataset": experiment.dataset,
        "base": base,
        "config": None if arm.changes is None else {**experiment.config, **arm.changes},
        "families": arm.families,
        "sizes": {**experiment.sizes, **arm.sizes},
        "seed": run.seed,
    }
    return json.loads(json.dumps(plain))


def is_done(run: Run, experiment: Experiment | Program, place: Place) -> bool:
    """Return whether a run's record is there; a ValueError names one of other settings, or a damaged one."""
    path = place.output / run.file
    if not path.is_file():
        return False
    written, wanted = load_run(path)["run"]["settings"], settings_of(run, experiment)
    if differ := [name for name in sorted(written.keys() | wanted.keys()) if written.get(name) != wanted.get(name)]:
        names = ", ".join(differ)
        raise ValueError(f"{path} was made with other settings ({names}); choose another output, or delete it")
    return True


def execute(run: Run, experiment: Experiment | Program, place: Place) -> None:
    """Do one run and write its record; if that is there, only what others start from is made."""
    if is_done(run, experiment, place):
        if isinstance(experiment, Experiment):
            _model(run, experiment, place)
        return
    if isinstance(experiment, Program):
        found: dict[str, Any] = {"values": PROGRAMS[experiment.function](run.seed, **experiment.options)}
    else:
        found = _measure(run, experiment, place)
    facts = {**dataclasses.asdict(run), "settings": settings_of(run, experiment), "profile": place.profile}
    made_by = {"versions": metrics.versions(), "revision": metrics.git_revision()}
    body = {"format": FORMAT, "run": facts, **found, **made_by}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(place.output / run.file, text, advice="make room there and run the same command again")


def _measure(run: Run, experiment: Experiment, place: Place) -> dict[str, Any]:
    """Return a record's curves and measurements: of these what decides between seeds, and details over t."""
    (model, curves), settings = _model(run, experiment, place), settings_of(run, experiment)
    found = metrics.evaluate(
        model,
        settings["families"],
        dataset=place.dataset(experiment),
        profile="gpu" if place.profile == "gpu" else "cpu",
        seed=run.seed,
        device=place.device,
        sizes=settings["sizes"],
        cache=place.work / "cache",
    )
    plain = {name: measured.to_json() for name, measured in found.measurements.items()}
    for facts in plain.values():
        details = {
            key: facts["details"][key] for key in facts["details"] if key in ("steps", "value", "chance", "rank")
        }
        facts["details"] = details
    kept = ("value", "interval", "n", "unit", "protocol", "details")
    return curves | {"measurements": {name: {key: facts[key] for key in kept} for name, facts in plain.items()}}


def _model(run: Run, experiment: Experiment, place: Place) -> tuple[Any, dict[str, Any]]:
    """Return the trained model of a run, from its folder where it is there, and the record's part on its training."""
    fields, base = settings_of(run, experiment)["config"], experiment.base
    if isinstance(base, str):
        pipeline, origin = diffusion.load_pipeline(base), base
        if fields is None:
            return pipeline, {}
    elif fields is None:
        pipeline = diffusion.build_pipeline(base.architecture, resolution=base.resolution, seed=run.seed)
        fields, origin = {**base.config, "lambda_iso": 0.0}, base.architecture
    else:
        pipeline, origin = diffusion.load_pipeline(place.model(run.base)), "base of the same seed"
    dataset, folder = place.dataset(experiment), place.model(run)
    trained = diffusion.train(
        pipeline,
        datasets.open_dataset(dataset, diffusion.image_shape(pipeline)[1], seed=run.seed),
        diffusion.FinetuneConfig(**fields, seed=run.seed),
        folder,
        provenance={"dataset": dataset, "base": origin},
        accelerator=diffusion.accelerator_for(place.device),
        progress=False,  # one bar for all is enough
    )
    curves = diffusion.read_record(folder / diffusion.RECORD)["curves"]
    return trained, {"curves": {name: _thin(curves[name]) for name in ("dsm", "step", "anisotropy")}}


def _thin(values: list[float | None]) -> list[float | None]:
    """Return means over equal stretches of a curve, at most 50."""
    size = max(1, -(-len(values) // 50))
    stretches = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [float(f"{sum(part) / len(part):.6g}") if part else None for part in stretches]
