"""Records back to numbers: one a model, seed and quantity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from isodiff.reproduce.runner import FORMAT

Body = Mapping[str, Any]


def load_run(path: Path) -> Body:
    """Read one run's record.

    Raises:
        FileNotFoundError: If there is none, with the command that makes it.
        ValueError: If it is not such a record.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}; `isodiff reproduce` writes it")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _read(path: Path, _modified: int) -> Body:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] == FORMAT:
            return body
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a run ({error!r}); delete it and run it again") from error
    raise ValueError(f"{path} has format {body['format']!r}; expected {FORMAT!r}")


def seeds_of(folder: Path, experiment: str, arm: str) -> list[int]:
    """Return the seeds of which there is a record, ascending."""
    files = (folder / experiment).glob(f"{arm}-seed*.json")
    return sorted(int(file.stem.removeprefix(f"{arm}-seed")) for file in files)


def observe(body: Body, quantity: str) -> float:
    """Return one number of a run: a measurement, a value of a program, or one of `DERIVED`.

    Raises:
        KeyError: If the run has none of that name.
    """
    if quantity in DERIVED:
        return DERIVED[quantity](body)
    if quantity in body.get("values", {}):
        return float(body["values"][quantity])
    if quantity not in body.get("measurements", {}):
        run = body["run"]
        raise KeyError(f"{run['experiment']}, {run['arm']}, seed {run['seed']} has no {quantity!r}")
    return float(body["measurements"][quantity]["value"])


def _geometric(*names: str) -> Callable[[Body], float]:
    return lambda body: math.exp(np.mean([math.log(observe(body, name)) for name in names]))


def _rtl(*, late: bool) -> Callable[[Body], float]:
    def mean(body: Body) -> float:
        details = body["measurements"]["mrtl"]["details"]
        return float(
            np.mean([v for t, v in zip(details["steps"], details["value"], strict=True) if (t >= 500) == late])
        )

    return mean


def _told(kernel: str) -> Callable[[Body], float]:
    """How much the hyperplanes tell: log of the score of shuffled labels over the score, in nats."""
    scores = f"ls_{kernel}_shuffled", f"ls_{kernel}_cross-validated"
    return lambda body: math.log(observe(body, scores[0]) / observe(body, scores[1]))


def _dsm(body: Body) -> float:
    """Mean L_dsm over the last half of training: the same images, steps and noise in every arm of a seed."""
    curve = body["curves"]["dsm"]
    return float(np.mean(curve[len(curve) // 2 :]))


DERIVED: dict[str, Callable[[Body], float]] = {
    "isotropy": _geometric("isotropy_t600", "isotropy_t800"),
    "mcn": _geometric("mcn_t600", "mcn_t800"),
    "vor": _geometric("vor_t600", "vor_t800"),
    "rtl_late": _rtl(late=True),
    "rtl_early": _rtl(late=False),
    "told_linear": _told("linear"),
    "told_rbf": _told("rbf"),
    "dsm": _dsm,
}
"""Quantities made of several measurements of one run; t in {600, 800} where nothing else is said."""

_MEASURED_AS = {
    **{name: f"{name}_t600" for name in ("isotropy", "mcn", "vor")},
    **{f"rtl_{part}": "mrtl" for part in ("late", "early")},
    **{f"told_{kernel}": f"ls_{kernel}_cross-validated" for kernel in ("linear", "rbf")},
}


def sample_of(body: Body, quantity: str) -> str:
    """Return how much one seed's number rests on, such as ``"100 pairs"``; empty for a program."""
    if quantity == "dsm":
        return f"{body['run']['settings']['config']['num_steps'] // 2} steps"
    measured = body.get("measurements", {}).get(_MEASURED_AS.get(quantity, quantity))
    return f"{measured['n']:,} {measured['unit']}" if measured else ""
