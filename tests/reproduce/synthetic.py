"""Folders of records: those that are shipped, with numbers of chance in place of what was measured."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from isodiff.files import data_directory
from isodiff.reproduce.run import Run

SHIPPED = data_directory() / "results" / "reproduce"


def chance(run: Run, name: str) -> float:
    """Return a number near 1, always the same, that differs by some percent between arms and between seeds."""
    arm, seed = (np.random.default_rng([*f"{text}{name}x".encode()]) for text in (run.arm, repr(run)))
    return math.exp(0.1 * arm.normal() + 0.04 * seed.normal())


def record_of(run: Run, draw: Callable[[Run, str], float]) -> dict[str, Any]:
    """Return a shipped record with drawn numbers; curves as "rtl_late_excess", "rtl_early_excess" and "dsm".

    What the first half of the attributes leave open is asked for as "<score> entropy", the others are left out.
    """
    body = json.loads((SHIPPED / run.file).read_text(encoding="utf-8"))
    if "values" in body:
        return body | {"values": {name: draw(run, name) for name in body["values"]}}
    for name, measured in body["measurements"].items():
        measured["value"] = draw(run, name)
        if name == "mrtl":
            late, early = 1 + draw(run, "rtl_late_excess"), 1 + draw(run, "rtl_early_excess")
            values = [1.5 * late, late, 0.5 * late, 1.25 * early, 0.75 * early]
            measured["details"] = {"steps": [999, 749, 500, 499, 249], "value": values}
            measured["value"] = 1 + draw(run, "rtl_excess")
        if attributes := measured["details"].get("attributes"):
            some = list(attributes)[: 2 if run.arm == "isometric" else 3]
            measured["details"]["attributes"] = {a: {"conditional_entropy": draw(run, f"{name} entropy")} for a in some}
    if "curves" in body:
        body["curves"]["dsm"] = [9.0, 9.0, *[draw(run, "dsm")] * 2]
    return body


def write_records(folder: Path, draw: Callable[[Run, str], float] = chance, *, names: Iterable[str] = ()) -> None:
    """Write the records of some experiments, by default of all."""
    for file in sorted(SHIPPED.glob("*/*-seed*.json")):
        arm, seed = file.stem.split("-seed")
        run = Run(file.parent.name, int(seed), arm, {})
        if not names or run.experiment in names:
            (folder / run.experiment).mkdir(parents=True, exist_ok=True)
            (folder / run.file).write_text(json.dumps(record_of(run, draw)), encoding="utf-8")
