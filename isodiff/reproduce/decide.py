r"""From numbers, one a seed, to a verdict.

An endpoint is one number a seed: of two arms of the same seed their difference or log ratio, of one arm its value. Over
S seeds its interval is Student's, ``mean ± t_{S−1} · sd / √S``; it covers the chance of training, of the latents and of
the images measured, as a seed decides them all.

The rules keep three outcomes apart. With ``θ`` the smallest effect that would still count as the claim,

- *reproduced*: the interval leaves out no effect, on the claimed side, and does not leave out ``θ`` or more;
- *not reproduced*: the interval leaves out every effect of at least ``θ``;
- *underpowered*: it holds both.

Many claims at once: each decided claim has a p-value, twice that of the one-sided test its verdict rests on, as each
rule can end in two verdicts. Over all claims they are sorted by Benjamini and Hochberg (1995) at a false discovery
rate of 5 %; a verdict that does not survive becomes *underpowered*.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

RATE = 0.05


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean over seeds, with its interval.

    Attributes:
        values: One a seed, (S,).
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: ArrayLike) -> Estimate:
        """Make it from S ≥ 2 finite numbers.

        Raises:
            ValueError: If there are fewer, or one is not finite.
        """
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
        return float(np.std(self.values, ddof=1) / math.sqrt(len(self.values)))

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval at 95 %."""
        reach = float(student.ppf(0.975, len(self.values) - 1)) * self.error
        return self.mean - reach, self.mean + reach

    def tail(self, bound: float, *, below: bool) -> float:
        """Return the p-value of the one-sided test that the truth is below (or above) a bound."""
        distance = bound - self.mean if below else self.mean - bound
        if self.error == 0:
            return 0.0 if distance >= 0 else 1.0
        return float(student.sf(distance / self.error, len(self.values) - 1))


@dataclasses.dataclass(frozen=True)
class Effect:
    """The claim that an endpoint is negative (``sign = −1``) or positive, by at least ``smallest`` in size."""

    sign: int
    smallest: float

    def __post_init__(self) -> None:
        """Refuse a sign that is none, and a smallest effect below 0."""
        if self.sign not in (-1, 1) or not self.smallest >= 0:
            raise ValueError(f"sign must be -1 or 1 and smallest at least 0; got {self.sign} and {self.smallest}")

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


@dataclasses.dataclass(frozen=True)
class Within:
    """The claim that an endpoint lies between two bounds: a value is met, or two arms do not differ by more."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}")

    def decide(self, estimate: Estimate) -> tuple[str, float]:
        """Return the verdict and its p-value: two one-sided tests (Schuirmann 1987) for, one against."""
        low, high = estimate.interval
        if self.low <= low and high <= self.high:
            return "reproduced", 2 * max(estimate.tail(self.low, below=False), estimate.tail(self.high, below=True))
        if high < self.low:
            return "not reproduced", 2 * estimate.tail(self.low, below=True)
        if low > self.high:
            return "not reproduced", 2 * estimate.tail(self.high, below=False)
        return "underpowered", 1.0

    def text(self, unit: str) -> str:
        """Return in words what is allowed, in the unit that the endpoint is shown in."""
        signed = unit in ("%", "part")
        high = _shown(self.high, unit, signed=signed)
        if (unit == "%" and self.low <= -1) or unit in ("log", "times"):  # nothing could fall as low
            return f"allowed up to {high}"
        low = _shown(self.low, unit, signed=signed).removesuffix(f" {unit}")
        return f"allowed from {low} to {high}"


Rule = Effect | Within


def _shown(number: float, unit: str, *, signed: bool) -> str:
    """Return a bound as text: a log ratio as a change in percent (``"%"``) or as a factor (``"log"``)."""
    if unit == "%":
        return f"{100 * math.expm1(number):+.2g} %"
    if unit == "log":
        return f"{math.exp(number):.3g} times"
    return f"{number:{'+' if signed else ''}.4g} {unit}".rstrip()


def survivors(p_values: Mapping[str, float], rate: float = RATE) -> set[str]:
    """Return the names whose p-values survive Benjamini and Hochberg's procedure.

    Args:
        p_values: Of all claims, by name; 1 where nothing was decided.
        rate: False discovery rate.
    """
    ordered: Sequence[str] = sorted(p_values, key=lambda name: p_values[name])
    last = 0
    for rank, name in enumerate(ordered, start=1):
        if p_values[name] <= rate * rank / len(ordered):
            last = rank
    return set(ordered[:last])
