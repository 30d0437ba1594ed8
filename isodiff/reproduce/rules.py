"""From numbers, one a seed, to a verdict.

Over S seeds the interval of an endpoint is Student's, ``mean ± t_{S−1} · sd / √S``. With ``θ`` the smallest effect that
would still count, the claim is *not reproduced* where the interval leaves out every effect of at least ``θ``, else
*reproduced* where it leaves out zero, and else *underpowered*. A p-value is twice that of the one-sided test that its
verdict rests on; what does not survive Benjamini and Hochberg (1995) over all claims is *underpowered*.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats

RATE = 0.05  # of false discoveries


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over S seeds, with its interval, from one number a seed."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike) -> Estimate:
        """Make it from S ≥ 2 finite numbers."""
        array = np.asarray(values, dtype=float)
        if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
            raise ValueError(f"an estimate needs at least 2 finite numbers, one a seed; got {array.tolist()}")
        return cls(tuple(array.tolist()))

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean, ``sd / √S``."""
        return float(stats.sem(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval at 95 %; without scatter, of no width."""
        if self.error == 0:
            return self.mean, self.mean
        low, high = stats.ttest_1samp(self.values, 0.0).confidence_interval(0.95)
        return float(low), float(high)

    def tail(self, bound: float, *, below: bool) -> float:
        """Return the p-value of the one-sided test that the truth is below (or above) a bound."""
        if self.error == 0:
            return float(self.mean > bound if below else self.mean < bound)
        return float(stats.ttest_1samp(self.values, bound, alternative="less" if below else "greater").pvalue)


@dataclass(frozen=True)
class Effect:
    """The claim that an endpoint is negative (``sign = −1``) or positive, by at least ``smallest`` in size."""

    sign: Literal[-1, 1]
    smallest: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def decide(self, estimate: Estimate) -> tuple[str, float]:
        """Return the verdict and its p-value."""
        low, high = sorted(self.sign * end for end in estimate.interval)
        if high < self.smallest:  # every value is less than the claim
            return "not reproduced", 2 * estimate.tail(self.sign * self.smallest, below=self.sign > 0)
        if low > 0:
            return "reproduced", 2 * estimate.tail(0.0, below=self.sign < 0)
        return "underpowered", 1.0

    def text(self, unit: str) -> str:
        """Return in words what counts, in the unit that the endpoint is shown in."""
        return f"counts from {_shown(self.sign * self.smallest, unit, signed=True)}"


@dataclass(frozen=True)
class Within:
    """The claim that an endpoint lies between two bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}")

    def decide(self, estimate: Estimate) -> tuple[str, float]:
        """Return the verdict and its p-value: two one-sided tests (Schuirmann 1987)."""
        low, high = estimate.interval
        if self.low <= low and high <= self.high:
            return "reproduced", 2 * max(estimate.tail(self.low, below=False), estimate.tail(self.high, below=True))
        if high < self.low or low > self.high:
            nearest = self.low if high < self.low else self.high
            return "not reproduced", 2 * estimate.tail(nearest, below=high < self.low)
        return "underpowered", 1.0

    def text(self, unit: str) -> str:
        """Return in words what is allowed, in the unit that the endpoint is shown in."""
        low, high = (_shown(bound, unit, signed=unit in ("%", "part")) for bound in (self.low, self.high))
        if (unit == "%" and self.low <= -1) or unit in ("log", "times"):  # nothing could fall as low
            return f"allowed up to {high}"
        return f"allowed from {low.removesuffix(f' {unit}')} to {high}"


def read_rule(table: Mapping[str, Any]) -> Effect | Within:
    """Read a rule as `claims.toml` has it: ``{"falls_by": θ}``, ``{"rises_by": θ}`` or ``{"within": [low, high]}``."""
    match list(table.items()):
        case [("falls_by" | "rises_by" as way, smallest)]:
            return Effect(sign=-1 if way == "falls_by" else 1, smallest=smallest)
        case [("within", [low, high])]:
            return Within(low=low, high=high)
    raise ValueError(f"a rule is one of falls_by, rises_by and within = [low, high]; got {table}")


def _shown(number: float, unit: str, *, signed: bool) -> str:
    """Return a bound as text: a log ratio as a change in percent (``"%"``) or as a factor (``"log"``)."""
    if unit == "%":
        return f"{100 * math.expm1(number):+.2g} %"
    if unit == "log":
        return f"{math.exp(number):.3g} times"
    return f"{number:{'+' if signed else ''}.4g} {unit}".rstrip()


def survivors(p_values: Mapping[str, float]) -> set[str]:
    """Return the names whose p-values (1 where nothing was decided) survive Benjamini and Hochberg's procedure."""
    adjusted = stats.false_discovery_control(list(p_values.values())) if p_values else []
    return {name for name, p in zip(p_values, adjusted, strict=True) if p <= RATE}
