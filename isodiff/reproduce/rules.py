"""From numbers, one a unit, to a verdict.

A *unit* is what was drawn independently: a training, a base model with pairs of its own, a repeat. Over n units the
interval of an endpoint is Student's at 95 %. With ``θ`` the smallest effect that would still count, these are asked:

- *not testable here*: is there no data, or does θ lie outside of what the instrument can show?
- *reproduced*: is the interval beyond 0 in the claimed direction, and the estimate beyond θ?
- *smaller*: is the interval beyond 0, and the estimate short of θ?
- *not reproduced*: does the interval leave out θ and everything beyond?
- *undecided*: none of these.

A bounded claim, that a change stays within two bounds, is *reproduced* where the interval lies inside, and *not
reproduced* where it lies wholly outside. A p-value is twice that of the claim's own one-sided test, at most 1: of no
effect in the claimed direction, or of a change that reaches a bound (two one-sided tests, Schuirmann 1987). Primary
claims whose p-values do not survive Holm's correction are *undecided*; secondary ones are described by Benjamini and
Hochberg's adjusted p-value.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import optimize, stats

RATE, POWER = 0.05, 0.8


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over n units, with its interval, from one number a unit."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Make it from n ≥ 2 finite numbers."""
        array = np.asarray(values, dtype=float)
        if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
            raise ValueError(f"an estimate needs at least 2 finite numbers, one a unit; got {array.tolist()}")
        return cls(tuple(array.tolist()))

    @property
    def mean(self) -> float:
        """Mean over units."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean, ``sd / √n``."""
        return float(stats.sem(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval at 95 %; without scatter, of no width."""
        if self.error == 0:
            return self.mean, self.mean
        reach = float(stats.t.ppf(1 - RATE / 2, len(self.values) - 1)) * self.error
        return self.mean - reach, self.mean + reach

    def detectable(self, rate: float = RATE) -> float:
        """Return the effect that n units with this scatter show with 80 % power, in a two-sided test at a rate."""
        return _detectable(len(self.values), rate) * float(np.std(self.values, ddof=1))

    def tail(self, bound: float, *, below: bool) -> float:
        """Return the p-value of the one-sided test that the truth is below (or above) a bound."""
        if self.error == 0:
            return float(self.mean >= bound if below else self.mean <= bound)
        t = (self.mean - bound) / self.error
        return float(stats.t.cdf(t if below else -t, len(self.values) - 1))


@cache
def _detectable(n: int, rate: float) -> float:
    """Return what Student's test of n units finds with 80 % power, in standard deviations."""
    critical = stats.t.ppf(1 - rate / 2, n - 1)
    missing = lambda effect: stats.nct.sf(critical, n - 1, effect * math.sqrt(n)) - POWER  # noqa: E731
    return float(optimize.brentq(missing, 0, 2 * (critical + 3) / math.sqrt(n)))


@dataclass(frozen=True)
class Effect:
    """The claim that an endpoint is negative (``sign = −1``) or positive, by at least ``smallest`` in size."""

    sign: Literal[-1, 1]
    smallest: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def decide(self, estimate: Estimate) -> tuple[str, float]:
        """Return the verdict and the p-value of no effect in the claimed direction."""
        low, p = min(self.sign * end for end in estimate.interval), 2 * estimate.tail(0.0, below=self.sign < 0)
        if low > 0:
            return ("reproduced" if self.sign * estimate.mean >= self.smallest else "smaller"), p
        return ("not reproduced" if self.leaves_out(estimate) else "undecided"), min(1.0, p)

    def leaves_out(self, estimate: Estimate) -> bool:
        """Return whether the interval leaves out θ and everything beyond."""
        return max(self.sign * end for end in estimate.interval) < self.smallest

    @property
    def theta(self) -> float:
        """θ with its sign."""
        return self.sign * self.smallest

    def text(self, unit: str) -> str:
        """Return in words what counts, in the unit that the endpoint is shown in."""
        return f"counts from {shown(self.theta, unit, signed=True)}".replace("-", "−")


@dataclass(frozen=True)
class Within:
    """The claim that an endpoint lies between two bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}")

    def decide(self, estimate: Estimate) -> tuple[str, float]:
        """Return the verdict and the p-value of a change that reaches a bound."""
        low, high = estimate.interval
        p = min(1.0, 2 * max(estimate.tail(self.low, below=False), estimate.tail(self.high, below=True)))
        if self.low <= low and high <= self.high:
            return "reproduced", p
        return ("not reproduced" if high < self.low or low > self.high else "undecided"), p

    @property
    def theta(self) -> float:
        """The upper bound."""
        return self.high

    def text(self, unit: str) -> str:
        """Return in words what is allowed, in the unit that the endpoint is shown in."""
        low, high = (shown(bound, unit, signed=unit in ("%", "part")) for bound in (self.low, self.high))
        if (unit == "%" and self.low <= -1) or unit in ("log", "times"):  # nothing could fall as low
            return f"allowed up to {high}"
        return f"allowed from {low.removesuffix(f' {unit}')} to {high}".replace("-", "−")


def read_rule(table: Mapping[str, Any]) -> Effect | Within:
    """Read a rule as `claims.toml` has it: ``{"falls_by": θ}``, ``{"rises_by": θ}`` or ``{"within": [low, high]}``."""
    match list(table.items()):
        case [("falls_by" | "rises_by" as way, smallest)]:
            return Effect(sign=-1 if way == "falls_by" else 1, smallest=smallest)
        case [("within", [low, high])]:
            return Within(low=low, high=high)
    raise ValueError(f"a rule is one of falls_by, rises_by and within = [low, high]; got {table}")


def shown(number: float, unit: str, *, signed: bool) -> str:
    """Return a bound as text: a log ratio as a change in percent (``"%"``) or as a factor (``"log"``)."""
    if unit == "%":
        return f"{100 * math.expm1(number):+.2g} %"
    if unit == "log":
        return f"{math.exp(number):.3g} times"
    return f"{number:{'+' if signed else ''}.4g} {unit}".rstrip()


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values that control the chance of any false rejection (Holm 1979)."""
    order, m = np.argsort(p_values, kind="stable"), len(p_values)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * np.arange(m, 0, -1)), 1)
    return adjusted.tolist()
