"""Execute experiments: one record a run, several runs at a time, resumed after an interruption.

A *run* is one arm of one experiment with one seed. It trains its model unless that is there, measures it, and writes
``<output>/<experiment>/<arm>-seed<k>.json``: whole, or not at all. What is there and fits is left as it is; a training
goes on from its last checkpoint and a measurement from its cache. Runs share nothing but the base of their seed, which
is trained first.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from isodiff.files import write_whole
from isodiff.parameters import listing
from isodiff.reproduce.experiments import Experiment, Pretraining, Program, experiments

FORMAT = "isodiff-run-1"


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One arm of one experiment with one seed; a program has the single arm ``run``."""

    experiment: str
    seed: int
    arm: str

    @property
    def file(self) -> Path:
        """Where its record goes, within the output."""
        return Path(self.experiment, f"{self.arm}-seed{self.seed}.json")


@dataclasses.dataclass(frozen=True)
class Place:
    """What every run is told.

    Attributes:
        profile: Key of `isodiff.reproduce.experiments.PROFILES`.
        output: Folder of records.
        work: Folder of models and of the cache of measurements.
        device: Where models live.
        photographs: As in `experiments`.
    """

    profile: str
    output: Path
    work: Path
    device: str = "cpu"
    photographs: str | None = None

    def experiment(self, name: str) -> Experiment | Program:
        """Return an experiment of the profile."""
        return experiments(self.profile, photographs=self.photographs)[name]


def runs_of(place: Place, names: Iterable[str]) -> list[Run]:
    """Return the runs of some experiments, base first, seed by seed."""
    found = []
    for name in names:
        experiment = place.experiment(name)
        arms = ["run"] if isinstance(experiment, Program) else list(experiment.arms)
        found += [Run(name, seed, arm) for seed in range(experiment.seeds) for arm in arms]
    return found


def reproduce(place: Place, names: Iterable[str], *, jobs: int = 2, progress: bool = True) -> list[str]:
    """Execute every run of some experiments that has no record yet.

    Args:
        place: Profile and folders.
        names: Experiments.
        jobs: Processes at a time, each with its share of the processor's threads.
        progress: Whether to show a progress bar.

    Returns:
        What failed, a line each; the other runs are done.

    Raises:
        ValueError: For an unknown experiment, or fewer than one job.
    """
    from isodiff.diffusion.training import RECORD

    names = list(names)
    known = experiments(place.profile, photographs=place.photographs)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no experiment is called {', '.join(unknown)}; profile {place.profile} has {listing(known)}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    todo = [run for run in runs_of(place, names) if not is_done(run, place)]
    # a base whose record is there, but not its model, is trained again for those that start from it
    bases = {base for run in todo if (base := _needs(run, place)) and not (_folder(base, place) / RECORD).is_file()}
    todo = sorted(bases - set(todo)) + todo
    waiting, failures = {run: _needs(run, place) for run in todo}, []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare, initargs=(threads,)) as pool,
        tqdm(total=len(todo), unit="run", disable=not progress) as bar,
    ):
        running: dict[Future[None], Run] = {}
        while waiting or running:
            for run in [
                run for run, needed in waiting.items() if needed not in waiting | dict.fromkeys(running.values())
            ]:
                if len(running) == 2 * jobs:  # so that what becomes possible meanwhile keeps its turn
                    break
                running[pool.submit(execute, run, place)] = run
                del waiting[run]
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                run = running.pop(future)
                bar.update()
                bar.set_description(f"{run.experiment} {run.arm} seed {run.seed}")
                if error := future.exception():
                    failures.append(f"{run.file}: {type(error).__name__}: {' '.join(str(error).split())}")
    return failures


def _needs(run: Run, place: Place) -> Run | None:
    """Return the run that trains the base of this one, if its experiment trains its own."""
    experiment = place.experiment(run.experiment)
    own = isinstance(experiment, Experiment) and isinstance(experiment.base, Pretraining)
    return Run(run.experiment, run.seed, "base") if own and run.arm != "base" else None


def _prepare(threads: int) -> None:
    import torch
    from diffusers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()


def settings_of(run: Run, place: Place) -> dict[str, Any]:
    """Return everything that decides a run's record, as plain values."""
    experiment = place.experiment(run.experiment)
    if isinstance(experiment, Program):
        return {"function": experiment.function, "options": dict(experiment.options), "seed": run.seed}
    arm, base = experiment.arms[run.arm], experiment.base
    plain = {
        "dataset": "photographs" if experiment.dataset.startswith("folder:") else experiment.dataset,
        "base": base if isinstance(base, str) else _plain(base),
        "config": None if arm.changes is None else {**experiment.config, **arm.changes},
        "families": list(arm.families),
        "sizes": {**experiment.sizes, **arm.sizes},
        "seed": run.seed,
    }
    return json.loads(json.dumps(plain))


def _plain(base: Pretraining) -> dict[str, Any]:
    size = {} if base.resolution is None else {"resolution": base.resolution}
    return {"architecture": base.architecture, "config": dict(base.config), **size}


def is_done(run: Run, place: Place) -> bool:
    """Return whether a run's record is there.

    Raises:
        ValueError: If it is there but was made with other settings, or is damaged.
    """
    path = place.output / run.file
    if not path.is_file():
        return False
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        settings = dict(written["run"]["settings"])
        if written["format"] != FORMAT:
            raise ValueError(f"format {written['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it to run it again") from error
    wanted = settings_of(run, place)
    if settings != wanted:
        differ = [name for name in sorted(settings.keys() | wanted.keys()) if settings.get(name) != wanted.get(name)]
        raise ValueError(
            f"{path} was made with other settings ({', '.join(differ)}); choose another output, or delete it"
        )
    return True


def execute(run: Run, place: Place) -> None:
    """Do one run and write its record; if that is there, only what others start from is made."""
    experiment = place.experiment(run.experiment)
    if is_done(run, place):
        if isinstance(experiment, Experiment):
            _model(run, experiment, place)
        return
    if isinstance(experiment, Program):
        from isodiff.metrics.record import git_revision, versions
        from isodiff.reproduce.programs import PROGRAMS

        values = PROGRAMS[experiment.function](run.seed, **experiment.options)
        body: dict[str, Any] = {"values": values, "versions": versions(), "revision": git_revision()}
    else:
        body = _measure(run, experiment, place)
    settings = {"settings": settings_of(run, place), "profile": place.profile}
    body = {"format": FORMAT, "run": {**dataclasses.asdict(run), **settings}, **body}
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(place.output / run.file, text, advice="make room there and run the same command again")


def _measure(run: Run, experiment: Experiment, place: Place) -> dict[str, Any]:
    from isodiff.metrics.evaluation import evaluate
    from isodiff.metrics.record import git_revision, versions

    arm = experiment.arms[run.arm]
    model, curves = _model(run, experiment, place)
    record = evaluate(
        model,
        arm.families,
        dataset=experiment.dataset,
        profile="gpu" if place.profile == "gpu" else "cpu",
        seed=run.seed,
        device=place.device,
        overrides=json.dumps({**experiment.sizes, **arm.sizes}),
        cache=place.work / "cache",
    )
    measurements = {name: _compact(measured.to_json()) for name, measured in record.measurements.items()}
    body = {"measurements": measurements, "versions": versions(), "revision": git_revision()}
    return body if curves is None else {"curves": curves, **body}


def _compact(measurement: dict[str, Any]) -> dict[str, Any]:
    """Keep what decides between seeds: a value, its interval, n, protocol, and details that are curves over t."""
    kept = {name: measurement[name] for name in ("value", "interval", "n", "unit", "protocol")}
    details = {
        name: detail for name, detail in measurement["details"].items() if name in ("steps", "value", "chance", "rank")
    }
    return {**kept, "details": details}


def _model(run: Run, experiment: Experiment, place: Place) -> tuple[Any, Mapping[str, Any] | None]:
    """Return the trained model of a run, from its folder where it is there, and its loss curves."""
    from isodiff.datasets import open_dataset
    from isodiff.diffusion.config import FinetuneConfig
    from isodiff.diffusion.execution import accelerator_for
    from isodiff.diffusion.latent import image_shape
    from isodiff.diffusion.pretrained import build_pipeline, load_pipeline
    from isodiff.diffusion.training import RECORD, read_record, train

    changes, base = experiment.arms[run.arm].changes, experiment.base
    if changes is None and isinstance(base, str):
        return load_pipeline(base), None
    if changes is None:
        pipeline = build_pipeline(base.architecture, resolution=base.resolution, seed=run.seed)
        config, facts = FinetuneConfig(**base.config, lambda_iso=0.0, seed=run.seed), {"base": base.architecture}
    else:
        source = base if isinstance(base, str) else _folder(dataclasses.replace(run, arm="base"), place)
        pipeline = load_pipeline(source)
        config = FinetuneConfig(**{**experiment.config, **changes}, seed=run.seed)
        facts = {"base": base if isinstance(base, str) else "base of the same seed"}
    images = open_dataset(experiment.dataset, image_shape(pipeline)[1], seed=run.seed)
    trained = train(
        pipeline,
        images,
        config,
        _folder(run, place),
        provenance={"dataset": experiment.dataset, **facts},
        accelerator=accelerator_for(place.device),
        progress=False,  # one bar for all is enough
    )
    curves = read_record(_folder(run, place) / RECORD)["curves"]
    return trained, {"dsm": _thin(curves["dsm"]), "step": _thin(curves["step"]), "isotropy": _thin(curves["isotropy"])}


def _folder(run: Run, place: Place) -> Path:
    return place.work / "models" / run.experiment / f"{run.arm}-seed{run.seed}"


def _thin(values: list[float | None], most: int = 50) -> list[float | None]:
    """Means over equal stretches of the curves, at most so many."""
    size = max(1, -(-len(values) // most))
    stretches = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [float(f"{sum(part) / len(part):.6g}") if part else None for part in stretches]
