"""Folders of records: those that are shipped, with numbers of chance in place of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from isodiff.files import data_directory
from isodiff.reproduce.run import Run

SHIPPED = data_directory() / "results" / "reproduce"

Draw = Callable[[Run, str], float]  # a number for one run and the name of one of its measurements or values


def drawn(change: Callable[[Run, str], float | None]) -> Draw:
    """Return numbers of chance, uniform on [0.5, 2], except where a change gives one."""
    source = np.random.default_rng(0)

    def draw(run: Run, name: str) -> float:
        by_chance = float(source.uniform(0.5, 2))
        return by_chance if (given := change(run, name)) is None else given

    return draw


def record_of(run: Run, draw: Draw) -> dict[str, Any]:
    """Return a shipped record with drawn numbers; curves are asked for as "rtl_late", "rtl_early" and "dsm"."""
    body = json.loads((SHIPPED / run.file).read_text(encoding="utf-8"))
    if "values" in body:
        body["values"] = {name: draw(run, name) for name in body["values"]}
        return body
    measurements = body["measurements"]
    for name, measured in measurements.items():
        measured["value"] = draw(run, name)
    if "mrtl" in measurements:
        late, early = draw(run, "rtl_late"), draw(run, "rtl_early")
        values = [1.5 * late, late, 0.5 * late, 1.25 * early, 0.75 * early]
        measurements["mrtl"]["details"] = {"steps": [999, 749, 500, 499, 249], "value": values}
    if "curves" in body:
        body["curves"]["dsm"] = [9.0, 9.0, *[draw(run, "dsm")] * 2]
    return body


def write_records(folder: Path, draw: Draw, *, names: Iterable[str] = (), num_seeds: int = 99) -> None:
    """Write the records of some experiments (all by default) and of the first seeds."""
    for file in sorted(SHIPPED.glob("*/*-seed*.json")):
        arm, seed = file.stem.split("-seed")
        run = Run(file.parent.name, int(seed), arm, {})
        if run.seed < num_seeds and (not names or run.experiment in names):
            path = folder / run.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record_of(run, draw)), encoding="utf-8")
