"""From the records of one seed to one number, and from a folder to an estimate over units."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np

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


def _excess(name: str, body: Body) -> float:
    """How much longer than its chord a path is: RTL − 1."""
    return observe(body, name) - 1


def _dsm(body: Body) -> float:
    """Mean L_dsm over the last half of training: the same images, steps and noise in every arm of a seed."""
    return float(np.mean(body["curves"]["dsm"][len(body["curves"]["dsm"]) // 2 :]))


# quantities made of several measurements of one run, each with one of these
DERIVED: dict[str, tuple[Callable[[Body], float], str]] = {
    **{
        n: (partial(_over_t, n), f"{n}_t600")
        for n in ("anisotropy", "mcn", "mcn_k100", "mcn_k400", "vor", "vor_affine")
    },
    "rtl_late": (partial(_rtl, True), "mrtl"),
    "rtl_early": (partial(_rtl, False), "mrtl"),
    "rtl_excess": (partial(_excess, "mrtl"), "mrtl"),
    "rtl_late_excess": (partial(_excess, "rtl_late"), "mrtl"),
    "rtl_early_excess": (partial(_excess, "rtl_early"), "mrtl"),
    "dsm": (_dsm, ""),
}


def sample_of(body: Body, quantity: str) -> str:
    """Return how much one unit's number rests on, such as ``"100 pairs"``; empty where that is one number."""
    if count := body["run"]["settings"].get("options", {}).get("num_images"):
        return f"{count:,} images"
    if quantity == "dsm":
        return f"{body['run']['settings']['config']['num_steps'] // 2:,} steps"
    _, measured = DERIVED.get(quantity, (None, quantity))
    there = body.get("measurements", {})
    found = there.get(measured) or there.get(f"{measured}_cross-validated")
    if not found:
        return ""
    count = found["protocol"].get("num_kept", found["n"])  # of the latents, those with the surest attributes
    return f"{count:,} {found['unit']}" + (f" of {found['n']:,}" if count != found["n"] else "")


def _log_ratio(first: float, second: float) -> float:
    if not min(first, second) > 0:
        raise ValueError(f"a log ratio needs positive numbers; got {first} and {second}")
    return math.log(first / second)


def _slope(*values: float) -> float:
    """Slope of the logs of the second half over the logs of the first."""
    return float(np.polyfit(*np.log(np.split(np.array(values), 2)), 1)[0])


def _told_more(*observed: tuple[Body, str]) -> float:
    """How much more SVMs tell beyond shuffled labels, in nats, over the attributes that both models have."""
    scored = [
        [body["measurements"][f"{name}_{way}"]["details"]["attributes"] for way in ("shuffled", "cross-validated")]
        for body, name in observed
    ]
    common = set.intersection(*(set(attributes) for pair in scored for attributes in pair))
    first, second = (
        sum(by_lot[a]["conditional_entropy"] - held_out[a]["conditional_entropy"] for a in common)
        for by_lot, held_out in scored
    )
    return first - second


# what makes the number of a seed; a slope is over two halves, each a quantity over arms
FUNCTIONS: dict[str, Callable[..., float]] = {
    "level": lambda value: value,
    "log_ratio": _log_ratio,
    "difference": lambda first, second: first - second,
    "log_ratio_of_ratios": lambda a, b, c, d: _log_ratio(a, b) - _log_ratio(c, d),
    "slope": _slope,
    "told_more": _told_more,
}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One number a seed: a function of `FUNCTIONS`, and the (experiment, arm, quantity) of each of its arguments."""

    function: str
    sources: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, table: Mapping[str, str | list[str]]) -> Self:
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
        rows = ([(load_run(record(folder, e, arm, s)), q) for e, arm, q in self.sources] for s in sorted(seeds))
        if self.function != "told_more":
            rows = ([observe(*observed) for observed in row] for row in rows)
        return Estimate.of([FUNCTIONS[self.function](*row) for row in rows])

    @property
    def experiments(self) -> tuple[str, ...]:
        """Whose records it needs."""
        return tuple(dict.fromkeys(experiment for experiment, _, _ in self.sources))


def contrast(experiment: str, quantity: str, first: str, second: str) -> Endpoint:
    """Return the log ratio of two arms of the same seed: of what is a log already, the difference."""
    function = "difference" if "log_" in quantity else "log_ratio"
    return Endpoint(function, tuple((experiment, arm, quantity) for arm in (first, second)))
