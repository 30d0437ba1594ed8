"""A measured number with all it takes to believe, repeat and compare it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from isodiff.metrics.intervals import bootstrap_interval, jackknife_interval, paired_bootstrap_interval

Replicates = Literal["mean", "jackknife"]
"""How the replicates of a `Measurement` make its value: they average to it, or each leaves out one group of units."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """One metric of one model.

    Attributes:
        name: The metric, such as ``"ppl"``.
        value: The estimate.
        interval: Its 95 % interval, or None where the protocol has none.
        n: Number of independent units measured.
        unit: What they are: ``"images"``, ``"pairs"``, ``"latents"``.
        seed: Seed of every draw.
        protocol: Everything else that decides the number, as plain JSON values.
        replicates: (R,) one value a unit whose mean is `value`, or leave-one-group-out estimates; or None.
        kind: Which of the two, ``"mean"`` or ``"jackknife"``.
        details: Further numbers that belong to it, such as a curve; plain JSON values.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    n: int
    unit: str
    seed: int
    protocol: Mapping[str, Any]
    replicates: np.ndarray | None = None
    kind: Replicates = "mean"
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_units(cls, name: str, values: np.ndarray, **fields: Any) -> Measurement:  # noqa: ANN401 - the other fields
        """Make the measurement whose value is the mean of independent units, (n,) with n ≥ 2."""
        values = np.asarray(values, dtype=float)
        interval = bootstrap_interval(values)
        return cls(name=name, value=float(values.mean()), interval=interval, n=len(values), replicates=values, **fields)

    @classmethod
    def from_jackknife(
        cls,
        name: str,
        value: float,
        replicates: np.ndarray,
        **fields: Any,  # noqa: ANN401 - the other fields
    ) -> Measurement:
        """Make the measurement of any statistic from its leave-one-group-out estimates, (R,) with R ≥ 2."""
        replicates = np.asarray(replicates, dtype=float)
        interval = jackknife_interval(value, replicates)
        return cls(name=name, value=float(value), interval=interval, replicates=replicates, kind="jackknife", **fields)

    def __str__(self) -> str:
        """Return the value with its interval and n, such as ``16.2 [15.1, 17.4] (n = 100 pairs)``."""
        return f"{self.number()} (n = {self.n:,} {self.unit})"

    def number(self) -> str:
        """Return the value with its interval, to the digits that the interval supports."""
        if self.interval is None:
            return f"{self.value:.4g}"
        low, high = self.interval
        width = high - low
        largest = max(abs(low), abs(high), abs(self.value))
        digits = 3 if width <= 0 or largest == 0 else max(2, math.ceil(math.log10(largest / width)) + 2)
        return f"{_round(self.value, digits)} [{_round(low, digits)}, {_round(high, digits)}]"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; replicates are kept to six significant digits."""
        plain = dataclasses.asdict(self)
        plain["interval"] = None if self.interval is None else list(self.interval)
        if self.replicates is not None:
            plain["replicates"] = [float(f"{value:.6g}") for value in self.replicates]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` returned.

        Raises:
            ValueError: If a field is missing or unknown, or `kind` is neither of the two.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if plain.keys() != names:
            odd = ", ".join(sorted(plain.keys() ^ names))
            raise ValueError(f"a measurement has the fields {', '.join(sorted(names))}; missing or unknown: {odd}")
        if plain["kind"] not in get_args(Replicates):
            raise ValueError(f"kind must be one of {', '.join(get_args(Replicates))}; got {plain['kind']!r}")
        interval, replicates = plain["interval"], plain["replicates"]
        return cls(
            **{
                **plain,
                "interval": None if interval is None else (interval[0], interval[1]),
                "replicates": None if replicates is None else np.array(replicates, dtype=float),
            }
        )


@dataclasses.dataclass(frozen=True)
class Difference:
    """First minus second, measured on the same draws.

    Attributes:
        value: The difference of the two estimates.
        interval: Its 95 % interval; one without zero is outside the noise of the draws. It does not cover the chance
            of training: each model was trained once.
    """

    value: float
    interval: tuple[float, float]

    @property
    def is_outside_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare(first: Measurement, second: Measurement) -> Difference:
    """Return the paired difference of one metric between two models measured on the same draws.

    Args:
        first: Of one model.
        second: Of the other, with the same name, seed, protocol and number of units.

    Returns:
        ``first − second`` with its paired interval.

    Raises:
        ValueError: If the two are not the same measurement, naming what differs, or carry no replicates.
    """
    for field in ("name", "seed", "n", "unit", "kind", "protocol"):
        one, other = getattr(first, field), getattr(second, field)
        if one != other:
            raise ValueError(f"only one protocol compares with itself: {field} is {one!r} and {other!r}")
    if first.replicates is None or second.replicates is None:
        raise ValueError(f"{first.name} carries no replicates, so a difference has no interval")
    if first.replicates.shape != second.replicates.shape:
        raise ValueError(
            f"{first.name} has {first.replicates.size} and {second.replicates.size} replicates; they must pair"
        )
    value = first.value - second.value
    if first.kind == "mean":
        return Difference(value, paired_bootstrap_interval(first.replicates, second.replicates))
    return Difference(value, jackknife_interval(value, first.replicates - second.replicates))


def _round(value: float, digits: int) -> str:
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
