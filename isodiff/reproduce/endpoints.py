"""Endpoints: from the records of one seed to one number, and from a folder to an estimate over seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from isodiff.reproduce.decide import Estimate
from isodiff.reproduce.observations import load_run, observe, seeds_of

Source = tuple[str, str, str]
"""Experiment, arm and quantity."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One number a seed.

    Attributes:
        sources: What it is made of; a seed counts when every one of them has it.
        combine: Makes the number of the sources' values at one seed, in order.
    """

    sources: tuple[Source, ...]
    combine: Callable[[Sequence[float]], float]

    def __call__(self, folder: Path) -> Estimate:
        """Return the estimate over the seeds in a folder of records."""
        there = [set(seeds_of(folder, experiment, arm)) for experiment, arm, _ in self.sources]
        return Estimate.of([self.combine(self.values(folder, seed)) for seed in sorted(set.intersection(*there))])

    def values(self, folder: Path, seed: int) -> list[float]:
        """Return the sources' values at one seed."""
        return [observe(load_run(record(folder, e, arm, seed)), quantity) for e, arm, quantity in self.sources]

    @property
    def experiments(self) -> tuple[str, ...]:
        """Whose records it needs."""
        return tuple(dict.fromkeys(experiment for experiment, _, _ in self.sources))


def record(folder: Path, experiment: str, arm: str, seed: int) -> Path:
    """Return where the record of a run is."""
    return folder / experiment / f"{arm}-seed{seed}.json"


def level(experiment: str, quantity: str, arm: str = "run") -> Endpoint:
    """Return one quantity of one arm."""
    return Endpoint(((experiment, arm, quantity),), lambda values: values[0])


def contrast(experiment: str, quantity: str, first: str, second: str, *, ratio: bool = True) -> Endpoint:
    """Return two arms of the same seed side by side: log first/second, or first − second."""
    return Endpoint(tuple((experiment, arm, quantity) for arm in (first, second)), _log_ratio if ratio else _minus)


def two_quantities(experiment: str, first: str, second: str, arm: str = "run") -> Endpoint:
    """Return the log ratio of two quantities of one arm."""
    return Endpoint(tuple((experiment, arm, quantity) for quantity in (first, second)), _log_ratio)


def across(experiment: str, first: tuple[str, str], second: tuple[str, str]) -> Endpoint:
    """Return log of one arm's quantity over another arm's other quantity: (arm, quantity) each."""
    return Endpoint(((experiment, *first), (experiment, *second)), _log_ratio)


def rank_correlation(experiment: str, arms: Sequence[str], one: str, other: str) -> Endpoint:
    """Return Spearman's correlation of two quantities over arms."""

    def correlate(values: Sequence[float]) -> float:
        return float(spearmanr(values[: len(arms)], values[len(arms) :]).statistic)

    return Endpoint(tuple((experiment, arm, quantity) for quantity in (one, other) for arm in arms), correlate)


def drop_late_over_early(experiment: str, first: str, second: str) -> Endpoint:
    """Return how much more log RTL falls where the term acts (t ≥ 500) than elsewhere."""
    sources = [(experiment, arm, f"rtl_{part}") for part in ("late", "early") for arm in (first, second)]
    return Endpoint(tuple(sources), lambda values: _log_ratio(values[:2]) - _log_ratio(values[2:]))


def isotropy_spread(arms: dict[str, str]) -> Endpoint:
    """Return the spread of log isotropy over experiments, largest minus smallest: {experiment: arm}."""
    sources = tuple((experiment, arm, "isotropy") for experiment, arm in arms.items())
    return Endpoint(sources, lambda values: math.log(max(values) / min(values)))


def _log_ratio(values: Sequence[float]) -> float:
    if not min(values) > 0:
        raise ValueError(f"a log ratio needs positive numbers; got {list(values)}")
    return math.log(values[0] / values[1])


def _minus(values: Sequence[float]) -> float:
    return values[0] - values[1]
