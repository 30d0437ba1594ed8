"""Execute experiments: one record a run, whole or not at all, several runs at a time, after the base of their seed."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tqdm import tqdm

from isodiff import datasets, diffusion, metrics
from isodiff.files import write_whole
from isodiff.reproduce.claims import Experiment, Program
from isodiff.reproduce.endpoints import FORMAT, load_run, record
from isodiff.reproduce.programs import PROGRAMS

_DETAILS = ("steps", "value", "chance", "rank", "mean_trace", "mean_sigma", "by_factor", "control", "attributes")


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm of one experiment with one seed."""

    experiment: str
    seed: int
    arm: str
    settings: Mapping[str, Any] = dataclasses.field(repr=False)  # everything that decides its record, as plain values

    @property
    def file(self) -> Path:
        """Where its record goes, within the output."""
        return record(Path(), self.experiment, self.arm, self.seed)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where runs work: `output` has records, `work` models and the cache of measurements."""

    profile: str
    output: Path
    work: Path
    device: str = "cpu"
    photographs: str | None = None

    def model(self, run: Run, arm: str | None = None) -> Path:
        """Return the folder of a run's model, or of another arm with the same seed."""
        return self.work / "models" / record(Path(), run.experiment, arm or run.arm, run.seed).with_suffix("")

    def dataset(self, run: Run) -> str:
        """Return a run's data set, as `isodiff evaluate` names it."""
        name = run.settings["dataset"]
        return f"folder:{self.photographs}" if name == "photographs" else name


def runs_of(experiments: Mapping[str, Experiment | Program]) -> list[Run]:
    """Return the runs of some experiments, base first, seed by seed."""
    whole = [(n, e, seed, arm) for n, e in experiments.items() for seed in range(e.seeds) for arm in e.arms]
    return [Run(name, seed, arm, {**experiment.settings(arm), "seed": seed}) for name, experiment, seed, arm in whole]


def reproduce(
    experiments: Mapping[str, Experiment | Program], place: Place, *, jobs: int = 2, progress: bool = True
) -> list[str]:
    """Execute every run of some experiments that has no record yet; return what failed, a line each."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    runs = runs_of(experiments)
    todo = [run for run in runs if not is_done(run, place)]
    later = [run for run in todo if isinstance(run.settings.get("base"), dict) and run.arm != "base"]
    # a base whose record is there, but not its model, is trained again for those that start from it
    lost = {place.model(run, "base") for run in later if not (place.model(run, "base") / diffusion.RECORD).is_file()}
    first = [run for run in runs if place.model(run) in lost or (run in todo and run not in later)]
    failures, options = [], {"mp_context": get_context("spawn"), "initializer": _prepare}
    # idle threads sleep: where they spin, a busy machine slows a run many times over
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
    bar = tqdm(total=len(first) + len(later), unit="run", disable=not progress)
    with patch.dict(os.environ, threads | os.environ), bar:
        for wave in (first, later):
            with ProcessPoolExecutor(jobs, **options) as pool:
                try:
                    futures = {pool.submit(execute, run, place): run.file for run in wave}
                    for future in as_completed(futures):
                        bar.update()
                        if error := future.exception():
                            words = " ".join(str(error).split())
                            failures.append(f"{futures[future]}: {type(error).__name__}: {words}")
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # interrupted: start nothing more
                    raise
    return failures


def _prepare() -> None:
    from diffusers.utils import logging

    logging.disable_progress_bar()


def is_done(run: Run, place: Place) -> bool:
    """Return whether a run's record is there; a ValueError names one of other settings, or a damaged one."""
    path = place.output / run.file
    if not path.is_file():
        return False
    written, wanted = load_run(path)["run"]["settings"], run.settings
    names = sorted(name for name in written.keys() | wanted.keys() if written.get(name) != wanted.get(name))
    if names:
        differ = f"{path} was made with other settings ({', '.join(names)})"
        raise ValueError(f"{differ}; choose another output, or delete it")
    return True


def execute(run: Run, place: Place) -> None:
    """Do one run and write its record; if that is there, only the model that others start from is made."""
    program = PROGRAMS.get(run.settings.get("function"))
    if is_done(run, place):
        if program is None:
            _model(run, place)
        return
    found = {"values": program(run.seed, **run.settings["options"])} if program else _measure(run, place)
    facts = {**dataclasses.asdict(run), "profile": place.profile}
    body = {"format": FORMAT, "run": facts, **found, "versions": metrics.versions(), "revision": metrics.git_revision()}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(place.output / run.file, text, advice="make room there and run the same command again")


def _measure(run: Run, place: Place) -> dict[str, Any]:
    """Return a record's curves and measurements, of these what decides between seeds."""
    model, curves = _model(run, place)
    told = {"dataset": place.dataset(run), "sizes": run.settings["sizes"], "seed": run.seed, "device": place.device}
    told |= {"profile": "gpu" if place.profile == "gpu" else "cpu", "cache": place.work / "cache"}
    began = time.perf_counter()
    found = metrics.evaluate(model, run.settings["families"], **told)
    seconds = {**curves.pop("seconds", {}), "measuring": round(time.perf_counter() - began, 1)}
    measurements = {name: measured.to_json() for name, measured in found.measurements.items()}
    for name, facts in measurements.items():
        kept = {key: facts[key] for key in ("value", "interval", "n", "unit", "protocol", "replicates", "kind")}
        if "dataset" in kept["protocol"]:  # its name, not where it lies on this machine
            kept["protocol"] = {**kept["protocol"], "dataset": run.settings["dataset"]}
        measurements[name] = kept | {"details": {k: v for k, v in facts["details"].items() if k in _DETAILS}}
    return curves | {"measurements": measurements, "seconds": seconds}  # beside whatever else ran


def _model(run: Run, place: Place) -> tuple[Any, dict[str, Any]]:
    """Return the trained model of a run, from its folder where it is there, and the record's part on its training."""
    base, fields = run.settings["base"], run.settings["config"]
    if isinstance(base, str):
        origin = base.format(seed=run.seed)
        pipeline = diffusion.load_pipeline(origin)
        if fields is None:
            return pipeline, {}
    elif fields is None:
        fields, origin = {**base["config"], "lambda_iso": 0.0}, base["architecture"]
        pipeline = diffusion.build_pipeline(origin, resolution=base.get("resolution"), seed=run.seed)
    else:
        pipeline, origin = diffusion.load_pipeline(place.model(run, "base")), "base of the same seed"
    dataset, folder = place.dataset(run), place.model(run)
    images = datasets.open_dataset(dataset, diffusion.image_shape(pipeline), seed=run.seed)
    config = diffusion.FinetuneConfig(**fields | {"seed": run.seed + fields.get("seed", 0)})
    told = {"provenance": {"dataset": dataset, "base": origin}, "progress": False}
    began, new = time.perf_counter(), not folder.exists()
    accelerator = diffusion.accelerator_for(place.device, config.mixed_precision)
    trained = diffusion.train(pipeline, images, config, folder, accelerator=accelerator, **told)
    curves = diffusion.read_record(folder / diffusion.RECORD)["curves"]
    facts = {"curves": {name: _thin(curves[name]) for name in ("dsm", "step", "anisotropy")}}
    # of a whole training only
    return trained, facts | ({"seconds": {"training": round(time.perf_counter() - began, 1)}} if new else {})


def _thin(values: list[float | None]) -> list[float | None]:
    """Return means over equal stretches of a curve, at most 50."""
    size = max(1, -(-len(values) // 50))
    stretches = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [float(f"{sum(part) / len(part):.6g}") if part else None for part in stretches]
