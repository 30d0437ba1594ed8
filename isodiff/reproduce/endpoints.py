"""From the records of one seed to one number, and from a folder to an estimate over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from isodiff.reproduce.rules import Estimate

FORMAT = "isodiff-run-1"
Body = Mapping[str, Any]


def record(folder: Path, experiment: str, arm: str, seed: int) -> Path:
    """Return where the record of a run is."""
    return folder / experiment / f"{arm}-seed{seed}.json"


def load_run(path: Path) -> Body:
    """Read one run's record; a ValueError names a file that is none."""
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}; `isodiff reproduce` writes it")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _read(path: Path, _modified: int) -> Body:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        found, _ = body["format"], dict(body["run"]["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it to run it again") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; expected {FORMAT!r}")
    return body


def seeds_of(folder: Path, experiment: str, arm: str) -> list[int]:
    """Return the seeds of which there is a record, ascending."""
    return sorted(int(file.stem.rpartition("-seed")[2]) for file in (folder / experiment).glob(f"{arm}-seed*.json"))


def observe(body: Body, quantity: str) -> float:
    """Return one number of a run: a measurement, a value of a program, or one of `DERIVED`."""
    if quantity in DERIVED:
        return DERIVED[quantity][0](body)
    if quantity in body.get("values", {}):
        return float(body["values"][quantity])
    if quantity not in body.get("measurements", {}):
        run = body["run"]
        raise KeyError(f"{run['experiment']}, {run['arm']}, seed {run['seed']} has no {quantity!r}")
    return float(body["measurements"][quantity]["value"])


def _over_t(name: str, body: Body) -> float:
    """Geometric mean over t in {600, 800}."""
    return math.exp(np.mean([math.log(observe(body, f"{name}_t{t}")) for t in (600, 800)]))


def _rtl(late: bool, body: Body) -> float:
    """Mean RTL over the steps t ≥ 500, or those before."""
    details = body["measurements"]["mrtl"]["details"]
    return float(np.mean([v for t, v in zip(details["steps"], details["value"], strict=True) if (t >= 500) == late]))


def _told(kernel: str, body: Body) -> float:
    """How much the hyperplanes tell: log of the score of shuffled labels over the score, in nats."""
    return math.log(observe(body, f"ls_{kernel}_shuffled") / observe(body, f"ls_{kernel}_cross-validated"))


def _dsm(body: Body) -> float:
    """Mean L_dsm over the last half of training: the same images, steps and noise in every arm of a seed."""
    return float(np.mean(body["curves"]["dsm"][len(body["curves"]["dsm"]) // 2 :]))


# quantities made of several measurements of one run, each with one of these
DERIVED: dict[str, tuple[Callable[[Body], float], str]] = {
    **{name: (partial(_over_t, name), f"{name}_t600") for name in ("anisotropy", "mcn", "vor")},
    "rtl_late": (partial(_rtl, True), "mrtl"),
    "rtl_early": (partial(_rtl, False), "mrtl"),
    **{f"told_{k}": (partial(_told, k), f"ls_{k}_cross-validated") for k in ("linear", "rbf")},
    "dsm": (_dsm, ""),
}


def sample_of(body: Body, quantity: str) -> str:
    """Return how much one seed's number rests on, such as ``"100 pairs"``; empty for a program."""
    if quantity == "dsm":
        return f"{body['run']['settings']['config']['num_steps'] // 2} steps"
    _, measured = DERIVED.get(quantity, (None, quantity))
    found = body.get("measurements", {}).get(measured)
    return f"{found['n']:,} {found['unit']}" if found else ""


def _log_ratio(first: float, second: float) -> float:
    if not min(first, second) > 0:
        raise ValueError(f"a log ratio needs positive numbers; got {first} and {second}")
    return math.log(first / second)


# what makes the number of a seed; a correlation is of two halves, each a quantity over arms
FUNCTIONS: dict[str, Callable[..., float]] = {
    "level": lambda value: value,
    "log_ratio": _log_ratio,
    "difference": lambda first, second: first - second,
    "log_ratio_of_ratios": lambda a, b, c, d: _log_ratio(a, b) - _log_ratio(c, d),
    "log_spread": lambda *values: _log_ratio(max(values), min(values)),
    "rank_correlation": lambda *values: spearmanr(*np.split(np.array(values), 2)).statistic,
}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One number a seed: a function of `FUNCTIONS`, and the (experiment, arm, quantity) of each of its arguments."""

    function: str
    sources: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, table: Mapping[str, str | list[str]]) -> Endpoint:
        """Read one as `claims.toml` has it: ``{"log_ratio": "faces16 isometric/control fid"}``."""
        if len(table) != 1 or not table.keys() <= FUNCTIONS.keys():
            raise ValueError(f"an endpoint is one of {', '.join(FUNCTIONS)}; got {dict(table)}")
        ((function, texts),), sources = table.items(), []
        for text in [texts] if isinstance(texts, str) else texts:
            if len(text.split()) != 3:
                raise ValueError(f"{text!r} is not 'experiment arm quantity'")
            experiments, arms, quantities = (part.split("/") for part in text.split())
            sources += [(experiment, arm, name) for name, experiment, arm in product(quantities, experiments, arms)]
        return cls(function, tuple(sources))

    def __call__(self, folder: Path) -> Estimate:
        """Return the estimate over the seeds of which a folder has every record."""
        seeds = set.intersection(*(set(seeds_of(folder, experiment, arm)) for experiment, arm, _ in self.sources))
        rows = ([observe(load_run(record(folder, e, arm, s)), q) for e, arm, q in self.sources] for s in sorted(seeds))
        return Estimate.of([FUNCTIONS[self.function](*row) for row in rows])

    @property
    def experiments(self) -> tuple[str, ...]:
        """Whose records it needs."""
        return tuple(dict.fromkeys(experiment for experiment, _, _ in self.sources))


def contrast(experiment: str, quantity: str, first: str, second: str) -> Endpoint:
    """Return the log ratio of two arms of the same seed."""
    return Endpoint("log_ratio", tuple((experiment, arm, quantity) for arm in (first, second)))
